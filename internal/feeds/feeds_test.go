package feeds

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/parry/parry/internal/parry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a store that a test writes; it counts how often it is asked.
type memory struct {
	mu      sync.Mutex
	rev     parry.Revision
	written map[parry.BlockID]parry.Revision // the row's last write
	blocks  map[parry.BlockID]parry.Block
	readers map[parry.FeedReaderKey]parry.FeedReader
	asked   int
	saves   int
	broken  error
}

func (m *memory) Changes(_ context.Context, since parry.Revision) (c parry.Changes, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	if m.broken != nil {
		return c, m.broken
	}
	c.Revision = m.rev
	for id, b := range m.blocks {
		if m.written[id] > since && (since > 0 || b.Live()) {
			c.Blocks = append(c.Blocks, b)
		}
	}
	return c, nil
}

func (m *memory) SaveFeedReaders(_ context.Context, rs []parry.FeedReader) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return m.broken
	}
	m.saves++
	m.readers = merge(m.readers, rs)
	return nil
}

func (m *memory) FeedReaders(context.Context) ([]parry.FeedReader, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return sorted(m.readers), m.broken
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
}

// write is a writing transaction on a block of the source.
func (m *memory) write(source string, change func(b *parry.Block)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	id := parry.BlockID("b-" + source)
	b, known := m.blocks[id]
	if !known {
		b = parry.Block{ID: id, Rev: m.rev, CreatedAt: time.Now(), LastAt: time.Now(), Count: 1}
		a := netip.MustParseAddr(source)
		b.Source = netip.PrefixFrom(a, a.BitLen())
	}
	if change != nil {
		change(&b)
	}
	m.blocks[id], m.written[id] = b, m.rev
}

func (m *memory) end(source string) {
	m.write(source, func(b *parry.Block) { b.EndRev = m.rev })
}

func setup(t testing.TB, o Options) (*Feeds, *memory) {
	t.Helper()
	m := &memory{
		rev: 1, written: map[parry.BlockID]parry.Revision{}, blocks: map[parry.BlockID]parry.Block{}, readers: map[parry.FeedReaderKey]parry.FeedReader{},
	}
	o.Store, o.Registerer, o.Logger = m, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return f, m
}

// running runs f until the test ends. Call it in a synctest bubble.
func running(t *testing.T, f *Feeds) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
	return func() { cancel(); wg.Wait() }
}

func get(t testing.TB, f *Feeds, q Query) *Rendering {
	t.Helper()
	if q.Name == "" {
		q.Name = Blocks
	}
	_, r, err := f.Get(q)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func lines(r *Rendering) string {
	_, rest, _ := strings.Cut(strings.TrimSpace(string(r.Body)), "\n")
	return strings.ReplaceAll(rest, "\n", " ")
}

func TestFeeds_followTheDatabaseWithoutAQueryPerRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, m := setup(t, Options{})
		if _, _, err := f.Get(Query{Name: Blocks}); parry.KindOf(err) != parry.KindUnavailable {
			t.Fatalf("before the first read: %v", err)
		}
		m.write("203.0.113.7", nil)
		defer running(t, f)()
		for range 1000 {
			if got := lines(get(t, f, Query{})); got != "203.0.113.7" {
				t.Fatalf("got %q", got)
			}
		}
		if m.asked != 1 {
			t.Errorf("the store was asked %d times", m.asked)
		}
		first := get(t, f, Query{})
		m.write("203.0.113.9", func(b *parry.Block) { b.Port, b.Protocol = 22, parry.ProtoTCP })
		m.write("203.0.113.8", nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		second := get(t, f, Query{})
		if got := lines(second); got != "203.0.113.7 203.0.113.8" || second.ETag == first.ETag || !second.Modified.After(first.Modified) || second.Revision != m.rev {
			t.Errorf("got %q, %+v", got, second)
		}
		if got := lines(get(t, f, Query{Scope: ScopeAll})); got != "203.0.113.7 203.0.113.8 203.0.113.9" {
			t.Errorf("all: %q", got)
		}
		m.end("203.0.113.7")
		m.write("203.0.113.8", func(b *parry.Block) { b.Count++ })
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := lines(get(t, f, Query{})); got != "203.0.113.8" {
			t.Errorf("after its end: %q", got)
		}
	})
}

func TestFeeds_theSameBytesAreTheSameAfterOtherChangesAndRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, m := setup(t, Options{})
		m.write("203.0.113.7", nil)
		stop := running(t, f)
		plain, csv := get(t, f, Query{}), get(t, f, Query{Format: CSV})
		time.Sleep(time.Hour)
		m.write("203.0.113.7", func(b *parry.Block) { b.Count, b.LastAt = 2, time.Now() }) // a repeat
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if again := get(t, f, Query{}); again.ETag != plain.ETag || !again.Modified.Equal(plain.Modified) {
			t.Errorf("plain became %+v", again)
		}
		if again := get(t, f, Query{Format: CSV}); again.ETag == csv.ETag || !again.Modified.After(csv.Modified) {
			t.Errorf("csv, which tells counts, stayed %+v", again)
		}
		stop()
		other, _ := setup(t, Options{})
		other.o.Store = m
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if again := get(t, other, Query{}); again.ETag != plain.ETag {
			t.Errorf("another process says %s, not %s", again.ETag, plain.ETag)
		}
	})
}

func TestFeeds_serveTheLastSnapshotWhileTheDatabaseCannotBeRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, m := setup(t, Options{StaleAfter: func() time.Duration { return time.Hour }})
		m.write("203.0.113.7", nil)
		defer running(t, f)()
		m.fail(errors.New("disk on fire"))
		time.Sleep(time.Hour - time.Minute)
		if got := lines(get(t, f, Query{})); got != "203.0.113.7" {
			t.Errorf("got %q", got)
		}
		if age := gauge(t, f, "parry_feed_age_seconds"); age != (time.Hour - time.Minute).Seconds() {
			t.Errorf("it says that it is %v s old", age)
		}
		time.Sleep(2 * time.Minute)
		_, _, err := f.Get(Query{Name: Blocks})
		var e *parry.Error
		if !errors.As(err, &e) || e.Kind != parry.KindUnavailable || e.RetryAfter == 0 || !strings.Contains(e.Detail, "keep the list") {
			t.Errorf("too old: %v", err)
		}
		m.fail(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := lines(get(t, f, Query{})); got != "203.0.113.7" {
			t.Errorf("read again: %q", got)
		}
	})
}

func gauge(t *testing.T, f *Feeds, name string) float64 {
	t.Helper()
	all, err := f.o.Registerer.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.GetName() == name {
			return m.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

func TestReaders_tellHowFarBehindEachIs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, m := setup(t, Options{})
		m.write("203.0.113.7", nil)
		stop := running(t, f)
		fw := &parry.Principal{Token: parry.Token{ID: "t-1", Name: "fw-b"}, Remote: netip.MustParseAddr("192.0.2.7")}
		read := func(status int) {
			t.Helper()
			q, r, err := f.Get(Query{Name: Blocks, Family: 4})
			if err != nil {
				t.Fatal(err)
			}
			f.Read(fw, q, r, status, r.ETag)
		}
		is := func(of *Feeds, reads int64, status int, behind time.Duration) {
			t.Helper()
			rs, err := of.Readers(t.Context())
			if err != nil || len(rs) != 1 {
				t.Fatalf("%v, %v", rs, err)
			}
			late := time.Duration(0)
			if !rs[0].Behind.IsZero() {
				late = time.Since(rs[0].Behind)
			}
			if r := rs[0]; r.TokenName != "fw-b" || r.Query != "format=plain&family=4" || r.Reads != reads || r.Status != status || late != behind {
				t.Errorf("got %+v, %s behind; want %d reads, %d, %s", r, late, reads, status, behind)
			}
		}
		f.Read(&parry.Principal{Token: parry.Token{Name: "local"}}, Query{Name: Blocks}, get(t, f, Query{}), 200, "") // root looks
		read(200)
		is(f, 1, 200, 0)
		m.write("203.0.113.7", func(b *parry.Block) { b.Count++ }) // nothing that it lacks
		time.Sleep(11 * time.Second)
		read(304)
		is(f, 2, 304, 0)

		m.write("203.0.113.8", nil)
		time.Sleep(4 * time.Second)
		synctest.Wait()
		m.write("203.0.113.9", nil)
		time.Sleep(time.Minute) // since the first change that it lacks
		is(f, 2, 304, time.Minute)
		if got := gauge(t, f, "parry_feed_behind_seconds"); got != 60 {
			t.Errorf("the metric says %v", got)
		}
		if m.saves == 0 || m.saves > 2 {
			t.Errorf("%d saves in a minute", m.saves)
		}
		read(200)
		is(f, 3, 200, 0)
		stop() // saves what is left

		after, _ := setup(t, Options{})
		after.o.Store = m
		if err := after.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		is(after, 3, 200, 0) // a restart makes nobody late
		m.end("203.0.113.9")
		if err := after.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		is(after, 3, 200, time.Second)
	})
}

func TestLists_areFeedsTheWayTheyStand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		entry := func(key string, ends time.Time) *parry.ListEntry {
			return &parry.ListEntry{Key: key, Count: 1, FirstSeen: time.Now(), LastSeen: time.Now(), ExpiresAt: ends, Comment: "x"}
		}
		users := List{List: parry.List{ID: 1, Name: "users", Type: parry.ListUser}, Version: 4, Entries: []*parry.ListEntry{entry("eve", time.Time{})}}
		bad := List{List: parry.List{ID: 2, Name: "bad", Type: parry.ListCIDR}, Version: 5,
			Entries: []*parry.ListEntry{entry("192.0.2.0/24", time.Time{}), entry("203.0.113.7", time.Now().Add(time.Hour)), entry("2001:db8::/48", time.Time{})}}
		shadowed := List{List: parry.List{ID: 3, Name: Blocks, Type: parry.ListIP}, Entries: []*parry.ListEntry{entry("203.0.113.99", time.Time{})}}
		all := []List{users, bad, shadowed}
		f, m := setup(t, Options{Lists: func() []List { return all }})
		m.write("203.0.113.1", nil)
		fw := &parry.Principal{Token: parry.Token{ID: "t-1", Name: "fw-b"}, Remote: netip.MustParseAddr("192.0.2.7")}
		check := func(name, want string, readers int) *Rendering {
			t.Helper()
			if err := f.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			q, r, err := f.Get(Query{Name: name})
			if err != nil {
				t.Fatal(err)
			}
			if got := lines(r); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
			late := 0
			rs, err := f.Readers(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range rs {
				if r.Feed == name && !r.Behind.IsZero() {
					late++
				}
			}
			if late != readers {
				t.Errorf("%d readers of %s are late, want %d", late, name, readers)
			}
			f.Read(fw, q, r, 200, r.ETag)
			time.Sleep(time.Second)
			return r
		}
		check("users", "eve", 0)
		first := check("bad", "192.0.2.0/24 203.0.113.7 2001:db8::/48", 0)
		check(Blocks, "203.0.113.1", 0)
		if _, _, err := f.Get(Query{Name: "users", Format: Geo}); parry.KindOf(err) != parry.KindInvalid {
			t.Errorf("users for nginx: %v", err)
		}
		if again := check("bad", "192.0.2.0/24 203.0.113.7 2001:db8::/48", 0); again != first {
			t.Error("nothing changed, and it was rendered anew")
		}

		bad.Entries, bad.At = []*parry.ListEntry{bad.Entries[0], bad.Entries[2]}, time.Now() // one ran out: no revision tells
		all = []List{users, bad}
		check("bad", "192.0.2.0/24 2001:db8::/48", 1)
		check("bad", "192.0.2.0/24 2001:db8::/48", 0)
		bad.Entries, bad.Version, bad.At = append(bad.Entries[:1:1], entry("198.51.100.1", time.Time{})), 9, time.Now()
		all = []List{users, bad}
		check("bad", "192.0.2.0/24 198.51.100.1", 1)
		check("users", "eve", 0)

		again := List{List: parry.List{ID: 8, Name: "users", Type: parry.ListIP}, Version: 11, Entries: []*parry.ListEntry{entry("203.0.113.8", time.Time{})}}
		all = []List{again} // deleted and made anew, of another type
		check("users", "203.0.113.8", 1)
		if _, _, err := f.Get(Query{Name: "bad"}); parry.KindOf(err) != parry.KindNotFound {
			t.Errorf("a list that is gone: %v", err)
		}
	})
}

func TestReaders_areKeptWhileTheyCannotBeSaved(t *testing.T) {
	t.Parallel()
	f, m := setup(t, Options{})
	if err := f.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	read := func(n int) {
		for i := range n {
			remote := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			f.Read(&parry.Principal{Token: parry.Token{ID: "t-1"}, Remote: remote}, Query{Name: Blocks, Format: Plain}, get(t, f, Query{}), 200, "")
		}
	}
	read(2)
	m.fail(errors.New("disk on fire"))
	f.save(t.Context())
	m.fail(nil)
	read(2 * maxReaders)
	if n := len(f.readers.fresh); n != maxReaders {
		t.Errorf("%d are remembered", n)
	}
	f.save(t.Context())
	rs, err := f.Readers(t.Context())
	if err != nil || len(rs) != maxReaders || rs[0].Reads != 2 || rs[2].Reads != 1 {
		t.Errorf("%d readers, %v", len(rs), err)
	}
}

func TestCache_isBoundedInBytesAndRendersOnce(t *testing.T) {
	t.Parallel()
	f, m := setup(t, Options{CacheBytes: 100 << 10})
	for i := range 1000 {
		m.write(fmt.Sprintf("203.0.%d.%d", i>>8, i&255), nil)
	}
	if err := f.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := get(t, f, Query{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 100 {
				if r := get(t, f, Query{Limit: 900 + i}); r.Entries != 900+i {
					t.Errorf("limit %d gave %d", 900+i, r.Entries)
				}
				if r := get(t, f, Query{}); r.ETag != want.ETag {
					t.Error("a rendering of another query")
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, it := range f.cache.items {
		sum += it.bytes
	}
	if f.cache.bytes > 100<<10 || f.cache.bytes != sum || len(f.cache.items) != f.cache.order.Len() || len(f.cache.items) < 2 {
		t.Errorf("%d items of %d bytes, counted as %d", len(f.cache.items), sum, f.cache.bytes)
	}
	a, b := get(t, f, Query{}), get(t, f, Query{Format: Plain, Scope: ScopeWhole})
	if a != b {
		t.Error("what means the same was rendered twice")
	}
}

func TestRendering_gzipIsTheSameText(t *testing.T) {
	t.Parallel()
	f, m := setup(t, Options{})
	m.write("203.0.113.7", nil)
	if err := f.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := get(t, f, Query{})
	small, etag := r.Gzip()
	z, err := gzip.NewReader(bytes.NewReader(small))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil || !bytes.Equal(plain, r.Body) || etag == r.ETag || !strings.HasSuffix(etag, `-gzip"`) {
		t.Errorf("%q, %v, tag %s of %s", plain, err, etag, r.ETag)
	}
}

func TestGet_ofNoFeed(t *testing.T) {
	t.Parallel()
	f, _ := setup(t, Options{})
	if err := f.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Get(Query{Name: "nonsense"}); parry.KindOf(err) != parry.KindNotFound {
		t.Errorf("got %v", err)
	}
	f.Count("nonsense", 404)
	f.Count("other", 404)
	f.Count(Blocks, 200)
	if n := testutil.CollectAndCount(f.metrics.requests); n != 2 {
		t.Errorf("%d label sets: a caller can make labels", n)
	}
}
