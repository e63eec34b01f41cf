package reconcile

import (
	"net/netip"
	"slices"

	"github.com/parry/parry/internal/parry"
)

// shape is all of an entry but its source. Entries of one shape differ in the source alone.
type shape struct {
	dst   netip.Prefix // zero is any
	proto parry.Protocol
	port  uint16
	iface string
	v6    bool
}

// group is the entries of one shape.
type group struct {
	members []int                // indexes into the entries
	bits    []int                // the prefix lengths of its sources, ascending
	sources map[netip.Prefix]int // source → index of the entry; made when first asked
}

// coverage answers which entry of a set drops everything that another one drops, in time that depends on the number of distinct prefix
// lengths, not of entries.
//
// An entry covers another one of the same interface and family when its source contains the other's source, its destination is any or
// contains the other's, its protocol is any, the same, or tcp/udp over either of the two, and its port is any or the same. Dropping a
// covered entry never changes the union of what is dropped. What only several entries together cover (two halves of a prefix, tcp and udp
// apart) is left alone: it is exact without, and merging would tie blocks with different ends together.
type coverage struct {
	entries []parry.Entry
	groups  map[shape]*group
	dstBits [2][]int                 // distinct lengths of destinations, per family
	usable  func(i int, by int) bool // whether entry by may stand for entry i
}

func shapeOf(m parry.Match) shape {
	return shape{m.Destination, m.Protocol, m.Port, m.Interface, m.Source.Addr().Is6()}
}

func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// newCoverage indexes entries, which have distinct matches. usable may be nil; it only ever narrows.
func newCoverage(entries []parry.Entry, usable func(i, by int) bool) *coverage {
	c := &coverage{entries: entries, groups: map[shape]*group{}, usable: usable}
	lengths := map[shape]*[129]bool{}
	var dst [2][129]bool
	var lastShape shape
	var last *group
	var lastLen *[129]bool
	for i := range entries {
		s := shapeOf(entries[i].Match)
		if last == nil || s != lastShape { // most entries follow one of their shape
			g, ok := c.groups[s]
			if !ok {
				g = &group{}
				c.groups[s], lengths[s] = g, new([129]bool)
				if s.dst.IsValid() {
					dst[family(s.v6)][s.dst.Bits()] = true
				}
			}
			lastShape, last, lastLen = s, g, lengths[s]
		}
		last.members = append(last.members, i)
		lastLen[entries[i].Source.Bits()] = true
	}
	for s, g := range c.groups {
		g.bits = set(lengths[s])
	}
	for f := range dst {
		c.dstBits[f] = set(&dst[f])
	}
	return c
}

func set(b *[129]bool) []int {
	var out []int
	for i, ok := range b {
		if ok {
			out = append(out, i)
		}
	}
	return out
}

// wider calls f for every group whose shape covers s, s itself included, until f returns false.
func (c *coverage) wider(s shape, f func(*group, bool) bool) {
	protos := []parry.Protocol{s.proto}
	if s.proto == parry.ProtoTCP || s.proto == parry.ProtoUDP {
		protos = append(protos, parry.ProtoTCPUDP)
	}
	if s.proto != parry.ProtoAny {
		protos = append(protos, parry.ProtoAny)
	}
	ports := []uint16{s.port}
	if s.port != 0 {
		ports = append(ports, 0)
	}
	dsts := []netip.Prefix{{}}
	if s.dst.IsValid() {
		for _, n := range c.dstBits[family(s.v6)] {
			if n <= s.dst.Bits() {
				dsts = append(dsts, netip.PrefixFrom(s.dst.Addr(), n).Masked())
			}
		}
		if !slices.Contains(dsts, s.dst) {
			dsts = append(dsts, s.dst)
		}
	}
	for _, d := range dsts {
		for _, p := range protos {
			for _, n := range ports {
				w := shape{d, p, n, s.iface, s.v6}
				if g, ok := c.groups[w]; ok && !f(g, w == s) {
					return
				}
			}
		}
	}
}

// find returns the index of an entry of the group whose source contains src; strictly so when own.
func (c *coverage) find(g *group, i int, src netip.Prefix, own bool) (int, bool) {
	n := src.Bits()
	if own {
		n--
	}
	if g.bits[0] > n {
		return 0, false
	}
	if g.sources == nil {
		g.sources = make(map[netip.Prefix]int, len(g.members))
		for _, m := range g.members {
			g.sources[c.entries[m].Source] = m
		}
	}
	for _, b := range g.bits {
		if b > n {
			break
		}
		if by, ok := g.sources[netip.PrefixFrom(src.Addr(), b).Masked()]; ok && (c.usable == nil || c.usable(i, by)) {
			return by, true
		}
	}
	return 0, false
}

// covered returns, for each entry, the index of one that covers it, or -1. A coverer may be covered itself: the relation is transitive, so
// that one that is not stands above it.
func (c *coverage) covered() []int {
	out := make([]int, len(c.entries))
	for i := range out {
		out[i] = -1
	}
	for s, g := range c.groups {
		var above []*group
		var own []bool
		c.wider(s, func(w *group, same bool) bool {
			if !same || len(g.bits) > 1 {
				above, own = append(above, w), append(own, same)
			}
			return true
		})
		if len(above) == 0 {
			continue
		}
		for _, i := range g.members {
			for k, w := range above {
				if by, ok := c.find(w, i, c.entries[i].Source, own[k]); ok {
					out[i] = by
					break
				}
			}
		}
	}
	return out
}

// covers tells whether the indexed entries drop all that m drops, m itself being among them included.
func (c *coverage) covers(m parry.Match) bool {
	found := false
	c.wider(shapeOf(m), func(g *group, _ bool) bool {
		_, found = c.find(g, -1, m.Source, false)
		return !found
	})
	return found
}
