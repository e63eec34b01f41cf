package reconcile

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

// readable is a world whose bundle hands over what is loaded.
func readable(t *testing.T, names []string, f func(*world)) {
	t.Helper()
	simulate(t, names, nil, func(w *world) {
		w.mu.Lock()
		w.flags = func(m *bundle.Manifest) { m.Loaded = true }
		w.mu.Unlock()
		f(w)
	})
}

func (w *world) verify(name string) {
	w.t.Helper()
	w.must(w.store.SetVerify(w.ctx, name))
}

func TestDrift_isToldEntryByEntryAndRepairedOnce(t *testing.T) {
	readable(t, []string{"fw-a"}, func(w *world) {
		gone, stays := w.put("203.0.113.7"), w.put("203.0.113.8")
		w.becomes(gone, "fw-a", parry.StateEnforced)
		w.becomes(stays, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		w.mails()
		fw := w.firewall("fw-a")
		// Somebody takes one out and puts another one in; the repair takes a while.
		fw.set(func(f *firewall) {
			f.held = []string{"198.51.100.9 - - - wan", "203.0.113.8 - - - wan"}
			f.takes = 10 * time.Second
		})
		w.verify("fw-a")
		w.becomes(gone, "fw-a", parry.StateDrifted)
		if got := w.derived(stays, "fw-a"); got != parry.StateEnforced {
			t.Errorf("what was read back as loaded is %s", got)
		}
		st := w.state("fw-a")
		if got := st.Reality(time.Now(), time.Hour); got != parry.RealityDrifted {
			t.Errorf("reality is %s", got)
		}
		d := st.Drift
		want := parry.Drift{
			Since: d.Since, RunID: d.RunID, Rev: st.DirtyRev, Listed: true, Missing: []string{"203.0.113.7 - - - wan"}, MissingN: 1,
			Extra: []string{"198.51.100.9 - - - wan"}, ExtraN: 1, Blocks: []parry.BlockID{gone},
		}
		if diff := cmp.Diff(want, d); diff != "" {
			t.Error(diff)
		}
		w.becomes(gone, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		if got := fw.holds(); !slices.Equal(got, []string{"203.0.113.7 - - - wan", "203.0.113.8 - - - wan"}) {
			t.Errorf("after the repair it holds %q", got)
		}
		if st := w.state("fw-a"); st.Drift.Open() || st.Reality(time.Now(), time.Hour) != parry.RealityOK {
			t.Errorf("after the repair: %+v", st.Drift)
		}
		mails := w.mails()
		if got := kinds(mails); !slices.Equal(got, []parry.NotificationKind{parry.NotifyRecovered}) {
			t.Fatalf("told %v", got)
		}
		if got := mails[0].Report.Drift; !slices.Equal(got, []string{"- 203.0.113.7 - - - wan", "+ 198.51.100.9 - - - wan"}) {
			t.Errorf("the report names %q", got)
		}
	})
}

func TestDrift_isFoundOnScheduleAndAfterARestart(t *testing.T) {
	readable(t, []string{"fw-a"}, func(w *world) {
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		flush := func() { fw.set(func(f *firewall) { f.held = nil }) }
		repaired := func() bool { return len(fw.holds()) == 1 }
		flush()
		w.within(16*time.Minute, "the interval finds it", repaired)
		w.idle("fw-a")
		w.stop()
		flush()
		w.build(func(o *Options) { o.Registerer = nil })
		w.start()
		w.within(10*time.Second, "the start finds it", repaired)
		w.becomes(id, "fw-a", parry.StateEnforced)
		if st := w.state("fw-a"); st.Drift.Open() {
			t.Error("the drift is still told")
		}
	})
}

// What a bundle without the list hands over is a hash: then every block of the firewall is concerned.
func TestDrift_withoutAListConcernsEveryBlock(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		a, b := w.put("203.0.113.7"), w.put("203.0.113.8")
		w.becomes(a, "fw-a", parry.StateEnforced)
		w.becomes(b, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		w.firewall("fw-a").set(func(f *firewall) { f.held, f.takes = f.held[:1], 10*time.Second })
		w.verify("fw-a")
		w.becomes(a, "fw-a", parry.StateDrifted)
		w.becomes(b, "fw-a", parry.StateDrifted)
		w.becomes(a, "fw-a", parry.StateEnforced)
	})
}

func TestDrift_aListThatIsNotWhatWasHashedIsNotBelieved(t *testing.T) {
	for name, garble := range map[string]func(string) string{
		"cut":         func(s string) string { return s[:len(s)-2] },
		"another":     func(s string) string { return strings.Replace(s, "203.0.113.7", "203.0.113.9", 1) },
		"unsorted":    func(s string) string { l := strings.SplitAfter(s, "\n"); slices.Reverse(l); return strings.Join(l, "") },
		"twice":       func(s string) string { return s + s },
		"not decimal": func(s string) string { return strings.ReplaceAll(s, " - 0 ", " - 0x0 ") },
		"octal":       func(s string) string { return strings.ReplaceAll(s, "203.", "0203.") },
	} {
		t.Run(name, func(t *testing.T) {
			readable(t, []string{"fw-a"}, func(w *world) {
				w.becomes(w.put("203.0.113.7"), "fw-a", parry.StateEnforced)
				w.becomes(w.put("203.0.113.8"), "fw-a", parry.StateEnforced)
				w.idle("fw-a")
				w.firewall("fw-a").set(func(f *firewall) { f.garble = garble })
				before := w.firewall("fw-a").count()
				w.verify("fw-a")
				w.within(time.Minute, "the verify fails", func() bool {
					return slices.ContainsFunc(w.runs("fw-a"), func(r parry.Run) bool {
						return r.Failure == parry.FailProof && strings.Contains(r.Message, "cannot be believed")
					})
				})
				if w.firewall("fw-a").count() == before {
					t.Error("nothing was run")
				}
			})
		})
	}
}

func TestLoaded_isKeptWithItsCounters(t *testing.T) {
	readable(t, []string{"fw-a"}, func(w *world) {
		w.becomes(w.put("203.0.113.7"), "fw-a", parry.StateEnforced)
		w.becomes(w.put("203.0.113.8"), "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		w.verify("fw-a")
		var got parry.Loaded
		w.within(time.Minute, "it is kept", func() bool {
			var err error
			got, err = w.store.Loaded(w.ctx, "fw-a")
			w.must(err)
			return got.Count == 2
		})
		entries, err := parry.ReadLoaded(string(got.Text))
		w.must(err)
		if e := entries[1]; e.Source != pfx("203.0.113.8") || e.Packets != 1 || e.Bytes != 100 || e.Expires != 0 {
			t.Errorf("got %+v", e)
		}
	})
}

func TestReality_isUnknownWhileItCannotBeRead(t *testing.T) {
	readable(t, []string{"fw-a"}, func(w *world) {
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) { f.fail = parry.FailUnreachable })
		w.verify("fw-a")
		w.within(time.Minute, "it is unknown", func() bool { return w.status("fw-a").Reality == parry.RealityUnknown })
		if got := w.derived(id, "fw-a"); got != parry.StateEnforced {
			t.Errorf("what was last proved is %s", got)
		}
		fw.set(func(f *firewall) { f.fail = "" })
		w.within(10*time.Minute, "it is known again", func() bool { return w.status("fw-a").Reality == parry.RealityOK })
	})
}

// Two names of one machine would write over each other's entries; the second is refused before it has changed anything.
func TestMachine_underTwoNamesIsRefused(t *testing.T) {
	readable(t, []string{"fw-a"}, func(w *world) {
		w.firewall("fw-a").set(func(f *firewall) { f.machine = "m-1" })
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.list("fw-b")
		w.firewall("fw-b").set(func(f *firewall) { f.machine = "m-1" })
		w.must(w.store.SyncFirewalls(w.ctx, w.fleet.Firewalls))
		w.r.Reload()
		w.within(time.Minute, "fw-b is refused", func() bool { return w.state("fw-b").Incident.Failure == parry.FailDuplicateMachine })
		time.Sleep(2 * time.Hour)
		for _, r := range w.runs("fw-b") {
			if r.Kind != parry.RunVerify || r.Failure != parry.FailDuplicateMachine || !strings.Contains(r.Message, "fw-a") {
				t.Errorf("%s ended as %q: %s", r.Kind, r.Failure, r.Message)
			}
		}
		if got := w.derived(id, "fw-a"); got != parry.StateEnforced {
			t.Errorf("on the first it is %s", got)
		}
		w.firewall("fw-b").set(func(f *firewall) { f.machine = "m-2" })
		w.within(2*time.Hour, "another machine is taken", func() bool { return w.derived(id, "fw-b") == parry.StateEnforced })
	})
}

func TestNewFirewall_isReadBeforeItIsWritten(t *testing.T) {
	readable(t, []string{"fw-a"}, func(w *world) {
		fw := w.firewall("fw-a")
		w.becomes(w.put("203.0.113.7"), "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		var got []parry.RunKind
		fw.set(func(f *firewall) {
			for _, s := range f.runs {
				got = append(got, s.Kind)
			}
		})
		if len(got) < 2 || got[0] != parry.RunVerify || got[1] != parry.RunApply {
			t.Errorf("runs were %v", got)
		}
	})
}
