package reconcile

import (
	"context"
	"fmt"
	"time"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

// bundle is the copy that the firewall is to be converged with: the one that it is pinned to, by the configuration before an operator's word;
// else the current one, or, beside a canary, the last that passed there. A bad edit of the current one is told, and the last good one used.
// trial is set when the copy is new and this firewall is to prove it for the others.
func (l *lane) bundle(ctx context.Context, fw *parry.Firewall, kind parry.RunKind) (b bundle.Bundle, trial *parry.Tried, err error) {
	if b, trial, err = l.choose(ctx, fw, kind); err == nil {
		err = b.Manifest.CheckSettings(fw.Settings)
	}
	return b, trial, err
}

func (l *lane) choose(ctx context.Context, fw *parry.Firewall, kind parry.RunKind) (b bundle.Bundle, trial *parry.Tried, err error) {
	lib, fleet := l.r.o.Library, l.r.o.Fleet()
	st, err := l.r.o.Store.BundleState(ctx, fw.Bundle)
	if err != nil {
		return b, nil, err
	}
	if c := fleet.Choose(&st, fw, ""); c.PinnedBy != "" {
		if b, err = lib.Get(fw.Bundle, c.Digest); err != nil {
			err = fmt.Errorf("%s pins it to %.12s: %w", c.PinnedBy, c.Digest, err)
		}
		return b, nil, err
	}
	b, err = lib.Refresh(ctx, fw.Bundle)
	if err != nil && b.Digest != "" {
		l.log.Warn("the bundle's newest edit cannot be used", "bundle", fw.Bundle, "digest", b.Digest, "err", err)
		err = nil
	}
	if !fleet.HasCanary(fw.Bundle) {
		if err == nil && st.Release.Digest != "" {
			err = l.r.o.Store.EndReleases(ctx, fw.Bundle)
		}
		return b, nil, err
	}
	if st.Release.Digest == "" && err == nil {
		st, err = l.beginRelease(ctx, b)
	}
	if st.Release.Digest == "" {
		return b, nil, err
	}
	switch c := fleet.Choose(&st, fw, b.Digest); {
	case !c.Trial && c.Digest == b.Digest:
		return b, nil, nil
	case c.Trial && (kind == parry.RunApply || kind == parry.RunVerify): // what is not proved empties no firewall
		trial := &parry.Tried{Bundle: b.BundleRef}
		trial.Canaries, trial.Others = fleet.Canaries(&st)
		return b, trial, nil
	}
	b, err = lib.Get(fw.Bundle, st.Release.Digest)
	return b, nil, err
}

// beginRelease notes what the firewalls of a bundle have when it first has a canary: what this one was converged with, else the current copy.
func (l *lane) beginRelease(ctx context.Context, b bundle.Bundle) (parry.BundleState, error) {
	ref := b.BundleRef
	if a := l.mem.applied; a.Name == b.Name && a.Digest != "" {
		if _, err := l.r.o.Library.Get(a.Name, a.Digest); err == nil {
			ref = a
		}
	}
	if err := l.r.o.Store.BeginRelease(ctx, b.Name, parry.Release{Digest: ref.Digest, Version: ref.Version, At: l.now()}); err != nil {
		return parry.BundleState{}, err
	}
	return l.r.o.Store.BundleState(ctx, b.Name)
}

// Try has the canaries of a bundle look at it again: there may be a new version.
func (r *Reconciler) Try(bundle string) {
	fleet := r.o.Fleet()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range fleet.Firewalls {
		fw := &fleet.Firewalls[i]
		if l, ok := r.lanes[fw.Name]; ok && fw.Canary && fw.Bundle == bundle {
			l.reloaded.Store(true)
			poke(l.wake)
		}
	}
}

// asked does the check that an operator asked for: a run that changes nothing, neither on the firewall nor of what is known of it.
func (l *lane) asked(ctx context.Context, st *parry.FirewallState, fw *parry.Firewall, sc *scope) (until time.Time, again bool) {
	c, err := l.r.o.Store.NextCheck(ctx, l.name)
	if err != nil || c.RunID == "" {
		return l.now().Add(5 * time.Second), err == nil
	}
	l.show(LaneQueued, time.Time{})
	release, err := l.queue(ctx, st, doVerify)
	if err != nil {
		return time.Time{}, ctx.Err() == nil
	}
	defer release()
	host := l.r.o.Host(l.name)
	if l.r.o.Fleet() != sc.fleet {
		return time.Time{}, true
	}
	t := &try{
		lane: l, st: st, fw: fw, sc: sc, host: host, asked: true,
		run: parry.Run{
			ID: c.RunID, Firewall: l.name, Kind: parry.RunCheck, State: parry.RunRunning, Revision: st.AppliedRev, Epoch: l.lease.Epoch,
			StartedAt: l.now(), Bundle: parry.BundleRef{Name: c.Bundle, Digest: c.Digest},
		},
	}
	if t.bundle, err = l.r.o.Library.Get(c.Bundle, c.Digest); err == nil {
		t.run.Bundle = t.bundle.BundleRef
		err = t.bundle.Manifest.CheckSettings(fw.Settings)
	}
	if err != nil {
		return t.cannot(ctx, parry.FailBundle, err)
	}
	if t.host.Err != nil {
		return t.cannot(ctx, parry.FailInventory, t.host.Err)
	}
	rr := &renderer{firewall: fw, manifest: &t.bundle.Manifest, noCover: l.mem.rejected}
	if rr.nat, err = l.natTable(ctx, st, fw, &t.bundle.Manifest); err == nil {
		t.sent, err = l.render(ctx, rr, sc)
	}
	if err != nil {
		return t.cannot(ctx, parry.FailInternal, err)
	}
	t.exempt, t.run.Revision = l.exemptFile(&t.bundle.Manifest), t.sent.revision
	return t.do(ctx)
}

// cannot ends a run for which nothing was executed.
func (t *try) cannot(ctx context.Context, f parry.Failure, why error) (until time.Time, again bool) {
	if ctx.Err() != nil {
		return time.Time{}, false
	}
	t.run.EndedAt = t.now()
	t.out = &ansible.Outcome{State: parry.RunFailed, Failure: f, Message: why.Error()}
	if err := t.r.o.Store.BeginRun(ctx, t.run); err != nil {
		return t.notBegun(ctx, err)
	}
	return t.finish(ctx)
}

// refused ends the trial of a new version: the canary goes back to what the others have, and nobody else gets it.
func (t *try) refused(v verdict, f *parry.FinishRun) time.Time {
	m := &t.mem
	m.uncertain = v.state == parry.RunUnknown
	m.probe, m.checked = nil, ""
	if t.run.Kind == parry.RunVerify {
		m.trusted, m.sentSum = "", ""
	}
	x := *t.trial
	x.Refused, x.Why = true, v.message
	if len(t.r.o.Channels) > 0 {
		x.Told = parry.NewNotificationID(t.now())
		r := t.report()
		r.Since, r.Failure, r.Task, r.Message, r.Hint = t.run.StartedAt, v.failure, t.run.Task, v.message, hintRefused
		r.LogTail, r.Command = t.out.LogTail, t.command()
		f.Notifications = append(f.Notifications, t.notification(x.Told, x.Told, parry.NotifyBundleRefused, r))
	}
	f.Tried, f.Dirty = &x, true
	f.Incident = t.st.Incident
	return t.now()
}

const hintRefused = "The canary goes back to the version that the other firewalls have, and they stay on it. Correct the bundle: a new edit is tried by itself. " +
	"To have this version all the same: `parry bundles use DIGEST`."

// passed adds to a run that counts what it says of a new version.
func (t *try) passed(f *parry.FinishRun) {
	if t.trial == nil {
		return
	}
	x := *t.trial
	if len(t.r.o.Channels) > 0 {
		r := t.report()
		r.Since, r.Until, r.Bundle = t.run.EndedAt, t.run.EndedAt, x.Bundle
		id := parry.NewNotificationID(t.now())
		x.Over = []parry.Notification{t.notification(id, id, parry.NotifyBundleRecovered, r)}
	}
	f.Tried = &x
}
