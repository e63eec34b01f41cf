package store_test

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// subscribe opens the store anew with channels that want to hear of blocks.
func (e *env) subscribe(subs ...parry.Subscription) {
	e.Helper()
	e.ok(e.Close())
	e.opts.Subscriptions = subs
	e.eventually("the database can be opened again", func() bool { // a process that another test begins holds its lock for a moment
		s, err := store.Open(e.Context(), e.opts)
		if errors.Is(err, store.ErrLocked) {
			return false
		}
		e.ok(err)
		e.Store = s
		e.Cleanup(func() { _ = s.Close() })
		return true
	})
}

// told gives what waits for a channel, and delivers it.
func (e *env) told(channel string) (ds []parry.Delivery) {
	e.Helper()
	for {
		some, err := e.NextDeliveries(e.Context(), channel, 100, true)
		e.ok(err)
		if len(some) == 0 {
			return ds
		}
		for i := range some {
			e.ok(e.Delivered(e.Context(), some[i].ID, channel))
		}
		ds = append(ds, some...)
	}
}

func blockEventsAreWrittenForWhoWantsThem(e *env) {
	e.put(e.ask("198.51.100.1"))
	same(e, "told with nobody there", len(e.told("hook")), 0)
	e.subscribe(
		parry.Subscription{Channel: "hook", Kinds: []parry.NotificationKind{parry.NotifyAdded, parry.NotifyEnded}},
		parry.Subscription{Channel: "ends", Kinds: []parry.NotificationKind{parry.NotifyEnded}},
		parry.Subscription{Channel: "warned", Kinds: parry.NotifyKinds, Least: parry.SeverityWarning},
		parry.Subscription{Channel: "mail", Kinds: []parry.NotificationKind{parry.NotifyFailed}})
	now := e.clock.Now()
	hostile := "{{ x }} </b> \" \r\n"
	a := e.ask("203.0.113.7")
	a.Key.Destination, a.Key.Protocol, a.Key.Port = netip.MustParsePrefix("198.51.100.10/32"), parry.ProtoTCP, 22
	a.Request.Reason, a.Request.AlertID, a.Request.RuleID = hostile, "a-1", "5712"
	b := e.put(a).Block
	event := func(ds []parry.Delivery, kind parry.NotificationKind) *parry.BlockEvent {
		e.Helper()
		if len(ds) != 1 || ds[0].Kind != kind || ds[0].Block == nil {
			e.Fatalf("got %+v, want one %s", ds, kind)
		}
		return ds[0].Block
	}
	want := parry.BlockEvent{ID: b.ID, Source: "203.0.113.7", Destination: "198.51.100.10", Protocol: parry.ProtoTCP, Port: 22, Firewalls: "default",
		CreatedAt: now, ExpiresAt: now.Add(time.Hour), Reason: hostile, Origin: b.Origin, AlertID: "a-1", RuleID: "5712", By: "ossim", Count: 1}
	got := *event(e.told("hook"), parry.NotifyAdded)
	if d := cmp.Diff(want, got); d != "" {
		e.Fatal(d)
	}
	same(e, "told of a beginning to who asks for ends", len(e.told("ends")), 0)
	e.put(a)
	same(e, "told of a refresh", len(e.told("hook")), 0)

	// Every way to end: by word, in time, by a new block of the same key, by an exemption.
	_, _, err := e.EndBlock(e.Context(), b.ID, lifted("alice"))
	e.ok(err)
	_, _, err = e.EndBlock(e.Context(), b.ID, lifted("alice"))
	e.ok(err)
	ended := event(e.told("hook"), parry.NotifyEnded)
	same(e, "who ended it", [2]string{ended.By, string(ended.EndReason)}, [2]string{"alice", "deleted"})
	same(e, "another channel", event(e.told("ends"), parry.NotifyEnded).ID, b.ID)

	e.clock.Advance(time.Second)
	due := e.put(e.ask("203.0.113.8")).Block
	e.told("hook")
	n, err := e.EndDue(e.Context(), e.clock.Advance(2*time.Hour))
	e.ok(err)
	same(e, "ended by time", n, 2)
	if ds := e.told("hook"); len(ds) != 2 || ds[0].Block.ID != due.ID && ds[1].Block.ID != due.ID || ds[1].Block.EndReason != parry.EndExpired {
		e.Fatalf("got %+v", ds)
	}

	e.put(e.ask("203.0.113.9"))
	e.told("hook")
	e.clock.Advance(2 * time.Hour)
	e.put(e.ask("203.0.113.9"))
	if ds := e.told("hook"); len(ds) != 2 || ds[0].Kind != parry.NotifyEnded || ds[1].Kind != parry.NotifyAdded {
		e.Fatalf("a due block that was met: got %+v", ds)
	}

	_, err = e.AddExemption(e.Context(), parry.Exemption{ID: "x-1", Prefix: netip.MustParsePrefix("203.0.113.9/32"), CreatedAt: e.clock.Now()})
	e.ok(err)
	same(e, "ended by", event(e.told("hook"), parry.NotifyEnded).EndReason, parry.EndExempted)
	same(e, "that is a warning", event(e.told("warned"), parry.NotifyEnded).EndReason, parry.EndExempted)

	late := e.ask("203.0.113.10")
	late.Request.EventTime = e.clock.Now().Add(-2 * time.Hour)
	e.put(late)
	same(e, "told of evidence", len(e.told("hook")), 0)
	same(e, "told to who did not ask", len(e.told("mail")), 0)
}

func bulkDeliveriesWaitAndFold(e *env) {
	e.subscribe(parry.Subscription{Channel: "chat", Kinds: parry.NotifyKinds})
	first := e.clock.Now()
	for i := range 30 {
		e.put(e.ask(fmt.Sprintf("203.0.113.%d", i+1)))
		e.clock.Advance(time.Millisecond)
	}
	_, _, err := e.EndBlock(e.Context(), e.put(e.ask("203.0.113.1")).Block.ID, lifted("alice"))
	e.ok(err)
	last := e.clock.Now()
	e.ok(e.Enqueue(e.Context(), []parry.Notification{{ID: parry.NewNotificationID(e.clock.Now()), Kind: parry.NotifyFailed,
		Severity: parry.SeverityCritical, CreatedAt: e.clock.Now(), Channels: []string{"chat"}}}))
	next := func(bulk bool) (d parry.Delivery) {
		e.Helper()
		ds, err := e.NextDeliveries(e.Context(), "chat", 1, bulk)
		e.ok(err)
		if len(ds) == 1 {
			d = ds[0]
		}
		return d
	}
	same(e, "first", next(true).Kind, parry.NotifyFailed)
	inHand := next(true)
	same(e, "then", inHand.Kind, parry.NotifyAdded)
	same(e, "without bulk", next(false).Kind, "")
	n, err := e.FoldDeliveries(e.Context(), "chat")
	e.ok(err)
	same(e, "folded", n, 30)
	d := next(false)
	same(e, "the summary", d.Kind, parry.NotifySummary)
	want := &parry.BlockSummary{Added: 29, Ended: 1, Since: first.Add(time.Millisecond), Until: last}
	for i := range 10 {
		want.Sources = append(want.Sources, fmt.Sprintf("203.0.113.%d", i+2))
	}
	if diff := cmp.Diff(want, d.Summary); diff != "" {
		e.Fatal(diff)
	}
	e.ok(e.Delivered(e.Context(), d.ID, "chat"))
	same(e, "left", next(true).Kind, "")
	e.ok(e.DeliveryFailed(e.Context(), inHand.ID, "chat", "no", e.clock.Now()))
	n, err = e.FoldDeliveries(e.Context(), "chat")
	e.ok(err)
	same(e, "one by itself is not folded", n, 0)
	same(e, "and is delivered", next(true).ID, inHand.ID)
}

func pruneForgetsWhatNobodyDelivers(e *env) {
	e.ok(e.Enqueue(e.Context(), []parry.Notification{{ID: "n-1", CreatedAt: e.clock.Now(), Channels: []string{"gone"}}}))
	keep := parry.Retention{Outbox: time.Hour}
	e.clock.Advance(13 * 24 * time.Hour)
	p, err := e.Prune(e.Context(), keep)
	e.ok(err)
	same(e, "kept while somebody may still deliver it", p.Notifications, 0)
	st, err := e.ChannelStates(e.Context())
	e.ok(err)
	same(e, "waits", len(st) == 1 && st[0].Channel == "gone" && st[0].Waiting == 1 && e.clock.Now().Sub(st[0].Oldest) == 13*24*time.Hour, true)
	e.clock.Advance(2 * 24 * time.Hour)
	p, err = e.Prune(e.Context(), keep)
	e.ok(err)
	same(e, "then forgotten", p.Notifications, 1)
	c, err := e.Counts(e.Context())
	e.ok(err)
	same(e, "undelivered", c.Undelivered, 0)
}
