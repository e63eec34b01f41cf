package feeds_test

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/parry/parry/internal/feeds"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// Whatever happens to blocks, a feed that follows the changes says what one that is made anew from the database would.
func TestFeeds_equalTheStoreAfterAnyChanges(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	s, err := store.Open(ctx, store.Options{Path: filepath.Join(t.TempDir(), "parry.db"), Now: clock, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	f, err := feeds.New(feeds.Options{Store: s, Now: clock, Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		if _, err := s.EndExempted(ctx, []parry.Exemption{{ID: "cfg:all", Prefix: netip.MustParsePrefix("0.0.0.0/0"), Source: parry.ExemptConfig}}); err != nil {
			t.Fatal(err) // what the round before left
		}
		var ids []parry.BlockID
		ok := func(err error) {
			t.Helper()
			if err != nil && parry.KindOf(err) != parry.KindConflict && parry.KindOf(err) != parry.KindNotFound {
				t.Fatal(err)
			}
		}
		source := func(t *rapid.T) netip.Prefix {
			a := netip.AddrFrom4([4]byte{203, 0, 113, byte(rapid.IntRange(0, 7).Draw(t, "host"))})
			p, _ := a.Prefix(rapid.SampledFrom([]int{32, 32, 32, 30}).Draw(t, "bits"))
			return p
		}
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"put", "put", "put", "end", "exempt", "time passes"}).Draw(t, "step") {
			case "put":
				m := parry.Match{Source: source(t)}
				if rapid.IntRange(0, 3).Draw(t, "narrow") == 0 {
					m.Protocol, m.Port = parry.ProtoTCP, 22
				}
				selector := rapid.SampledFrom([]parry.Selector{"default", "edge"}).Draw(t, "selector")
				got, err := s.Put(ctx, parry.Admission{
					BlockID: parry.NewBlockID(now), Key: parry.Key{Match: m, Selector: selector}, MaxExpires: now.Add(time.Hour),
					Request: parry.Request{ID: parry.NewRequestID(now), ReceivedAt: now, TTL: time.Duration(rapid.IntRange(1, 60).Draw(t, "ttl")) * time.Minute, TokenName: "x"},
				})
				ok(err)
				ids = append(ids, got.Block.ID)
			case "end":
				if len(ids) > 0 {
					_, _, err := s.EndBlock(ctx, rapid.SampledFrom(ids).Draw(t, "block"), parry.Lift{By: "anna"})
					ok(err)
				}
			case "exempt":
				_, err := s.EndExempted(ctx, []parry.Exemption{{ID: "cfg:x", Prefix: source(t), Reason: "ours", Source: parry.ExemptConfig}})
				ok(err)
			case "time passes":
				now = now.Add(time.Duration(rapid.IntRange(1, 40).Draw(t, "minutes")) * time.Minute)
				_, err := s.EndDue(ctx, now)
				ok(err)
			}
			if rapid.IntRange(0, 2).Draw(t, "late") == 0 {
				continue // several changes in one refresh
			}
			if err := f.Refresh(ctx); err != nil {
				t.Fatal(err)
			}
			live := true
			page, err := s.Blocks(ctx, parry.BlockFilter{Live: &live, Limit: 1000})
			if err != nil {
				t.Fatal(err)
			}
			whole, all := map[netip.Prefix]bool{}, map[netip.Prefix]bool{}
			for _, b := range page.Items {
				all[b.Source] = true
				if b.Port == 0 {
					whole[b.Source] = true
				}
			}
			for scope, set := range map[feeds.Scope]map[netip.Prefix]bool{feeds.ScopeWhole: whole, feeds.ScopeAll: all} {
				_, r, err := f.Get(feeds.Query{Name: feeds.Blocks, Scope: scope, Format: feeds.CIDR})
				if err != nil {
					t.Fatal(err)
				}
				want := "# parry feed blocks, 0 entries\n"
				if len(set) > 0 {
					want = ""
				}
				for _, p := range slices.SortedFunc(maps.Keys(set), netip.Prefix.Compare) {
					want += p.String() + "\n"
				}
				if d := cmp.Diff(strings.Split(want, "\n"), strings.Split(string(r.Body), "\n")); d != "" {
					t.Fatalf("%s (-want +got):\n%s", scope, d)
				}
			}
		}
	})
}
