package lists

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"github.com/parry/parry/internal/parry"
)

// entry is never changed but for hit: a change puts another in its place.
type entry struct {
	parry.ListEntry
	hit atomic.Int64 // when it was last told of, Unix microseconds
}

// index is one list in memory.
type index struct {
	mu      sync.RWMutex
	list    parry.List
	nets    *bart.Table[*entry] // of networks
	keys    map[string]*entry   // of all else
	version parry.Revision      // of the last change

	sorted atomic.Pointer[Snapshot]
}

func newIndex(l parry.List, at parry.Revision) *index {
	x := &index{list: l, version: at}
	if l.Type.IsNetwork() {
		x.nets = new(bart.Table[*entry])
	} else {
		x.keys = map[string]*entry{}
	}
	return x
}

// prefixOf reads a canonical key of a network list.
func prefixOf(key string) netip.Prefix {
	if a, err := netip.ParseAddr(key); err == nil {
		return netip.PrefixFrom(a, a.BitLen())
	}
	p, _ := netip.ParsePrefix(key)
	return p
}

const lockFor = 512 // entries: lookups wait for no more at a time

// apply takes up changes; at is the revision that they lead to.
func (x *index) apply(changes []parry.ListEntry, at parry.Revision, now time.Time) {
	for part := range slices.Chunk(changes, lockFor) {
		x.mu.Lock()
		for i := range part {
			e := &entry{ListEntry: part[i]}
			if !e.Live(now) {
				x.drop(e.Key)
				continue
			}
			if old := x.get(e.Key); old != nil {
				e.hit.Store(old.hit.Load())
			}
			if x.nets != nil {
				x.nets.Insert(prefixOf(e.Key), e)
			} else {
				x.keys[e.Key] = e
			}
		}
		x.version = at
		x.mu.Unlock()
	}
}

func (x *index) get(key string) *entry {
	if x.nets == nil {
		return x.keys[key]
	}
	e, _ := x.nets.Get(prefixOf(key))
	return e
}

func (x *index) drop(key string) {
	if x.nets != nil {
		x.nets.Delete(prefixOf(key))
	} else {
		delete(x.keys, key)
	}
}

// define takes up a changed definition.
func (x *index) define(l parry.List, at parry.Revision) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.list != l {
		x.list, x.version = l, at
	}
}

func (x *index) definition() parry.List {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.list
}

// size counts what is in memory; what ran out within the last minute may be among it.
func (x *index) size() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.nets != nil {
		return x.nets.Size()
	}
	return len(x.keys)
}

// find gives the entry that a canonical key matches: the longest prefix that covers it, or the name itself or, where the list says so, the
// nearest name above it. An entry that has run out hides no other.
func (x *index) find(key string, now time.Time) *entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.nets != nil {
		return x.covering(prefixOf(key), now)
	}
	for {
		if e := x.keys[key]; e != nil && e.Live(now) {
			return e
		}
		_, above, ok := strings.Cut(key, ".")
		if !ok || !x.list.Subdomains || x.list.Type != parry.ListDomain {
			return nil
		}
		key = above
	}
}

// covering finds the longest live prefix that covers p. The caller holds mu.
func (x *index) covering(p netip.Prefix, now time.Time) *entry {
	if !p.IsValid() {
		return nil
	}
	if e, ok := x.nets.LookupPrefix(p); !ok || e.Live(now) {
		return e
	}
	for _, e := range x.nets.Supernets(p) { // longest first
		if e.Live(now) {
			return e
		}
	}
	return nil
}

// sweep takes what has run out from memory.
func (x *index) sweep(now time.Time) {
	var over []string
	x.mu.RLock()
	if x.nets != nil {
		for _, e := range x.nets.All() {
			if !e.Live(now) {
				over = append(over, e.Key)
			}
		}
	}
	for key, e := range x.keys {
		if !e.Live(now) {
			over = append(over, key)
		}
	}
	x.mu.RUnlock()
	for part := range slices.Chunk(over, lockFor) {
		x.mu.Lock()
		for _, key := range part {
			if e := x.get(key); e != nil && !e.Live(now) { // it may have come back meanwhile
				x.drop(key)
			}
		}
		x.mu.Unlock()
	}
}

// Snapshot is what stood on a list at a time.
type Snapshot struct {
	List    parry.List
	Entries []*parry.ListEntry // live ones in order: networks by address and length, IPv4 first; else bytewise. Shared: not to be changed
	Version parry.Revision     // of the last change to the list or to what is on it
	At      time.Time
	Until   time.Time // without a further change it is the same until then, when an entry runs out; zero: for ever
}

// snapshot is made anew only when something changed or ran out.
func (x *index) snapshot(now time.Time) *Snapshot {
	x.mu.RLock()
	if s := x.sorted.Load(); s != nil && s.Version == x.version && (s.Until.IsZero() || now.Before(s.Until)) {
		x.mu.RUnlock()
		return s
	}
	s := &Snapshot{List: x.list, Version: x.version, At: now, Entries: []*parry.ListEntry{}}
	take := func(e *entry) {
		if !e.Live(now) {
			return
		}
		s.Entries = append(s.Entries, &e.ListEntry)
		if !e.ExpiresAt.IsZero() && (s.Until.IsZero() || e.ExpiresAt.Before(s.Until)) {
			s.Until = e.ExpiresAt
		}
	}
	if x.nets != nil {
		s.Entries = make([]*parry.ListEntry, 0, x.nets.Size())
		for _, e := range x.nets.AllSorted() {
			take(e)
		}
	}
	for _, e := range x.keys {
		take(e)
	}
	x.mu.RUnlock()
	if x.keys != nil {
		slices.SortFunc(s.Entries, func(a, b *parry.ListEntry) int { return cmp.Compare(a.Key, b.Key) })
	}
	x.sorted.Store(s)
	return s
}

// After gives the entries behind a canonical key in the snapshot's order; all of them for "".
func (s *Snapshot) After(key string) []*parry.ListEntry {
	if key == "" {
		return s.Entries
	}
	compare := func(e *parry.ListEntry, key string) int { return cmp.Compare(e.Key, key) }
	if s.List.Type.IsNetwork() {
		at := prefixOf(key)
		compare = func(e *parry.ListEntry, _ string) int { return prefixOf(e.Key).Compare(at) }
	}
	i, found := slices.BinarySearchFunc(s.Entries, key, compare)
	if found {
		i++
	}
	return s.Entries[i:]
}
