package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/nat"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// lane owns one firewall. Everything but wake, reloaded, stop and what mu guards belongs to its goroutine.
type lane struct {
	r        *Reconciler
	name     string
	log      *slog.Logger
	wake     chan struct{} // buffered 1
	reloaded atomic.Bool
	stop     context.CancelFunc

	lease *store.Lane
	lock  *os.File
	lost  bool // the store says so before the lease does

	mem memory

	mu      sync.Mutex
	status  LaneStatus
	applied parry.Revision
	dirty   bool
	last    parry.FirewallState
}

// memory is what a lane knows since it was taken. Losing it costs a verify, never a wrong claim.
type memory struct {
	base      parry.Revision // the newest change that concerned the firewall when the lane was taken
	others    parry.Revision // the newest of all then
	fresh     bool
	verified  bool
	uncertain bool
	lifted    bool
	wordUsed  bool
	gather    bool // changes came while the last run was on
	abandon   bool // a run could not be finished in the store
	absent    bool // the store does not know the firewall

	lastCheck                                 time.Time // of a simulation
	lastTry, lastVerify, lastAdvance, lastEnd time.Time
	exemptSent, exemptStale                   time.Time // when exemptions were last sent, and since when others are meant
	triedRelevant, triedDirty, triedVerify    parry.Revision
	elsewhere                                 parry.Revision // dirty so far by a configuration that is not this parry's (yet): no run of its own ends that

	relevant   parry.Revision // as last seen, and since when
	relevantAt time.Time

	pace   parry.Pace // of the failures in a row
	streak int
	drifts int   // verifies in a row that found something else
	known  int64 // the highest epoch that the firewall has shown

	applied     parry.BundleRef // of the last apply that succeeded
	trusted     string          // the digest whose apply a verify has confirmed
	checked     string          // the new digest that a canary has seen through in check mode
	probe       *applied        // an apply that waits for that
	sent        []byte          // desired file of the last apply that succeeded; nil: not known (yet)
	refused     map[int]bool    // lines of it, from 0, that the firewall refused
	readAs      string          // the digest that the firewall was read with since the lane was taken
	sentSum     string          // sum of what was sent by the last apply that counted; empty: not known
	rejected    map[parry.BlockID]string
	forwards    []parry.PortForward // the firewall's own, as of forwardsRev
	forwardsRev parry.Revision
	sentNAT     *nat.Table // what the last apply that succeeded was rendered with
	ends        ends
}

// applied is a successful apply that does not count yet.
type applied struct {
	run      parry.Run
	rejects  map[parry.BlockID]string
	trial    *parry.Tried
	approved parry.ApprovalID
}

func newLane(r *Reconciler, name string) *lane {
	l := &lane{r: r, name: name, log: r.log.With("firewall", name), wake: make(chan struct{}, 1)}
	l.status = LaneStatus{Firewall: name, State: LaneStarting, Since: r.o.Now()}
	return l
}

func (l *lane) now() time.Time { return l.r.o.Now() }

func (l *lane) show(s LaneState, next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.status.State != s {
		l.status.State, l.status.Since = s, l.now()
	}
	if s != LaneRunning {
		l.status.RunID = ""
	}
	l.status.NextTry = next
}

func (l *lane) snapshot() (s LaneStatus, applied parry.Revision, dirty bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Reality = l.last.Reality(l.now(), parry.ReadingGood(l.r.o.VerifyEvery))
	return l.status, l.applied, l.dirty
}

// run takes the lane's locks and serves it, again and again, until ctx is done.
func (l *lane) run(ctx context.Context) {
	for ctx.Err() == nil {
		if l.take(ctx) {
			l.serve(ctx)
		}
		l.letGo()
	}
}

// take gets the lane in the store, then on this machine. It reports false when it has to be begun again.
func (l *lane) take(ctx context.Context) bool {
	for l.lease == nil {
		lease, err := l.r.o.Store.AcquireLane(ctx, l.name)
		switch {
		case ctx.Err() != nil:
			l.lease = lease
			return false
		case err == nil:
			l.lease = lease
		case parry.KindOf(err) == parry.KindNotFound:
			l.show(LaneRetired, time.Time{})
			pause(ctx, 5*time.Second)
		case errors.Is(err, store.ErrLaneTaken):
			l.show(LaneStandby, time.Time{})
			pause(ctx, 2*time.Second)
		default:
			l.log.Error("take the lane", "err", err)
			pause(ctx, 5*time.Second)
		}
	}
	l.log.Info("lane taken", "epoch", l.lease.Epoch)
	since, told := l.now(), false
	for l.lock == nil {
		f, err := l.r.o.Runner.LockLane(l.name)
		switch {
		case err == nil:
			l.lock = f
			continue
		case !errors.Is(err, ansible.ErrOrphan):
			l.log.Error("lock the lane on this machine", "err", err)
			pause(ctx, 5*time.Second)
		default:
			l.show(LaneOrphan, time.Time{})
			if !told && l.now().Sub(since) >= orphanGrace {
				told = true
				l.log.Warn("a run of a killed controller is still on")
				if st, err := l.state(ctx); err == nil {
					l.failEarly(ctx, &st, parry.RunApply, parry.FailOrphan, "a run that a killed parry began is still on")
				}
			}
			pause(ctx, 500*time.Millisecond)
		}
		select {
		case <-ctx.Done():
			return false
		case <-l.lease.Lost():
			return false
		default:
		}
	}
	for {
		err := l.begin(ctx)
		if err == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-l.lease.Lost():
			return false
		default:
		}
		l.log.Error("begin the lane", "err", err)
		pause(ctx, 5*time.Second)
	}
}

// begin reads what the lane must know before its first step.
func (l *lane) begin(ctx context.Context) error {
	s := l.r.o.Store
	if err := s.AbandonRuns(ctx, l.name); err != nil {
		return err
	}
	st, err := l.state(ctx)
	if parry.KindOf(err) == parry.KindNotFound {
		l.mem = memory{absent: true}
		return nil
	}
	if err != nil {
		return err
	}
	if !st.ProvedAt.IsZero() {
		l.r.metrics.proven.WithLabelValues(l.name).Set(float64(st.ProvedAt.UnixMilli()) / 1000)
	}
	m := memory{fresh: true, triedDirty: st.DirtyRev, streak: st.Incident.Attempts, rejected: map[parry.BlockID]string{}}
	if st.Incident.Open() {
		m.pace = st.Incident.Failure.Pace()
	}
	fleet := l.r.o.Fleet()
	if fw, ok := fleet.Firewall(l.name); ok && st.AppliedRev > 0 {
		// The view knows no block that ended before it was first read.
		ch, err := s.Changes(ctx, st.AppliedRev)
		if err != nil {
			return err
		}
		for i := range ch.Blocks {
			b := &ch.Blocks[i]
			if b.Simulated {
				continue
			}
			if m.others = max(m.others, changed(b)); changed(b) > st.AppliedRev && fleet.Selects(b.Selector, fw) {
				m.base = max(m.base, changed(b))
			}
		}
	}
	rejects, err := s.FirewallRejects(ctx, l.name)
	if err != nil {
		return err
	}
	for _, j := range rejects {
		m.rejected[j.BlockID] = j.Code
	}
	runs, err := s.Runs(ctx, parry.RunFilter{Firewall: l.name, State: parry.RunSucceeded, Limit: 100})
	if err != nil {
		return err
	}
	for i := len(runs.Items) - 1; i >= 0; i-- { // oldest first
		switch r := &runs.Items[i]; {
		case r.Kind == parry.RunApply, r.Kind == parry.RunPanic:
			m.applied = r.Bundle
		case r.Kind == parry.RunVerify && r.Bundle.Digest == m.applied.Digest:
			m.trusted = r.Bundle.Digest
		}
	}
	l.mem = m
	if fw, ok := fleet.Firewall(l.name); ok && fw.Canary {
		l.reloaded.Store(true) // a new version may have come meanwhile
	}
	l.setRejected(m.rejected)
	return nil
}

func (l *lane) setRejected(codes map[parry.BlockID]string) {
	l.mem.rejected = codes
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Rejected = len(codes)
}

// letGo releases what take took.
func (l *lane) letGo() {
	if l.lock != nil {
		if err := l.lock.Close(); err != nil {
			l.log.Error("unlock the lane on this machine", "err", err)
		}
		l.lock = nil
	}
	l.lost = false
	if l.lease != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := l.lease.Release(ctx); err != nil {
			l.log.Warn("release the lane", "err", err)
		}
		l.lease = nil
	}
}

// state reads what the store says of the firewall.
func (l *lane) state(ctx context.Context) (parry.FirewallState, error) {
	st, err := l.r.o.Store.FirewallState(ctx, l.name)
	if err == nil {
		l.mu.Lock()
		l.last = st
		l.applied, l.dirty = st.AppliedRev, st.DirtyRev > st.AppliedRev || st.ProvedAt.IsZero()
		l.status.Failure = st.Incident.Failure
		l.mu.Unlock()
	}
	return st, err
}

// serve repeats steps until ctx is done or the lane is lost.
func (l *lane) serve(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		until, again := l.step(ctx)
		if l.lost {
			l.log.Warn("lane lost")
			return
		}
		if again {
			select {
			case <-ctx.Done():
				return
			case <-l.lease.Lost():
				l.log.Warn("lane lost")
				return
			default:
				continue
			}
		}
		timer.Stop()
		if !until.IsZero() {
			timer.Reset(max(0, until.Sub(l.now())))
		}
		select {
		case <-ctx.Done():
			return
		case <-l.lease.Lost():
			l.log.Warn("lane lost")
			return
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// step decides and acts once. It returns until when nothing need be looked at but for a wake, or that the next step follows at once.
func (l *lane) step(ctx context.Context) (until time.Time, again bool) {
	now := l.now()
	if l.mem.abandon {
		if err := l.r.o.Store.AbandonRuns(ctx, l.name); err != nil {
			return now.Add(5 * time.Second), false
		}
		l.mem.abandon = false
	}
	fleet := l.r.o.Fleet()
	fw, ok := fleet.Firewall(l.name)
	if !ok {
		return time.Time{}, false // about to be stopped
	}
	sc := newScope(fleet, fw)
	if l.reloaded.Swap(false) {
		l.look(ctx, fw)
	}
	st, err := l.state(ctx)
	if parry.KindOf(err) == parry.KindNotFound {
		l.mem.absent = true // retired; a reload that lists it brings it back
		l.show(LaneRetired, time.Time{})
		return time.Time{}, false
	}
	if err == nil && l.mem.absent {
		err = l.begin(ctx)
	}
	if fw.Digest != st.Digest && st.DirtyRev <= l.mem.elsewhere {
		st.DirtyRev = min(st.DirtyRev, st.AppliedRev)
	}
	if err != nil {
		if ctx.Err() == nil {
			l.log.Error("read the firewall's state", "err", err)
		}
		return now.Add(5 * time.Second), false
	}
	if st.Check != "" && (st.PanicRev == 0 || st.Emptied()) {
		return l.asked(ctx, &st, fw, sc)
	}
	endsDue, look := l.endsDue(ctx, &st, sc)
	s := l.situation(st, sc)
	s.endsDue = endsDue
	d := decide(s)
	if !look.IsZero() && d.do == doWait && (d.until.IsZero() || look.Before(d.until)) {
		d.until = look
	}
	if d.do == doApply && l.mem.gather {
		if quiet := earliest(l.mem.relevantAt.Add(gatherQuiet), l.mem.lastEnd.Add(gatherMost)); now.Before(quiet) {
			d = decision{state: LaneGathering, until: quiet}
		}
	}
	switch d.do {
	case doWait:
		l.show(d.state, d.until)
		return d.until, false
	case doAdvance:
		l.mem.lastAdvance = now
		if err := l.r.o.Store.AdvanceApplied(ctx, l.name, s.any); err != nil {
			l.log.Error("advance the applied revision", "err", err)
		}
		return time.Time{}, true
	}
	return l.attempt(ctx, &st, fw, sc, d.do)
}

func (l *lane) situation(st parry.FirewallState, sc *scope) situation {
	m := &l.mem
	newest, any := l.r.view.relevant(sc)
	newest, any = max(newest, m.base), max(any, m.others)
	if newest != m.relevant {
		m.relevant, m.relevantAt = newest, l.now()
	}
	if !st.Adopt {
		m.wordUsed = false
	}
	return situation{
		exemptDue: l.exemptDue(&st),
		simulated: l.r.view.simRelevant(sc), lastCheck: m.lastCheck,
		now: l.now(), state: st, relevant: newest, any: any,
		fresh: m.fresh, verified: m.verified, unread: st.ProvedAs != sc.firewall.Digest && m.readAs != sc.firewall.Digest, uncertain: m.uncertain, probation: m.probe != nil && (st.PanicRev == 0 || m.probe.run.Kind == parry.RunPanic), lifted: m.lifted, wordUsed: m.wordUsed,
		lastTry: m.lastTry, lastVerify: m.lastVerify, lastAdvance: m.lastAdvance,
		triedRelevant: m.triedRelevant, triedDirty: m.triedDirty, triedVerify: m.triedVerify,
		verifyEvery: l.r.o.VerifyEvery, earlyAfter: earlyAfter, advanceEvery: advanceEvery, reconsiderAfter: reconsiderAfter,
	}
}

// exemptDue is when a run is due because the firewall has other exemptions than are meant; zero while it has not, or takes none.
func (l *lane) exemptDue(st *parry.FirewallState) time.Time {
	m := &l.mem
	if l.r.o.ExemptFile == nil || st.Proof.ExemptSHA256 == "" || st.Proof.ExemptSHA256 == l.r.o.ExemptFile().SHA256 {
		m.exemptStale = time.Time{}
		return time.Time{}
	}
	if m.exemptStale.IsZero() {
		m.exemptStale = l.now()
	}
	due, next := m.exemptStale.Add(exemptGather), m.exemptSent.Add(exemptEvery)
	if next.After(due) {
		return next
	}
	return due
}

// natTable is how the firewall forwards, nil where nothing is to be translated.
func (l *lane) natTable(ctx context.Context, st *parry.FirewallState, fw *parry.Firewall, b *bundle.Manifest) (*nat.Table, error) {
	m := &l.mem
	if b.AfterNAT && m.forwardsRev != st.FactsRev {
		facts, err := l.r.o.Store.Facts(ctx)
		if err != nil {
			return nil, err
		}
		m.forwards, m.forwardsRev = facts[l.name].Forwards, st.FactsRev
	}
	return nat.Of(fw.NAT, m.forwards, b.AfterNAT), nil
}

// look makes the firewall dirty when its bundle has changed since the last apply.
func (l *lane) look(ctx context.Context, fw *parry.Firewall) {
	b, _, _ := l.bundle(ctx, fw, parry.RunApply)
	if b.Digest == "" || l.mem.applied.Digest == "" || b.Digest == l.mem.applied.Digest {
		return
	}
	l.log.Info("the bundle has changed", "bundle", b.Name, "version", b.Version, "digest", b.Digest)
	if err := l.r.o.Store.MarkDirty(ctx, l.name); err != nil {
		l.log.Error("mark the firewall dirty", "err", err)
	}
}
