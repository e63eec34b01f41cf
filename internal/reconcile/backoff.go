package reconcile

import (
	"time"

	"github.com/parry/parry/internal/parry"
)

// Backoff says how long a lane waits after the nth failure in a row: Min, doubled each time, at most Max, and jittered by a fifth so that
// firewalls that failed together do not come back together.
type Backoff struct {
	Min, Max           time.Duration // 2 s, 5 min
	SlowMin, SlowMax   time.Duration // 5 min, 1 h or SlowMin where that is longer: what trying again may harm or cannot help
	QuickMin, QuickMax time.Duration // 1 s, 30 s: what goes away by itself
}

func (b *Backoff) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&b.Min, 2*time.Second)
	def(&b.Max, 5*time.Minute)
	def(&b.SlowMin, 5*time.Minute)
	def(&b.SlowMax, max(time.Hour, b.SlowMin))
	def(&b.QuickMin, time.Second)
	def(&b.QuickMax, 30*time.Second)
}

// after is the wait after the nth failure in a row of a pace, n from 1; r is in [0, 1).
func (b *Backoff) after(p parry.Pace, n int, r float64) time.Duration {
	lo, hi := b.Min, b.Max
	switch p {
	case parry.PaceSlow:
		lo, hi = b.SlowMin, b.SlowMax
	case parry.PaceQuick:
		lo, hi = b.QuickMin, b.QuickMax
	}
	d := lo
	for i := 1; i < n && d < hi; i++ {
		d *= 2
	}
	d = min(d, hi)
	return min(time.Duration(float64(d)*(0.8+0.4*r)), hi)
}

// tellAfter is how many failures in a row of a kind are needed before a mail tells of them.
func tellAfter(f parry.Failure) int {
	if f.Pace() == parry.PaceQuick {
		return 3
	}
	return 1
}
