// Package notify delivers what the outbox holds: one worker per channel, so that a mail server that hangs delays nothing but mail.
//
// A notification is a row that was written in the transaction that caused it, with all that it tells. The worker takes one delivery at a
// time, gives it a deadline, and marks it delivered; what fails is put off with a growing, capped wait. A crash between the channel's
// yes and the mark repeats at most the one delivery that was on its way, under the same id, which mail programs show once. A mark that
// fails repeats nothing: the worker goes on marking, and sends nothing meanwhile.
package notify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/parry"
)

// Channel is a way to tell somebody.
type Channel interface {
	// Notify delivers within ctx. After an error, retryable tells whether the same may go well later without anybody's doing. The error may
	// be a [parry.Error] with RetryAfter, when the other side said how long it wants to be left alone.
	Notify(ctx context.Context, d parry.Delivery) (retryable bool, err error)
}

// Tester is a channel that can show that it works: it delivers something that says so, and tells what the other side answered.
type Tester interface {
	Test(ctx context.Context) (answer string, err error)
}

// Entry is a channel with what the worker must know of it. Name and Channel are required.
type Entry struct {
	Name         string // as notifications bear it
	Type         string // for people
	Channel      Channel
	Subscription parry.Subscription // for people: what is written for the channel is decided where it is written
	Timeout      time.Duration      // of one delivery; 0 is the worker's
	AtMost       Rate               // of bulk notifications; zero: any number
}

// Rate is how many notifications there may be within a time. Beyond it, those that wait are summed up in one.
type Rate struct {
	N   int
	Per time.Duration
}

// Store is what the worker needs of the store.
type Store interface {
	NextDeliveries(ctx context.Context, channel string, n int, bulk bool) ([]parry.Delivery, error)
	FoldDeliveries(ctx context.Context, channel string) (folded int64, err error)
	Delivered(ctx context.Context, id parry.NotificationID, channel string) error
	DeliveryFailed(ctx context.Context, id parry.NotificationID, channel, text string, next time.Time) error
	RetryDeliveries(ctx context.Context, channel string) error // makes due what was put off
	ChannelStates(ctx context.Context) ([]parry.ChannelState, error)
	Outbox(ctx context.Context) <-chan struct{} // something was written
}

// Options of a Worker. Store is required.
type Options struct {
	Store      Store
	Channels   []Entry
	Timeout    time.Duration // of one delivery; 0 is 30 s
	Min, Max   time.Duration // wait after the first failure, doubled each time, at most; 0 is 15 s and 15 min
	Hopeless   time.Duration // wait when a channel says that trying again is of no use by itself; 0 is 1 h
	GiveUp     time.Duration // what is older is told to nobody any more; 0 is 72 h
	Now        func() time.Time
	Rand       func() float64 // in [0, 1), for jitter
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// Worker delivers notifications.
type Worker struct {
	o     Options
	done  *prometheus.CounterVec
	lines []*line
}

// pollEvery finds what became due without a wake.
const (
	pollEvery = 5 * time.Second
	pauseMax  = time.Minute     // of a channel whose deliveries fail, doubled
	parting   = 3 * time.Second // for a delivery in progress when Run's context ends
)

// New checks the options; nothing starts before Run.
func New(o Options) (*Worker, error) {
	if o.Store == nil {
		return nil, errors.New("notify: Store is required")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Timeout, 30*time.Second)
	def(&o.Min, 15*time.Second)
	def(&o.Max, 15*time.Minute)
	def(&o.Hopeless, time.Hour)
	def(&o.GiveUp, 72*time.Hour)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Worker{o: o, done: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "parry_notifications_total", Help: "Attempts to deliver notifications; result is delivered, failed or given_up.",
	}, []string{"channel", "result"})}
	if o.Registerer != nil {
		if err := o.Registerer.Register(w.done); err != nil {
			return nil, fmt.Errorf("notify: register metrics: %w", err)
		}
	}
	for i := range o.Channels {
		l := &line{Worker: w, Entry: &w.o.Channels[i], log: o.Logger.With("channel", o.Channels[i].Name), again: make(chan struct{}, 1)}
		w.lines = append(w.lines, l)
	}
	return w, nil
}

// Run delivers until ctx is done. A delivery on its way is then ended.
func (w *Worker) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, l := range w.lines {
		wg.Go(func() { l.serve(ctx) })
	}
	wg.Wait()
	return nil
}

// line is one channel's worker. What follows again is serve's alone.
type line struct {
	*Worker
	*Entry
	log    *slog.Logger
	again  chan struct{} // ends the pause
	sent   []time.Time   // bulk ones within AtMost.Per, oldest first
	failed int           // deliveries in a row
	due    time.Time     // when the first of what was put off is due; zero: nothing was, as far as this process knows
	pause  time.Time     // until then nothing is tried: the other side is down, or wants to be left alone
}

func (l *line) serve(ctx context.Context) {
	wake := l.o.Store.Outbox(ctx)
	for ctx.Err() == nil {
		if d := l.pause.Sub(l.o.Now()); d > 0 {
			if sleep(ctx, l.again, d) {
				l.failed, l.pause = 0, time.Time{}
			}
			continue
		}
		room, next := l.room()
		if room == 1 && l.AtMost.N > 0 {
			n, err := l.o.Store.FoldDeliveries(ctx, l.Name)
			if err != nil && ctx.Err() == nil {
				l.log.Error("sum up notifications", "err", err)
			} else if n > 0 {
				l.log.Info("notifications summed up", "count", n)
			}
		}
		ds, err := l.o.Store.NextDeliveries(ctx, l.Name, 1, room > 0)
		if err != nil && ctx.Err() == nil {
			l.log.Error("read the outbox", "err", err)
		}
		if len(ds) > 0 {
			l.deliver(ctx, &ds[0])
			continue
		}
		if !l.due.IsZero() {
			next = min(next, max(l.due.Sub(l.o.Now()), time.Millisecond))
		}
		if sleep(ctx, wake, min(next, pollEvery)); !l.due.IsZero() && !l.o.Now().Before(l.due) {
			l.due = time.Time{}
		}
	}
}

// sleep ends early with ctx or a wake; it tells whether it was a wake.
func sleep(ctx context.Context, wake <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
		return true
	case <-t.C:
	}
	return false
}

// room is how many more bulk notifications may go out now, and when there is more room.
func (l *line) room() (n int, next time.Duration) {
	if l.AtMost.N <= 0 {
		return 1, pollEvery
	}
	now := l.o.Now()
	for len(l.sent) > 0 && now.Sub(l.sent[0]) >= l.AtMost.Per {
		l.sent = l.sent[1:]
	}
	if n = l.AtMost.N - len(l.sent); n <= 0 {
		return 0, max(l.AtMost.Per-now.Sub(l.sent[0]), time.Millisecond)
	}
	return n, pollEvery
}

func (l *line) deliver(ctx context.Context, d *parry.Delivery) {
	log := l.log.With("notification_id", d.ID)
	if d.Firewall != "" {
		log = log.With("firewall", d.Firewall)
	}
	if d.Block != nil {
		log = log.With("block_id", d.Block.ID)
	}
	delivered := func(ctx context.Context) error { return l.o.Store.Delivered(ctx, d.ID, l.Name) }
	if age := l.o.Now().Sub(d.CreatedAt); age > l.o.GiveUp {
		log.Error("notification given up", "attempts", d.Attempts)
		l.done.WithLabelValues(l.Name, "given_up").Inc()
		l.mark(ctx, log, delivered)
		return
	}
	// At the end of ctx a delivery in progress is given a moment, so that nothing is delivered and not marked as such.
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cmp.Or(l.Timeout, l.o.Timeout))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(parting, cancel) })
	retryable, err := l.Channel.Notify(dctx, *d)
	stop()
	cancel()
	if d.Kind.Bulk() || d.Kind == parry.NotifySummary {
		l.sent = append(l.sent, l.o.Now()) // tried is enough: it may have arrived
	}
	if err == nil {
		l.failed = 0
		log.Info("notification delivered", "kind", d.Kind)
		l.done.WithLabelValues(l.Name, "delivered").Inc()
		l.mark(ctx, log, delivered)
		return
	}
	wait := l.wait(d.Attempts, retryable)
	if ctx.Err() != nil {
		wait = l.wait(d.Attempts, true) // ended by the shutdown
	} else {
		log.Warn("notification not delivered", "attempts", d.Attempts+1, "retryable", retryable, "err", err)
		l.done.WithLabelValues(l.Name, "failed").Inc()
		l.failed++
		hold := min(l.o.Min<<min(l.failed-1, 8), pauseMax) / 2 // shorter than any wait, so that the next in line gets its turn
		if e := (*parry.Error)(nil); errors.As(err, &e) && e.RetryAfter > 0 {
			wait = min(max(e.RetryAfter, time.Second), time.Hour)
			hold = wait
		}
		l.pause = l.o.Now().Add(hold)
	}
	next := l.o.Now().Add(wait)
	if !l.due.After(l.o.Now()) || next.Before(l.due) {
		l.due = next
	}
	l.mark(ctx, log, func(ctx context.Context) error { return l.o.Store.DeliveryFailed(ctx, d.ID, l.Name, err.Error(), next) })
}

// States tells how each channel stands, in their order.
func (w *Worker) States(ctx context.Context) ([]parry.Channel, error) {
	known, err := w.o.Store.ChannelStates(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]parry.Channel, 0, len(w.o.Channels))
	for i := range w.o.Channels {
		e := &w.o.Channels[i]
		c := parry.Channel{ChannelState: parry.ChannelState{Channel: e.Name}, Type: e.Type, Subscription: e.Subscription}
		for _, s := range known {
			if s.Channel == e.Name {
				c.ChannelState = s
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// Test delivers a notification through a channel that says that it works, at once and past the outbox. When that goes well, what was put off
// is tried again at once, too.
func (w *Worker) Test(ctx context.Context, name string) (answer string, took time.Duration, err error) {
	i := slices.IndexFunc(w.lines, func(l *line) bool { return l.Name == name })
	if i < 0 {
		return "", 0, parry.Errorf(parry.KindNotFound, "there is no channel %q", name)
	}
	l := w.lines[i]
	t, ok := l.Channel.(Tester)
	if !ok {
		return "", 0, parry.Errorf(parry.KindConflict, "channel %q cannot be tested", name)
	}
	tctx, cancel := context.WithTimeout(ctx, cmp.Or(l.Timeout, w.o.Timeout))
	defer cancel()
	begin := time.Now()
	answer, err = t.Test(tctx)
	took = time.Since(begin)
	if err == nil {
		if err := w.o.Store.RetryDeliveries(ctx, name); err != nil {
			l.log.Error("try again what was put off", "err", err)
		}
		select {
		case l.again <- struct{}{}:
		default:
		}
	}
	return answer, took, err
}

// wait is how long to wait after so many earlier attempts and this one.
func (w *Worker) wait(attempts int, retryable bool) time.Duration {
	d := w.o.Hopeless
	if retryable {
		d = w.o.Min
		for i := 0; i < attempts && d < w.o.Max; i++ {
			d *= 2
		}
		d = min(d, w.o.Max)
	}
	return time.Duration(float64(d) * (0.8 + 0.4*w.o.Rand()))
}

// mark writes down what became of a delivery, and tries until it is written: what is not written would be sent again. After a shutdown it
// has a few seconds.
func (w *Worker) mark(ctx context.Context, log *slog.Logger, f func(context.Context) error) {
	mctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(5*time.Second, cancel) })()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := f(mctx)
		if err == nil || parry.KindOf(err) == parry.KindNotFound {
			return
		}
		log.Error("mark a notification", "err", err)
		t := time.NewTimer(wait)
		select {
		case <-mctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}
