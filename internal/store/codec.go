package store

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/parry/parry/internal/parry"
)

// micros and fromMicros keep a time as Unix microseconds; the zero time is 0.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// round makes a time what a later read will give.
func round(t time.Time) time.Time { return fromMicros(micros(t)) }

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// formatKey writes a natural key: "source destination protocol port selector interface", "-" for any. The interface is last, because it alone
// may hold blanks.
func formatKey(k *parry.Key) string {
	b := make([]byte, 0, 64)
	for _, p := range []netip.Prefix{k.Source, k.Destination} {
		switch {
		case !p.IsValid():
			b = append(b, '-')
		case p.IsSingleIP():
			b = p.Addr().AppendTo(b)
		default:
			b = p.AppendTo(b)
		}
		b = append(b, ' ')
	}
	if k.Protocol == parry.ProtoAny {
		b = append(b, '-')
	}
	b = append(append(b, k.Protocol...), ' ')
	b = append(strconv.AppendUint(b, uint64(k.Port), 10), ' ')
	b = append(append(b, k.Selector...), ' ')
	return string(append(b, k.Interface...))
}

// parseKey reads what formatKey wrote.
func parseKey(s string) (k parry.Key, err error) {
	var f [5]string
	rest := s
	for i := range f {
		var ok bool
		if f[i], rest, ok = strings.Cut(rest, " "); !ok {
			return k, fmt.Errorf("stored key %q is malformed", s)
		}
	}
	if k.Source, err = parsePrefix(f[0]); err != nil {
		return k, err
	}
	if k.Destination, err = parsePrefix(f[1]); err != nil {
		return k, err
	}
	if f[2] != "-" {
		k.Protocol = parry.Protocol(f[2])
	}
	if f[3] != "0" {
		port, err := strconv.ParseUint(f[3], 10, 16)
		if err != nil {
			return k, fmt.Errorf("stored key %q: port: %w", s, err)
		}
		k.Port = uint16(port)
	}
	k.Selector, k.Interface = parry.Selector(f[4]), rest
	return k, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if s == "-" {
		return netip.Prefix{}, nil
	}
	if strings.IndexByte(s, '/') >= 0 {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen()), err
}

// formatRule writes what counts against max_rules: "family destination protocol port interface".
func formatRule(m *parry.Match) string {
	family, p := "inet", strconv.Itoa(int(m.Port))
	if m.Source.Addr().Is6() {
		family = "inet6"
	}
	proto := string(m.Protocol)
	if proto == "" {
		proto = "-"
	}
	return family + " " + parry.FormatPrefix(m.Destination) + " " + proto + " " + p + " " + m.Interface
}

// sourceKey writes a prefix so that byte order is: family, address, length. What a prefix holds then lies between its own key and
// [sourceEnd].
func sourceKey(p netip.Prefix) []byte {
	b := make([]byte, 0, 18)
	if p.Addr().Is4() {
		a := p.Addr().As4()
		b = append(append(b, 4), a[:]...)
	} else {
		a := p.Addr().As16()
		b = append(append(b, 6), a[:]...)
	}
	return append(b, byte(p.Bits()))
}

// parseSource reads what sourceKey wrote.
func parseSource(b []byte) (netip.Prefix, error) {
	if len(b) < 2 {
		return netip.Prefix{}, fmt.Errorf("stored source %x is malformed", b)
	}
	a, ok := netip.AddrFromSlice(b[1 : len(b)-1])
	if p := netip.PrefixFrom(a, int(b[len(b)-1])); ok && p.IsValid() {
		return p, nil
	}
	return netip.Prefix{}, fmt.Errorf("stored source %x is malformed", b)
}

// sourceEnd is the greatest key of anything within the prefix.
func sourceEnd(p netip.Prefix) []byte {
	b := sourceKey(p)
	addr := b[1 : len(b)-1]
	for i := p.Bits(); i < len(addr)*8; i++ {
		addr[i/8] |= 1 << (7 - i%8)
	}
	b[len(b)-1] = math.MaxUint8
	return b
}

// parents lists the keys of every prefix that covers p, itself included.
func parents(p netip.Prefix) []any {
	keys := make([]any, 0, p.Bits()+1)
	for bits := 0; bits <= p.Bits(); bits++ {
		keys = append(keys, sourceKey(netip.PrefixFrom(p.Addr(), bits).Masked()))
	}
	return keys
}

// A cursor is the last item's place in the order of its listing, behind a letter for the kind of listing, in base 64.
func cursor(kind byte, at string) string {
	return base64.RawURLEncoding.EncodeToString(append([]byte{kind}, at...))
}

// readCursor gives what cursor was given, and "" for the first page.
func readCursor(kind byte, c string) (string, error) {
	if c == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(c)
	if err != nil || len(b) < 2 || len(b) > 64 || b[0] != kind || bytes.ContainsFunc(b, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", parry.Invalid("?cursor", "this is no cursor of this listing; take it as the page before gave it, or leave it out to start anew")
	}
	return string(b[1:]), nil
}

// pageLimit holds a page's length within 1 and 1000; 0 is 100.
func pageLimit(n int) int {
	switch {
	case n <= 0:
		return 100
	case n > 1000:
		return 1000
	}
	return n
}

// placeholders writes "$from, $from+1, …" for n parameters.
func placeholders(from, n int) string {
	b := make([]byte, 0, n*5)
	for i := range n {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendInt(append(b, '$'), int64(from+i), 10)
	}
	return string(b)
}
