package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/internal/parry"
)

// maxBody is far beyond the largest honest request.
const maxBody = 64 << 10

// maxProblems bounds an answer by something else than the request's size.
const maxProblems = 16

// problems gathers what is wrong with a request, so that a caller learns all of it at once.
type problems []parry.FieldError

func (p *problems) add(pointer, format string, args ...any) {
	if len(*p) < maxProblems {
		*p = append(*p, parry.FieldError{Pointer: pointer, Detail: fmt.Sprintf(format, args...)})
	}
}

// at tells whether something is wrong there already; what follows from it is not worth telling.
func (p *problems) at(pointer string) bool {
	for _, f := range *p {
		if f.Pointer == pointer || strings.HasPrefix(f.Pointer, pointer+"/") {
			return true
		}
	}
	return false
}

// err is nil when nothing is wrong.
func (p *problems) err() error {
	if len(*p) == 0 {
		return nil
	}
	return &parry.Error{Kind: parry.KindInvalid, Detail: "the request is not valid", Fields: *p}
}

// readBody reads a JSON body within maxBody. An absent one is nil.
func readBody(c *gin.Context) ([]byte, error) { return readBodyUpTo(c, maxBody) }

func readBodyUpTo(c *gin.Context, limit int64) ([]byte, error) {
	tooLarge := func() error { return parry.Errorf(kindTooLarge, "the body may have %d bytes at most", limit) }
	if c.Request.ContentLength > limit {
		return nil, tooLarge()
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, limit))
	if tooMany := (*http.MaxBytesError)(nil); errors.As(err, &tooMany) {
		return nil, tooLarge()
	} else if err != nil {
		return nil, &parry.Error{Kind: parry.KindInvalid, Detail: "the body did not arrive whole", Err: err}
	}
	if len(body) == 0 {
		return nil, nil
	}
	if err := checkContentType(c.Request.Header); err != nil {
		return nil, err
	}
	return body, nil
}

func checkContentType(h http.Header) error {
	refuse := func(header, format string, args ...any) error {
		e := parry.Errorf(kindMediaType, "the body must be JSON")
		e.Fields = []parry.FieldError{{Pointer: header, Detail: fmt.Sprintf(format, args...)}}
		return e
	}
	if h.Get("Content-Encoding") != "" {
		return refuse("Content-Encoding", "send the body as it is, without compression")
	}
	switch types := h.Values("Content-Type"); {
	case len(types) == 1 && types[0] == jsonType:
		return nil
	case len(types) != 1:
		return refuse("Content-Type", "send one header Content-Type: application/json")
	default:
		t, params, err := mime.ParseMediaType(types[0])
		if err != nil || t != jsonType {
			return refuse("Content-Type", "send Content-Type: application/json")
		}
		for name, value := range params {
			if name != "charset" || !strings.EqualFold(value, "utf-8") {
				return refuse("Content-Type", "send Content-Type: application/json; JSON is always UTF-8")
			}
		}
		return nil
	}
}

// field is one member that an object may have. set reads its value, which is valid JSON and not null.
type field[T any] struct {
	name string
	set  func(to *T, v value)
}

// value is a member's value on its way into a struct.
type value struct {
	raw   []byte
	in    string // pointer to the object that it is a member of
	name  string // of the member
	item  string // "/0" in an array
	wrong *problems
}

func (v value) pointer() string { return v.in + pointerTo(v.name) + v.item }

func (v value) refuse(format string, args ...any) { v.wrong.add(v.pointer(), format, args...) }

// decodeObject reads body as exactly one JSON object with known members, each at most once and under its exact name, none null.
// Unlike encoding/json it takes no other case of a name, no repeated name, no invalid UTF-8, no half of a surrogate pair and nothing after
// the object.
func decodeObject[T any](body []byte, to *T, fields []field[T], wrong *problems) {
	switch {
	case len(body) == 0:
		wrong.add("", "the body is empty: send a JSON object")
		return
	case !utf8.Valid(body):
		wrong.add("", "the body is not valid UTF-8")
		return
	case !json.Valid(body):
		wrong.add("", "%s", syntaxProblem(body))
		return
	}
	s := scanner{body: body}
	s.blanks()
	if s.body[s.at] != '{' {
		wrong.add("", "the body is %s: send a JSON object", kindOf(s.body[s.at:]))
		return
	}
	members(&s, "", to, fields, wrong)
}

// members reads an object of valid JSON, which begins here; in is the pointer to it.
func members[T any](s *scanner, in string, to *T, fields []field[T], wrong *problems) {
	s.at++
	var seen uint64
	for s.blanks(); s.body[s.at] != '}'; s.blanks() {
		name, ok := unquote(s.next())
		s.blanks()
		s.at++ // the colon
		s.blanks()
		v := value{raw: s.next(), in: in, name: name, wrong: wrong}
		s.blanks()
		if s.body[s.at] == ',' {
			s.at++
		}
		i := 0
		for i < len(fields) && fields[i].name != name {
			i++
		}
		switch {
		case !ok || i == len(fields):
			v.refuse("%s", unknownField(name, fields))
		case seen&(1<<i) != 0:
			v.refuse("the field is there twice: give it once")
		case string(v.raw) == "null":
			v.refuse("null is no value: leave the field out")
		default:
			fields[i].set(to, v)
		}
		if i < len(fields) {
			seen |= 1 << i
		}
	}
}

func unknownField[T any](name string, fields []field[T]) string {
	names := make([]string, len(fields))
	for i, f := range fields {
		if strings.EqualFold(f.name, name) {
			return fmt.Sprintf("unknown field: write %q", f.name)
		}
		names[i] = f.name
	}
	return "unknown field; there are " + strings.Join(names, ", ")
}

func syntaxProblem(body []byte) string {
	var v any
	err := json.Unmarshal(body, &v)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax) && strings.HasSuffix(syntax.Error(), "after top-level value"):
		return fmt.Sprintf("there is something after the JSON object, at byte %d: send one object and nothing else", syntax.Offset)
	case errors.As(err, &syntax):
		return fmt.Sprintf("the body is not JSON, at byte %d: %s", syntax.Offset, syntax)
	default:
		return "the body is not JSON"
	}
}

var pointerEscape = strings.NewReplacer("~", "~0", "/", "~1")

// pointerTo is the JSON pointer to a member, cut to a length that is fit to be sent back.
func pointerTo(name string) string {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "…"
	}
	return "/" + pointerEscape.Replace(name)
}

func kindOf(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

func (v value) str() string {
	if v.raw[0] != '"' {
		v.refuse("this is %s: write a string, in quotes", kindOf(v.raw))
		return ""
	}
	s, ok := unquote(v.raw)
	if !ok {
		v.refuse(`the text has half of a surrogate pair (\ud800 to \udfff): send the whole character`)
	}
	return s
}

// word is a string that says something: an empty one is more likely a template's gap than a wish for the default.
func (v value) word() string {
	s := v.str()
	if s == "" && !v.wrong.at(v.pointer()) {
		v.refuse("this is empty: leave the field out, or fill it")
	}
	return s
}

// duration takes a string; a bare number is told how to be one.
func (v value) duration() string {
	if c := v.raw[0]; c >= '0' && c <= '9' {
		v.refuse("write the duration as a string, such as %q or %q (seconds)", "4h", cut(string(v.raw), 16))
		return ""
	}
	return v.word()
}

func (v value) integer() int {
	if c := v.raw[0]; c != '-' && (c < '0' || c > '9') {
		v.refuse("this is %s: write a number, without quotes", kindOf(v.raw))
		return 0
	}
	n, err := strconv.ParseInt(string(v.raw), 10, 32)
	if err != nil || v.raw[0] == '-' {
		v.refuse("write a whole number of plain digits, not %s", cut(string(v.raw), 32))
	}
	return int(n)
}

func (v value) strs() []string {
	if v.raw[0] != '[' {
		v.refuse("this is %s: write an array of strings", kindOf(v.raw))
		return nil
	}
	out := []string{}
	s := scanner{body: v.raw, at: 1}
	for s.blanks(); s.body[s.at] != ']'; s.blanks() {
		item := value{raw: s.next(), in: v.in, name: v.name, item: "/" + strconv.Itoa(len(out)), wrong: v.wrong}
		out = append(out, item.str())
		s.blanks()
		if s.body[s.at] == ',' {
			s.at++
		}
	}
	return out
}

// objects reads an array of at most so many objects.
func objects[T any](v value, most int, fields []field[T]) []T {
	if v.raw[0] != '[' {
		v.refuse("this is %s: write an array of objects", kindOf(v.raw))
		return nil
	}
	out := []T{}
	s := scanner{body: v.raw, at: 1}
	for s.blanks(); s.body[s.at] != ']'; s.blanks() {
		if len(out) == most {
			v.refuse("this may be %d items at most", most)
			return nil
		}
		at := v.pointer() + "/" + strconv.Itoa(len(out))
		out = append(out, *new(T))
		if raw := s.next(); raw[0] == '{' {
			members(&scanner{body: raw}, at, &out[len(out)-1], fields, v.wrong)
		} else {
			v.wrong.add(at, "this is %s: write an object", kindOf(raw))
		}
		s.blanks()
		if s.body[s.at] == ',' {
			s.at++
		}
	}
	return out
}

func (v value) boolean() bool {
	if v.raw[0] != 't' && v.raw[0] != 'f' {
		v.refuse("this is %s: write true or false, without quotes", kindOf(v.raw))
	}
	return v.raw[0] == 't'
}

// object reads an object within an object.
func object[T any](v value, to *T, fields []field[T]) {
	if v.raw[0] != '{' {
		v.refuse("this is %s: write an object", kindOf(v.raw))
		return
	}
	members(&scanner{body: v.raw}, v.pointer(), to, fields, v.wrong)
}

// time reads RFC 3339, strictly.
func (v value) time() time.Time {
	s := v.word()
	if v.wrong.at(v.pointer()) {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || !strictTime(s) {
		v.refuse("write the time as RFC 3339, such as 2006-01-02T15:04:05Z or 2006-01-02T15:04:05+02:00")
	} else if t.Year() < 2000 {
		v.refuse("%s is before 2000: check the sender's clock", s)
	}
	return t.UTC().Truncate(time.Microsecond)
}

// strictTime refuses what time.Parse takes beyond RFC 3339: hours of one digit, a comma before fractions, offsets of a day and more.
func strictTime(s string) bool {
	offset := len(s) - len("+23:59")
	return s[len("2006-01-02T15")] == ':' && !strings.Contains(s, ",") &&
		(s[len(s)-1] == 'Z' || s[offset+1:offset+3] < "24" && s[offset+4:] < "60")
}

func cut(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// scanner walks over JSON that is known to be valid.
type scanner struct {
	body []byte
	at   int
}

func (s *scanner) blanks() {
	for s.at < len(s.body) && (s.body[s.at] == ' ' || s.body[s.at] == '\t' || s.body[s.at] == '\n' || s.body[s.at] == '\r') {
		s.at++
	}
}

// next gives the value that begins here, and moves behind it.
func (s *scanner) next() []byte {
	from, depth := s.at, 0
	for {
		switch s.body[s.at] {
		case '"':
			for s.at++; s.body[s.at] != '"'; s.at++ {
				if s.body[s.at] == '\\' {
					s.at++
				}
			}
			s.at++
		case '{', '[':
			depth++
			s.at++
			s.separators()
			continue
		case '}', ']':
			depth--
			s.at++
		default: // number, true, false, null
			for s.at < len(s.body) && !strings.ContainsRune(" \t\n\r,:]}", rune(s.body[s.at])) {
				s.at++
			}
		}
		if depth == 0 {
			return s.body[from:s.at]
		}
		s.separators()
	}
}

// separators skips what stands between the values of an array or object.
func (s *scanner) separators() {
	for strings.ContainsRune(" \t\n\r,:", rune(s.body[s.at])) {
		s.at++
	}
}

// unquote reads a JSON string; ok is false when it has half of a surrogate pair, which no UTF-8 text can hold.
func unquote(raw []byte) (s string, ok bool) {
	inner := raw[1 : len(raw)-1]
	escaped := false
	for i := 0; i < len(inner); i++ {
		if inner[i] != '\\' {
			continue
		}
		escaped = true
		if i++; inner[i] != 'u' {
			continue
		}
		switch high := hex4(inner[i+1:]); {
		case high >= 0xdc00 && high <= 0xdfff:
			return "", false
		case high >= 0xd800 && high <= 0xdbff:
			if i+11 > len(inner) || inner[i+5] != '\\' || inner[i+6] != 'u' {
				return "", false
			}
			if low := hex4(inner[i+7:]); low < 0xdc00 || low > 0xdfff {
				return "", false
			}
			i += 6
		}
		i += 4
	}
	if !escaped {
		return string(inner), true
	}
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}

func hex4(b []byte) uint64 {
	n, _ := strconv.ParseUint(string(b[:4]), 16, 32) // valid JSON: four digits are there
	return n
}

// decode reads a small request body and checks it by its tags. Where it is not required, none is the empty object.
func decode[T any](s *Server, c *gin.Context, to *T, fields []field[T], required bool) error {
	body, err := readBody(c)
	if err != nil || body == nil && !required {
		return err
	}
	var wrong problems
	decodeObject(body, to, fields, &wrong)
	if !wrong.at("") {
		s.check(to, &wrong)
	}
	return wrong.err()
}
