package portable

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Version is that of the form, in the first of JSON lines. A version may add members and columns; what it takes away makes the next one.
const Version = 1

// Format is how rows are written.
type Format string

const (
	JSON Format = "json" // lines
	CSV  Format = "csv"
)

// Formats lists them.
var Formats = []Format{JSON, CSV}

// header is the first of JSON lines.
type header struct {
	Parry      string    `json:"parry"`
	Version    int       `json:"version"`
	ExportedAt time.Time `json:"exported_at,omitzero"`
}

// Writer writes rows. Close must be called.
type Writer[R any] struct {
	t     *Table[R]
	w     *bufio.Writer
	json  *json.Encoder
	at    time.Time
	cells []string
}

// NewWriter begins a file of rows that are what they are at a time.
func NewWriter[R any](w io.Writer, f Format, t *Table[R], at time.Time) (*Writer[R], error) {
	out := &Writer[R]{t: t, w: bufio.NewWriterSize(w, 64<<10), at: at.UTC().Truncate(time.Microsecond)}
	if f == JSON {
		out.json = json.NewEncoder(out.w)
		out.json.SetEscapeHTML(false)
		return out, out.json.Encode(header{t.Kind, Version, out.at})
	}
	for _, c := range t.columns {
		out.cells = append(out.cells, c.name)
	}
	return out, writeCells(out.w, out.cells)
}

// Write adds a row.
func (w *Writer[R]) Write(r *R) error {
	*w.t.stamp(r) = w.at
	if w.json != nil {
		return w.json.Encode(r)
	}
	for i, c := range w.t.columns {
		w.cells[i] = guard(c.get(r))
	}
	return writeCells(w.w, w.cells)
}

// Close writes what is left; it does not close what is written to.
func (w *Writer[R]) Close() error { return w.w.Flush() }

// RowError is a row that cannot be read; the next ones can.
type RowError struct{ Err error }

func (e *RowError) Error() string { return e.Err.Error() }
func (e *RowError) Unwrap() error { return e.Err }

// Reader reads rows of either format, which the first byte tells.
type Reader[R any] struct {
	t       *Table[R]
	r       *bufio.Reader
	line    int // JSON lines read
	at      time.Time
	csv     *cells
	columns []column[R]
}

// NewReader reads how the file begins. Its error says what is wrong with the file as a whole.
func NewReader[R any](r io.Reader, t *Table[R]) (*Reader[R], error) {
	in := &Reader[R]{t: t, r: bufio.NewReaderSize(r, 64<<10)}
	if bom, _ := in.r.Peek(3); string(bom) == "\ufeff" {
		_, _ = in.r.Discard(3)
	}
	first, err := in.r.Peek(1)
	switch {
	case errors.Is(err, io.EOF):
		return in, nil
	case err != nil:
		return nil, err
	case first[0] == '{':
		start, _ := in.r.Peek(64)
		if !isHeader(start) {
			return in, nil
		}
		line, err := in.jsonLine()
		if err != nil {
			return nil, err
		}
		return in, in.header(line)
	}
	return in, in.names()
}

func isHeader(line []byte) bool {
	return bytes.HasPrefix(bytes.ReplaceAll(line[:min(len(line), 64)], []byte(" "), nil), []byte(`{"parry":`))
}

// header reads the line that says what follows: the first, and in files that were joined further ones.
func (in *Reader[R]) header(line []byte) error {
	var h header
	if err := json.Unmarshal(line, &h); err != nil {
		return fmt.Errorf("line %d, which should say what follows: %w", in.line, err)
	}
	switch {
	case h.Parry != in.t.Kind:
		return fmt.Errorf("this file holds %s, not %s", h.Parry, in.t.Kind)
	case h.Version != Version:
		return fmt.Errorf("this file is of version %d, and this parry reads %d: export it again with an older parry, or import it with a newer one", h.Version, Version)
	}
	in.at = h.ExportedAt
	return nil
}

// names reads the header row of CSV.
func (in *Reader[R]) names() error {
	in.csv = &cells{r: in.r, line: 1}
	names, _, err := in.csv.next()
	if err != nil {
		return fmt.Errorf("the header row: %w", err)
	}
	known := make([]string, len(in.t.columns))
	for i, c := range in.t.columns {
		known[i] = c.name
	}
	for i, name := range names {
		name = strings.TrimSpace(name)
		at := slices.Index(known, name)
		switch {
		case at < 0:
			return fmt.Errorf("the header row has a column %.64q; there are %s", name, strings.Join(known, ", "))
		case slices.ContainsFunc(names[:i], func(n string) bool { return strings.TrimSpace(n) == name }):
			return fmt.Errorf("the header row has the column %s twice", name)
		}
		in.columns = append(in.columns, in.t.columns[at])
	}
	return nil
}

// Next reads one row and the line that it begins on. The error is io.EOF at the end, a *RowError when only this row is bad, else one that
// ends the reading.
func (in *Reader[R]) Next() (row R, line int, err error) {
	if in.csv != nil {
		return in.nextCSV()
	}
	for {
		text, err := in.jsonLine()
		if err != nil {
			return row, in.line, err
		}
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		if isHeader(text) {
			if err := in.header(text); err != nil {
				return row, in.line, err
			}
			continue
		}
		*in.t.stamp(&row) = in.at
		return row, in.line, in.decode(text, &row)
	}
}

func (in *Reader[R]) decode(text []byte, row *R) error {
	if !utf8.Valid(text) {
		return &RowError{errors.New("this is not UTF-8")}
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(row)
	if err == nil && dec.More() {
		err = errors.New("there is something behind the row")
	}
	if err != nil {
		return &RowError{errors.New(strings.TrimPrefix(err.Error(), "json: "))}
	}
	return nil
}

// jsonLine gives the next line, which stays valid until the one after.
func (in *Reader[R]) jsonLine() ([]byte, error) {
	in.line++
	var long []byte
	for {
		part, err := in.r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull) && len(long) < maxRecord:
			long = append(long, part...)
			continue
		case errors.Is(err, bufio.ErrBufferFull):
			return nil, errors.New("the line is too long: one row stands on one line")
		case errors.Is(err, io.EOF) && len(part)+len(long) > 0:
			err = nil
		}
		if long != nil {
			part = append(long, part...)
		}
		return part, err
	}
}

func (in *Reader[R]) nextCSV() (row R, line int, err error) {
	for {
		record, line, err := in.csv.next()
		switch {
		case errors.Is(err, errQuote):
			return row, line, &RowError{errQuote}
		case err != nil:
			return row, line, err
		case len(record) == 1 && strings.TrimSpace(record[0]) == "":
			continue
		case len(record) != len(in.columns):
			return row, line, &RowError{fmt.Errorf("the row has %d cells, and the header %d", len(record), len(in.columns))}
		}
		for i, c := range in.columns {
			if !utf8.ValidString(record[i]) {
				return row, line, &RowError{fmt.Errorf("%s is not UTF-8", c.name)}
			}
			if err := c.set(&row, unguard(record[i])); err != nil {
				return row, line, &RowError{fmt.Errorf("%s: %w", c.name, err)}
			}
		}
		return row, line, nil
	}
}
