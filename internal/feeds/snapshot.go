package feeds

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/parry/parry/internal/parry"
)

// Entry is one line of a feed.
type Entry struct {
	Prefix  netip.Prefix // the key of a feed of addresses: masked, unmapped, no zone
	Key     string       // the key of any other
	Narrow  bool         // a block of less than all that comes from its source
	First   int64        // Unix seconds of its first and newest sighting
	Last    int64
	Expires int64 // Unix seconds, 0 is without end
	Count   int64
	Comment string // hostile text
}

func compare(a, b Entry) int {
	if c := a.Prefix.Compare(b.Prefix); c != 0 {
		return c
	}
	return strings.Compare(a.Key, b.Key)
}

// snapshot is a feed as of a revision. It is never changed.
type snapshot struct {
	name     string
	typ      parry.ListType
	entries  []Entry // sorted; a key can stand there several times, for several blocks
	keys     int     // that are not narrow, each counted once
	revision parry.Revision
	version  int // grows with each snapshot of other content
	changes  []change
	list     known     // of a list
	at       time.Time // when this content was first seen; in another second than the one before
}

// change is a revision at which keys came or went, and when that was noticed.
type change struct {
	revision parry.Revision
	at       time.Time
	ranOut   bool // keys of a list ran out by themselves, which is no revision
}

const maxChanges = 4096 // remembered of a feed

// next makes the snapshot that follows s, which may be nil. Entries are sorted here. newest is the newest change in them; of a first snapshot
// as far as the entries themselves tell, so that a restart does not make every consumer look late.
func (s *snapshot) next(name string, t parry.ListType, entries []Entry, rev parry.Revision, version int, newest change, now time.Time) *snapshot {
	slices.SortFunc(entries, compare)
	n := &snapshot{name: name, typ: t, entries: entries, revision: rev, version: version, changes: []change{newest}, at: now}
	for i, last := 0, -1; i < len(entries); i++ {
		if !entries[i].Narrow && (last < 0 || compare(entries[last], entries[i]) != 0) {
			n.keys++
			last = i
		}
	}
	if s == nil {
		return n
	}
	n.changes = s.changes
	if !slices.EqualFunc(s.entries, entries, func(a, b Entry) bool { return a.Prefix == b.Prefix && a.Key == b.Key && a.Narrow == b.Narrow }) {
		n.changes = append(slices.Clone(s.changes[max(0, len(s.changes)-maxChanges+1):]), newest)
	}
	return n
}

// as is s at a later revision that left its content as it was.
func (s *snapshot) as(rev parry.Revision) *snapshot {
	n := *s
	n.revision = rev
	return &n
}

// changed is when keys last came or went.
func (s *snapshot) changed() change { return s.changes[len(s.changes)-1] }

// behind is since when a consumer that read at rev, at a time, lacks something, or holds something that is gone; zero when it does not.
func (s *snapshot) behind(rev parry.Revision, at time.Time) time.Time {
	i, _ := slices.BinarySearchFunc(s.changes, rev, func(c change, rev parry.Revision) int {
		if c.revision > rev || c.ranOut && c.revision == rev && c.at.After(at) {
			return 1
		}
		return -1
	})
	if i == len(s.changes) {
		return time.Time{}
	}
	return s.changes[i].at
}
