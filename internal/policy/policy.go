package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/parry/parry/internal/parry"
)

// Limits bound what a request may ask for. Zero fields are the defaults.
type Limits struct {
	DefaultTTL  time.Duration // of a request that names none; 1 h
	MaxTTL      time.Duration // 30 days
	MinPrefixV4 int           // the widest prefix, in bits; 24
	MinPrefixV6 int           // 48
	Ladder      parry.Ladder  // no rungs: repeat offenders are like all others
	Promote     Promote
}

// Policy judges requests. Safe for concurrent use.
type Policy struct {
	*List
	limits atomic.Pointer[Limits]
}

// New makes a policy with an empty list.
func New(limits Limits) (*Policy, error) {
	p := &Policy{List: NewList()}
	return p, p.SetLimits(limits)
}

// SetLimits changes the limits for requests from now on; invalid ones change nothing.
func (p *Policy) SetLimits(l Limits) error {
	l.DefaultTTL = cmp.Or(l.DefaultTTL, min(time.Hour, cmp.Or(l.MaxTTL, time.Hour)))
	l.MaxTTL = cmp.Or(l.MaxTTL, max(30*24*time.Hour, l.DefaultTTL))
	l.MinPrefixV4 = cmp.Or(l.MinPrefixV4, 24)
	l.MinPrefixV6 = cmp.Or(l.MinPrefixV6, 48)
	switch {
	case l.DefaultTTL < 0 || l.MaxTTL < 0:
		return errors.New("a TTL must be positive")
	case l.DefaultTTL > l.MaxTTL:
		return fmt.Errorf("the default TTL %s is beyond the maximum %s", l.DefaultTTL, l.MaxTTL)
	case l.MinPrefixV4 < 8 || l.MinPrefixV4 > 32:
		return fmt.Errorf("the minimum prefix length for IPv4 is %d: it must be 8 to 32", l.MinPrefixV4)
	case l.MinPrefixV6 < 16 || l.MinPrefixV6 > 128:
		return fmt.Errorf("the minimum prefix length for IPv6 is %d: it must be 16 to 128", l.MinPrefixV6)
	}
	p.limits.Store(&l)
	return nil
}

// Ask is what someone wants blocked. Source is masked and unmapped.
type Ask struct {
	Source   netip.Prefix
	Selector parry.Selector
	TTL      time.Duration // 0: the default
	NoEnd    bool
	Alert    bool          // a SIEM's alert asks by itself: it is no operator's word, whoever's token brings it
	Least    time.Duration // what an active list makes of it: a shorter TTL becomes so long, within the caps; an operator's own TTL stands
}

// operators tells whether the ask is an operator's word.
func (a *Ask) operators(pr *parry.Principal) bool { return !a.Alert && pr.Can(parry.RightUnblock) }

// Terms are what an Ask was granted.
type Terms struct {
	TTL        time.Duration // 0 when NoEnd
	NoEnd      bool
	MaxExpires time.Time // no refresh goes beyond it; zero when NoEnd

	Ladder    *parry.Ladder // as in [parry.Admission], and so the next three
	LadderTTL bool
	EndsGrace bool
	Promote   *parry.Promotion
}

// Admit judges an ask. The error is a [*parry.Error]: forbidden when the principal lacks a right, refused when an exemption or a limit,
// which it names, stands against it.
func (p *Policy) Admit(pr *parry.Principal, fleet *parry.Fleet, ask Ask, now time.Time) (Terms, error) {
	if err := p.allowed(pr, fleet, ask); err != nil {
		return Terms{}, err
	}
	var fields []parry.FieldError
	if x, ok := p.Overlapping(ask.Source, now); ok {
		fields = append(fields, parry.FieldError{Pointer: "/source", Detail: Describe(ask.Source, x)})
	}
	l := p.limits.Load()
	if bits, family := l.minPrefix(ask.Source); ask.Source.Bits() < bits {
		fields = append(fields, parry.FieldError{Pointer: "/source",
			Detail: fmt.Sprintf("%s is wider than /%d, the widest prefix that may be blocked in %s", ask.Source, bits, family)})
	}
	terms, err := l.lifetime(pr, ask, now)
	if err != nil {
		fields = append(fields, *err)
	}
	if len(fields) > 0 {
		return Terms{}, &parry.Error{Kind: parry.KindRefused, Detail: "policy refuses this block", Fields: fields}
	}
	p.escalate(&terms, l, pr, ask, now)
	return terms, nil
}

// Describe says how an exemption stands against a source.
func Describe(source netip.Prefix, x parry.Exemption) string {
	var how string
	switch {
	case x.Prefix == source:
		how = "is"
	case x.Prefix.Overlaps(source) && x.Prefix.Bits() < source.Bits():
		how = "lies in"
	case x.Prefix.Overlaps(source):
		how = "contains"
	default:
		how = "embeds an address of"
	}
	return fmt.Sprintf("%s %s %s, which is never blocked: exemption %s (%s)",
		parry.FormatPrefix(source), how, parry.FormatPrefix(x.Prefix), x.ID, x.Reason)
}

func (p *Policy) allowed(pr *parry.Principal, fleet *parry.Fleet, ask Ask) error {
	var fields []parry.FieldError
	deny := func(pointer, format string, args ...any) {
		fields = append(fields, parry.FieldError{Pointer: pointer, Detail: fmt.Sprintf(format, args...)})
	}
	if !ask.Source.IsSingleIP() && !pr.Can(parry.RightPrefix) {
		deny("/source", "%s is a prefix, and the role %s may block single addresses only", ask.Source, pr.Token.Role)
	}
	if ask.NoEnd && !pr.Can(parry.RightWithoutEnd) {
		deny("/ttl", "a block without end needs the right %s, which the role %s has not: give a duration", parry.RightWithoutEnd, pr.Token.Role)
	}
	if err := MayName(pr, fleet, ask.Selector); err != nil {
		deny("/firewalls", "%s", err)
	}
	if len(fields) > 0 {
		return &parry.Error{Kind: parry.KindForbidden, Detail: "the token " + pr.Token.Name + " may not ask for this block", Fields: fields}
	}
	return nil
}

// MayName tells whether the principal's token lets it name the firewalls of a selector: each name must be one of the token's, or a firewall
// that these mean today.
func MayName(pr *parry.Principal, fleet *parry.Fleet, s parry.Selector) error {
	if len(pr.Token.Firewalls) == 0 || slices.Contains(pr.Token.Firewalls, string(parry.SelectAll)) {
		return nil
	}
	own := parry.ParseSelector(pr.Token.Firewalls...)
	for _, name := range s.Names() {
		fw, is := fleet.Firewall(name)
		if !slices.Contains(own.Names(), name) && !(is && fleet.Selects(own, fw)) {
			return fmt.Errorf("the token may name %s only, not %q", strings.Join(own.Names(), ", "), name)
		}
	}
	return nil
}

// Extend judges a new end for a live block, counted from now; noEnd stands for none.
func (p *Policy) Extend(pr *parry.Principal, ttl time.Duration, noEnd bool, pointer string, now time.Time) error {
	if noEnd && !pr.Can(parry.RightWithoutEnd) {
		e := parry.Errorf(parry.KindForbidden, "a block without end needs the right %s", parry.RightWithoutEnd)
		e.Fields = []parry.FieldError{{Pointer: pointer, Detail: "give a duration: the role " + string(pr.Token.Role) + " has not this right"}}
		return e
	}
	_, field := p.limits.Load().lifetime(pr, Ask{TTL: ttl, NoEnd: noEnd}, now)
	if field != nil {
		field.Pointer = pointer
		return &parry.Error{Kind: parry.KindRefused, Detail: "policy refuses this end", Fields: []parry.FieldError{*field}}
	}
	return nil
}

func (l *Limits) minPrefix(p netip.Prefix) (bits int, family string) {
	if p.Addr().Is4() {
		return l.MinPrefixV4, "IPv4"
	}
	return l.MinPrefixV6, "IPv6"
}

func (l *Limits) lifetime(pr *parry.Principal, ask Ask, now time.Time) (Terms, *parry.FieldError) {
	longest, whose := l.MaxTTL, "the configuration"
	if t := pr.Token.MaxTTL; t > 0 && t < longest {
		longest, whose = t, "the token "+pr.Token.Name
	}
	if ask.NoEnd {
		if pr.Token.MaxTTL > 0 {
			return Terms{}, &parry.FieldError{Pointer: "/ttl",
				Detail: fmt.Sprintf("without end is beyond %s, the longest that %s allows", parry.FormatTTL(longest), whose)}
		}
		return Terms{NoEnd: true}, nil
	}
	if ask.TTL > longest {
		return Terms{}, &parry.FieldError{Pointer: "/ttl",
			Detail: fmt.Sprintf("%s is beyond %s, the longest that %s allows", parry.FormatTTL(ask.TTL), parry.FormatTTL(longest), whose)}
	}
	ttl := cmp.Or(ask.TTL, min(l.DefaultTTL, longest))
	if ask.TTL == 0 || !ask.operators(pr) {
		ttl = max(ttl, min(ask.Least, longest))
	}
	return Terms{TTL: ttl, MaxExpires: now.Add(longest)}, nil
}
