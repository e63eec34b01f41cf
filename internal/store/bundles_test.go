package store_test

import (
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/internal/parry"
)

var digestA, digestB, digestC = strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)

func (e *env) bundle(name string) parry.BundleState {
	e.Helper()
	b, err := e.BundleState(e.Context(), name)
	e.ok(err)
	return b
}

// dirtied are the firewalls that do made dirty.
func (e *env) dirtied(do func()) (out []string) {
	e.Helper()
	before, err := e.Firewalls(e.Context())
	e.ok(err)
	do()
	after, err := e.Firewalls(e.Context())
	e.ok(err)
	for i := range after {
		if after[i].DirtyRev > before[i].DirtyRev {
			out = append(out, after[i].Name)
		}
	}
	return out
}

func pinsAreWords(e *env) {
	e.sync("fw1@a", "fw2@a")
	all := parry.Pin{Bundle: "pfsense", Digest: digestA, Version: "1.0.0", By: "anna", At: e.clock.Now()}
	own := parry.Pin{Bundle: "pfsense", Firewall: "fw2", Digest: digestB, Version: "1.1.0", By: "bob", At: e.clock.Now()}
	got := e.dirtied(func() { e.ok(e.SetPin(e.Context(), all, []string{"fw1", "fw2"})) })
	same(e, "dirty", strings.Join(got, " "), "fw1 fw2")
	got = e.dirtied(func() { e.ok(e.SetPin(e.Context(), own, []string{"fw2"})) })
	same(e, "dirty", strings.Join(got, " "), "fw2")
	b := e.bundle("pfsense")
	one, _ := b.Pin("fw1")
	two, _ := b.Pin("fw2")
	same(e, "the bundle's", one, all)
	same(e, "its own", two, own)
	same(e, "no canary", b.Release, parry.Release{})
	same(e, "another bundle's", len(e.bundle("nftables").Pins), 0)
	own.Digest = digestC
	e.ok(e.SetPin(e.Context(), own, nil))
	b = e.bundle("pfsense")
	two, _ = b.Pin("fw2")
	same(e, "replaced", two.Digest, digestC)
	e.ok(e.SetPin(e.Context(), parry.Pin{Bundle: "pfsense", Firewall: "fw2"}, []string{"fw2"}))
	b = e.bundle("pfsense")
	two, _ = b.Pin("fw2")
	same(e, "taken back", two, all)
	e.ok(e.SetPin(e.Context(), parry.Pin{Bundle: "pfsense"}, nil))
	b = e.bundle("pfsense")
	same(e, "none", len(b.Pins), 0)
	all2, err := e.BundleStates(e.Context(), "")
	e.ok(err)
	same(e, "nothing is known", len(all2), 0)
	page, err := e.AuditRows(e.Context(), parry.AuditFilter{Action: "bundle", Limit: 100})
	e.ok(err)
	same(e, "each word is in the audit", len(page.Items), 5)
	same(e, "the last one", page.Items[0].Action+" "+page.Items[0].Object, "bundle.follow pfsense")
}

func trialsReleaseOrAreRefused(e *env) {
	e.sync("fw1@a", "fw2@a", "fw3@a")
	refs := map[string]parry.BundleRef{}
	for d, v := range map[string]string{digestA: "1.0.0", digestB: "1.1.0", digestC: "1.2.0"} {
		refs[d] = parry.BundleRef{Name: "pfsense", Version: v, Digest: d}
	}
	tried := func(firewall, digest string, refused bool) []string {
		e.Helper()
		return e.dirtied(func() {
			l := e.lane(firewall)
			r := e.run(l)
			r.EndedAt = e.clock.Advance(time.Second)
			x := &parry.Tried{Bundle: refs[digest], Refused: refused, Canaries: []string{"fw1", "fw2"}, Others: []string{"fw3"}}
			over := parry.NewNotificationID(e.clock.Now())
			x.Over = []parry.Notification{{ID: over, Incident: over, Kind: parry.NotifyBundleRecovered, Channels: []string{"mail"}, CreatedAt: e.clock.Now()}}
			f := parry.FinishRun{Run: r, Tried: x}
			if refused {
				x.Why, x.Told = "hostile \x00", parry.NewNotificationID(e.clock.Now())
				f.Notifications = []parry.Notification{{ID: x.Told, Incident: x.Told, Kind: parry.NotifyBundleRefused, Channels: []string{"mail"}, CreatedAt: e.clock.Now()}}
			}
			e.ok(e.FinishRun(e.Context(), f))
			e.ok(l.Release(e.Context()))
		})
	}
	same(e, "without a release it is forgotten", len(tried("fw1", digestB, false)), 0)
	same(e, "nothing", e.bundle("pfsense").Trial.Digest, "")
	first := parry.Release{Digest: digestA, Version: "1.0.0", At: e.clock.Now()}
	e.ok(e.BeginRelease(e.Context(), "pfsense", first))
	e.ok(e.BeginRelease(e.Context(), "pfsense", parry.Release{Digest: digestC}))
	same(e, "the first stays", e.bundle("pfsense").Release, first)
	same(e, "one of two", len(tried("fw1", digestB, false)), 0)
	same(e, "not released", e.bundle("pfsense").Release, first)
	same(e, "refused", strings.Join(tried("fw2", digestB, true), " "), "fw1 fw2")
	tr := e.bundle("pfsense").Trial
	same(e, "by", tr.Firewall+" "+tr.Version, "fw2 1.1.0")
	same(e, "a pass after a refusal", len(tried("fw1", digestB, false)), 0)
	same(e, "still refused", e.bundle("pfsense").Trial.Refused, true)
	tried("fw1", digestC, false)
	same(e, "the others follow", strings.Join(tried("fw2", digestC, false), " "), "fw3")
	b := e.bundle("pfsense")
	same(e, "released", b.Release.Digest+" "+b.Release.By, digestC+" fw2")
	same(e, "no trial", b.Trial.Digest, "")
	ds := e.told("mail")
	same(e, "told", len(ds), 2)
	same(e, "threaded", ds[1].Incident, ds[0].ID)
	e.ok(e.SetPin(e.Context(), parry.Pin{Bundle: "pfsense", Digest: digestA, Version: "1.0.0", By: "anna", At: e.clock.Now()}, nil))
	same(e, "a word releases", e.bundle("pfsense").Release.By, "anna")
	e.ok(e.EndReleases(e.Context(), "pfsense"))
	same(e, "no canary any more", e.bundle("pfsense").Release, parry.Release{})
}

func bundleProblemsAreToldOnce(e *env) {
	e.sync("fw1@a")
	find := func(replica, text string) {
		e.Helper()
		at := e.clock.Advance(time.Second)
		e.ok(e.SetBundleProblem(e.Context(), "pfsense", parry.BundleProblem{Text: text, Replica: replica, Seen: at},
			func(over bool, p parry.BundleProblem) []parry.Notification {
				n := parry.Notification{ID: parry.NewNotificationID(at), Kind: parry.NotifyBundleRefused, Channels: []string{"mail"}, CreatedAt: at}
				n.Incident = n.ID
				if over {
					n.Kind, n.Incident = parry.NotifyBundleRecovered, p.Told
				}
				return []parry.Notification{n}
			}))
	}
	rev, err := e.Revision(e.Context())
	e.ok(err)
	find("one", "")
	now, err := e.Revision(e.Context())
	e.ok(err)
	same(e, "nothing wrong costs no write", now, rev)
	find("one", "apply.yml: line 1 \x00")
	find("one", "apply.yml: line 2")
	find("two", "apply.yml: line 2")
	find("two", "")
	p := e.bundle("pfsense").Problem
	same(e, "the newest words", p.Text, "apply.yml: line 2")
	same(e, "told", len(e.told("mail")), 1)
	find("one", "")
	same(e, "over", e.bundle("pfsense").Problem, parry.BundleProblem{})
	over := e.told("mail")
	same(e, "told", len(over), 1)
	same(e, "threaded", over[0].Incident, p.Told)
	find("two", "apply.yml: line 2")
	e.clock.Advance(time.Hour) // replica two was taken away
	find("one", "")
	same(e, "taken over", e.bundle("pfsense").Problem, parry.BundleProblem{})
	same(e, "told", len(e.told("mail")), 2)
}

func checksWaitForTheirRun(e *env) {
	e.sync("fw1@a", "fw2@a")
	c := parry.Check{RunID: parry.NewRunID(e.clock.Now()), Firewall: "fw1", Bundle: "pfsense", Digest: digestA, By: "anna", At: e.clock.Now()}
	e.ok(e.AskCheck(e.Context(), c))
	same(e, "told to its lane", e.firewall("fw1").Check, c.RunID)
	same(e, "to no other", e.firewall("fw2").Check, "")
	got, err := e.NextCheck(e.Context(), "fw1")
	e.ok(err)
	same(e, "check", got, c)
	l := e.lane("fw1")
	r := e.run(l)
	r.ID, r.Kind = c.RunID, parry.RunCheck
	e.ok(e.BeginRun(e.Context(), r))
	same(e, "begun", e.firewall("fw1").Check, "")
	sent := e.firewall("fw1").SentRev
	e.ok(e.AbandonRuns(e.Context(), "fw1"))
	same(e, "a check brings nothing", e.firewall("fw1").SentRev, sent)
	for range 10 {
		c.RunID = parry.NewRunID(e.clock.Advance(time.Second))
		e.ok(e.AskCheck(e.Context(), c))
	}
	c.RunID = parry.NewRunID(e.clock.Now())
	e.wantKind(e.AskCheck(e.Context(), c), parry.KindUnavailable)
	e.clock.Advance(2 * time.Hour)
	_, err = e.Prune(e.Context(), parry.Retention{})
	e.ok(err)
	same(e, "forgotten", e.firewall("fw1").Check, "")
}

func usesAreThoseOfKeptRuns(e *env) {
	e.sync("fw1@a")
	l := e.lane("fw1")
	var last parry.RunID
	run := func(kind parry.RunKind, digest string, state parry.RunState) {
		e.Helper()
		r := e.run(l)
		e.clock.Advance(time.Second)
		r.Kind, r.State, r.Bundle, r.EndedAt = kind, state, parry.BundleRef{Name: "pfsense", Version: "1.0.0", Digest: digest}, e.clock.Now()
		last = r.ID
		e.ok(e.FinishRun(e.Context(), parry.FinishRun{Run: r}))
	}
	run(parry.RunVerify, digestB, parry.RunSucceeded) // before any apply: it says nothing of one
	run(parry.RunApply, digestA, parry.RunSucceeded)
	run(parry.RunVerify, digestA, parry.RunSucceeded)
	run(parry.RunApply, digestB, parry.RunSucceeded)
	run(parry.RunVerify, digestB, parry.RunFailed)
	b := last
	run(parry.RunCheck, digestC, parry.RunFailed)
	uses, err := e.BundleUses(e.Context())
	e.ok(err)
	same(e, "uses", len(uses), 3)
	same(e, "proved", uses[0].Proved, true)
	same(e, "an apply that no verify confirmed", uses[1].Proved, false)
	same(e, "last", uses[1].Last, b)
	if d := cmp.Diff(parry.BundleUse{Firewall: "fw1", Bundle: parry.BundleRef{Name: "pfsense", Version: "1.0.0", Digest: digestC}, Last: last}, uses[2]); d != "" {
		e.Fatal(d)
	}
}
