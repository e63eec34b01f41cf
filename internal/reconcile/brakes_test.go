package reconcile

import (
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
)

func TestBrakes_aHoldEndsByItselfAtItsTime(t *testing.T) {
	for _, name := range []string{"fw-a", ""} { // one, and all
		t.Run("hold of "+name, func(t *testing.T) {
			simulate(t, []string{"fw-a"}, nil, func(w *world) {
				w.idle("fw-a")
				until := time.Now().Add(2 * time.Hour)
				w.must(w.store.SetHold(w.ctx, name, parry.Hold{By: "anna", Reason: "maintenance", Since: time.Now(), Until: until}))
				id := w.put("203.0.113.7")
				time.Sleep(time.Until(until) - time.Second)
				if got := w.derived(id, "fw-a"); got != parry.StateHeld {
					t.Errorf("a second before its end: %s", got)
				}
				w.restart(func(o *Options) { o.Registerer = nil })
				w.becomes(id, "fw-a", parry.StateEnforced)
				if late := time.Since(until); late < 0 || late > 10*time.Second {
					t.Errorf("in force %v after the hold's end", late)
				}
				if h := w.state("fw-a").Hold; h.Held() {
					t.Errorf("still told as held: %s", h)
				}
			})
		})
	}
}

func TestBrakes_aHoldThatWasMissedEndsAtTheStart(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{By: "anna", Since: time.Now(), Until: time.Now().Add(time.Hour)}))
		id := w.put("203.0.113.7")
		w.stop()
		time.Sleep(2 * time.Hour)
		w.build(func(o *Options) { o.Registerer = nil })
		w.start()
		w.becomes(id, "fw-a", parry.StateEnforced)
	})
}

func TestBrakes_aSetClockEndsNoHold(t *testing.T) {
	var jump time.Duration
	simulate(t, []string{"fw-a"}, func(o *Options) {
		start := time.Now()
		o.Now = func() time.Time { return time.Now().Add(jump) }
		o.Mono = func() time.Duration { return time.Since(start) }
	}, func(w *world) {
		w.idle("fw-a")
		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{By: "anna", Since: time.Now(), Until: time.Now().Add(10 * time.Hour)}))
		w.stop()
		jump = 24 * time.Hour
		w.start()
		time.Sleep(5 * time.Minute)
		if !w.state("fw-a").Hold.Held() {
			t.Error("a clock that was set a day ahead ended the hold")
		}
	})
}

// What was in force when flush.yml was run by hand is not called so any more, before and after a restart, until somebody adopts.
func TestBrakes_aFlushByHandIsAHold(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) { f.flushed, f.held = true, nil })
		w.must(w.store.SetVerify(w.ctx, "fw-a"))
		w.becomes(id, "fw-a", parry.StateHeld)
		brake := func() parry.Hold { st := w.state("fw-a"); return st.Brake() }
		held := brake()
		if held.Kind != parry.HoldFlush || held.By == "" || time.Since(held.Since) > time.Minute {
			t.Errorf("the hold: %+v", held)
		}
		w.restart(func(o *Options) { o.Registerer = nil })
		gone := w.put("203.0.113.8", ttl(time.Minute))
		time.Sleep(2 * time.Hour)
		if got := w.derived(id, "fw-a"); got != parry.StateHeld || len(fw.holds()) != 0 {
			t.Errorf("after a restart the block is %s, and the firewall holds %q", got, fw.holds())
		}
		if got := brake(); got != held {
			t.Errorf("the hold became %+v, was %+v", got, held)
		}
		if got := w.derived(gone, "fw-a"); got != parry.StateLifting {
			t.Errorf("what ended meanwhile is %s", got)
		}
		w.must(w.store.SetAdopt(w.ctx, "fw-a"))
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.becomes(gone, "fw-a", parry.StateLifted)
	})
}
