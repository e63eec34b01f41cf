package lists_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/parry"
)

// TestLists_memoryIsWhatTheStoreHolds does anything in any order, and after each step holds what is in memory against lists that were read anew, and
// lookups against the longest prefix that stands by the entries' own ends.
func TestLists_memoryIsWhatTheStoreHolds(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	rapid.Check(t, func(rt *rapid.T) {
		defer func() { _ = e.Delete(t.Context(), "nets", "anna") }()
		mode := rapid.SampledFrom(parry.Refreshes).Draw(rt, "mode")
		e.list("nets", parry.ListCIDR, func(l *parry.List) { l.Refresh, l.MaxTTL, l.Capacity = mode, 0, 4 })
		keys := rapid.SampledFrom([]string{"10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1", "10.2.0.0/16", "2001:db8::/32", "2001:db8::1"})
		check := func() {
			again, err := lists.New(lists.Options{Store: e.store, Now: e.now})
			e.ok(err)
			e.ok(again.Load(t.Context()))
			got, err := e.Snapshot("nets")
			if err != nil {
				if _, err := again.Snapshot("nets"); err == nil {
					rt.Fatal("the list is in the store and not in memory")
				}
				return
			}
			want, err := again.Snapshot("nets")
			e.ok(err)
			if d := cmp.Diff(want.Entries, got.Entries); d != "" {
				rt.Fatalf("memory differs: %s", d)
			}
			if len(got.Entries) > 4 {
				rt.Fatalf("%d entries on a list of 4", len(got.Entries))
			}
			longest := "-"
			for _, x := range got.Entries { // in order: what covers 10.1.1.1 comes from the widest to the narrowest
				if !x.Live(e.now()) {
					rt.Fatalf("%s has run out", x.Key)
				}
				if x.Key == "10.0.0.0/8" || x.Key == "10.1.0.0/16" || x.Key == "10.1.1.0/24" || x.Key == "10.1.1.1" {
					longest = x.Key
				}
			}
			if got := e.found("nets", "10.1.1.1"); got != longest {
				rt.Fatalf("found %s, want %s", got, longest)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				var ps []parry.ListPut
				for range rapid.IntRange(1, 3).Draw(rt, "n") {
					ps = append(ps, parry.ListPut{Key: keys.Draw(rt, "key"), NoEnd: rapid.IntRange(0, 9).Draw(rt, "no end") == 0,
						TTL:    time.Duration(rapid.IntRange(1, 90).Draw(rt, "ttl")) * time.Minute,
						SeenAt: e.now().Add(-time.Duration(rapid.IntRange(0, 60).Draw(rt, "ago")) * time.Minute)})
				}
				if _, err := e.Put(t.Context(), "nets", ps); err != nil && parry.KindOf(err) != parry.KindRefused && parry.KindOf(err) != parry.KindNotFound {
					rt.Fatal(err)
				}
			},
			"remove": func(rt *rapid.T) {
				if err := e.Remove(t.Context(), "nets", keys.Draw(rt, "key"), "anna"); err != nil && parry.KindOf(err) != parry.KindNotFound {
					rt.Fatal(err)
				}
			},
			"wait": func(rt *rapid.T) { e.advance(time.Duration(rapid.IntRange(1, 100).Draw(rt, "minutes")) * time.Minute) },
			"sweep": func(rt *rapid.T) {
				_, err := e.store.Prune(t.Context(), parry.Retention{})
				e.ok(err)
			},
			"begin anew": func(rt *rapid.T) {
				if rapid.IntRange(0, 3).Draw(rt, "seldom") > 0 {
					return
				}
				if err := e.Delete(t.Context(), "nets", "anna"); err != nil {
					rt.Fatal(err)
				}
				e.list("nets", parry.ListCIDR, func(l *parry.List) { l.Refresh, l.MaxTTL, l.Capacity = mode, 0, 4 })
			},
			"": func(*rapid.T) { check() },
		})
	})
}
