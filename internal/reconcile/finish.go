package reconcile

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/parry/parry/internal/nat"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// finish judges a run and stores all that follows from it in one transaction.
func (t *try) finish(ctx context.Context) (until time.Time, again bool) {
	fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	v := t.judge(fctx)
	t.run.State, t.run.Failure, t.run.Task, t.run.Message = v.state, v.failure, t.out.Task, v.message
	t.run.Want, t.run.Rejected = v.want, len(v.rejected)
	if t.out.Proof != nil {
		t.run.Got = *t.out.Proof
	}
	t.mem.known = max(t.mem.known, v.known)

	f := parry.FinishRun{Incident: t.st.Incident}
	var after func()
	switch {
	case t.asked: // it tells, and nothing follows from it
		if t.interrupted(v) {
			t.run.State = parry.RunUnknown
		}
	case t.interrupted(v):
		t.run.State = parry.RunUnknown
		t.mem.uncertain = true
		until = t.now().Add(time.Second)
	case t.simulates && v.failure == "":
		f.Simulation = t.simulation(fctx)
		if t.st.Simulation.RunID == "" { // the first of all, mostly of nothing: what there is to show next need not wait for its turn
			t.mem.lastCheck = time.Time{}
		}
		if t.st.Simulate {
			t.recovered(fctx, &f)
		}
	case t.simulates && !t.st.Simulate: // what is applied there is proved all the same
		t.log.Warn("what simulated rules would do could not be shown", "run_id", t.run.ID, "failure", v.failure)
	case v.failure != "" && t.trial != nil && v.failure.OfBundle():
		until = t.refused(v, &f)
	case v.failure != "":
		until = t.failed(fctx, v, &f)
	case t.run.Kind == parry.RunCheck:
		t.mem.checked = t.bundle.Digest
		if f.Incident.Open() {
			f.Incident.NextTry = t.now()
		}
	case t.run.Kind == parry.RunVerify:
		after = t.verified(fctx, &f)
	default:
		after = t.appliedWell(fctx, v, &f)
	}
	if t.run.Kind == parry.RunVerify && !t.interrupted(v) {
		f.VerifyUsed = t.st.VerifyRev
		f.Facts = t.facts(v)
		f.Dirty = f.Dirty || t.st.DirtyRev <= t.st.AppliedRev && t.moved(fctx, f.Facts)
	}
	if p := t.out.Proof; p != nil && !t.interrupted(v) {
		f.MachineID, f.Digest = p.MachineID, t.fw.Digest
		if t.loaded != nil {
			f.Loaded = &parry.Loaded{At: t.run.EndedAt, RunID: t.run.ID, Count: len(t.loaded), Text: t.out.Loaded}
		}
		if was := t.st.Proof.BootID; was != "" && p.BootID != "" && was != p.BootID {
			t.log.Warn("the firewall has rebooted since it was last proved", "run_id", t.run.ID, "boot_id", p.BootID)
		}
	}
	f.Run = t.run
	err := t.store(fctx, f)
	if parry.KindOf(err) == parry.KindConflict && !t.lost {
		after, err = nil, t.duplicate(fctx, &f, err)
	}
	t.r.metrics.ran(&t.run)
	t.logEnd()
	if t.lost { // the run is kept as what it came to, and nothing follows from it: the firewall is another replica's
		t.log.Warn("the run ended after the lane was taken over", "run_id", t.run.ID, "err", err)
		return time.Time{}, true
	}
	if err != nil {
		t.log.Error("finish the run", "run_id", t.run.ID, "err", err)
		t.mem.abandon, t.mem.uncertain, t.mem.probe = true, true, nil
		return t.now().Add(5 * time.Second), false
	}
	if after != nil {
		after()
	}
	if f.Dirty { // our own word must not cut the backoff short as an operator's does
		if st, err := t.state(fctx); err == nil {
			t.mem.triedDirty = st.DirtyRev
		}
	}
	if f.Applied && t.fw.Digest != t.st.Digest {
		if st, err := t.state(fctx); err == nil {
			t.mem.elsewhere = st.DirtyRev
		}
	}
	if t.run.Kind == parry.RunApply && t.r.view.refresh(fctx) == nil {
		newest, _ := t.r.view.relevant(t.sc)
		t.mem.gather = newest > t.run.Revision
	}
	if t.interrupted(v) {
		return until, false
	}
	return time.Time{}, true // decide anew: it knows the backoff
}

func (t *try) judge(ctx context.Context) verdict {
	switch {
	case t.run.Kind == parry.RunCheck:
		return fromOutcome(t.out) // nothing was sent: what is loaded is not to be what is desired
	case t.run.Kind != parry.RunVerify && t.sent != nil:
		return judgeApply(t.out, t.sent, t.exempt, &t.run, t.r.o.Controller)
	case t.run.Kind == parry.RunVerify && t.mem.probe != nil:
		return t.judgeRead(ctx, t.mem.probe.run.Want)
	case t.run.Kind == parry.RunVerify:
		return t.judgeRead(ctx, t.st.Proof)
	}
	return fromOutcome(t.out) // nothing was executed
}

// judgeRead judges a verify, and looks into what differs.
func (t *try) judgeRead(ctx context.Context, want parry.Proof) verdict {
	v := judgeVerify(t.out, want, &t.run, t.st.SentRev, t.r.o.Controller, t.identity())
	if t.out.Proof == nil || v.failure != "" && v.failure != parry.FailProof {
		return v
	}
	if t.out.Loaded != nil {
		var err error
		if t.loaded, err = readLoaded(t.out.Loaded, t.out.Proof); err != nil {
			v.fail(parry.FailProof, "what the firewall says it holds cannot be believed: %v", err)
			v.differs = true
		}
	}
	if v.differs {
		t.compare(ctx, &v, want)
	}
	return v
}

// identity tells whether a verify only asks which machine answers, and in what state: the first one of a firewall that was never proved, or not
// with its present address and settings.
func (t *try) identity() bool {
	return t.run.Kind == parry.RunVerify && t.mem.probe == nil && t.st.ProvedAs != t.fw.Digest && t.mem.readAs != t.fw.Digest
}

// duplicate takes back what a run came to when its machine turned out to be another firewall's.
func (t *try) duplicate(ctx context.Context, f *parry.FinishRun, why error) error {
	m := &t.mem
	m.verified, m.uncertain, m.probe, m.readAs, m.sentSum = false, false, nil, "", ""
	v := verdict{state: parry.RunFailed, failure: parry.FailDuplicateMachine, message: why.Error()}
	t.run.State, t.run.Failure, t.run.Message = v.state, v.failure, v.message
	*f = parry.FinishRun{Incident: t.st.Incident, VerifyUsed: f.VerifyUsed}
	t.failed(ctx, v, f)
	f.Run = t.run
	return t.store(ctx, *f)
}

// facts is what a verify's firewall says of itself, unless it is another's or may be a machine that is not meant. One that says nothing any
// more, as its bundle has become another, is forgotten.
func (t *try) facts(v verdict) *parry.FirewallFacts {
	switch {
	case v.failure != "" && v.failure != parry.FailProof:
		return nil
	case t.out.Facts == nil && v.failure == "" && t.st.FactsRev > 0:
		return &parry.FirewallFacts{}
	}
	return t.out.Facts
}

// moved tells whether the firewall's forwards have changed so that a standing block becomes something else there.
func (t *try) moved(ctx context.Context, now *parry.FirewallFacts) bool {
	if now == nil || !t.bundle.Manifest.AfterNAT {
		return false
	}
	was, err := t.natTable(ctx, t.st, t.fw, &t.bundle.Manifest)
	if err != nil {
		return true // a run more than needed does no harm
	}
	next := nat.Of(t.fw.NAT, now.Forwards, true)
	blocks, _ := t.r.view.in(t.sc)
	return slices.ContainsFunc(blocks, func(b standing) bool {
		old, tooMany := was.Translate(b.Match)
		to, err := next.Translate(b.Match)
		return !slices.Equal(old, to) || (tooMany == nil) != (err == nil)
	})
}

// interrupted tells whether parry itself ended the run: nobody's fault, and what it did is to be verified.
func (t *try) interrupted(v verdict) bool {
	select {
	case <-t.lease.Lost():
		return true
	default:
		return v.failure == parry.FailCancelled
	}
}

// failed fills in what a failed run leaves behind, and returns when it is tried again.
func (t *try) failed(ctx context.Context, v verdict, f *parry.FinishRun) time.Time {
	m, now := &t.mem, t.now()
	m.uncertain = v.state == parry.RunUnknown
	drift := t.run.Kind == parry.RunVerify && v.failure == parry.FailProof
	if drift {
		m.drifts++
		m.trusted, m.probe, m.sentSum = "", nil, ""
		f.Dirty, f.Drift = t.st.DirtyRev <= t.st.AppliedRev, v.drift
		t.r.metrics.drifts.WithLabelValues(t.name).Inc()
	}
	if v.failure == parry.FailFlushed { // nothing is in force there any more
		f.Dirty = t.st.DirtyRev <= t.st.AppliedRev
	}
	in := &f.Incident
	if !in.Open() {
		in.Since = t.run.StartedAt
	}
	if drift && in.Failure.NeedsAdopt() {
		m.lifted = true // it let itself be read as ours: an apply shows whether it takes orders again
		in.NextTry = now
		return now
	}
	m.lifted = false
	pace := v.failure.Pace()
	if pace != m.pace {
		m.pace, m.streak = pace, 0
	}
	m.streak++
	if in.Failure != v.failure {
		in.Began = t.run.StartedAt
	}
	in.Failure, in.Message = v.failure, v.message
	in.Attempts++
	in.NextTry = now.Add(t.r.o.Backoff.after(pace, m.streak, t.r.o.Rand()))
	tell := m.streak >= tellAfter(v.failure)
	if drift {
		if tell = m.drifts > 1; !tell {
			in.NextTry = now // repaired at once
		}
	}
	if v.failure == parry.FailApproval {
		in.NextTry = time.Time{} // no try before a word or a change
	}
	if f.Approval, f.ApprovalDiff = t.asks, t.diff; tell && (in.ID == "" || t.asks != nil) && len(t.r.o.Channels) > 0 {
		id := parry.NewNotificationID(now)
		in.ID = cmp.Or(in.ID, id)
		f.Notifications = append(f.Notifications, t.notification(id, in.ID, parry.NotifyFailed, t.failureReport(ctx, in)))
	}
	return in.NextTry
}

// verified fills in what a verify that matched leaves behind.
func (t *try) verified(ctx context.Context, f *parry.FinishRun) (after func()) {
	m := &t.mem
	unread := t.identity()
	m.fresh = unread // what it was read for has not been tried yet
	m.verified, m.uncertain, m.lastVerify, m.readAs = true, false, t.now(), t.fw.Digest
	if got := t.out.Proof; unread && (t.st.ProvedAt.IsZero() || got.SHA256 != t.st.Proof.SHA256 || got.Count != t.st.Proof.Count) {
		f.Incident.NextTry = t.now()
		return nil // it is known now; an apply follows, which counts
	}
	if p := m.probe; p != nil {
		m.trusted, m.drifts = p.run.Bundle.Digest, 0
		t.run.Revision, t.run.Rejected = p.run.Revision, p.run.Rejected
		t.approved = p.approved
		return t.counts(ctx, p.run.Kind, p.rejects, f, func() {
			m.probe = nil
			if len(p.rejects) == 0 {
				m.sentSum = p.run.Want.SHA256
			}
		})
	}
	if t.st.Incident.Failure.NeedsAdopt() {
		// That it can be read does not mean that it takes orders again: an apply shows.
		m.lifted = true
		f.Incident.NextTry = t.now()
		f.Dirty = t.st.DirtyRev <= t.st.AppliedRev
		return nil
	}
	m.drifts = 0
	if t.bundle.Digest == m.applied.Digest {
		m.trusted = t.bundle.Digest
	}
	t.recallEnds(ctx)
	f.Applied = true // at the revision that stands: only the time of the proof moves
	if t.st.DirtyRev <= t.st.AppliedRev || t.st.Emptied() {
		t.recovered(ctx, f)
	}
	return nil
}

// appliedWell fills in what an apply whose proof matched leaves behind.
func (t *try) appliedWell(ctx context.Context, v verdict, f *parry.FinishRun) (after func()) {
	m := &t.mem
	m.uncertain, m.lifted = false, false
	m.applied, m.sent, m.sentSum, m.sentNAT, m.refused = t.bundle.BundleRef, t.sent.file(), "", t.nat, map[int]bool{}
	m.ends.told(t.sent, t.run.StartedAt)
	for i := range v.rejected {
		m.refused[i] = true
	}
	rejects := maps.Clone(t.sent.rejects)
	again := false
	for i, code := range v.rejected {
		for _, id := range t.sent.lines[i].blocks() {
			rejects[id] = code
		}
		again = again || t.sent.lines[i].covers
	}
	switch {
	case again:
		// The firewall refused an entry that others were left out for. Nothing is claimed until these were sent for themselves.
		f.Incident.NextTry = t.now()
		f.SetRejects, f.Rejects = true, t.rejectRows(rejects)
		return func() { t.setRejected(rejects) }
	case m.trusted != t.bundle.Digest:
		f.Incident.NextTry = t.now()
		f.ClearWords = t.st.Adopt
		run, approved := t.run, t.approved
		return func() { m.probe = &applied{run, rejects, t.trial, approved} }
	}
	m.verified = true
	if m.lastVerify.IsZero() {
		m.lastVerify = t.now()
	}
	return t.counts(ctx, t.run.Kind, rejects, f, func() {
		if len(rejects) == 0 {
			m.sentSum = t.sent.sum
		}
	})
}

// counts makes the run count: its revision becomes the firewall's.
func (t *try) counts(ctx context.Context, kind parry.RunKind, rejects map[parry.BlockID]string, f *parry.FinishRun, then func()) func() {
	f.Applied, f.Emptied = kind != parry.RunPanic, kind == parry.RunPanic
	f.ClearWords = t.st.Adopt
	t.passed(f)
	f.ApprovalUsed, f.ApprovalGone = t.approved, kind == parry.RunApply
	f.Retired = kind == parry.RunRetire
	t.rejects = rejects
	if fresh := t.newRejects(rejects); len(fresh) > 0 && len(t.r.o.Channels) > 0 {
		id := parry.NewNotificationID(t.now())
		f.Notifications = append(f.Notifications, t.notification(id, id, parry.NotifyRejected, t.rejectReport(ctx, fresh)))
	}
	if !maps.Equal(rejects, t.mem.rejected) {
		f.SetRejects, f.Rejects = true, t.rejectRows(rejects)
	}
	t.recovered(ctx, f)
	t.mem.streak, t.mem.pace = 0, ""
	from, dirty := t.st.AppliedRev, t.st.DirtyRev > t.st.AppliedRev || t.st.ProvedAt.IsZero()
	return func() {
		t.setRejected(rejects)
		if !dirty { // else blocks of long ago would count as slow
			t.r.metrics.proved(t.name, t.r.view, t.sc, from, t.run.Revision, t.run.EndedAt)
		}
		then()
	}
}

// recovered closes the incident; it is told when the failure was, and when drift was repaired.
func (t *try) recovered(ctx context.Context, f *parry.FinishRun) {
	in := t.st.Incident
	f.Incident = parry.Incident{}
	t.mem.streak, t.mem.pace = 0, ""
	if !in.Open() || len(t.r.o.Channels) == 0 || in.ID == "" && in.Failure != parry.FailProof {
		return
	}
	id := parry.NewNotificationID(t.now())
	thread := in.ID
	if thread == "" {
		thread = id
	}
	f.Notifications = append(f.Notifications, t.notification(id, thread, parry.NotifyRecovered, t.recoveryReport(ctx, &in)))
}

// newRejects is what was not rejected before.
func (t *try) newRejects(now map[parry.BlockID]string) map[parry.BlockID]string {
	out := map[parry.BlockID]string{}
	for id, code := range now {
		if t.mem.rejected[id] != code {
			out[id] = code
		}
	}
	return out
}

func (t *try) rejectRows(codes map[parry.BlockID]string) []parry.Reject {
	out := make([]parry.Reject, 0, len(codes))
	for id, code := range codes {
		out = append(out, parry.Reject{Firewall: t.name, BlockID: id, Code: code, RunID: t.run.ID, At: t.run.EndedAt})
	}
	return out
}

// store finishes the run, and tries a few times: what a run has done should not be forgotten over a moment's trouble.
func (t *try) store(ctx context.Context, f parry.FinishRun) (err error) {
	for range 5 {
		err = t.r.o.Store.FinishRun(ctx, f)
		if t.lost = errors.Is(err, store.ErrLaneLost); err == nil || t.lost || ctx.Err() != nil || parry.KindOf(err) == parry.KindConflict {
			return err
		}
		pause(ctx, time.Second)
	}
	return err
}

func (t *try) logEnd() {
	if t.run.Failure != "" {
		t.log.Warn("run failed", "run_id", t.run.ID, "kind", t.run.Kind, "state", t.run.State, "failure", t.run.Failure, "task", t.run.Task,
			"message", t.run.Message)
		return
	}
	t.log.Info("run succeeded", "run_id", t.run.ID, "kind", t.run.Kind, "revision", t.run.Revision, "entries", t.run.Want.Count,
		"rejected", t.run.Rejected, "added", t.run.Got.Added, "removed", t.run.Got.Removed, "seconds", t.run.EndedAt.Sub(t.run.StartedAt).Seconds())
}
