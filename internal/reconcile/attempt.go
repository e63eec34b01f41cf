package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/nat"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// attempt does one run, or says why it cannot be begun.
func (l *lane) attempt(ctx context.Context, st *parry.FirewallState, fw *parry.Firewall, sc *scope, do todo) (until time.Time, again bool) {
	l.show(LaneQueued, time.Time{})
	release, err := l.queue(ctx, st, do)
	if err != nil {
		return time.Time{}, ctx.Err() == nil
	}
	defer release()
	host := l.r.o.Host(l.name)
	if l.r.o.Fleet() != sc.fleet { // a reload since it was decided: the host may be the new fleet's, and what is run must be of one
		return time.Time{}, true
	}
	kind := map[todo]parry.RunKind{doApply: parry.RunApply, doVerify: parry.RunVerify, doRetire: parry.RunRetire, doEmpty: parry.RunPanic, doCheck: parry.RunCheck}[do]
	m := &l.mem
	m.lastTry, m.triedDirty, m.triedVerify, m.triedRelevant, m.fresh, m.gather = l.now(), st.DirtyRev, st.VerifyRev, m.relevant, false, false

	b, trial, err := l.bundle(ctx, fw, kind)
	if kind == parry.RunVerify && m.probe != nil { // an edit since the apply is another run's
		trial = m.probe.trial
		b, err = l.r.o.Library.Get(m.probe.run.Bundle.Name, m.probe.run.Bundle.Digest)
	}
	switch {
	case parry.KindOf(err) == parry.KindUnavailable:
		return l.failEarly(ctx, st, kind, parry.FailInternal, err.Error())
	case err != nil:
		return l.failEarly(ctx, st, kind, parry.FailBundle, err.Error())
	}
	if host.Err != nil {
		return l.failEarly(ctx, st, kind, parry.FailInventory, host.Err.Error())
	}
	if st.Adopt && st.Incident.Failure.NeedsAdopt() {
		m.wordUsed = true
		if m.known > l.lease.Epoch {
			if err := l.lease.RaiseEpoch(ctx, m.known); err != nil {
				return l.failEarly(ctx, st, kind, parry.FailInternal, err.Error())
			}
		}
	}
	t := &try{
		lane: l, st: st, fw: fw, sc: sc, host: host, bundle: b, trial: trial,
		run: parry.Run{
			ID: parry.NewRunID(l.now()), Firewall: l.name, Kind: kind, State: parry.RunRunning, Revision: st.AppliedRev, Epoch: l.lease.Epoch,
			StartedAt: l.now(), Bundle: b.BundleRef,
		},
	}
	switch kind {
	case parry.RunApply:
		rr := &renderer{firewall: fw, manifest: &b.Manifest, noCover: m.rejected}
		if rr.nat, err = l.natTable(ctx, st, fw, &b.Manifest); err != nil {
			return l.failEarly(ctx, st, kind, parry.FailInternal, err.Error())
		}
		t.nat = rr.nat
		if t.sent, err = l.render(ctx, rr, sc); err != nil {
			return l.failEarly(ctx, st, kind, parry.FailInternal, err.Error())
		}
		t.exempt = l.exemptFile(&b.Manifest)
		if trial != nil && b.Digest != m.checked && b.Digest != m.applied.Digest { // a new version shows first what it would do
			t.run.Kind, t.run.Revision = parry.RunCheck, t.sent.revision
			return t.do(ctx)
		}
		if st.Digest == fw.Digest && l.same(st, t.sent) && !l.exemptsDue(st) && !l.shiftsDue() {
			// What is proved is what is desired: a block that a wider one covers came or went.
			if err := l.r.o.Store.AdvanceApplied(ctx, l.name, t.sent.revision); err != nil {
				l.log.Error("advance the applied revision", "err", err)
				return l.now().Add(5 * time.Second), false
			}
			m.ends.behind(t.sent)
			return time.Time{}, true
		}
		if !st.Adopt {
			c, err := l.change(ctx, st, t.sent, rr, sc)
			var v approval
			if err == nil {
				v, err = l.mayMake(ctx, st, c)
			}
			switch {
			case err != nil:
				return l.failEarly(ctx, st, kind, parry.FailInternal, err.Error())
			case v.why != "":
				return l.failAsking(ctx, st, kind, parry.FailApproval, v.why, &v)
			}
			t.approved = v.used
		}
		t.run.Revision = t.sent.revision
	case parry.RunCheck:
		m.lastCheck, t.simulates = l.now(), true
		rr := &renderer{firewall: fw, manifest: &b.Manifest, noCover: m.rejected}
		if rr.nat, err = l.natTable(ctx, st, fw, &b.Manifest); err != nil {
			return l.failEarly(ctx, st, kind, parry.FailInternal, err.Error())
		}
		if t.sent, err = l.renderOf(ctx, rr, sc, l.r.view.with); err != nil {
			return l.failEarly(ctx, st, kind, parry.FailInternal, err.Error())
		}
		t.exempt, t.run.Revision = l.exemptFile(&b.Manifest), t.sent.revision
	case parry.RunRetire:
		t.sent = (&renderer{firewall: fw, manifest: &b.Manifest}).render(st.AppliedRev, nil)
		if b.Manifest.Exemptions {
			t.exempt = new(parry.NewExemptFile(nil))
		}
	case parry.RunPanic:
		if err := l.r.view.refresh(ctx); err != nil {
			return l.failEarly(ctx, st, kind, parry.FailInternal, err.Error())
		}
		t.sent = (&renderer{firewall: fw, manifest: &b.Manifest}).render(l.r.view.revision(), nil)
		t.run.Revision, m.probe = t.sent.revision, nil
		if b.Manifest.Exemptions {
			t.exempt = new(parry.NewExemptFile(nil)) // nothing of parry's is left behind
		}
	}
	return t.do(ctx)
}

// render makes the firewall's entries of the newest state. Blocks that an exemption overlaps are ended first, in the store; one that is
// still there after that (an address within an address, which the store does not see) is rejected: no block is silently left out.
func (l *lane) render(ctx context.Context, rr *renderer, sc *scope) (*rendering, error) {
	return l.renderOf(ctx, rr, sc, l.r.view.in)
}

// renderOf renders the blocks that of gives.
func (l *lane) renderOf(ctx context.Context, rr *renderer, sc *scope, of func(*scope) ([]standing, parry.Revision)) (*rendering, error) {
	for round := 0; ; round++ {
		if err := l.r.view.refresh(ctx); err != nil {
			return nil, err
		}
		blocks, rev := of(sc)
		met := map[parry.ExemptionID]parry.Exemption{}
		var exempt []parry.BlockID
		allowed := blocks[:0]
		for _, b := range blocks {
			if x, ok := l.r.o.Exempt(b.Source); ok {
				met[x.ID] = x
				exempt = append(exempt, b.id)
				continue
			}
			allowed = append(allowed, b)
		}
		if len(exempt) == 0 || round == 2 {
			out := rr.render(rev, allowed)
			for _, id := range exempt {
				out.rejects[id] = rejectExempt
			}
			return out, nil
		}
		ended, err := l.r.o.Store.EndExempted(ctx, slices.Collect(maps.Values(met)))
		if err != nil {
			return nil, fmt.Errorf("end exempted blocks: %w", err)
		}
		for _, id := range ended {
			l.log.Warn("block ended by an exemption", "block_id", id)
		}
	}
}

// exemptFile is what the bundle puts ahead of its drops, nil where it takes none. It is asked after rendering: what ran out or was taken
// out since must not stand ahead of a block that was rendered without it.
func (l *lane) exemptFile(m *bundle.Manifest) *parry.ExemptFile {
	if !m.Exemptions || l.r.o.ExemptFile == nil {
		return nil
	}
	return new(l.r.o.ExemptFile())
}

// exemptsDue tells whether a run is due for the exemptions alone.
func (l *lane) exemptsDue(st *parry.FirewallState) bool {
	due := l.exemptDue(st)
	return !due.IsZero() && !l.now().Before(due)
}

// shiftsDue tells whether a run is due for moved ends alone.
func (l *lane) shiftsDue() bool {
	due := l.mem.ends.due
	return !due.IsZero() && !l.now().Before(due)
}

// same tells whether a rendering is what the firewall is proved to hold, so that no run is needed.
func (l *lane) same(st *parry.FirewallState, sent *rendering) bool {
	return l.mem.sentSum == sent.sum && st.Proof.SHA256 == sent.sum && st.DirtyRev <= st.AppliedRev && !st.Incident.Open() && !l.mem.uncertain &&
		len(l.mem.rejected) == 0 && len(sent.rejects) == 0 && !st.Adopt && l.mem.ends.last(sent)
}

// try is one run on its way.
type try struct {
	*lane
	st     *parry.FirewallState
	fw     *parry.Firewall
	sc     *scope
	host   ansible.Host
	bundle bundle.Bundle
	run    parry.Run
	sent   *rendering          // nil for a verify
	exempt *parry.ExemptFile   // nil where nothing of exemptions is told
	nat    *nat.Table          // that sent was rendered with
	loaded []parry.LoadedEntry // what a verify handed over; nil: nothing that can be believed
	out    *ansible.Outcome
	trial  *parry.Tried // the bundle is new, and the firewall a canary
	asked  bool         // an operator's check

	simulates bool // a check that shows what would change, were something not simulated

	asks     *parry.Approval // that this run asks for, with its diff
	diff     parry.Diff
	approved parry.ApprovalID // that lets it make its change

	rejects map[parry.BlockID]string // what the firewall refuses, once the run counts; nil before: as it was
}

func (t *try) spec() ansible.Spec {
	vars := maps.Clone(t.fw.Settings)
	if vars == nil {
		vars = map[string]any{}
	}
	maps.Copy(vars, map[string]any{
		"parry_contract": bundle.Contract, "parry_run_id": string(t.run.ID), "parry_controller": t.r.o.Controller, "parry_epoch": t.run.Epoch,
		"parry_revision": int64(t.run.Revision), "parry_sent_revision": int64(t.st.SentRev), "parry_max_rules": t.fw.MaxRules, "parry_adopt": t.st.Adopt && t.run.Kind != parry.RunVerify && t.run.Kind != parry.RunCheck,
	})
	s := ansible.Spec{
		RunID: t.run.ID, Host: t.host, Bundle: t.bundle, Kind: t.run.Kind, Vars: vars, Deadline: t.r.o.RunDeadline, Lock: t.lock,
	}
	if t.exempt != nil {
		s.Exempt, t.mem.exemptSent = t.exempt.Text, t.now()
	}
	if t.sent != nil {
		s.Desired = t.sent.file()
		t.run.Sent = len(t.sent.lines)
	}
	return s
}

// do runs the playbook, judges what came of it, and finishes the run in the store.
func (t *try) do(ctx context.Context) (until time.Time, again bool) {
	spec := t.spec()
	if err := t.r.o.Store.BeginRun(ctx, t.run); err != nil {
		return t.notBegun(ctx, err)
	}
	t.mu.Lock()
	t.status.RunID = t.run.ID
	t.mu.Unlock()
	t.show(LaneRunning, time.Time{})
	t.log.Info("run begun", "run_id", t.run.ID, "kind", t.run.Kind, "revision", t.run.Revision, "entries", t.run.Sent)

	rctx, stop := t.drained(ctx)
	out, err := t.r.o.Runner.Run(rctx, spec)
	stop()
	if err != nil {
		out = &ansible.Outcome{State: parry.RunFailed, Failure: parry.FailInternal, Message: err.Error()}
	}
	t.out = out
	t.mem.lastEnd, t.run.EndedAt = t.now(), t.now()
	if t.run.Dir = out.Dir; t.r.o.StateDir != "" && out.Dir != "" {
		if rel, err := filepath.Rel(t.r.o.StateDir, out.Dir); err == nil {
			t.run.Dir = rel
		}
	}
	return t.finish(ctx)
}

func (t *try) notBegun(ctx context.Context, err error) (until time.Time, again bool) {
	t.lost = errors.Is(err, store.ErrLaneLost)
	if ctx.Err() == nil {
		t.log.Error("begin the run", "run_id", t.run.ID, "err", err)
	}
	return t.now().Add(5 * time.Second), t.lost
}

// drained is the context of a run: it outlives ctx by Options.Drain, and ends when the lane is lost.
func (t *try) drained(ctx context.Context) (context.Context, func()) {
	rctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	lost, done, ended := t.lease.Lost(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		select {
		case <-done:
			return
		case <-lost:
			return
		case <-ctx.Done():
		}
		timer := time.NewTimer(t.r.o.Drain)
		defer timer.Stop()
		select {
		case <-done:
		case <-lost:
		case <-timer.C:
		}
	}()
	return rctx, func() { close(done); <-ended }
}

// failEarly records a failure for which nothing was executed.
func (l *lane) failEarly(ctx context.Context, st *parry.FirewallState, kind parry.RunKind, f parry.Failure, message string) (time.Time, bool) {
	return l.failAsking(ctx, st, kind, f, message, nil)
}

// failAsking is failEarly with an approval that may be asked for.
func (l *lane) failAsking(ctx context.Context, st *parry.FirewallState, kind parry.RunKind, f parry.Failure, message string, v *approval) (time.Time, bool) {
	if ctx.Err() != nil {
		return time.Time{}, false
	}
	if f == parry.FailApproval && st.Incident.Failure == f && v.ask == nil {
		return time.Time{}, true // told and recorded; waits for the word or a change
	}
	fleet := l.r.o.Fleet()
	fw, ok := fleet.Firewall(l.name)
	if !ok {
		return time.Time{}, false
	}
	now := l.now()
	t := &try{
		lane: l, st: st, fw: fw, sc: newScope(fleet, fw), host: l.r.o.Host(l.name),
		run: parry.Run{
			ID: parry.NewRunID(now), Firewall: l.name, Kind: kind, State: parry.RunRunning, Revision: st.AppliedRev, Epoch: l.lease.Epoch,
			StartedAt: now, EndedAt: now, Bundle: parry.BundleRef{Name: fw.Bundle},
		},
		out: &ansible.Outcome{State: parry.RunFailed, Failure: f, Message: message},
	}
	if v != nil {
		t.asks = v.ask
		t.diff = v.diff
	}
	if err := l.r.o.Store.BeginRun(ctx, t.run); err != nil {
		return t.notBegun(ctx, err)
	}
	return t.finish(ctx)
}
