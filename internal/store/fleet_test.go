package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

func firewallsComeAndGo(e *env) {
	e.sync("fw1@a", "fw2@a")
	f := e.firewall("fw1")
	same(e, "listed", f.Listed, true)
	same(e, "applied", f.AppliedRev, 0)
	dirty := f.DirtyRev
	e.sync("fw1@a", "fw2@b")
	same(e, "same digest", e.firewall("fw1").DirtyRev, dirty)
	if e.firewall("fw2").DirtyRev <= dirty {
		e.Fatal("a changed digest must make dirty")
	}
	e.ok(e.SetRetiring(e.Context(), "fw1"))
	e.sync("fw2@b")
	same(e, "unlisted", e.firewall("fw1").Listed, false)
	same(e, "retiring", e.firewall("fw1").Retiring, true)
	before := e.firewall("fw1").DirtyRev
	e.sync("fw1@a", "fw2@b")
	same(e, "back", e.firewall("fw1").Listed, true)
	same(e, "no longer retiring", e.firewall("fw1").Retiring, false)
	if e.firewall("fw1").DirtyRev <= before {
		e.Fatal("one that comes back must be dirty")
	}
	all, err := e.Firewalls(e.Context())
	e.ok(err)
	same(e, "all", len(all), 2)
	e.sync()
	same(e, "none listed", e.firewall("fw2").Listed, false)
	_, err = e.FirewallState(e.Context(), "fw9")
	e.wantKind(err, parry.KindNotFound)
	e.wantKind(e.MarkDirty(e.Context(), "fw9"), parry.KindNotFound)
}

func holdsOfOneAndAll(e *env) {
	e.sync("fw1@a", "fw2@a")
	now := e.clock.Now()
	all := parry.Hold{Kind: parry.HoldWord, By: "anna", Reason: "all", Since: now}
	own := parry.Hold{Kind: parry.HoldWord, By: "bob", Reason: "own", Since: now}
	hold := func(name string, h parry.Hold) { e.Helper(); e.ok(e.SetHold(e.Context(), name, h)) }
	hold("", all)
	hold("fw1", own)
	same(e, "own first", e.firewall("fw1").Hold, own)
	same(e, "all", e.firewall("fw2").Hold, all)
	hold("", parry.Hold{})
	same(e, "own stays", e.firewall("fw1").Hold, own)
	same(e, "released", e.firewall("fw2").Hold.Held(), false)
	hold("fw1", parry.Hold{})
	same(e, "own released", e.firewall("fw1").Hold.Held(), false)
	e.wantKind(e.SetHold(e.Context(), "fw9", own), parry.KindNotFound)
}

func holdsEndByThemselves(e *env) {
	e.sync("fw1@a", "fw2@a")
	now := e.clock.Now()
	short := parry.Hold{Kind: parry.HoldWord, By: "bob", Since: now, Until: now.Add(time.Hour)}
	long := parry.Hold{Kind: parry.HoldWord, By: "anna", Since: now, Until: now.Add(2 * time.Hour)}
	next := func() time.Time {
		e.Helper()
		at, err := e.NextHoldEnd(e.Context())
		e.ok(err)
		return at
	}
	same(e, "none ends", next().IsZero(), true)
	e.ok(e.SetHold(e.Context(), "fw1", short))
	e.ok(e.SetHold(e.Context(), "", long))
	same(e, "the one that lasts longer is told", e.firewall("fw1").Hold, long)
	same(e, "the next end", next(), short.Until)
	ended, err := e.EndHolds(e.Context(), e.clock.Advance(59*time.Minute))
	e.ok(err)
	same(e, "none is over", len(ended), 0)
	ended, err = e.EndHolds(e.Context(), e.clock.Advance(time.Minute))
	e.ok(err)
	same(e, "one is over", fmt.Sprint(ended), "[fw1]")
	same(e, "the other goes on", e.firewall("fw1").Hold, long)
	ended, err = e.EndHolds(e.Context(), e.clock.Advance(time.Hour))
	e.ok(err)
	same(e, "that of all", fmt.Sprintf("%q", ended), `[""]`)
	same(e, "released", e.firewall("fw1").Hold.Held() || e.firewall("fw2").Hold.Held(), false)
}

func panicEmptiesAndHolds(e *env) {
	e.opts.Subscriptions = parry.Subscriptions{{Channel: "mail", Kinds: []parry.NotificationKind{parry.NotifyPanic}}}
	e.ok(e.Close())
	e.open()
	e.sync("fw1@a", "fw2@a")
	l := e.lane("fw1")
	before := e.put(e.ask("203.0.113.1")).Block
	apply := func(f parry.FinishRun) {
		e.Helper()
		f.Run = e.run(l)
		rev, err := e.Revision(e.Context())
		e.ok(err)
		f.Run.Revision, f.Run.State = rev, parry.RunSucceeded
		e.ok(e.BeginRun(e.Context(), f.Run))
		e.ok(e.FinishRun(e.Context(), f))
	}
	state := func(b parry.Block) parry.State {
		e.Helper()
		b, fw := e.block(b.ID), e.firewall("fw1")
		return parry.Derive(&b, &fw, false)
	}
	apply(parry.FinishRun{Applied: true})
	same(e, "in force", state(before), parry.StateEnforced)
	e.ok(e.SetHold(e.Context(), "fw1", parry.Hold{By: "bob", Since: e.clock.Now()}))
	h := parry.Hold{Kind: parry.HoldPanic, By: "anna", Reason: "our own customers", Since: e.clock.Now()}
	e.wantKind(e.Panic(e.Context(), []string{"fw1", "fw9"}, h), parry.KindNotFound)
	e.ok(e.Panic(e.Context(), []string{"fw1"}, h))
	same(e, "panic outranks a hold", e.firewall("fw1").Hold, h)
	same(e, "one that is not named", e.firewall("fw2").PanicRev, 0)
	after := e.put(e.ask("203.0.113.2")).Block
	same(e, "may still be loaded", state(before), parry.StateLifting)
	same(e, "accepted and held", state(after), parry.StateHeld)
	apply(parry.FinishRun{Emptied: true})
	fw := e.firewall("fw1")
	same(e, "emptied", fw.Emptied(), true)
	same(e, "held", state(before), parry.StateHeld)
	_, _, err := e.EndBlock(e.Context(), before.ID, lifted("anna"))
	e.ok(err)
	same(e, "what ends is lifted already", state(before), parry.StateLifted)
	e.clock.Advance(time.Second)
	e.ok(e.Panic(e.Context(), nil, h))
	fw = e.firewall("fw1")
	same(e, "to be proved again", fw.Emptied(), false)
	e.clock.Advance(time.Second)
	e.ok(e.EndPanic(e.Context(), nil, "bob"))
	same(e, "the hold is still there", e.firewall("fw1").Hold.Kind, parry.HoldWord)
	e.ok(e.SetHold(e.Context(), "fw1", parry.Hold{}))
	same(e, "comes back", state(after), parry.StatePending)
	e.wantKind(e.EndPanic(e.Context(), nil, "bob"), parry.KindConflict)
	ds, err := e.NextDeliveries(e.Context(), "mail", 10, true)
	e.ok(err)
	same(e, "told: two calls and an end", len(ds), 3)
	same(e, "of whom", ds[0].Firewall+" "+ds[0].Report.By+" "+ds[0].Report.Message, "fw1 anna our own customers")
	same(e, "of all", ds[1].Firewall, "all firewalls")
	same(e, "over", ds[2].Report.Until.IsZero(), false)
	same(e, "threaded", ds[2].Incident == ds[0].ID || ds[2].Incident == ds[1].ID, true)
}

func panicOfAllEndsForSome(e *env) {
	e.sync("fw1@a", "fw2@a")
	e.ok(e.Panic(e.Context(), nil, parry.Hold{By: "anna", Since: e.clock.Now()}))
	e.sync("fw1@a", "fw2@a", "fw3@a")
	same(e, "one that is listed later", e.firewall("fw3").PanicRev > 0, true)
	e.ok(e.EndPanic(e.Context(), []string{"fw2"}, "anna"))
	same(e, "over", e.firewall("fw2").PanicRev, 0)
	same(e, "the others stay", e.firewall("fw1").PanicRev > 0 && e.firewall("fw3").PanicRev > 0, true)
	e.wantKind(e.EndPanic(e.Context(), []string{"fw2"}, "anna"), parry.KindConflict)
	e.ok(e.EndPanic(e.Context(), nil, "anna"))
	same(e, "all over", e.firewall("fw1").PanicRev+e.firewall("fw3").PanicRev, 0)
}

func approvalsAreAskedDecidedAndUsed(e *env) {
	e.sync("fw1@a", "fw2@a")
	l := e.lane("fw1")
	r := e.run(l)
	ask := func(d ...string) parry.Approval {
		e.Helper()
		now := e.clock.Advance(time.Second)
		a := parry.Approval{ID: parry.NewApprovalID(now), Firewall: "fw1", State: parry.ApprovalWaiting, Why: "3 of 3 entries", Revision: 7, CreatedAt: now,
			ExpiresAt: now.Add(time.Hour), Of: 3, Removed: 2, Ended: 1, Added: 1, Known: true, First: d}
		e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r, Approval: &a, ApprovalDiff: d}))
		return a
	}
	get := func(id parry.ApprovalID) parry.Approval {
		e.Helper()
		a, err := e.Approval(e.Context(), id)
		e.ok(err)
		return a
	}
	first := ask("- 203.0.113.1 - - - wan", "+ 203.0.113.2 - - - wan")
	if d := cmp.Diff(first, get(first.ID)); d != "" {
		e.Fatal(d)
	}
	diff, err := e.ApprovalDiff(e.Context(), first.ID)
	e.ok(err)
	same(e, "the diff", strings.Join(diff, "|"), "- 203.0.113.1 - - - wan|+ 203.0.113.2 - - - wan")
	same(e, "told with the firewall", e.firewall("fw1").Approval, parry.OpenApproval{ID: first.ID, State: parry.ApprovalWaiting, ExpiresAt: first.ExpiresAt})
	same(e, "not with another", e.firewall("fw2").Approval.ID, "")
	_, err = e.Decide(e.Context(), first.ID, parry.Decision{By: "anna", Reason: "no"})
	e.ok(err)
	denied := get(first.ID)
	same(e, "denied", denied.State, parry.ApprovalDenied)
	same(e, "by whom and why", denied.DecidedBy+": "+denied.Reason, "anna: no")
	second := ask()
	same(e, "superseded", get(first.ID).State, parry.ApprovalSuperseded)
	_, err = e.Decide(e.Context(), first.ID, parry.Decision{Approve: true, By: "anna"})
	e.wantKind(err, parry.KindConflict)
	_, err = e.Decide(e.Context(), "a-none", parry.Decision{Approve: true, By: "anna"})
	e.wantKind(err, parry.KindNotFound)
	e.clock.Advance(2 * time.Hour)
	third := ask()
	same(e, "expired", get(second.ID).State, parry.ApprovalExpired)
	_, err = e.Decide(e.Context(), third.ID, parry.Decision{Approve: true, By: "anna", Until: e.clock.Now().Add(time.Hour)})
	e.ok(err)
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r})) // a run that fails uses nothing up
	same(e, "approved", e.firewall("fw1").Approval.State, parry.ApprovalApproved)
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r, Applied: true, ApprovalUsed: third.ID, ApprovalGone: true}))
	same(e, "applied", get(third.ID).State, parry.ApprovalApplied)
	fourth := ask()
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r, Applied: true, ApprovalGone: true}))
	same(e, "gone", get(fourth.ID).State, parry.ApprovalGone)
	same(e, "none is open", e.firewall("fw1").Approval.ID, "")
	all, err := e.Approvals(e.Context(), parry.ApprovalFilter{Firewall: "fw1"})
	e.ok(err)
	same(e, "all, newest first", len(all.Items) == 4 && all.Items[0].ID == fourth.ID, true)
	open, err := e.Approvals(e.Context(), parry.ApprovalFilter{Open: true})
	e.ok(err)
	same(e, "open", len(open.Items), 0)
	last := ask()
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r, Applied: true, Retired: true}))
	same(e, "gone with its firewall", get(last.ID).State, parry.ApprovalGone)
	e.clock.Advance(48 * time.Hour)
	pruned, err := e.Prune(e.Context(), parry.Retention{Runs: 24 * time.Hour})
	e.ok(err)
	same(e, "pruned", pruned.Approvals, 5)
}

func simulatedBlocksAreEvidenceUntilARealOneIsAskedFor(e *env) {
	e.sync("fw1@a~")
	same(e, "simulated by the configuration", e.firewall("fw1").Simulate, true)
	dirty := e.firewall("fw1").DirtyRev
	e.sync("fw1@a")
	same(e, "switched off", e.firewall("fw1").Simulate, false)
	same(e, "nothing is dirty for it", e.firewall("fw1").DirtyRev, dirty)

	ladder := &parry.Ladder{Rungs: []time.Duration{time.Minute, time.Minute}}
	ask := func(simulate bool, change ...func(*parry.Admission)) parry.Admitted {
		e.Helper()
		a := e.askFor(at("203.0.113.7"), time.Hour)
		if a.Simulate = simulate; !simulate {
			a.Ladder = ladder
		}
		for _, c := range change {
			c(&a)
		}
		return e.put(a)
	}
	made := ask(true)
	same(e, "made", made.Created && made.Block.Simulated && made.Block.Offence == 0, true)
	again := ask(true)
	same(e, "refreshed", again.Block.ID == made.Block.ID && again.Block.Count == 2, true)
	real := ask(false, func(a *parry.Admission) { a.MaxBlocks = 1 })
	same(e, "the same block", real.Block.ID, made.Block.ID)
	same(e, "is real, with its evidence", !real.Block.Simulated && real.Block.Count == 3 && real.Block.Offence == 1, true)
	same(e, "its content has changed", real.Block.Rev > made.Block.Rev, true)
	same(e, "as it is stored", e.block(real.Block.ID), real.Block)
	end := real.Block.ExpiresAt
	e.clock.Advance(30 * time.Minute)
	shadow := ask(true)
	same(e, "a simulated rule is evidence of it and refreshes it not", shadow.Block.Count == 4 && shadow.Block.ExpiresAt.Equal(end) && !shadow.Block.Simulated, true)
	_, covered, err := e.EndBlock(e.Context(), e.put(e.ask("203.0.113.0/24")).Block.ID, lifted("anna"))
	e.ok(err)
	same(e, "nothing covers it", len(covered), 0)
	_, _, err = e.EndBlock(e.Context(), real.Block.ID, lifted("anna"))
	e.ok(err)
	e.clock.Advance(time.Second)
	ask(true)
	tcp := at("203.0.113.7")
	tcp.Protocol = parry.ProtoTCP
	_, covered, err = e.EndBlock(e.Context(), e.put(e.askFor(tcp, time.Hour)).Block.ID, lifted("anna"))
	e.ok(err)
	same(e, "a simulated one covers nothing", len(covered), 0)
}

func wordsAreUsedUp(e *env) {
	e.sync("fw1@a")
	l := e.lane("fw1")
	e.ok(e.SetAdopt(e.Context(), "fw1"))
	same(e, "adopt", e.firewall("fw1").Adopt, true)
	r := e.run(l)
	e.ok(e.BeginRun(e.Context(), r))
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r}))
	same(e, "kept", e.firewall("fw1").Adopt, true)
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r, ClearWords: true}))
	same(e, "adopt used", e.firewall("fw1").Adopt, false)
	dirty := e.firewall("fw1").DirtyRev
	e.ok(e.SetVerify(e.Context(), "fw1"))
	first := e.firewall("fw1").VerifyRev
	same(e, "asked to be read", first > 0, true)
	same(e, "not dirty for it", e.firewall("fw1").DirtyRev, dirty)
	e.ok(e.SetVerify(e.Context(), "fw1"))
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r, VerifyUsed: first}))
	same(e, "a newer word stays", e.firewall("fw1").VerifyRev > first, true)
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r, VerifyUsed: e.firewall("fw1").VerifyRev}))
	same(e, "read", e.firewall("fw1").VerifyRev, 0)
	e.wantKind(e.SetVerify(e.Context(), "fw9"), parry.KindNotFound)
}

func rejectsAreReplaced(e *env) {
	e.sync("fw1@a", "fw2@a")
	l := e.lane("fw1")
	a, b := e.put(e.ask("203.0.113.1")).Block, e.put(e.ask("203.0.113.2")).Block
	r := e.run(l)
	reject := func(id parry.BlockID) parry.Reject {
		return parry.Reject{Firewall: "fw1", BlockID: id, Code: "capacity", RunID: r.ID, At: e.clock.Now()}
	}
	finish := func(f parry.FinishRun) { e.Helper(); f.Run = r; e.ok(e.FinishRun(e.Context(), f)) }
	finish(parry.FinishRun{Applied: true, SetRejects: true, Rejects: []parry.Reject{reject(a.ID), reject(b.ID), reject("b-gone")}})
	got, err := e.FirewallRejects(e.Context(), "fw1")
	e.ok(err)
	want := []parry.Reject{reject(a.ID), reject(b.ID)}
	slices.SortFunc(want, func(x, y parry.Reject) int { return cmpID(x.BlockID, y.BlockID) })
	if d := cmp.Diff(want, got); d != "" {
		e.Fatal(d)
	}
	finish(parry.FinishRun{})
	got, err = e.Rejects(e.Context(), []parry.BlockID{a.ID, "b-none"})
	e.ok(err)
	if d := cmp.Diff([]parry.Reject{reject(a.ID)}, got); d != "" {
		e.Fatal("they stay without SetRejects:", d)
	}
	finish(parry.FinishRun{SetRejects: true})
	got, err = e.FirewallRejects(e.Context(), "fw1")
	e.ok(err)
	same(e, "left", len(got), 0)
}

func factsAreKeptWhenTheyChange(e *env) {
	e.sync("fw1@a", "fw2@a")
	l := e.lane("fw1")
	say := func(f *parry.FirewallFacts) parry.Revision {
		e.Helper()
		e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: e.run(l), Facts: f}))
		return e.firewall("fw1").FactsRev
	}
	a := func(all ...string) (out []netip.Addr) {
		for _, s := range all {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	same(e, "nothing was said", say(nil), 0)
	facts := parry.FirewallFacts{
		Addresses: a("198.51.100.1", "10.0.0.1", "10.0.0.1"), Gateways: a("2001:db8::1"),
		Forwards: []parry.PortForward{{Destination: a("198.51.100.1")[0], Protocol: parry.ProtoTCP, Port: 443, PortEnd: 443, To: a("10.0.0.5")[0], ToPort: 8443}},
	}
	first := say(&facts)
	same(e, "said", first > 0, true)
	same(e, "nothing new", say(nil), first)
	facts.Addresses = a("10.0.0.1", "198.51.100.1")
	same(e, "the same in another order", say(&facts), first)
	all, err := e.Facts(e.Context())
	e.ok(err)
	if d := cmp.Diff(map[string]parry.FirewallFacts{"fw1": facts}, all, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); d != "" {
		e.Fatal(d)
	}
	facts.Resolvers = a("198.51.100.53")
	second := say(&facts)
	same(e, "changed", second > first, true)
	same(e, "it says nothing any more", say(&parry.FirewallFacts{}) > second, true)
	say(&facts)
	e.sync("fw2@a")
	all, err = e.Facts(e.Context())
	e.ok(err)
	same(e, "one that is not listed keeps them", len(all), 1)
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: e.run(l), Retired: true}))
	all, err = e.Facts(e.Context())
	e.ok(err)
	same(e, "one that was retired does not", len(all), 0)
}

func cmpID(a, b parry.BlockID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func runsBeginAndFinish(e *env) {
	e.sync("fw1@a", "fw2@a")
	e.wantKind(e.BeginRun(e.Context(), parry.Run{ID: "r-1", Firewall: "fw9"}), parry.KindNotFound)
	l := e.lane("fw1")
	b := e.put(e.ask("203.0.113.1")).Block
	r := e.run(l)
	e.ok(e.BeginRun(e.Context(), r))
	got, err := e.Store.Run(e.Context(), r.ID)
	e.ok(err)
	if d := cmp.Diff(r, got); d != "" {
		e.Fatal(d)
	}
	r.State, r.EndedAt, r.Sent, r.Rejected = parry.RunSucceeded, e.clock.Advance(time.Second), 5, 1
	r.Want = parry.Proof{SHA256: "ff", Count: 4}
	r.Got = parry.Proof{SHA256: "ff", Count: 4, Added: 2, Epoch: l.Epoch, Controller: "c", RunID: string(r.ID)}
	r.Message = "hostile \x00 \xff {{ x }}"
	inc := parry.Incident{ID: "n-1", Since: e.clock.Now(), Failure: parry.FailTimeout, Message: "slow", Attempts: 2, NextTry: e.clock.Now().Add(time.Minute)}
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r, Applied: true, Incident: inc,
		Notifications: []parry.Notification{{ID: "n-1", Kind: parry.NotifyFailed, Firewall: "fw1", Channels: []string{"mail"}, CreatedAt: e.clock.Now()}}}))
	got, err = e.Store.Run(e.Context(), r.ID)
	e.ok(err)
	if d := cmp.Diff(r, got); d != "" {
		e.Fatal(d)
	}
	f := e.firewall("fw1")
	same(e, "applied", f.AppliedRev, r.Revision)
	same(e, "proof", f.Proof, r.Got)
	same(e, "proved", f.ProvedAt, r.EndedAt)
	same(e, "last run", f.LastRun, r.ID)
	same(e, "incident", f.Incident, inc)
	same(e, "state", parry.Derive(&b, &f, false), parry.StateEnforced)
	ds, err := e.NextDeliveries(e.Context(), "mail", 10, true)
	e.ok(err)
	same(e, "notifications", len(ds), 1)
	r2 := e.run(l)
	r2.Revision = r.Revision - 1 // a run that read before the last one: revisions never go back
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r2, Applied: true, Dirty: true}))
	f = e.firewall("fw1")
	same(e, "applied stays", f.AppliedRev, r.Revision)
	same(e, "incident closed", f.Incident.Open(), false)
	if f.DirtyRev <= f.AppliedRev {
		e.Fatal("a drift must make dirty")
	}
	p, err := e.Runs(e.Context(), parry.RunFilter{Firewall: "fw1", Limit: 1})
	e.ok(err)
	same(e, "newest first", len(p.Items) == 1 && p.Next != "", true)
	p, err = e.Runs(e.Context(), parry.RunFilter{State: parry.RunSucceeded})
	e.ok(err)
	same(e, "succeeded", len(p.Items), 1)
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: e.run(l), Applied: true, Retired: true}))
	_, err = e.FirewallState(e.Context(), "fw1")
	e.wantKind(err, parry.KindNotFound)
	_, err = e.Store.Run(e.Context(), "r-none")
	e.wantKind(err, parry.KindNotFound)
}

func sentIsWhatARunMayHaveBrought(e *env) {
	e.sync("fw1@a")
	l := e.lane("fw1")
	want := e.firewall("fw1").SentRev // of a firewall that is new here: it may know revisions from before it was retired
	if want == 0 {
		e.Fatal("a new firewall starts at 0")
	}
	end := func(what string, counts bool, change func(*parry.Run)) {
		e.Helper()
		e.put(e.ask("203.0.113.1"))
		r := e.run(l)
		e.ok(e.BeginRun(e.Context(), r))
		same(e, "while it runs: "+what, e.firewall("fw1").SentRev, want)
		if change(&r); counts {
			want = r.Revision
		}
		e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r}))
		same(e, what, e.firewall("fw1").SentRev, want)
	}
	end("done", true, func(r *parry.Run) { r.State = parry.RunSucceeded })
	end("proof does not match", true, func(r *parry.Run) { r.State, r.Failure = parry.RunFailed, parry.FailProof })
	end("timed out", true, func(r *parry.Run) { r.State, r.Failure = parry.RunUnknown, parry.FailTimeout })
	end("connection lost on the way", true, func(r *parry.Run) { r.State, r.Failure = parry.RunUnknown, parry.FailUnreachable })
	end("no connection", false, func(r *parry.Run) { r.State, r.Failure = parry.RunFailed, parry.FailUnreachable })
	end("turned away", false, func(r *parry.Run) { r.State, r.Failure = parry.RunFailed, parry.FailStaleRevision })
	end("read only", false, func(r *parry.Run) { r.State, r.Kind = parry.RunSucceeded, parry.RunVerify })

	e.put(e.ask("203.0.113.2"))
	killed, late := e.run(l), e.run(l)
	e.ok(e.BeginRun(e.Context(), killed))
	e.ok(e.AbandonRuns(e.Context(), "fw1"))
	same(e, "killed", e.firewall("fw1").SentRev, killed.Revision)
	late.Revision, late.State = killed.Revision+1, parry.RunSucceeded
	e.ok(l.RaiseEpoch(e.Context(), l.Epoch))
	if err := e.FinishRun(e.Context(), parry.FinishRun{Run: late}); !errors.Is(err, store.ErrLaneLost) {
		e.Fatal("late:", err)
	}
	same(e, "of a lane that was taken over", e.firewall("fw1").SentRev, late.Revision)
}

func runsOfADeadControllerAreAbandoned(e *env) {
	e.sync("fw1@a", "fw2@a")
	l1, l2 := e.lane("fw1"), e.lane("fw2")
	mine, other := e.run(l1), e.run(l2)
	e.ok(e.BeginRun(e.Context(), mine))
	e.ok(e.BeginRun(e.Context(), other))
	e.ok(e.AbandonRuns(e.Context(), "fw1"))
	r, err := e.Store.Run(e.Context(), mine.ID)
	e.ok(err)
	same(e, "state", r.State, parry.RunUnknown)
	same(e, "ended", r.EndedAt, e.clock.Now())
	r, err = e.Store.Run(e.Context(), other.ID)
	e.ok(err)
	same(e, "another's", r.State, parry.RunRunning)
}

func lanesExclude(e *env) {
	_, err := e.AcquireLane(e.Context(), "fw1")
	e.wantKind(err, parry.KindNotFound)
	e.sync("fw1@a", "fw2@a")
	l := e.lane("fw1")
	first := l.Epoch
	e.lane("fw2")
	if _, err := e.AcquireLane(e.Context(), "fw1"); !errors.Is(err, store.ErrLaneTaken) {
		e.Fatalf("got %v, want ErrLaneTaken", err)
	}
	if e.postgres() {
		if _, err := e.replica().AcquireLane(e.Context(), "fw1"); !errors.Is(err, store.ErrLaneTaken) {
			e.Fatalf("got %v, want ErrLaneTaken", err)
		}
	}
	e.ok(l.Release(e.Context()))
	<-l.Lost()
	same(e, "epoch grows", e.lane("fw1").Epoch, first+1)
}

func laneEpochsFence(e *env) {
	e.sync("fw1@a")
	l := e.lane("fw1")
	e.ok(l.RaiseEpoch(e.Context(), 41))
	same(e, "epoch", l.Epoch, 42)
	e.ok(l.RaiseEpoch(e.Context(), 7))
	same(e, "epoch", l.Epoch, 43)
	old := e.run(l)
	e.ok(e.BeginRun(e.Context(), old))
	e.ok(l.Release(e.Context()))
	e.lane("fw1")
	err := e.FinishRun(e.Context(), parry.FinishRun{Run: old, Applied: true, Incident: parry.Incident{Since: e.clock.Now()},
		Notifications: []parry.Notification{{ID: "n-1", Kind: parry.NotifyFailed, Firewall: "fw1", CreatedAt: e.clock.Now(), Channels: []string{"mail"}}}})
	if !errors.Is(err, store.ErrLaneLost) {
		e.Fatalf("got %v, want ErrLaneLost", err)
	}
	told, err := e.NextDeliveries(e.Context(), "mail", 10, true)
	e.ok(err)
	same(e, "told of an incident that is not kept", len(told), 0)
	f := e.firewall("fw1")
	same(e, "applied", f.AppliedRev, 0)
	same(e, "incident", f.Incident.Open(), false)
	if err := e.BeginRun(e.Context(), old); !errors.Is(err, store.ErrLaneLost) {
		e.Fatalf("got %v, want ErrLaneLost", err)
	}
	if err := l.RaiseEpoch(e.Context(), 0); !errors.Is(err, store.ErrLaneLost) {
		e.Fatalf("got %v, want ErrLaneLost", err)
	}
}

func outboxDeliversAtLeastOnce(e *env) {
	now := e.clock.Now()
	n := func(id parry.NotificationID) parry.Notification {
		return parry.Notification{ID: id, Kind: parry.NotifyFailed, Firewall: "fw1", CreatedAt: now, Channels: []string{"mail", "webhook"},
			Report: parry.Report{Firewall: "fw1", Message: "a <b> {{ x }} \x00", Since: now, WaitingN: 3}}
	}
	e.ok(e.Enqueue(e.Context(), []parry.Notification{n("n-1"), n("n-2")}))
	e.ok(e.Enqueue(e.Context(), []parry.Notification{n("n-1")}))
	next := func(channel string) (ids []parry.NotificationID) {
		e.Helper()
		ds, err := e.NextDeliveries(e.Context(), channel, 10, true)
		e.ok(err)
		for _, d := range ds {
			want := n(d.ID)
			want.Channels = []string{channel}
			if diff := cmp.Diff(want, d.Notification); diff != "" {
				e.Fatal(diff)
			}
			ids = append(ids, d.ID)
		}
		return ids
	}
	want := func(what string, got []parry.NotificationID, want ...parry.NotificationID) {
		e.Helper()
		if !slices.Equal(got, want) {
			e.Fatalf("%s: got %v, want %v", what, got, want)
		}
	}
	want("both", next("mail"), "n-1", "n-2")
	want("in hand", next("mail"))
	if !e.postgres() { // there another replica may have it in hand; its lease runs out
		e.ok(e.Close())
		e.open()
		want("the one writer died and is back", next("mail"), "n-1", "n-2")
	}
	want("another channel", next("webhook"), "n-1", "n-2")
	e.ok(e.Delivered(e.Context(), "n-1", "mail"))
	e.ok(e.DeliveryFailed(e.Context(), "n-2", "mail", "451 later", e.clock.Now().Add(10*time.Minute)))
	st, err := e.ChannelStates(e.Context())
	e.ok(err)
	if d := cmp.Diff([]parry.ChannelState{
		{Channel: "mail", Waiting: 1, Failing: 1, Oldest: now, DeliveredAt: now, FailedAt: now, LastError: "451 later"},
		{Channel: "webhook", Waiting: 2, Oldest: now}}, st); d != "" {
		e.Fatal(d)
	}
	e.clock.Advance(5 * time.Minute)
	want("not before its time", next("mail"))
	want("the worker died", next("webhook"), "n-1", "n-2")
	e.ok(e.RetryDeliveries(e.Context(), "mail"))
	want("again, at a word", next("mail"), "n-2")
	e.clock.Advance(5 * time.Minute)
	want("again", next("mail"), "n-2")
	e.ok(e.Delivered(e.Context(), "n-2", "mail"))
	e.clock.Advance(time.Hour)
	want("done", next("mail"))
	c, err := e.Counts(e.Context())
	e.ok(err)
	same(e, "undelivered", c.Undelivered, 2)
	same(e, "oldest", c.OldestUnsent, now)
	e.wantKind(e.Delivered(e.Context(), "n-9", "mail"), parry.KindNotFound)
}

func tokensComeAndGo(e *env) {
	now := e.clock.Now()
	k := parry.Token{ID: parry.NewTokenID(now), Name: "ossim", Role: parry.RoleTrigger, Hash: [32]byte{1, 2, 3}, CreatedBy: "root", CreatedAt: now,
		ExpiresAt: now.Add(time.Hour), Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		Firewalls: []string{"edge", "fw1"}, MaxTTL: time.Hour, Rate: 60}
	e.ok(e.CreateToken(e.Context(), k))
	got, err := e.TokenByID(e.Context(), k.ID)
	e.ok(err)
	if d := cmp.Diff(k, got, byAddr); d != "" {
		e.Fatal(d)
	}
	same := k
	same.ID = "t-other"
	e.wantKind(e.CreateToken(e.Context(), same), parry.KindConflict)
	e.ok(e.TouchToken(e.Context(), k.ID, now.Add(90*time.Second)))
	e.ok(e.TouchToken(e.Context(), k.ID, now.Add(100*time.Second)))
	e.ok(e.RevokeToken(e.Context(), k.ID, "root"))
	e.ok(e.RevokeToken(e.Context(), k.ID, "root"))
	k.LastUsed, k.RevokedAt = now.Add(time.Minute), now
	e.ok(e.CreateToken(e.Context(), same))
	all, err := e.Tokens(e.Context())
	e.ok(err)
	if d := cmp.Diff([]parry.Token{k, same}, all, byAddr); d != "" {
		e.Fatal(d)
	}
	_, err = e.TokenByID(e.Context(), "t-none")
	e.wantKind(err, parry.KindNotFound)
	e.wantKind(e.RevokeToken(e.Context(), "t-none", "root"), parry.KindNotFound)
}

func pruneKeepsWhatIsNeeded(e *env) {
	e.sync("fw1@a")
	l := e.lane("fw1")
	old := e.put(e.keyed(e.ask("203.0.113.1"), "k1", "b")).Block
	_, _, err := e.EndBlock(e.Context(), old.ID, lifted("anna"))
	e.ok(err)
	live := e.put(e.askFor(at("203.0.113.2"), 1000*time.Hour)).Block
	r1 := e.run(l)
	r1.State = parry.RunSucceeded
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r1, Notifications: []parry.Notification{
		{ID: "n-1", CreatedAt: e.clock.Now(), Channels: []string{"mail"}}, {ID: "n-2", CreatedAt: e.clock.Now(), Channels: []string{"mail"}}}}))
	e.ok(e.Delivered(e.Context(), "n-1", "mail"))
	e.clock.Advance(100 * time.Hour)
	keep := parry.Retention{EndedBlocks: 48 * time.Hour, Runs: 48 * time.Hour, RunCount: 1, Idempotency: 48 * time.Hour, Outbox: 48 * time.Hour}
	prune := func() parry.Pruned {
		e.Helper()
		p, err := e.Prune(e.Context(), keep)
		e.ok(err)
		return p
	}
	same(e, "not lifted yet", prune(), parry.Pruned{Runs: 1, Keys: 1, Notifications: 1})
	e.block(old.ID)
	var last parry.Run
	for range 3 {
		e.clock.Advance(time.Second)
		last = e.run(l)
		last.State = parry.RunSucceeded
		e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: last, Applied: true}))
	}
	same(e, "lifted", prune(), parry.Pruned{Blocks: 1, Runs: 2})
	_, err = e.Block(e.Context(), old.ID)
	e.wantKind(err, parry.KindNotFound)
	e.block(live.ID)
	_, err = e.Store.Run(e.Context(), last.ID)
	e.ok(err)
	c, err := e.Counts(e.Context())
	e.ok(err)
	same(e, "counts", [3]int64{c.LiveBlocks, c.EndedBlocks, c.Undelivered}, [3]int64{1, 0, 1})
	same(e, "the key is free again", e.put(e.keyed(e.ask("203.0.113.1"), "k1", "other")).Created, true)
}

func runsCountForWhatTheyWereSentFor(e *env) {
	e.sync("fw1@a")
	l := e.lane("fw1")
	finish := func(digest string) parry.FirewallState {
		e.Helper()
		e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: e.run(l), Applied: true, Digest: digest}))
		return e.firewall("fw1")
	}
	f := finish("a")
	same(e, "clean", f.DirtyRev <= f.AppliedRev, true)
	e.sync("fw1@b")
	e.put(e.ask("203.0.113.1"))
	f = finish("a") // rendered after the other configuration came, by the one before
	same(e, "proved as what it was", f.ProvedAs, "a")
	same(e, "dirty still", f.DirtyRev > f.AppliedRev, true)
	f = finish("b")
	same(e, "clean again", f.DirtyRev <= f.AppliedRev, true)
}

func appliedAdvancesWithoutARun(e *env) {
	e.sync("fw1@a")
	e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: e.run(e.lane("fw1")), Applied: true, Digest: "a"}))
	rev, err := e.Revision(e.Context())
	e.ok(err)
	e.ok(e.AdvanceApplied(e.Context(), "fw1", rev))
	e.ok(e.AdvanceApplied(e.Context(), "fw1", rev-1))
	same(e, "never back", e.firewall("fw1").AppliedRev, rev)
	e.sync("fw1@b")
	e.ok(e.AdvanceApplied(e.Context(), "fw1", e.firewall("fw1").DirtyRev))
	same(e, "what has become dirty waits for a run", e.firewall("fw1").AppliedRev, rev)
	e.wantKind(e.AdvanceApplied(e.Context(), "fw9", rev), parry.KindNotFound)
}

func wakesCoalesce(e *env) {
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	desired, applied, outbox := e.Desired(ctx), e.Applied(ctx), e.Outbox(ctx)
	if e.postgres() { // what another replica wrote wakes too; what was heard at the start may still come
		other := e.replica()
		other.Desired(ctx)
	}
	e.sync("fw1@a")
	e.woken(desired, "a firewall")
	for range 3 {
		e.put(e.ask("203.0.113.7"))
	}
	e.woken(desired, "a block")
	e.ok(e.FinishRun(ctx, parry.FinishRun{Run: e.run(e.lane("fw1"))}))
	e.woken(applied, "a run")
	e.ok(e.Enqueue(ctx, []parry.Notification{{ID: "n-1", Channels: []string{"mail"}, CreatedAt: e.clock.Now()}}))
	e.woken(outbox, "a notification")
}

func TestPostgres_replicasWakeEachOther(t *testing.T) {
	t.Parallel()
	e := newEnv(t, engines[1].open(t))
	other := e.replica()
	desired := other.Desired(t.Context())
	for i := range 3 {
		e.put(e.ask(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}).String()))
		e.woken(desired, "by another replica")
	}
}

func TestPostgres_laneIsLostWithItsConnection(t *testing.T) {
	t.Parallel()
	e := newEnv(t, engines[1].open(t))
	e.sync("fw1@a", "fw2@a")
	l1, l2 := e.lane("fw1"), e.lane("fw2")
	other := e.replica()
	_, err := e.raw().ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_locks
		WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	e.ok(err)
	e.woken(l1.Lost(), "lane 1 is lost")
	e.woken(l2.Lost(), "lane 2 is lost")
	taken, err := other.AcquireLane(t.Context(), "fw1")
	e.ok(err)
	same(e, "epoch", taken.Epoch, l1.Epoch+1)
	e.ok(l1.Release(t.Context()))
	same(e, "epoch", e.lane("fw2").Epoch, l2.Epoch+1)
}

func TestPostgres_writerSurvivesItsConnection(t *testing.T) {
	t.Parallel()
	e := newEnv(t, engines[1].open(t))
	e.put(e.ask("203.0.113.1"))
	_, err := e.raw().ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	e.ok(err)
	same(e, "count", e.put(e.ask("203.0.113.1")).Block.Count, 2)
}
