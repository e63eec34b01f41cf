package feeds

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/parry/parry/internal/parry"
)

// write renders a selection in a query's format. The bytes depend on nothing else, and are never empty.
func write(s *selection, q Query) ([]byte, error) {
	switch q.Format {
	case CSV:
		return writeCSV(s)
	case JSON:
		return writeJSON(s)
	default:
		return writeLines(s, q), nil
	}
}

// writeLines writes the line-based formats. Every consumer of plain, iprep, geo and map skips lines that begin with "#"; that of cidr takes
// comments behind an entry only, and one that uploads a CDB list refuses lines without a key, so that what must be said there is one.
func writeLines(s *selection, q Query) []byte {
	b := make([]byte, 0, 128+24*len(s.entries))
	comments := q.Format != CIDR && !q.Format.cdb()
	of := strconv.Itoa(len(s.entries)) + " of " + strconv.Itoa(s.total) + " entries"
	switch {
	case q.Format.cdb() && len(s.entries) == 0:
		b = append(b, "#parry:empty\n"...)
	case q.Format.cdb() && s.truncated():
		b = append(b, "#parry:truncated\n"...)
	case comments || len(s.entries) == 0:
		b = append(b, "# parry feed "...)
		b = append(b, s.feed...)
		b = append(b, ", "...)
		b = strconv.AppendInt(b, int64(len(s.entries)), 10)
		b = append(b, " entries\n"...)
	}
	for i := range s.entries {
		e := &s.entries[i]
		switch q.Format {
		case Plain:
			b = s.appendKey(b, e)
		case CIDR:
			b = e.Prefix.AppendTo(b)
		case IPRep:
			b = append(s.appendKey(b, e), ',')
			b = strconv.AppendInt(b, int64(q.Category), 10)
			b = append(b, ',')
			b = strconv.AppendInt(b, int64(q.Score), 10)
		case Geo:
			b = append(e.Prefix.AppendTo(b), ' ')
			b = append(append(b, q.Value...), ';')
		case Map:
			b = append(s.appendKey(b, e), ' ')
			b = append(b, q.Value...)
		case CDBWazuh, CDBOSSEC:
			b = s.appendCDB(b, e, q)
			continue // it has ended its lines
		}
		if q.Format == CIDR && s.truncated() && i == len(s.entries)-1 {
			b = append(append(b, " # truncated: "...), of...)
		}
		b = append(b, '\n')
	}
	if comments && s.truncated() {
		b = append(append(append(b, "# truncated: "...), of...), '\n')
	}
	return b
}

// appendKey writes an address alone, a prefix, or the key.
func (s *selection) appendKey(b []byte, e *Entry) []byte {
	switch {
	case !s.typ.IsNetwork():
		return append(b, e.Key...)
	case e.Prefix.IsSingleIP():
		return e.Prefix.Addr().AppendTo(b)
	default:
		return e.Prefix.AppendTo(b)
	}
}

// appendCDB writes an entry as lines of key:value. An IPv4 prefix that ends within an octet is written as all the dotted prefixes in it, 128
// at most (256 for /0).
func (s *selection) appendCDB(b []byte, e *Entry, q Query) []byte {
	line := func(key []byte) {
		quoted := q.Format == CDBWazuh && bytes.ContainsAny(key, ": ")
		if quoted {
			b = append(b, '"')
		}
		b = append(b, key...)
		if quoted {
			b = append(b, '"')
		}
		b = append(append(append(b, ':'), q.Value...), '\n')
	}
	if !s.typ.IsNetwork() {
		line([]byte(e.Key))
		return b
	}
	if !e.Prefix.Addr().Is4() {
		line([]byte(e.Prefix.Addr().String()))
		return b
	}
	bits := e.Prefix.Bits()
	octets := max(1, (bits+7)/8)
	a := e.Prefix.Addr().As4()
	var key [16]byte
	for range 1 << (8*octets - bits) {
		k := key[:0]
		for i, o := range a[:octets] {
			if i > 0 {
				k = append(k, '.')
			}
			k = strconv.AppendUint(k, uint64(o), 10)
		}
		if octets < 4 {
			k = append(k, '.')
		}
		line(k)
		a[octets-1]++
	}
	return b
}

// key is the key as text.
func (s *selection) key(e *Entry) string { return string(s.appendKey(nil, e)) }

func stamp(sec int64) string {
	if sec == 0 {
		return ""
	}
	return time.Unix(sec, 0).UTC().Format(time.RFC3339)
}

var csvHead = []string{"key", "first_seen", "last_seen", "expires_at", "count", "comment"}

func writeCSV(s *selection) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	w.UseCRLF = true
	if err := w.Write(csvHead); err != nil {
		return nil, err
	}
	for i := range s.entries {
		e := &s.entries[i]
		err := w.Write([]string{
			safeCell(s.key(e)), stamp(e.First), stamp(e.Last), stamp(e.Expires), strconv.FormatInt(e.Count, 10), safeCell(e.Comment),
		})
		if err != nil {
			return nil, err
		}
	}
	w.Flush()
	return b.Bytes(), w.Error()
}

// safeCell keeps a spreadsheet from taking text for a formula, and a row to its line.
func safeCell(text string) string {
	text = oneLine(text)
	if start := strings.TrimLeft(text, " "); start != "" && strings.ContainsRune("=+-@", rune(start[0])) {
		return "'" + text
	}
	return text
}

// oneLine writes control characters as blanks and drops what is no UTF-8.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}

// jsonEntry is an entry as JSON has it.
type jsonEntry struct {
	Key       string `json:"key"`
	FirstSeen string `json:"first_seen,omitempty"`
	LastSeen  string `json:"last_seen,omitempty"`
	ExpiresAt string `json:"expires_at,omitempty"`
	Count     int64  `json:"count,omitempty"`
	Comment   string `json:"comment,omitempty"`
}

// writeJSON writes one document, an entry a line.
func writeJSON(s *selection) ([]byte, error) {
	head, err := json.Marshal(struct {
		Feed    string         `json:"feed"`
		Type    parry.ListType `json:"type"`
		Entries int            `json:"count"`
		Total   int            `json:"total"`
		LeftOut int            `json:"left_out,omitempty"`
	}{s.feed, s.typ, len(s.entries), s.total, s.leftOut})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(160 * (1 + len(s.entries)))
	b.Write(head[:len(head)-1])
	b.WriteString(`,"entries":[`)
	for i := range s.entries {
		e := &s.entries[i]
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
		line, err := json.Marshal(jsonEntry{s.key(e), stamp(e.First), stamp(e.Last), stamp(e.Expires), e.Count, oneLine(e.Comment)})
		if err != nil {
			return nil, err
		}
		b.Write(line) // <, > and & are escaped in it
	}
	b.WriteString("]}\n")
	return b.Bytes(), nil
}
