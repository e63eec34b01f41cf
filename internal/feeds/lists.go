package feeds

import (
	"net/netip"
	"time"

	"github.com/parry/parry/internal/parry"
)

// List is an active list as it stands.
type List struct {
	parry.List
	Entries []*parry.ListEntry // live ones; shared, and not to be changed
	Version parry.Revision     // of the last change to it
	At      time.Time          // when this was made: another one is not made while nothing changes and nothing runs out
}

// known tells one state of a list from another.
type known struct {
	id      int64
	version parry.Revision
	at      time.Time
}

// nextList makes the snapshot of a list that follows old.
func (f *Feeds) nextList(old *snapshot, l *List, now time.Time) *snapshot {
	is := known{l.ID, l.Version, l.At}
	if old != nil && old.list == is {
		return old
	}
	newest := change{revision: l.Version, at: now, ranOut: old != nil && old.list.id == l.ID && old.list.version == l.Version}
	if old == nil {
		newest = change{at: l.CreatedAt} // nobody looks late after a restart
	}
	f.version++
	s := old.next(l.Name, l.Type, listed(l), l.Version, f.version, newest, now)
	s.list = is
	return s
}

func listed(l *List) []Entry {
	out := make([]Entry, 0, len(l.Entries))
	for _, e := range l.Entries {
		x := Entry{First: unix(e.FirstSeen), Last: unix(e.LastSeen), Expires: unix(e.ExpiresAt), Count: e.Count, Comment: e.Comment}
		if !l.Type.IsNetwork() {
			x.Key = e.Key
		} else if a, err := netip.ParseAddr(e.Key); err == nil {
			x.Prefix = netip.PrefixFrom(a, a.BitLen())
		} else if p, err := netip.ParsePrefix(e.Key); err == nil {
			x.Prefix = p
		} else {
			continue // never: the store's keys are canonical
		}
		out = append(out, x)
	}
	return out
}
