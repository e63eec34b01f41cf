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
	"golang.org/x/sync/errgroup"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

func setExpiryMovesTheEnd(e *env) {
	b := e.put(e.ask("203.0.113.7")).Block
	set := func(to time.Time) (parry.Block, error) { return e.SetExpiry(e.Context(), b.ID, to, "anna") }
	now := e.clock.Now()
	for _, to := range []time.Time{now.Add(2 * time.Hour), now.Add(time.Minute), {}, now.Add(time.Hour)} {
		got, err := set(to)
		e.ok(err)
		same(e, "expires", got.ExpiresAt, to)
		same(e, "rev stays", got.Rev, b.Rev)
		same(e, "stored", e.block(b.ID).ExpiresAt, to)
	}
	_, err := set(now)
	e.wantKind(err, parry.KindInvalid)
	e.clock.Advance(time.Hour)
	_, err = set(now.Add(3 * time.Hour))
	e.wantKind(err, parry.KindConflict)
	_, err = e.SetExpiry(e.Context(), "b-none", now.Add(3*time.Hour), "anna")
	e.wantKind(err, parry.KindNotFound)
}

func endBlocksEndsWhatMatches(e *env) {
	const many = 1100 // more than two transactions' worth
	var asks []parry.Admission
	for i := range many {
		a := e.ask(fmt.Sprintf("11.0.%d.%d", i/256, i%256))
		a.Request.Origin = "si\x00em\xff"
		asks = append(asks, a)
	}
	var g errgroup.Group
	for _, a := range asks {
		g.Go(func() error { _, err := e.Put(e.Context(), a); return err })
	}
	e.ok(g.Wait())
	other := e.put(e.ask("203.0.113.7")).Block.ID
	ended := e.put(e.ask("11.0.9.9")).Block.ID
	_, _, err := e.EndBlock(e.Context(), ended, parry.Lift{By: "bob", Grace: parry.KeepGrace})
	e.ok(err)

	f := parry.BlockFilter{Within: at("11.0.0.0/8").Source, Origin: "si\x00em\xff"}
	anna := parry.Lift{By: "anna", Grace: time.Hour}
	odd := func(k *parry.Key) bool { return k.Source.Addr().As4()[3]%2 == 1 }
	plan, err := e.EndBlocks(e.Context(), f, odd, anna, true)
	e.ok(err)
	same(e, "a dry run finds", plan.Matched, many/2)
	same(e, "and ends", plan.Ended, 0)
	for _, want := range []int{many / 2, 0} { // a repeat finds nothing more
		got, err := e.EndBlocks(e.Context(), f, odd, anna, false)
		e.ok(err)
		same(e, "matched", got.Matched, want)
		same(e, "ended", got.Ended, want)
		same(e, "named", len(got.First), want)
	}
	b := e.block(plan.First[0])
	same(e, "why", b.EndReason, parry.EndDeleted)
	same(e, "by", b.EndedBy, "anna")
	same(e, "ended before, by", e.block(ended).EndedBy, "bob")
	in, err := e.Offender(e.Context(), b.Source)
	e.ok(err)
	same(e, "in grace by", in.GraceBy, "anna")
	all, err := e.EndBlocks(e.Context(), f, nil, anna, false)
	e.ok(err)
	same(e, "the others", all.Ended, many/2)
	same(e, "another lives", e.block(other).EndRev, 0)
	c, err := e.Counts(e.Context())
	e.ok(err)
	same(e, "live", c.LiveBlocks, 1)
	same(e, "ended", c.EndedBlocks, many+1)
}

func endBlockTellsWhatStillCovers(e *env) {
	one := e.put(e.ask("203.0.113.7")).Block
	wide := e.put(e.ask("203.0.113.0/24")).Block
	k := at("203.0.113.7")
	k.Destination = at("198.51.100.1").Source
	narrow := e.put(e.askFor(k, time.Hour)).Block
	e.put(e.ask("203.0.113.8"))
	due := e.put(e.askFor(at("203.0.112.0/20"), time.Minute)).Block
	e.clock.Advance(2 * time.Minute)
	b, covered, err := e.EndBlock(e.Context(), one.ID, lifted("anna"))
	e.ok(err)
	same(e, "reason", b.EndReason, parry.EndDeleted)
	same(e, "by", b.EndedBy, "anna")
	var got []parry.BlockID
	for _, c := range covered {
		got = append(got, c.ID)
	}
	if !slices.Contains(got, wide.ID) || !slices.Contains(got, narrow.ID) || len(got) != 2 || slices.Contains(got, due.ID) {
		e.Fatalf("covered by %v, want %v and %v", got, wide.ID, narrow.ID)
	}
	if d := cmp.Diff(b, e.block(one.ID), byAddr); d != "" {
		e.Fatal(d)
	}
	again, covered, err := e.EndBlock(e.Context(), one.ID, lifted("bob"))
	e.ok(err)
	same(e, "still by", again.EndedBy, "anna")
	same(e, "covered", len(covered), 2)
	_, _, err = e.EndBlock(e.Context(), "b-none", lifted("anna"))
	e.wantKind(err, parry.KindNotFound)
}

func endDueEndsWhatIsDue(e *env) {
	for i := range 1200 {
		e.made = i
		a := e.askFor(at(fmt.Sprintf("10.0.%d.%d", i/256, i%256)), time.Hour)
		if i%2 == 0 {
			a.Request.TTL = 2 * time.Hour
		}
		go func() { _, _ = e.Put(e.Context(), a) }()
	}
	count := func() (c parry.Counts) {
		c, err := e.Counts(e.Context())
		e.ok(err)
		return c
	}
	e.eventually("all are stored", func() bool { return count().LiveBlocks == 1200 })
	start := e.clock.Now()
	next, err := e.NextDue(e.Context())
	e.ok(err)
	same(e, "next", next, start.Add(time.Hour))
	n, err := e.EndDue(e.Context(), start.Add(time.Hour-time.Microsecond))
	e.ok(err)
	same(e, "never early", n, 0)
	e.clock.Advance(time.Hour)
	same(e, "overdue", count().OverdueBlocks, 600)
	n, err = e.EndDue(e.Context(), e.clock.Now())
	e.ok(err)
	same(e, "ended", n, 600)
	c := count()
	same(e, "live", c.LiveBlocks, 600)
	same(e, "ended rows", c.EndedBlocks, 600)
	next, err = e.NextDue(e.Context())
	e.ok(err)
	same(e, "next", next, start.Add(2*time.Hour))
}

func exemptionEndsOverlappingBlocks(e *env) {
	in := e.put(e.ask("203.0.113.7")).Block
	wider := e.put(e.ask("203.0.112.0/20")).Block
	exact := e.put(e.ask("203.0.113.0/24")).Block
	out := e.put(e.ask("203.0.114.1")).Block
	six := e.put(e.ask("2001:db8::1")).Block
	x := parry.Exemption{ID: parry.NewExemptionID(e.clock.Now()), Prefix: netip.MustParsePrefix("203.0.113.0/24"), Reason: "our\x00own",
		Source: parry.ExemptAPI, CreatedBy: "anna", CreatedAt: e.clock.Now(), ExpiresAt: e.clock.Now().Add(time.Hour)}
	ended, err := e.AddExemption(e.Context(), x)
	e.ok(err)
	slices.Sort(ended)
	want := []parry.BlockID{in.ID, wider.ID, exact.ID}
	slices.Sort(want)
	if !slices.Equal(ended, want) {
		e.Fatalf("ended %v, want %v", ended, want)
	}
	b := e.block(in.ID)
	same(e, "reason", b.EndReason, parry.EndExempted)
	same(e, "by", b.EndedBy, string(x.ID))
	same(e, "outside", e.block(out.ID).EndRev+e.block(six.ID).EndRev, 0)
	xs, err := e.Exemptions(e.Context())
	e.ok(err)
	if d := cmp.Diff([]parry.Exemption{x}, xs, byAddr); d != "" {
		e.Fatal(d)
	}
	ended, err = e.EndExempted(e.Context(), []parry.Exemption{{ID: "cfg:1", Prefix: netip.MustParsePrefix("2001:db8::/32")}, {ID: "cfg:2", Prefix: netip.MustParsePrefix("0.0.0.0/0")}})
	e.ok(err)
	same(e, "by configured ones", len(ended), 2)
	e.clock.Advance(2 * time.Hour)
	xs, err = e.Exemptions(e.Context())
	e.ok(err)
	same(e, "run out", len(xs), 0)
	e.ok(e.RemoveExemption(e.Context(), x.ID, "anna"))
	e.wantKind(e.RemoveExemption(e.Context(), x.ID, "anna"), parry.KindNotFound)
}

func blocksFilterAndPage(e *env) {
	var ids []parry.BlockID
	add := func(source string, change func(*parry.Admission)) parry.BlockID {
		e.clock.Advance(time.Millisecond)
		a := e.ask(source)
		if change != nil {
			change(&a)
		}
		id := e.put(a).Block.ID
		ids = append(ids, id)
		return id
	}
	host := add("203.0.113.7", nil)
	edge := add("203.0.113.7", func(a *parry.Admission) { a.Key.Selector = "edge"; a.Request.Origin = "wazuh" })
	base := add("203.0.113.0", func(a *parry.Admission) { a.Request.TokenName = "other" })
	net24 := add("203.0.113.0/24", nil)
	net20 := add("203.0.112.0/20", func(a *parry.Admission) { a.Request.TTL = time.Minute })
	six := add("2001:db8::/48", nil)
	six1 := add("2001:db8::1", nil)
	_, _, err := e.EndBlock(e.Context(), edge, lifted("anna"))
	e.ok(err)
	yes, no := true, false
	pfx := netip.MustParsePrefix
	for _, c := range []struct {
		name string
		f    parry.BlockFilter
		want []parry.BlockID
	}{
		{"all", parry.BlockFilter{}, []parry.BlockID{six1, six, net20, net24, base, edge, host}},
		{"source", parry.BlockFilter{Source: pfx("203.0.113.7/32")}, []parry.BlockID{edge, host}},
		{"covering", parry.BlockFilter{Covering: pfx("203.0.113.7/32")}, []parry.BlockID{net20, net24, edge, host}},
		{"covering a prefix", parry.BlockFilter{Covering: pfx("203.0.113.0/24")}, []parry.BlockID{net20, net24}},
		{"within", parry.BlockFilter{Within: pfx("203.0.113.0/24")}, []parry.BlockID{net24, base, edge, host}},
		{"within leaves out the wider one of the same address", parry.BlockFilter{Within: pfx("203.0.113.0/25")}, []parry.BlockID{base, edge, host}},
		{"covering six", parry.BlockFilter{Covering: pfx("2001:db8::1/128")}, []parry.BlockID{six1, six}},
		{"within six", parry.BlockFilter{Within: pfx("::/0")}, []parry.BlockID{six1, six}},
		{"live", parry.BlockFilter{Live: &yes, Source: pfx("203.0.113.7/32")}, []parry.BlockID{host}},
		{"ended", parry.BlockFilter{Live: &no}, []parry.BlockID{edge}},
		{"selector", parry.BlockFilter{Selector: "edge"}, []parry.BlockID{edge}},
		{"selectors", parry.BlockFilter{Selectors: []parry.Selector{"edge", "x"}}, []parry.BlockID{edge}},
		{"origin", parry.BlockFilter{Origin: "wazuh"}, []parry.BlockID{edge}},
		{"created by", parry.BlockFilter{CreatedBy: "other"}, []parry.BlockID{base}},
		{"expires by", parry.BlockFilter{ExpiresBy: e.clock.Now().Add(2 * time.Minute)}, []parry.BlockID{net20}},
	} {
		var got []parry.BlockID
		for cur, pages := "", 0; ; pages++ {
			c.f.Limit, c.f.Cursor = 2, cur
			p, err := e.Blocks(e.Context(), c.f)
			e.ok(err)
			for _, b := range p.Items {
				got = append(got, b.ID)
			}
			if cur = p.Next; cur == "" {
				same(e, c.name+": pages", pages, (len(c.want)-1)/2)
				break
			}
		}
		if !slices.Equal(got, c.want) {
			e.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
	_, err = e.Blocks(e.Context(), parry.BlockFilter{Cursor: "x!"})
	e.wantKind(err, parry.KindInvalid)
}

func changesGiveWhatWasWritten(e *env) {
	a := e.put(e.ask("203.0.113.1")).Block
	b := e.put(e.ask("203.0.113.2")).Block
	c := e.put(e.ask("203.0.113.3")).Block
	_, _, err := e.EndBlock(e.Context(), a.ID, lifted("anna"))
	e.ok(err)
	read := func(since parry.Revision) (parry.Revision, []parry.BlockID) {
		ch, err := e.Changes(e.Context(), since)
		e.ok(err)
		var ids []parry.BlockID
		for _, x := range ch.Blocks {
			ids = append(ids, x.ID)
		}
		slices.Sort(ids)
		return ch.Revision, ids
	}
	want := func(name string, got []parry.BlockID, want ...parry.BlockID) {
		e.Helper()
		slices.Sort(want)
		if !slices.Equal(got, want) {
			e.Fatalf("%s: got %v, want %v", name, got, want)
		}
	}
	rev, all := read(0)
	want("live ones", all, b.ID, c.ID)
	again, none := read(rev)
	same(e, "revision", again, rev)
	want("nothing", none)
	e.put(e.ask("203.0.113.2"))
	_, got := read(rev)
	want("a refresh", got, b.ID)
	_, err = e.SetExpiry(e.Context(), c.ID, e.clock.Now().Add(5*time.Hour), "anna")
	e.ok(err)
	_, got = read(rev)
	want("an expiry", got, b.ID, c.ID)
	rev, _ = read(0)
	e.clock.Advance(time.Hour)
	_, err = e.EndDue(e.Context(), e.clock.Now())
	e.ok(err)
	_, got = read(rev)
	want("an end", got, b.ID)
	now, err := e.Revision(e.Context())
	e.ok(err)
	rev, _ = read(0)
	same(e, "revision", rev, now)
}

func requestsPage(e *env) {
	id := e.put(e.ask("203.0.113.7")).Block.ID
	for range 24 {
		e.put(e.ask("203.0.113.7"))
	}
	cur, n := "", int64(25)
	for {
		p, err := e.Requests(e.Context(), id, cur, 7)
		e.ok(err)
		for _, q := range p.Items {
			same(e, "n", q.N, n)
			n--
		}
		if cur = p.Next; cur == "" {
			break
		}
	}
	same(e, "all seen", n, 0)
	_, err := e.Requests(e.Context(), "b-none", "", 7)
	e.wantKind(err, parry.KindNotFound)
	_, err = e.Requests(e.Context(), id, "////", 7)
	e.wantKind(err, parry.KindInvalid)
}

func revisionsGrow(e *env) {
	last, err := e.Revision(e.Context())
	e.ok(err)
	for i := range 5 {
		b := e.put(e.ask(fmt.Sprintf("203.0.113.%d", i))).Block
		if b.Rev <= last {
			e.Fatalf("revision %d after %d", b.Rev, last)
		}
		last = b.Rev
	}
}

func controllerIDStays(e *env) {
	id, err := e.ControllerID(e.Context())
	e.ok(err)
	same(e, "length", len(id), 32)
	e.ok(e.Close())
	e.open()
	again, err := e.ControllerID(e.Context())
	e.ok(err)
	same(e, "id", again, id)
}

func closedStoreIsUnavailable(e *env) {
	e.ok(e.Close())
	e.ok(e.Close())
	_, err := e.Put(e.Context(), e.ask("203.0.113.7"))
	e.wantKind(err, parry.KindUnavailable)
	e.wantKind(e.MarkDirty(e.Context(), "fw1"), parry.KindUnavailable)
	e.wantKind(e.Ping(e.Context()), parry.KindUnavailable)
}

// FuzzCursor hands anything to the listings: a page or a refusal, never another error.
func FuzzCursor(f *testing.F) {
	for _, s := range []string{"", "Yg", "YmItMDE", "cnItMDE", "cTE", "cS0x", "cTk5OTk5OTk5OTk5OTk5OTk5OTk5", "====", "é"} {
		f.Add(s)
	}
	s, err := store.Open(f.Context(), engines[0].open(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	now := time.Now()
	a := parry.Admission{BlockID: parry.NewBlockID(now), Key: at("203.0.113.7"), MaxExpires: now.Add(time.Hour),
		Request: parry.Request{ID: parry.NewRequestID(now), ReceivedAt: now, TTL: time.Hour}}
	if _, err := s.Put(f.Context(), a); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, cursor string) {
		_, err1 := s.Blocks(t.Context(), parry.BlockFilter{Cursor: cursor})
		_, err2 := s.Runs(t.Context(), parry.RunFilter{Cursor: cursor})
		_, err3 := s.Requests(t.Context(), a.BlockID, cursor, 10)
		for _, err := range []error{err1, err2, err3} {
			if pe := (*parry.Error)(nil); err != nil && (!errors.As(err, &pe) || pe.Kind != parry.KindInvalid) {
				t.Fatalf("cursor %q: %v", cursor, err)
			}
		}
	})
}

// cancelledWritesAreDoneOrNot: an error means that nothing was done, an answer that all was, whenever the caller gives up.
func cancelledWritesAreDoneOrNot(e *env) {
	var ids []parry.BlockID
	for i := range 60 {
		ids = append(ids, e.put(e.ask(fmt.Sprintf("203.0.113.%d", i+1))).Block.ID)
	}
	release := e.blockWriter()
	errs := make([]error, len(ids))
	var begun, wg sync.WaitGroup
	ctx, cancel := context.WithCancel(e.Context())
	for i, id := range ids {
		begun.Add(1)
		wg.Go(func() {
			begun.Done()
			var b parry.Block
			if b, _, errs[i] = e.EndBlock(ctx, id, lifted("ops")); errs[i] == nil && b.ID != id {
				e.Errorf("block %s: the answer is about %q", id, b.ID)
			}
		})
	}
	begun.Wait()
	cancel()
	release()
	wg.Wait()
	for i, id := range ids {
		b := e.block(id)
		if live := b.Live(); live != (errs[i] != nil) {
			e.Errorf("block %s: live is %t after the error %v", id, live, errs[i])
		}
	}
}
