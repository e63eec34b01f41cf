package reconcile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

func testManifest() *bundle.Manifest {
	return &bundle.Manifest{
		Name: "fake", Families: []string{"inet", "inet6"}, Prefixes: true, Ports: true, Interfaces: true,
		Protocols: append([]parry.Protocol{parry.ProtoAny}, parry.Protocols...),
	}
}

func testRenderer() *renderer {
	return &renderer{
		firewall: &parry.Firewall{Name: "fw-a", Interface: "wan", Interfaces: map[string]string{"dmz": "OPT1"}}, manifest: testManifest(),
	}
}

func block(i int, m parry.Match) standing {
	return standing{Key: parry.Key{Match: m}, id: parry.BlockID(fmt.Sprintf("b-%06d", i)), rev: parry.Revision(i)}
}

func keysOf(r *rendering) (out []string) {
	for i := range r.lines {
		out = append(out, r.lines[i].key)
	}
	return out
}

func TestRender_resolvesDedupesCoversAndSorts(t *testing.T) {
	t.Parallel()
	any4 := pfx("203.0.113.7")
	r := testRenderer().render(7, []standing{
		block(1, parry.Match{Source: any4, Interface: "dmz"}),
		block(2, parry.Match{Source: any4}),
		block(3, parry.Match{Source: any4, Interface: "wan"}),                                                                    // the same as 2 there
		block(4, parry.Match{Source: any4, Destination: pfx("198.51.100.10"), Protocol: parry.ProtoTCP, Port: 22}),               // covered by 2
		block(5, parry.Match{Source: pfx("10.0.0.0/24"), Destination: pfx("198.51.100.0/24"), Protocol: parry.ProtoTCPUDP}),      //
		block(6, parry.Match{Source: pfx("10.0.0.9"), Destination: pfx("198.51.100.10"), Protocol: parry.ProtoUDP, Port: 53}),    // covered by 5
		block(7, parry.Match{Source: pfx("10.0.0.9"), Destination: pfx("198.51.100.10"), Protocol: parry.ProtoSCTP, Port: 53}),   // not covered
		block(8, parry.Match{Source: pfx("2001:db8::/64"), Protocol: parry.ProtoTCP, Port: 22}),                                  //
		block(9, parry.Match{Source: pfx("2001:db8::1"), Destination: pfx("2001:db8:1::1"), Protocol: parry.ProtoTCP, Port: 22}), // covered by 8
	})
	want := []string{
		"10.0.0.0/24 198.51.100.0/24 tcp/udp - wan", "10.0.0.9 198.51.100.10 sctp 53 wan", "2001:db8::/64 - tcp 22 wan",
		"203.0.113.7 - - - opt1", "203.0.113.7 - - - wan",
	}
	if got := keysOf(r); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got, want := r.sum, sumOf(want); got != want {
		t.Errorf("sum %s, want %s", got, want)
	}
	if got, want := r.lines[4].blocks(), []parry.BlockID{"b-000002", "b-000003"}; !slices.Equal(got, want) {
		t.Errorf("blocks of the last line %v, want %v", got, want)
	}
	if !strings.HasSuffix(string(r.file()), "203.0.113.7 - - - wan -\n") {
		t.Errorf("file %q", r.file())
	}
}

func TestRender_anyIsEveryInterface(t *testing.T) {
	t.Parallel()
	r := testRenderer()
	r.firewall.Interface, r.firewall.Interfaces = "any", map[string]string{"outside": "eth0", "all": "any"}
	got := keysOf(r.render(1, []standing{
		block(1, parry.Match{Source: pfx("203.0.113.7")}),
		block(2, parry.Match{Source: pfx("203.0.113.7"), Interface: "all"}), // the same
		block(3, parry.Match{Source: pfx("203.0.113.8"), Interface: "outside"}),
	}))
	if want := []string{"203.0.113.7 - - - -", "203.0.113.8 - - - eth0"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRender_whereTheFirewallEndsEntriesAWiderOneMustLastAsLong(t *testing.T) {
	t.Parallel()
	r := testRenderer()
	r.manifest.Timeouts = true
	wide, early, late, endless := block(1, parry.Match{Source: pfx("10.0.0.0/24")}), block(2, parry.Match{Source: pfx("10.0.0.1")}),
		block(3, parry.Match{Source: pfx("10.0.0.2")}), block(4, parry.Match{Source: pfx("10.0.0.3")})
	wide.expires, early.expires, late.expires = 200, 100, 300
	got := keysOf(r.render(1, []standing{wide, early, late, endless}))
	if want := []string{"10.0.0.0/24 - - - wan", "10.0.0.2 - - - wan", "10.0.0.3 - - - wan"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// genMatch draws from few addresses, so that entries overlap in every way.
func genMatch() *rapid.Generator[parry.Match] {
	return rapid.Custom(func(t *rapid.T) parry.Match {
		v6 := rapid.Bool().Draw(t, "v6")
		prefix := func(what string) netip.Prefix {
			host := byte(rapid.IntRange(0, 7).Draw(t, what))
			n := rapid.IntRange(0, 3).Draw(t, what+" bits")
			if v6 {
				a := netip.MustParseAddr("2001:db8::").As16()
				a[15] = host
				return netip.PrefixFrom(netip.AddrFrom16(a), 128-n).Masked()
			}
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, host}), 32-n).Masked()
		}
		m := parry.Match{Source: prefix("source")}
		if rapid.Bool().Draw(t, "destination?") {
			m.Destination = prefix("destination")
		}
		m.Protocol = rapid.SampledFrom([]parry.Protocol{parry.ProtoAny, parry.ProtoTCP, parry.ProtoUDP, parry.ProtoTCPUDP, parry.ProtoSCTP,
			parry.ProtoICMP}).Draw(t, "protocol")
		if m.Protocol.HasPorts() {
			m.Port = rapid.SampledFrom([]uint16{0, 22, 53}).Draw(t, "port")
		}
		m.Interface = rapid.SampledFrom([]string{"", "wan", "dmz"}).Draw(t, "interface")
		return m
	})
}

// packet is one thing that could arrive, and the finest that genMatch can tell apart.
type packet struct {
	src, dst netip.Addr
	proto    parry.Protocol
	port     uint16
	iface    string
}

func (p packet) dropped(m parry.Match) bool {
	return m.Source.Contains(p.src) && (!m.Destination.IsValid() || m.Destination.Contains(p.dst)) && m.Interface == p.iface &&
		(m.Port == 0 || m.Port == p.port) &&
		(m.Protocol == parry.ProtoAny || m.Protocol == p.proto ||
			m.Protocol == parry.ProtoTCPUDP && (p.proto == parry.ProtoTCP || p.proto == parry.ProtoUDP))
}

// The union of what is dropped is the same before and after, and nothing that is left is covered by another one.
func TestRender_coveringNeverChangesWhatIsDropped(t *testing.T) {
	t.Parallel()
	var packets []packet
	for _, base := range []string{"10.0.0.0", "2001:db8::"} {
		addr := func(h byte) netip.Addr {
			b := netip.MustParseAddr(base).AsSlice()
			b[len(b)-1] = h
			a, _ := netip.AddrFromSlice(b)
			return a
		}
		for s := range byte(8) {
			for d := range byte(9) { // 8 is outside of every destination
				for _, proto := range []parry.Protocol{parry.ProtoTCP, parry.ProtoUDP, parry.ProtoSCTP, parry.ProtoICMP, parry.ProtoGRE} {
					for _, port := range []uint16{22, 53, 80} {
						for _, iface := range []string{"wan", "opt1"} {
							packets = append(packets, packet{addr(s), addr(d + d/8*100), proto, port, iface})
						}
					}
				}
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		r := testRenderer()
		matches := rapid.SliceOfN(genMatch(), 0, 12).Draw(t, "matches")
		var blocks []standing
		var before []parry.Match
		for i, m := range matches {
			blocks = append(blocks, block(i, m))
			before, _ = r.resolve(before, m)
		}
		out := r.render(1, blocks)
		var after []parry.Match
		for i := range out.lines {
			m, ok := parry.ParseKey(out.lines[i].key)
			if !ok {
				t.Fatalf("key %q cannot be read back", out.lines[i].key)
			}
			after = append(after, m)
		}
		drops := func(ms []parry.Match, p packet) bool { return slices.ContainsFunc(ms, p.dropped) }
		for _, p := range packets {
			if drops(before, p) != drops(after, p) {
				t.Fatalf("%+v: dropped before %v, after %v\nbefore %v\nafter %v", p, drops(before, p), drops(after, p), before, after)
			}
		}
		for i, a := range after {
			for j, b := range after {
				if i != j && covers(a, b) {
					t.Fatalf("%v is left beside %v, which covers it", b, a)
				}
			}
		}
		if !slices.IsSortedFunc(out.lines, func(a, b line) int { return cmp.Compare(a.key, b.key) }) {
			t.Fatal("not sorted")
		}
	})
}

// covers is the rule itself, written down pair by pair.
func covers(a, b parry.Match) bool {
	in := func(p, q netip.Prefix) bool { return p.Bits() <= q.Bits() && p.Contains(q.Addr()) }
	return a.Interface == b.Interface && in(a.Source, b.Source) &&
		(!a.Destination.IsValid() || b.Destination.IsValid() && in(a.Destination, b.Destination)) &&
		(a.Protocol == parry.ProtoAny || a.Protocol == b.Protocol ||
			a.Protocol == parry.ProtoTCPUDP && (b.Protocol == parry.ProtoTCP || b.Protocol == parry.ProtoUDP)) &&
		(a.Port == 0 || a.Port == b.Port)
}

func manyBlocks(n int) []standing {
	out := make([]standing, n)
	for i := range out {
		m := parry.Match{Source: netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 7}), 32)}
		if i%10 == 0 { // some of every kind
			m.Destination, m.Protocol, m.Port = pfx(fmt.Sprintf("198.51.100.%d", i/10%50)), parry.ProtoTCP, 22
		}
		if i%1000 == 1 {
			m.Source = netip.PrefixFrom(m.Source.Addr(), 24).Masked()
		}
		out[i] = block(i, m)
	}
	return out
}

func BenchmarkRender_100000(b *testing.B) {
	blocks := manyBlocks(100_000)
	r := testRenderer()
	b.ReportAllocs()
	for b.Loop() {
		out := r.render(1, blocks)
		_ = out.file()
	}
}

// What a run costs beside Ansible when one block of 100,000 is new: the view is not read again, the rendering is.
func BenchmarkOneChange_100000Standing(b *testing.B) {
	v := &view{blocks: map[parry.BlockID]standing{}, touched: map[parry.Selector]parry.Revision{}}
	fleet := &parry.Fleet{Default: parry.SelectAll, Firewalls: []parry.Firewall{{Name: "fw-a", Interface: "wan"}}}
	for _, s := range manyBlocks(100_000) {
		s.Selector = parry.SelectDefault
		v.blocks[s.id] = s
	}
	r := testRenderer()
	b.ReportAllocs()
	for b.Loop() {
		blocks, rev := v.in(newScope(fleet, &fleet.Firewalls[0]))
		out := r.render(rev, blocks)
		_, _, _ = out.file(), keysOfFile(out.file()), out.sumWithout(map[int]bool{5: true})
	}
}
