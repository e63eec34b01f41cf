package feeds

import (
	"cmp"
	"net/netip"
	"slices"
	"unicode"
	"unicode/utf8"

	"github.com/parry/parry/internal/parry"
)

// selection is the entries that a query means, sorted, each key once.
type selection struct {
	feed    string
	typ     parry.ListType
	entries []Entry
	total   int // before the limit
	leftOut int // entries that the format cannot express
}

func (s *selection) truncated() bool { return len(s.entries) < s.total }

// choose takes from a snapshot what a query means. It leaves the snapshot's entries as they are.
func choose(s *snapshot, q Query) *selection {
	out := &selection{feed: s.name, typ: s.typ, entries: make([]Entry, 0, len(s.entries))}
	for _, e := range s.entries {
		switch {
		case e.Narrow && q.Scope == ScopeWhole:
		case q.Family == 4 && !e.Prefix.Addr().Is4(), q.Family == 6 && e.Prefix.Addr().Is4():
		case !out.expressible(&e, q.Format):
			out.leftOut++
		case len(out.entries) > 0 && compare(out.entries[len(out.entries)-1], e) == 0:
			out.entries[len(out.entries)-1].join(&e)
		default:
			out.entries = append(out.entries, e)
		}
	}
	if q.Aggregate {
		n := len(out.entries)
		if q.Format.cdb() { // IPv6, which comes last, is single addresses there: two that were merged could not be written
			if i := slices.IndexFunc(out.entries, func(e Entry) bool { return !e.Prefix.Addr().Is4() }); i >= 0 {
				n = i
			}
		}
		out.entries = append(aggregate(out.entries[:n]), out.entries[n:]...)
	}
	out.total = len(out.entries)
	if q.Limit > 0 && q.Limit < out.total {
		out.entries = newest(out.entries, q.Limit)
	}
	return out
}

// expressible tells whether a format can write the entry's key so that its consumer reads the same.
func (s *selection) expressible(e *Entry, f Format) bool {
	if s.typ.IsNetwork() {
		switch f {
		case CDBWazuh:
			return e.Prefix.Addr().Is4() || e.Prefix.IsSingleIP()
		case CDBOSSEC:
			return e.Prefix.Addr().Is4()
		}
		return true
	}
	if e.Key == "" || !utf8.ValidString(e.Key) {
		return false
	}
	line := f != CSV && f != JSON
	for i, r := range e.Key {
		switch {
		case unicode.IsControl(r), line && unicode.In(r, unicode.Zl, unicode.Zp):
			return false
		case line && i == 0 && (r == '#' || unicode.IsSpace(r)):
			return false
		case f == Map && unicode.IsSpace(r), f == CDBWazuh && r == '"', f == CDBOSSEC && r == ':':
			return false
		}
	}
	return true
}

// join adds another block of the same key: the key stands while any of them does.
func (e *Entry) join(o *Entry) {
	if e.Expires != 0 && (o.Expires == 0 || o.Expires > e.Expires) {
		e.Expires = o.Expires
	}
	e.gather(o)
}

func (e *Entry) gather(o *Entry) {
	if o.Last > e.Last {
		e.Comment = o.Comment
	}
	e.First, e.Last, e.Count = min(e.First, o.First), max(e.Last, o.Last), e.Count+o.Count
}

// aggregate gives the fewest prefixes that cover exactly what the entries cover, which are sorted and each there once. A prefix made of two
// expires as soon as one of them does.
func aggregate(in []Entry) []Entry {
	out := in[:0]
	for i := range in {
		e := in[i]
		if n := len(out); n > 0 && out[n-1].Prefix.Overlaps(e.Prefix) { // sorted: it is the wider one
			out[n-1].gather(&e)
			continue
		}
		out = append(out, e)
		for n := len(out); n > 1; n = len(out) {
			a, b := &out[n-2], &out[n-1]
			whole := parent(a.Prefix)
			if !whole.IsValid() || whole != parent(b.Prefix) {
				break
			}
			a.Prefix = whole
			if a.Expires == 0 || b.Expires != 0 && b.Expires < a.Expires {
				a.Expires = b.Expires
			}
			a.gather(b)
			out = out[:n-1]
		}
	}
	return out
}

// parent is the prefix that is wider by a bit; invalid for /0.
func parent(p netip.Prefix) netip.Prefix {
	up, _ := p.Addr().Prefix(p.Bits() - 1)
	return up
}

// newest keeps the n entries that were seen last, in their order.
func newest(in []Entry, n int) []Entry {
	order := make([]int32, len(in))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(in[b].Last, in[a].Last), cmp.Compare(a, b))
	})
	order = order[:n]
	slices.Sort(order)
	out := make([]Entry, n)
	for i, at := range order {
		out[i] = in[at]
	}
	return out
}
