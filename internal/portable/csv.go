package portable

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// encoding/csv is not used: it makes CRLF within a cell a bare line end, or the other way round.

// formula is what a spreadsheet, or an apostrophe, begins with.
const formula = "=+-@\t\r\n'＝＋－＠"

func guard(s string) string {
	if r, n := utf8.DecodeRuneInString(s); n > 0 && strings.ContainsRune(formula, r) {
		return "'" + s
	}
	return s
}

func unguard(s string) string { return strings.TrimPrefix(s, "'") }

// writeCells writes one record with its line end.
func writeCells(w *bufio.Writer, cells []string) error {
	for i, c := range cells {
		if i > 0 {
			_ = w.WriteByte(',') // the writer keeps its error
		}
		if c == "" || !strings.ContainsAny(c, ",\"\r\n") && c[0] != ' ' && c[len(c)-1] != ' ' {
			_, _ = w.WriteString(c)
			continue
		}
		_ = w.WriteByte('"')
		_, _ = w.WriteString(strings.ReplaceAll(c, `"`, `""`))
		_ = w.WriteByte('"')
	}
	_, err := w.WriteString("\r\n")
	return err
}

// maxRecord bounds a record's bytes, so that a missing quote does not take the rest of the file for one cell.
const maxRecord = 1 << 20

var (
	errQuote  = errors.New(`a quote stands within or behind a cell: write "" for one within quotes`)
	errOpen   = errors.New("a quote is not closed")
	errRecord = errors.New("the record is too long: is a quote not closed?")
)

// cells reads records of RFC 4180; a record may also end with a bare LF.
type cells struct {
	r    *bufio.Reader
	line int // of the next byte, from 1
}

// next reads one record, and the line that it begins on; io.EOF at the end. After errQuote the rest of the line is skipped and reading can go
// on; the other errors end it.
func (c *cells) next() (record []string, line int, err error) {
	line = c.line
	var cell strings.Builder
	quoted, closed := false, false // within quotes; behind the closing one
	for n := 0; ; n++ {
		b, err := c.r.ReadByte()
		switch {
		case errors.Is(err, io.EOF) && quoted:
			return nil, line, errOpen
		case errors.Is(err, io.EOF) && n == 0:
			return nil, line, io.EOF
		case errors.Is(err, io.EOF):
			return append(record, cell.String()), line, nil
		case err != nil:
			return nil, line, err
		case n == maxRecord:
			return nil, line, errRecord
		}
		if b == '\n' {
			c.line++
		}
		switch {
		case quoted && b == '"':
			if next, _ := c.r.Peek(1); len(next) == 1 && next[0] == '"' {
				_, _ = c.r.Discard(1)
				cell.WriteByte('"')
			} else {
				quoted, closed = false, true
			}
		case quoted:
			cell.WriteByte(b)
		case b == '"' && cell.Len() == 0 && !closed:
			quoted = true
		case b == ',':
			record, closed = append(record, cell.String()), false
			cell.Reset()
		case b == '\n':
			return append(record, cell.String()), line, nil
		case b == '\r' && c.peeks('\n'):
		case b == '"' || closed:
			return nil, line, errors.Join(errQuote, c.skip())
		default:
			cell.WriteByte(b)
		}
	}
}

func (c *cells) peeks(b byte) bool {
	next, _ := c.r.Peek(1)
	return len(next) == 1 && next[0] == b
}

// skip reads on to the next line.
func (c *cells) skip() error {
	for {
		b, err := c.r.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case b == '\n':
			c.line++
			return nil
		}
	}
}
