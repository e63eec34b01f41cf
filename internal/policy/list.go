package policy

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"github.com/parry/parry/internal/parry"
)

// List is the never-block list. Reading is lock-free and takes well under a microsecond whatever its size; changes build a new table beside
// the old one. Safe for concurrent use.
type List struct {
	mu    sync.Mutex // of writers
	table atomic.Pointer[table]
}

type table struct {
	all   []parry.Exemption // as given; without the special ranges
	paths bart.Table[[]parry.Exemption]
	file  atomic.Pointer[file]
}

// file is an exempt file, and until when it holds: an exemption runs out then. Zero is without end.
type file struct {
	parry.ExemptFile
	until time.Time
}

// NewList makes a list that holds the special ranges only.
func NewList() *List {
	l := new(List)
	l.store(nil)
	return l
}

// Replace puts exemptions in the place of all that came from the same source.
func (l *List) Replace(source parry.ExemptionSource, exemptions []parry.Exemption) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(l.table.Load().all), func(x parry.Exemption) bool { return x.Source == source })
	for _, x := range exemptions {
		x.Source = source
		all = append(all, x)
	}
	l.store(all)
}

// Add adds one, in the place of an older one with its id.
func (l *List) Add(x parry.Exemption) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(l.table.Load().all), func(y parry.Exemption) bool { return y.ID == x.ID })
	l.store(append(all, x))
}

// Remove takes one out; an unknown id is passed over.
func (l *List) Remove(id parry.ExemptionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.store(slices.DeleteFunc(slices.Clone(l.table.Load().all), func(x parry.Exemption) bool { return x.ID == id }))
}

// All lists the exemptions, special ranges aside, by prefix.
func (l *List) All() []parry.Exemption {
	all := slices.Clone(l.table.Load().all)
	slices.SortStableFunc(all, func(a, b parry.Exemption) int { return a.Prefix.Compare(b.Prefix) })
	return all
}

func (l *List) store(all []parry.Exemption) {
	t := &table{all: all}
	for _, set := range [][]parry.Exemption{special, all} {
		for _, x := range set {
			t.paths.Modify(x.Prefix.Masked(), func(have []parry.Exemption, _ bool) ([]parry.Exemption, bool) { return append(have, x), false })
		}
	}
	l.table.Store(t)
}

// Overlapping finds an exemption, or a special range, that contains the prefix, lies in it, or does either with an IPv4 address embedded
// in it. The prefix may be unmasked or mapped.
func (l *List) Overlapping(p netip.Prefix, now time.Time) (parry.Exemption, bool) {
	t := l.table.Load()
	p = canonical(p)
	for x := range t.overlapping(p, now) {
		return x, true
	}
	return parry.Exemption{}, false
}

// AllOverlapping lists what [List.Overlapping] finds one of.
func (l *List) AllOverlapping(p netip.Prefix, now time.Time) []parry.Exemption {
	return slices.Collect(l.table.Load().overlapping(canonical(p), now))
}

// File is the list as firewalls get it, special ranges and fleeting exemptions apart. It is made once for all that ask, until something changes.
func (l *List) File(now time.Time) parry.ExemptFile {
	t := l.table.Load()
	if f := t.file.Load(); f != nil && (f.until.IsZero() || now.Before(f.until)) {
		return f.ExemptFile
	}
	var f file
	var all []netip.Prefix
	for _, x := range t.all {
		switch at := x.ExpiresAt; {
		case x.Fleeting, !at.IsZero() && !now.Before(at):
			continue
		case !at.IsZero() && (f.until.IsZero() || at.Before(f.until)):
			f.until = at
		}
		all = append(all, canonical(x.Prefix))
	}
	f.ExemptFile = parry.NewExemptFile(all)
	t.file.Store(&f)
	return f.ExemptFile
}

func (t *table) overlapping(p netip.Prefix, now time.Time) func(yield func(parry.Exemption) bool) {
	return func(yield func(parry.Exemption) bool) {
		for _, q := range append([]netip.Prefix{p}, embedded(p)...) {
			if !t.paths.OverlapsPrefix(q) {
				continue
			}
			for _, set := range t.paths.Supernets(q) {
				if !yieldStanding(set, now, yield) {
					return
				}
			}
			for pfx, set := range t.paths.Subnets(q) {
				if pfx != q && !yieldStanding(set, now, yield) { // q itself was among its supernets
					return
				}
			}
		}
	}
}

func yieldStanding(set []parry.Exemption, now time.Time, yield func(parry.Exemption) bool) bool {
	for _, x := range set {
		if (x.ExpiresAt.IsZero() || now.Before(x.ExpiresAt)) && !yield(x) {
			return false
		}
	}
	return true
}

// canonical unmaps and masks.
func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}
