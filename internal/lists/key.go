package lists

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"

	"github.com/parry/parry/internal/parry"
)

// The widest prefixes that a list takes: wider ones would hold nearly everything, and are more likely a slip. fc00::/7 is one.
const (
	minBits4 = 8
	minBits6 = 7
)

const maxUser = 256 // bytes

// Canonical gives the one form of a key under which a list of the type holds it; two spellings of the same thing are the same key. Its errors say
// what to write instead.
//
//   - ip: an address without zone, mapped IPv4 unmapped: "203.0.113.7", "2001:db8::7". A prefix of a single address is that address.
//   - cidr: a prefix, host bits masked away, or an address: "203.0.113.0/24".
//   - user: blanks around it cut off, Unicode's NFC, lower case (Windows and mail tell no cases apart, and people write either); at most 256 bytes, no
//     control characters. DOMAIN\anna, anna@example.net and anna are three keys.
//   - domain: lower case, internationalised names as ASCII (UTS 46), without trailing dot. No scheme, port, path, wildcard or address.
//   - asn: "AS64500", written as such or as the number.
func Canonical(t parry.ListType, s string) (string, error) {
	switch t {
	case parry.ListIP, parry.ListCIDR:
		p, err := network(t, s)
		if err != nil {
			return "", err
		}
		return parry.FormatPrefix(p), nil
	case parry.ListUser:
		return user(s)
	case parry.ListDomain:
		return domain(s)
	case parry.ListASN:
		return asn(s)
	}
	return "", fmt.Errorf("there is no type %q", t)
}

// network reads a key of a list of addresses or prefixes.
func network(t parry.ListType, s string) (netip.Prefix, error) {
	host, _, isPrefix := strings.Cut(s, "/")
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s is no IP address: write one such as 203.0.113.7 or 2001:db8::7", quote(s))
	}
	if a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%s has a zone: write the address without %%%s", quote(s), a.Zone())
	}
	p := netip.PrefixFrom(a, a.BitLen())
	if isPrefix {
		if p, err = netip.ParsePrefix(s); err != nil {
			return p, fmt.Errorf("%s is no prefix: write one such as 203.0.113.0/24 or 2001:db8::/32", quote(s))
		}
	}
	if a.Is4In6() {
		if p.Bits() < 96 {
			return p, fmt.Errorf("%s is wider than the mapped IPv4 range: write an IPv4 prefix", quote(s))
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	p = p.Masked()
	least := minBits6
	if p.Addr().Is4() {
		least = minBits4
	}
	switch {
	case t == parry.ListIP && !p.IsSingleIP():
		return p, fmt.Errorf("%s is a prefix, and this list takes single addresses: use a list of the type cidr", p)
	case p.Bits() < least:
		return p, fmt.Errorf("%s is wider than /%d, the widest prefix that a list takes", p, least)
	}
	return p, nil
}

func user(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", errors.New("the name is not valid UTF-8")
	}
	s = norm.NFC.String(strings.ToLower(norm.NFC.String(strings.TrimSpace(s))))
	switch {
	case s == "":
		return "", errors.New("the name is empty")
	case len(s) > maxUser:
		return "", fmt.Errorf("the name is longer than %d bytes", maxUser)
	case strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co)
	}):
		return "", fmt.Errorf("%s has control or formatting characters: write the name alone", quote(s))
	}
	return s, nil
}

// names maps as browsers do (UTS 46), and checks lengths; which characters may stand is [domain]'s to say, since names with _ are looked up too.
var names = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(), idna.StrictDomainName(false), idna.VerifyDNSLength(true))

func domain(s string) (string, error) {
	bad := func(mend string) (string, error) {
		return "", fmt.Errorf("%s is no domain name: %s", quote(s), mend)
	}
	name := strings.TrimSuffix(strings.TrimSpace(s), ".")
	switch {
	case !utf8.ValidString(s):
		return bad("it is not valid UTF-8")
	case strings.Contains(s, "://"):
		return bad("write the name alone, without scheme and path, such as login.example.net")
	case strings.HasPrefix(name, "*."):
		return bad("write it without the *; the list's setting subdomains makes it stand for every name below it too")
	case isAddr(strings.Trim(name, "[]")):
		return bad("it is an address, which goes on a list of the type ip")
	}
	out, err := names.ToASCII(name)
	if err != nil {
		return bad("write one such as login.example.net")
	}
	if again, err := names.ToASCII(out); err != nil || again != out || isAddr(out) { // an xn-- label that is none, digits of another script
		return bad("write one such as login.example.net")
	}
	for _, label := range strings.Split(out, ".") {
		ok := label != "" && label[0] != '-' && label[len(label)-1] != '-'
		for i := range len(label) {
			c := label[i]
			ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_')
		}
		if !ok {
			return bad("labels are letters, digits, - and _, such as login.example.net")
		}
	}
	return out, nil
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func asn(s string) (string, error) {
	digits := s
	if len(s) > 2 && strings.EqualFold(s[:2], "AS") {
		digits = s[2:]
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || n == 0 || digits[0] == '+' {
		return "", fmt.Errorf("%s is no AS number: write AS64500 or 64500", quote(s))
	}
	return "AS" + strconv.FormatUint(n, 10), nil
}

func quote(s string) string {
	if len(s) > 64 {
		s = strings.ToValidUTF8(s[:64], "") + "…"
	}
	return strconv.Quote(s)
}
