package policy

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/parry/parry/internal/parry"
)

// Promote says when many sources of a prefix are blocked as the prefix.
type Promote struct {
	Sources int           // so many; below 2: never
	Within  time.Duration // that were asked for within so long
	V4, V6  int           // the prefix, in bits
}

// escalate adds to the terms what repeat offenders, and neighbours, are in for. An operator means what it says: its TTL stands, its address is
// not promoted, and its word ends a grace.
func (p *Policy) escalate(t *Terms, l *Limits, pr *parry.Principal, ask Ask, now time.Time) {
	t.EndsGrace = ask.operators(pr)
	if len(l.Ladder.Rungs) > 0 {
		t.Ladder, t.LadderTTL = &l.Ladder, ask.TTL == 0 && !ask.NoEnd || !t.EndsGrace
	}
	if l.Promote.Sources < 2 || t.EndsGrace || !ask.Source.IsSingleIP() {
		return
	}
	bits := l.Promote.V4
	if ask.Source.Addr().Is6() {
		bits = l.Promote.V6
	}
	prefix := netip.PrefixFrom(ask.Source.Addr(), bits).Masked()
	t.Promote = &parry.Promotion{Prefix: prefix, Sources: l.Promote.Sources, Since: now.Add(-l.Promote.Within)}
	if x, ok := p.Overlapping(prefix, now); ok {
		t.Promote.Barred = Describe(prefix, x)
	} else if least, family := l.minPrefix(prefix); bits < least {
		t.Promote.Barred = fmt.Sprintf("%s is wider than /%d, the widest prefix that may be blocked in %s", prefix, least, family)
	}
}

// Outlook is what an offender is in for.
type Outlook struct {
	Rung  int           // that is left
	Rungs int           // of the ladder; 0: it is off
	Next  int           // the number of an offence that begins now
	TTL   time.Duration // how long its block lasts at least, in the bounds of the configuration
	Falls time.Time     // when the next rung is lost; zero: none is
}

// Outlook tells what the ladder makes of an offender now.
func (p *Policy) Outlook(o *parry.Offender, now time.Time) Outlook {
	l := p.limits.Load()
	out := Outlook{Rungs: len(l.Ladder.Rungs)}
	if out.Rungs == 0 {
		return out
	}
	var rung int
	out.Rung, out.Falls = l.Ladder.At(o, now), l.Ladder.Falls(o, now)
	out.Next, rung = l.Ladder.Next(o, now)
	out.TTL = min(max(l.DefaultTTL, l.Ladder.Least(rung)), l.MaxTTL)
	return out
}
