package httpapi

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

const (
	clockSkew = 5 * time.Minute // how far ahead an event's time may be
	noEnd     = "none"          // a ttl
)

// blockAsk is a block request, parsed: what is in it is canonical.
type blockAsk struct {
	match     parry.Match
	selector  parry.Selector
	ttl       time.Duration // 0: the default
	noEnd     bool
	eventTime time.Time // zero: none given
	alert     bool      // a SIEM's alert, as it came
	dry       bool      // nothing comes of it

	reason, origin, alertID, ruleID string // inert text, as written
}

var blockRequestFields = []field[api.BlockRequest]{
	{"source", func(r *api.BlockRequest, v value) { r.Source = v.word() }},
	{"destination", func(r *api.BlockRequest, v value) { r.Destination = v.word() }},
	{"destination_port", func(r *api.BlockRequest, v value) { r.DestinationPort = v.integer() }},
	{"protocol", func(r *api.BlockRequest, v value) { r.Protocol = api.BlockRequestProtocol(v.word()) }},
	{"interface", func(r *api.BlockRequest, v value) { r.Interface = v.word() }},
	{"firewalls", func(r *api.BlockRequest, v value) { r.Firewalls = v.strs() }},
	{"agent", func(r *api.BlockRequest, v value) { r.Agent = v.word() }},
	{"ttl", func(r *api.BlockRequest, v value) { r.TTL = v.duration() }},
	{"reason", func(r *api.BlockRequest, v value) { r.Reason = v.str() }},
	{"origin", func(r *api.BlockRequest, v value) { r.Origin = v.str() }},
	{"alert_id", func(r *api.BlockRequest, v value) { r.AlertID = v.str() }},
	{"rule_id", func(r *api.BlockRequest, v value) { r.RuleID = v.str() }},
	{"event_time", func(r *api.BlockRequest, v value) { r.EventTime = v.time() }},
}

// decodeBlockRequest reads the body of POST /blocks. Its error is of the kind invalid and lists all that is wrong.
func (s *Server) decodeBlockRequest(body []byte, now time.Time) (blockAsk, error) {
	var req api.BlockRequest
	var wrong problems
	decodeObject(body, &req, blockRequestFields, &wrong)
	if wrong.at("") && len(wrong) == 1 && wrong[0].Pointer == "" {
		return blockAsk{}, wrong.err() // no object at all
	}
	s.check(&req, &wrong)
	ask := blockAsk{
		selector: parry.SelectDefault,
		reason:   req.Reason, origin: req.Origin, alertID: req.AlertID, ruleID: req.RuleID,
	}
	// parse runs on fields that are given and not wrong yet.
	parse := func(pointer string, given bool, f func() error) {
		if given && !wrong.at(pointer) {
			if err := f(); err != nil {
				wrong.add(pointer, "%s", err)
			}
		}
	}
	m := &ask.match
	parse("/source", true, func() (err error) { m.Source, err = parsePrefix(req.Source); return err })
	parse("/destination", req.Destination != "", func() (err error) {
		m.Destination, err = parsePrefix(req.Destination)
		if err == nil && m.Source.IsValid() && m.Source.Addr().Is4() != m.Destination.Addr().Is4() {
			err = fmt.Errorf("%s is of another family than the source %s: both must be IPv4, or both IPv6", req.Destination, req.Source)
		}
		return err
	})
	if req.Protocol != "any" {
		m.Protocol = parry.Protocol(req.Protocol)
	}
	parse("/destination_port", req.DestinationPort != 0, func() error {
		switch {
		case wrong.at("/protocol"):
		case m.Protocol == parry.ProtoAny:
			m.Protocol = parry.ProtoTCPUDP
		case !m.Protocol.HasPorts():
			return fmt.Errorf("%s has no ports: leave the port out, or take tcp, udp, tcp/udp or sctp", m.Protocol)
		}
		m.Port = uint16(req.DestinationPort)
		return nil
	})
	parse("/interface", req.Interface != "", func() error {
		m.Interface = req.Interface
		return checkName(req.Interface, true, "_.-")
	})
	for i, name := range req.Firewalls {
		parse(fmt.Sprintf("/firewalls/%d", i), true, func() error { return checkName(name, false, "-") })
	}
	if !wrong.at("/firewalls") {
		ask.selector = parry.ParseSelector(req.Firewalls...)
	}
	if len(req.Firewalls) == 0 {
		ask.selector = s.agentSelector(req.Agent)
	}
	parse("/ttl", req.TTL != "", func() (err error) {
		ask.ttl, ask.noEnd, err = parseTTL(req.TTL)
		return err
	})
	parse("/event_time", !req.EventTime.IsZero(), func() error {
		ask.eventTime = req.EventTime
		return checkEventTime(ask.eventTime, now)
	})
	return ask, wrong.err()
}

// agentSelector is what the first agent that the configuration lists stands for: a name, or an id. Unlisted ones mean the default.
func (s *Server) agentSelector(agents ...string) parry.Selector {
	if s.o.Agent != nil {
		for _, a := range agents {
			if sel, ok := s.o.Agent(a); ok {
				return sel
			}
		}
	}
	return parry.SelectDefault
}

// parseTTL reads a lifetime; without is "none".
func parseTTL(s string) (ttl time.Duration, without bool, err error) {
	if s == noEnd {
		return 0, true, nil
	}
	if ttl, err = parry.ParseTTL(s); err != nil {
		err = fmt.Errorf("%w, or none for without end", err)
	}
	return ttl, false, err
}

func checkEventTime(t, now time.Time) error {
	if t.After(now.Add(clockSkew)) {
		return fmt.Errorf("%s is %s ahead of this service's clock, and %s is allowed: check both clocks",
			t.Format(time.RFC3339), parry.FormatTTL(t.Sub(now)), parry.FormatTTL(clockSkew))
	}
	return nil
}

// checkName takes letters and digits, and the extra characters after the first.
func checkName(s string, upper bool, extra string) error {
	for i := range len(s) {
		b := s[i]
		switch {
		case b >= 'a' && b <= 'z', b >= '0' && b <= '9', upper && b >= 'A' && b <= 'Z':
		case i > 0 && strings.IndexByte(extra, b) >= 0:
		default:
			letters := "lower-case letters"
			if upper {
				letters = "letters"
			}
			return fmt.Errorf("write a name of %s, digits and %s that begins with a letter or digit", letters, strings.Join(strings.Split(extra, ""), " "))
		}
	}
	return nil
}

// parsePrefix reads an address or prefix and gives it masked, unmapped and without zone. Its errors say what to write instead.
func parsePrefix(s string) (netip.Prefix, error) {
	none := netip.Prefix{}
	host, bits, isPrefix := strings.Cut(s, "/")
	a, err := netip.ParseAddr(host)
	switch {
	case err != nil && octal(host):
		return none, fmt.Errorf("%s has leading zeros, which some read as octal: write plain decimal numbers", cut(s, 64))
	case err != nil:
		return none, fmt.Errorf("%q is no IP address: write one such as 203.0.113.7 or 2001:db8::7", cut(s, 64))
	case a.Zone() != "":
		return none, fmt.Errorf("%s has a zone: write the address without %%%s", cut(s, 64), a.Zone())
	case !isPrefix:
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return none, fmt.Errorf("/%s is no prefix length for %s: write /0 to /%d, in plain digits", cut(bits, 16), host, a.BitLen())
	}
	if a.Is4In6() {
		if p.Bits() < 96 {
			return none, fmt.Errorf("%s is wider than the mapped IPv4 range: write an IPv4 prefix", s)
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	if m := p.Masked(); m != p {
		return none, fmt.Errorf("%s has bits set beyond its prefix: write %s, or the address alone", s, m)
	}
	return p, nil
}

// octal tells whether a dotted quad has leading zeros.
func octal(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 4 {
		return false
	}
	zeros := false
	for _, p := range parts {
		for i := range len(p) {
			if p[i] < '0' || p[i] > '9' {
				return false
			}
		}
		zeros = zeros || len(p) > 1 && p[0] == '0'
	}
	return zeros
}
