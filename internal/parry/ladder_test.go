package parry

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const day = 24 * time.Hour

var began = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestOffenderOf_isAnIPv6NetworkOrTheSourceItself(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"203.0.113.7/32": "203.0.113.7/32", "203.0.113.0/24": "203.0.113.0/24", "2001:db8::7/128": "2001:db8::/64", "2001:db8::/80": "2001:db8::/64",
		"2001:db8::/64": "2001:db8::/64", "2001:db8::/48": "2001:db8::/48",
	} {
		if got := OffenderOf(netip.MustParsePrefix(source)); got.String() != want {
			t.Errorf("%s: got %s, want %s", source, got, want)
		}
	}
}

func TestLadder_fourOffencesAndDecay(t *testing.T) {
	t.Parallel()
	l := Ladder{Rungs: []time.Duration{4 * time.Hour, day, 7 * day, 30 * day}, Window: 30 * day, Decay: 7 * day}
	var o Offender
	now := began
	for i, least := range []time.Duration{0, day, 7 * day, 30 * day, 30 * day} {
		n, rung := l.Next(&o, now)
		if n != i+1 || rung != min(i+1, 4) || l.Least(rung) != least {
			t.Errorf("offence %d: got number %d, rung %d, at least %s, want %s", i+1, n, rung, l.Least(rung), least)
		}
		o = Offender{Offences: n, Rung: rung, LastAt: now, Until: now.Add(max(least, 4*time.Hour)), Standing: true}
		if l.At(&o, o.Until.Add(time.Hour)) != rung {
			t.Error("a rung is lost while a block stands")
		}
		now, o.Standing = o.Until, false
	}
	for _, c := range []struct {
		calm       time.Duration
		rung, next int
		falls      time.Duration // after the block's end
	}{
		{0, 4, 6, 7 * day}, {7*day - 1, 4, 6, 7 * day}, {7 * day, 3, 6, 14 * day}, {20 * day, 2, 6, 21 * day}, {21 * day, 1, 6, 28 * day}, {28 * day, 0, 1, 0},
		{300 * day, 0, 1, 0},
	} {
		at := now.Add(c.calm)
		n, _ := l.Next(&o, at)
		falls := l.Falls(&o, at)
		if l.At(&o, at) != c.rung || n != c.next || falls.IsZero() != (c.falls == 0) || c.falls > 0 && !falls.Equal(now.Add(c.falls)) {
			t.Errorf("after %s: rung %d, next %d, falls %s", c.calm, l.At(&o, at), n, falls)
		}
	}
	o.Standing, o.Until = true, time.Time{}
	if f := l.Falls(&o, now); !f.IsZero() {
		t.Errorf("a block without end, and a rung is lost at %s", f)
	}
	o.Rung = 9 // the ladder was longer once
	if got := l.At(&o, now); got != 4 {
		t.Errorf("on a shorter ladder rung %d", got)
	}
}

// Time only takes rungs, and the next one exactly when Falls says.
func TestLadder_fallsWhenItSays(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		hours := func(name string, low, high int) time.Duration {
			return time.Duration(rapid.IntRange(low, high).Draw(t, name)) * time.Hour
		}
		l := Ladder{Rungs: make([]time.Duration, rapid.IntRange(1, 5).Draw(t, "rungs")), Window: hours("window", 0, 200), Decay: hours("decay", 0, 50)}
		o := Offender{Offences: 7, Rung: rapid.IntRange(0, 7).Draw(t, "rung"), LastAt: began, Until: began.Add(hours("until", 0, 50))}
		now := began.Add(hours("now", 0, 300))
		rung, at := l.At(&o, now), l.Falls(&o, now)
		switch {
		case at.IsZero():
			if later := l.At(&o, now.Add(1000*day)); later != rung {
				t.Fatalf("rung %d falls never, and is %d later", rung, later)
			}
		case !at.After(now), l.At(&o, at.Add(-1)) != rung, l.At(&o, at) >= rung:
			t.Fatalf("rung %d falls at %s, is %d before and %d then; now is %s", rung, at, l.At(&o, at.Add(-1)), l.At(&o, at), now)
		}
	})
}
