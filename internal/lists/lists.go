package lists

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/parry"
)

// Store is what lists need of the store; internal/store documents each method.
type Store interface {
	CreateList(ctx context.Context, l parry.List) (parry.List, error)
	DeleteList(ctx context.Context, name, by string) error
	SyncLists(ctx context.Context, configured []parry.List) error
	PutEntries(ctx context.Context, list string, puts []parry.ListPut) (parry.ListDone, error)
	RemoveEntry(ctx context.Context, list, key, by string) (parry.Revision, error)
	ListChanges(ctx context.Context, since parry.Revision) (parry.ListChanges, error)
	Lists(ctx context.Context) <-chan struct{}
}

// Options of [New]. Store is required.
type Options struct {
	Store      Store
	Send       func(ctx context.Context, h Hit) error // tells a hit; nil: nobody is told
	Now        func() time.Time                       // time.Now
	Logger     *slog.Logger                           // slog.Default()
	Registerer prometheus.Registerer                  // nil: no metrics
}

// Lists are the active lists. Safe for concurrent use.
type Lists struct {
	o        Options
	log      *slog.Logger
	metrics  *metrics
	hits     chan Hit
	set      atomic.Pointer[map[string]*index] // never changed, but replaced
	policies atomic.Pointer[policies]

	refreshing sync.Mutex     // one at a time
	seen       parry.Revision // all up to here is in memory
	seenAt     time.Time      // of the machine's clock, not of Options.Now
}

const (
	sweepEvery = time.Minute
	refreshFor = 10 * time.Second // the longest that reading changes may take
	trustFor   = 30 * time.Minute // after so long without a look, all is read anew: what was swept in between would be missed
	retryAfter = time.Second
)

// New makes the lists, without anything on them before [Lists.Load].
func New(o Options) (*Lists, error) {
	if o.Store == nil {
		return nil, errors.New("lists: Options.Store is missing")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	l := &Lists{o: o, log: cmp.Or(o.Logger, slog.Default()), hits: make(chan Hit, hitQueue)}
	l.set.Store(&map[string]*index{})
	l.policies.Store(&policies{})
	var err error
	if l.metrics, err = newMetrics(o.Registerer, l); err != nil {
		return nil, fmt.Errorf("register the lists' metrics: %w", err)
	}
	return l, nil
}

// Load reads all lists. It is for the start: lookups are right from then on.
func (l *Lists) Load(ctx context.Context) error { return l.refresh(ctx, 0) }

// Run follows the store and sends hits, until ctx ends.
func (l *Lists) Run(ctx context.Context) error {
	var bg sync.WaitGroup
	bg.Go(func() { l.sendHits(ctx) })
	defer bg.Wait()
	changed := l.o.Store.Lists(ctx)
	begin := make(chan struct{}, 1) // what changed before it was listened for
	begin <- struct{}{}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	failing := false
	for {
		sweep := false
		select {
		case <-ctx.Done():
			return nil
		case <-begin:
		case <-changed:
		case <-tick.C:
			sweep = true
		}
		err := l.refresh(ctx, 0)
		for err != nil && ctx.Err() == nil {
			if !failing {
				failing = true
				l.log.Error("read the active lists; lookups go on with what is known", "err", err)
			}
			if !sleep(ctx, retryAfter) {
				return nil
			}
			err = l.refresh(ctx, 0)
		}
		if failing && err == nil {
			failing = false
			l.log.Info("the active lists can be read again")
		}
		if sweep {
			for _, x := range *l.set.Load() {
				x.sweep(l.o.Now())
			}
		}
	}
}

// refresh takes up what changed in the store. With a revision it does nothing when that is in memory already.
func (l *Lists) refresh(ctx context.Context, upTo parry.Revision) error {
	l.refreshing.Lock()
	defer l.refreshing.Unlock()
	if upTo > 0 && l.seen >= upTo {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, refreshFor)
	defer cancel()
	since, began := l.seen, time.Now().Round(0) // the wall's time: the monotonic clock stands still while a machine is suspended
	if began.Sub(l.seenAt) > trustFor {
		since = 0
	}
	c, err := l.o.Store.ListChanges(ctx, since)
	if err != nil {
		return err
	}
	old := *l.set.Load()
	byList := map[string][]parry.ListEntry{}
	for i := range c.Entries {
		e := &c.Entries[i]
		e.Comment, e.RuleID, e.By = intern(e.Comment), intern(e.RuleID), intern(e.By)
		for j, s := range e.Sources {
			e.Sources[j] = intern(s)
		}
		byList[e.List] = append(byList[e.List], *e)
	}
	next := make(map[string]*index, len(c.Lists))
	for _, list := range c.Lists {
		x := old[list.Name]
		if x == nil || since == 0 || x.definition().ID != list.ID || x.definition().Type != list.Type {
			x = newIndex(list, c.Revision)
		}
		x.define(list, c.Revision)
		for i := range byList[list.Name] {
			byList[list.Name][i].List = list.Name // one string for all
		}
		x.apply(byList[list.Name], c.Revision, l.o.Now())
		next[list.Name] = x
	}
	l.set.Store(&next)
	l.seen, l.seenAt = c.Revision, began
	return nil
}

// intern lets entries share what they have in common.
func intern(s string) string {
	if s == "" {
		return s
	}
	return unique.Make(s).Value()
}

// catchUp makes a change of this process visible to its lookups. What was committed stays committed when that fails; the store's word comes again.
func (l *Lists) catchUp(ctx context.Context, rev parry.Revision) {
	if err := l.refresh(context.WithoutCancel(ctx), rev); err != nil {
		l.log.Warn("a change to an active list is not in memory yet", "err", err)
	}
}

// Info is a list and how full it is.
type Info struct {
	parry.List
	Entries int
	Policy  Policy
}

func (l *Lists) index(name string) (*index, error) {
	if x := (*l.set.Load())[name]; x != nil {
		return x, nil
	}
	return nil, parry.Errorf(parry.KindNotFound, "there is no list %s", quote(name))
}

func (l *Lists) info(x *index) Info {
	list := x.definition()
	return Info{List: list, Entries: len(x.snapshot(l.o.Now()).Entries), Policy: l.policies.Load().of(list.Name)}
}

// All lists the lists by name.
func (l *Lists) All() []Info {
	set := *l.set.Load()
	out := make([]Info, 0, len(set))
	for _, name := range slices.Sorted(maps.Keys(set)) {
		out = append(out, l.info(set[name]))
	}
	return out
}

// Get finds a list; KindNotFound if there is none.
func (l *Lists) Get(name string) (Info, error) {
	x, err := l.index(name)
	if err != nil {
		return Info{}, err
	}
	return l.info(x), nil
}

// Definition finds a list, without counting what is on it; KindNotFound if there is none.
func (l *Lists) Definition(name string) (parry.List, error) {
	x, err := l.index(name)
	if err != nil {
		return parry.List{}, err
	}
	return x.definition(), nil
}

// Create makes a list of the API.
func (l *Lists) Create(ctx context.Context, list parry.List) (Info, error) {
	list, err := l.o.Store.CreateList(ctx, list)
	if err != nil {
		return Info{}, err
	}
	l.catchUp(ctx, 0)
	return Info{List: list}, nil
}

// Delete takes a list of the API away with all that is on it.
func (l *Lists) Delete(ctx context.Context, name, by string) error {
	if err := l.o.Store.DeleteList(ctx, name, by); err != nil {
		return err
	}
	l.catchUp(ctx, 0)
	return nil
}

// Put puts entries on a list, all or none. Their keys are canonical, as [Canonical] gives them.
func (l *Lists) Put(ctx context.Context, name string, puts []parry.ListPut) (parry.ListDone, error) {
	done, err := l.o.Store.PutEntries(ctx, name, puts)
	if err != nil {
		return done, err
	}
	l.catchUp(ctx, done.Revision)
	return done, nil
}

// Remove takes one entry off; the key is canonical.
func (l *Lists) Remove(ctx context.Context, name, key, by string) error {
	rev, err := l.o.Store.RemoveEntry(ctx, name, key, by)
	if err != nil {
		return err
	}
	l.catchUp(ctx, rev)
	return nil
}

// Entry gives what stands on a list under a canonical key itself; KindNotFound if nothing does.
func (l *Lists) Entry(name, key string) (parry.ListEntry, error) {
	x, err := l.index(name)
	if err != nil {
		return parry.ListEntry{}, err
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	if e := x.get(key); e != nil && e.Live(l.o.Now()) {
		return e.ListEntry, nil
	}
	return parry.ListEntry{}, parry.Errorf(parry.KindNotFound, "%s is not on the list %s", quote(key), quote(name))
}

// Snapshot is what stands on a list, sorted. It costs nothing while nothing changes.
func (l *Lists) Snapshot(name string) (*Snapshot, error) {
	x, err := l.index(name)
	if err != nil {
		return nil, err
	}
	return x.snapshot(l.o.Now()), nil
}

// Match is an entry that a lookup found.
type Match struct {
	Type  parry.ListType
	Entry *parry.ListEntry // shared: not to be changed
}

// Lookup tells whether a key, as people write it, is on a list. Key is its canonical form; the error is KindNotFound when there is no such list
// and KindInvalid when the key is none of its type. by is told with a hit.
func (l *Lists) Lookup(name, key, by string) (canonical string, m Match, found bool, err error) {
	x, err := l.index(name)
	if err != nil {
		return "", Match{}, false, err
	}
	t := x.definition().Type
	if canonical, err = Canonical(t, key); err != nil {
		return "", Match{}, false, parry.Invalid("?key", "%s", err)
	}
	m, found = l.lookup(x, t, canonical, by)
	return canonical, m, found, nil
}

func (l *Lists) lookup(x *index, t parry.ListType, canonical, by string) (Match, bool) {
	now := l.o.Now()
	e := x.find(canonical, now)
	if e == nil {
		l.metrics.misses.Inc()
		return Match{}, false
	}
	l.metrics.found.Inc()
	l.tell(x, e, canonical, by, now)
	return Match{t, &e.ListEntry}, true
}

// LookupAll asks every list that takes such a key, by name.
func (l *Lists) LookupAll(key, by string) []Match {
	type form struct {
		key string
		ok  bool
	}
	forms := map[parry.ListType]form{}
	set := *l.set.Load()
	var out []Match
	for _, name := range slices.Sorted(maps.Keys(set)) {
		x := set[name]
		t := x.definition().Type
		f, known := forms[t]
		if !known {
			c, err := Canonical(t, key)
			f = form{c, err == nil}
			forms[t] = f
		}
		if !f.ok {
			continue
		}
		if m, found := l.lookup(x, t, f.key, by); found {
			out = append(out, m)
		}
	}
	return out
}

// On gives the entries that cover an address or prefix, by list. It is no lookup: nobody is told.
func (l *Lists) On(source netip.Prefix) []Match {
	set, now := *l.set.Load(), l.o.Now()
	var out []Match
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if e := set[name].on(source, now); e != nil {
			out = append(out, Match{set[name].definition().Type, e})
		}
	}
	return out
}

func (x *index) on(source netip.Prefix, now time.Time) *parry.ListEntry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.nets == nil {
		return nil
	}
	if e := x.covering(source, now); e != nil {
		return &e.ListEntry
	}
	return nil
}
