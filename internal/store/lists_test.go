package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

var listSuite = []func(*env){
	listsComeAndGo, listsFollowTheConfiguration, entriesStoreEverything, entriesRefreshAsTheModeSays, entriesKeepToTheCap, entriesPastTheirTimeOnlyCount,
	entriesFillAListAndNoMore, entriesThatRanOutMakeRoom, entriesAreBoundedInSources, entriesAreRemovedForGood, entriesOfABatchAreAllOrNone,
	entriesCountOnceOverALostAnswer, acceptedBlocksGoOnTheirList, aFullListCostsNoBlock, listChangesGiveWhatWasWritten, sweepTakesWhatRanOut,
	sweepTakesDeletedLists, listsWakeReplicas, viewShowsEntries,
}

func (e *env) list(change ...func(*parry.List)) parry.List {
	e.Helper()
	l := parry.List{Name: "watch", Type: parry.ListIP, TTL: time.Hour, MaxTTL: 24 * time.Hour, Refresh: parry.RefreshLastSeen, Capacity: 1000,
		CreatedBy: "anna", CreatedAt: e.clock.Now()}
	for _, f := range change {
		f(&l)
	}
	l, err := e.CreateList(e.Context(), l)
	e.ok(err)
	return l
}

func (e *env) onList(list string, puts ...parry.ListPut) parry.ListDone {
	e.Helper()
	done, err := e.tryOnList(list, puts...)
	e.ok(err)
	return done
}

func (e *env) tryOnList(list string, puts ...parry.ListPut) (parry.ListDone, error) {
	for i := range puts {
		if puts[i].SeenAt.IsZero() {
			puts[i].SeenAt = e.clock.Now()
		}
	}
	return e.PutEntries(e.Context(), list, puts)
}

// entries are those that stand on a list, by key.
func (e *env) entries(list string) map[string]parry.ListEntry {
	e.Helper()
	c, err := e.ListChanges(e.Context(), 0)
	e.ok(err)
	out := map[string]parry.ListEntry{}
	for _, x := range c.Entries {
		if x.List == list && x.Live(e.clock.Now()) {
			out[x.Key] = x
		}
	}
	return out
}

func counts(d parry.ListDone) [3]int { return [3]int{d.Added, d.Refreshed, d.Late} }

func listsComeAndGo(e *env) {
	l := e.list(func(l *parry.List) {
		l.Comment, l.Subdomains, l.OnHit = "it's \x00 <b>", true, parry.OnHit{Syslog: true, Every: time.Minute}
	})
	c, err := e.ListChanges(e.Context(), 0)
	e.ok(err)
	if d := cmp.Diff([]parry.List{l}, c.Lists); d != "" {
		e.Fatal(d)
	}
	same(e, "source", l.Source, parry.ListAPI)
	_, err = e.CreateList(e.Context(), l)
	e.wantKind(err, parry.KindConflict)
	e.onList("watch", parry.ListPut{Key: "203.0.113.7"})
	e.ok(e.DeleteList(e.Context(), "watch", "anna"))
	e.wantKind(e.DeleteList(e.Context(), "watch", "anna"), parry.KindNotFound)
	_, err = e.PutEntries(e.Context(), "watch", []parry.ListPut{{Key: "203.0.113.7", SeenAt: e.clock.Now()}})
	e.wantKind(err, parry.KindNotFound)
	again := e.list()
	if again.ID == l.ID {
		e.Fatal("a new list has the old one's id")
	}
	same(e, "entries of the new list", len(e.entries("watch")), 0)
}

func listsFollowTheConfiguration(e *env) {
	e.list(func(l *parry.List) { l.Name = "made" })
	e.onList("made", parry.ListPut{Key: "203.0.113.7"})
	conf := []parry.List{
		{Name: "made", Type: parry.ListIP, TTL: 2 * time.Hour, Refresh: parry.RefreshFirstSeen, Capacity: 10},
		{Name: "own", Type: parry.ListUser, TTL: time.Hour, Refresh: parry.RefreshLastSeen, Capacity: 10},
	}
	sources := func() string {
		e.Helper()
		c, err := e.ListChanges(e.Context(), 0)
		e.ok(err)
		var out []string
		for _, l := range c.Lists {
			out = append(out, fmt.Sprintf("%s %s %s", l.Name, l.Source, l.TTL))
		}
		return strings.Join(out, ", ")
	}
	e.ok(e.SyncLists(e.Context(), conf))
	same(e, "lists", sources(), "made config 2h0m0s, own config 1h0m0s")
	same(e, "its entries stay", len(e.entries("made")), 1)
	e.wantKind(e.DeleteList(e.Context(), "own", "anna"), parry.KindConflict)
	rev, err := e.Revision(e.Context())
	e.ok(err)
	e.ok(e.SyncLists(e.Context(), conf))
	c, err := e.ListChanges(e.Context(), rev)
	e.ok(err)
	same(e, "nothing changed", len(c.Entries), 0)

	conf[0].Type = parry.ListCIDR
	err = e.SyncLists(e.Context(), conf)
	e.wantKind(err, parry.KindConflict)
	conf[1].Type = parry.ListDomain // nothing on it
	e.ok(e.SyncLists(e.Context(), conf[1:]))
	same(e, "what the configuration let go", sources(), "made api 2h0m0s, own config 1h0m0s")
	same(e, "its entries stay", len(e.entries("made")), 1)
	e.ok(e.DeleteList(e.Context(), "made", "anna"))
}

func entriesStoreEverything(e *env) {
	e.list()
	p := parry.ListPut{Key: "2001:db8::7", TTL: 2 * time.Hour, SeenAt: e.clock.Now().Add(-time.Minute), Comment: "{{x}} \x00 <b>\r\n';--", AlertID: "a\x00",
		RuleID: "5712", Origin: "wazuh \x00", By: "siem"}
	done := e.onList("watch", p)
	same(e, "done", counts(done), [3]int{1, 0, 0})
	want := parry.ListEntry{List: "watch", Key: p.Key, Rev: done.Revision, Count: 1, FirstSeen: p.SeenAt, LastSeen: p.SeenAt,
		ExpiresAt: p.SeenAt.Add(2 * time.Hour), Sources: []string{p.Origin}, Comment: p.Comment, AlertID: p.AlertID, RuleID: p.RuleID, By: "siem"}
	if d := cmp.Diff(want, e.entries("watch")[p.Key]); d != "" {
		e.Fatal(d)
	}
	now := e.clock.Advance(time.Minute)
	done = e.onList("watch", parry.ListPut{Key: p.Key, Origin: "ossim", RuleID: "5720", By: "other"}, parry.ListPut{Key: p.Key, By: "other"})
	same(e, "a repeat", counts(done), [3]int{0, 2, 0})
	want.Rev, want.Count, want.LastSeen, want.ExpiresAt = done.Revision, 3, now, now.Add(time.Hour)
	want.Sources, want.RuleID, want.By = append(want.Sources, "ossim"), "5720", "other"
	if d := cmp.Diff(want, e.entries("watch")[p.Key]); d != "" {
		e.Fatal("an empty text took the old one's place, or:", d)
	}
}

func entriesRefreshAsTheModeSays(e *env) {
	for _, c := range []struct {
		mode                parry.Refresh
		later, sooner, ever time.Duration // the end after 10 minutes, after a shorter TTL, after one without end: from the first sight
	}{
		{parry.RefreshLastSeen, 70 * time.Minute, 25 * time.Minute, -1},
		{parry.RefreshFirstSeen, time.Hour, time.Hour, time.Hour},
		{parry.RefreshNeverShorten, 70 * time.Minute, 70 * time.Minute, -1},
	} {
		name := string(c.mode)
		e.list(func(l *parry.List) { l.Name, l.Refresh, l.MaxTTL = name, c.mode, 0 })
		start := e.clock.Now()
		left := func() time.Duration {
			e.Helper()
			x := e.entries(name)["a"]
			if x.ExpiresAt.IsZero() {
				return -1
			}
			return x.ExpiresAt.Sub(start)
		}
		e.onList(name, parry.ListPut{Key: "a"})
		e.clock.Advance(10 * time.Minute)
		e.onList(name, parry.ListPut{Key: "a"})
		same(e, name+": seen again", left(), c.later)
		e.clock.Advance(10 * time.Minute)
		e.onList(name, parry.ListPut{Key: "a", TTL: 5 * time.Minute})
		same(e, name+": with a shorter TTL", left(), c.sooner)
		e.onList(name, parry.ListPut{Key: "a", SeenAt: start.Add(time.Minute), TTL: time.Hour})
		same(e, name+": seen before that", left(), c.sooner)
		e.onList(name, parry.ListPut{Key: "a", NoEnd: true})
		same(e, name+": without end", left(), c.ever)
	}
}

func entriesKeepToTheCap(e *env) {
	e.list(func(l *parry.List) { l.MaxTTL = 2 * time.Hour })
	e.onList("watch", parry.ListPut{Key: "a", TTL: 1000 * time.Hour}, parry.ListPut{Key: "b", NoEnd: true}, parry.ListPut{Key: "c"})
	got := e.entries("watch")
	for key, want := range map[string]time.Duration{"a": 2 * time.Hour, "b": 2 * time.Hour, "c": time.Hour} {
		same(e, key, got[key].ExpiresAt.Sub(e.clock.Now()), want)
	}
	e.list(func(l *parry.List) { l.Name, l.TTL, l.MaxTTL = "open", 0, 0 })
	e.onList("open", parry.ListPut{Key: "a"})
	same(e, "without end", e.entries("open")["a"].ExpiresAt, time.Time{})
}

func entriesPastTheirTimeOnlyCount(e *env) {
	e.list()
	old := e.clock.Now().Add(-2 * time.Hour)
	same(e, "unknown", counts(e.onList("watch", parry.ListPut{Key: "a", SeenAt: old})), [3]int{0, 0, 1})
	same(e, "entries", len(e.entries("watch")), 0)
	e.onList("watch", parry.ListPut{Key: "a"})
	same(e, "known", counts(e.onList("watch", parry.ListPut{Key: "a", SeenAt: old})), [3]int{0, 0, 1})
	x := e.entries("watch")["a"]
	same(e, "count", x.Count, 2)
	same(e, "first seen", x.FirstSeen, old)
	same(e, "last seen", x.LastSeen, e.clock.Now())
	same(e, "expires", x.ExpiresAt, e.clock.Now().Add(time.Hour))
}

func puts(n int, prefix string) []parry.ListPut {
	out := make([]parry.ListPut, n)
	for i := range out {
		out[i].Key = fmt.Sprint(prefix, i)
	}
	return out
}

func entriesFillAListAndNoMore(e *env) {
	e.list(func(l *parry.List) { l.Capacity = 5 })
	e.onList("watch", puts(3, "a")...)
	_, err := e.tryOnList("watch", append(puts(3, "b"), parry.ListPut{Key: "a0"})...)
	e.wantKind(err, parry.KindRefused)
	for _, want := range []string{`"watch"`, "full", "3 entries", "takes 5", "1 of these"} {
		if !strings.Contains(err.Error(), want) {
			e.Errorf("%q does not say %s", err, want)
		}
	}
	same(e, "nothing was put", len(e.entries("watch")), 3)
	e.onList("watch", puts(2, "b")...)
	e.onList("watch", puts(3, "a")...) // refreshing needs no room
	same(e, "full", len(e.entries("watch")), 5)
	_, err = e.tryOnList("watch", puts(1, "c")...)
	e.wantKind(err, parry.KindRefused)
}

func entriesThatRanOutMakeRoom(e *env) {
	e.list(func(l *parry.List) { l.Capacity = 5 })
	e.onList("watch", puts(4, "a")...)
	e.clock.Advance(2 * time.Hour) // not swept
	same(e, "entries", len(e.entries("watch")), 0)
	same(e, "new again", counts(e.onList("watch", append(puts(2, "a"), puts(3, "b")...)...)), [3]int{5, 0, 0})
	same(e, "count", e.entries("watch")["a0"].Count, 1)
	_, err := e.tryOnList("watch", append(puts(1, "c"), parry.ListPut{Key: "a3"})...)
	e.wantKind(err, parry.KindRefused)
	same(e, "full", len(e.entries("watch")), 5)
}

func entriesAreBoundedInSources(e *env) {
	e.list()
	for i := range 20 {
		e.onList("watch", parry.ListPut{Key: "a", Origin: fmt.Sprint("siem-", i%12)})
	}
	x := e.entries("watch")["a"]
	same(e, "sources", len(x.Sources), parry.MaxListSources)
	same(e, "count", x.Count, 20)
	if !slices.Contains(x.Sources, "siem-0") || slices.Contains(x.Sources, "siem-11") {
		e.Errorf("not the first ones: %v", x.Sources)
	}
}

func entriesAreRemovedForGood(e *env) {
	e.list()
	_, err := e.RemoveEntry(e.Context(), "watch", "a", "anna")
	e.wantKind(err, parry.KindNotFound)
	seen := e.clock.Now()
	e.onList("watch", parry.ListPut{Key: "a"})
	e.clock.Advance(time.Minute)
	rev, err := e.RemoveEntry(e.Context(), "watch", "a", "anna")
	e.ok(err)
	c, err := e.ListChanges(e.Context(), rev-1)
	e.ok(err)
	if len(c.Entries) != 1 || c.Entries[0].Live(e.clock.Now()) {
		e.Fatalf("the removal is not among the changes: %+v", c.Entries)
	}
	_, err = e.RemoveEntry(e.Context(), "watch", "a", "anna")
	e.wantKind(err, parry.KindNotFound)
	e.clock.Advance(time.Minute)
	same(e, "a replayed event", counts(e.onList("watch", parry.ListPut{Key: "a", SeenAt: seen})), [3]int{0, 0, 1})
	same(e, "entries", len(e.entries("watch")), 0)
	same(e, "a new event", counts(e.onList("watch", parry.ListPut{Key: "a"})), [3]int{1, 0, 0})
	same(e, "count", e.entries("watch")["a"].Count, 1)
}

func entriesOfABatchAreAllOrNone(e *env) {
	e.list(func(l *parry.List) { l.Capacity = 20_000 })
	before, err := e.Revision(e.Context())
	e.ok(err)
	done := e.onList("watch", puts(10_000, "k")...)
	same(e, "done", counts(done), [3]int{10_000, 0, 0})
	same(e, "one transaction", done.Revision, before+1)
	same(e, "entries", len(e.entries("watch")), 10_000)
	c, err := e.ListChanges(e.Context(), before)
	e.ok(err)
	same(e, "changes", len(c.Entries), 10_000)
}

func entriesCountOnceOverALostAnswer(e *env) {
	e.list()
	e.onList("watch", parry.ListPut{Key: "a"})
	e.ok(e.RecommitEntries(e.Context(), "watch", []parry.ListPut{{Key: "a", SeenAt: e.clock.Now()}, {Key: "b", SeenAt: e.clock.Now()}}))
	got := e.entries("watch")
	same(e, "counts", [2]int64{got["a"].Count, got["b"].Count}, [2]int64{2, 1})
}

func acceptedBlocksGoOnTheirList(e *env) {
	e.list(func(l *parry.List) { l.Name = "blocked" })
	ask := func(source string) parry.Admission {
		a := e.ask(source)
		a.Lists = []parry.ListAsk{{List: "blocked", ListPut: parry.ListPut{Key: source, SeenAt: e.clock.Now(), Origin: "ossim", By: "siem"}}}
		return a
	}
	e.put(ask("203.0.113.7"))
	done := e.put(ask("203.0.113.7"))
	same(e, "unlisted", len(done.Unlisted), 0)
	same(e, "count", e.entries("blocked")["203.0.113.7"].Count, 2)

	refused := ask("203.0.113.8")
	refused.MaxBlocks = 1
	_, err := e.Put(e.Context(), refused)
	e.wantKind(err, parry.KindRefused)
	same(e, "a refused block is not listed", len(e.entries("blocked")), 1)

	a := ask("203.0.113.9")
	_, err = e.Recommit(e.Context(), a)
	e.ok(err)
	same(e, "a lost answer counts once", e.entries("blocked")["203.0.113.9"].Count, 1)
}

func aFullListCostsNoBlock(e *env) {
	e.list(func(l *parry.List) { l.Capacity = 1 })
	a := e.ask("203.0.113.7")
	a.Lists = []parry.ListAsk{{List: "watch", ListPut: parry.ListPut{Key: "203.0.113.7", SeenAt: e.clock.Now()}}}
	e.put(a)
	b := e.ask("203.0.113.8")
	b.Lists = []parry.ListAsk{
		{List: "watch", ListPut: parry.ListPut{Key: "203.0.113.8", SeenAt: e.clock.Now()}},
		{List: "none", ListPut: parry.ListPut{Key: "203.0.113.8", SeenAt: e.clock.Now()}},
	}
	done := e.put(b)
	slices.Sort(done.Unlisted)
	same(e, "told", fmt.Sprint(done.Unlisted), "[none watch]")
	same(e, "the block stands", live(done), true)
	same(e, "entries", len(e.entries("watch")), 1)
}

func listChangesGiveWhatWasWritten(e *env) {
	e.list()
	first := e.onList("watch", puts(2, "a")...)
	e.clock.Advance(time.Second)
	e.put(e.ask("203.0.113.7"))
	e.onList("watch", parry.ListPut{Key: "a1"}, parry.ListPut{Key: "b"})
	c, err := e.ListChanges(e.Context(), first.Revision)
	e.ok(err)
	var keys []string
	for _, x := range c.Entries {
		keys = append(keys, x.Key)
	}
	slices.Sort(keys)
	same(e, "changed", fmt.Sprint(keys), "[a1 b]")
	rev, err := e.Revision(e.Context())
	e.ok(err)
	same(e, "revision", c.Revision, rev)
}

func (e *env) sweep() int64 {
	e.Helper()
	p, err := e.Prune(e.Context(), parry.Retention{})
	e.ok(err)
	return p.ListEntries
}

func sweepTakesWhatRanOut(e *env) {
	e.list(func(l *parry.List) { l.Capacity = 3000 })
	e.onList("watch", puts(1200, "a")...)
	e.clock.Advance(30 * time.Minute)
	e.onList("watch", puts(2, "b")...)
	e.clock.Advance(time.Hour + 20*time.Minute)
	same(e, "too young to sweep", e.sweep(), 0)
	e.clock.Advance(11 * time.Minute)
	same(e, "swept", e.sweep(), 1200)
	e.clock.Advance(time.Hour)
	same(e, "swept", e.sweep(), 2)
	e.onList("watch", puts(3000, "c")...) // the count of rows is right
	_, err := e.RemoveEntry(e.Context(), "watch", "c0", "anna")
	e.ok(err)
	e.clock.Advance(3 * time.Hour)
	same(e, "what was removed is remembered", e.sweep(), 2999)
	e.clock.Advance(7 * 24 * time.Hour)
	same(e, "for a week", e.sweep(), 1)
}

func sweepTakesDeletedLists(e *env) {
	e.list()
	e.onList("watch", puts(600, "a")...)
	e.ok(e.DeleteList(e.Context(), "watch", "anna"))
	e.list()
	e.onList("watch", puts(3, "b")...)
	same(e, "swept", e.sweep(), 600)
	same(e, "the new list's stay", len(e.entries("watch")), 3)
	var n int
	e.ok(e.raw().QueryRow(`SELECT count(*) FROM lists`).Scan(&n))
	same(e, "rows of lists", n, 1)
}

func listsWakeReplicas(e *env) {
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	stores := []*store.Store{e.Store}
	if e.postgres() {
		stores = append(stores, e.replica())
	}
	e.list()
	for _, s := range stores {
		changed := s.Lists(ctx)
		drain(changed)
		done := e.onList("watch", parry.ListPut{Key: "a"})
		e.eventually("the replica hears of it", func() bool {
			e.woken(changed, "an entry")
			c, err := s.ListChanges(ctx, done.Revision-1)
			e.ok(err)
			return len(c.Entries) > 0
		})
	}
}

func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// viewShowsEntries is the promise of docs/LISTS.md to other tools.
func viewShowsEntries(e *env) {
	if !e.postgres() {
		return
	}
	e.clock.Advance(time.Since(e.clock.Now())) // the view has the database's clock
	e.list(func(l *parry.List) { l.Type, l.MaxTTL = parry.ListCIDR, 0 })
	e.list(func(l *parry.List) { l.Name, l.Type = "users", parry.ListUser })
	e.onList("watch", parry.ListPut{Key: "203.0.113.0/24", Comment: "Ünïcode", Origin: "ossim", RuleID: "5712", By: "siem"},
		parry.ListPut{Key: "198.51.100.7", NoEnd: true, Comment: "nul \x00 \xff"}, parry.ListPut{Key: "192.0.2.1"})
	e.onList("users", parry.ListPut{Key: "anna"})
	_, err := e.RemoveEntry(e.Context(), "watch", "192.0.2.1", "anna")
	e.ok(err)
	rows, err := e.raw().QueryContext(e.Context(), `SELECT list, type, key, coalesce(network::text, '-'), count, coalesce(expires_at - last_seen, '0')::text,
		comment, rule_id, sources, put_by FROM parry_list_entries ORDER BY list, key`)
	e.ok(err)
	defer rows.Close()
	var got []string
	for rows.Next() {
		f := make([]any, 10)
		for i := range f {
			f[i] = new(string)
		}
		e.ok(rows.Scan(f...))
		var line []string
		for _, v := range f {
			line = append(line, *v.(*string))
		}
		got = append(got, strings.Join(line, "|"))
	}
	e.ok(rows.Err())
	want := []string{
		"users|user|anna|-|1|01:00:00|||[]|",
		`watch|cidr|198.51.100.7|198.51.100.7/32|1|00:00:00|nul \000 \357\277\275||[]|`,
		`watch|cidr|203.0.113.0/24|203.0.113.0/24|1|01:00:00|Ünïcode|5712|["ossim"]|siem`,
	}
	if d := cmp.Diff(want, got); d != "" {
		e.Fatal(d)
	}

	// A reader needs the view alone.
	c, err := e.raw().Conn(e.Context())
	e.ok(err)
	defer c.Close()
	reader := fmt.Sprintf("siem_reader_%d", time.Now().UnixNano())
	for _, q := range []string{"CREATE ROLE " + reader, "GRANT USAGE ON SCHEMA public TO " + reader, "GRANT SELECT ON parry_list_entries TO " + reader, "SET ROLE " + reader} {
		_, err := c.ExecContext(e.Context(), q)
		e.ok(err)
	}
	var n int
	e.ok(c.QueryRowContext(e.Context(), `SELECT count(*) FROM parry_list_entries WHERE network >>= '203.0.113.7'`).Scan(&n))
	same(e, "covering entries", n, 1)
	for _, q := range []string{"SELECT 1 FROM list_entries", "DELETE FROM parry_list_entries", "SELECT 1 FROM tokens"} {
		if _, err := c.ExecContext(e.Context(), q); err == nil {
			e.Errorf("a reader may %s", q)
		}
	}
	_, err = c.ExecContext(e.Context(), "RESET ROLE")
	e.ok(err)
}

// BenchmarkPutEntries is one batch of 10,000 new entries, which is one transaction.
func BenchmarkPutEntries(b *testing.B) {
	for _, en := range engines {
		b.Run(en.name, func(b *testing.B) {
			s, err := store.Open(b.Context(), en.open(b))
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			if _, err := s.CreateList(b.Context(), parry.List{Name: "l", Type: parry.ListIP, TTL: time.Hour, Refresh: parry.RefreshLastSeen, Capacity: 1 << 40}); err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				ps := puts(10_000, fmt.Sprint(i, "-"))
				for j := range ps {
					ps[j].SeenAt, ps[j].Comment, ps[j].Origin = time.Now(), "ssh brute force", "wazuh"
				}
				if _, err := s.PutEntries(b.Context(), "l", ps); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/batch")
		})
	}
}
