package syslog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Severity is RFC 5424's: the lower, the worse.
type Severity int

const (
	Emergency Severity = iota
	Alert
	Critical
	Error
	Warning
	Notice
	Info
	Debug
)

// facilities by number. The names are those of syslog.conf.
var facilities = []string{
	"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock",
	"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
}

// ParseFacility gives the number of a facility's name.
func ParseFacility(name string) (int, error) {
	if n := slices.Index(facilities, name); n >= 0 {
		return n, nil
	}
	return 0, fmt.Errorf("%q is no syslog facility; write %s", name, strings.Join(facilities, ", "))
}

// Param is one named value of the message's structured data.
type Param struct {
	Name, Value string
}

// Message is one line. What it is given is made inert: no control character, line end or broken UTF-8 reaches the wire.
type Message struct {
	Time     time.Time // zero: now
	Severity Severity
	MsgID    string  // kind of the message, at most 32 characters; empty is "-"
	Data     []Param // one element, [parry@32473 …]; the forms of RFC 3164 have no place for it
	Text     string
}

// sdID names the structured data. 32473 is the enterprise number that RFC 5612 keeps for examples; parry has none of its own.
const sdID = "parry@32473"

// Format is the form of a line.
type Format string

const (
	RFC5424 Format = "rfc5424"
	RFC3164 Format = "rfc3164" // as old receivers know it, with a host name
	Local   Format = "local"   // as syslog(3) writes to the local socket: RFC 3164 without a host name
)

// header is what all messages of a client share.
type header struct {
	format             Format
	facility           int
	hostname, app, pid string
}

// render writes a message in at most limit bytes; too long a text is cut at a rune's border.
func (h *header) render(m *Message, limit int) []byte {
	pri := h.facility<<3 | int(min(max(m.Severity, Emergency), Debug))
	b := make([]byte, 0, 512)
	b = append(b, '<')
	b = strconv.AppendInt(b, int64(pri), 10)
	b = append(b, '>')
	switch h.format {
	case RFC5424:
		b = append(b, "1 "...)
		b = m.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z") // at most six digits of a second
		for _, f := range []string{h.hostname, h.app, h.pid, name(m.MsgID, 32)} {
			b = append(append(b, ' '), f...)
		}
		b = append(b, ' ')
		b = appendData(b, m.Data, limit/2)
		b = append(b, ' ')
	default:
		b = m.Time.Local().AppendFormat(b, time.Stamp) // RFC 3164 has no zone: receivers take their own
		if h.format == RFC3164 {
			b = append(append(b, ' '), h.hostname...)
		}
		b = append(b, ' ')
		b = append(b, h.app...)
		b = append(b, '[')
		b = append(b, h.pid...)
		b = append(b, "]: "...)
	}
	return append(b, cut(Clean(m.Text), max(limit-len(b), len(ellipsis)))...)
}

// appendData writes the structured data; what does not fit into limit bytes is left out, a whole parameter at a time.
func appendData(b []byte, data []Param, limit int) []byte {
	start := len(b)
	for _, p := range data {
		n := name(p.Name, 32)
		v := escape.Replace(Clean(p.Value))
		if n == "-" || len(b)-start+len(sdID)+len(n)+len(v)+6 > limit {
			continue
		}
		if len(b) == start {
			b = append(append(b, '['), sdID...)
		}
		b = append(append(b, ' '), n...)
		b = append(append(append(b, `="`...), v...), '"')
	}
	if len(b) == start {
		return append(b, '-')
	}
	return append(b, ']')
}

// escape is RFC 5424, 6.3.3.
var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`)

// name is a header field or parameter name: printable ASCII without what would end it; "-" when there is nothing.
func name(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == '=' || r == ']' || r == '"' {
			return '_'
		}
		return r
	}, s)
	if len(s) > n {
		s = s[:n]
	}
	if s == "" {
		return "-"
	}
	return s
}

// Clean makes text inert in a line: control, direction-changing and line-ending characters become a blank or U+FFFD, bytes that are no UTF-8
// become U+FFFD.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\r', r == '\t', r == '\u2028', r == '\u2029', r == '\u0085':
			return ' '
		case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r):
			return utf8.RuneError
		}
		return r // strings.Map gives broken bytes as RuneError
	}, s)
}

const ellipsis = "…"

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n -= len(ellipsis); n > 0 && !utf8.RuneStart(s[n]); {
		n--
	}
	return s[:max(n, 0)] + ellipsis
}
