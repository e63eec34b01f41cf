package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/parry/parry/internal/parry"
)

func TestReconcile_aBlockBecomesEnforcedAndIsLiftedAgain(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		if d := cmp.Diff([]string{"203.0.113.7 - - - wan"}, w.firewall("fw-a").holds()); d != "" {
			t.Errorf("the firewall holds (-want +got)\n%s", d)
		}
		_, _, err := w.store.EndBlock(w.ctx, id, parry.Lift{By: "anna", Grace: parry.KeepGrace})
		w.must(err)
		w.becomes(id, "fw-a", parry.StateLifted)
		if got := w.firewall("fw-a").holds(); len(got) != 0 {
			t.Errorf("the firewall still holds %q", got)
		}
		if d := w.mails(); len(d) != 0 {
			t.Errorf("mails without a failure: %v", kinds(d))
		}
		if got, want := testutil.CollectAndCount(w.r.metrics, "parry_enforcement_seconds"), 1; got != want {
			t.Errorf("%d histograms of enforcement, want %d", got, want)
		}
	})
}

func TestReconcile_aStormCostsFewRuns(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) { f.takes = time.Second })
		before := fw.count()
		for i := range 2000 {
			w.put(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
			if i%2 == 0 {
				time.Sleep(2 * time.Millisecond)
			}
		}
		w.idle("fw-a")
		if got := fw.count() - before; got > 5 {
			t.Errorf("2,000 blocks in 2 s cost %d runs, want at most 5", got)
		}
		if got, want := len(fw.holds()), 2000; got != want {
			t.Errorf("the firewall holds %d, want %d", got, want)
		}
	})
}

func TestReconcile_aDeadFirewallDelaysNoOther(t *testing.T) {
	names := []string{"fw-a"}
	for i := range 12 { // more than there are slots
		names = append(names, fmt.Sprintf("dead-%d", i))
	}
	simulate(t, names, nil, func(w *world) {
		for _, n := range names[1:] {
			w.firewall(n).set(func(f *firewall) { f.hang = true })
		}
		w.idle("fw-a")
		time.Sleep(20 * time.Second) // all dead ones are on their way
		id := w.put("203.0.113.7")
		began := time.Now()
		w.becomes(id, "fw-a", parry.StateEnforced)
		if took := time.Since(began); took > time.Second {
			t.Errorf("a block took %v beside dead firewalls", took)
		}
		w.within(3*time.Minute, "the dead ones time out", func() bool { return w.state("dead-0").Incident.Failure == parry.FailTimeout })
	})
}

func TestReconcile_aChangeElsewhereCostsNoRun(t *testing.T) {
	simulate(t, []string{"fw-a", "fw-b"}, nil, func(w *world) {
		w.idle("fw-a")
		w.idle("fw-b")
		before := w.firewall("fw-b").count()
		id := w.put("203.0.113.7", on("fw-a"))
		w.becomes(id, "fw-a", parry.StateEnforced)
		b, err := w.store.Block(w.ctx, id)
		w.must(err)
		w.within(2*time.Minute, "fw-b's applied revision follows", func() bool { return w.state("fw-b").AppliedRev >= b.Rev })
		if got := w.firewall("fw-b").count(); got != before {
			t.Errorf("fw-b had %d runs for a block of fw-a's", got-before)
		}
		rev, err := w.store.Revision(w.ctx)
		w.must(err)
		time.Sleep(5 * time.Minute)
		if now, err := w.store.Revision(w.ctx); err != nil || now != rev {
			t.Errorf("an idle service wrote: revision %d became %d, %v", rev, now, err)
		}
	})
}

func TestReconcile_aCoveredBlockNeedsNoRun(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.becomes(w.put("203.0.113.0/24"), "fw-a", parry.StateEnforced)
		before := w.firewall("fw-a").count()
		w.becomes(w.put("203.0.113.7"), "fw-a", parry.StateEnforced)
		if got := w.firewall("fw-a").count(); got != before {
			t.Errorf("a covered block cost %d runs", got-before)
		}
	})
}

func TestReconcile_eachFailureHasItsNameAndItsSchedule(t *testing.T) {
	t.Parallel()
	waits := map[parry.Pace][]time.Duration{
		parry.PaceUsual: {2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second},
		parry.PaceQuick: {time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second},
		parry.PaceSlow:  {5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 40 * time.Minute},
	}
	for _, f := range []parry.Failure{
		parry.FailUnreachable, parry.FailAuthentication, parry.FailHostKey, parry.FailPlaybook, parry.FailTask, parry.FailNoProof, parry.FailBusy,
		parry.FailPFRefused, parry.FailConfigChanged, parry.FailStructure, parry.FailCapacity,
	} {
		t.Run(string(f), func(t *testing.T) {
			simulate(t, []string{"fw-a"}, nil, func(w *world) {
				w.idle("fw-a")
				fw := w.firewall("fw-a")
				n := fw.count()
				fw.set(func(x *firewall) { x.fail = f })
				w.put("203.0.113.7")
				want := waits[f.Pace()]
				w.within(3*time.Hour, "five tries", func() bool { return fw.count() >= n+5 })
				for i, d := range want {
					if got := fw.at[n+i+1].Sub(fw.at[n+i]); got < d || got > d+50*time.Millisecond {
						t.Errorf("try %d came after %v, want %v", i+2, got, d)
					}
				}
				st := w.state("fw-a")
				if st.Incident.Failure != f || st.Incident.Attempts < 4 {
					t.Errorf("incident %+v", st.Incident)
				}
				fw.set(func(x *firewall) { x.fail = "" })
				w.within(2*time.Hour, "recovery", func() bool { return !w.state("fw-a").Incident.Open() })
				got := w.mails()
				if d := cmp.Diff([]parry.NotificationKind{parry.NotifyFailed, parry.NotifyRecovered}, kinds(got)); d != "" {
					t.Fatalf("mails (-want +got)\n%s", d)
				}
				if got[1].Incident != got[0].ID {
					t.Error("the recovery is not threaded to its failure")
				}
			})
		})
	}
}

func TestReconcile_aReportTellsEverything(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.becomes(w.put("198.51.100.1"), "fw-a", parry.StateEnforced)
		counted := func(a *parry.Admission) { a.Ladder = &parry.Ladder{Rungs: []time.Duration{time.Hour, 24 * time.Hour}} }
		first := w.put("203.0.113.0", counted)
		w.becomes(first, "fw-a", parry.StateEnforced)
		_, _, err := w.store.EndBlock(w.ctx, first, parry.Lift{By: "anna", Grace: parry.KeepGrace})
		w.must(err)
		w.becomes(first, "fw-a", parry.StateLifted)
		w.firewall("fw-a").set(func(x *firewall) { x.fail = parry.FailPFRefused })
		var ids []parry.BlockID
		for i := range 25 {
			ids = append(ids, w.put(fmt.Sprintf("203.0.113.%d", i), counted))
		}
		w.becomes(ids[0], "fw-a", parry.StateDegraded)
		r := w.mails()[0].Report
		if r.Firewall != "fw-a" || r.Host != "127.0.0.1:2201" || r.Failure != parry.FailPFRefused || r.Task != "Apply" || r.Hint == "" ||
			r.Enforced != 1 || r.WaitingN < 1 || len(r.Waiting) > 20 || r.LogTail == "" || r.Bundle.Version != "1.0.0" || r.RunID == "" {
			t.Errorf("report %+v", r)
		}
		if !strings.HasPrefix(r.Waiting[0], string(ids[0])+" 203.0.113.0 (offence 2)") {
			t.Errorf("waiting %q", r.Waiting)
		}
		for _, want := range []string{"ansible.cfg", "inventory.json", "/bundles/fake/apply.yml", "-e @", "vars.json", string(r.RunID)} {
			if !strings.Contains(r.Command, want) {
				t.Errorf("command %q lacks %q", r.Command, want)
			}
		}
	})
}

// A block that has ended and cannot be lifted still drops: no less in force than it should be, but more.
func TestReconcile_aReportTellsWhatHasEndedApartFromWhatIsNotInForce(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		id := w.put("203.0.113.7", ttl(5*time.Minute)) // its end comes before the next read-back
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.becomes(w.put("203.0.113.8"), "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		w.firewall("fw-a").set(func(f *firewall) { f.fail = parry.FailUnreachable })
		var r parry.Report
		w.within(10*time.Minute, "it is told", func() bool {
			for _, d := range w.mails() {
				r = d.Report
			}
			return r.Failure != ""
		})
		if r.WaitingN != 0 || len(r.Waiting) != 0 || r.LiftingN != 1 || len(r.Lifting) != 1 || r.Lifting[0] != string(id)+" 203.0.113.7" || r.Enforced != 1 {
			t.Errorf("waiting %d %q, ended and not lifted %d %q, in force %d", r.WaitingN, r.Waiting, r.LiftingN, r.Lifting, r.Enforced)
		}
	})
}

func TestReconcile_missingFromTheInventoryAndABrokenBundleAreNamed(t *testing.T) {
	simulate(t, []string{"fw-a", "fw-b"}, nil, func(w *world) {
		w.idle("fw-a")
		w.firewall("fw-a").set(func(f *firewall) { f.missing = true })
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateDegraded)
		w.becomes(id, "fw-b", parry.StateEnforced)
		w.mu.Lock()
		w.badlib = errors.New("apply.yml:3: mapping values are not allowed here")
		w.mu.Unlock()
		w.becomes(w.put("203.0.113.8"), "fw-b", parry.StateDegraded)
		if got, want := w.state("fw-a").Incident.Failure, parry.FailInventory; got != want {
			t.Errorf("fw-a: %s, want %s", got, want)
		}
		if got, want := w.state("fw-b").Incident.Failure, parry.FailBundle; got != want {
			t.Errorf("fw-b: %s, want %s", got, want)
		}
		for _, fw := range []string{"fw-a", "fw-b"} {
			runs := w.runs(fw)
			if last := runs[len(runs)-1]; last.State != parry.RunFailed || last.Failure == "" {
				t.Errorf("%s: last run %+v", fw, last)
			}
		}
	})
}

func TestReconcile_aProofThatDoesNotMatchNeverEnforces(t *testing.T) {
	t.Parallel()
	for name, lie := range map[string]func(*firewall){
		"count":    func(f *firewall) { f.lieCount = true },
		"no proof": func(f *firewall) { f.noProof = true },
		"echo":     func(f *firewall) { f.echo = true },
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, []string{"fw-a"}, nil, func(w *world) {
				w.idle("fw-a")
				w.firewall("fw-a").set(lie)
				w.mu.Lock()
				w.digest = strings.Repeat("b", 64) // the bundle that lies
				w.mu.Unlock()
				id := w.put("203.0.113.7")
				for range 200 {
					time.Sleep(50 * time.Millisecond)
					if got := w.derived(id, "fw-a"); got == parry.StateEnforced {
						t.Fatal("a lie made the block enforced")
					}
				}
				if !w.state("fw-a").Incident.Open() {
					t.Error("no incident")
				}
				if got := kinds(w.mails()); len(got) != 1 || got[0] != parry.NotifyFailed {
					t.Errorf("mails %v, want one failure", got)
				}
				w.firewall("fw-a").set(func(f *firewall) { f.lieCount, f.noProof, f.echo = false, false, false })
				w.becomes(id, "fw-a", parry.StateEnforced)
			})
		})
	}
}

func TestReconcile_aRestartVerifiesAndDriftIsRepaired(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		n := len(w.runs("fw-a"))
		w.restart(nil)
		w.within(time.Minute, "a verify", func() bool { return len(w.runs("fw-a")) == n+1 })
		w.idle("fw-a")
		if got := w.runs("fw-a")[n]; got.Kind != parry.RunVerify || got.State != parry.RunSucceeded {
			t.Errorf("after a restart: %s %s", got.Kind, got.State)
		}
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) { f.held = []string{"9.9.9.9 - - - wan"} })
		w.within(16*time.Minute, "the next verify repairs it", func() bool { return slices.Equal(fw.holds(), []string{"203.0.113.7 - - - wan"}) })
		w.becomes(id, "fw-a", parry.StateEnforced)
		got := w.mails()
		if d := cmp.Diff([]parry.NotificationKind{parry.NotifyRecovered}, kinds(got)); d != "" || got[0].Report.Failure != parry.FailProof {
			t.Errorf("repaired drift is told once (-want +got)\n%s", d)
		}
	})
}

func TestReconcile_anAskedVerifyReadsOnlyUnlessThereIsDrift(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		since := func(n int) (kinds []string) {
			for _, r := range w.runs("fw-a")[n:] {
				kinds = append(kinds, string(r.Kind)+" "+string(r.State))
			}
			return kinds
		}
		verify := func(runs ...string) {
			t.Helper()
			n := len(w.runs("fw-a"))
			w.must(w.store.SetVerify(w.ctx, "fw-a"))
			w.within(10*time.Second, "the runs", func() bool { return len(w.runs("fw-a")) >= n+len(runs) && w.state("fw-a").VerifyRev == 0 })
			time.Sleep(time.Minute)
			if d := cmp.Diff(runs, since(n)); d != "" {
				t.Errorf("runs (-want +got)\n%s", d)
			}
		}
		verify("verify succeeded")
		w.firewall("fw-a").set(func(f *firewall) { f.held = nil })
		verify("verify failed", "apply succeeded", "verify succeeded")
		w.becomes(id, "fw-a", parry.StateEnforced)

		w.firewall("fw-a").set(func(f *firewall) { f.fail = parry.FailAuthentication })
		verify("verify failed")
		w.firewall("fw-a").set(func(f *firewall) { f.fail = "" })
		verify("verify succeeded")
		if w.state("fw-a").Incident.Open() {
			t.Error("a read-back that went well did not end the incident")
		}
	})
}

func TestReconcile_afterARestartPendingChangesAreAppliedAtOnce(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		a, b := w.put("203.0.113.7"), w.put("203.0.113.8")
		w.becomes(a, "fw-a", parry.StateEnforced)
		w.becomes(b, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		w.stop()
		_, _, err := w.store.EndBlock(w.ctx, a, parry.Lift{By: "anna", Grace: parry.KeepGrace}) // while no controller ran: the view never saw it
		w.must(err)
		n := len(w.runs("fw-a"))
		w.build(func(o *Options) { o.Registerer = nil })
		w.start()
		w.becomes(a, "fw-a", parry.StateLifted)
		if got := w.runs("fw-a")[n].Kind; got != parry.RunApply {
			t.Errorf("first run is %s, want apply", got)
		}
	})
}

func TestReconcile_anOrphanKeepsTheNextOneOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"fw-a"}, nil)
		w.orphans = 100
		w.start()
		time.Sleep(35 * time.Second)
		synctest.Wait()
		if got := w.firewall("fw-a").count(); got != 0 {
			t.Errorf("%d runs beside an orphan", got)
		}
		if got, want := w.state("fw-a").Incident.Failure, parry.FailOrphan; got != want {
			t.Errorf("failure %q, want %q", got, want)
		}
		w.within(2*time.Minute, "it goes on after the orphan", func() bool { return w.firewall("fw-a").count() > 0 })
		w.idle("fw-a")
		w.stop()
		w.must(w.store.Close())
	})
}

func TestReconcile_takingOverNeedsAWord(t *testing.T) {
	t.Parallel()
	for want, set := range map[parry.Failure]func(*firewall){
		parry.FailForeignController: func(f *firewall) { f.controller = "c-other" },
		parry.FailStaleEpoch:        func(f *firewall) { f.epoch += 1000 },
		parry.FailStaleRevision:     func(f *firewall) { f.revision += 1000 },
		parry.FailFlushed:           func(f *firewall) { f.flushed, f.held = true, nil },
	} {
		t.Run(string(want), func(t *testing.T) {
			simulate(t, []string{"fw-a"}, nil, func(w *world) {
				a := w.put("203.0.113.6")
				w.becomes(a, "fw-a", parry.StateEnforced)
				fw := w.firewall("fw-a")
				fw.set(set)
				id := w.put("203.0.113.7")
				waits := parry.StateDegraded
				if want == parry.FailFlushed {
					waits = parry.StateHeld
				}
				w.becomes(id, "fw-a", waits)
				if got := w.state("fw-a").Incident.Failure; got != want {
					t.Errorf("failure %s, want %s", got, want)
				}
				n := fw.count()
				time.Sleep(2 * time.Hour)
				fw.mu.Lock()
				for _, s := range fw.runs[n:] {
					if s.Kind != parry.RunVerify {
						t.Errorf("a run of kind %s without the word", s.Kind)
					}
				}
				if got := len(fw.runs) - n; got == 0 || got > 6 {
					t.Errorf("%d verifies in 2 h, want a few", got)
				}
				fw.mu.Unlock()
				w.must(w.store.SetAdopt(w.ctx, "fw-a"))
				w.becomes(id, "fw-a", parry.StateEnforced)
				if st := w.state("fw-a"); st.Adopt || st.Incident.Open() || st.Proof.Epoch != fw.epoch {
					t.Errorf("after the word: %+v", st)
				}
				if d := cmp.Diff([]parry.NotificationKind{parry.NotifyFailed, parry.NotifyRecovered}, kinds(w.mails())); d != "" {
					t.Errorf("mails (-want +got)\n%s", d)
				}
			})
		})
	}
}

// The epoch is the same before and after: parry was not restarted between the backup and the loss.
func TestReconcile_aRestoredDatabaseRemovesNothingWithoutAWord(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		kept := w.put("203.0.113.1")
		w.becomes(kept, "fw-a", parry.StateEnforced)
		backup := w.backup()
		forgotten := w.put("203.0.113.2")
		w.becomes(forgotten, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		both := []string{"203.0.113.1 - - - wan", "203.0.113.2 - - - wan"}

		w.restore(backup)
		var last parry.BlockID
		for i := range 20 { // a spool is replayed: the revision passes the one that the firewall knows
			last = w.put(fmt.Sprintf("198.51.100.%d", i))
		}
		for range 3 { // nor does another start make it forget
			w.reg = prometheus.NewRegistry()
			w.build(nil)
			w.start()
			w.becomes(last, "fw-a", parry.StateDegraded)
			time.Sleep(time.Hour)
			if got := w.state("fw-a").Incident.Failure; got != parry.FailStaleRevision {
				t.Errorf("failure %q, want stale_revision", got)
			}
			if d := cmp.Diff(both, fw.holds()); d != "" {
				t.Fatalf("the firewall holds (-want +got)\n%s", d)
			}
			w.stop()
		}
		w.build(func(o *Options) { o.Registerer = nil })
		w.start()
		w.must(w.store.SetAdopt(w.ctx, "fw-a"))
		w.becomes(last, "fw-a", parry.StateEnforced)
		w.becomes(kept, "fw-a", parry.StateEnforced)
		if got := fw.holds(); slices.Contains(got, both[1]) || len(got) != 21 {
			t.Errorf("after the word the firewall holds %q", got)
		}
		w.becomes(w.put("203.0.113.3"), "fw-a", parry.StateEnforced)
		if d := cmp.Diff([]parry.NotificationKind{parry.NotifyFailed, parry.NotifyRecovered}, kinds(w.mails())); d != "" {
			t.Errorf("mails (-want +got)\n%s", d)
		}
	})
}

func TestReconcile_aRestoredDatabaseWithNothingToApplyIsSeenByTheVerify(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.becomes(w.put("203.0.113.1"), "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		backup := w.backup()
		w.becomes(w.put("203.0.113.2"), "fw-a", parry.StateEnforced)
		w.restore(backup)
		w.build(func(o *Options) { o.Registerer = nil })
		w.start()
		w.within(time.Minute, "it is told", func() bool { return w.state("fw-a").Incident.Failure == parry.FailStaleRevision })
		if got := len(w.firewall("fw-a").holds()); got != 2 {
			t.Errorf("the firewall holds %d entries, want both", got)
		}
	})
}

func TestReconcile_aHoldStopsApplyingOnly(t *testing.T) {
	simulate(t, []string{"fw-a", "fw-b"}, nil, func(w *world) {
		w.idle("fw-a")
		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{By: "anna", Since: time.Now()}))
		n := w.firewall("fw-a").count()
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-b", parry.StateEnforced)
		time.Sleep(time.Hour)
		if got := w.derived(id, "fw-a"); got != parry.StateHeld || w.firewall("fw-a").count() != n {
			t.Errorf("held: block %s, %d runs", got, w.firewall("fw-a").count()-n)
		}
		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{}))
		w.becomes(id, "fw-a", parry.StateEnforced)
	})
}

func TestReconcile_removingManyForNoReasonWaitsForApproval(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			simulate(t, []string{"fw-a"}, nil, func(w *world) {
				var ids []parry.BlockID
				for i := range 60 {
					sel := on("edge")
					if i >= 30 {
						sel = on("fw-a")
					}
					ids = append(ids, w.put(fmt.Sprintf("10.0.0.%d", i), sel))
				}
				edge := func(in bool) {
					w.mu.Lock()
					fleet := *w.fleet
					fleet.Firewalls = slices.Clone(fleet.Firewalls)
					fleet.Firewalls[0].Groups, fleet.Firewalls[0].Digest = nil, "without"
					if in {
						fleet.Firewalls[0].Groups, fleet.Firewalls[0].Digest = []string{"edge"}, "with"
					}
					w.fleet = &fleet
					w.mu.Unlock()
					w.must(w.store.SyncFirewalls(w.ctx, fleet.Firewalls))
					w.r.Reload()
				}
				edge(true)
				w.becomes(ids[0], "fw-a", parry.StateEnforced)
				w.idle("fw-a")
				fw := w.firewall("fw-a")
				if restart { // the reference is then the run's own file
					w.restart(func(o *Options) { o.Registerer = nil })
					w.idle("fw-a")
				}
				edge(false)
				w.within(time.Minute, "approval is asked for", func() bool { return w.state("fw-a").Incident.Failure == parry.FailApproval })
				n := len(w.runs("fw-a"))
				time.Sleep(3 * time.Hour)
				if got := len(fw.holds()); got != 60 || len(w.runs("fw-a")) != n {
					t.Errorf("holds %d, want 60 still; %d runs meanwhile", got, len(w.runs("fw-a"))-n)
				}
				w.decide("fw-a", true)
				w.within(time.Minute, "30 are removed", func() bool { return len(fw.holds()) == 30 })
				w.idle("fw-a")
				if st := w.state("fw-a"); st.Approval.ID != "" || st.Incident.Open() {
					t.Errorf("after the word: %+v", st)
				}
			})
		})
	}
}

func TestReconcile_removingManyByAWordNeedsNoApproval(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		var ids []parry.BlockID
		for i := range 60 {
			ids = append(ids, w.put(fmt.Sprintf("10.0.0.%d", i)))
		}
		w.becomes(ids[59], "fw-a", parry.StateEnforced)
		for _, id := range ids {
			_, _, err := w.store.EndBlock(w.ctx, id, parry.Lift{By: "anna", Grace: parry.KeepGrace})
			w.must(err)
		}
		w.becomes(ids[59], "fw-a", parry.StateLifted)
		for i := range 60 {
			ids = append(ids, w.put(fmt.Sprintf("10.0.2.%d", i)))
		}
		w.becomes(ids[119], "fw-a", parry.StateEnforced)
		ended, err := w.store.EndBlocks(w.ctx, parry.BlockFilter{Within: pfx("10.0.2.0/24")}, nil, parry.Lift{By: "anna", Grace: parry.KeepGrace}, false)
		if w.must(err); ended.Ended != 60 {
			t.Errorf("ended %d", ended.Ended)
		}
		w.becomes(ids[119], "fw-a", parry.StateLifted)
		for i := range 60 {
			ids = append(ids, w.put(fmt.Sprintf("10.0.1.%d", i)))
		}
		w.idle("fw-a")
		w.becomes(w.put("10.0.1.0/24"), "fw-a", parry.StateEnforced) // covers 60
		if got, want := w.firewall("fw-a").holds(), []string{"10.0.1.0/24 - - - wan"}; !slices.Equal(got, want) {
			t.Errorf("holds %q", got)
		}
	})
}

func TestReconcile_retireEmptiesProvesAndForgets(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.becomes(w.put("203.0.113.7"), "fw-a", parry.StateEnforced)
		w.must(w.store.SetRetiring(w.ctx, "fw-a"))
		w.within(time.Minute, "it is forgotten", func() bool {
			_, err := w.store.FirewallState(w.ctx, "fw-a")
			return parry.KindOf(err) == parry.KindNotFound
		})
		if got := w.firewall("fw-a").holds(); len(got) != 0 {
			t.Errorf("it still holds %q", got)
		}
		w.within(time.Minute, "the lane says so", func() bool { return w.status("fw-a").State == LaneRetired })
		w.must(w.store.SyncFirewalls(w.ctx, w.fleet.Firewalls)) // listed still, and reloaded: it comes back
		w.r.Reload()
		w.within(time.Minute, "it is filled again", func() bool { return len(w.firewall("fw-a").holds()) == 1 })
	})
}

// Where the digest is not one whose apply was confirmed, the read-back after the one retire run is what forgets the firewall.
func TestReconcile_retireWithABundleThatIsNotProvedIsConfirmedOnce(t *testing.T) {
	for name, before := range map[string]func(*world){
		"upgraded since the last apply": func(w *world) {
			w.mu.Lock()
			w.digest = strings.Repeat("c", 64)
			w.mu.Unlock()
		},
		"restarted after quiet hours": func(w *world) {
			w.within(48*time.Hour, "it was read more often than a lane looks back", func() bool { return len(w.runs("fw-a")) > 103 })
			w.restart(nil)
			w.idle("fw-a")
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, []string{"fw-a"}, nil, func(w *world) {
				w.becomes(w.put("203.0.113.7", ttl(20*24*time.Hour)), "fw-a", parry.StateEnforced)
				w.idle("fw-a")
				before(w)
				n := len(w.runs("fw-a"))
				w.must(w.store.SetRetiring(w.ctx, "fw-a"))
				w.within(5*time.Second, "it is forgotten", func() bool {
					_, err := w.store.FirewallState(w.ctx, "fw-a")
					return parry.KindOf(err) == parry.KindNotFound
				})
				var got []string
				for _, r := range w.runs("fw-a")[n:] {
					got = append(got, fmt.Sprintf("%s %s", r.Kind, r.State))
				}
				if d := cmp.Diff([]string{"retire succeeded", "verify succeeded"}, got); d != "" {
					t.Errorf("runs (-want +got)\n%s", d)
				}
				if got := w.firewall("fw-a").holds(); len(got) != 0 {
					t.Errorf("it still holds %q", got)
				}
			})
		})
	}
}

func TestReconcile_oneBadEntryDoesNotFreezeTheOthers(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		w.firewall("fw-a").set(func(f *firewall) { f.reject["203.0.113.7 "] = "source_protected" })
		bad, good := w.put("203.0.113.7"), w.put("203.0.113.8")
		w.becomes(good, "fw-a", parry.StateEnforced)
		w.becomes(bad, "fw-a", parry.StateRejected)
		gre := w.put("203.0.113.9", func(a *parry.Admission) { a.Key.Protocol = parry.ProtoGRE }) // the bundle has none
		w.becomes(gre, "fw-a", parry.StateRejected)
		time.Sleep(time.Hour)
		got := w.mails()
		if d := cmp.Diff([]parry.NotificationKind{parry.NotifyRejected, parry.NotifyRejected}, kinds(got)); d != "" {
			t.Fatalf("each new reject is told once (-want +got)\n%s", d)
		}
		if r := got[1].Report; r.RejectsN != 1 || !strings.Contains(r.Rejects[0], string(gre)+" 203.0.113.9 → any/gre: inexpressible") {
			t.Errorf("second report %+v", r)
		}
		_, _, err := w.store.EndBlock(w.ctx, bad, parry.Lift{By: "anna", Grace: parry.KeepGrace})
		w.must(err)
		w.becomes(bad, "fw-a", parry.StateLifted)
	})
}

func TestReconcile_aRejectedEntryStandsForNoOther(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) { f.reject["203.0.113.0/24 "] = "source_protected" })
		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{By: "anna", Since: time.Now()}))
		wide, narrow := w.put("203.0.113.0/24"), w.put("203.0.113.7")
		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{}))
		w.becomes(narrow, "fw-a", parry.StateEnforced)
		if got, want := fw.holds(), []string{"203.0.113.7 - - - wan"}; !slices.Equal(got, want) {
			t.Errorf("holds %q when the block is called enforced", got)
		}
		w.becomes(wide, "fw-a", parry.StateRejected)
	})
}

func TestReconcile_exemptionsAreCheckedAgainInBothDirections(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		inside, around, other := w.put("203.0.113.7"), w.put("198.51.100.0/24"), w.put("192.0.2.1")
		w.becomes(other, "fw-a", parry.StateEnforced)
		w.mu.Lock()
		w.exempt = []netip.Prefix{pfx("203.0.113.0/24"), pfx("198.51.100.9")}
		w.mu.Unlock()
		w.becomes(w.put("192.0.2.2"), "fw-a", parry.StateEnforced)
		w.becomes(inside, "fw-a", parry.StateLifted)
		w.becomes(around, "fw-a", parry.StateLifted)
		b, err := w.store.Block(w.ctx, inside)
		w.must(err)
		if b.EndReason != parry.EndExempted {
			t.Errorf("ended for %s, want %s", b.EndReason, parry.EndExempted)
		}
		if d := cmp.Diff([]string{"192.0.2.1 - - - wan", "192.0.2.2 - - - wan"}, w.firewall("fw-a").holds()); d != "" {
			t.Errorf("holds (-want +got)\n%s", d)
		}
	})
}

func TestReconcile_expiryIsNeverEarlyAndWithinSlack(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		n := w.firewall("fw-a").count()
		began := time.Now()
		a, b := w.put("203.0.113.7", ttl(time.Minute)), w.put("203.0.113.8", ttl(time.Minute+8*time.Second))
		w.becomes(b, "fw-a", parry.StateEnforced)
		w.within(2*time.Minute, "lifted", func() bool { return len(w.firewall("fw-a").holds()) == 0 })
		late := time.Since(began) - time.Minute
		if late < 8*time.Second || late > 15*time.Second {
			t.Errorf("lifted %v after the first one's end, want within slack and 5 s, and never before", late)
		}
		w.becomes(a, "fw-a", parry.StateLifted)
		if got := w.firewall("fw-a").count() - n; got > 3 {
			t.Errorf("%d runs, want neighbours to share one", got)
		}
	})
}

func TestReconcile_aClockThatJumpsLiftsNothing(t *testing.T) {
	var jump atomic.Int64
	simulate(t, []string{"fw-a"}, func(o *Options) { o.Now = func() time.Time { return time.Now().Add(time.Duration(jump.Load())) } }, func(w *world) {
		id := w.put("203.0.113.7", ttl(time.Hour))
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		jump.Store(int64(2 * time.Hour))
		time.Sleep(5 * time.Minute)
		if b, err := w.store.Block(w.ctx, id); err != nil || !b.Live() {
			t.Error("a clock that jumped ended a block")
		}
		if w.r.ClockHeld() == nil {
			t.Error("the jump is not told")
		}
		jump.Store(0)
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := w.r.ClockHeld(); err != nil {
			t.Errorf("the clock is back, and still %v", err)
		}
		time.Sleep(time.Hour)
		w.becomes(id, "fw-a", parry.StateLifted)
	})
}

func TestReconcile_shutdownDrainsTheRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		takes time.Duration
		want  parry.RunState
	}{{5 * time.Second, parry.RunSucceeded}, {50 * time.Second, parry.RunUnknown}} {
		t.Run(fmt.Sprint(c.takes), func(t *testing.T) {
			simulate(t, []string{"fw-a"}, nil, func(w *world) {
				w.idle("fw-a")
				fw := w.firewall("fw-a")
				fw.set(func(f *firewall) { f.takes = c.takes })
				n := fw.count()
				w.put("203.0.113.7")
				w.within(time.Minute, "the run is on", func() bool { return fw.count() == n+1 })
				began := time.Now()
				w.stop()
				if took := time.Since(began); took > 31*time.Second {
					t.Errorf("stopping took %v", took)
				}
				runs := w.runs("fw-a")
				if got := runs[len(runs)-1]; got.State != c.want {
					t.Errorf("the run is %s, want %s", got.State, c.want)
				}
				if w.state("fw-a").Incident.Open() {
					t.Error("a shutdown opened an incident")
				}
				w.start()
			})
		})
	}
}

func TestReconcile_lanesFollowTheFleet(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.list("fw-b")
		w.must(w.store.SyncFirewalls(w.ctx, w.fleet.Firewalls))
		w.r.Reload()
		w.becomes(id, "fw-b", parry.StateEnforced)
		w.mu.Lock()
		w.fleet = &parry.Fleet{Default: parry.SelectAll, Firewalls: w.fleet.Firewalls[1:]}
		w.mu.Unlock()
		w.must(w.store.SyncFirewalls(w.ctx, w.fleet.Firewalls))
		w.r.Reload()
		w.within(time.Minute, "fw-a's lane is gone", func() bool { return len(w.r.Status()) == 1 })
		n := w.firewall("fw-a").count()
		w.becomes(w.put("203.0.113.8"), "fw-b", parry.StateEnforced)
		if got := w.firewall("fw-a").count(); got != n {
			t.Errorf("%d runs on a firewall that is not listed", got-n)
		}
	})
}

func TestReconcile_aChangedBundleIsAppliedAndVerified(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.becomes(w.put("203.0.113.7"), "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		n := len(w.runs("fw-a"))
		w.mu.Lock()
		w.digest = strings.Repeat("c", 64)
		w.mu.Unlock()
		w.r.Reload()
		w.within(time.Minute, "apply and verify", func() bool { return len(w.runs("fw-a")) >= n+2 })
		w.idle("fw-a")
		var got []string
		for _, r := range w.runs("fw-a")[n:] {
			got = append(got, fmt.Sprintf("%s %s %.1s", r.Kind, r.State, r.Bundle.Digest))
		}
		if d := cmp.Diff([]string{"apply succeeded c", "verify succeeded c"}, got); d != "" {
			t.Errorf("runs (-want +got)\n%s", d)
		}
	})
}

func TestReconcile_aStormDoesNotHammerADeadFirewall(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) { f.fail = parry.FailUnreachable })
		w.put("203.0.113.7")
		time.Sleep(10 * time.Minute) // the wait is 5 min by now
		n := fw.count()
		began := time.Now()
		for i := range 600 {
			w.put(fmt.Sprintf("10.0.%d.%d", i>>8, i&255))
			time.Sleep(100 * time.Millisecond)
		}
		if got, most := fw.count()-n, int(time.Since(began)/earlyAfter)+1; got < 1 || got > most {
			t.Errorf("%d tries in a minute of changes, want 1 to %d", got, most)
		}
		if got := w.mails(); len(got) != 1 {
			t.Errorf("%d mails in one incident", len(got))
		}
	})
}

func TestReconcile_neverTwoRunsOnOneFirewall(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) { f.takes = 300 * time.Millisecond })
		for i := range 50 {
			w.put(fmt.Sprintf("10.0.0.%d", i))
			if i%10 == 0 {
				w.restart(func(o *Options) { o.Registerer = nil })
			}
			time.Sleep(100 * time.Millisecond)
		}
		w.idle("fw-a")
		if fw.mostActive != 1 {
			t.Errorf("%d runs at once", fw.mostActive)
		}
		if got := len(fw.holds()); got != 50 {
			t.Errorf("holds %d, want 50", got)
		}
	})
}

func TestReconcile_aLostLaneEndsItsRunAndIsTakenAgain(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		n := fw.count()
		fw.set(func(f *firewall) { f.takes = 10 * time.Second })
		id := w.put("203.0.113.7")
		w.within(time.Minute, "the run is on", func() bool { return fw.count() == n+1 })
		w.r.mu.Lock()
		lease := w.r.lanes["fw-a"].lease
		w.r.mu.Unlock()
		epoch := lease.Epoch
		began := time.Now()
		w.must(lease.Release(w.ctx)) // as when its database connection is gone
		w.within(time.Second, "the run is ended", func() bool {
			runs := w.runs("fw-a")
			return slices.ContainsFunc(runs, func(r parry.Run) bool { return r.State == parry.RunUnknown })
		})
		fw.set(func(f *firewall) { f.takes = 0 })
		w.becomes(id, "fw-a", parry.StateEnforced)
		if got := w.state("fw-a"); got.Epoch <= epoch || got.Incident.Open() {
			t.Errorf("after %v: %+v, want an epoch above %d and no incident", time.Since(began), got, epoch)
		}
	})
}

// Another replica may take a lane over before this one hears of it. That is no other firewall's machine, and nothing to write of.
func TestReconcile_aRunThatEndsAfterItsLaneWasTakenOverEndsQuietly(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		n := fw.count()
		taken := false
		fw.set(func(f *firewall) {
			f.during = func() {
				if taken {
					return
				}
				taken = true
				w.r.mu.Lock()
				lease := w.r.lanes["fw-a"].lease
				w.r.mu.Unlock()
				epoch := lease.Epoch
				if err := lease.RaiseEpoch(w.ctx, 0); err != nil {
					w.t.Error(err)
				}
				lease.Epoch = epoch // the lane itself does not know
			}
		})
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		for _, r := range w.runs("fw-a")[n:] {
			if r.State != parry.RunSucceeded || r.Failure != "" {
				t.Errorf("%s is %s, %s: %s", r.Kind, r.State, r.Failure, r.Message)
			}
		}
		if got := w.state("fw-a").Incident; !taken || got.Open() {
			t.Errorf("taken over %v, incident %+v", taken, got)
		}
		if got := w.mails(); len(got) != 0 {
			t.Errorf("mails %v", kinds(got))
		}
	})
}

func TestReconcile_anExemptBlockThatTheStoreCannotEndIsRejected(t *testing.T) {
	simulate(t, []string{"fw-a"}, func(o *Options) {
		o.Exempt = func(p netip.Prefix) (parry.Exemption, bool) { // an address within an address: the store sees no overlap
			return parry.Exemption{ID: "cfg:x", Prefix: pfx("192.0.2.1"), Source: parry.ExemptConfig}, p == pfx("64:ff9b::c000:201")
		}
	}, func(w *world) {
		hidden, plain := w.put("64:ff9b::c000:201"), w.put("203.0.113.7")
		w.becomes(plain, "fw-a", parry.StateEnforced)
		w.becomes(hidden, "fw-a", parry.StateRejected)
	})
}

func TestFacts_areKeptAsTheFirewallLastToldThem(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		f := w.firewall("fw-a")
		says := func(facts *parry.FirewallFacts) parry.Revision {
			f.set(func(f *firewall) { f.facts = facts })
			n := f.count()
			w.must(w.store.SetVerify(w.ctx, "fw-a"))
			w.within(time.Minute, "a verify", func() bool { return f.count() > n && w.state("fw-a").VerifyRev == 0 })
			return w.state("fw-a").FactsRev
		}
		w.idle("fw-a")
		if got := says(nil); got != 0 {
			t.Errorf("a firewall that tells nothing has facts of revision %d", got)
		}
		first := says(&parry.FirewallFacts{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}})
		if first == 0 || says(&parry.FirewallFacts{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}}) != first {
			t.Error("facts are written when they change, and only then")
		}
		f.set(func(f *firewall) { f.fail = parry.FailUnreachable })
		if says(nil) != first {
			t.Error("an unreachable firewall's facts stay")
		}
		f.set(func(f *firewall) { f.fail = "" })
		f.set(func(f *firewall) { f.controller = "c-other" })
		if says(&parry.FirewallFacts{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.7")}}) != first {
			t.Error("the facts of another controller's firewall were taken")
		}
		f.set(func(f *firewall) { f.controller = controller })
		says(nil)
		if facts, err := w.store.Facts(w.ctx); err != nil || len(facts["fw-a"].Addresses) != 0 {
			t.Errorf("a firewall that tells nothing any more still has %+v, %v", facts, err)
		}
	})
}
