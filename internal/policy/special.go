package policy

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/parry/parry/internal/parry"
)

// special are the ranges that no configuration can open: dropping them is never what was meant, and a firewall may do worse than nothing
// with them. Private ranges are not among them; the default configuration exempts those.
var special = []parry.Exemption{
	builtIn("0.0.0.0/8", "this network (RFC 1122)"),
	builtIn("127.0.0.0/8", "loopback (RFC 1122)"),
	builtIn("169.254.0.0/16", "link-local (RFC 3927)"),
	builtIn("224.0.0.0/4", "multicast (RFC 5771)"),
	builtIn("240.0.0.0/4", "reserved and broadcast (RFC 1112, RFC 919)"),
	builtIn("::/128", "the unspecified address (RFC 4291)"),
	builtIn("::1/128", "loopback (RFC 4291)"),
	builtIn("::ffff:0:0/96", "mapped IPv4 (RFC 4291)"),
	builtIn("64:ff9b:1::/48", "local NAT64, whose IPv4 address cannot be read off (RFC 8215)"),
	builtIn("fe80::/10", "link-local (RFC 4291)"),
	builtIn("ff00::/8", "multicast (RFC 4291)"),
}

const specialID = "special:"

func builtIn(prefix, why string) parry.Exemption {
	return parry.Exemption{
		ID:     parry.ExemptionID(specialID + prefix),
		Prefix: netip.MustParsePrefix(prefix), Reason: "special range: " + why, Source: parry.ExemptFound,
	}
}

var (
	compatible = netip.MustParsePrefix("::/96") // RFC 4291, deprecated
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	teredo     = netip.MustParsePrefix("2001::/32")
)

// embedded lists the IPv4 prefixes that an IPv6 prefix reaches through a transition mechanism: nothing for most. A prefix that contains
// the mechanism's whole range reaches all of IPv4. p is masked.
func embedded(p netip.Prefix) []netip.Prefix {
	if p.Addr().Is4() {
		return nil
	}
	var out []netip.Prefix
	reach := func(by netip.Prefix, at int, flip uint32) {
		if !p.Overlaps(by) {
			return
		}
		a := p.Addr().As16()
		v := binary.BigEndian.Uint32(a[at/8:]) ^ flip
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], v)
		out = append(out, netip.PrefixFrom(netip.AddrFrom4(b), min(max(p.Bits()-at, 0), 32)).Masked())
	}
	reach(compatible, 96, 0)
	reach(nat64, 96, 0)
	reach(sixToFour, 16, 0)
	reach(teredo, 32, 0)           // the server (RFC 4380)
	reach(teredo, 96, 0xffff_ffff) // the client, inverted
	return out
}

// IsSpecial tells whether an exemption that was found is a special range.
func IsSpecial(x parry.Exemption) bool { return strings.HasPrefix(string(x.ID), specialID) }
