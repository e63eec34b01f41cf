package parry

import (
	"fmt"
	"net/netip"
	"time"
)

// OffenderOf is whose offences a block of the source counts on: an IPv4 address or a prefix itself; of an IPv6 address its /64, because that
// is what one machine has for itself.
func OffenderOf(source netip.Prefix) netip.Prefix {
	if source.Addr().Is6() && source.Bits() > 64 {
		return netip.PrefixFrom(source.Addr(), 64).Masked()
	}
	return source
}

// Ladder is how long the blocks of repeat offenders last.
//
// An offence is a block that begins while none of the offender's stands: what else is blocked of it meanwhile (another port, another
// address of its /64) belongs to the same offence. The decay begins when the offence's blocks have ended.
type Ladder struct {
	Rungs  []time.Duration // the least lifetime by offence; the last one is that of all further ones
	Window time.Duration   // so long without a block, and all is forgotten; 0: never
	Decay  time.Duration   // each so long without a block takes one rung; 0: none
}

// Offender is what is known of a source's offences.
type Offender struct {
	Source     netip.Prefix // as OffenderOf gives it
	Offences   int          // those that count
	Rung       int          // that the newest one reached, from 1; 0: none counts
	LastAt     time.Time    // when the newest one began
	Until      time.Time    // when its blocks have ended or will end; zero: without end while Standing, else not known
	Standing   bool         // one of its blocks lives
	GraceUntil time.Time    // until then only an operator's request blocks it; zero: no grace
	GraceBy    string       // who granted it
	GraceOf    netip.Prefix // what was lifted: the source, or a prefix that holds it
}

// calm is how long the offender has been without a block.
func (o *Offender) calm(now time.Time) time.Duration {
	if o.Standing {
		return 0
	}
	return max(0, now.Sub(o.since()))
}

func (o *Offender) since() time.Time {
	if o.Until.After(o.LastAt) {
		return o.Until
	}
	return o.LastAt
}

// At is the rung that is left of an offender's.
func (l *Ladder) At(o *Offender, now time.Time) int {
	calm, rung := o.calm(now), min(o.Rung, len(l.Rungs))
	if l.Window > 0 && calm >= l.Window {
		return 0
	}
	if l.Decay > 0 {
		rung -= int(min(calm/l.Decay, 1<<20))
	}
	return max(0, rung)
}

// Next is the number and the rung of an offence that begins now.
func (l *Ladder) Next(o *Offender, now time.Time) (n, rung int) {
	if rung = l.At(o, now); rung == 0 {
		return 1, 1
	}
	return o.Offences + 1, min(rung+1, len(l.Rungs))
}

// Least is the least lifetime on a rung. A first offence has none: it lasts as its request or the default says.
func (l *Ladder) Least(rung int) time.Duration {
	if rung < 2 || len(l.Rungs) == 0 {
		return 0
	}
	return l.Rungs[min(rung, len(l.Rungs))-1]
}

// Falls is when the offender loses its next rung if nothing happens; zero when it has none to lose, or a block of it stands without end.
func (l *Ladder) Falls(o *Offender, now time.Time) time.Time {
	if l.At(o, now) == 0 || o.Standing && o.Until.IsZero() {
		return time.Time{}
	}
	var at time.Time
	if l.Decay > 0 {
		at = o.since().Add((o.calm(now)/l.Decay + 1) * l.Decay)
	}
	if all := o.since().Add(l.Window); l.Window > 0 && (at.IsZero() || all.Before(at)) {
		at = all
	}
	return at
}

// Promotion is when a request for an address blocks a prefix instead.
type Promotion struct {
	Prefix  netip.Prefix // which holds the request's source
	Sources int          // so many distinct sources of it, the request's included, ...
	Since   time.Time    // ... that were asked for since then, for the same firewalls
	Barred  string       // why the prefix may not be blocked, for people: the source alone is, then
}

// RefuseInGrace refuses a block of the source while the offender has a grace.
func RefuseInGrace(source netip.Prefix, o *Offender) error {
	of, until := o.GraceOf, o.GraceUntil.UTC().Format(time.RFC3339)
	if !of.IsValid() {
		of = o.Source
	}
	return &Error{Kind: KindRefused, Err: ErrGrace,
		Detail: fmt.Sprintf("%s has been given grace until %s: only an operator blocks it before", FormatPrefix(source), until),
		Fields: []FieldError{{Pointer: "/source", Detail: fmt.Sprintf("%s lifted the block of %s with a grace until %s", o.GraceBy, FormatPrefix(of), until)}}}
}

// Lift is the word of an operator, or of a SIEM, that ends a block.
type Lift struct {
	By     string
	SIEM   bool          // a SIEM's, of what it had asked for itself
	Forget bool          // the offender's offences are forgotten
	Grace  time.Duration // so long from now only an operator's request blocks the offender; 0 ends a grace, KeepGrace leaves it as it is
}

// EndReason is why the block ends.
func (l *Lift) EndReason() EndReason {
	if l.SIEM {
		return EndWithdrawn
	}
	return EndDeleted
}

// KeepGrace is a Lift's Grace that changes nothing.
const KeepGrace time.Duration = -1
