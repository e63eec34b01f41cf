package reconcile

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

// timed is a world whose firewalls end entries by themselves.
func timed(t *testing.T, f func(*world)) {
	t.Helper()
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.flagged(func(m *bundle.Manifest) { m.Timeouts = true })
		f(w)
	})
}

func (w *world) flagged(f func(*bundle.Manifest)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flags = f
}

// always tells, all the while, whether the firewall holds the source.
func (w *world) always(name, source string, d time.Duration, each time.Duration, and func()) {
	w.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(each) {
		if and != nil {
			and()
		}
		if !slices.Contains(w.firewall(name).holds(), source+" - - - wan") {
			w.t.Fatalf("%s is not held %v before the end; %+v", source, time.Until(end), w.status(name))
		}
	}
}

func TestEnds_aRefreshedBlockNeverLapsesAndCostsFewRuns(t *testing.T) {
	timed(t, func(w *world) {
		id := w.put("203.0.113.7", ttl(10*time.Minute))
		w.becomes(id, "fw-a", parry.StateEnforced)
		before := w.applies()
		w.always("fw-a", "203.0.113.7", 2*time.Hour, 5*time.Second, func() {
			w.put("203.0.113.7", ttl(10*time.Minute))
			if got := w.derived(id, "fw-a"); got != parry.StateEnforced {
				t.Fatalf("it is %s", got)
			}
		})
		if n := w.applies() - before; n > 16 { // each 8 minutes
			t.Errorf("1440 repeats cost %d runs", n)
		}
		w.within(11*time.Minute, "it is lifted when the repeats end", func() bool { return w.derived(id, "fw-a") == parry.StateLifted })
		if got := w.firewall("fw-a").holds(); len(got) != 0 {
			t.Errorf("still held: %q", got)
		}
	})
}

func TestEnds_manyThatMoveShareARun(t *testing.T) {
	timed(t, func(w *world) {
		for i := range 200 {
			w.put(fmt.Sprintf("198.51.100.%d", i), ttl(20*time.Minute))
		}
		w.idle("fw-a")
		before := w.applies()
		for i := range 200 {
			time.Sleep(time.Second)
			w.put(fmt.Sprintf("198.51.100.%d", i), ttl(time.Hour))
		}
		w.always("fw-a", "198.51.100.0", 50*time.Minute, 10*time.Second, nil)
		if got := len(w.firewall("fw-a").holds()); got != 200 {
			t.Errorf("%d of 200 are held", got)
		}
		if n := w.applies() - before; n > 1 {
			t.Errorf("200 repeats cost %d runs", n)
		}
	})
}

func TestEnds_anEarlierOneIsToldSoon(t *testing.T) {
	timed(t, func(w *world) {
		id := w.put("203.0.113.7", ttl(24*time.Hour))
		w.becomes(id, "fw-a", parry.StateEnforced)
		end := time.Now().Add(10 * time.Minute)
		_, err := w.store.SetExpiry(w.ctx, id, end, "anna")
		w.must(err)
		time.Sleep(20 * time.Second)
		w.firewall("fw-a").set(func(f *firewall) {
			if got := f.ends["203.0.113.7 - - - wan"]; got-end.Unix() > 1 {
				t.Errorf("it ends there %v late", time.Unix(got, 0).Sub(end))
			}
		})
	})
}

// Of the same source by two selectors, or behind a wider one: a block that the firewall has a line for already, but not for so long.
func TestEnds_whatStandsBehindALineLastsAsLongAsItShould(t *testing.T) {
	timed(t, func(w *world) {
		first := w.put("203.0.113.7", ttl(5*time.Minute))
		w.becomes(first, "fw-a", parry.StateEnforced)
		again := w.put("203.0.113.7", ttl(30*time.Minute), on("fw-a"))
		w.becomes(again, "fw-a", parry.StateEnforced)
		w.always("fw-a", "203.0.113.7", 29*time.Minute, 10*time.Second, nil)

		wide := w.put("198.51.100.0/24", ttl(30*time.Minute))
		w.becomes(wide, "fw-a", parry.StateEnforced)
		before := w.applies()
		narrow := w.put("198.51.100.9", ttl(10*time.Minute))
		w.becomes(narrow, "fw-a", parry.StateEnforced)
		if n := w.applies() - before; n != 0 {
			t.Errorf("what is covered cost %d runs", n)
		}
		w.put("198.51.100.9", ttl(50*time.Minute))
		time.Sleep(29 * time.Minute)
		w.always("fw-a", "198.51.100.9", 20*time.Minute, 10*time.Second, nil)
	})
}

// The key of a block that has ended, taken by a new one in the same moment: what is proved looks the same, and ends at once.
func TestEnds_aNewBlockInTheStepsOfAnEndedOneIsLoaded(t *testing.T) {
	timed(t, func(w *world) {
		old := w.put("203.0.113.7", ttl(time.Minute))
		w.becomes(old, "fw-a", parry.StateEnforced)
		time.Sleep(61 * time.Second)
		id := w.put("203.0.113.7", ttl(time.Hour))
		if id == old {
			t.Fatal("the block goes on")
		}
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.always("fw-a", "203.0.113.7", 59*time.Minute, 10*time.Second, nil)
	})
}

// What was told before a restart is in the run's directory. A replica that has no such directory tells all anew.
func TestEnds_areKnownAfterARestart(t *testing.T) {
	timed(t, func(w *world) {
		id := w.put("203.0.113.7", ttl(time.Hour))
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		before := w.applies()
		w.restart(nil)
		time.Sleep(20 * time.Minute)
		if n := w.applies() - before; n != 0 {
			t.Errorf("a restart with nothing to tell cost %d runs", n)
		}
		w.put("203.0.113.7", ttl(2*time.Hour))
		w.restart(nil)
		w.always("fw-a", "203.0.113.7", 119*time.Minute, 10*time.Second, nil)
		if n := w.applies() - before; n != 1 {
			t.Errorf("one end that moved cost %d runs", n)
		}
		w.put("203.0.113.7", ttl(3*time.Hour))
		w.restart(func(o *Options) { o.StateDir = filepath.Join(w.dir, "another") })
		w.always("fw-a", "203.0.113.7", 179*time.Minute, 10*time.Second, nil)
	})
}

// A block that a wider one stood for when the firewall was told, and that lasts longer by now, has no line there yet.
func TestEnds_whatWasCoveredIsKnownAfterARestart(t *testing.T) {
	timed(t, func(w *world) {
		w.put("198.51.100.0/24", ttl(30*time.Minute))
		w.put("198.51.100.9", ttl(10*time.Minute))
		w.idle("fw-a")
		w.put("198.51.100.9", ttl(time.Hour))
		w.restart(nil)
		time.Sleep(29 * time.Minute)
		w.always("fw-a", "198.51.100.9", 30*time.Minute, 10*time.Second, nil)
	})
}

// A verify beside the ends of many finds no drift, with the list of what is loaded and without.
func TestEnds_whatHasRunOutIsNoDrift(t *testing.T) {
	for _, listed := range []bool{true, false} {
		t.Run(fmt.Sprint("listed ", listed), func(t *testing.T) {
			simulate(t, []string{"fw-a"}, func(o *Options) { o.VerifyEvery = 7 * time.Second }, func(w *world) {
				w.flagged(func(m *bundle.Manifest) { m.Timeouts, m.Loaded = true, listed })
				for i := range 60 {
					w.put(fmt.Sprintf("198.51.100.%d", i), ttl(time.Duration(60+11*i)*time.Second))
				}
				w.idle("fw-a")
				w.mails()
				w.always("fw-a", "198.51.100.59", 10*time.Minute, time.Second, func() {
					if st := w.state("fw-a"); st.Drift.Open() || st.Incident.Open() {
						t.Fatalf("%+v, %+v", st.Drift, st.Incident)
					}
				})
				if got := w.mails(); len(got) != 0 {
					t.Errorf("told %+v", got)
				}
				// What goes before its time is drift all the same.
				id := w.put("203.0.113.7", ttl(time.Hour))
				w.becomes(id, "fw-a", parry.StateEnforced)
				w.firewall("fw-a").set(func(f *firewall) { f.held, f.takes = nil, 5*time.Second })
				w.becomes(id, "fw-a", parry.StateDrifted)
				w.becomes(id, "fw-a", parry.StateEnforced)
			})
		})
	}
}

// Ends are no part of what is compared, and somebody may still have changed them there.
func TestEnds_changedByHandAreSetRight(t *testing.T) {
	timed(t, func(w *world) {
		w.flagged(func(m *bundle.Manifest) { m.Timeouts, m.Loaded = true, true })
		id := w.put("203.0.113.7", ttl(2*time.Hour))
		w.becomes(id, "fw-a", parry.StateEnforced)
		fw := w.firewall("fw-a")
		for _, end := range []time.Duration{20 * time.Minute, 5 * time.Hour} {
			fw.set(func(f *firewall) { f.ends["203.0.113.7 - - - wan"] = time.Now().Add(end).Unix() })
			w.within(16*time.Minute, "it is found", func() bool {
				var got int64
				fw.set(func(f *firewall) { got = f.ends["203.0.113.7 - - - wan"] })
				left := time.Until(time.Unix(got, 0))
				return left > time.Hour && left <= 2*time.Hour
			})
		}
		before := w.applies()
		time.Sleep(time.Hour)
		if n := w.applies() - before; n != 0 {
			t.Errorf("then nothing is to be done, and it cost %d runs", n)
		}
	})
}

// Where the new end could not be told in time, nothing is said to be in force.
func TestEnds_aLapseIsNotCalledEnforced(t *testing.T) {
	timed(t, func(w *world) {
		id := w.put("203.0.113.7", ttl(10*time.Minute))
		w.becomes(id, "fw-a", parry.StateEnforced)
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) { f.fail = parry.FailUnreachable })
		w.put("203.0.113.7", ttl(time.Hour))
		w.within(11*time.Minute, "it lapses", func() bool { return len(fw.holds()) == 0 })
		w.within(5*time.Second, "it is told", func() bool { return w.derived(id, "fw-a") == parry.StateDegraded })
		fw.set(func(f *firewall) { f.fail = "" })
		w.within(6*time.Minute, "it is back", func() bool { return w.derived(id, "fw-a") == parry.StateEnforced && len(fw.holds()) == 1 })

		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{By: "anna", Since: time.Now()}))
		w.put("203.0.113.7", ttl(3*time.Hour))
		w.within(61*time.Minute, "it lapses in a hold", func() bool { return len(fw.holds()) == 0 })
		w.within(5*time.Second, "it is told", func() bool { return w.derived(id, "fw-a") == parry.StateHeld })
	})
}

// What ends while a run is on, or stands for a moment longer than its line, is nobody's fault.
func TestEnds_anEntryThatEndsBesideARunIsNoFailure(t *testing.T) {
	timed(t, func(w *world) {
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) { f.takes = 4 * time.Second })
		for i := range 40 {
			w.put(fmt.Sprintf("198.51.100.%d", i), ttl(time.Duration(20+3*i)*time.Second))
			if i%3 == 0 {
				time.Sleep(7 * time.Second)
			}
		}
		w.within(10*time.Minute, "all are lifted", func() bool { return len(fw.holds()) == 0 && w.status("fw-a").State == LaneIdle })
		for _, r := range w.runs("fw-a") {
			if r.State != parry.RunSucceeded {
				t.Errorf("run %s %s: %s", r.Kind, r.Failure, r.Message)
			}
			if r.Rejected != 0 {
				t.Errorf("%d rejects", r.Rejected)
			}
		}
	})
}

// A firewall whose clock is ahead lets go of everything too soon: that is told, and the block is not called enforced.
func TestEnds_aClockThatIsAheadIsARejectThatIsTold(t *testing.T) {
	timed(t, func(w *world) {
		w.firewall("fw-a").set(func(f *firewall) { f.ahead = time.Hour })
		id := w.put("203.0.113.7", ttl(30*time.Minute))
		w.becomes(id, "fw-a", parry.StateRejected)
		if got := kinds(w.mails()); !slices.Contains(got, parry.NotifyRejected) {
			t.Errorf("told %v", got)
		}
	})
}
