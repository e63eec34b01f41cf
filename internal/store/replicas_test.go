package store_test

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// replicasPutAtOnce: two replicas on one database take the same and distinct blocks from 32 clients each. Nothing is lost, nothing is there
// twice, and the counts are exact. SQLite has one process, which the 64 clients share.
func replicasPutAtOnce(e *env) {
	const clients, shared, own, retried = 32, 20, 10, 10
	replicas := []*store.Store{e.Store, e.Store}
	if e.postgres() {
		replicas[1] = e.replica()
	}
	var mu sync.Mutex
	got := map[string][]parry.Admitted{}
	sent := map[string][]parry.RequestID{}
	var g errgroup.Group
	put := func(s *store.Store, a parry.Admission) error {
		r, err := s.Put(e.Context(), a)
		if err != nil {
			return err
		}
		source := parry.FormatPrefix(a.Key.Source)
		mu.Lock()
		defer mu.Unlock()
		got[source], sent[source] = append(got[source], r), append(sent[source], a.Request.ID)
		return nil
	}
	start := make(chan struct{})
	for i := range 2 * clients {
		s := replicas[i%2]
		var todo []parry.Admission
		for n := range shared { // the same blocks by everyone, each with another end
			todo = append(todo, e.askFor(at(fmt.Sprintf("203.0.113.%d", n)), time.Hour+time.Duration(i)*time.Minute))
		}
		for n := range own { // blocks of this client's own
			todo = append(todo, e.ask(fmt.Sprintf("11.0.%d.%d", i, n)))
		}
		for n := range retried { // one request that a client of each replica sends
			a := e.ask(fmt.Sprintf("12.0.%d.%d", i/2, n))
			a.Idempotency = &parry.Idempotency{Scope: "t-1", Key: fmt.Sprint(i/2, ".", n), Hash: sha256.Sum256([]byte("body"))}
			todo = append(todo, a)
		}
		g.Go(func() error {
			<-start
			for j := range todo {
				if err := put(s, todo[(j+i)%len(todo)]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	close(start)
	e.ok(g.Wait())

	check := func(source string, puts int, count int64) {
		e.Helper()
		rs := got[source]
		same(e, source+": answers", len(rs), puts)
		made, replayed := 0, 0
		for _, r := range rs {
			same(e, source+": the block of each answer", r.Block.ID, rs[0].Block.ID)
			if r.Created {
				made++
			}
			if r.Replayed {
				replayed++
			}
		}
		same(e, source+": made once", made, 1)
		same(e, source+": replayed", replayed, puts-int(count))
		same(e, source+": requests", e.block(rs[0].Block.ID).Count, count)
		p, err := replicas[1].Requests(e.Context(), rs[0].Block.ID, "", 1000)
		e.ok(err)
		same(e, source+": evidence", int64(len(p.Items)), count)
		for n, q := range p.Items {
			same(e, source+": ordinals", q.N, count-int64(n))
			same(e, source+": known request", slices.Contains(sent[source], q.ID), true)
		}
	}
	for n := range shared {
		source := fmt.Sprintf("203.0.113.%d", n)
		check(source, 2*clients, 2*clients)
		same(e, source+": the latest end", e.block(got[source][0].Block.ID).ExpiresAt, e.clock.Now().Add(time.Hour+(2*clients-1)*time.Minute))
	}
	for i := range 2 * clients {
		for n := range own {
			check(fmt.Sprintf("11.0.%d.%d", i, n), 1, 1)
		}
	}
	for i := range clients {
		for n := range retried {
			check(fmt.Sprintf("12.0.%d.%d", i, n), 2, 1)
		}
	}
	want := int64(shared + 2*clients*own + clients*retried)
	for _, s := range replicas {
		c, err := s.Counts(e.Context())
		e.ok(err)
		same(e, "live blocks by the counter", c.LiveBlocks, want)
		ch, err := s.Changes(e.Context(), 0)
		e.ok(err)
		same(e, "live blocks in the table", int64(len(ch.Blocks)), want)
	}
}

// replicasShareTheLimits: what MaxBlocks leaves is given out once, whichever replica is asked.
func replicasShareTheLimits(e *env) {
	replicas := []*store.Store{e.Store, e.Store}
	if e.postgres() {
		replicas[1] = e.replica()
	}
	const room = 10
	var mu sync.Mutex
	taken := 0
	var g errgroup.Group
	for i := range 64 {
		a := e.ask(fmt.Sprintf("11.0.0.%d", i))
		a.MaxBlocks = room
		g.Go(func() error {
			_, err := replicas[i%2].Put(e.Context(), a)
			if parry.KindOf(err) == parry.KindRefused {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			taken++
			return err
		})
	}
	e.ok(g.Wait())
	same(e, "taken", taken, room)
	c, err := e.Counts(e.Context())
	e.ok(err)
	same(e, "live", c.LiveBlocks, room)
}
