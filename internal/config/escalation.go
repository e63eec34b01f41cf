package config

import (
	"fmt"
	"time"

	"github.com/parry/parry/internal/parry"
)

// Escalation is what repeat offenders are in for.
type Escalation struct {
	Ladder  []Duration `yaml:"ladder"` // the least lifetime by offence; empty: all are alike
	Window  Duration   `yaml:"window"` // so long without a block, and a source's offences are forgotten
	Decay   Duration   `yaml:"decay"`  // each so long without a block takes one rung; 0: none
	Grace   Duration   `yaml:"grace"`  // of a source whose block an operator lifted without a word about grace; 0: none
	Promote Promote    `yaml:"promote"`
}

// Promote says when many sources of a prefix are blocked as the prefix.
type Promote struct {
	Sources int      `yaml:"sources"` // 0: never
	Within  Duration `yaml:"within"`
	V4      int      `yaml:"v4"` // prefix length
	V6      int      `yaml:"v6"`
}

func defaultEscalation() Escalation {
	const day = 24 * time.Hour
	return Escalation{
		Ladder: []Duration{Duration(4 * time.Hour), Duration(day), Duration(7 * day), Duration(30 * day)},
		Window: Duration(30 * day), Decay: Duration(7 * day),
		Promote: Promote{Within: Duration(time.Hour), V4: 24, V6: 64},
	}
}

// Rungs are the ladder's, for policy.
func (e *Escalation) Rungs() parry.Ladder {
	l := parry.Ladder{Window: e.Window.D(), Decay: e.Decay.D()}
	for _, d := range e.Ladder {
		l.Rungs = append(l.Rungs, d.D())
	}
	return l
}

const maxRungs = 16

func (v *validator) escalation(e *Escalation, b *Blocks) {
	v.require(len(e.Ladder) <= maxRungs, "escalation.ladder", "%d rungs are too many; write up to %d", len(e.Ladder), maxRungs)
	for i, d := range e.Ladder {
		key := fmt.Sprintf("escalation.ladder[%d]", i)
		v.within(key, d, time.Second, 10*year)
		v.require(i == 0 || d >= e.Ladder[i-1], key, "%s is shorter than the rung before (%s)", d, e.Ladder[max(0, i-1)])
	}
	v.within("escalation.window", e.Window, time.Hour, 10*year)
	if e.Decay != 0 {
		v.within("escalation.decay", e.Decay, time.Minute, 10*year)
	}
	v.within("escalation.grace", e.Grace, 0, year)
	p := e.Promote
	v.require(p.Sources == 0 || p.Sources >= 2 && p.Sources <= 1000, "escalation.promote.sources", "%d is out of bounds; write 2 to 1000, or 0 for never", p.Sources)
	v.within("escalation.promote.within", p.Within, time.Minute, 30*24*time.Hour)
	if p.Sources > 0 {
		v.count("escalation.promote.v4", int64(p.V4), int64(b.MinPrefixV4), 31)
		v.count("escalation.promote.v6", int64(p.V6), int64(b.MinPrefixV6), 127)
	}
}
