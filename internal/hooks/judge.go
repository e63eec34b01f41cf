package hooks

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Code names why an alert asks for no block. It is part of the API.
type Code string

const (
	NotAnAdd       Code = "not_an_add"      // the end of an active response
	BelowLevel     Code = "below_level"     // of Settings.MinLevel
	RuleNotListed  Code = "rule_not_listed" // in Settings.Rules
	NoSource       Code = "no_source"       // in any place
	NotAnAddress   Code = "not_an_address"  // what stands there
	Outbound       Code = "outbound"        // our own side began
	InternalSource Code = "internal_source" // the source is on our own side
)

// Codes lists all of them.
var Codes = []Code{NotAnAdd, BelowLevel, RuleNotListed, NoSource, NotAnAddress, Outbound, InternalSource}

// Settings say which alerts become blocks.
type Settings struct {
	MinLevel int                      // the least rule level
	Rules    map[string]time.Duration // rule id or group → TTL, 0 for the default; empty: every rule
	Internal func(netip.Addr) string  // why an address is on our own side, empty when it is not; nil: none is
}

// Verdict is what an alert asks for. Without a Code it is a block of Source; with one there is none, and the other fields are what was found
// out until then.
type Verdict struct {
	Code   Code
	Detail string // for people; hostile text in it is quoted
	Source netip.Addr
	Place  string        // where the source stands in the document: "data.srcip"
	TTL    time.Duration // the rule's; 0 for the default
}

// Judge says which block the alert asks for, or why none.
func (s *Settings) Judge(a *Alert) Verdict {
	var v Verdict
	no := func(code Code, format string, args ...any) Verdict {
		v.Code, v.Detail = code, fmt.Sprintf(format, args...)
		return v
	}
	place, text := a.first(sourcePlaces)
	ok := false
	if place != "" {
		v.Place = a.root + place
		v.Source, ok = parseAddr(text)
	}
	ttl, listed := s.rule(a)
	switch {
	case !slices.Contains([]string{"", "add", "enable", "continue"}, a.Command):
		return no(NotAnAdd, "the active response's command is %q; blocks end by their expiry, or by DELETE /api/v1/blocks", cut(a.Command, 32))
	case s.MinLevel > 0 && a.Level < 0:
		return no(BelowLevel, "the alert names no rule level, and %d is the least", s.MinLevel)
	case s.MinLevel > 0 && a.Level < s.MinLevel:
		return no(BelowLevel, "the rule's level is %d, and %d is the least", a.Level, s.MinLevel)
	case !listed:
		return no(RuleNotListed, "neither rule %q nor a group of it is among hooks.wazuh.rules", cut(a.RuleID, 64))
	case place == "":
		return no(NoSource, "the alert has an address in none of the places where Wazuh's decoders put a source")
	case !ok:
		return no(NotAnAddress, "%s holds %q, which is no IP address", v.Place, cut(text, 64))
	}
	v.TTL = ttl
	own := s.own(a, v.Source)
	if why := a.outbound(v.Source); why != "" {
		return no(Outbound, "the event goes out from our own side: %s", why)
	}
	if own == "" {
		return v
	}
	if _, text := a.first(destinationPlaces); text != "" {
		if to, ok := parseAddr(text); ok && s.own(a, to) == "" {
			return no(Outbound, "the event goes from our own side to %s: %s", to, own)
		}
	}
	return no(InternalSource, "%s", own)
}

// rule is the TTL of the alert's rule. An id counts before groups, and of these the longest TTL.
func (s *Settings) rule(a *Alert) (ttl time.Duration, listed bool) {
	if len(s.Rules) == 0 {
		return 0, true
	}
	if ttl, listed = s.Rules[a.RuleID]; listed {
		return ttl, true
	}
	for _, g := range a.Groups {
		if t, ok := s.Rules[g]; ok {
			ttl, listed = max(ttl, t), true
		}
	}
	return ttl, listed
}

// first is the first of the places that holds anything, and what it holds. It passes over those that are empty or hold a dash,
// which is how Windows writes none. More than one value is no address.
func (a *Alert) first(places []string) (place, text string) {
	for _, p := range places {
		values := slices.DeleteFunc(a.texts(p), func(s string) bool { return s == "-" })
		if len(values) > 0 {
			return p, strings.Join(slices.Compact(values), " ")
		}
	}
	return "", ""
}

// own says why an address is on our own side; empty when it is not.
func (s *Settings) own(a *Alert, addr netip.Addr) string {
	for _, place := range agentAddresses {
		for _, text := range a.texts(place) {
			if own, ok := parseAddr(text); ok && own == addr {
				return fmt.Sprintf("%s is the agent's own address", addr)
			}
		}
	}
	if s.Internal == nil {
		return ""
	}
	return s.Internal(addr)
}

// outbound says why the event was begun by our own side, as far as the event tells by itself; empty when it does not.
func (a *Alert) outbound(source netip.Addr) string {
	for _, f := range outboundWhen {
		if value := strings.ToLower(a.text(f.place)); slices.Contains(f.values, value) {
			return f.place + " is " + value
		}
	}
	// Suricata: the flow's source began, whoever sent this packet. Before version 7 only that tells an answer.
	if began, ok := parseAddr(a.text("data.flow.src_ip")); ok && began != source {
		return fmt.Sprintf("%s answers %s, which began (data.flow.src_ip)", source, began)
	}
	// FortiGate.
	from, to := a.text("data.srcintfrole"), a.text("data.dstintfrole")
	if (from == "lan" || from == "dmz") && to == "wan" {
		return "data.srcintfrole is " + from
	}
	return ""
}

// parseAddr reads an address as logs write it: alone, in brackets, with a port. A mapped IPv4 address is that address. Names, prefixes and
// zones are none.
func parseAddr(s string) (netip.Addr, bool) {
	bare := s
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
		bare = inner[:len(inner)-1]
	}
	a, err := netip.ParseAddr(bare)
	if err != nil {
		ap, perr := netip.ParseAddrPort(s)
		if perr != nil {
			return netip.Addr{}, false
		}
		a = ap.Addr()
	}
	if a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}
