// Package nat says what a block's destination becomes on a firewall that filters after port forwarding. It is pure.
//
// A SIEM outside names the public address, 198.51.100.10:443; pf's rules see 10.0.0.5:8443, where that was forwarded to, so that a rule
// for the public address matches nothing. A [Table] knows the forwards of one firewall, from the configuration or as the firewall tells
// them, and gives the matches that stand for a block there. The block itself keeps what was asked for; its source is never touched.
//
//   - A port that is forwarded becomes the inside address and port, once for each protocol.
//   - Without a port, each distinct forward of the address becomes one match: a range of ports becomes the whole inside address, and more
//     than [Most] forwards become their inside addresses, so that more is dropped than was asked for, from that source alone.
//   - A destination that is a prefix, or any with a port, stays, and the forwards that it reaches come beside it.
//   - A destination that nothing forwards stays.
package nat

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/parry/parry/internal/parry"
)

// Most is how many matches stand for one block; each may cost a rule.
const Most = 16

// Table is the forwards of one firewall. A nil Table forwards nothing. It is never changed.
type Table struct {
	forwards map[netip.Addr][]parry.PortForward // by destination; the first that matches counts
	order    []netip.Addr                       // of the destinations
}

// New makes a table of what the configuration says and of what the firewall tells; an address that the configuration names is taken from
// there alone. Forwards from one family to the other are passed over. It is nil when there is no forward.
func New(configured, told []parry.PortForward) *Table {
	t := &Table{forwards: map[netip.Addr][]parry.PortForward{}}
	add := func(f parry.PortForward) {
		if f.Destination.Is4() != f.To.Is4() || !f.To.IsValid() {
			return
		}
		if len(t.forwards[f.Destination]) == 0 {
			t.order = append(t.order, f.Destination)
		}
		t.forwards[f.Destination] = append(t.forwards[f.Destination], f)
	}
	named := map[netip.Addr]bool{}
	for _, f := range configured {
		named[f.Destination] = true
		add(f)
	}
	for _, f := range told {
		if !named[f.Destination] {
			add(f)
		}
	}
	if len(t.order) == 0 {
		return nil
	}
	return t
}

// Of makes a firewall's table: what the configuration says, and where its bundle filters after port forwarding what it tells, unless that is
// not to count.
func Of(n parry.NAT, told []parry.PortForward, after bool) *Table {
	if n.IgnoreItsOwn || !after {
		told = nil
	}
	return New(n.Forwards, told)
}

// Translate gives the matches that stand for m; m itself where nothing of it is forwarded. The error says that they would be too many.
func (t *Table) Translate(m parry.Match) ([]parry.Match, error) {
	own := []parry.Match{m}
	if t == nil || !m.Destination.IsValid() && m.Port == 0 {
		return own, nil
	}
	var out []parry.Match
	single := m.Destination.IsValid() && m.Destination.IsSingleIP()
	if single {
		out = translate(out, t.forwards[m.Destination.Addr()], m)
		if len(out) == 0 {
			return own, nil
		}
	} else {
		out = own
		for _, a := range t.order {
			if a.Is4() == m.Source.Addr().Is4() && (!m.Destination.IsValid() || m.Destination.Contains(a)) {
				out = translate(out, t.forwards[a], m)
			}
		}
	}
	if len(out) > Most && m.Port == 0 {
		out = hosts(out, m)
	}
	if len(out) > Most {
		return own, fmt.Errorf("it is forwarded to %d inside addresses and ports, and at most %d can stand for a block: name the destination or its port", len(out), Most)
	}
	return out, nil
}

// translate appends what the forwards of one address make of m, each once.
func translate(out []parry.Match, all []parry.PortForward, m parry.Match) []parry.Match {
	add := func(f *parry.PortForward, proto parry.Protocol, port uint16) {
		to := m
		to.Destination, to.Protocol, to.Port = netip.PrefixFrom(f.To, f.To.BitLen()), proto, port
		if !slices.ContainsFunc(out, func(have parry.Match) bool { return covers(have, to) }) {
			out = append(out, to)
		}
	}
	if m.Port == 0 {
		for i := range all {
			f := &all[i]
			proto, ok := common(f.Protocol, m.Protocol)
			switch {
			case !ok:
			case f.Port != 0 && f.Port == f.PortEnd:
				add(f, proto, f.ToPort)
			default:
				add(f, proto, 0)
			}
		}
		return out
	}
	first := func(proto parry.Protocol) (f *parry.PortForward, port uint16) {
		for i := range all {
			f := &all[i]
			if _, ok := common(f.Protocol, proto); ok && (f.Port == 0 || f.Port <= m.Port && m.Port <= f.PortEnd) {
				if port = m.Port; f.Port != 0 {
					port = f.ToPort + (m.Port - f.Port)
				}
				return f, port
			}
		}
		return nil, 0
	}
	if m.Protocol != parry.ProtoTCPUDP {
		if f, port := first(m.Protocol); f != nil {
			add(f, m.Protocol, port)
		}
		return out
	}
	tcp, tcpPort := first(parry.ProtoTCP)
	udp, udpPort := first(parry.ProtoUDP)
	if tcp != nil && udp != nil && tcp.To == udp.To && tcpPort == udpPort {
		add(tcp, parry.ProtoTCPUDP, tcpPort)
		return out
	}
	if tcp != nil {
		add(tcp, parry.ProtoTCP, tcpPort)
	}
	if udp != nil {
		add(udp, parry.ProtoUDP, udpPort)
	}
	return out
}

// common is the protocol that both a forward and a block mean.
func common(f, m parry.Protocol) (parry.Protocol, bool) {
	switch {
	case f == m, m == parry.ProtoAny:
		return f, true
	case f == parry.ProtoAny, f == parry.ProtoTCPUDP && (m == parry.ProtoTCP || m == parry.ProtoUDP):
		return m, true
	case m == parry.ProtoTCPUDP && (f == parry.ProtoTCP || f == parry.ProtoUDP):
		return f, true
	}
	return "", false
}

// covers tells whether a, of the same source and interface, drops all that b drops.
func covers(a, b parry.Match) bool {
	proto, ok := common(a.Protocol, b.Protocol)
	return ok && proto == b.Protocol && (a.Port == 0 || a.Port == b.Port) &&
		(!a.Destination.IsValid() || a.Destination.Bits() <= b.Destination.Bits() && a.Destination.Contains(b.Destination.Addr()))
}

// hosts widens matches that m became to their whole destinations.
func hosts(all []parry.Match, m parry.Match) (out []parry.Match) {
	for _, to := range all {
		to.Protocol, to.Port = m.Protocol, m.Port
		if !slices.Contains(out, to) {
			out = append(out, to)
		}
	}
	return out
}
