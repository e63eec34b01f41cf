package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// auditSuite is what every engine must do with the audit.
var auditSuite = []func(*env){
	eachChangeLeavesItsRow, refusedChangesLeaveNone, repeatedRefreshesLeaveARowAMinute, auditFiltersAndPages, auditHostileTextIsInert,
	suspensionsComeAndGo, auditBreaksAreNamed, auditCutTailShowsAtOnce, auditPrunesItsBeginning, auditOfReplicasIsOneChain, auditCountsOnceOverALostAnswer,
}

// as is a context of somebody's request.
func (e *env) as(name string, role parry.Role) context.Context {
	return parry.WithActor(e.Context(), &parry.Actor{
		Name: name, Token: parry.TokenID("t-" + name), Role: role, Remote: netip.MustParseAddr("192.0.2.7"), RequestID: "req-1",
	})
}

// audited reads the whole chain, oldest first.
func (e *env) audited() iter.Seq2[audit.Row, error] {
	return func(yield func(audit.Row, error) bool) {
		for f := (parry.AuditFilter{Oldest: true, Limit: 7}); ; {
			p, err := e.AuditRows(e.Context(), f)
			if err != nil {
				yield(audit.Row{}, err)
				return
			}
			for _, r := range p.Items {
				if !yield(r, nil) {
					return
				}
			}
			if f.Cursor = p.Next; f.Cursor == "" {
				return
			}
		}
	}
}

func (e *env) auditRows() (rows []audit.Row) {
	e.Helper()
	for r, err := range e.audited() {
		e.ok(err)
		rows = append(rows, r)
	}
	return rows
}

// verify holds the chain against its head.
func (e *env) verify() audit.Report {
	e.Helper()
	h, err := e.AuditHead(e.Context())
	e.ok(err)
	r, err := audit.Verify(e.audited(), audit.Anchor{Seq: h.Seq, Hash: h.Hash})
	e.ok(err)
	return r
}

func (e *env) whole() audit.Report {
	e.Helper()
	r := e.verify()
	if len(r.Problems) > 0 {
		e.Fatalf("the chain is broken: %v", r.Problems)
	}
	return r
}

func eachChangeLeavesItsRow(e *env) {
	ctx := e.as("anna", parry.RoleAdmin)
	e.sync("fw1")
	done := func(err error) { e.Helper(); e.ok(err) }
	a := e.ask("203.0.113.7")
	a.Request.TokenName, a.Request.TokenID = "anna", "t-anna"
	made, err := e.Put(ctx, a)
	done(err)
	b := string(made.Block.ID)
	_, err = e.Put(ctx, e.ask("203.0.113.7"))
	done(err)
	_, err = e.SetExpiry(ctx, made.Block.ID, e.clock.Now().Add(2*time.Hour), "anna")
	done(err)
	_, _, err = e.EndBlock(ctx, made.Block.ID, parry.Lift{By: "anna", Grace: time.Hour})
	done(err)
	e.put(e.ask("198.51.100.1"))
	_, err = e.EndBlocks(ctx, parry.BlockFilter{Within: netip.MustParsePrefix("198.51.100.0/24")}, nil, lifted("anna"), false)
	done(err)
	_, err = e.AddExemption(ctx, parry.Exemption{ID: "x-1", Prefix: netip.MustParsePrefix("192.0.2.0/24"), Reason: "ours", CreatedBy: "anna"})
	done(err)
	done(e.RemoveExemption(ctx, "x-1", "anna"))
	done(e.CreateToken(ctx, parry.Token{ID: "t-2", Name: "ossim", Role: parry.RoleTrigger}))
	done(e.RevokeToken(ctx, "t-2", "anna"))
	_, err = e.CreateList(ctx, parry.List{Name: "watch", Type: parry.ListIP, Capacity: 10})
	done(err)
	_, err = e.PutEntries(ctx, "watch", []parry.ListPut{{Key: "203.0.113.9", SeenAt: e.clock.Now(), NoEnd: true}})
	done(err)
	_, err = e.RemoveEntry(ctx, "watch", "203.0.113.9", "anna")
	done(err)
	done(e.DeleteList(ctx, "watch", "anna"))
	done(e.SetHold(ctx, "fw1", parry.Hold{By: "anna", Reason: "work", Since: e.clock.Now()}))
	done(e.SetHold(ctx, "fw1", parry.Hold{}))
	done(e.SetHold(ctx, "", parry.Hold{By: "anna", Since: e.clock.Now()}))
	done(e.SetVerify(ctx, "fw1"))
	done(e.SetAdopt(ctx, "fw1"))
	done(e.SetRetiring(ctx, "fw1"))
	done(e.Audit(ctx, parry.AuditEvent{Action: parry.ActNotifyTest, Object: "mail", Outcome: "failed"}))
	e.put(e.askFor(at("203.0.113.8"), time.Minute))
	e.clock.Advance(time.Hour)
	_, err = e.EndDue(e.Context(), e.clock.Now())
	done(err)
	l := e.lane("fw1")
	run := e.run(l)
	run.State, run.Failure = parry.RunFailed, parry.FailTimeout
	done(e.FinishRun(e.Context(), parry.FinishRun{Run: run, Approval: &parry.Approval{ID: "a-1", Firewall: "fw1", Why: "all would go"}}))
	for _, approve := range []bool{false, true} {
		_, err = e.Decide(ctx, "a-1", parry.Decision{Approve: approve, By: "anna", Reason: "looked at it"})
		done(err)
	}
	done(e.Panic(ctx, nil, parry.Hold{By: "anna", Since: e.clock.Now()}))
	done(e.EndPanic(ctx, nil, "anna"))

	var got []string
	for _, r := range e.auditRows() {
		got = append(got, strings.Join([]string{r.Actor, r.Action, r.Object, r.Outcome}, " "))
		if r.Actor == "anna" && (r.TokenID != "t-anna" || r.Role != "admin" || r.Remote != "192.0.2.7" || r.RequestID != "req-1") {
			e.Errorf("who asked is not told: %+v", r)
		}
	}
	dialect := "sqlite"
	if e.postgres() {
		dialect = "postgres"
	}
	want := []string{
		"parry database.migrate " + dialect + " done", "anna block.add " + b + " done", "anna block.refresh " + b + " done", "anna block.expiry " + b + " done",
		"anna block.end " + b + " done", "ossim block.add " + objectOf(e, "198.51.100.1") + " done", "anna blocks.end  done", "anna exemption.add x-1 done",
		"anna exemption.remove x-1 done", "anna token.create t-2 done", "anna token.revoke t-2 done", "anna list.create watch done",
		"anna list.put watch done", "anna list.remove watch done", "anna list.delete watch done", "anna firewall.hold fw1 done",
		"anna firewall.release fw1 done", "anna firewall.hold all done", "anna firewall.verify fw1 done", "anna firewall.adopt fw1 done",
		"anna firewall.retire fw1 done", "anna notify.test mail failed", "ossim block.add " + objectOf(e, "203.0.113.8") + " done",
		"parry blocks.expired  done", "parry run.end fw1 failed", "anna approval.deny a-1 done", "anna approval.approve a-1 done",
		"anna firewall.panic all firewalls done", "anna firewall.panic-end all firewalls done",
	}
	if d := cmp.Diff(want, got); d != "" {
		e.Error(d)
	}
	e.whole()
}

func objectOf(e *env, source string) string {
	p, err := e.Blocks(e.Context(), parry.BlockFilter{Source: at(source).Source})
	e.ok(err)
	return string(p.Items[0].ID)
}

func suspensionsComeAndGo(e *env) {
	e.ok(e.Close())
	e.opts.Subscriptions = parry.Subscriptions{{Channel: "mail", Kinds: []parry.NotificationKind{parry.NotifySuspended}}}
	e.open()
	now := e.clock.Now()
	for _, k := range []parry.Token{{ID: "t-1", Name: "ossim", Role: parry.RoleTrigger}, {ID: "t-2", Name: "wazuh", Role: parry.RoleTrigger}} {
		e.ok(e.CreateToken(e.Context(), k))
	}
	token := func(id parry.TokenID) *parry.Token {
		e.Helper()
		k, err := e.TokenByID(e.Context(), id)
		e.ok(err)
		return &k
	}
	suspended := func() int64 {
		e.Helper()
		c, err := e.Counts(e.Context())
		e.ok(err)
		return c.SuspendedTokens
	}
	e.ok(e.SuspendToken(e.Context(), "t-1", now.Add(time.Hour), "10.0.0.5 again\x00 and again"))
	e.ok(e.SuspendToken(e.Context(), "t-1", now.Add(9*time.Hour), "by another replica, too late"))
	k := token("t-1")
	same(e, "since", k.SuspendedAt, now)
	same(e, "until", k.SuspendedUntil, now.Add(time.Hour))
	same(e, "why", k.SuspendedWhy, "10.0.0.5 again� and again")
	same(e, "now", k.Suspended(now), true)
	same(e, "an hour later", k.Suspended(now.Add(time.Hour)), false)
	same(e, "the other", token("t-2").Suspended(now), false)
	same(e, "counted", suspended(), int64(1))
	ds, err := e.NextDeliveries(e.Context(), "mail", 10, true)
	e.ok(err)
	same(e, "told", len(ds), 1)
	same(e, "told as", ds[0].Kind, parry.NotifySuspended)
	same(e, "told of", ds[0].Report.By, "ossim")
	same(e, "told until", ds[0].Report.Until, now.Add(time.Hour))

	e.ok(e.Close())
	e.open()
	same(e, "after a restart", token("t-1").Suspended(now), true)
	_, err = e.ResumeToken(e.as("anna", parry.RoleOperator), "wazuh", "anna")
	e.wantKind(err, parry.KindConflict)
	_, err = e.ResumeToken(e.Context(), "nobody", "anna")
	e.wantKind(err, parry.KindNotFound)
	id, err := e.ResumeToken(e.as("anna", parry.RoleOperator), "ossim", "anna")
	e.ok(err)
	same(e, "by its name", id, "t-1")
	same(e, "in use", token("t-1").Suspended(now), false)
	same(e, "counted", suspended(), int64(0))

	e.ok(e.RevokeToken(e.Context(), "t-2", "anna"))
	e.ok(e.SuspendToken(e.Context(), "t-2", now.Add(time.Hour), "too late"))
	same(e, "a revoked one", token("t-2").Suspended(now), false)
	var acts []string
	for _, r := range e.auditRows() {
		if strings.HasPrefix(r.Action, "token.s") || r.Action == string(parry.ActTokenResume) {
			acts = append(acts, r.Actor+" "+r.Action+" "+r.Object)
		}
	}
	same(e, "audit", strings.Join(acts, ", "), "parry token.suspend t-1, anna token.resume t-1")
	e.whole()
}

func refusedChangesLeaveNone(e *env) {
	before := len(e.auditRows())
	_, err := e.RemoveEntry(e.Context(), "none", "x", "anna")
	e.wantKind(err, parry.KindNotFound)
	e.wantKind(e.RemoveExemption(e.Context(), "x-none", "anna"), parry.KindNotFound)
	e.wantKind(e.RevokeToken(e.Context(), "t-none", "anna"), parry.KindNotFound)
	e.wantKind(e.SetAdopt(e.Context(), "none"), parry.KindNotFound)
	e.list()
	_, err = e.RemoveEntry(e.Context(), "watch", "203.0.113.1", "anna") // refused after the call that notes it
	e.wantKind(err, parry.KindNotFound)
	same(e, "rows", len(e.auditRows())-before, 1) // the list's
	e.whole()
}

// A SIEM that asks for the same block again and again cannot fill the disk: its row says how many there were.
func repeatedRefreshesLeaveARowAMinute(e *env) {
	for range 3 {
		for range 40 {
			e.put(e.ask("203.0.113.7"))
		}
		e.clock.Advance(time.Minute)
	}
	var refreshed []int64
	for _, r := range e.auditRows() {
		if r.Action != string(parry.ActBlockRefresh) {
			continue
		}
		var d struct{ Requests int64 }
		e.ok(json.Unmarshal([]byte(r.Detail), &d))
		refreshed = append(refreshed, d.Requests)
	}
	if d := cmp.Diff([]int64{2, 41, 81}, refreshed); d != "" {
		e.Error(d)
	}
	e.whole()
}

func auditFiltersAndPages(e *env) {
	start := e.clock.Now()
	for i := range 30 {
		who := []string{"anna", "ben"}[i%2]
		e.ok(e.Audit(e.as(who, parry.RoleOperator), parry.AuditEvent{Action: parry.ActHold, Object: fmt.Sprint("fw", i%3)}))
		e.clock.Advance(time.Minute)
	}
	list := func(f parry.AuditFilter) (seqs []int64) {
		e.Helper()
		for {
			p, err := e.AuditRows(e.Context(), f)
			e.ok(err)
			for _, r := range p.Items {
				seqs = append(seqs, r.Seq)
			}
			if f.Cursor = p.Next; f.Cursor == "" {
				return seqs
			}
		}
	}
	same(e, "all, newest first", fmt.Sprint(list(parry.AuditFilter{Limit: 7})[:3]), "[31 30 29]")
	same(e, "all", len(list(parry.AuditFilter{Limit: 7})), 31)
	same(e, "oldest first", fmt.Sprint(list(parry.AuditFilter{Limit: 7, Oldest: true})[:3]), "[1 2 3]")
	same(e, "by name", len(list(parry.AuditFilter{Actor: "anna", Limit: 4})), 15)
	same(e, "by token", len(list(parry.AuditFilter{Actor: "t-ben"})), 15)
	same(e, "by action", len(list(parry.AuditFilter{Action: "firewall.hold"})), 30)
	same(e, "by the action's noun", len(list(parry.AuditFilter{Action: "firewall"})), 30)
	same(e, "a part of a word is no noun", len(list(parry.AuditFilter{Action: "fire"})), 0)
	same(e, "by object", len(list(parry.AuditFilter{Object: "fw1", Actor: "anna"})), 5)
	same(e, "since, until", fmt.Sprint(list(parry.AuditFilter{Since: start.Add(3 * time.Minute), Until: start.Add(5 * time.Minute)})), "[6 5]")
	same(e, "after", fmt.Sprint(list(parry.AuditFilter{After: 29, Oldest: true})), "[30 31]")
	_, err := e.AuditRows(e.Context(), parry.AuditFilter{Cursor: "YWFhYQ"})
	e.wantKind(err, parry.KindInvalid)
}

func auditHostileTextIsInert(e *env) {
	a := e.ask("203.0.113.7")
	a.Request.Reason = "\x1b[2J\x00<script>\xff\u202e\",\"actor\":\"root\"" + strings.Repeat("A", 5000)
	a.Request.Origin = "o\nparry,5:admin"
	e.put(a)
	e.ok(e.Audit(e.as("anna", parry.RoleAdmin), parry.AuditEvent{Action: parry.ActNotifyTest, Object: "a\x00\n\xff" + strings.Repeat("ü", 1000),
		Detail: map[string]string{"x": strings.Repeat("\x00", 3000), "y": strings.Repeat("y", 9000)}}))
	rows := e.auditRows()
	for _, r := range rows {
		if len(r.Object) > 512 || len(r.Detail) > 4096 {
			e.Errorf("not bounded: object %d, detail %d bytes", len(r.Object), len(r.Detail))
		}
		if strings.ContainsAny(r.Object+r.Detail, "\x00\n\x1b<") {
			e.Errorf("not inert: %q %q", r.Object, r.Detail)
		}
		if r.Detail != "" && !json.Valid([]byte(r.Detail)) {
			e.Errorf("no JSON: %q", r.Detail)
		}
		line, err := json.Marshal(r)
		e.ok(err)
		var again audit.Row
		e.ok(json.Unmarshal(line, &again))
		same(e, "hash over its own export", again.Sum(again.Prev), r.Hash)
	}
	same(e, "who", rows[len(rows)-2].Actor, "ossim")
	e.whole()
}

// Whoever can write to the database can change rows; that shows, and where.
func auditBreaksAreNamed(e *env) {
	for i := range 20 {
		e.ok(e.Audit(e.as("anna", parry.RoleAdmin), parry.AuditEvent{Action: parry.ActHold, Object: fmt.Sprint("fw", i)}))
	}
	e.whole()
	db := e.raw()
	do := func(q ...string) {
		e.Helper()
		for _, q := range q {
			_, err := db.ExecContext(e.Context(), q)
			e.ok(err)
		}
	}
	const swap = `UPDATE audit SET seq = -1 WHERE seq = 8; UPDATE audit SET seq = 8 WHERE seq = 12; UPDATE audit SET seq = 12 WHERE seq = -1`
	for what, c := range map[string]struct {
		seq  int64
		kind audit.Kind
		do   []string
		undo []string
	}{
		"changed": {5, audit.Changed, []string{`UPDATE audit SET actor = 'ben' WHERE seq = 5`}, []string{`UPDATE audit SET actor = 'anna' WHERE seq = 5`}},
		"swapped": {8, audit.Reordered, strings.Split(swap, ";"), strings.Split(swap, ";")},
		"cut": {19, audit.Cut, []string{`CREATE TABLE kept AS SELECT * FROM audit WHERE seq > 18`, `DELETE FROM audit WHERE seq > 18`},
			[]string{`INSERT INTO audit SELECT * FROM kept`, `DROP TABLE kept`}},
		"taken out": {7, audit.Missing, []string{`CREATE TABLE kept AS SELECT * FROM audit WHERE seq = 7`, `DELETE FROM audit WHERE seq = 7`},
			[]string{`INSERT INTO audit SELECT * FROM kept`, `DROP TABLE kept`}},
		"begun later": {4, audit.Missing, []string{`UPDATE state SET audit_base = 3, audit_base_hash = (SELECT hash FROM audit WHERE seq = 3)`},
			[]string{`UPDATE state SET audit_base = 0, audit_base_hash = '` + audit.Genesis + `'`}},
	} {
		do(c.do...)
		r := e.verify()
		if len(r.Problems) != 1 || r.Problems[0].Seq != c.seq || r.Problems[0].Kind != c.kind {
			e.Errorf("%s: %v, want row %d %s", what, r.Problems, c.seq, c.kind)
		}
		do(c.undo...)
		e.whole()
	}
}

func auditCutTailShowsAtOnce(e *env) {
	for range 5 {
		e.ok(e.Audit(e.Context(), parry.AuditEvent{Action: parry.ActStart}))
	}
	h, err := e.AuditHead(e.Context())
	e.ok(err)
	same(e, "whole", h.Tail, true)
	same(e, "seq", h.Seq, 6)
	_, err = e.raw().Exec(`DELETE FROM audit WHERE seq > 4`)
	e.ok(err)
	h, err = e.AuditHead(e.Context())
	e.ok(err)
	same(e, "cut", h.Tail, false)
	e.ok(e.Audit(e.Context(), parry.AuditEvent{Action: parry.ActStart})) // writing goes on, and hides nothing
	r := e.verify()
	if len(r.Problems) != 1 || r.Problems[0].Seq != 5 || r.Problems[0].Kind != audit.Missing {
		e.Errorf("%v", r.Problems)
	}
}

func auditPrunesItsBeginning(e *env) {
	for range 3 {
		for range 700 {
			e.ok(e.Audit(e.Context(), parry.AuditEvent{Action: parry.ActStart}))
		}
		e.clock.Advance(24 * time.Hour)
	}
	p, err := e.Prune(e.Context(), parry.Retention{Audit: 36 * time.Hour})
	e.ok(err)
	same(e, "pruned", p.AuditRows, int64(1401))
	r := e.whole()
	same(e, "first", r.First, int64(1402))
	rows := e.auditRows()
	same(e, "told", rows[len(rows)-1].Action, string(parry.ActPrune))
	p, err = e.Prune(e.Context(), parry.Retention{Audit: 36 * time.Hour})
	e.ok(err)
	same(e, "pruned again", p.AuditRows, int64(0))
	same(e, "nothing more to tell", e.whole().Last, r.Last)
	e.clock.Advance(30 * 24 * time.Hour)
	_, err = e.Prune(e.Context(), parry.Retention{Audit: 36 * time.Hour})
	e.ok(err)
	r = e.whole()
	same(e, "all but the row that says so", r.Rows, int64(1))
	h, err := e.AuditHead(e.Context())
	e.ok(err)
	same(e, "base", h.Base, r.First-1)
	_, err = e.Prune(e.Context(), parry.Retention{})
	e.ok(err)
	same(e, "without a retention", e.whole().Rows, int64(1))
}

// Two replicas write at once, and it is one chain.
func auditOfReplicasIsOneChain(e *env) {
	replicas := []*store.Store{e.Store, e.Store}
	if e.postgres() {
		replicas[1] = e.replica()
	}
	var g errgroup.Group
	var mu sync.Mutex
	for i := range 16 {
		g.Go(func() error {
			for n := range 20 {
				mu.Lock()
				a := e.ask(fmt.Sprintf("11.0.%d.%d", i, n))
				mu.Unlock()
				if _, err := replicas[i%2].Put(e.Context(), a); err != nil {
					return err
				}
			}
			return nil
		})
	}
	e.ok(g.Wait())
	same(e, "rows", e.whole().Rows, int64(16*20+1))
}

func auditCountsOnceOverALostAnswer(e *env) {
	before := e.whole().Rows
	e.ok(e.RetryWrite(e.as("anna", parry.RoleAdmin), parry.AuditEvent{Action: parry.ActHold, Object: "fw1"}))
	same(e, "rows", e.whole().Rows-before, int64(1))
	a := e.ask("203.0.113.7")
	_, err := e.Recommit(e.Context(), a)
	e.ok(err)
	same(e, "rows of a put", e.whole().Rows-before, int64(2))
	if !slices.ContainsFunc(e.auditRows(), func(r audit.Row) bool { return r.Action == string(parry.ActBlockAdd) && r.Actor == "ossim" }) {
		e.Error(errors.New("the block's row is missing"))
	}
}
