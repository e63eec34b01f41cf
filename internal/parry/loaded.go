package parry

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"
)

// ReadLoaded reads contract 1's loaded file as strictly as it was written: eight columns, canonical, sorted, each entry once. The text may
// come from a firewall.
func ReadLoaded(text []byte) ([]LoadedEntry, error) {
	out := make([]LoadedEntry, 0, bytes.Count(text, []byte{'\n'}))
	var last, again []byte
	for n := 1; len(text) > 0; n++ {
		ln, rest, ok := bytes.Cut(text, []byte{'\n'})
		if !ok {
			return nil, fmt.Errorf("line %d has no end", n)
		}
		text = rest
		key, tail := SplitKey(ln)
		f := strings.Split(string(tail), " ")
		m, ok := ParseKey(string(key))
		if !ok || len(f) != 3 {
			return nil, fmt.Errorf("line %d is no entry: %.100q", n, ln)
		}
		e := LoadedEntry{Match: m}
		var bad error
		for i, to := range []*int64{&e.Expires, &e.Packets, &e.Bytes} {
			if f[i] == "-" {
				*to = -1
			} else if v, err := strconv.ParseUint(f[i], 10, 63); err == nil {
				*to = int64(v)
			} else {
				bad = err
			}
		}
		e.Expires = max(e.Expires, 0)
		if again = (Entry{Match: m}).AppendKey(again[:0]); bad != nil || !bytes.Equal(again, key) {
			return nil, fmt.Errorf("line %d is not canonical: %.100q", n, ln)
		}
		if last != nil && bytes.Compare(last, key) >= 0 {
			return nil, fmt.Errorf("line %d is out of order: %.100q", n, ln)
		}
		last = key
		out = append(out, e)
	}
	return out, nil
}

// SplitKey parts a line of entries after its fifth column.
func SplitKey(ln []byte) (key, rest []byte) {
	at := 0
	for range 5 {
		i := bytes.IndexByte(ln[at:], ' ')
		if i < 0 {
			return ln, nil
		}
		at += i + 1
	}
	return ln[:at-1], ln[at:]
}

// Covering reads, out of a loaded file that was checked before, the entries whose source contains the prefix, without reading all.
func Covering(text []byte, p netip.Prefix) iter.Seq[LoadedEntry] {
	return func(yield func(LoadedEntry) bool) {
		for len(text) > 0 {
			var ln []byte
			ln, text, _ = bytes.Cut(text, []byte{'\n'})
			source, _, _ := bytes.Cut(ln, []byte{' '})
			if s, err := ParsePrefix(string(source)); err != nil || s.Bits() > p.Bits() || !s.Contains(p.Addr()) {
				continue
			}
			if e, err := ReadLoaded(append(ln[:len(ln):len(ln)], '\n')); err == nil && !yield(e[0]) {
				return
			}
		}
	}
}

// ParseKey reads back what [Entry.AppendKey] wrote.
func ParseKey(k string) (m Match, ok bool) {
	f := strings.Split(k, " ")
	if len(f) != 5 {
		return m, false
	}
	var err error
	if m.Source, err = ParsePrefix(f[0]); err != nil {
		return m, false
	}
	if f[1] != "-" {
		if m.Destination, err = ParsePrefix(f[1]); err != nil {
			return m, false
		}
	}
	if f[2] != "-" {
		m.Protocol = Protocol(f[2])
	}
	if f[3] != "-" {
		n, err := strconv.ParseUint(f[3], 10, 16)
		if err != nil {
			return m, false
		}
		m.Port = uint16(n)
	}
	if f[4] != "-" {
		m.Interface = f[4]
	}
	return m, true
}

// ParsePrefix reads what [FormatPrefix] wrote: an address, or a prefix.
func ParsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}
