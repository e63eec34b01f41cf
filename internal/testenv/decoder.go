package testenv

import (
	"encoding/xml"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// Decoders are an OSSEC or Wazuh decoder file, applied to log lines as analysisd does it (analysisd/cleanevent.c, decoders/decoder.c), of which
// this is the part that a decoder without plugins and offsets needs: what has a program name in its header is tried against decoders with program_name,
// all else against those without; the first parent that matches, then its first child whose prematch matches.
type Decoders struct {
	tb  testing.TB
	all []osDecoder
}

type osDecoder struct {
	Name        string `xml:"name,attr"`
	Parent      string `xml:"parent"`
	ProgramName string `xml:"program_name"`
	Prematch    string `xml:"prematch"`
	Regex       string `xml:"regex"`
	Order       string `xml:"order"`
}

// ReadDecoders reads a decoder file, which has no root element.
func ReadDecoders(tb testing.TB, path string) *Decoders {
	tb.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	var doc struct {
		Decoders []osDecoder `xml:"decoder"`
	}
	if err := xml.Unmarshal([]byte("<all>"+string(text)+"</all>"), &doc); err != nil {
		tb.Fatalf("%s: %v", path, err)
	}
	if len(doc.Decoders) == 0 {
		tb.Fatalf("%s: no decoder", path)
	}
	return &Decoders{tb, doc.Decoders}
}

// Header is of RFC 3164 with a host name, or of a local log: the forms in which a program's name is found.
var osHeader = regexp.MustCompile(`^(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?[+-]\d\d:\d\d) +([^ :\[]+) ([A-Za-z0-9._/-]+)(?:\[\d+\])?: `)

// Decode gives the name of the decoder that takes a line and the fields that it finds; an empty name when none does.
func (d *Decoders) Decode(line string) (name string, fields map[string]string) {
	d.tb.Helper()
	line = regexp.MustCompile(`^<\d+>`).ReplaceAllString(line, "") // as remoted does
	program := ""
	if m := osHeader.FindStringSubmatch(line); m != nil {
		program, line = m[2], line[len(m[0]):]
	}
	for _, p := range d.all {
		switch {
		case p.Parent != "" || (p.ProgramName != "") != (program != ""):
			continue
		case p.ProgramName != "" && !strings.HasPrefix(program, strings.TrimPrefix(p.ProgramName, "^")):
			continue
		case p.Prematch != "" && !d.compile(p.Prematch).MatchString(line):
			continue
		}
		for _, c := range d.all {
			if c.Parent != p.Name || c.Prematch != "" && !d.compile(c.Prematch).MatchString(line) {
				continue
			}
			return c.Name, d.fields(&c, line)
		}
		return p.Name, nil
	}
	return "", nil
}

func (d *Decoders) fields(c *osDecoder, line string) map[string]string {
	d.tb.Helper()
	re := d.compile(c.Regex)
	order := strings.Split(c.Order, ",")
	if re.NumSubexp() != len(order) {
		d.tb.Fatalf("decoder %s: %d groups, %d names", c.Name, re.NumSubexp(), len(order))
	}
	m := re.FindStringSubmatch(line)
	if m == nil {
		return nil
	}
	out := map[string]string{}
	for i, f := range order {
		out[strings.TrimSpace(f)] = m[i+1]
	}
	return out
}

// osClasses is OSSEC's own translation of its dialect (os_regex/os_converter.c).
var osClasses = map[byte]string{
	'd': `[0-9]`, 'D': `[^0-9]`, 'w': `[A-Za-z0-9@_-]`, 'W': `[^A-Za-z0-9@_-]`, 's': `[ ]`, 'S': `[^ ]`, 't': `\t`, '.': `(?s:.)`,
	'p': `[()*+,.:;\\<=>?\[\]!"'#%&$|{}-]`,
}

// compile translates OSSEC's dialect. + and * count only behind a class, and take as little as they can.
func (d *Decoders) compile(pattern string) *regexp.Regexp {
	d.tb.Helper()
	var b strings.Builder
	b.WriteString("(?i)")
	class := false
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\' && i+1 < len(pattern):
			i++
			known, ok := osClasses[pattern[i]]
			switch {
			case ok:
				b.WriteString(known)
			case strings.IndexByte(`$()|<\`, pattern[i]) >= 0:
				b.WriteString(regexp.QuoteMeta(pattern[i : i+1]))
			default:
				d.tb.Fatalf(`%s: \%c is none of OSSEC's`, pattern, pattern[i])
			}
			class = ok
			continue
		case class && (c == '+' || c == '*'):
			fmt.Fprintf(&b, "%c?", c)
		case strings.IndexByte(`()|^$`, c) >= 0:
			b.WriteByte(c)
		default:
			b.WriteString(regexp.QuoteMeta(string(c)))
		}
		class = false
	}
	re, err := regexp.Compile(b.String())
	if err != nil {
		d.tb.Fatalf("%s: %v", pattern, err)
	}
	return re
}
