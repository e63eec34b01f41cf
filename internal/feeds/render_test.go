package feeds

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/parry/parry/internal/parry"
)

// small draws prefixes in two small corners of the address space, so that they meet each other often.
func small(t *rapid.T) []Entry {
	corners := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::ff00/120")}
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Entry {
		corner := rapid.SampledFrom(corners).Draw(t, "corner")
		bytes := corner.Addr().AsSlice()
		bytes[len(bytes)-1] = rapid.Byte().Draw(t, "host")
		a, _ := netip.AddrFromSlice(bytes)
		p, _ := a.Prefix(corner.Addr().BitLen() - rapid.IntRange(0, 8).Draw(t, "host bits"))
		return Entry{
			Prefix: p, Narrow: rapid.IntRange(0, 9).Draw(t, "narrow") == 0, Last: rapid.Int64Range(1, 1000).Draw(t, "last"), Count: 1,
			Expires: rapid.Int64Range(0, 5).Draw(t, "expires"),
		}
	}), 0, 60).Draw(t, "entries")
}

// covered lists every single address that the entries cover.
func covered(entries []Entry) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, e := range entries {
		for a := e.Prefix.Addr(); a.IsValid() && e.Prefix.Contains(a); a = a.Next() {
			out[a] = true
		}
	}
	return out
}

func TestAggregate_coversExactlyTheSameAddressesWithTheFewestPrefixes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := small(t)
		q, err := Query{Name: Blocks, Scope: ScopeAll, Aggregate: true}.normal(parry.ListCIDR)
		if err != nil {
			t.Fatal(err)
		}
		got := choose(snap(Blocks, parry.ListCIDR, slices.Clone(in)), q).entries
		if d := cmp.Diff(covered(in), covered(got), cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Fatalf("covers something else (-want +got):\n%s", d)
		}
		if !slices.IsSortedFunc(got, compare) {
			t.Fatalf("not sorted: %v", got)
		}
		// The fewest: a disjoint set of prefixes is minimal when no two of them make a wider one.
		for i := range got {
			for j := range got[:i] {
				a, b := got[i].Prefix, got[j].Prefix
				if a.Overlaps(b) || a.Bits() == b.Bits() && parent(a) == parent(b) {
					t.Fatalf("%s and %s are left", a, b)
				}
			}
		}
		// Each stands only as long as all of it is meant to: some member must reach every address until then.
		for _, e := range got {
			until := e.Expires
			if until == 0 {
				until = 6
			}
			var members []Entry
			for _, m := range in {
				if e.Prefix.Overlaps(m.Prefix) && (m.Expires == 0 || m.Expires >= until) {
					members = append(members, m)
				}
			}
			have := covered(members)
			for a := e.Prefix.Addr(); e.Prefix.Contains(a); a = a.Next() {
				if !have[a] {
					t.Fatalf("%s until %d: %s ends before", e.Prefix, e.Expires, a)
				}
			}
		}
	})
}

// read gives the prefix that a consumer of the format takes from a line; invalid for a line that it skips.
func read(t *rapid.T, f Format, line string) netip.Prefix {
	if strings.HasPrefix(line, "#") {
		return netip.Prefix{}
	}
	switch f {
	case IPRep:
		line, _, _ = strings.Cut(line, ",")
	case Geo, Map, CIDR:
		line, _, _ = strings.Cut(line, " ")
	case CDBWazuh, CDBOSSEC:
		line = strings.ReplaceAll(line[:strings.LastIndex(line, ":")], `"`, "")
		if octets := strings.TrimSuffix(line, "."); octets != line {
			n := strings.Count(octets, ".") + 1
			line = octets + strings.Repeat(".0", 4-n) + "/" + strconv.Itoa(8*n)
		}
	}
	if a, err := netip.ParseAddr(line); err == nil {
		return netip.PrefixFrom(a, a.BitLen())
	}
	p, err := netip.ParsePrefix(line)
	if err != nil || p != p.Masked() {
		t.Fatalf("%s: nobody reads %q", f, line)
	}
	return p
}

func TestCDB_tellsEachOfTwoIPv6Neighbours(t *testing.T) {
	t.Parallel()
	q, err := Query{Name: Blocks, Format: CDBWazuh, Scope: ScopeAll}.normal(parry.ListCIDR)
	if err != nil {
		t.Fatal(err)
	}
	var in []Entry
	for _, p := range []string{"198.18.0.0/32", "198.18.0.1/32", "2001:db8::/128", "2001:db8::1/128"} {
		in = append(in, Entry{Prefix: netip.MustParsePrefix(p)})
	}
	r, err := render(snap(Blocks, parry.ListCIDR, in), q, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := "198.18.0.0:blocks\n198.18.0.1:blocks\n\"2001:db8::\":blocks\n\"2001:db8::1\":blocks\n"; string(r.Body) != want {
		t.Errorf("got %q, want %q", r.Body, want)
	}
}

func TestFormats_tellExactlyTheAddressesThatTheyCanExpress(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := small(t)
		f := rapid.SampledFrom([]Format{Plain, CIDR, IPRep, Geo, Map, CDBWazuh, CDBOSSEC}).Draw(t, "format")
		q, err := Query{Name: Blocks, Format: f, Scope: ScopeAll, Aggregate: rapid.Bool().Draw(t, "aggregate")}.normal(parry.ListCIDR)
		if err != nil {
			t.Fatal(err)
		}
		r, err := render(snap(Blocks, parry.ListCIDR, slices.Clone(in)), q, nil)
		if err != nil {
			t.Fatal(err)
		}
		var told, can []Entry
		seen := map[string]bool{}
		for line := range strings.Lines(string(r.Body)) {
			if seen[line] {
				t.Fatalf("%q stands there twice", line)
			}
			seen[line] = true
			if p := read(t, f, strings.TrimSpace(line)); p.IsValid() {
				told = append(told, Entry{Prefix: p})
			}
		}
		for _, e := range in {
			if e.Prefix.Addr().Is4() || !q.Format.cdb() || f == CDBWazuh && e.Prefix.IsSingleIP() {
				can = append(can, e)
			}
		}
		if d := cmp.Diff(covered(can), covered(told), cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Fatalf("%s (-want +got):\n%s", f, d)
		}
		if r.LeftOut != len(in)-len(can) {
			t.Fatalf("%d left out, want %d", r.LeftOut, len(in)-len(can))
		}
	})
}

func TestChoose_eachKeyOnceOfItsScopeAndFamily(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := small(t)
		q := Query{
			Name: Blocks, Scope: rapid.SampledFrom([]Scope{ScopeWhole, ScopeAll}).Draw(t, "scope"), Family: rapid.SampledFrom([]int{0, 4, 6}).Draw(t, "family"),
			Limit: rapid.IntRange(0, 20).Draw(t, "limit"),
		}
		q, err := q.normal(parry.ListCIDR)
		if err != nil {
			t.Fatal(err)
		}
		last := map[netip.Prefix]int64{}
		for _, e := range in {
			if (q.Scope == ScopeAll || !e.Narrow) && (q.Family == 0 || (q.Family == 4) == e.Prefix.Addr().Is4()) {
				last[e.Prefix] = max(last[e.Prefix], e.Last)
			}
		}
		s := snap(Blocks, parry.ListCIDR, slices.Clone(in))
		before := slices.Clone(s.entries)
		got := choose(s, q)
		if !slices.Equal(before, s.entries) {
			t.Fatal("the snapshot was changed")
		}
		want := len(last)
		if q.Limit > 0 {
			want = min(want, q.Limit)
		}
		if got.total != len(last) || len(got.entries) != want || !slices.IsSortedFunc(got.entries, compare) {
			t.Fatalf("%d of %d entries, want %d of %d: %v", len(got.entries), got.total, want, len(last), got.entries)
		}
		oldest := int64(1 << 60)
		for _, e := range got.entries {
			if last[e.Prefix] != e.Last {
				t.Fatalf("%s was last seen at %d, want %d", e.Prefix, e.Last, last[e.Prefix])
			}
			oldest = min(oldest, e.Last)
			delete(last, e.Prefix)
		}
		for p, at := range last {
			if at > oldest {
				t.Fatalf("%s of %d was left out for one of %d", p, at, oldest)
			}
		}
	})
}
