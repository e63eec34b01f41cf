package reconcile

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/internal/parry"
)

var oldDigest, newDigest, newerDigest = strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)

// canary makes a firewall the canary of its bundle.
func (w *world) canary(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fleet := *w.fleet
	fleet.Firewalls = slices.Clone(fleet.Firewalls)
	for i := range fleet.Firewalls {
		if fleet.Firewalls[i].Name == name {
			fleet.Firewalls[i].Canary = true
		}
	}
	w.fleet = &fleet
}

// steps are the runs on a firewall since a number of them: kind, the bundle's first digit, and how it ended.
func (w *world) steps(name string, since int) (out []string) {
	w.t.Helper()
	for _, r := range w.runs(name)[since:] {
		end := string(r.State)
		if r.Failure != "" {
			end = string(r.Failure)
		}
		out = append(out, string(r.Kind)+" "+r.Bundle.Digest[:1]+" "+end)
	}
	return out
}

func (w *world) bundleState() parry.BundleState {
	w.t.Helper()
	st, err := w.store.BundleState(w.ctx, "fake")
	w.must(err)
	return st
}

// fleetOf runs f in a world of fw-a, the canary, and fw-b, both converged with the old version.
func fleetOf(t *testing.T, f func(*world)) {
	simulate(t, []string{"fw-a", "fw-b"}, nil, func(w *world) {
		w.canary("fw-a")
		w.r.Reload()
		id := w.put("203.0.113.1")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.becomes(id, "fw-b", parry.StateEnforced)
		w.idle("fw-a")
		w.idle("fw-b")
		f(w)
	})
}

func TestCanary_takesANewVersionFirstAndTheOthersFollow(t *testing.T) {
	fleetOf(t, func(w *world) {
		a, b := len(w.runs("fw-a")), len(w.runs("fw-b"))
		during := make(chan int, 1)
		w.firewall("fw-a").set(func(f *firewall) {
			f.during = func() {
				select {
				case during <- len(w.firewall("fw-b").runs):
				default:
				}
			}
		})
		w.edit(newDigest)
		w.within(time.Minute, "the release follows", func() bool { return w.bundleState().Release.Digest == newDigest })
		w.idle("fw-a")
		w.idle("fw-b")
		if d := cmp.Diff([]string{"check b succeeded", "apply b succeeded", "verify b succeeded"}, w.steps("fw-a", a)); d != "" {
			t.Errorf("fw-a (-want +got)\n%s", d)
		}
		if d := cmp.Diff([]string{"apply b succeeded", "verify b succeeded"}, w.steps("fw-b", b)); d != "" {
			t.Errorf("fw-b (-want +got)\n%s", d)
		}
		if got := <-during; got != b {
			t.Errorf("fw-b had %d runs before the canary was done, want %d", got, b)
		}
		if st := w.bundleState(); st.Release.By != "fw-a" || st.Trial.Digest != "" {
			t.Errorf("got %+v", st)
		}
		if m := w.mails(); len(m) != 0 {
			t.Errorf("mails: %v", kinds(m))
		}
	})
}

func TestCanary_thatFailsKeepsTheOthersOnTheLastGoodOne(t *testing.T) {
	for name, c := range map[string]struct {
		breaks func(*firewall)
		steps  []string
	}{
		"in check mode": {
			func(f *firewall) { f.failsWith = map[string]parry.Failure{newDigest: parry.FailTask} },
			[]string{"check b task", "apply a succeeded"},
		},
		"with a proof that a verify does not confirm": {
			func(f *firewall) { f.liesWith = newDigest },
			[]string{"check b succeeded", "apply b succeeded", "verify b proof_mismatch", "apply a succeeded", "verify a succeeded"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			fleetOf(t, func(w *world) {
				w.firewall("fw-a").set(c.breaks)
				a, b := len(w.runs("fw-a")), len(w.runs("fw-b"))
				w.firewall("fw-b").set(func(f *firewall) { f.failsWith = map[string]parry.Failure{newDigest: parry.FailTask} })
				w.mu.Lock()
				w.digest = newDigest
				w.mu.Unlock()
				id := w.put("203.0.113.2") // the canary is asked for something new with it
				w.r.Try("fake")
				w.within(time.Minute, "the trial is refused", func() bool { return w.bundleState().Trial.Refused })
				w.becomes(id, "fw-a", parry.StateEnforced)
				w.becomes(id, "fw-b", parry.StateEnforced)
				w.idle("fw-a")
				if d := cmp.Diff(c.steps, w.steps("fw-a", a)); d != "" {
					t.Errorf("fw-a (-want +got)\n%s", d)
				}
				for _, s := range w.steps("fw-b", b) {
					if !strings.Contains(s, " a ") {
						t.Errorf("fw-b: %s", s)
					}
				}
				w.restart(nil)
				w.put("203.0.113.3")
				w.idle("fw-a")
				w.idle("fw-b")
				st := w.bundleState()
				if st.Release.Digest != oldDigest || st.Trial.Firewall != "fw-a" || st.Trial.Why == "" || w.state("fw-a").Incident.Open() {
					t.Errorf("after a restart: %+v, %+v", st, w.state("fw-a").Incident)
				}
				told := w.mails()
				if len(told) != 1 || told[0].Kind != parry.NotifyBundleRefused || told[0].Firewall != "fw-a" || told[0].Report.Bundle.Digest != newDigest {
					t.Fatalf("told %v", kinds(told))
				}
				w.edit(newerDigest)
				w.within(time.Minute, "a mended version follows", func() bool { return w.bundleState().Release.Digest == newerDigest })
				w.idle("fw-b")
				if over := w.mails(); len(over) != 1 || over[0].Kind != parry.NotifyBundleRecovered || over[0].Incident != told[0].ID {
					t.Errorf("told %v", kinds(over))
				}
			})
		})
	}
}

func TestCanary_heldOrUnreachableKeepsTheOthersUntilAWord(t *testing.T) {
	for name, stops := range map[string]func(*world){
		"held": func(w *world) {
			w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{Kind: parry.HoldWord, By: "anna", Since: time.Now()}))
		},
		"unreachable": func(w *world) { w.firewall("fw-a").set(func(f *firewall) { f.fail = parry.FailUnreachable }) },
	} {
		t.Run(name, func(t *testing.T) {
			fleetOf(t, func(w *world) {
				stops(w)
				b := len(w.runs("fw-b"))
				w.edit(newDigest)
				id := w.put("203.0.113.2")
				w.becomes(id, "fw-b", parry.StateEnforced)
				time.Sleep(3 * time.Minute)
				if st := w.bundleState(); st.Release.Digest != oldDigest || st.Trial.Refused || w.steps("fw-b", b)[0] != "apply a succeeded" {
					t.Errorf("got %+v, %v", st, w.steps("fw-b", b))
				}
				b = len(w.runs("fw-b"))
				w.must(w.store.SetPin(w.ctx, parry.Pin{Bundle: "fake", Digest: newDigest, Version: "1.0.0", By: "anna", At: time.Now()}, []string{"fw-a", "fw-b"}))
				w.within(time.Minute, "fw-b follows the word", func() bool { return slices.Contains(w.steps("fw-b", b), "verify b succeeded") })
				w.must(w.store.SetPin(w.ctx, parry.Pin{Bundle: "fake"}, []string{"fw-a", "fw-b"}))
				w.idle("fw-b")
				if st := w.bundleState(); st.Release.Digest != newDigest || st.Release.By != "anna" || len(st.Pins) != 0 {
					t.Errorf("got %+v", st)
				}
			})
		})
	}
}

func TestCanary_twoMustBothPass(t *testing.T) {
	simulate(t, []string{"fw-a", "fw-b", "fw-c"}, nil, func(w *world) {
		w.canary("fw-a")
		w.canary("fw-b")
		w.r.Reload()
		w.put("203.0.113.1")
		for _, n := range []string{"fw-a", "fw-b", "fw-c"} {
			w.idle(n)
		}
		w.firewall("fw-b").set(func(f *firewall) { f.fail = parry.FailUnreachable })
		c := len(w.runs("fw-c"))
		w.edit(newDigest)
		w.within(time.Minute, "the first has passed", func() bool { return slices.Equal(w.bundleState().Trial.Passed, []string{"fw-a"}) })
		time.Sleep(time.Minute)
		if got := w.steps("fw-c", c); len(got) != 0 {
			t.Errorf("fw-c: %v", got)
		}
		w.firewall("fw-b").set(func(f *firewall) { f.fail = "" })
		w.within(10*time.Minute, "fw-c follows", func() bool { return slices.Contains(w.steps("fw-c", c), "verify b succeeded") })
	})
}

func TestPin_ofTheConfigurationBeforeAWordBeforeTheCurrentOne(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		used := func() string {
			w.t.Helper()
			id := w.put("203.0.113." + string(rune('1'+len(w.runs("fw-a"))%9)))
			w.becomes(id, "fw-a", parry.StateEnforced)
			rs := w.runs("fw-a")
			return rs[len(rs)-1].Bundle.Digest[:1]
		}
		if got := used(); got != "a" {
			t.Errorf("current: got %s", got)
		}
		w.must(w.store.SetPin(w.ctx, parry.Pin{Bundle: "fake", Digest: newDigest, By: "anna", At: time.Now()}, []string{"fw-a"}))
		w.within(time.Minute, "the word for the bundle holds", func() bool { return used() == "b" })
		w.must(w.store.SetPin(w.ctx, parry.Pin{Bundle: "fake", Firewall: "fw-a", Digest: newerDigest, By: "anna", At: time.Now()}, []string{"fw-a"}))
		w.within(time.Minute, "the word for the firewall holds", func() bool { return used() == "c" })
		w.mu.Lock()
		fleet := *w.fleet
		fleet.Firewalls = slices.Clone(fleet.Firewalls)
		fleet.Firewalls[0].Pin, fleet.Firewalls[0].Digest = oldDigest, "fw-a-2"
		w.fleet = &fleet
		w.mu.Unlock()
		w.must(w.store.SyncFirewalls(w.ctx, fleet.Firewalls))
		w.r.Reload()
		w.within(time.Minute, "the configuration's holds", func() bool { return used() == "a" })
	})
}

func TestPin_toACopyThatThisHostLacksIsNamedWithTheMend(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		w.mu.Lock()
		w.gone = map[string]bool{newDigest: true}
		w.mu.Unlock()
		w.must(w.store.SetPin(w.ctx, parry.Pin{Bundle: "fake", Digest: newDigest, By: "anna", At: time.Now()}, []string{"fw-a"}))
		w.within(time.Minute, "it fails", func() bool { return w.state("fw-a").Incident.Failure == parry.FailBundle })
		if m := w.state("fw-a").Incident.Message; !strings.Contains(m, "anna pins it to bbbbbbbbbbbb: this host has no copy") {
			t.Errorf("message %q", m)
		}
	})
}

func TestCheck_showsAndChangesNothing(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		id := w.put("203.0.113.1")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		ask := func(digest string) parry.Run {
			w.t.Helper()
			c := parry.Check{RunID: parry.NewRunID(time.Now()), Firewall: "fw-a", Bundle: "fake", Digest: digest, By: "anna", At: time.Now()}
			w.must(w.store.AskCheck(w.ctx, c))
			var run parry.Run
			w.within(time.Minute, "the check is done", func() (done bool) {
				var err error
				run, err = w.store.Run(w.ctx, c.RunID)
				return err == nil && run.State != parry.RunRunning
			})
			return run
		}
		before := w.state("fw-a")
		if r := ask(newDigest); r.Kind != parry.RunCheck || r.State != parry.RunSucceeded || r.Bundle.Digest != newDigest || r.Got.Count != 1 {
			t.Errorf("got %+v", r)
		}
		w.firewall("fw-a").set(func(f *firewall) { f.failsWith = map[string]parry.Failure{newDigest: parry.FailTask} })
		if r := ask(newDigest); r.State != parry.RunFailed || r.Failure != parry.FailTask {
			t.Errorf("got %+v", r)
		}
		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{Kind: parry.HoldWord, By: "anna", Since: time.Now()}))
		if r := ask(oldDigest); r.State != parry.RunSucceeded {
			t.Errorf("on a held one: %+v", r)
		}
		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{}))
		w.mu.Lock()
		w.gone = map[string]bool{newerDigest: true}
		w.mu.Unlock()
		if r := ask(newerDigest); r.Failure != parry.FailBundle || !strings.Contains(r.Message, "no copy") {
			t.Errorf("got %+v", r)
		}
		after := w.state("fw-a")
		after.LastRun = before.LastRun
		if d := cmp.Diff(before, after); d != "" {
			t.Errorf("the firewall's state changed (-before +after)\n%s", d)
		}
		if w.derived(id, "fw-a") != parry.StateEnforced || len(w.mails()) != 0 {
			t.Error("a check had an effect")
		}
	})
}
