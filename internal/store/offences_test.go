package store_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

const day = 24 * time.Hour

// offend asks for a block as a trigger does that names no TTL: an hour, or more by the ladder.
func (e *env) offend(source string) parry.Admission { return e.offendAt(at(source)) }

func (e *env) offendAt(k parry.Key) parry.Admission {
	a := e.askFor(k, time.Hour)
	a.Ladder = &parry.Ladder{Rungs: []time.Duration{time.Hour, day, 7 * day, 20 * day}, Window: 30 * day, Decay: 7 * day}
	a.LadderTTL = true
	return a
}

// offence makes one and tells which it was and how long its block lasts.
func (e *env) offence(a parry.Admission) (n int, lasts time.Duration) {
	e.Helper()
	r := e.put(a)
	same(e, "created", r.Created, true)
	same(e, "stored offence", e.block(r.Block.ID).Offence, r.Block.Offence)
	return r.Block.Offence, r.Block.ExpiresAt.Sub(e.clock.Now())
}

func (e *env) wantOffence(what, source string, n int, lasts time.Duration) {
	e.Helper()
	gotN, gotLasts := e.offence(e.offend(source))
	same(e, what+": offence", gotN, n)
	same(e, what+": lasts", gotLasts, lasts)
}

func (e *env) offender(source string) parry.Offender {
	e.Helper()
	o, err := e.Offender(e.Context(), at(source).Source)
	e.ok(err)
	return o
}

func offencesClimbTheLadder(e *env) {
	for i, lasts := range []time.Duration{time.Hour, day, 7 * day, 20 * day, 20 * day} {
		e.wantOffence(fmt.Sprint("offence ", i+1), "203.0.113.7", i+1, lasts)
		e.clock.Advance(lasts + time.Minute)
	}
	e.wantOffence("another source", "203.0.113.8", 1, time.Hour)
	o := e.offender("203.0.113.7")
	same(e, "offences", o.Offences, 5)
	same(e, "rung", o.Rung, 4)
	same(e, "standing", o.Standing, false)
}

func offencesDecay(e *env) {
	e.wantOffence("first", "203.0.113.7", 1, time.Hour)
	e.clock.Advance(time.Hour)
	e.wantOffence("second", "203.0.113.7", 2, day)
	e.clock.Advance(day)
	e.wantOffence("third", "203.0.113.7", 3, 7*day)
	e.clock.Advance(7*day + 7*day - time.Minute) // the decay begins when the block has ended
	e.wantOffence("fourth, a minute before the decay", "203.0.113.7", 4, 20*day)
	e.clock.Advance(20*day + 14*day)
	e.wantOffence("fifth, two rungs lower", "203.0.113.7", 5, 7*day)
	e.clock.Advance(7*day + 21*day)
	e.wantOffence("all rungs are gone", "203.0.113.7", 1, time.Hour)

	ladder := parry.Ladder{Rungs: []time.Duration{time.Hour, day}, Window: 2 * day}
	a := e.offend("203.0.113.9")
	a.Ladder = &ladder
	e.offence(a)
	e.clock.Advance(time.Hour + 2*day)
	b := e.offend("203.0.113.9")
	b.Ladder = &ladder
	n, _ := e.offence(b)
	same(e, "beyond the window", n, 1)
}

// A refresh moves the end of a block without a word to the ledger; the decay begins at the true end all the same.
func offencesDecayFromTheTrueEnd(e *env) {
	id := e.put(e.offend("203.0.113.7")).Block.ID
	for range 10 * 24 * 2 {
		e.clock.Advance(30 * time.Minute)
		same(e, "refreshed", e.put(e.offend("203.0.113.7")).Block.ID, id)
	}
	e.clock.Advance(2 * time.Hour)
	e.wantOffence("after ten days of refreshes", "203.0.113.7", 2, day)
}

func refreshesAreNoOffences(e *env) {
	r := e.put(e.offend("203.0.113.7"))
	e.clock.Advance(time.Minute)
	again := e.put(e.offend("203.0.113.7"))
	same(e, "refreshed", again.Block.ID, r.Block.ID)
	same(e, "offence", again.Block.Offence, 1)
	replay := e.keyed(e.offend("203.0.113.7"), "k", "body")
	e.put(replay)
	e.put(e.keyed(e.offend("203.0.113.7"), "k", "body"))
	same(e, "offences", e.offender("203.0.113.7").Offences, 1)
	e.clock.Advance(2 * time.Hour)
	late := e.offend("203.0.113.7")
	late.Request.EventTime = e.clock.Now().Add(-90 * time.Minute)
	e.put(late)
	late = e.offend("203.0.113.8")
	late.Request.EventTime = e.clock.Now().Add(-90 * time.Minute)
	same(e, "late evidence: offence", e.put(late).Block.Offence, 0)
	same(e, "late evidence", e.offender("203.0.113.7").Offences, 1)
	same(e, "late evidence of another", e.offender("203.0.113.8").Offences, 0)
	e.wantOffence("after the late evidence", "203.0.113.8", 1, time.Hour)
	e.wantOffence("second", "203.0.113.7", 2, day)
	e.clock.Advance(time.Hour)
	r = e.put(e.offend("203.0.113.7"))
	same(e, "a repeat lasts as the rung says", r.Block.ExpiresAt.Sub(e.clock.Now()), day)
}

// What is blocked of a source while a block of it stands belongs to the same offence.
func offencesLastAsLongAsABlockStands(e *env) {
	to := func(destination string) parry.Key {
		k := at("203.0.113.7")
		k.Destination = at(destination).Source
		return k
	}
	r := e.put(e.offendAt(to("198.51.100.1")))
	for i := 2; i < 20; i++ {
		n, lasts := e.offence(e.offendAt(to(fmt.Sprint("198.51.100.", i))))
		same(e, "another destination: offence", n, 1)
		same(e, "lasts", lasts, time.Hour)
	}
	e.clock.Advance(50 * time.Minute)
	e.put(e.offendAt(to("198.51.100.1"))) // stands on until 1:50
	e.clock.Advance(50 * time.Minute)
	n, _ := e.offence(e.offendAt(to("198.51.100.40")))
	same(e, "while a refreshed block stands", n, 1)
	e.clock.Advance(2 * time.Hour)
	n, lasts := e.offence(e.offendAt(to("198.51.100.1")))
	same(e, "after all have ended", n, 2)
	same(e, "lasts", lasts, day)
	n, lasts = e.offence(e.offendAt(to("198.51.100.2")))
	same(e, "beside the second", n, 2)
	same(e, "lasts", lasts, day)

	_, _, err := e.EndBlock(e.Context(), r.Block.ID, lifted("anna"))
	e.ok(err)
	other := e.offend("203.0.113.9")
	id := e.put(other).Block.ID
	e.clock.Advance(time.Minute)
	_, err = e.SetExpiry(e.Context(), id, e.clock.Now().Add(time.Minute), "anna")
	e.ok(err)
	e.clock.Advance(2 * time.Minute)
	e.wantOffence("after a block that was shortened", "203.0.113.9", 2, day)
	p, err := e.Blocks(e.Context(), parry.BlockFilter{Source: at("203.0.113.9").Source})
	e.ok(err)
	_, _, err = e.EndBlock(e.Context(), p.Items[0].ID, lifted("anna"))
	e.ok(err)
	e.clock.Advance(time.Second)
	e.wantOffence("after a block that was lifted", "203.0.113.9", 3, 7*day)
}

func offencesOfIPv6CountByNetwork(e *env) {
	e.wantOffence("first", "2001:db8::1", 1, time.Hour)
	e.wantOffence("another address meanwhile", "2001:db8::2", 1, time.Hour)
	e.clock.Advance(2 * time.Hour)
	e.wantOffence("another address later", "2001:db8::3", 2, day)
	e.wantOffence("another network", "2001:db8:0:1::1", 1, time.Hour)
	same(e, "source", e.offender("2001:db8::ffff").Source, netip.MustParsePrefix("2001:db8::/64"))
}

func offencesHoldToCapsAndExplicitTTLs(e *env) {
	e.wantOffence("first", "203.0.113.7", 1, time.Hour)
	e.clock.Advance(time.Hour)
	a := e.offend("203.0.113.7")
	a.MaxExpires = e.clock.Now().Add(2 * time.Hour)
	n, lasts := e.offence(a)
	same(e, "capped: offence", n, 2)
	same(e, "capped: lasts", lasts, 2*time.Hour)
	e.clock.Advance(2 * time.Hour)
	a = e.offend("203.0.113.7")
	a.LadderTTL = false
	n, lasts = e.offence(a)
	same(e, "an operator's own: offence", n, 3)
	same(e, "an operator's own: lasts", lasts, time.Hour)
	e.clock.Advance(time.Hour)
	a = e.offend("203.0.113.7")
	a.NoEnd, a.MaxExpires, a.Request.TTL = true, time.Time{}, 0
	r := e.put(a)
	same(e, "without end: offence", r.Block.Offence, 4)
	same(e, "without end: expires", r.Block.ExpiresAt, time.Time{})
	e.clock.Advance(400 * day)
	k := at("203.0.113.7")
	k.Port, k.Protocol = 22, parry.ProtoTCP
	n, _ = e.offence(e.offendAt(k))
	same(e, "beside one without end", n, 4)
	o := e.offender("203.0.113.7")
	same(e, "standing", o.Standing, true)
	same(e, "until", o.Until, time.Time{})
}

func oneOffenceOfManyAtOnce(e *env) {
	for range 2 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		created := 0
		for i := range 64 {
			k := at("203.0.113.7")
			if i%2 == 1 {
				k.Port, k.Protocol = uint16(i), parry.ProtoTCP
			}
			a := e.offendAt(k)
			wg.Go(func() {
				r, err := e.Put(e.Context(), a)
				if err != nil {
					e.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if r.Created {
					created++
				}
			})
		}
		wg.Wait()
		same(e, "created", created, 33)
		e.clock.Advance(2 * day)
	}
	o := e.offender("203.0.113.7")
	same(e, "offences", o.Offences, 2)
	same(e, "rung", o.Rung, 2)
}

// The commit of a batch succeeds and its answer is lost: the second try counts nothing.
func offencesAreNotCountedTwice(e *env) {
	e.wantOffence("first", "203.0.113.7", 1, time.Hour)
	e.clock.Advance(time.Hour)
	rs, err := e.Recommit(e.Context(), e.offend("203.0.113.7"), e.keyed(e.offend("203.0.113.8"), "k", "body"))
	e.ok(err)
	same(e, "offence", rs[0].Block.Offence, 2)
	same(e, "lasts", rs[0].Block.ExpiresAt.Sub(e.clock.Now()), day)
	same(e, "keyed", rs[1].Block.Offence, 1)
	same(e, "offences", e.offender("203.0.113.7").Offences, 2)
	same(e, "offences of the keyed", e.offender("203.0.113.8").Offences, 1)
}

func refusedRequestsAreNoOffences(e *env) {
	e.wantOffence("first", "203.0.113.7", 1, time.Hour)
	a := e.offend("203.0.113.8")
	a.MaxBlocks = 1
	_, err := e.Put(e.Context(), a)
	e.wantKind(err, parry.KindRefused)
	same(e, "offences", e.offender("203.0.113.8").Offences, 0)
}

func (e *env) wantGrace(a parry.Admission, by string) {
	e.Helper()
	_, err := e.Put(e.Context(), a)
	e.wantKind(err, parry.KindRefused)
	if !errors.Is(err, parry.ErrGrace) || !strings.Contains(err.Error(), by) {
		e.Fatalf("got %v, want a grace given by %s", err, by)
	}
}

func unblockGivesGrace(e *env) {
	id := e.put(e.offend("203.0.113.7")).Block.ID
	e.clock.Advance(time.Minute)
	_, _, err := e.EndBlock(e.Context(), id, parry.Lift{By: "anna", Grace: 2 * time.Hour})
	e.ok(err)
	until := e.clock.Now().Add(2 * time.Hour)
	e.clock.Advance(time.Minute)
	e.wantGrace(e.offend("203.0.113.7"), "anna lifted the block of 203.0.113.7 with a grace until "+until.Format(time.RFC3339))
	o := e.offender("203.0.113.7")
	same(e, "grace", o.GraceUntil, until)
	same(e, "by", o.GraceBy, "anna")
	same(e, "the offence stays", o.Offences, 1)
	same(e, "another source", e.put(e.offend("203.0.113.8")).Created, true)
	_, _, err = e.EndBlock(e.Context(), id, lifted("bob"))
	e.ok(err)
	same(e, "a plain word about an ended block changes nothing", e.offender("203.0.113.7").GraceBy, "anna")
	_, _, err = e.EndBlock(e.Context(), id, parry.Lift{By: "bob"})
	e.ok(err)
	same(e, "ended by a word", e.offender("203.0.113.7").GraceUntil, time.Time{})
	e.wantOffence("after the grace", "203.0.113.7", 2, day)
}

func graceEndsByItselfOrByAnOperator(e *env) {
	end := func(source string, l parry.Lift) {
		e.Helper()
		id := e.put(e.offend(source)).Block.ID
		e.clock.Advance(time.Second)
		_, _, err := e.EndBlock(e.Context(), id, l)
		e.ok(err)
		e.clock.Advance(time.Second)
	}
	end("203.0.113.7", parry.Lift{By: "anna", Grace: time.Hour})
	e.clock.Advance(time.Hour)
	e.wantOffence("by itself", "203.0.113.7", 2, day)

	end("203.0.113.8", parry.Lift{By: "anna", Grace: time.Hour})
	word := e.offend("203.0.113.8")
	word.EndsGrace, word.MaxBlocks = true, 1
	_, err := e.Put(e.Context(), word)
	e.wantKind(err, parry.KindRefused)
	e.wantGrace(e.offend("203.0.113.8"), "anna") // a request that was refused ends nothing
	word.MaxBlocks = 0
	e.put(word)
	same(e, "an operator's word", e.put(e.offend("203.0.113.8")).Created, false)

	end("203.0.113.9", parry.Lift{By: "anna", Forget: true, Grace: parry.KeepGrace})
	same(e, "forgotten", e.offender("203.0.113.9").Offences, 0)
	e.wantOffence("after forgetting", "203.0.113.9", 1, time.Hour)

	end("2001:db8::1", parry.Lift{By: "anna", Grace: time.Hour})
	e.wantGrace(e.offend("2001:db8::2"), "anna")

	end("198.51.100.0/24", parry.Lift{By: "anna", Grace: time.Hour})
	e.wantGrace(e.offend("198.51.100.77"), "anna lifted the block of 198.51.100.0/24")
	same(e, "of the prefix", e.offender("198.51.100.77").GraceOf, netip.MustParsePrefix("198.51.100.0/24"))
	same(e, "beside the prefix", e.put(e.offend("198.51.101.77")).Created, true)
}

// promote asks as a trigger does where five sources of a /24 or /64 make it be blocked.
func (e *env) promote(source string) parry.Admission {
	a := e.offend(source)
	bits := 24
	if a.Key.Source.Addr().Is6() {
		bits = 64
	}
	a.Promote = &parry.Promotion{Prefix: netip.PrefixFrom(a.Key.Source.Addr(), bits).Masked(), Sources: 5, Since: e.clock.Now().Add(-30 * time.Minute)}
	return a
}

func promotionAtTheFifthSource(e *env) {
	for net, want := range map[string]string{"203.0.113.%d": "203.0.113.0/24", "2001:db8::%d": "2001:db8::/64"} {
		for i := 1; i < 5; i++ {
			e.put(e.promote(fmt.Sprintf(net, i)))
			r := e.put(e.promote(fmt.Sprintf(net, i)))
			same(e, "not yet", r.Block.Promoted, 0)
		}
		r := e.put(e.promote(fmt.Sprintf(net, 9)))
		same(e, "created", r.Created, true)
		same(e, "source", r.Block.Source.String(), want)
		same(e, "of sources", r.Block.Promoted, 5)
		same(e, "stored", e.block(r.Block.ID), r.Block)
		same(e, "offence", r.Block.Offence, 1)
		live := true
		p, err := e.Blocks(e.Context(), parry.BlockFilter{Within: r.Block.Source, Live: &live})
		e.ok(err)
		same(e, "the addresses' own blocks stay", len(p.Items), 5)
		q, err := e.Requests(e.Context(), r.Block.ID, "", 10)
		e.ok(err)
		same(e, "the request says who", q.Items[0].Source, at(fmt.Sprintf(net, 9)).Source)

		e.clock.Advance(45 * time.Minute)
		r2 := e.put(e.promote(fmt.Sprintf(net, 77)))
		same(e, "while it stands another source refreshes it", r2.Block.ID, r.Block.ID)
		same(e, "expires", r2.Block.ExpiresAt, e.clock.Now().Add(time.Hour))
		e.clock.Advance(2 * time.Hour)
		r3 := e.put(e.promote(fmt.Sprintf(net, 78)))
		same(e, "after all of them", r3.Block.Promoted, 0)
		same(e, "its own", r3.Block.Source, at(fmt.Sprintf(net, 78)).Source)
	}
}

func promotionKnowsWhatSpeaksAgainstIt(e *env) {
	four := func(net string) {
		for i := 1; i < 5; i++ {
			e.put(e.promote(fmt.Sprintf(net, i)))
		}
	}
	alone := func(what string, a parry.Admission, says string) {
		e.Helper()
		r := e.put(a)
		same(e, what+": source", r.Block.Source, a.Key.Source)
		same(e, what+": promoted", r.Block.Promoted, 0)
		if !strings.Contains(r.NotPromoted, says) || says == "" && r.NotPromoted != "" {
			e.Fatalf("%s: says %q, want %q", what, r.NotPromoted, says)
		}
	}
	four("203.0.113.%d")
	a := e.promote("203.0.113.5")
	a.Promote.Barred = "203.0.113.0/24 contains 203.0.113.200, which is never blocked"
	alone("an exemption", a, "203.0.113.200")

	four("198.51.100.%d")
	a = e.promote("198.51.100.5")
	a.Key.Selector = "edge"
	alone("other firewalls", a, "")
	id := e.put(e.promote("198.51.100.1")).Block.ID
	_, _, err := e.EndBlock(e.Context(), id, parry.Lift{By: "anna", Grace: time.Hour})
	e.ok(err)
	e.clock.Advance(time.Second)
	alone("a lifted one does not count", e.promote("198.51.100.5"), "")
	alone("an address in grace", e.promote("198.51.100.6"), "198.51.100.1 of 198.51.100.0/24 has been given grace")

	four("192.0.2.%d")
	e.clock.Advance(31 * time.Minute)
	alone("too long ago", e.promote("192.0.2.5"), "")
	four("192.0.2.%d")
	r := e.put(e.promote("192.0.2.6"))
	same(e, "promoted", r.Block.Promoted, 5)
	event := e.clock.Now()
	e.clock.Advance(time.Minute)
	_, _, err = e.EndBlock(e.Context(), r.Block.ID, lifted("anna"))
	e.ok(err)
	a = e.promote("192.0.2.7")
	a.Request.EventTime = event
	alone("an event before the prefix was lifted", a, "was lifted since")
}

func promotionOfManyAtOnce(e *env) {
	var wg sync.WaitGroup
	for i := range 64 {
		a := e.promote(fmt.Sprint("203.0.113.", i))
		a.BlockID = parry.NewBlockID(e.clock.Now())
		wg.Go(func() {
			if _, err := e.Put(e.Context(), a); err != nil {
				e.Error(err)
			}
		})
	}
	wg.Wait()
	p, err := e.Blocks(e.Context(), parry.BlockFilter{Within: netip.MustParsePrefix("203.0.113.0/24")})
	e.ok(err)
	promoted := 0
	for _, b := range p.Items {
		if b.Promoted > 0 {
			promoted++
			same(e, "count", b.Count, 60)
		}
	}
	same(e, "blocks", len(p.Items), 5)
	same(e, "of the prefix", promoted, 1)

	a := e.promote("203.0.113.200")
	rs, err := e.Recommit(e.Context(), a)
	e.ok(err)
	same(e, "a second try counts nothing", rs[0].Block.Count, 61)
}

// parry was away while a block ran out: the decay began at its end, not when that was noticed.
func offencesDecayFromAnEndNoticedLate(e *env) {
	e.put(e.offend("203.0.113.7"))
	e.clock.Advance(time.Hour + 30*day)
	_, err := e.EndDue(e.Context(), e.clock.Now())
	e.ok(err)
	e.wantOffence("beyond the window", "203.0.113.7", 1, time.Hour)
}

func pruneForgetsOffenders(e *env) {
	e.put(e.offend("203.0.113.7"))
	id := e.put(e.offend("203.0.113.8")).Block.ID
	_, _, err := e.EndBlock(e.Context(), id, parry.Lift{By: "anna", Grace: 100 * day})
	e.ok(err)
	e.put(e.offend("203.0.113.9"))
	_, err = e.SetExpiry(e.Context(), e.put(e.offend("203.0.113.9")).Block.ID, e.clock.Now().Add(120*day), "anna")
	e.ok(err)
	prune := func() int64 {
		_, err := e.EndDue(e.Context(), e.clock.Now())
		e.ok(err)
		p, err := e.Prune(e.Context(), parry.Retention{Offences: 30 * day})
		e.ok(err)
		return p.Offenders
	}
	e.clock.Advance(time.Hour)
	same(e, "just ended", prune(), 0)
	e.clock.Advance(30*day - time.Second)
	same(e, "within the window after its block", prune(), 0)
	e.clock.Advance(time.Second)
	same(e, "beyond", prune(), 1)
	same(e, "forgotten", e.offender("203.0.113.7").Offences, 0)
	same(e, "in grace", e.offender("203.0.113.8").GraceBy, "anna")
	same(e, "its block stands", e.offender("203.0.113.9").Offences, 1)
	e.clock.Advance(100 * day)
	same(e, "in grace no longer", prune(), 1)
	e.clock.Advance(30 * day)
	same(e, "its block is over, too", prune(), 1)
}

// Two replicas on one database count the offences of one source once.
func TestOffences_acrossReplicas(t *testing.T) {
	t.Parallel()
	e := newEnv(t, engines[1].open(t))
	stores := []*store.Store{e.Store, e.replica()}
	for round := range 3 {
		var wg sync.WaitGroup
		for i := range 32 {
			a := e.offend("203.0.113.7")
			wg.Go(func() {
				if _, err := stores[i%2].Put(e.Context(), a); err != nil {
					e.Error(err)
				}
			})
		}
		wg.Wait()
		same(e, "offences", e.offender("203.0.113.7").Offences, round+1)
		e.clock.Advance(3 * day)
	}
}
