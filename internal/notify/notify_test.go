package notify_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/notify/mail"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
	"github.com/parry/parry/internal/testenv"
)

// channel fails as it is told, and notes when it was asked.
type channel struct {
	mu        sync.Mutex
	fail      []error // one each, then none
	retryable bool
	hang      bool
	at        []time.Time
	got       []parry.NotificationID
}

func (c *channel) Notify(ctx context.Context, d parry.Delivery) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = append(c.at, time.Now())
	if c.hang {
		<-ctx.Done()
		return true, ctx.Err()
	}
	if len(c.fail) > 0 {
		err := c.fail[0]
		c.fail = c.fail[1:]
		return c.retryable, err
	}
	c.got = append(c.got, d.ID)
	return false, nil
}

func open(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), store.Options{Driver: "sqlite", Path: filepath.Join(t.TempDir(), "parry.db"), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func enqueue(t *testing.T, s *store.Store, channels ...string) parry.NotificationID {
	t.Helper()
	id := parry.NewNotificationID(time.Now())
	err := s.Enqueue(context.Background(), []parry.Notification{{
		ID: id, Incident: id, Kind: parry.NotifyFailed, Firewall: "fw-a", CreatedAt: time.Now(), Channels: channels,
		Report: parry.Report{Firewall: "fw-a", Since: time.Now(), Failure: parry.FailUnreachable, WaitingN: 3},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// work runs a worker in a bubble of its own time until f returns.
func work(t *testing.T, channels map[string]notify.Channel, f func(s *store.Store)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t)
		w, err := notify.New(notify.Options{Store: s, Channels: channels, GiveUp: 6 * time.Hour, Rand: func() float64 { return 0.5 }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		f(s)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second) // what was set to end a mark ends
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestWorker_deliversOnceAndRetriesWithBackoff(t *testing.T) {
	c := &channel{fail: []error{errors.New("451"), errors.New("451"), errors.New("451")}, retryable: true}
	work(t, map[string]notify.Channel{"mail": c}, func(s *store.Store) {
		id := enqueue(t, s, "mail")
		time.Sleep(time.Hour)
		synctest.Wait()
		if d := cmp.Diff([]parry.NotificationID{id}, c.got); d != "" {
			t.Errorf("delivered (-want +got)\n%s", d)
		}
		for i, want := range []time.Duration{15 * time.Second, 30 * time.Second, time.Minute} {
			if got := c.at[i+1].Sub(c.at[i]); got < want || got > want+6*time.Second {
				t.Errorf("attempt %d after %v, want %v", i+2, got, want)
			}
		}
		if st, err := s.OutboxStats(context.Background()); err != nil || len(st) != 0 {
			t.Errorf("left in the outbox: %v, %v", st, err)
		}
	})
}

func TestWorker_whatIsHopelessIsTriedSeldomAndGivenUp(t *testing.T) {
	c := &channel{}
	for range 200 {
		c.fail = append(c.fail, errors.New("550"))
	}
	work(t, map[string]notify.Channel{"mail": c}, func(s *store.Store) {
		enqueue(t, s, "mail")
		time.Sleep(8 * time.Hour)
		synctest.Wait()
		if n := len(c.at); n < 6 || n > 7 {
			t.Errorf("%d attempts, want about one an hour for 6 h", n)
		}
		if st, err := s.OutboxStats(context.Background()); err != nil || len(st) != 0 {
			t.Errorf("left in the outbox: %v, %v", st, err)
		}
	})
}

func TestWorker_aChannelThatHangsDelaysNoOther(t *testing.T) {
	stuck, good := &channel{hang: true}, &channel{}
	work(t, map[string]notify.Channel{"stuck": stuck, "good": good}, func(s *store.Store) {
		enqueue(t, s, "stuck", "good")
		enqueue(t, s, "stuck", "good")
		time.Sleep(time.Second)
		synctest.Wait()
		if got := len(good.got); got != 2 {
			t.Errorf("%d delivered beside a channel that hangs, want 2", got)
		}
	})
}

// unmarkable fails to write down that something was delivered, for a while.
type unmarkable struct {
	*store.Store
	mu    sync.Mutex
	fails int
}

func (u *unmarkable) Delivered(ctx context.Context, id parry.NotificationID, channel string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.fails--; u.fails >= 0 {
		return errors.New("disk full")
	}
	return u.Store.Delivered(ctx, id, channel)
}

func TestWorker_aMarkThatFailsRepeatsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &channel{}
		s := &unmarkable{Store: open(t), fails: 50}
		w, err := notify.New(notify.Options{Store: s, Channels: map[string]notify.Channel{"mail": c}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		enqueue(t, s.Store, "mail")
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := len(c.got); got != 1 {
			t.Errorf("delivered %d times, want once", got)
		}
		cancel()
		<-done
		time.Sleep(10 * time.Second)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestWorker_aRealMailServerThatIsBusyFirst(t *testing.T) {
	t.Parallel()
	srv := testenv.StartMail(t, testenv.MailOptions{})
	srv.Fault("tempfail", 2)
	m, err := mail.New(mail.Options{Server: srv.Addr, Security: mail.Plain, From: "parry@example.org", To: []string{"ops@example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t)
	w, err := notify.New(notify.Options{Store: s, Channels: map[string]notify.Channel{"mail": m}, Min: 10 * time.Millisecond, Max: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	enqueue(t, s, "mail")
	enqueue(t, s, "mail")
	if got := len(srv.Wait(2, 30*time.Second)); got != 2 {
		t.Errorf("%d mails arrived, want 2", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
