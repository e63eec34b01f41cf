package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// printer lays text out for whoever reads it.
type printer struct {
	out    *bytes.Buffer
	width  int
	colour bool
	now    time.Time
}

// human runs f and writes what it printed at once.
func (s *shell) human(f func(p *printer)) error {
	p := &printer{out: new(bytes.Buffer), width: 80, now: s.Now()}
	if file, ok := s.Out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		p.colour = s.get("NO_COLOR") == "" && s.get("TERM") != "dumb"
		if w, _, err := term.GetSize(int(file.Fd())); err == nil && w >= 40 {
			p.width = w
		}
	}
	f(p)
	_, err := s.Out.Write(p.out.Bytes())
	return err
}

// raw prints the API's JSON, indented.
func (s *shell) raw(body []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(body), "", "  "); err != nil {
		return fail(ExitUnreachable, "the answer is no JSON: %v", err)
	}
	b.WriteByte('\n')
	_, err := s.Out.Write(b.Bytes())
	return err
}

func (s *shell) rawValue(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.raw(b)
}

type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

func (p *printer) paint(st style, text string) string {
	if !p.colour || st == plain || text == "" {
		return text
	}
	return "\x1b[" + string(st) + "m" + text + "\x1b[0m"
}

// stateStyle colours the states of blocks, firewalls and runs.
func stateStyle[S ~string](s S) style {
	switch s {
	case "enforced", "proved", "succeeded", "ok", "approved", "applied":
		return green
	case "pending", "lifting", "held", "simulated", "waiting", "denied", "retiring", "running", "warn":
		return yellow
	case "degraded", "drifted", "rejected", "failing", "failed", "unknown", "unlisted", "fail", "panic":
		return red
	}
	return dim
}

type cell struct {
	text  string
	style style
}

func text(s string) cell                   { return cell{text: inert(s)} }
func styled(st style, s string) cell       { return cell{inert(s), st} }
func state[S ~string](s S) cell            { return cell{inert(string(s)), stateStyle(s)} }
func (p *printer) line(f string, a ...any) { fmt.Fprintf(p.out, f+"\n", a...) }

// row is one record: its cells, and notes that are written beneath, cut to the width.
type row struct {
	cells []cell
	notes []string
}

// table writes records in columns that are as wide as they need, but not wider than caps (0: no cap) allow. A longer cell is written
// whole and the record goes on beneath it, in its columns, so that a long value neither is lost nor moves the others; one in the last
// column is cut to the width.
func (p *printer) table(head []string, caps []int, rows []row) {
	width := make([]int, len(head))
	for i, h := range head {
		width[i] = utf8.RuneCountInString(h)
	}
	for _, r := range rows {
		for i, c := range r.cells {
			if n := utf8.RuneCountInString(c.text); caps[i] == 0 || n <= caps[i] {
				width[i] = max(width[i], n)
			}
		}
	}
	heads := make([]cell, len(head))
	for i, h := range head {
		heads[i] = cell{h, dim}
	}
	p.cells(width, heads)
	for _, r := range rows {
		p.cells(width, r.cells)
		for _, n := range r.notes {
			if n != "" {
				p.line("  %s", p.paint(dim, cut(n, p.width-2)))
			}
		}
	}
}

func (p *printer) cells(width []int, cells []cell) {
	var line strings.Builder
	pad, at := 0, 0
	for i, c := range cells {
		if i == len(cells)-1 {
			c.text = cut(c.text, max(10, p.width-at))
		}
		n := utf8.RuneCountInString(c.text)
		if over := at + n - p.width; i > 0 && n > width[i] && over > 0 { // not even in a line that begins here
			line.WriteByte('\n')
			pad = max(2, at-over)
		}
		if n > 0 {
			line.WriteString(strings.Repeat(" ", pad))
			line.WriteString(p.paint(c.style, c.text))
			pad = 0
		}
		switch at += width[i] + 2; {
		case n > width[i] && i < len(cells)-1:
			line.WriteByte('\n')
			pad = at
		default:
			pad += width[i] + 2 - n
		}
	}
	p.line("%s", line.String())
}

// fields writes "name  value" lines, leaving out empty values; long values are wrapped under themselves.
func (p *printer) fields(pairs ...cell) {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1].text != "" {
			width = max(width, utf8.RuneCountInString(pairs[i].text))
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		name, v := pairs[i], pairs[i+1]
		for j, l := range wrap(v.text, max(20, p.width-width-2)) {
			if j > 0 {
				name.text = ""
			}
			p.line("%s%s%s", p.paint(dim, name.text), strings.Repeat(" ", width+2-utf8.RuneCountInString(name.text)), p.paint(v.style, l))
		}
	}
}

// wrap breaks text at blanks into lines of at most n runes; a longer word is left whole. Empty text gives no line.
func wrap(s string, n int) []string {
	var out []string
	for _, w := range strings.Fields(s) {
		if l := len(out); l > 0 && utf8.RuneCountInString(out[l-1])+1+utf8.RuneCountInString(w) <= n {
			out[l-1] += " " + w
			continue
		}
		out = append(out, w)
	}
	return out
}

// cut shortens text to n runes, the last being "…".
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:max(0, n-1)]) + "…"
}

// inert makes text harmless on a terminal: control and formatting characters and what is no UTF-8 come out as escapes.
func inert(s string) string { return escape(s, false) }

// inertLines is inert but for line ends and tabs.
func inertLines(s string) string { return escape(s, true) }

func escape(s string, lines bool) string {
	var b strings.Builder
	for i, w := 0, 0; i < len(s); i += w {
		var r rune
		r, w = utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && w == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case lines && (r == '\n' || r == '\t'):
			b.WriteRune(r)
		case unicode.IsControl(r), unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co, unicode.Cs):
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// short writes a duration with at most two units: 12d, 2d4h, 3h58m, 29m, 12s.
func short(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	two := func(big time.Duration, b string, small time.Duration, s string) string {
		out := strconv.Itoa(int(d/big)) + b
		if n := d % big / small; n > 0 {
			out += strconv.Itoa(int(n)) + s
		}
		return out
	}
	switch {
	case d >= 10*24*time.Hour:
		return strconv.Itoa(int(d.Round(24*time.Hour)/(24*time.Hour))) + "d"
	case d >= 24*time.Hour:
		d = d.Round(time.Hour)
		return two(24*time.Hour, "d", time.Hour, "h")
	case d >= time.Hour:
		d = d.Round(time.Minute)
		return two(time.Hour, "h", time.Minute, "m")
	case d >= time.Minute:
		d = d.Round(time.Second)
		if d >= 10*time.Minute {
			return strconv.Itoa(int(d.Round(time.Minute)/time.Minute)) + "m"
		}
		return two(time.Minute, "m", time.Second, "s")
	case d >= 10*time.Second || d%time.Second == 0:
		return strconv.Itoa(int(d.Round(time.Second)/time.Second)) + "s"
	}
	return d.Round(100 * time.Millisecond).String()
}

func (p *printer) ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	if d := p.now.Sub(t); d >= time.Second {
		return short(d) + " ago"
	}
	return "just now"
}

// left is how long until t: "never" for the zero time.
func (p *printer) left(t time.Time) string {
	switch d := t.Sub(p.now); {
	case t.IsZero():
		return "never"
	case d <= 0:
		return "due"
	default:
		return short(d)
	}
}

func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.FormatInt(n, 10) + " " + many
}
