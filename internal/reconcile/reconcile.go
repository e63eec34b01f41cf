package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// Store is what the reconciler needs of the store.
type Store interface {
	AcquireLane(ctx context.Context, name string) (*store.Lane, error)
	AbandonRuns(ctx context.Context, firewall string) error
	FirewallState(ctx context.Context, name string) (parry.FirewallState, error)
	FirewallRejects(ctx context.Context, firewall string) ([]parry.Reject, error)
	Facts(ctx context.Context) (map[string]parry.FirewallFacts, error)
	Changes(ctx context.Context, since parry.Revision) (parry.Changes, error)
	EndExempted(ctx context.Context, x []parry.Exemption) ([]parry.BlockID, error)
	EndDue(ctx context.Context, now time.Time) (int, error)
	NextDue(ctx context.Context) (time.Time, error)
	NextHoldEnd(ctx context.Context) (time.Time, error)
	EndHolds(ctx context.Context, now time.Time) (ended []string, err error)
	MarkDirty(ctx context.Context, name string) error
	BeginRun(ctx context.Context, run parry.Run) error
	FinishRun(ctx context.Context, f parry.FinishRun) error
	// AdvanceApplied raises a firewall's applied revision without a run: nothing up to rev concerns it, or what it holds is what is
	// desired at rev. Like a finished run it wakes Applied; it takes no revision and touches no proof.
	AdvanceApplied(ctx context.Context, firewall string, rev parry.Revision) error
	Runs(ctx context.Context, f parry.RunFilter) (parry.Page[parry.Run], error)
	Approval(ctx context.Context, id parry.ApprovalID) (parry.Approval, error)
	ApprovalDiff(ctx context.Context, id parry.ApprovalID) (parry.Diff, error)
	Desired(ctx context.Context) <-chan struct{}
	BundleState(ctx context.Context, name string) (parry.BundleState, error)
	BeginRelease(ctx context.Context, bundle string, r parry.Release) error
	EndReleases(ctx context.Context, bundle string) error
	NextCheck(ctx context.Context, firewall string) (parry.Check, error)
}

// Runner executes playbooks; *ansible.Runner is one.
type Runner interface {
	Run(ctx context.Context, s ansible.Spec) (*ansible.Outcome, error)
	LockLane(name string) (*os.File, error)
}

// Library gives bundles; *bundle.Library is one.
type Library interface {
	Refresh(ctx context.Context, name string) (bundle.Bundle, error)
	Get(name, digest string) (bundle.Bundle, error)
}

// Options of a Reconciler. Store, Runner, Library, Fleet, Host, Exempt and Controller are required; the functions are called whenever the
// answer is needed, so that a reload shows, and from several goroutines.
type Options struct {
	Store      Store
	Runner     Runner
	Library    Library
	Fleet      func() *parry.Fleet                               // the same pointer until a reload, which changes hosts no sooner
	Host       func(name string) ansible.Host                    // Err is set when the inventory has none
	Exempt     func(source netip.Prefix) (parry.Exemption, bool) // an exemption that overlaps the source, in either direction
	ExemptFile func() parry.ExemptFile                           // what firewalls put ahead of their drops; nil: they are given nothing
	Controller string                                            // the store's controller id
	Channels   parry.Subscriptions                               // whom to notify; none: nothing is written
	StateDir   string                                            // Run.Dir is kept relative to it
	Playbook   string                                            // ansible-playbook, for the command in a report; that name when empty

	MaxRuns     int           // runs at once; 0 is 8
	Slack       time.Duration // how late a block may end, so that neighbours share a run; 0 is 10 s
	RunDeadline time.Duration // of one run; 0 is the runner's
	Drain       time.Duration // how long a run in progress is given after Run's context ended; 0 is 30 s
	VerifyEvery time.Duration // 0 is 15 min
	Backoff     Backoff
	Bounds      Bounds

	Now        func() time.Time     // wall clock; nil is time.Now
	Mono       func() time.Duration // monotonic clock; nil is the machine's
	Rand       func() float64       // in [0, 1), for jitter
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

func (o *Options) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Slack, 10*time.Second)
	def(&o.Drain, 30*time.Second)
	def(&o.VerifyEvery, 15*time.Minute)
	o.Backoff.setDefaults()
	o.Bounds.setDefaults()
	if o.MaxRuns <= 0 {
		o.MaxRuns = 8
	}
	if o.Playbook == "" {
		o.Playbook = "ansible-playbook"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Mono == nil {
		start := time.Now()
		o.Mono = func() time.Duration { return time.Since(start) }
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Delays that no configuration needs.
const (
	slotHold        = 15 * time.Second       // see slots
	gatherQuiet     = 150 * time.Millisecond // after a run during which changes came, the next waits for so long a pause
	gatherMost      = 2 * time.Second        // but not longer
	earlyAfter      = 30 * time.Second       // a change may bring a failing firewall's next try forward to so long after the last
	advanceEvery    = 30 * time.Second
	exemptGather    = 10 * time.Second // a change of the exemptions waits for others, unless a run takes it along
	exemptEvery     = time.Minute      // so often at most is a run begun for exemptions alone
	reconsiderAfter = 5 * time.Second  // during an approval_required
	pollEvery       = 30 * time.Second
	wakeSpacing     = 20 * time.Millisecond
	orphanGrace     = 30 * time.Second // an orphan that lasts longer is told
)

// Reconciler runs the lanes. Its methods may be called from any goroutine.
type Reconciler struct {
	o          Options
	log        *slog.Logger
	view       *view
	slots      *slots
	clock      *clockWatch
	metrics    *metrics
	reload     chan struct{}
	expiryWake chan struct{}

	mu    sync.Mutex
	lanes map[string]*lane
}

// New checks the options; nothing starts before Run.
func New(o Options) (*Reconciler, error) {
	var missing []string
	for name, ok := range map[string]bool{
		"Store": o.Store != nil, "Runner": o.Runner != nil, "Library": o.Library != nil, "Fleet": o.Fleet != nil, "Host": o.Host != nil,
		"Exempt": o.Exempt != nil, "Controller": o.Controller != "",
	} {
		if !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, fmt.Errorf("reconcile: options lack %s", strings.Join(missing, ", "))
	}
	o.setDefaults()
	r := &Reconciler{
		o: o, log: o.Logger,
		view:       &view{store: o.Store},
		slots:      newSlots(o.MaxRuns, slotHold),
		clock:      newClockWatch(o.Now, o.Mono),
		reload:     make(chan struct{}, 1),
		expiryWake: make(chan struct{}, 1),
		lanes:      map[string]*lane{},
	}
	r.metrics = newMetrics(r)
	if o.Registerer != nil {
		if err := o.Registerer.Register(r.metrics); err != nil {
			return nil, fmt.Errorf("reconcile: register metrics: %w", err)
		}
	}
	return r, nil
}

// Run works until ctx is done. Then no run is begun any more; those in progress are given Options.Drain, and are ended after that. It
// returns when every lane has let go.
func (r *Reconciler) Run(ctx context.Context) error {
	for { // without the desired state nothing can be told to a firewall
		err := r.view.refresh(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		r.log.Error("read the desired state", "err", err)
		pause(ctx, 2*time.Second)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { r.expire(ctx) })
	defer r.stopLanes(nil)
	r.syncLanes(ctx, &wg)

	desired := r.o.Store.Desired(ctx)
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.reload:
			r.syncLanes(ctx, &wg)
		case <-desired:
		case <-poll.C: // what a lost wake left behind
		}
		if err := r.view.refresh(ctx); err != nil && !errors.Is(err, context.Canceled) {
			r.log.Error("read the desired state", "err", err)
		}
		poke(r.expiryWake)
		r.mu.Lock()
		for _, l := range r.lanes {
			poke(l.wake)
		}
		r.mu.Unlock()
		pause(ctx, wakeSpacing)
	}
}

// Reload takes a new fleet, new hosts, exemptions and bundles into account: lanes start and stop, bundles are looked at again. The caller
// has told the store of the new fleet before. It also accepts the wall clock as it is.
func (r *Reconciler) Reload() {
	r.clock.accept()
	poke(r.reload)
}

// ClockHeld says why expiry is held, nil when it is not.
func (r *Reconciler) ClockHeld() error { return r.clock.err() }

// syncLanes makes the lanes those of the fleet.
func (r *Reconciler) syncLanes(ctx context.Context, wg *sync.WaitGroup) {
	fleet := r.o.Fleet()
	listed := map[string]bool{}
	for i := range fleet.Firewalls {
		listed[fleet.Firewalls[i].Name] = true
	}
	r.stopLanes(listed)
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range listed {
		if l, ok := r.lanes[name]; ok {
			l.reloaded.Store(true)
			continue
		}
		l := newLane(r, name)
		lctx, cancel := context.WithCancel(ctx)
		l.stop = cancel
		r.lanes[name] = l
		wg.Go(func() {
			defer cancel()
			l.run(lctx)
		})
	}
}

// stopLanes stops those that are not kept. A lane that was stopped still drains its run; one that is listed again meanwhile waits for its
// lock.
func (r *Reconciler) stopLanes(keep map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, l := range r.lanes {
		if !keep[name] {
			l.stop()
			delete(r.lanes, name)
			r.metrics.forget(name)
		}
	}
}

// LaneStatus is what a lane is doing.
type LaneStatus struct {
	Firewall string
	State    LaneState
	Since    time.Time // of State
	RunID    parry.RunID
	Failure  parry.Failure
	NextTry  time.Time
	Blocks   int // live blocks that the firewall is meant for
	Pending  int // of those, not proved to be in force, rejected ones apart
	Rejected int
	Enforced int
	Reality  parry.Reality // what is known of what it holds
}

// LaneState is what a firewall's lane is doing, empty when this replica has none for it. Unlike Status it is cheap.
func (r *Reconciler) LaneState(firewall string) LaneState {
	r.mu.Lock()
	l := r.lanes[firewall]
	r.mu.Unlock()
	if l == nil {
		return ""
	}
	s, _, _ := l.snapshot()
	return s.State
}

// Status tells of every lane, sorted by firewall. It counts all standing blocks: for metrics and pages, not for loops.
func (r *Reconciler) Status() []LaneStatus {
	fleet := r.o.Fleet()
	r.mu.Lock()
	lanes := make([]*lane, 0, len(r.lanes))
	for _, l := range r.lanes {
		lanes = append(lanes, l)
	}
	r.mu.Unlock()
	out := make([]LaneStatus, 0, len(lanes))
	for _, l := range lanes {
		s, applied, dirty := l.snapshot()
		if fw, ok := fleet.Firewall(l.name); ok {
			all, above := r.view.count(newScope(fleet, fw), applied)
			if dirty {
				above = all
			}
			s.Blocks, s.Pending = all, max(0, above-s.Rejected)
			s.Enforced = max(0, all-s.Pending-s.Rejected)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b LaneStatus) int { return strings.Compare(a.Firewall, b.Firewall) })
	return out
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
