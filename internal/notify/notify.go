// Package notify delivers what the outbox holds: one worker per channel, so that a mail server that hangs delays nothing but mail.
//
// A notification is a row that was written in the transaction that caused it, with all that it tells. The worker takes one delivery at a
// time, gives it a deadline, and marks it delivered; what fails is put off with a growing, capped wait. A crash between the channel's
// yes and the mark repeats at most the one delivery that was on its way, under the same id, which mail programs show once. A mark that
// fails repeats nothing: the worker goes on marking, and sends nothing meanwhile.
package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/parry"
)

// Channel is a way to tell somebody.
type Channel interface {
	// Notify delivers within ctx. After an error, retryable tells whether the same may go well later without anybody's doing.
	Notify(ctx context.Context, d parry.Delivery) (retryable bool, err error)
}

// Store is what the worker needs of the store.
type Store interface {
	NextDeliveries(ctx context.Context, channel string, n int) ([]parry.Delivery, error)
	Delivered(ctx context.Context, id parry.NotificationID, channel string) error
	DeliveryFailed(ctx context.Context, id parry.NotificationID, channel, text string, next time.Time) error
	Outbox(ctx context.Context) <-chan struct{} // something was written
}

// Options of a Worker. Store is required.
type Options struct {
	Store      Store
	Channels   map[string]Channel // by the name that notifications bear
	Timeout    time.Duration      // of one delivery; 0 is 30 s
	Min, Max   time.Duration      // wait after the first failure, doubled each time, at most; 0 is 15 s and 15 min
	Hopeless   time.Duration      // wait when a channel says that trying again is of no use by itself; 0 is 1 h
	GiveUp     time.Duration      // what is older is told to nobody any more; 0 is 72 h
	Now        func() time.Time
	Rand       func() float64 // in [0, 1), for jitter
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// Worker delivers notifications.
type Worker struct {
	o    Options
	done *prometheus.CounterVec
}

// pollEvery finds what became due without a wake.
const (
	pollEvery = 5 * time.Second
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
	return w, nil
}

// Run delivers until ctx is done. A delivery on its way is then ended.
func (w *Worker) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for name, c := range w.o.Channels {
		wg.Go(func() { w.serve(ctx, name, c) })
	}
	wg.Wait()
	return nil
}

func (w *Worker) serve(ctx context.Context, name string, c Channel) {
	log := w.o.Logger.With("channel", name)
	wake := w.o.Store.Outbox(ctx)
	for ctx.Err() == nil {
		ds, err := w.o.Store.NextDeliveries(ctx, name, 1)
		if err != nil && ctx.Err() == nil {
			log.Error("read the outbox", "err", err)
		}
		if len(ds) > 0 {
			w.deliver(ctx, log, name, c, &ds[0])
			continue
		}
		t := time.NewTimer(pollEvery)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-t.C:
		}
		t.Stop()
	}
}

func (w *Worker) deliver(ctx context.Context, log *slog.Logger, name string, c Channel, d *parry.Delivery) {
	log = log.With("notification_id", d.ID, "firewall", d.Firewall)
	delivered := func(ctx context.Context) error { return w.o.Store.Delivered(ctx, d.ID, name) }
	if age := w.o.Now().Sub(d.CreatedAt); age > w.o.GiveUp {
		log.Error("notification given up", "attempts", d.Attempts)
		w.done.WithLabelValues(name, "given_up").Inc()
		w.mark(ctx, log, delivered)
		return
	}
	// At the end of ctx a delivery in progress is given a moment, so that nothing is delivered and not marked as such.
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.o.Timeout)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(parting, cancel) })
	retryable, err := c.Notify(dctx, *d)
	stop()
	cancel()
	if err == nil {
		log.Info("notification delivered", "kind", d.Kind)
		w.done.WithLabelValues(name, "delivered").Inc()
		w.mark(ctx, log, delivered)
		return
	}
	if ctx.Err() != nil {
		retryable = true // ended by the shutdown
	} else {
		log.Warn("notification not delivered", "attempts", d.Attempts+1, "retryable", retryable, "err", err)
		w.done.WithLabelValues(name, "failed").Inc()
	}
	next := w.o.Now().Add(w.wait(d.Attempts, retryable))
	w.mark(ctx, log, func(ctx context.Context) error { return w.o.Store.DeliveryFailed(ctx, d.ID, name, err.Error(), next) })
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
