package notify_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
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
	all       []parry.Delivery
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
	c.got, c.all = append(c.got, d.ID), append(c.all, d)
	return false, nil
}

// told is what was delivered, while the worker goes on.
func (c *channel) told() []parry.Delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.all)
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
func work(t *testing.T, channels []notify.Entry, f func(s *store.Store)) {
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
	work(t, []notify.Entry{{Name: "mail", Channel: c}}, func(s *store.Store) {
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
		if st, err := s.ChannelStates(context.Background()); err != nil || len(st) != 1 || st[0].Waiting != 0 {
			t.Errorf("left in the outbox: %v, %v", st, err)
		}
	})
}

func TestWorker_whatIsHopelessIsTriedSeldomAndGivenUp(t *testing.T) {
	c := &channel{}
	for range 200 {
		c.fail = append(c.fail, errors.New("550"))
	}
	work(t, []notify.Entry{{Name: "mail", Channel: c}}, func(s *store.Store) {
		enqueue(t, s, "mail")
		time.Sleep(8 * time.Hour)
		synctest.Wait()
		if n := len(c.at); n < 6 || n > 7 {
			t.Errorf("%d attempts, want about one an hour for 6 h", n)
		}
		if st, err := s.ChannelStates(context.Background()); err != nil || len(st) != 1 || st[0].Waiting != 0 {
			t.Errorf("left in the outbox: %v, %v", st, err)
		}
	})
}

func TestWorker_aChannelThatHangsDelaysNoOther(t *testing.T) {
	stuck, good := &channel{hang: true}, &channel{}
	work(t, []notify.Entry{{Name: "stuck", Channel: stuck}, {Name: "good", Channel: good}}, func(s *store.Store) {
		enqueue(t, s, "stuck", "good")
		enqueue(t, s, "stuck", "good")
		time.Sleep(time.Second)
		synctest.Wait()
		if got := len(good.got); got != 2 {
			t.Errorf("%d delivered beside a channel that hangs, want 2", got)
		}
	})
}

func TestWorker_waitsAsLongAsTheOtherSideSays(t *testing.T) {
	later := &parry.Error{Kind: parry.KindRateLimited, Detail: "429", RetryAfter: 3 * time.Minute}
	c := &channel{fail: []error{later}, retryable: true}
	work(t, []notify.Entry{{Name: "chat", Channel: c}}, func(s *store.Store) {
		enqueue(t, s, "chat")
		enqueue(t, s, "chat")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if len(c.got) != 2 || c.at[1].Sub(c.at[0]) < 3*time.Minute || c.at[1].Sub(c.at[0]) > 3*time.Minute+10*time.Second {
			t.Errorf("delivered %v at %v, want both after three minutes and no try before", c.got, c.at)
		}
	})
}

func TestWorker_whatFailsHoldsUpTheNextForAMomentOnly(t *testing.T) {
	c := &channel{}
	for range 100 {
		c.fail = append(c.fail, errors.New("refused"))
	}
	work(t, []notify.Entry{{Name: "chat", Channel: c}}, func(s *store.Store) {
		for range 300 {
			enqueue(t, s, "chat")
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		c.mu.Lock()
		if n := len(c.at); n > 40 {
			t.Errorf("%d tries in ten minutes at a server that is down", n)
		}
		c.fail = nil
		c.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(c.told()); n < 260 {
			t.Errorf("%d of 300 delivered a minute after the server came back", n)
		}
	})
}

func TestWorker_aStormIsSummedUp(t *testing.T) {
	chat, tickets := &channel{}, &channel{}
	entries := []notify.Entry{{Name: "chat", Channel: chat, AtMost: notify.Rate{N: 20, Per: time.Minute}}, {Name: "tickets", Channel: tickets}}
	work(t, entries, func(s *store.Store) {
		const storm = 400
		var ns []parry.Notification
		for i := range storm {
			ns = append(ns, parry.Notification{ID: parry.NewNotificationID(time.Now()), Kind: parry.NotifyAdded, CreatedAt: time.Now(),
				Channels: []string{"chat", "tickets"}, Block: &parry.BlockEvent{Source: fmt.Sprintf("198.18.%d.%d", i/256, i%256)}})
		}
		if err := s.Enqueue(context.Background(), ns); err != nil {
			t.Fatal(err)
		}
		report := enqueue(t, s, "chat")
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if len(tickets.told()) != storm {
			t.Errorf("%d of %d through a channel without a limit", len(tickets.told()), storm)
		}
		all := chat.told()
		last := all[len(all)-1]
		if len(all) != 21 || last.Kind != parry.NotifySummary || last.Summary.Added != storm-19 || len(last.Summary.Sources) != 10 {
			t.Errorf("%d in the chat, want 19 events, a report and a summary; the last is %s %+v", len(all), last.Kind, last.Summary)
		}
		if !slices.ContainsFunc(all, func(d parry.Delivery) bool { return d.ID == report }) {
			t.Error("the report waited behind the storm")
		}
		enqueueBlock := func() {
			if err := s.Enqueue(context.Background(), []parry.Notification{{ID: parry.NewNotificationID(time.Now()), Kind: parry.NotifyEnded,
				CreatedAt: time.Now(), Channels: []string{"chat"}, Block: &parry.BlockEvent{}}}); err != nil {
				t.Fatal(err)
			}
		}
		enqueueBlock()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(chat.told()) != 21 {
			t.Error("beyond the limit")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(chat.told()) != 22 {
			t.Error("not delivered when there was room again")
		}
	})
}

func (c *channel) Test(context.Context) (string, error) { return "well", nil }

func TestWorker_aTestThatGoesWellSetsFreeWhatWasPutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &channel{fail: []error{errors.New("401 wrong key")}}
		s := open(t)
		w, err := notify.New(notify.Options{Store: s, Channels: []notify.Entry{{Name: "chat", Channel: c}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		enqueue(t, s, "chat")
		time.Sleep(time.Minute)
		if n := len(c.told()); n != 0 {
			t.Errorf("%d delivered with a wrong key", n)
		}
		if answer, _, err := w.Test(ctx, "chat"); err != nil || answer != "well" {
			t.Errorf("%q, %v", answer, err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(c.told()); n != 1 {
			t.Errorf("%d delivered a second after a test, want 1", n)
		}
		if _, _, err := w.Test(ctx, "pager"); parry.KindOf(err) != parry.KindNotFound {
			t.Errorf("got %v", err)
		}
		cancel()
		<-done
		time.Sleep(10 * time.Second)
		if err := s.Close(); err != nil {
			t.Error(err)
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
		w, err := notify.New(notify.Options{Store: s, Channels: []notify.Entry{{Name: "mail", Channel: c}}})
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
	w, err := notify.New(notify.Options{Store: s, Channels: []notify.Entry{{Name: "mail", Channel: m}}, Min: 10 * time.Millisecond, Max: 50 * time.Millisecond})
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
