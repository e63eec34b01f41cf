package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/parry/parry/internal/parry"
)

// NAT is what public addresses mean behind a firewall that filters after port forwarding.
type NAT struct {
	IgnoreFirewall bool      `yaml:"ignore_firewall"` // the port forwards that the firewall itself tells do not count
	Forwards       []Forward `yaml:"forwards"`
}

// Forward is one of them. Without a port it is every port, without a protocol, too, everything (1:1 NAT).
type Forward struct {
	Destination Prefix `yaml:"destination"` // a single address
	Protocol    string `yaml:"protocol"`
	Port        string `yaml:"port"`    // 443, or 8000-8010
	To          Prefix `yaml:"to"`      // a single address
	ToPort      int    `yaml:"to_port"` // of the (first) port; 0: the same
}

const maxForwards = 1024

// ports reads Port; zeros without one.
func (f *Forward) ports() (from, to uint16, err error) {
	if f.Port == "" {
		return 0, 0, nil
	}
	first, last, isRange := strings.Cut(f.Port, "-")
	if !isRange {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || a == 0 || b < a {
		return 0, 0, fmt.Errorf("%q is no port; write 443 or 8000-8010", f.Port)
	}
	return uint16(a), uint16(b), nil
}

// noun makes the port forward of a valid one.
func (f *Forward) noun() parry.PortForward {
	from, to, _ := f.ports()
	out := parry.PortForward{
		Destination: f.Destination.Addr(), Protocol: parry.Protocol(f.Protocol), Port: from, PortEnd: to, To: f.To.Addr(), ToPort: uint16(f.ToPort),
	}
	if out.Protocol == "any" {
		out.Protocol = parry.ProtoAny
	}
	if out.ToPort == 0 {
		out.ToPort = from
	}
	return out
}

func (n *NAT) noun() parry.NAT {
	out := parry.NAT{IgnoreItsOwn: n.IgnoreFirewall}
	for i := range n.Forwards {
		out.Forwards = append(out.Forwards, n.Forwards[i].noun())
	}
	return out
}

func (v *validator) nat(key string, n *NAT) {
	v.count(key+".forwards", int64(len(n.Forwards)), 0, maxForwards)
	for i := range n.Forwards {
		f, key := &n.Forwards[i], fmt.Sprintf("%s.forwards[%d]", key, i)
		for _, a := range []struct {
			key  string
			addr netip.Prefix
		}{{key + ".destination", f.Destination.Prefix}, {key + ".to", f.To.Prefix}} {
			v.require(a.addr.IsValid() && a.addr.IsSingleIP() && !a.addr.Addr().IsUnspecified() && !a.addr.Addr().IsMulticast(), a.key,
				"write one address, such as 198.51.100.10")
		}
		v.require(!f.Destination.IsValid() || !f.To.IsValid() || f.Destination.Addr().Is4() == f.To.Addr().Is4(), key+".to",
			"%s is not of the family of %s; write two IPv4 or two IPv6 addresses", f.To, f.Destination)
		p := f.noun()
		v.require(p.Protocol == parry.ProtoAny || slices.Contains(parry.Protocols, p.Protocol), key+".protocol", "%q is not known; write any, tcp, udp, tcp/udp, icmp, …", f.Protocol)
		from, to, err := f.ports()
		switch {
		case err != nil:
			v.add(key+".port", "%s", err)
		case from != 0 && !p.Protocol.HasPorts():
			v.add(key+".port", "a port needs a protocol that has some; write protocol: tcp, udp, tcp/udp or sctp")
		case f.ToPort != 0 && from == 0:
			v.add(key+".to_port", "there is no port that it is of; write port:, too")
		case f.ToPort < 0 || f.ToPort+int(to-from) > 65535:
			v.add(key+".to_port", "%d is out of bounds; write 1 to %d", f.ToPort, 65535-int(to-from))
		}
	}
}
