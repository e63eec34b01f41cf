package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// maxStep is how far the wall clock may move against the monotonic one before expiry is held.
const maxStep = time.Minute

// clockWatch notices that the wall clock was set. A clock that jumps forward would lift every block, so expiry stops and is told of until
// the clock is back or an operator accepts it (a reload or a restart). A machine that was suspended shows the same picture.
type clockWatch struct {
	now  func() time.Time
	mono func() time.Duration // since any point; does not follow the wall clock

	mu       sync.Mutex
	wallBase time.Time
	monoBase time.Duration
	step     time.Duration // zero while the clock is trusted
}

func newClockWatch(now func() time.Time, mono func() time.Duration) *clockWatch {
	c := &clockWatch{now: now, mono: mono}
	c.accept()
	return c
}

// accept takes the wall clock as it is.
func (c *clockWatch) accept() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wallBase, c.monoBase, c.step = c.now().Round(0), c.mono(), 0
}

// check returns the time, or an error while the clock is not trusted.
func (c *clockWatch) check() (time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, mono := c.now().Round(0), c.mono()
	step := now.Sub(c.wallBase) - (mono - c.monoBase)
	if step > maxStep || step < -maxStep {
		c.step = step
		return now, c.held()
	}
	c.wallBase, c.monoBase, c.step = now, mono, 0
	return now, nil
}

func (c *clockWatch) held() error {
	if c.step == 0 {
		return nil
	}
	return fmt.Errorf("the clock was set by %s: expiry is held until it is set back, or parry is reloaded to accept it", c.step.Round(time.Second))
}

// err is the last check's.
func (c *clockWatch) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held()
}

// expire ends due blocks, never early and at most Slack late, so that neighbours in time share a run.
func (r *Reconciler) expire(ctx context.Context) {
	told := false
	for ctx.Err() == nil {
		now, err := r.clock.check()
		if (err != nil) != told {
			if told = err != nil; told {
				r.log.Error("expiry is held", "err", err)
			} else {
				r.log.Info("expiry goes on")
			}
		}
		wait := maxStep / 2 // the clock is looked at at least so often
		if err == nil {
			d, err := r.endDue(ctx, now)
			if err != nil && !errors.Is(err, context.Canceled) {
				r.log.Error("end due blocks", "err", err)
				d = 5 * time.Second
			}
			h, err := r.endHolds(ctx, now)
			if err != nil && !errors.Is(err, context.Canceled) {
				r.log.Error("end holds", "err", err)
				h = 5 * time.Second
			}
			wait = min(wait, d, h)
		}
		select {
		case <-ctx.Done():
		case <-r.expiryWake:
			pause(ctx, 200*time.Millisecond) // a storm wakes often
		case <-time.After(wait):
		}
	}
}

// endDue ends what is due when the first has waited for Slack, and returns how long until there may be more.
func (r *Reconciler) endDue(ctx context.Context, now time.Time) (time.Duration, error) {
	next, err := r.o.Store.NextDue(ctx)
	if err != nil || next.IsZero() {
		return time.Hour, err
	}
	if wait := next.Add(r.o.Slack).Sub(now); wait > 0 {
		return wait, nil
	}
	n, err := r.o.Store.EndDue(ctx, now)
	if err != nil {
		return 0, err
	}
	r.log.Info("blocks expired", "count", n)
	if n == 0 {
		return time.Second, nil // due by our clock and not by the store's: no hot loop
	}
	return 0, nil
}

// endHolds releases what is held no longer than now, and returns how long until there may be more.
func (r *Reconciler) endHolds(ctx context.Context, now time.Time) (time.Duration, error) {
	next, err := r.o.Store.NextHoldEnd(ctx)
	if err != nil || next.IsZero() {
		return time.Hour, err
	}
	if wait := next.Sub(now); wait > 0 {
		return wait, nil
	}
	ended, err := r.o.Store.EndHolds(ctx, now)
	for _, name := range ended {
		r.log.Info("a hold is over: its time has come", "firewall", cmp.Or(name, "all"))
	}
	return 0, err
}

// pause waits unless ctx ends first.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
