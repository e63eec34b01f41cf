package reconcile

import (
	"fmt"
	"slices"
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

// decide says a word on the firewall's open approval.
func (w *world) decide(name string, approve bool) {
	w.t.Helper()
	d := parry.Decision{Approve: approve, By: "anna", Reason: "looked at it"}
	if approve {
		d.Until = time.Now().Add(24 * time.Hour)
	}
	_, err := w.store.Decide(w.ctx, w.state(name).Approval.ID, d)
	w.must(err)
}

// groups makes fw-a a member of these groups alone, by a reload.
func (w *world) groups(names ...string) {
	w.t.Helper()
	w.mu.Lock()
	fleet := *w.fleet
	fleet.Firewalls = slices.Clone(fleet.Firewalls)
	fleet.Firewalls[0].Groups, fleet.Firewalls[0].Digest = names, "of "+strings.Join(names, ",")
	w.fleet = &fleet
	w.mu.Unlock()
	w.must(w.store.SyncFirewalls(w.ctx, fleet.Firewalls))
	w.r.Reload()
}

// fill blocks so many sources of a group's firewalls, and gives the first and the last.
func (w *world) fill(group string, net, n int) (first, last parry.BlockID) {
	w.t.Helper()
	for i := range n {
		last = w.put(fmt.Sprintf("10.%d.%d.%d", net, i>>8, i&255), on(group))
		if first == "" {
			first = last
		}
	}
	return first, last
}

func (w *world) approvals() []parry.Approval {
	w.t.Helper()
	p, err := w.store.Approvals(w.ctx, parry.ApprovalFilter{})
	w.must(err)
	return p.Items
}

// The approval shows what would change, and is for that: what comes and goes by itself meanwhile makes no odds, a larger change is asked for anew.
func TestBrakes_anApprovalIsForTheChangeThatItShows(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.groups("one", "two", "three")
		w.fill("one", 1, 40)
		w.fill("two", 2, 40)
		_, last := w.fill("three", 3, 40)
		w.becomes(last, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		w.groups("two", "three") // 40 of 120 go
		w.within(time.Minute, "it is asked", func() bool { return w.state("fw-a").Approval.State == parry.ApprovalWaiting })
		a := w.approvals()[0]
		if a.Removed != 40 || a.Of != 120 || a.Added != 0 || !a.Known || len(a.First) != 40 || a.First[0] != "- 10.1.0.0 - - - wan" {
			t.Errorf("it shows %+v", a)
		}
		mail := w.mails()[0].Report
		if mail.Approval != a.ID || mail.ChangeN != 40 || len(mail.Change) != 20 || !strings.Contains(mail.Hint, "parry approvals approve "+string(a.ID)) {
			t.Errorf("the mail: %+v", mail)
		}
		short := w.put("198.51.100.1", on("fw-a"), ttl(time.Minute)) // what comes and goes by itself
		time.Sleep(10 * time.Minute)
		w.put("198.51.100.2", on("fw-a"))
		time.Sleep(10 * time.Minute)
		if got := w.state("fw-a").Approval.ID; got != a.ID || len(fw.holds()) != 120 || len(w.approvals()) != 1 {
			t.Errorf("additions and expiries made it %s, was %s; the firewall holds %d", got, a.ID, len(fw.holds()))
		}
		w.groups("three") // another 40
		w.within(time.Minute, "it is asked anew", func() bool { return w.state("fw-a").Approval.ID != a.ID })
		if got := w.approvals(); got[0].Removed != 80 || got[1].State != parry.ApprovalSuperseded {
			t.Errorf("then %+v", got)
		}
		if _, err := w.store.Decide(w.ctx, a.ID, parry.Decision{Approve: true, By: "anna", Until: time.Now().Add(time.Hour)}); parry.KindOf(err) != parry.KindConflict {
			t.Errorf("the first is still to be had: %v", err)
		}
		w.restart(func(o *Options) { o.Registerer = nil })
		time.Sleep(time.Hour)
		if len(w.approvals()) != 2 || len(fw.holds()) != 120 {
			t.Errorf("after a restart there are %d approvals, and the firewall holds %d", len(w.approvals()), len(fw.holds()))
		}
		w.decide("fw-a", true)
		w.within(time.Minute, "it is made", func() bool { return len(fw.holds()) == 41 })
		w.idle("fw-a")
		w.becomes(short, "fw-a", parry.StateLifted)
		if got := w.approvals()[0]; got.State != parry.ApprovalApplied || got.DecidedBy != "anna" || w.state("fw-a").Incident.Open() {
			t.Errorf("then %+v", got)
		}
		if got := kinds(w.mails()); !slices.Equal(got, []parry.NotificationKind{parry.NotifyFailed, parry.NotifyRecovered}) {
			t.Errorf("the second asking and the end are told by %v", got)
		}
	})
}

func TestBrakes_aDeniedChangeIsNotAskedForAgainUntilItIsAnother(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.groups("one", "two", "three")
		w.fill("one", 1, 40)
		w.fill("two", 2, 40)
		_, last := w.fill("three", 3, 40)
		w.becomes(last, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		w.groups("two", "three")
		w.within(time.Minute, "it is asked", func() bool { return w.state("fw-a").Approval.State == parry.ApprovalWaiting })
		w.decide("fw-a", false)
		w.restart(func(o *Options) { o.Registerer = nil })
		w.put("198.51.100.2", on("fw-a"))
		time.Sleep(24 * time.Hour)
		if got := w.state("fw-a").Approval.State; got != parry.ApprovalDenied || len(w.approvals()) != 1 || len(fw.holds()) != 120 {
			t.Errorf("a day later it is %s, one of %d, and the firewall holds %d", got, len(w.approvals()), len(fw.holds()))
		}
		w.groups("three")
		w.within(time.Minute, "a larger one is asked for", func() bool { return w.state("fw-a").Approval.State == parry.ApprovalWaiting })
		w.groups("one", "two", "three") // and now it is gone
		w.within(time.Minute, "all is well", func() bool { return !w.state("fw-a").Incident.Open() })
		if got := w.approvals(); got[0].State != parry.ApprovalGone || got[1].State != parry.ApprovalSuperseded {
			t.Errorf("then %+v", got)
		}
	})
}

func TestBrakes_anApprovalThatIsTooOldIsAskedForAnew(t *testing.T) {
	simulate(t, []string{"fw-a"}, func(o *Options) { o.Bounds.Expire = time.Hour }, func(w *world) {
		w.groups("one")
		_, last := w.fill("one", 1, 40)
		w.becomes(last, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		w.groups()
		w.within(time.Minute, "it is asked", func() bool { return w.state("fw-a").Approval.State == parry.ApprovalWaiting })
		first := w.state("fw-a").Approval.ID
		time.Sleep(time.Hour + time.Minute)
		if got := w.approvals(); len(got) != 2 || got[1].ID != first || got[1].State != parry.ApprovalExpired {
			t.Fatalf("an hour later: %+v", got)
		}
		// Approved, and then the firewall does not answer for longer than that counts.
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) { f.fail = parry.FailUnreachable })
		w.decide("fw-a", true)
		time.Sleep(25 * time.Hour)
		fw.set(func(f *firewall) { f.fail = "" })
		w.within(time.Hour, "it is asked for anew", func() bool { return w.state("fw-a").Approval.State == parry.ApprovalWaiting })
		if got := len(fw.holds()); got != 40 {
			t.Errorf("the firewall holds %d", got)
		}
	})
}

func TestBrakes_additionsAreBoundedWhereThatIsWanted(t *testing.T) {
	simulate(t, []string{"fw-a"}, func(o *Options) { o.Bounds.Add = 50 }, func(w *world) {
		w.becomes(w.put("203.0.113.7"), "fw-a", parry.StateEnforced)
		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{By: "anna", Since: time.Now()}))
		_, last := w.fill("fw-a", 1, 60)
		w.must(w.store.SetHold(w.ctx, "fw-a", parry.Hold{}))
		w.within(time.Minute, "it is asked", func() bool { return w.state("fw-a").Approval.State == parry.ApprovalWaiting })
		if a := w.approvals()[0]; a.Added != 60 || a.First[0] != "+ 10.1.0.0 - - - wan" {
			t.Errorf("it shows %+v", a)
		}
		w.decide("fw-a", true)
		w.becomes(last, "fw-a", parry.StateEnforced)
	})
}

// simulates switches a firewall's simulation by a reload.
func (w *world) simulates(name string, on bool) {
	w.t.Helper()
	w.mu.Lock()
	fleet := *w.fleet
	fleet.Firewalls = slices.Clone(fleet.Firewalls)
	for i := range fleet.Firewalls {
		if fleet.Firewalls[i].Name == name {
			fleet.Firewalls[i].Simulate = on
		}
	}
	w.fleet = &fleet
	w.mu.Unlock()
	w.must(w.store.SyncFirewalls(w.ctx, fleet.Firewalls))
	w.r.Reload()
}

// shown tells whether a check has shown so many entries of a firewall.
func (w *world) shown(name string, entries int) func() bool {
	return func() bool { x := w.state(name).Simulation; return x.RunID != "" && x.Entries == entries }
}

func byRule(a *parry.Admission) { a.Simulate = true }

func TestBrakes_aSimulatedFirewallShowsAndChangesNothing(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		kept := w.put("203.0.113.1")
		w.becomes(kept, "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		w.simulates("fw-a", true)
		id, gone := w.put("203.0.113.2"), w.put("203.0.113.3", ttl(10*time.Minute))
		w.within(2*time.Minute, "a check shows both", w.shown("fw-a", 3))
		if x := w.state("fw-a").Simulation; x.Lines != 2 || x.First[0] != "+ 203.0.113.2 - - - wan" {
			t.Errorf("it shows %+v", x)
		}
		w.restart(func(o *Options) { o.Registerer = nil })
		time.Sleep(2 * time.Hour)
		for id, want := range map[parry.BlockID]parry.State{kept: parry.StateEnforced, id: parry.StateSimulated, gone: parry.StateLifting} {
			if got := w.derived(id, "fw-a"); got != want {
				t.Errorf("%s is %s, want %s", id, got, want)
			}
		}
		if got := fw.holds(); len(got) != 1 || w.status("fw-a").State != LaneSimulated || !w.shown("fw-a", 2)() {
			t.Errorf("holds %q, lane %s, simulation %+v", got, w.status("fw-a").State, w.state("fw-a").Simulation)
		}
		for _, r := range w.runs("fw-a")[2:] {
			if r.Kind != parry.RunCheck && r.StartedAt.After(w.state("fw-a").ProvedAt) {
				t.Errorf("a run of kind %s", r.Kind)
			}
		}
		checks := 0
		for _, r := range w.runs("fw-a") {
			if r.Kind == parry.RunCheck {
				checks++
			}
		}
		if checks > 6 {
			t.Errorf("%d checks for three changes", checks)
		}
		fw.set(func(f *firewall) { f.fail = parry.FailUnreachable })
		w.put("203.0.113.4")
		w.within(5*time.Minute, "that it does not answer is told", func() bool { return w.state("fw-a").Incident.Failure == parry.FailUnreachable })
		fw.set(func(f *firewall) { f.fail = "" })
		w.within(10*time.Minute, "and that it does again", func() bool { return !w.state("fw-a").Incident.Open() })
		w.simulates("fw-a", false)
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.becomes(gone, "fw-a", parry.StateLifted)
	})
}

// The first check of all, when there is nothing to show yet, keeps the first block from being shown no longer than a run takes.
func TestBrakes_aSimulatedFirewallShowsItsFirstBlockAtOnce(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.simulates("fw-a", true)
		w.within(time.Minute, "a check of nothing", w.shown("fw-a", 0))
		w.put("203.0.113.1")
		w.within(20*time.Second, "the first block is shown", w.shown("fw-a", 1))
		w.put("203.0.113.2")
		time.Sleep(20 * time.Second)
		if !w.shown("fw-a", 1)() {
			t.Errorf("the second has not waited: %+v", w.state("fw-a").Simulation)
		}
		w.within(time.Minute, "the second is shown in its turn", w.shown("fw-a", 2))
	})
}

// A rule's blocks are shown by checks of real firewalls, never applied, and become real when somebody else asks for the same.
func TestBrakes_aSimulatedRuleShowsAndChangesNothing(t *testing.T) {
	simulate(t, []string{"fw-a"}, func(o *Options) { o.VerifyEvery = 24 * time.Hour }, func(w *world) {
		w.becomes(w.put("203.0.113.1"), "fw-a", parry.StateEnforced)
		w.idle("fw-a")
		fw := w.firewall("fw-a")
		id := w.put("203.0.113.2", byRule)
		w.within(2*time.Minute, "a check shows it", func() bool { return w.state("fw-a").Simulation.Entries == 2 })
		if x := w.state("fw-a").Simulation; x.Added != 1 || x.First[0] != "+ 203.0.113.2 - - - wan" {
			t.Errorf("it shows %+v", x)
		}
		w.becomes(w.put("203.0.113.3"), "fw-a", parry.StateEnforced) // a run for another
		w.restart(func(o *Options) { o.Registerer, o.VerifyEvery = nil, 24*time.Hour })
		time.Sleep(time.Hour)
		if got := w.derived(id, "fw-a"); got != parry.StateSimulated || slices.Contains(fw.holds(), "203.0.113.2 - - - wan") {
			t.Errorf("the block is %s, the firewall holds %q", got, fw.holds())
		}
		if s := w.status("fw-a"); s.Blocks != 2 || s.Pending != 0 || s.State != LaneIdle {
			t.Errorf("the lane counts it: %+v", s)
		}
		fw.set(func(f *firewall) { f.fail = parry.FailTask })
		w.put("203.0.113.4", byRule)
		time.Sleep(5 * time.Minute)
		if st := w.state("fw-a"); st.Incident.Open() || len(w.mails()) != 0 {
			t.Errorf("a check that fails is no failure of what is in force: %+v", st.Incident)
		}
		fw.set(func(f *firewall) { f.fail = "" })
		if got := w.put("203.0.113.2"); got != id {
			t.Errorf("a real request makes %s, not %s", got, id)
		}
		w.becomes(id, "fw-a", parry.StateEnforced)
	})
}
