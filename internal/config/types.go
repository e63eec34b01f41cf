package config

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Secret is text that shows itself to nobody who prints, logs or encodes it. [Secret.Reveal] gives it.
type Secret string

const redacted = "[redacted]"

// Reveal is the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String is "[redacted]", or empty when there is no secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format redacts for every verb of package fmt, %d and %#v too.
func (s Secret) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, s.String()) }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(s.String()) }
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }
func (s Secret) MarshalYAML() (any, error)    { return s.String(), nil }
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Duration is a time.Duration that also reads and writes days and weeks: "30d", "2w", "1d12h".
type Duration time.Duration

// D is the duration as package time has it.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String writes whole days as such and leaves out zero units: "30d", "1d12h", "90s" as "1m30s".
func (d Duration) String() string {
	v := time.Duration(d)
	if v < 0 {
		return "-" + Duration(-v).String()
	}
	var b strings.Builder
	if days := v / (24 * time.Hour); days > 0 {
		fmt.Fprintf(&b, "%dd", days)
		v -= days * 24 * time.Hour
	}
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "m"}} {
		if n := v / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			v -= n * u.unit
		}
	}
	if v > 0 || b.Len() == 0 {
		b.WriteString(v.String())
	}
	return b.String()
}

// ParseDuration reads what time.ParseDuration reads, with whole days (d) and weeks (w) before it.
func ParseDuration(s string) (time.Duration, error) {
	rest, sum := s, time.Duration(0)
	for {
		i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if i <= 0 || rest[i] != 'd' && rest[i] != 'w' {
			break
		}
		n, err := strconv.ParseInt(rest[:i], 10, 32)
		unit := 24 * time.Hour
		if rest[i] == 'w' {
			unit *= 7
		}
		if err != nil || time.Duration(n) > (1<<62)/unit {
			return 0, fmt.Errorf("%q is too long", s)
		}
		sum += time.Duration(n) * unit
		if rest = rest[i+1:]; rest == "" {
			return sum, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil {
		return 0, fmt.Errorf("%q is no duration; write 30s, 15m, 4h, 1d12h or 2w", s)
	}
	return sum + d, nil
}

func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := ParseDuration(n.Value)
	if err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	*d = Duration(v)
	return nil
}

func (d Duration) MarshalYAML() (any, error) { return d.String(), nil }

// Prefix is an address or prefix; it reads both, and refuses host bits, zones and mapped addresses.
type Prefix struct{ netip.Prefix }

func (p *Prefix) UnmarshalText(text []byte) (err error) {
	p.Prefix, err = parsePrefix(string(text))
	return err
}

func parsePrefix(s string) (netip.Prefix, error) {
	bad := func(mend string) (netip.Prefix, error) {
		return netip.Prefix{}, fmt.Errorf("%q is no address or prefix; %s", s, mend)
	}
	var p netip.Prefix
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return bad("leave the zone out")
		}
		p = netip.PrefixFrom(a, a.BitLen())
	} else if p, err = netip.ParsePrefix(s); err != nil {
		return bad("write 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32")
	}
	if p.Addr().Is4In6() {
		return bad("write the IPv4 address itself")
	}
	if p != p.Masked() {
		return bad("did you mean " + p.Masked().String() + "?")
	}
	return p, nil
}
