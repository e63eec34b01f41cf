package parry

import (
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"
)

// ReadLoaded reads contract 1's loaded file as strictly as it was written: eight columns, canonical, sorted, each entry once. The text may
// come from a firewall. The entries share the text's memory.
func ReadLoaded(text string) ([]LoadedEntry, error) {
	out := make([]LoadedEntry, 0, strings.Count(text, "\n"))
	for e, err := range EachLoaded(text) {
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// EachLoaded reads it line by line, and ends with the first error.
func EachLoaded(text string) iter.Seq2[LoadedEntry, error] {
	return func(yield func(LoadedEntry, error) bool) {
		var last string
		var again []byte
		for n := 1; len(text) > 0; n++ {
			ln, rest, ok := strings.Cut(text, "\n")
			if !ok {
				yield(LoadedEntry{}, fmt.Errorf("line %d has no end", n))
				return
			}
			text = rest
			key, tail := SplitKey(ln)
			e, ok := parseLoaded(key, tail)
			again = Entry{Match: e.Match}.AppendKey(again[:0])
			var err error
			switch {
			case !ok:
				err = fmt.Errorf("line %d is no entry: %.100q", n, ln)
			case string(again) != key:
				err = fmt.Errorf("line %d is not canonical: %.100q", n, ln)
			case n > 1 && last >= key:
				err = fmt.Errorf("line %d is out of order: %.100q", n, ln)
			}
			if last = key; !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func parseLoaded(key, tail string) (e LoadedEntry, ok bool) {
	if e.Match, ok = ParseKey(key); !ok {
		return e, false
	}
	for i, to := range [...]*int64{&e.Expires, &e.Packets, &e.Bytes} {
		f, rest, more := strings.Cut(tail, " ")
		if more != (i < 2) {
			return e, false
		}
		if tail = rest; f == "-" {
			*to = -1
			continue
		}
		v, err := strconv.ParseUint(f, 10, 63)
		if err != nil || len(f) > 1 && f[0] == '0' {
			return e, false
		}
		*to = int64(v)
	}
	e.Expires = max(e.Expires, 0)
	return e, true
}

// SplitKey parts a line of entries after its fifth column.
func SplitKey(ln string) (key, rest string) {
	at := 0
	for range 5 {
		i := strings.IndexByte(ln[at:], ' ')
		if i < 0 {
			return ln, ""
		}
		at += i + 1
	}
	return ln[:at-1], ln[at:]
}

// Covering reads, out of a loaded file that was checked before, the entries whose source contains the prefix, without reading all.
func Covering(text string, p netip.Prefix) iter.Seq[LoadedEntry] {
	return func(yield func(LoadedEntry) bool) {
		for len(text) > 0 {
			var ln string
			ln, text, _ = strings.Cut(text, "\n")
			source, _, _ := strings.Cut(ln, " ")
			if s, err := ParsePrefix(source); err != nil || s.Bits() > p.Bits() || !s.Contains(p.Addr()) {
				continue
			}
			if e, ok := parseLoaded(SplitKey(ln)); ok && !yield(e) {
				return
			}
		}
	}
}

// ParseKey reads back what [Entry.AppendKey] wrote.
func ParseKey(k string) (m Match, ok bool) {
	var f [5]string
	for i := range f {
		var more bool
		if f[i], k, more = strings.Cut(k, " "); more != (i < 4) {
			return m, false
		}
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
