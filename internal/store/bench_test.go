package store_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
	"github.com/parry/parry/internal/testenv"
)

// engines lists how to open each engine, durably, on a fresh database.
var benchEngines = []struct {
	name string
	open func(testing.TB) store.Options
}{
	{"sqlite", func(tb testing.TB) store.Options {
		return store.Options{Path: filepath.Join(tb.TempDir(), "parry.db")}
	}},
	{"postgres", func(tb testing.TB) store.Options {
		return store.Options{Driver: "postgres", DSN: testenv.Postgres(tb, testenv.PostgresOptions{Durable: true})}
	}},
}

func benchStore(b *testing.B, o store.Options) *store.Store {
	b.Helper()
	s, err := store.Open(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// distinct is the n-th of 2^24 admissions that share nothing.
func distinct(n int64) parry.Admission {
	now := time.Now()
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], uint32(n)|11<<24)
	return parry.Admission{
		BlockID: parry.NewBlockID(now),
		Request: parry.Request{
			ID: parry.NewRequestID(now), ReceivedAt: now, EventTime: now.Add(-time.Second), TTL: time.Hour, TokenID: "t-01", TokenName: "ossim",
			RemoteAddr: netip.MustParseAddr("192.0.2.7"), Origin: "ossim", AlertID: fmt.Sprint("alert-", n), RuleID: "5712",
			Reason: "sshd: brute force trying to get access to the system",
		},
		Key:        parry.Key{Match: parry.Match{Source: netip.PrefixFrom(netip.AddrFrom4(ip), 32)}, Selector: parry.SelectDefault},
		MaxExpires: now.Add(24 * time.Hour), MaxBlocks: 10_000_000, MaxRules: 200, RuleScope: []parry.Selector{parry.SelectDefault, parry.SelectAll},
		Ladder: &parry.Ladder{Rungs: []time.Duration{time.Hour, 24 * time.Hour}, Window: 720 * time.Hour, Decay: 168 * time.Hour}, LadderTTL: true,
	}
}

// BenchmarkPut is durable accepts: distinct sources, each with an idempotency key.
func BenchmarkPut(b *testing.B) {
	for _, e := range benchEngines {
		for _, clients := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/clients=%d", e.name, clients), func(b *testing.B) {
				s := benchStore(b, e.open(b))
				var n atomic.Int64
				b.ResetTimer()
				var g errgroup.Group
				for range clients {
					g.Go(func() error {
						for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
							a := distinct(i)
							a.Idempotency = &parry.Idempotency{Scope: "t-01 POST /api/v1/blocks", Key: fmt.Sprint(i)}
							if _, err := s.Put(context.Background(), a); err != nil {
								return err
							}
						}
						return nil
					})
				}
				if err := g.Wait(); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
			})
		}
	}
}

// fill makes n live blocks.
func fill(b *testing.B, s *store.Store, n int64) {
	b.Helper()
	var next atomic.Int64
	var g errgroup.Group
	for range 512 {
		g.Go(func() error {
			for i := next.Add(1); i <= n; i = next.Add(1) {
				if _, err := s.Put(context.Background(), distinct(i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkChanges reads the desired state of 100,000 live blocks whole, and one change in it.
func BenchmarkChanges(b *testing.B) {
	for _, e := range benchEngines {
		s := benchStore(b, e.open(b))
		fill(b, s, 100_000)
		read := func(since parry.Revision, want int) func(*testing.B) {
			return func(b *testing.B) {
				for b.Loop() {
					c, err := s.Changes(b.Context(), since)
					if err != nil || len(c.Blocks) != want {
						b.Fatal(len(c.Blocks), err)
					}
				}
			}
		}
		b.Run(e.name+"/all", read(0, 100_000))
		rev, err := s.Revision(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Put(b.Context(), distinct(100_001)); err != nil {
			b.Fatal(err)
		}
		b.Run(e.name+"/one", read(rev, 1))
	}
}
