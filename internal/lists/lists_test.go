package lists_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
	"github.com/parry/parry/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// env is lists on a real store, with a clock that the test sets.
type env struct {
	*testing.T
	*lists.Lists
	store *store.Store
	reg   *prometheus.Registry
	opts  store.Options

	mu   sync.Mutex
	at   time.Time
	hits []lists.Hit
	fail error         // of sending
	gate chan struct{} // sending waits for it, if there is one
}

func (e *env) now() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.at
}

func (e *env) advance(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.at = e.at.Add(d)
}

func (e *env) send(ctx context.Context, h lists.Hit) error {
	if e.gate != nil {
		select {
		case <-e.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fail != nil {
		return e.fail
	}
	e.hits = append(e.hits, h)
	return nil
}

func (e *env) sent() []lists.Hit {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.hits)
}

func newEnv(t *testing.T) *env {
	return newEnvOn(t, store.Options{Path: filepath.Join(t.TempDir(), "parry.db")})
}

func newEnvOn(t *testing.T, o store.Options) *env {
	t.Helper()
	e := &env{T: t, at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), reg: prometheus.NewRegistry(), opts: o}
	o.Now, o.Logger = e.now, slog.New(slog.DiscardHandler)
	var err error
	e.store, err = store.Open(t.Context(), o)
	e.ok(err)
	t.Cleanup(func() { _ = e.store.Close() })
	e.Lists, err = lists.New(lists.Options{Store: e.store, Send: e.send, Now: e.now, Logger: slog.New(slog.DiscardHandler), Registerer: e.reg})
	e.ok(err)
	e.ok(e.Load(t.Context()))
	return e
}

// run lets the lists follow the store until the test ends.
func (e *env) run() {
	ctx, cancel := context.WithCancel(e.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = e.Lists.Run(ctx)
	}()
	e.Cleanup(func() { cancel(); <-done })
}

func (e *env) ok(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *env) wantKind(err error, want parry.Kind) {
	e.Helper()
	if err == nil || parry.KindOf(err) != want {
		e.Fatalf("got error %v, want one of kind %s", err, want)
	}
}

func (e *env) eventually(what string, cond func() bool) {
	e.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			e.Fatalf("not within 20 s: %s", what)
		}
	}
}

func (e *env) list(name string, t parry.ListType, change ...func(*parry.List)) {
	e.Helper()
	l := parry.List{Name: name, Type: t, TTL: time.Hour, MaxTTL: 24 * time.Hour, Refresh: parry.RefreshLastSeen, Capacity: 200_000, CreatedAt: e.now()}
	for _, f := range change {
		f(&l)
	}
	_, err := e.Create(e.Context(), l)
	e.ok(err)
}

func (e *env) put(list string, ttl time.Duration, keys ...string) {
	e.Helper()
	var ps []parry.ListPut
	for _, k := range keys {
		ps = append(ps, parry.ListPut{Key: k, TTL: ttl, SeenAt: e.now(), Comment: "seen"})
	}
	_, err := e.Put(e.Context(), list, ps)
	e.ok(err)
}

// found gives the entry's key that a lookup finds, "-" for none.
func (e *env) found(list, key string) string {
	e.Helper()
	_, m, found, err := e.Lookup(list, key, "siem")
	e.ok(err)
	if !found {
		return "-"
	}
	return m.Entry.Key
}

func (e *env) want(list, key, want string) {
	e.Helper()
	if got := e.found(list, key); got != want {
		e.Errorf("%s on %s: found %s, want %s", key, list, got, want)
	}
}

func TestLookup_findsTheLongestLivePrefix(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.list("nets", parry.ListCIDR)
	e.put("nets", time.Hour, "203.0.113.0/24", "2001:db8::/32")
	e.put("nets", time.Minute, "203.0.113.0/28", "203.0.113.7")
	e.want("nets", "203.0.113.7", "203.0.113.7")
	e.want("nets", "::ffff:203.0.113.7", "203.0.113.7")
	e.want("nets", "203.0.113.8", "203.0.113.0/28")
	e.want("nets", "203.0.113.200", "203.0.113.0/24")
	e.want("nets", "203.0.113.128/25", "203.0.113.0/24")
	e.want("nets", "203.0.112.0/23", "-")
	e.want("nets", "2001:db8:1::7", "2001:db8::/32")
	e.want("nets", "198.51.100.1", "-")
	e.advance(time.Minute) // no sweep has run
	e.want("nets", "203.0.113.7", "203.0.113.0/24")
	e.want("nets", "203.0.113.8", "203.0.113.0/24")
	e.advance(time.Hour)
	e.want("nets", "203.0.113.7", "-")

	_, _, _, err := e.Lookup("nets", "host.example", "siem")
	e.wantKind(err, parry.KindInvalid)
	_, _, _, err = e.Lookup("none", "203.0.113.7", "siem")
	e.wantKind(err, parry.KindNotFound)
}

func TestLookup_ofNames(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.list("exact", parry.ListDomain)
	e.list("below", parry.ListDomain, func(l *parry.List) { l.Subdomains = true })
	e.list("users", parry.ListUser)
	e.list("as", parry.ListASN)
	for _, l := range []string{"exact", "below"} {
		e.put(l, time.Hour, "evil.example")
		e.put(l, time.Minute, "c2.evil.example")
	}
	e.put("users", time.Hour, `domain\anna`)
	e.put("as", time.Hour, "AS64500")
	e.want("exact", "Evil.Example.", "evil.example")
	e.want("exact", "www.evil.example", "-")
	e.want("below", "www.evil.example", "evil.example")
	e.want("below", "a.c2.evil.example", "c2.evil.example")
	e.want("below", "notevil.example", "-")
	e.want("below", "example", "-")
	e.want("users", ` DOMAIN\Anna `, `domain\anna`)
	e.want("users", "anna", "-")
	e.want("as", "64500", "AS64500")
	e.advance(time.Minute)
	e.want("below", "a.c2.evil.example", "evil.example")
	e.want("exact", "c2.evil.example", "-")
}

func TestLookupAll_asksEveryListOfTheKind(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.list("b-ips", parry.ListIP)
	e.list("a-nets", parry.ListCIDR)
	e.list("users", parry.ListUser)
	e.list("names", parry.ListDomain)
	e.put("b-ips", time.Hour, "203.0.113.7")
	e.put("a-nets", time.Hour, "203.0.113.0/24")
	e.put("users", time.Hour, "203.0.113.7")
	e.put("names", time.Hour, "evil.example")
	names := func(ms []lists.Match) string {
		var out []string
		for _, m := range ms {
			out = append(out, m.Entry.List)
		}
		return strings.Join(out, " ")
	}
	for key, want := range map[string]string{"203.0.113.7": "a-nets b-ips users", "203.0.113.0/25": "a-nets", "EVIL.example": "names", "!": ""} {
		if got := names(e.LookupAll(key, "siem")); got != want {
			t.Errorf("%s: on %q, want %q", key, got, want)
		}
	}
	if got := names(e.On(netip.MustParsePrefix("203.0.113.7/32"))); got != "a-nets b-ips" {
		t.Errorf("the address is on %q", got)
	}
}

func TestLists_showWhatWasDone(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.list("ips", parry.ListIP)
	e.put("ips", time.Hour, "203.0.113.7", "203.0.113.8")
	e.want("ips", "203.0.113.7", "203.0.113.7")
	e.ok(e.Remove(e.Context(), "ips", "203.0.113.7", "anna"))
	e.want("ips", "203.0.113.7", "-")
	if l, err := e.Get("ips"); err != nil || l.Entries != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	e.wantKind(e.Remove(e.Context(), "ips", "203.0.113.7", "anna"), parry.KindNotFound)
	e.ok(e.Delete(e.Context(), "ips", "anna"))
	_, err := e.Get("ips")
	e.wantKind(err, parry.KindNotFound)
	e.list("ips", parry.ListIP)
	e.want("ips", "203.0.113.8", "-")
}

func TestRun_followsTheStoreAndOtherReplicas(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]store.Options{
		"sqlite":   {Path: filepath.Join(t.TempDir(), "parry.db")},
		"postgres": {Driver: "postgres", DSN: testenv.Postgres(t, testenv.PostgresOptions{})},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnvOn(t, o)
			e.run()
			e.list("ips", parry.ListIP)
			writer := e.store
			if name == "postgres" {
				o.Now, o.Logger = e.now, slog.New(slog.DiscardHandler)
				var err error
				writer, err = store.Open(t.Context(), o)
				e.ok(err)
				defer writer.Close()
			}
			_, err := writer.PutEntries(t.Context(), "ips", []parry.ListPut{{Key: "203.0.113.7", SeenAt: e.now()}})
			e.ok(err)
			e.eventually("a put is found", func() bool { return e.found("ips", "203.0.113.7") != "-" })
			_, err = writer.RemoveEntry(t.Context(), "ips", "203.0.113.7", "anna")
			e.ok(err)
			e.eventually("a removal is heeded", func() bool { return e.found("ips", "203.0.113.7") == "-" })
			e.ok(writer.DeleteList(t.Context(), "ips", "anna"))
			e.eventually("a deleted list is gone", func() bool { return len(e.All()) == 0 })
		})
	}
}

func TestLoad_readsWhatStood(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.list("nets", parry.ListCIDR)
	e.put("nets", time.Hour, "203.0.113.0/24")
	e.put("nets", time.Minute, "203.0.113.7")
	e.advance(2 * time.Minute)
	again, err := lists.New(lists.Options{Store: e.store, Now: e.now})
	e.ok(err)
	e.ok(again.Load(t.Context()))
	s, err := again.Snapshot("nets")
	e.ok(err)
	if len(s.Entries) != 1 || s.Entries[0].Key != "203.0.113.0/24" {
		t.Errorf("%+v", s.Entries)
	}
}

func keys(es []*parry.ListEntry) (out []string) {
	for _, e := range es {
		out = append(out, e.Key)
	}
	return out
}

func TestSnapshot_isSortedAndMadeAnewWhenSomethingChanged(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.list("nets", parry.ListCIDR)
	e.put("nets", time.Hour, "2001:db8::1", "203.0.113.10", "203.0.113.9", "203.0.113.0/24", "9.0.0.1")
	e.put("nets", time.Minute, "10.0.0.0/8")
	first, err := e.Snapshot("nets")
	e.ok(err)
	want := []string{"9.0.0.1", "10.0.0.0/8", "203.0.113.0/24", "203.0.113.9", "203.0.113.10", "2001:db8::1"}
	if d := cmp.Diff(want, keys(first.Entries)); d != "" {
		t.Fatal(d)
	}
	for i, k := range want {
		if d := cmp.Diff(want[i+1:], keys(first.After(k)), cmp.Transformer("nil", func(s []string) []string { return append([]string{}, s...) })); d != "" {
			t.Errorf("after %s: %s", k, d)
		}
	}
	if got := keys(first.After("203.0.113.8")); got[0] != "203.0.113.9" {
		t.Errorf("after a key that is gone: %v", got)
	}
	if same, _ := e.Snapshot("nets"); same != first || !first.Until.Equal(e.now().Add(time.Minute)) {
		t.Errorf("made anew for nothing, or until %s", first.Until)
	}
	e.advance(time.Minute)
	second, _ := e.Snapshot("nets")
	if slices.Contains(keys(second.Entries), "10.0.0.0/8") || second.Version != first.Version {
		t.Errorf("what ran out is in it: %v", keys(second.Entries))
	}
	e.put("nets", time.Hour, "9.0.0.1")
	if third, _ := e.Snapshot("nets"); third == second || third.Version <= second.Version {
		t.Error("a change makes no new snapshot")
	}
	e.list("users", parry.ListUser)
	e.put("users", time.Hour, "zoe", "anna", "ülo")
	users, _ := e.Snapshot("users")
	if d := cmp.Diff([]string{"anna", "zoe", "ülo"}, keys(users.Entries)); d != "" {
		t.Error(d)
	}
}

func hitting(every time.Duration) func(*parry.List) {
	return func(l *parry.List) { l.OnHit = parry.OnHit{Syslog: true, Every: every} }
}

func TestHits_areToldOnceInAnInterval(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.run()
	e.list("nets", parry.ListCIDR, hitting(time.Minute))
	e.list("quiet", parry.ListCIDR)
	e.put("nets", time.Hour, "203.0.113.0/24", "198.51.100.7")
	e.put("quiet", time.Hour, "203.0.113.0/24")
	for range 5 {
		e.LookupAll("203.0.113.7", "siem")
		e.found("nets", "198.51.100.8")
	}
	e.put("nets", time.Hour, "203.0.113.0/24") // a refresh begins no new interval
	e.found("nets", "203.0.113.9")
	e.found("nets", "198.51.100.7")
	e.eventually("two hits", func() bool { return len(e.sent()) == 2 })
	h := e.sent()[0]
	want := `parry: list-hit list="nets" key="203.0.113.7" type="cidr" count=1 first="2026-03-01T12:00:00Z" last="2026-03-01T12:00:00Z" ` +
		`comment="seen" asked_by="siem" entry="203.0.113.0/24" rule=""`
	if got := h.Text(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	e.advance(time.Minute)
	e.found("nets", "203.0.113.9")
	e.eventually("a third", func() bool { return len(e.sent()) == 3 })
}

func TestHits_neverDelayALookup(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.gate = make(chan struct{})
	e.run()
	e.list("ips", parry.ListIP, hitting(0))
	e.put("ips", time.Hour, "203.0.113.7")
	start := time.Now()
	for range 5000 {
		e.want("ips", "203.0.113.7", "203.0.113.7")
		e.advance(time.Microsecond)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("lookups waited: %s", took)
	}
	close(e.gate)
	e.eventually("the queue is sent", func() bool {
		sent, dropped := e.metric("sent"), e.metric("dropped")
		return sent+dropped == 5000 && dropped > 0 && sent >= 1024
	})
}

func TestHits_areDroppedWhenNobodyTakesThem(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.fail = errors.New("nobody there")
	e.run()
	e.list("ips", parry.ListIP, hitting(0))
	e.put("ips", time.Hour, "203.0.113.7")
	e.found("ips", "203.0.113.7")
	e.eventually("it is given up", func() bool { return e.metric("failed") == 1 })
	e.mu.Lock()
	e.fail = nil
	e.mu.Unlock()
	e.advance(time.Second)
	e.found("ips", "203.0.113.7")
	e.eventually("the next is sent", func() bool { return e.metric("sent") == 1 })
}

func (e *env) metric(outcome string) int {
	e.Helper()
	all, err := e.reg.Gather()
	e.ok(err)
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == "parry_list_hit_lines_total" && m.GetLabel()[0].GetValue() == outcome {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	return -1
}

func TestHit_textIsTamed(t *testing.T) {
	t.Parallel()
	h := lists.Hit{Key: `a" asked_by="root`, Type: parry.ListUser, By: "siem", Entry: parry.ListEntry{List: "users", Key: "x",
		Comment: "\" list=\"other\" \\ \x00\r\n\u202e" + strings.Repeat("é", 500)}}
	got := h.Text()
	if strings.Count(got, `asked_by="`) != 1 || strings.Count(got, ` list="`) != 1 || strings.ContainsAny(got, "\x00\r\n\\\u202e") || len(got) > 900 ||
		strings.ToValidUTF8(got, "") != got {
		t.Errorf("%q", got)
	}
}

func configured(name string, t parry.ListType, p lists.Policy) lists.Configured {
	return lists.Configured{Blocks: p, List: parry.List{Name: name, Type: t, TTL: time.Hour, MaxTTL: 24 * time.Hour, Refresh: parry.RefreshLastSeen, Capacity: 3}}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.ok(e.Configure(t.Context(), []lists.Configured{
		configured("bad", parry.ListIP, lists.Policy{TTL: 7 * 24 * time.Hour}),
		configured("worse", parry.ListCIDR, lists.Policy{TTL: 30 * 24 * time.Hour}),
		configured("partners", parry.ListCIDR, lists.Policy{Instead: "watch"}),
		configured("watch", parry.ListIP, lists.Policy{}),
	}, "watch"))
	e.put("bad", 0, "203.0.113.7")
	e.put("worse", 0, "203.0.113.0/24")
	e.put("partners", 0, "198.51.100.0/24")
	for source, want := range map[string]string{
		"203.0.113.7/32":  "worse 720h0m0s ",
		"203.0.113.8/32":  "worse 720h0m0s ",
		"203.0.112.0/23":  " 0s ",
		"198.51.100.7/32": "partners 0s watch",
		"192.0.2.1/32":    " 0s ",
	} {
		v := e.Judge(netip.MustParsePrefix(source))
		if got := fmt.Sprintf("%s %s %s", v.List, v.TTL, v.Instead); got != want {
			t.Errorf("%s: %q, want %q", source, got, want)
		}
	}
	if got := e.OfBlock(netip.MustParsePrefix("2001:db8::7/128"), parry.ListPut{By: "siem"}); len(got) != 1 || got[0].List != "watch" ||
		got[0].Key != "2001:db8::7" || got[0].By != "siem" {
		t.Errorf("%+v", got)
	}
	if got := e.OfBlock(netip.MustParsePrefix("203.0.113.0/24"), parry.ListPut{}); got != nil {
		t.Errorf("a prefix on a list of addresses: %+v", got)
	}
	e.ok(e.PutSource(t.Context(), "watch", netip.MustParsePrefix("198.51.100.7/32"), parry.ListPut{SeenAt: e.now()}))
	e.want("watch", "198.51.100.7", "198.51.100.7")
	e.wantKind(e.PutSource(t.Context(), "watch", netip.MustParsePrefix("198.51.100.0/24"), parry.ListPut{SeenAt: e.now()}), parry.KindRefused)

	e.ok(e.Configure(t.Context(), nil, ""))
	if v := e.Judge(netip.MustParsePrefix("198.51.100.7/32")); v != (lists.Verdict{}) {
		t.Errorf("a list that is no longer configured still judges: %+v", v)
	}
}

// TestLists_concurrently is for the race detector.
func TestLists_concurrently(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.run()
	e.list("nets", parry.ListCIDR, hitting(0))
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				key := fmt.Sprintf("203.0.%d.%d", g, i)
				e.put("nets", time.Duration(i+1)*time.Second, key)
				if got := e.found("nets", key); got != key {
					e.Errorf("what was put is not found: %s", got)
				}
				_, _ = e.Snapshot("nets")
				e.All()
			}
		})
	}
	wg.Wait()
}
