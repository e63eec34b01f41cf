package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/parry/parry/internal/parry"
)

func pfx(s string) netip.Prefix {
	if strings.Contains(s, "/") {
		return netip.MustParsePrefix(s)
	}
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}

// forward reads "198.51.100.10 tcp 8000-8010 10.0.0.5 80".
func forward(s string) (f parry.PortForward) {
	w := strings.Fields(s)
	f.Destination, f.To = netip.MustParseAddr(w[0]), netip.MustParseAddr(w[3])
	if w[1] != "-" {
		f.Protocol = parry.Protocol(w[1])
	}
	port := func(s string) uint16 {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			panic(err)
		}
		return uint16(n)
	}
	if w[2] != "-" {
		from, to, isRange := strings.Cut(w[2], "-")
		f.Port, f.PortEnd = port(from), port(from)
		if isRange {
			f.PortEnd = port(to)
		}
		f.ToPort = f.Port
	}
	if len(w) > 4 {
		f.ToPort = port(w[4])
	}
	return f
}

func forwards(all ...string) (out []parry.PortForward) {
	for _, s := range all {
		out = append(out, forward(s))
	}
	return out
}

// match reads "198.51.100.10 tcp 443": what a block of 203.0.113.7 (or 2001:db8:bad::7) is for.
func match(s string) parry.Match {
	w := strings.Fields(s)
	m := parry.Match{Source: pfx("203.0.113.7"), Interface: "wan"}
	if strings.Contains(w[0], ":") {
		m.Source = pfx("2001:db8:bad::7")
	}
	if w[0] != "-" {
		m.Destination = pfx(w[0])
	}
	if w[1] != "-" {
		m.Protocol = parry.Protocol(w[1])
	}
	if w[2] != "-" {
		n, _ := strconv.Atoi(w[2])
		m.Port = uint16(n)
	}
	return m
}

func text(m parry.Match) string {
	w := strings.Fields(string(parry.Entry{Match: m}.AppendKey(nil)))
	return strings.Join(w[1:4], " ")
}

func TestTranslate(t *testing.T) {
	t.Parallel()
	t1 := New(nil, forwards(
		"198.51.100.10 tcp 443 10.0.0.5 8443", "198.51.100.10 udp 443 10.0.0.6 443", "198.51.100.10 tcp/udp 53 10.0.0.53", "198.51.100.10 tcp 8000-8010 10.0.0.8 80",
		"198.51.100.10 tcp 443 10.0.0.99 9999", // shadowed for a named port
		"198.51.100.11 - - 10.0.0.11",          // 1:1
		"198.51.100.12 tcp 22 10.0.0.12", "198.51.100.12 - - 10.0.0.13",
		"198.51.100.13 icmp - 10.0.0.14",
		"2001:db8::10 tcp 443 2001:db8:1::5 8443",
	))
	for in, want := range map[string]string{
		"198.51.100.10 tcp 443":      "10.0.0.5 tcp 8443",
		"198.51.100.10 udp 443":      "10.0.0.6 udp 443",
		"198.51.100.10 tcp/udp 443":  "10.0.0.5 tcp 8443, 10.0.0.6 udp 443",
		"198.51.100.10 tcp/udp 53":   "10.0.0.53 tcp/udp 53",
		"198.51.100.10 udp 53":       "10.0.0.53 udp 53",
		"198.51.100.10 tcp 8003":     "10.0.0.8 tcp 83",
		"198.51.100.10 tcp 8010":     "10.0.0.8 tcp 90",
		"198.51.100.10 tcp 8011":     "198.51.100.10 tcp 8011", // nothing forwards it
		"198.51.100.10 sctp 443":     "198.51.100.10 sctp 443",
		"198.51.100.10 icmp -":       "198.51.100.10 icmp -",
		"198.51.100.10 - -":          "10.0.0.5 tcp 8443, 10.0.0.6 udp 443, 10.0.0.53 tcp/udp 53, 10.0.0.8 tcp -, 10.0.0.99 tcp 9999",
		"198.51.100.10 udp -":        "10.0.0.6 udp 443, 10.0.0.53 udp 53",
		"198.51.100.11 - -":          "10.0.0.11 - -",
		"198.51.100.11 tcp 443":      "10.0.0.11 tcp 443",
		"198.51.100.11 icmp -":       "10.0.0.11 icmp -",
		"198.51.100.12 tcp 22":       "10.0.0.12 tcp 22",
		"198.51.100.12 tcp 23":       "10.0.0.13 tcp 23",
		"198.51.100.12 tcp/udp 22":   "10.0.0.12 tcp 22, 10.0.0.13 udp 22",
		"198.51.100.13 icmp -":       "10.0.0.14 icmp -",
		"198.51.100.13 - -":          "10.0.0.14 icmp -",
		"198.51.100.20 tcp 443":      "198.51.100.20 tcp 443",
		"10.0.0.5 tcp 8443":          "10.0.0.5 tcp 8443", // the inside address is what it is
		"198.51.100.12/31 tcp 22":    "198.51.100.12/31 tcp 22, 10.0.0.12 tcp 22",
		"198.51.100.12/31 - -":       "198.51.100.12/31 - -, 10.0.0.12 tcp 22, 10.0.0.13 - -, 10.0.0.14 icmp -",
		"- tcp 443":                  "- tcp 443, 10.0.0.5 tcp 8443", // 1:1 keeps the port, which the first match has already
		"- tcp 8001":                 "- tcp 8001, 10.0.0.8 tcp 81",
		"- tcp -":                    "- tcp -",
		"- - -":                      "- - -",
		"2001:db8::10 tcp 443":       "2001:db8:1::5 tcp 8443",
		"2001:db8::10 udp 443":       "2001:db8::10 udp 443",
		"2001:db8::/64 tcp 443":      "2001:db8::/64 tcp 443, 2001:db8:1::5 tcp 8443",
		"198.51.100.10/32 tcp 443":   "10.0.0.5 tcp 8443",
		"198.51.100.0/24 tcp/udp 53": "198.51.100.0/24 tcp/udp 53, 10.0.0.53 tcp/udp 53, 10.0.0.11 tcp/udp 53, 10.0.0.13 tcp/udp 53",
	} {
		all, err := t1.Translate(match(in))
		var got []string
		for _, m := range all {
			got = append(got, text(m))
		}
		if s := strings.Join(got, ", "); s != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", in, s, err, want)
		}
	}
}

func TestTranslate_theConfigurationsWordOnAnAddressIsAll(t *testing.T) {
	t.Parallel()
	table := New(forwards("198.51.100.10 tcp 443 10.0.0.5"), forwards("198.51.100.10 tcp 443 10.9.9.9", "198.51.100.10 tcp 22 10.9.9.9", "198.51.100.11 tcp 22 10.0.0.6"))
	for in, want := range map[string]string{
		"198.51.100.10 tcp 443": "10.0.0.5 tcp 443", "198.51.100.10 tcp 22": "198.51.100.10 tcp 22", "198.51.100.11 tcp 22": "10.0.0.6 tcp 22",
	} {
		if got, err := table.Translate(match(in)); err != nil || len(got) != 1 || text(got[0]) != want {
			t.Errorf("%s: got %v, %v, want %s", in, got, err, want)
		}
	}
	if New(nil, nil) != nil || New(nil, []parry.PortForward{{Destination: netip.MustParseAddr("198.51.100.1"), To: netip.MustParseAddr("2001:db8::1")}}) != nil {
		t.Error("a table of nothing is none")
	}
	if got, err := (*Table)(nil).Translate(match("198.51.100.10 tcp 443")); err != nil || len(got) != 1 || text(got[0]) != "198.51.100.10 tcp 443" {
		t.Errorf("no table: got %v, %v", got, err)
	}
}

func TestTranslate_manyForwardsBecomeTheirInsideAddresses(t *testing.T) {
	t.Parallel()
	var ports, addresses []parry.PortForward
	for i := range Most + 1 {
		ports = append(ports, forward(fmt.Sprintf("198.51.100.10 tcp %d 10.0.0.%d", 1000+i, i%2)))
		addresses = append(addresses, forward(fmt.Sprintf("198.51.100.10 tcp %d 10.0.0.%d", 1000+i, i)))
	}
	got, err := New(nil, ports).Translate(match("198.51.100.10 - -"))
	if err != nil || len(got) != 2 || text(got[0]) != "10.0.0.0 - -" || text(got[1]) != "10.0.0.1 - -" {
		t.Errorf("got %v, %v", got, err)
	}
	table := New(nil, addresses)
	if _, err := table.Translate(match("198.51.100.10 - -")); err == nil || !strings.Contains(err.Error(), "name the destination or its port") {
		t.Errorf("more inside addresses than may be: %v", err)
	}
	if got, err := table.Translate(match("198.51.100.10 tcp 1016")); err != nil || len(got) != 1 {
		t.Errorf("one with a port is as good as ever: %v, %v", got, err)
	}
}

// Whatever a firewall tells: the source, the interface and the family stay, nothing but single addresses comes in, and what is named is met.
func TestTranslate_smugglesNothing(t *testing.T) {
	t.Parallel()
	addr := func(t *rapid.T, v6 bool, what string) netip.Addr {
		n := byte(rapid.IntRange(0, 5).Draw(t, what))
		if v6 {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: n})
		}
		return netip.AddrFrom4([4]byte{198, 51, 100, n})
	}
	protos := append([]parry.Protocol{parry.ProtoAny}, parry.Protocols...)
	gen := rapid.Custom(func(t *rapid.T) (f parry.PortForward) {
		v6 := rapid.Bool().Draw(t, "v6")
		f.Destination, f.To = addr(t, v6, "destination"), addr(t, v6 != (rapid.IntRange(0, 9).Draw(t, "mixed") == 0), "to")
		f.Protocol = rapid.SampledFrom(protos).Draw(t, "protocol")
		if f.Protocol.HasPorts() && rapid.Bool().Draw(t, "ports") {
			f.Port = uint16(rapid.IntRange(1, 6).Draw(t, "port"))
			f.PortEnd = f.Port + uint16(rapid.IntRange(0, 3).Draw(t, "more"))
			f.ToPort = uint16(rapid.IntRange(1, 65532).Draw(t, "to port"))
		}
		return f
	})
	rapid.Check(t, func(t *rapid.T) {
		table := New(rapid.SliceOfN(gen, 0, 3).Draw(t, "configured"), rapid.SliceOfN(gen, 0, 30).Draw(t, "told"))
		v6 := rapid.Bool().Draw(t, "v6")
		m := parry.Match{Source: pfx("203.0.113.0/24"), Interface: "wan", Protocol: rapid.SampledFrom(protos).Draw(t, "protocol")}
		if v6 {
			m.Source = pfx("2001:db8:bad::/48")
		}
		if m.Protocol.HasPorts() {
			m.Port = uint16(rapid.IntRange(0, 8).Draw(t, "port"))
		}
		if bits := rapid.IntRange(-1, 3).Draw(t, "destination"); bits >= 0 {
			a := addr(t, v6, "address")
			m.Destination, _ = a.Prefix(a.BitLen() - bits)
		}
		out, err := table.Translate(m)
		if len(out) == 0 || len(out) > Most || err != nil && !slices.Equal(out, []parry.Match{m}) {
			t.Fatalf("%v became %d matches, %v", m, len(out), err)
		}
		for i, to := range out {
			switch {
			case to == m:
			case to.Source != m.Source, to.Interface != m.Interface, to.Destination.Addr().Is4() != m.Source.Addr().Is4(), !to.Destination.IsSingleIP():
				t.Fatalf("%v became %v", m, to)
			case to.Port != 0 && !to.Protocol.HasPorts(), m.Protocol != parry.ProtoAny && to.Protocol == parry.ProtoAny, m.Port != 0 && to.Port == 0:
				t.Fatalf("%v became %v", m, to)
			}
			for j, other := range out {
				if i < j && to == other {
					t.Fatalf("%v became %v twice", m, to)
				}
			}
		}
	})
}
