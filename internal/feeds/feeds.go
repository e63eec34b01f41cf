package feeds

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/parry"
)

// Store is what Feeds needs of the store.
type Store interface {
	Changes(ctx context.Context, since parry.Revision) (parry.Changes, error)
	SaveFeedReaders(ctx context.Context, rs []parry.FeedReader) error
	FeedReaders(ctx context.Context) ([]parry.FeedReader, error)
}

// Options of [New]. Store and Registerer are required.
type Options struct {
	Store      Store
	Lists      func() []List        // the active lists; quick; nil: none
	MaxAge     func() time.Duration // how old a snapshot may be, and so how late a feed tells; 5 s, 1 s at least
	StaleAfter func() time.Duration // how long the last snapshot is served while the database cannot be read; 24 h
	CacheBytes int                  // of rendered feeds; 64 MiB
	Now        func() time.Time     // time.Now
	Logger     *slog.Logger         // slog.Default()
	Registerer prometheus.Registerer
}

// Feeds serves snapshots. Safe for concurrent use.
type Feeds struct {
	o       Options
	readers readers
	metrics *metrics
	cache   cache

	refreshing sync.Mutex // held over a refresh; guards the next two
	standing   standing
	version    int // of the last snapshot that was made

	mu    sync.RWMutex
	feeds map[string]*snapshot // never changed, but replaced
	fresh time.Time            // when the database was read last
}

const (
	readWithin = 30 * time.Second // a read of the database
	saveEvery  = time.Minute
)

// New makes Feeds; nothing is served before Run has read the database.
func New(o Options) (*Feeds, error) {
	if o.Store == nil || o.Registerer == nil {
		return nil, errors.New("feeds: Options.Store and Registerer are required")
	}
	if o.Lists == nil {
		o.Lists = func() []List { return nil }
	}
	if o.MaxAge == nil {
		o.MaxAge = func() time.Duration { return 5 * time.Second }
	}
	if o.StaleAfter == nil {
		o.StaleAfter = func() time.Duration { return 24 * time.Hour }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	f := &Feeds{o: o}
	f.cache.most = cmp.Or(o.CacheBytes, 64<<20)
	var err error
	if f.metrics, err = newMetrics(f, o.Registerer); err != nil {
		return nil, fmt.Errorf("register the metrics of feeds: %w", err)
	}
	return f, nil
}

// Run keeps the snapshots fresh and records who reads, until ctx ends.
func (f *Feeds) Run(ctx context.Context) error {
	saved := f.o.Now()
	for failing := false; ; {
		err := f.Refresh(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil && !failing:
			f.o.Logger.ErrorContext(ctx, "the feeds cannot be refreshed; the last ones are served", "err", err)
		case err == nil && failing:
			f.o.Logger.InfoContext(ctx, "the feeds are fresh again")
		}
		failing = err != nil
		if now := f.o.Now(); err == nil && now.Sub(saved) >= saveEvery {
			saved = now
			f.save(ctx)
		}
		wait := time.NewTimer(f.MaxAge())
		select {
		case <-ctx.Done():
			wait.Stop()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			f.save(last)
			return nil
		case <-wait.C:
		}
	}
}

// Refresh reads what changed and makes new snapshots where something did. Run does it by itself.
func (f *Feeds) Refresh(ctx context.Context) error {
	f.refreshing.Lock()
	defer f.refreshing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	began := f.o.Now()
	changed, err := f.standing.refresh(ctx, f.o.Store, began)
	if err != nil {
		return err
	}
	f.mu.RLock()
	old := f.feeds
	f.mu.RUnlock()
	fresh := make(map[string]*snapshot, len(old))
	if s := old[Blocks]; changed || s == nil {
		f.version++
		fresh[Blocks] = s.next(Blocks, parry.ListCIDR, f.standing.entries(), f.standing.rev, f.version, f.standing.newest, began)
	} else {
		fresh[Blocks] = s.as(f.standing.rev)
	}
	for _, l := range f.o.Lists() {
		if l.Name != Blocks { // which no list may be called
			fresh[l.Name] = f.nextList(old[l.Name], &l, began)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.feeds = fresh
	f.fresh = began
	return nil
}

// MaxAge is how late a feed may tell.
func (f *Feeds) MaxAge() time.Duration { return max(time.Second, f.o.MaxAge()) }

// Rendering is a feed in one format, ready to be sent. It is never changed.
type Rendering struct {
	Body        []byte
	ETag        string    // strong, with its quotes; of Body
	Modified    time.Time // when it became so
	ContentType string
	Entries     int
	Total       int // entries before the limit; more than Entries when it was truncated
	LeftOut     int // entries that the format cannot express
	Revision    parry.Revision

	gzip func() []byte
}

// Gzip is Body compressed, made when it is first asked for, and its entity tag.
func (r *Rendering) Gzip() (body []byte, etag string) {
	return r.gzip(), strings.TrimSuffix(r.ETag, `"`) + `-gzip"`
}

// Get renders a feed, or finds it rendered. Errors are KindNotFound, KindInvalid, or KindUnavailable while there is no snapshot that is fresh
// enough.
func (f *Feeds) Get(q Query) (Query, *Rendering, error) {
	f.mu.RLock()
	s, fresh := f.feeds[q.Name], f.fresh
	f.mu.RUnlock()
	now := f.o.Now()
	switch {
	case fresh.IsZero():
		return q, nil, &parry.Error{Kind: parry.KindUnavailable, Detail: "the feeds are being read; keep the list that you have and try again", RetryAfter: 2 * time.Second}
	case now.Sub(fresh) > f.o.StaleAfter():
		return q, nil, &parry.Error{Kind: parry.KindUnavailable, RetryAfter: time.Minute,
			Detail: fmt.Sprintf("the database cannot be read since %s; keep the list that you have", fresh.UTC().Format(time.RFC3339))}
	case s == nil:
		return q, nil, parry.Errorf(parry.KindNotFound, "there is no feed of that name: it is blocks, or a list's")
	}
	q, err := q.normal(s.typ)
	if err != nil {
		return q, nil, err
	}
	r, err := f.cache.get(q, s)
	return q, r, err
}

// render makes the bytes. last is what the same query gave before, or nil.
func render(s *snapshot, q Query, last *Rendering) (*Rendering, error) {
	sel := choose(s, q)
	body, err := write(sel, q)
	if err != nil {
		return nil, fmt.Errorf("render feed %s as %s: %w", s.name, q.Format, err)
	}
	sum := sha256.Sum256(body)
	r := &Rendering{
		Body: body, ETag: `"` + hex.EncodeToString(sum[:16]) + `"`, Modified: s.at, ContentType: q.Format.ContentType(),
		Entries: len(sel.entries), Total: sel.total, LeftOut: sel.leftOut, Revision: s.revision,
	}
	if last != nil && last.ETag == r.ETag {
		r.Body, r.Modified, r.gzip = last.Body, last.Modified, last.gzip
		return r, nil
	}
	r.gzip = sync.OnceValue(func() []byte { return compress(body) })
	return r, nil
}

func compress(body []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b) // writes to a buffer: it cannot fail
	_, _ = w.Write(body)
	_ = w.Close()
	return b.Bytes()
}

// cache keeps renderings, the least lately used going first when they are too many bytes.
type cache struct {
	most int

	mu    sync.Mutex
	items map[Query]*item
	order list.List // of *item, the latest used in front
	bytes int
}

// item is one query's rendering. mu is held while it is made, so that it is made once.
type item struct {
	query Query
	at    *list.Element
	bytes int

	mu        sync.Mutex
	version   int
	rendering *Rendering
}

func (c *cache) get(q Query, s *snapshot) (*Rendering, error) {
	c.mu.Lock()
	it := c.items[q]
	if it == nil {
		if c.items == nil {
			c.items = map[Query]*item{}
		}
		it = &item{query: q}
		it.at = c.order.PushFront(it)
		c.items[q] = it
	} else {
		c.order.MoveToFront(it.at)
	}
	c.mu.Unlock()

	it.mu.Lock()
	defer it.mu.Unlock()
	if it.rendering != nil && it.version >= s.version { // another caller may have had a newer snapshot
		return it.rendering, nil
	}
	r, err := render(s, q, it.rendering)
	if err != nil {
		return nil, err
	}
	it.rendering, it.version = r, s.version
	c.account(it, len(r.Body)*5/4+1024) // its gzip form is a fifth to a third of it
	return r, nil
}

// account notes an item's size and lets others go for it.
func (c *cache) account(it *item, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.items[it.query] != it {
		return // it went meanwhile
	}
	c.bytes += size - it.bytes
	it.bytes = size
	for c.bytes > c.most && c.order.Len() > 1 {
		last := c.order.Remove(c.order.Back()).(*item)
		delete(c.items, last.query)
		c.bytes -= last.bytes
	}
}

// Status is how a feed stands.
type Status struct {
	Name     string
	Type     parry.ListType
	Entries  int // keys
	Formats  []Format
	Revision parry.Revision
	Changed  time.Time // when keys last came or went
}

// Status tells of each feed, by name, and when the database was read last; the zero time before the first.
func (f *Feeds) Status() (all []Status, fresh time.Time) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, name := range slices.Sorted(maps.Keys(f.feeds)) {
		s := f.feeds[name]
		st := Status{Name: name, Type: s.typ, Entries: s.keys, Formats: Formats, Revision: s.revision, Changed: s.changed().at}
		if !s.typ.IsNetwork() {
			st.Formats = keyFormats
		}
		all = append(all, st)
	}
	return all, f.fresh
}
