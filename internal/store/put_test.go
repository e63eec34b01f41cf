package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

var byAddr = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func live(r parry.Admitted) bool { return r.Block.Live() }

func putStoresEverything(e *env) {
	hostile := "{{ x }} $(id) \x00 \xff\xfe <b>\r\n'; DROP TABLE blocks --"
	a := e.ask("203.0.113.0/24")
	a.Key = parry.Key{Match: parry.Match{Source: netip.MustParsePrefix("2001:db8::/48"), Destination: netip.MustParsePrefix("2001:db8:1::7/128"),
		Protocol: parry.ProtoTCP, Port: 22, Interface: "dmz two"}, Selector: "edge,fw1"}
	a.Request.EventTime = e.clock.Now().Add(-time.Minute)
	a.Request.Reason, a.Request.Origin, a.Request.AlertID, a.Request.RuleID = hostile, hostile+"o", hostile+"a", hostile+"r"
	r := e.put(a)
	rev, err := e.Revision(e.Context())
	e.ok(err)
	want := parry.Block{ID: a.BlockID, Key: a.Key, Rev: rev, CreatedAt: e.clock.Now(), ExpiresAt: e.clock.Now().Add(59 * time.Minute), Count: 1,
		LastAt: e.clock.Now(), Reason: hostile, Origin: hostile + "o", CreatedBy: "ossim"}
	if d := cmp.Diff(want, r.Block, byAddr); d != "" {
		e.Fatal("answer:", d)
	}
	if d := cmp.Diff(want, e.block(a.BlockID), byAddr); d != "" {
		e.Fatal("stored:", d)
	}
	p, err := e.Requests(e.Context(), a.BlockID, "", 10)
	e.ok(err)
	q := a.Request
	q.BlockID, q.N = a.BlockID, 1
	if d := cmp.Diff([]parry.Request{q}, p.Items, byAddr); d != "" {
		e.Fatal("request:", d)
	}
	same(e, "created", r.Created, true)
}

func putRefreshesTheLiveBlock(e *env) {
	first := e.put(e.ask("203.0.113.7"))
	now := e.clock.Advance(10 * time.Minute)
	again := e.put(e.ask("203.0.113.7"))
	same(e, "created", again.Created, false)
	same(e, "id", again.Block.ID, first.Block.ID)
	same(e, "rev", again.Block.Rev, first.Block.Rev)
	same(e, "count", again.Block.Count, 2)
	same(e, "expires", again.Block.ExpiresAt, now.Add(time.Hour))
	same(e, "last", again.Block.LastAt, now)
	same(e, "reason", again.Block.Reason, "reason 2")
	if d := cmp.Diff(again.Block, e.block(first.Block.ID), byAddr); d != "" {
		e.Fatal(d)
	}
}

func putNeverShortens(e *env) {
	long := e.put(e.ask("203.0.113.7"))
	short := e.put(e.askFor(at("203.0.113.7"), time.Minute))
	same(e, "expires", short.Block.ExpiresAt, long.Block.ExpiresAt)
}

func putHoldsToTheCap(e *env) {
	a := e.ask("203.0.113.7")
	a.MaxExpires = e.clock.Now().Add(20 * time.Minute)
	same(e, "new", e.put(a).Block.ExpiresAt, a.MaxExpires)
	b := e.ask("203.0.113.7")
	b.MaxExpires = e.clock.Now().Add(30 * time.Minute)
	same(e, "refreshed", e.put(b).Block.ExpiresAt, b.MaxExpires)
	a = e.ask("203.0.113.7")
	a.MaxExpires = e.clock.Now().Add(20 * time.Minute)
	same(e, "a lower cap shortens nothing", e.put(a).Block.ExpiresAt, b.MaxExpires)
}

func putCountsTTLFromTheEvent(e *env) {
	a := e.ask("203.0.113.7")
	a.Request.EventTime = e.clock.Now().Add(-45 * time.Minute)
	same(e, "expires", e.put(a).Block.ExpiresAt, e.clock.Now().Add(15*time.Minute))
}

func putWithoutEndStaysWithoutEnd(e *env) {
	e.put(e.ask("203.0.113.7"))
	a := e.ask("203.0.113.7")
	a.NoEnd, a.MaxExpires, a.Request.TTL = true, time.Time{}, 0
	same(e, "expires", e.put(a).Block.ExpiresAt, time.Time{})
	e.clock.Advance(24 * time.Hour)
	r := e.put(e.ask("203.0.113.7"))
	same(e, "expires after a timed refresh", r.Block.ExpiresAt, time.Time{})
	same(e, "count", r.Block.Count, 3)
	next, err := e.NextDue(e.Context())
	e.ok(err)
	same(e, "next due", next, time.Time{})
}

func putPastItsTimeIsEvidenceOnly(e *env) {
	late := func(source string) parry.Admission {
		a := e.ask(source)
		a.Request.EventTime = e.clock.Now().Add(-2 * time.Hour)
		return a
	}
	born := e.put(late("203.0.113.7"))
	same(e, "born ended: live", live(born), false)
	same(e, "created", born.Created, true)
	same(e, "reason", born.Block.EndReason, parry.EndExpired)
	again := e.put(late("203.0.113.7"))
	same(e, "on the ended one", again.Block.ID, born.Block.ID)
	same(e, "count", again.Block.Count, 2)
	fresh := e.put(e.ask("203.0.113.7"))
	same(e, "a fresh one blocks", live(fresh) && fresh.Created, true)
	e.clock.Advance(time.Minute)
	on := e.put(late("203.0.113.7"))
	same(e, "on the live one", on.Block.ID, fresh.Block.ID)
	same(e, "not extended", on.Block.ExpiresAt, fresh.Block.ExpiresAt)
	c, err := e.Counts(e.Context())
	e.ok(err)
	same(e, "live", c.LiveBlocks, 1)
	same(e, "ended", c.EndedBlocks, 1)
}

func putOlderThanADeleteIsEvidenceOnly(e *env) {
	b := e.put(e.ask("203.0.113.7")).Block
	e.clock.Advance(time.Minute)
	event := e.clock.Now()
	_, _, err := e.EndBlock(e.Context(), b.ID, lifted("anna"))
	e.ok(err)
	e.clock.Advance(time.Minute)
	replay := e.ask("203.0.113.7")
	replay.Request.EventTime = event
	r := e.put(replay)
	same(e, "stays ended: live", live(r), false)
	same(e, "on the deleted one", r.Block.ID, b.ID)
	fresh := e.ask("203.0.113.7")
	fresh.Request.EventTime = event.Add(time.Microsecond)
	n := e.put(fresh)
	same(e, "a newer event blocks: live", live(n), true)
	e.clock.Advance(time.Minute)
	replay = e.askFor(at("203.0.113.7"), 5*time.Hour)
	replay.Request.EventTime = event
	same(e, "extends nothing", e.put(replay).Block.ExpiresAt, n.Block.ExpiresAt)
	other := e.ask("203.0.113.8")
	other.Request.EventTime = event
	same(e, "another key: live", live(e.put(other)), true)
}

func putMeetsADueBlock(e *env) {
	old := e.put(e.ask("203.0.113.7")).Block
	now := e.clock.Advance(time.Hour)
	r := e.put(e.ask("203.0.113.7"))
	same(e, "created", r.Created, true)
	if r.Block.ID == old.ID {
		e.Fatal("the due block was refreshed")
	}
	ended := e.block(old.ID)
	same(e, "reason", ended.EndReason, parry.EndExpired)
	same(e, "ended at", ended.EndedAt, now)
	same(e, "end rev", ended.EndRev, r.Block.Rev)
}

func putKeepsFirstAndLastRequests(e *env) {
	a := e.ask("203.0.113.7")
	id := e.put(a).Block.ID
	var wg sync.WaitGroup
	for range 349 { // at once, so that one batch wraps the ring around
		a := e.ask("203.0.113.7")
		wg.Go(func() { _, _ = e.Put(e.Context(), a) })
	}
	wg.Wait()
	same(e, "count", e.block(id).Count, 350)
	p, err := e.Requests(e.Context(), id, "", 1000)
	e.ok(err)
	var got, want []int64
	for _, q := range p.Items {
		got = append(got, q.N)
	}
	for n := int64(350); n > 250; n-- {
		want = append(want, n)
	}
	for n := int64(10); n > 0; n-- {
		want = append(want, n)
	}
	if !slices.Equal(got, want) {
		e.Fatalf("got requests %v, want %v", got, want)
	}
}

func putTellsKeysApart(e *env) {
	base := at("203.0.113.7")
	keys := []parry.Key{base, base, base, base, base, base}
	keys[1].Destination = netip.MustParsePrefix("198.51.100.1/32")
	keys[2].Protocol = parry.ProtoTCP
	keys[3].Protocol, keys[3].Port = parry.ProtoTCP, 22
	keys[4].Interface = "dmz"
	keys[5].Selector = "edge"
	for _, k := range keys {
		same(e, "created", e.put(e.askFor(k, time.Hour)).Created, true)
		same(e, "created again", e.put(e.askFor(k, time.Hour)).Created, false)
	}
}

func (e *env) keyed(a parry.Admission, key, body string) parry.Admission {
	a.Idempotency = &parry.Idempotency{Scope: "t-1 POST /api/v1/blocks", Key: key, Hash: [32]byte([]byte(fmt.Sprintf("%-32s", body)))}
	return a
}

func putRepeatsAnAnswer(e *env) {
	first := e.put(e.keyed(e.ask("203.0.113.7"), "k", "body"))
	again := e.put(e.keyed(e.ask("203.0.113.7"), "k", "body"))
	same(e, "replayed", again.Replayed, true)
	same(e, "created", again.Created, false)
	same(e, "request", again.Request, first.Request)
	same(e, "block", again.Block.ID, first.Block.ID)
	same(e, "count", again.Block.Count, 1)
	other := e.keyed(e.ask("203.0.113.7"), "k", "other body")
	other.Idempotency.Scope = "t-2 POST /api/v1/blocks"
	same(e, "another scope", e.put(other).Replayed, false)
	// Many at once, so that they meet in one batch.
	var wg sync.WaitGroup
	results := make([]parry.Admitted, 64)
	for i := range results {
		a := e.keyed(e.ask("203.0.113.9"), "many", "body")
		wg.Go(func() { results[i], _ = e.Put(e.Context(), a) })
	}
	wg.Wait()
	created := 0
	for _, r := range results {
		if r.Created {
			created++
		}
		same(e, "count", r.Block.Count, 1)
	}
	same(e, "created of 64", created, 1)
}

func putRefusesAKeyWithAnotherBody(e *env) {
	e.put(e.keyed(e.ask("203.0.113.7"), "k", "body"))
	_, err := e.Put(e.Context(), e.keyed(e.ask("203.0.113.8"), "k", "other"))
	e.wantKind(err, parry.KindRefused)
	var pe *parry.Error
	errors.As(err, &pe)
	same(e, "pointer", pe.Fields[0].Pointer, "Idempotency-Key")
	full := e.keyed(e.ask("203.0.113.9"), "refused", "body")
	full.MaxBlocks = 1
	_, err = e.Put(e.Context(), full)
	e.wantKind(err, parry.KindRefused)
	full.MaxBlocks = 10
	same(e, "a refusal leaves the key free", e.put(full).Created, true)
}

// The commit of a batch succeeds and its answer is lost: the writer tries each row again.
func putForgetsNothingTwice(e *env) {
	e.put(e.ask("203.0.113.7"))
	refresh, fresh, keyed := e.ask("203.0.113.7"), e.ask("203.0.113.8"), e.keyed(e.ask("203.0.113.9"), "k", "body")
	wide := e.ask("203.0.113.10")
	wide.Key.Destination, wide.MaxRules, wide.WidenBeyond = netip.MustParsePrefix("198.51.100.1/32"), 1, true
	wide.RuleScope = []parry.Selector{parry.SelectDefault}
	rs, err := e.Recommit(e.Context(), refresh, fresh, keyed, wide)
	e.ok(err)
	for i, want := range []struct {
		count   int64
		created bool
	}{{2, false}, {1, true}, {1, true}, {1, true}} {
		same(e, fmt.Sprint("count of ", i), rs[i].Block.Count, want.count)
		same(e, fmt.Sprint("created of ", i), rs[i].Created, want.created)
		same(e, fmt.Sprint("replayed of ", i), rs[i].Replayed, false)
	}
	c, err := e.Counts(e.Context())
	e.ok(err)
	same(e, "live", c.LiveBlocks, 4)
	for _, r := range rs {
		ids, err := e.RequestIDs(e.Context(), r.Block.ID)
		e.ok(err)
		same(e, "stored requests", int64(len(ids)), r.Block.Count)
	}
}

func putIsolatesABadRow(e *env) {
	taken := e.put(e.ask("203.0.113.1")).Block.ID
	release := e.blockWriter()
	as := make([]parry.Admission, 20)
	errs := make([]error, len(as))
	var wg sync.WaitGroup
	for i := range as {
		as[i] = e.ask(fmt.Sprintf("198.51.100.%d", i))
		if i == 7 {
			as[i].BlockID = taken // a primary key that is taken fails in the database
		}
		wg.Go(func() { _, errs[i] = e.Put(context.Background(), as[i]) })
	}
	release()
	wg.Wait()
	for i, err := range errs {
		if i == 7 {
			e.wantKind(err, parry.KindInternal)
			continue
		}
		e.ok(err)
		same(e, "count", e.block(as[i].BlockID).Count, 1)
	}
	c, err := e.Counts(e.Context())
	e.ok(err)
	same(e, "live", c.LiveBlocks, 20)
}

func putHoldsToMaxBlocks(e *env) {
	var wg sync.WaitGroup
	errs := make([]error, 50)
	for i := range errs {
		a := e.ask(fmt.Sprintf("198.51.100.%d", i))
		a.MaxBlocks = 10
		wg.Go(func() { _, errs[i] = e.Put(e.Context(), a) })
	}
	wg.Wait()
	refused := 0
	for _, err := range errs {
		if err != nil {
			e.wantKind(err, parry.KindRefused)
			refused++
		}
	}
	same(e, "refused", refused, 40)
	p, err := e.Blocks(e.Context(), parry.BlockFilter{})
	e.ok(err)
	a := e.ask(parry.FormatPrefix(p.Items[0].Source))
	a.MaxBlocks = 10
	same(e, "a refresh is no new block", e.put(a).Block.Count, 2)
	e.clock.Advance(2 * time.Hour)
	_, err = e.EndDue(e.Context(), e.clock.Now())
	e.ok(err)
	a = e.ask("203.0.113.1")
	a.MaxBlocks = 10
	same(e, "room again", e.put(a).Created, true)
}

// to asks for a block of 203.0.113.n towards a destination, with room for two rules.
func (e *env) to(n int, destination string) parry.Admission {
	a := e.ask(fmt.Sprintf("203.0.113.%d", n))
	if destination != "" {
		a.Key.Destination = at(destination).Source
		a.Key.Protocol, a.Key.Port = parry.ProtoTCP, 22
	}
	a.MaxRules, a.RuleScope = 2, []parry.Selector{parry.SelectDefault, parry.SelectAll}
	return a
}

func putHoldsToMaxRules(e *env) {
	one := e.put(e.to(1, "198.51.100.1")).Block
	e.put(e.to(2, "198.51.100.2"))
	e.put(e.to(3, "198.51.100.2"))
	_, err := e.Put(e.Context(), e.to(4, "198.51.100.3"))
	e.wantKind(err, parry.KindRefused)
	other := e.to(4, "198.51.100.3")
	other.RuleScope = []parry.Selector{"edge"}
	other.Key.Selector = "edge"
	e.put(other)
	same(e, "the source alone is always taken", e.put(e.to(5, "")).Created, true)
	_, _, err = e.EndBlock(e.Context(), one.ID, lifted("anna"))
	e.ok(err)
	e.clock.Advance(23 * time.Hour)
	_, err = e.EndDue(e.Context(), e.clock.Now())
	e.ok(err)
	_, err = e.Put(e.Context(), e.to(4, "198.51.100.3"))
	e.wantKind(err, parry.KindRefused)
	same(e, "its own rule is still there", e.put(e.to(6, "198.51.100.1")).Created, true)
	e.clock.Advance(25 * time.Hour)
	_, err = e.EndDue(e.Context(), e.clock.Now())
	e.ok(err)
	e.clock.Advance(25 * time.Hour)
	same(e, "free after a day", e.put(e.to(4, "198.51.100.3")).Created, true)
}

func putHoldsToMaxRulesOfSeveralNames(e *env) {
	for i, sel := range []parry.Selector{"fw-a,fw-b", "fw-b,fw-c"} {
		a := e.to(i, fmt.Sprint("198.51.100.", i))
		a.Key.Selector = sel
		e.put(a)
	}
	on := func(names ...parry.Selector) error {
		a := e.to(9, "198.51.100.9")
		a.Key.Selector, a.RuleScope = names[0], names
		_, err := e.Put(e.Context(), a)
		return err
	}
	e.wantKind(on("fw-b", parry.SelectAll), parry.KindRefused)
	e.ok(on("w-b", parry.SelectAll)) // not a part of a name
	e.ok(on("fw-a", parry.SelectAll))
}

func putWidensBeyondMaxRules(e *env) {
	e.put(e.to(1, "198.51.100.1"))
	e.put(e.to(2, "198.51.100.2"))
	a := e.to(3, "198.51.100.3")
	a.WidenBeyond = true
	r := e.put(a)
	same(e, "widened", r.Block.Widened, "destination 198.51.100.3 port 22/tcp")
	same(e, "key", r.Block.Key, at("203.0.113.3"))
	b := e.to(3, "198.51.100.4")
	b.WidenBeyond = true
	same(e, "refreshes the widened one", e.put(b).Block.ID, r.Block.ID)
	same(e, "plain", e.put(e.to(3, "")).Block.ID, r.Block.ID)
}

func putAnswersBusyWhenTheQueueIsFull(e *env) {
	e.ok(e.Close())
	e.opts.QueueLen = 2
	e.open()
	release := e.blockWriter()
	var wg sync.WaitGroup
	errs := make([]error, 50)
	for i := range errs {
		a := e.ask(fmt.Sprintf("198.51.100.%d", i))
		wg.Go(func() { _, errs[i] = e.Put(context.Background(), a) })
	}
	busy := e.ask("203.0.113.1")
	e.eventually("the queue is full", func() bool {
		ctx, cancel := context.WithTimeout(e.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := e.Put(ctx, busy)
		var pe *parry.Error
		return errors.As(err, &pe) && pe.Kind == parry.KindUnavailable && pe.RetryAfter > 0
	})
	release()
	wg.Wait()
	accepted := int64(0)
	for _, err := range errs {
		if err == nil {
			accepted++
		} else {
			e.wantKind(err, parry.KindUnavailable)
		}
	}
	p, err := e.Blocks(e.Context(), parry.BlockFilter{Within: netip.MustParsePrefix("198.51.100.0/24")})
	e.ok(err)
	same(e, "stored", int64(len(p.Items)), accepted)
}

func putOutlivesItsCaller(e *env) {
	release := e.blockWriter()
	ctx, cancel := context.WithCancel(e.Context())
	a, b := e.ask("203.0.113.7"), e.ask("203.0.113.8")
	done := make(chan error, 2)
	go func() { _, err := e.Put(ctx, a); done <- err }()
	go func() { _, err := e.Put(e.Context(), b); done <- err }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		e.Fatalf("got %v, want the caller's cancel", err)
	}
	release()
	e.ok(<-done)
	e.eventually("the cancelled caller's neighbour and perhaps itself are stored", func() bool {
		_, err := e.Block(e.Context(), b.BlockID)
		return err == nil
	})
}

func TestOpen_secondProcessIsRefused(t *testing.T) {
	t.Parallel()
	e := newEnv(t, engines[0].open(t))
	_, err := store.Open(t.Context(), e.opts)
	if !errors.Is(err, store.ErrLocked) {
		t.Fatalf("got %v, want ErrLocked", err)
	}
	e.ok(e.Close())
	e.open()
}
