package reconcile

import (
	"fmt"
	"strings"
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

func (w *world) panics(names ...string) {
	w.t.Helper()
	w.must(w.store.Panic(w.ctx, names, parry.Hold{Kind: parry.HoldPanic, By: "anna", Reason: "our own customers", Since: time.Now()}))
}

func (w *world) emptied(name string) bool {
	w.t.Helper()
	st := w.state(name)
	return st.Emptied()
}

func TestBrakes_panicEmptiesAndHoldsUntilItIsOver(t *testing.T) {
	simulate(t, []string{"fw-a", "fw-b"}, nil, func(w *world) {
		var ids []parry.BlockID
		for i := range 60 {
			ids = append(ids, w.put(fmt.Sprintf("203.0.113.%d", i)))
		}
		for _, name := range []string{"fw-a", "fw-b"} {
			w.becomes(ids[59], name, parry.StateEnforced)
			w.idle(name)
		}
		w.must(w.store.SetHold(w.ctx, "fw-b", parry.Hold{By: "bob", Since: time.Now()}))
		began := time.Now()
		w.panics()
		w.within(time.Minute, "both are empty", func() bool { return w.emptied("fw-a") && w.emptied("fw-b") })
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("emptied after %v", took)
		}
		later := w.put("198.51.100.1")
		_, _, err := w.store.EndBlock(w.ctx, ids[0], parry.Lift{By: "anna", Grace: parry.KeepGrace})
		w.must(err)
		w.restart(func(o *Options) { o.Registerer = nil })
		time.Sleep(2 * time.Hour)
		for _, name := range []string{"fw-a", "fw-b"} {
			if got := w.firewall(name).holds(); len(got) != 0 || w.status(name).State != LanePanic {
				t.Errorf("%s is %s and holds %d entries in panic, after a restart", name, w.status(name).State, len(got))
			}
			for id, want := range map[parry.BlockID]parry.State{ids[1]: parry.StateHeld, later: parry.StateHeld, ids[0]: parry.StateLifted} {
				if got := w.derived(id, name); got != want {
					t.Errorf("%s on %s: %s, want %s", id, name, got, want)
				}
			}
		}
		w.must(w.store.EndPanic(w.ctx, nil, "anna"))
		w.becomes(ids[1], "fw-a", parry.StateEnforced)
		w.becomes(later, "fw-a", parry.StateEnforced)
		if got := len(w.firewall("fw-a").holds()); got != 60 {
			t.Errorf("fw-a holds %d entries after the panic, want 60", got)
		}
		if got := w.derived(ids[1], "fw-b"); got != parry.StateHeld || len(w.firewall("fw-b").holds()) != 0 {
			t.Errorf("fw-b's own hold did not outlive the panic: %s", got)
		}
	})
}

func TestBrakes_panicKnowsNoBackoffAndNoApproval(t *testing.T) {
	t.Parallel()
	for _, f := range []parry.Failure{parry.FailUnreachable, parry.FailTask, parry.FailAuthentication} {
		t.Run(string(f), func(t *testing.T) {
			simulate(t, []string{"fw-a"}, nil, func(w *world) {
				id := w.put("203.0.113.7")
				w.becomes(id, "fw-a", parry.StateEnforced)
				fw := w.firewall("fw-a")
				fw.set(func(x *firewall) { x.fail = f })
				w.put("203.0.113.8")
				w.within(time.Hour, "it backs off", func() bool { return w.state("fw-a").Incident.Attempts > 3 })
				n := fw.count()
				w.panics("fw-a")
				w.within(2*time.Second, "it is tried at once", func() bool { return fw.count() > n })
				time.Sleep(10 * time.Minute)
				if got := w.derived(id, "fw-a"); got != parry.StateLifting || w.emptied("fw-a") {
					t.Errorf("a firewall that does not answer is emptied: the block is %s", got)
				}
				tries := fw.count() - n
				if slow := f.Pace() == parry.PaceSlow; slow && tries > 4 || !slow && tries < 40 {
					t.Errorf("%d tries in 10 min", tries)
				}
				fw.set(func(x *firewall) { x.fail = "" })
				answers := time.Now()
				w.within(2*time.Hour, "it is emptied", func() bool { return w.emptied("fw-a") })
				if took := time.Since(answers); f.Pace() != parry.PaceSlow && took > panicEvery+5*time.Second {
					t.Errorf("emptied %v after it answered again", took)
				}
				if got := fw.holds(); len(got) != 0 || w.state("fw-a").Incident.Open() {
					t.Errorf("holds %q, %+v", got, w.state("fw-a").Incident)
				}
			})
		})
	}
}

// A bundle that says that the firewall is empty without having emptied it is found out by a verify.
func TestBrakes_panicIsProved(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		w.mu.Lock()
		w.digest = strings.Repeat("b", 64)
		w.mu.Unlock()
		fw.set(func(f *firewall) { f.echo = true })
		w.panics()
		time.Sleep(10 * time.Minute)
		if w.emptied("fw-a") || w.state("fw-a").Incident.Failure != parry.FailProof || w.derived(id, "fw-a") != parry.StateLifting {
			t.Errorf("emptied %v, incident %+v", w.emptied("fw-a"), w.state("fw-a").Incident)
		}
		fw.set(func(f *firewall) { f.echo = false })
		w.within(time.Minute, "it is emptied", func() bool { return w.emptied("fw-a") && len(fw.holds()) == 0 })
		fw.set(func(f *firewall) { f.held = []string{"203.0.113.99 - - - wan"} }) // somebody puts something back
		w.within(time.Hour, "it is emptied again", func() bool { return len(fw.holds()) == 0 })
	})
}

func TestBrakes_panicWaitsForNoOtherRun(t *testing.T) {
	var names []string
	for i := range 12 { // more than there are slots
		names = append(names, fmt.Sprintf("fw-%d", i))
	}
	simulate(t, names, func(o *Options) { o.MaxRuns = 2 }, func(w *world) {
		w.becomes(w.put("203.0.113.7"), "fw-0", parry.StateEnforced)
		for _, n := range names {
			w.idle(n)
		}
		for _, n := range names[1:] {
			w.firewall(n).set(func(f *firewall) { f.takes = 10 * time.Second })
		}
		w.put("203.0.113.8")
		time.Sleep(time.Second) // the slots are taken, and the others queue for them
		began := time.Now()
		w.panics("fw-0")
		w.within(time.Minute, "it is emptied", func() bool { return w.emptied("fw-0") })
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("emptied after %v behind the runs of others", took)
		}
	})
}
