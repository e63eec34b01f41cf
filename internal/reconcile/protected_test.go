package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/nat"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
)

// bits is a set of addresses: those that agree with value wherever mask has a 1. A prefix is one, and so is what reaches a prefix through a
// transition mechanism, even where the bits that count stand apart, as Teredo's do. Two sets meet when they agree wherever both care: that is
// the whole oracle, and it has nothing in common with what package policy does.
type bits struct {
	v4          bool
	value, mask [16]byte
}

func (b bits) meets(o bits) bool {
	if b.v4 != o.v4 {
		return false
	}
	for i := range b.value {
		if (b.value[i]^o.value[i])&b.mask[i]&o.mask[i] != 0 {
			return false
		}
	}
	return true
}

// fix makes the set agree with the first n bits of data from bit at on.
func (b bits) fix(at, n int, data []byte) bits {
	for i := range n {
		bit := byte(0x80) >> ((at + i) % 8)
		b.mask[(at+i)/8] |= bit
		b.value[(at+i)/8] &^= bit
		if data[i/8]&(0x80>>(i%8)) != 0 {
			b.value[(at+i)/8] |= bit
		}
	}
	return b
}

func bitsOf(p netip.Prefix) bits {
	return bits{v4: p.Addr().Is4()}.fix(0, p.Bits(), p.Addr().AsSlice())
}

// mechanisms are how IPv6 carries an IPv4 address: the range, and from which bit on, inverted or not.
var mechanisms = []struct {
	name   string
	within netip.Prefix
	at     int
	invert bool
}{
	{"mapped", pfx("::ffff:0:0/96"), 96, false}, {"compatible", pfx("::/96"), 96, false}, {"NAT64", pfx("64:ff9b::/96"), 96, false},
	{"6to4", pfx("2002::/16"), 16, false}, {"Teredo's server", pfx("2001::/32"), 32, false}, {"Teredo's client", pfx("2001::/32"), 96, true},
}

// through is the IPv6 addresses that reach an IPv4 prefix by a mechanism.
func through(mechanism int, p netip.Prefix) bits {
	m := mechanisms[mechanism]
	data := p.Addr().AsSlice()
	if m.invert {
		for i := range data {
			data[i] = ^data[i]
		}
	}
	return bitsOf(m.within).fix(m.at, p.Bits(), data)
}

// neverBlocked is what no configuration can open (RFC 1122, 3927, 5771, 1112, 4291, 8215).
var neverBlocked = func() (out []bits) {
	for _, s := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "::", "::1", "::ffff:0:0/96", "64:ff9b:1::/48",
		"fe80::/10", "ff00::/8"} {
		out = append(out, reaches(pfx(s))...)
	}
	return out
}()

func reaches(p netip.Prefix) []bits {
	out := []bits{bitsOf(p)}
	if p.Addr().Is4() {
		for i := range mechanisms {
			out = append(out, through(i, p))
		}
	}
	return out
}

func protects(set []bits, p netip.Prefix) bool { return slices.ContainsFunc(set, bitsOf(p).meets) }

// genPrefix draws a prefix in which much of the address is random.
func genPrefix(v6 bool) *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		word := rapid.Uint64().Draw(t, "word")
		if !v6 {
			a := netip.AddrFrom4([4]byte{byte(word), byte(word >> 8), byte(word >> 16), byte(word >> 24)})
			return netip.PrefixFrom(a, rapid.IntRange(8, 32).Draw(t, "bits")).Masked()
		}
		a := [16]byte{0x20, 1, 0xd, 0xb8}
		if word&1 != 0 {
			a = [16]byte{0x24, byte(word >> 8)}
		}
		for i := range 8 {
			a[4+i] = byte(word >> (8 * i))
		}
		return netip.PrefixFrom(netip.AddrFrom16(a), rapid.IntRange(16, 128).Draw(t, "bits")).Masked()
	})
}

// genNear draws a request: something unrelated, or near an exemption: it, wider, narrower, its neighbour, or through a mechanism.
func genNear(all []netip.Prefix) *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		if len(all) == 0 || rapid.IntRange(0, 3).Draw(t, "near?") == 0 {
			return genPrefix(rapid.Bool().Draw(t, "v6")).Draw(t, "unrelated")
		}
		x := rapid.SampledFrom(all).Draw(t, "exemption")
		a := x.Addr().AsSlice()
		if n := rapid.IntRange(0, 8*len(a)-1).Draw(t, "flip"); rapid.Bool().Draw(t, "flip?") {
			a[n/8] ^= 0x80 >> (n % 8) // beyond its length it is within, before that a neighbour
		}
		addr, _ := netip.AddrFromSlice(a)
		least, most := 16, addr.BitLen()
		if addr.Is4() {
			least = 8
			if k := rapid.IntRange(-3, len(mechanisms)-1).Draw(t, "mechanism"); k >= 0 {
				set := through(k, netip.PrefixFrom(addr, 32))
				word := rapid.Uint64().Draw(t, "rest") // what the mechanism leaves open
				for i := range set.value {
					set.value[i] |= byte(word>>(8*(i%8))) &^ set.mask[i]
				}
				addr, least, most = netip.AddrFrom16(set.value), 16, 128
				if k == 0 {
					least = 96 + 8 // wider mapped ones are no IPv4 prefix
				}
			}
		}
		n := most
		if rapid.Bool().Draw(t, "prefix?") {
			n = rapid.IntRange(least, most).Draw(t, "bits")
		}
		return netip.PrefixFrom(addr, n).Masked()
	})
}

// shelf is as much of a store as rendering needs: blocks, and their end by exemptions that overlap them as they are written.
type shelf struct {
	Store
	rev    parry.Revision
	blocks []parry.Block
}

func (s *shelf) Changes(_ context.Context, since parry.Revision) (out parry.Changes, err error) {
	out.Revision = s.rev
	for _, b := range s.blocks {
		if changed(&b) > since {
			out.Blocks = append(out.Blocks, b)
		}
	}
	return out, nil
}

func (s *shelf) EndExempted(_ context.Context, xs []parry.Exemption) (ended []parry.BlockID, err error) {
	s.rev++
	for i := range s.blocks {
		b := &s.blocks[i]
		if b.Live() && slices.ContainsFunc(xs, func(x parry.Exemption) bool { return x.Prefix.Overlaps(b.Source) }) {
			b.EndRev = s.rev
			ended = append(ended, b.ID)
		}
	}
	return ended, nil
}

type noRunner struct{}

func (noRunner) Run(context.Context, ansible.Spec) (*ansible.Outcome, error) {
	return nil, errors.New("nothing runs here")
}
func (noRunner) LockLane(string) (*os.File, error) { return nil, errors.New("nothing runs here") }

// TestProtected_isNeverRendered holds 100,000 requests against random exemptions. At admission what reaches an exempt address is refused, and
// nothing else is. Then exemptions come that were not there: what they protect is not rendered, and all other blocks are, whatever the port
// forwards and the wider blocks beside them.
func TestProtected_isNeverRendered(t *testing.T) {
	t.Parallel()
	const requests = 1000 // of each of rapid's 100 checks
	var asked, refused, ended, rendered int
	now := time.Date(2026, 11, 28, 7, 0, 0, 0, time.UTC)
	fleet := &parry.Fleet{Firewalls: []parry.Firewall{{Name: "fw-a", Interface: "wan"}}, Default: parry.SelectAll}
	admin := &parry.Principal{Token: parry.Token{Name: "admin", Role: parry.RoleAdmin}}
	manifest := testManifest()
	manifest.AfterNAT = true

	rapid.Check(t, func(t *rapid.T) {
		p, err := policy.New(policy.Limits{MinPrefixV4: 8, MinPrefixV6: 16})
		if err != nil {
			t.Fatal(err)
		}
		set := slices.Clone(neverBlocked)
		var exempt, standing []netip.Prefix // as written, and those of them that stand
		bring := func(source parry.ExemptionSource, what string) {
			var all []parry.Exemption
			for i, x := range rapid.SliceOfN(genPrefixes(), 0, 5).Draw(t, what) {
				e := parry.Exemption{ID: parry.ExemptionID(fmt.Sprint(what, i)), Prefix: x, Reason: what}
				exempt = append(exempt, x)
				if rapid.IntRange(0, 5).Draw(t, "expired?") == 0 {
					e.ExpiresAt = now
				} else {
					set, standing = append(set, reaches(x)...), append(standing, x)
				}
				all = append(all, e)
			}
			p.Replace(source, all)
		}
		bring(parry.ExemptConfig, "first ")
		later := append(slices.Clone(exempt), rapid.SliceOfN(genPrefixes(), 0, 3).Draw(t, "to come")...) // requests are near these, too

		s := &shelf{rev: 1}
		for i, source := range rapid.SliceOfN(genNear(later), requests, requests).Draw(t, "requests") {
			asked++
			_, err := p.Admit(admin, fleet, policy.Ask{Source: source, Selector: parry.SelectDefault}, now)
			if a := source.Addr(); a.Is4In6() && source.Bits() >= 96 { // another way to write an IPv4 prefix
				source = netip.PrefixFrom(a.Unmap(), source.Bits()-96)
			}
			if protects(set, source) != (err != nil) {
				t.Fatalf("%s: protected %v, admission says %v", source, err == nil, err)
			}
			if err != nil {
				if refused++; parry.KindOf(err) != parry.KindRefused || !strings.Contains(err.Error(), "is never blocked: exemption ") {
					t.Fatalf("%s was refused without a reason: %v", source, err)
				}
				continue
			}
			s.rev++
			b := parry.Block{ID: parry.BlockID(fmt.Sprintf("b-%06d", i)), Rev: s.rev, CreatedAt: now}
			b.Source, b.Selector = source, parry.SelectDefault
			if i%3 == 0 {
				b.Protocol, b.Port = parry.ProtoTCP, uint16(1+i%4)
				b.Destination = pfx("198.51.100.1")
				if source.Addr().Is6() {
					b.Destination = pfx("2001:db8::1")
				}
			}
			s.blocks = append(s.blocks, b)
		}

		// Now others are exempt: those that the requests were near, and more.
		bringLater := later[len(exempt):]
		var all []parry.Exemption
		for i, x := range bringLater {
			set, standing = append(set, reaches(x)...), append(standing, x)
			all = append(all, parry.Exemption{ID: parry.ExemptionID(fmt.Sprint("later ", i)), Prefix: x})
		}
		p.Replace(parry.ExemptFound, all)
		bring(parry.ExemptAPI, "api ")

		r, err := New(Options{
			Store: s, Runner: noRunner{}, Library: &world{}, Controller: controller, Fleet: func() *parry.Fleet { return fleet },
			Host:   func(string) ansible.Host { return ansible.Host{} },
			Exempt: func(q netip.Prefix) (parry.Exemption, bool) { return p.Overlapping(q, now) },
		})
		if err != nil {
			t.Fatal(err)
		}
		forwards := []parry.PortForward{portForward("198.51.100.1", parry.ProtoTCP, 1, "10.0.0.5", 8443), portForward("198.51.100.1", parry.ProtoTCP, 2, "10.0.0.5", 8443),
			portForward("2001:db8::1", parry.ProtoTCP, 3, "2001:db8:1::5", 8443)}
		rr := &renderer{firewall: &fleet.Firewalls[0], manifest: manifest, nat: nat.New(nil, forwards)}
		l := newLane(r, "fw-a")
		out, err := l.render(context.Background(), rr, newScope(fleet, &fleet.Firewalls[0]))
		if err != nil {
			t.Fatal(err)
		}
		var entries []parry.Entry
		for i := range out.lines {
			m, ok := parry.ParseKey(out.lines[i].key)
			if !ok || protects(set, m.Source) {
				t.Fatalf("rendered: %s", out.lines[i].key)
			}
			entries = append(entries, parry.Entry{Match: m})
		}
		cover := newCoverage(entries, nil)
		for i := range s.blocks {
			b := &s.blocks[i]
			if protects(set, b.Source) {
				if ended++; b.Live() && out.rejects[b.ID] != rejectExempt {
					t.Fatalf("%s is exempt now, and neither ended nor rejected: %q", b.Source, out.rejects[b.ID])
				}
				continue
			}
			rendered++
			all, code := rr.resolve(nil, b.Match)
			if !b.Live() || code != "" || out.rejects[b.ID] != "" || !slices.ContainsFunc(all, cover.covers) {
				t.Fatalf("%s is harmless, and gone: live %v, %s %s", b.Source, b.Live(), code, out.rejects[b.ID])
			}
		}
		fileTells(t, p.File(now), standing)
	})
	t.Logf("%d asked for, %d refused, %d ended by a later exemption, %d rendered", asked, refused, ended, rendered)
	if asked < 100_000 || refused < asked/10 || ended < asked/100 || rendered < asked/10 {
		t.Errorf("too few of a kind: %d asked for, %d refused, %d ended by a later exemption, %d rendered", asked, refused, ended, rendered)
	}
}

func genPrefixes() *rapid.Generator[netip.Prefix] {
	return rapid.OneOf(genPrefix(false), genPrefix(true))
}

// fileTells fails when the exempt file lacks a standing exemption, or has anything else.
func fileTells(t *rapid.T, f parry.ExemptFile, standing []netip.Prefix) {
	var lines []netip.Prefix
	for line := range strings.Lines(string(f.Text)) {
		p, err := parry.ParsePrefix(strings.TrimSuffix(line, "\n"))
		if err != nil || !slices.Contains(standing, p) {
			t.Fatalf("the exempt file has %q, %v", line, err)
		}
		lines = append(lines, p)
	}
	for _, x := range standing {
		n := 0
		for _, p := range lines {
			if p.Overlaps(x) && p.Bits() <= x.Bits() {
				n++
			}
		}
		if n != 1 {
			t.Fatalf("%s stands in the exempt file %d times", x, n)
		}
	}
}
