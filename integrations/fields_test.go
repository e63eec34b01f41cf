package integrations_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// wanted are the paths that the test asks fields for; what lies below "root" counts as if it lay at the top.
var wanted = []string{"srcip", "a.srcip", "a.b.c", "a.0", "a.1.b", "b@x", "id", "a.*"}

// fields reads each document with core.part's fields, under one shell and one awk, and returns for each f_error and the wanted values.
func fields(t *testing.T, shell string, awk []string, documents [][]byte) [][]string {
	t.Helper()
	dir := t.TempDir()
	for i, d := range documents {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%06d", i)), d, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	core, err := filepath.Abs("core.part")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(shell, "-c", `set -u
		core=$1 dir=$2
		shift 2
		by="$*"
		awk() { $by "$@"; }
		. "$core"
		for document in "$dir"/*; do
			f_error='no awk' f_srcip='' f_a_srcip='' f_a_b_c='' f_a_0='' f_a_1_b='' f_b_x='' f_id='' f_a__=''
			eval "$(fields root srcip a.srcip a.b.c a.0 a.1.b b@x id 'a.*' <"$document")"
			printf '%s\0' "$f_error" "$f_srcip" "$f_a_srcip" "$f_a_b_c" "$f_a_0" "$f_a_1_b" "$f_b_x" "$f_id" "$f_a__"
		done`, shell, core, dir, strings.Join(awk, " "))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || errs.Len() > 0 {
		t.Fatalf("%v %s", err, errs.Bytes())
	}
	words := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	per := len(wanted) + 1
	if len(words) != per*len(documents) {
		t.Fatalf("%d words for %d documents", len(words), len(documents))
	}
	answers := make([][]string, 0, len(documents))
	for i := range documents {
		answers = append(answers, words[i*per:(i+1)*per])
	}
	return answers
}

// eachAwk runs the test under every awk that hosts of SIEMs have, of those that are here.
func eachAwk(t *testing.T, spec func(t *testing.T, shell string, awk []string)) {
	t.Helper()
	t.Parallel()
	for _, awk := range []string{"mawk", "gawk", "busybox awk"} {
		for _, shell := range []string{"dash", "bash"} {
			t.Run(awk+"/"+shell, func(t *testing.T) {
				t.Parallel()
				words := strings.Fields(awk)
				if _, err := exec.LookPath(words[0]); err != nil {
					t.Skip(err)
				}
				spec(t, shell, words)
			})
		}
	}
}

// at is what a reader of the whole document finds at a path.
func at(v any, path string) string {
	for part := range strings.SplitSeq(path, ".") {
		if part == "*" {
			return words(v)
		}
		switch in := v.(type) {
		case map[string]any:
			v = in[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(in) {
				return ""
			}
			v = in[i]
		default:
			return ""
		}
	}
	text, _ := word(v)
	return text
}

// words are an array's, a blank before each; an object with numbers for names is as good as one.
func words(v any) (out string) {
	list, _ := v.([]any)
	if object, ok := v.(map[string]any); ok {
		list = []any{object["0"]} // the one number among the writer's names
	}
	for _, element := range list {
		if text, ok := word(element); ok {
			out += " " + text
		}
	}
	return out
}

func word(v any) (text string, ok bool) {
	switch v := v.(type) {
	case string:
		return strings.ReplaceAll(v, "\x00", "\ufffd"), true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}

// writer writes random documents, with every freedom that JSON has.
type writer struct {
	*rand.Rand
	bytes.Buffer
}

func (w *writer) blanks() {
	for w.IntN(4) == 0 {
		w.WriteByte(" \t\r\n"[w.IntN(4)])
	}
}

func (w *writer) text(runes string, most int) {
	w.WriteByte('"')
	all := []rune(runes)
	for range w.IntN(most) {
		r := all[w.IntN(len(all))]
		switch {
		case r > 0xffff && w.IntN(2) == 0:
			fmt.Fprintf(w, `\u%04X\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		case r < ' ', r == '"', r == '\\', r <= 0xffff && w.IntN(8) == 0:
			if i := strings.IndexRune("\"\\/\b\f\n\r\t", r); i >= 0 && w.IntN(2) == 0 {
				fmt.Fprintf(w, `\%c`, `"\/bfnrt`[i])
			} else {
				fmt.Fprintf(w, `\u%04x`, r)
			}
		default:
			w.WriteRune(r)
		}
	}
	w.WriteByte('"')
}

// deepest is the depth at which a document begins.
const deepest = 4

func (w *writer) value(depth int) {
	w.blanks()
	defer w.blanks()
	switch kind := w.IntN(9); {
	case depth == deepest, depth > 0 && kind < 3:
		w.WriteByte('{')
		names := []string{"srcip", "a", "b", "c", "b@x", "id", "a.b", "a.srcip", "0", "root", "}{", "é\"'"}
		w.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for i, name := range names[:w.IntN(len(names)+1)] {
			if i > 0 {
				w.WriteByte(',')
			}
			w.blanks()
			raw, _ := json.Marshal(name)
			w.Write(raw)
			w.blanks()
			w.WriteByte(':')
			w.value(depth - 1)
		}
		w.blanks()
		w.WriteByte('}')
	case depth > 0 && kind == 3:
		w.WriteByte('[')
		for i := range w.IntN(4) {
			if i > 0 {
				w.WriteByte(',')
			}
			w.value(depth - 1)
		}
		w.blanks()
		w.WriteByte(']')
	case kind == 4:
		w.WriteString([]string{"0", "-1", "10.50", "1e3", "-0.1E-7", "true", "false", "null"}[w.IntN(8)])
	default:
		w.text("abc019 .:{}[],\"\\'$(id)`;\n\r\t\b\f/\x00\x01\x1f\x7f<&>%é€😀\u2028\uffff", 30)
	}
}

// What fields finds is what a reader of the whole document finds, and what it takes for JSON is JSON.
func TestFields_findWhatIsThere(t *testing.T) {
	const n = 200
	eachAwk(t, func(t *testing.T, shell string, awk []string) {
		w := &writer{Rand: rand.New(rand.NewPCG(1, uint64(len(awk[0]))))}
		var documents [][]byte
		for i := range n {
			w.Reset()
			w.value(deepest)
			d := bytes.Clone(w.Bytes())
			if at := w.IntN(len(d)); i%2 == 1 { // spoil it
				d = append(d[:at], append([]byte{"\"\\{}[],:0e.\x00\x1f\xff x"[w.IntN(15)]}, d[at+w.IntN(2):]...)...)
			}
			documents = append(documents, d)
		}
		read := 0
		for i, got := range fields(t, shell, awk, documents) {
			d := documents[i]
			if strings.HasPrefix(got[0], "two values") {
				continue
			}
			if valid := json.Valid(d); valid != (got[0] == "") {
				t.Errorf("%q: JSON %v, said %q", d, valid, got[0])
				continue
			} else if !valid {
				continue
			}
			dec := json.NewDecoder(bytes.NewReader(d))
			dec.UseNumber()
			var v any
			if err := dec.Decode(&v); err != nil {
				t.Fatal(err)
			}
			if object, ok := v.(map[string]any); ok && object["root"] != nil || i%2 == 1 { // what lies below root is told apart below
				continue
			}
			for k, path := range wanted {
				if want := at(v, path); got[k+1] != want {
					t.Errorf("%q at %s: got %q, want %q", d, path, got[k+1], want)
				} else if want != "" {
					read++
				}
			}
		}
		if read < n/10 {
			t.Errorf("only %d values were there to be found", read)
		}
	})
}

func TestFields_ofAWholeArray(t *testing.T) {
	eachAwk(t, func(t *testing.T, shell string, awk []string) {
		document := `{"a":["10.0.0.5",null,{"b":"x"},["y"],"it's *",7,true,""]}`
		got := fields(t, shell, awk, [][]byte{[]byte(document)})[0]
		if all := got[len(got)-1]; got[0] != "" || all != " 10.0.0.5 it's * 7 true " {
			t.Errorf("%q, got %q", got[0], all)
		}
	})
}

func TestFields_strict(t *testing.T) {
	nested := func(n int) string { return strings.Repeat(`{"x":`, n) + "1" + strings.Repeat("}", n) }
	for _, row := range []struct {
		document string
		fault    string // in f_error; empty: none
		srcip    string
	}{
		{`{"srcip":"1.2.3.4"}`, "", "1.2.3.4"},
		{`{"root":{"srcip":"1.2.3.4"}}`, "", "1.2.3.4"},
		{`{"root":{"srcip":"1.2.3.4"},"srcip":"1.2.3.4"}`, "", "1.2.3.4"},
		{`{"root":{"srcip":"1.2.3.4"},"srcip":"5.6.7.8"}`, "two values of srcip", ""},
		{`{"srcip":"1.2.3.4","srcip":"5.6.7.8"}`, "two values of srcip", ""},
		{`{"srcip":"1.2.3.4","sr\u0063ip":"5.6.7.8"}`, "two values of srcip", ""},
		{`{"srcip":{"srcip":"1.2.3.4"}}`, "", ""},
		{`[{"srcip":"1.2.3.4"}]`, "", ""},
		{`{"note":"\"srcip\":\"1.2.3.4\"","x":["}","{\"srcip\":1}"]}`, "", ""},
		{`{"srcip":null}`, "", ""},
		{`{"srcip":"'; touch pwned; '"}`, "", "'; touch pwned; '"},
		{`{"srcip":"a\n\n"}`, "", "a\n\n"},
		{`{"srcip":"\ud83d\ude00\ud83dx\udc00\u0000"}`, "", "😀\ufffdx\ufffd\ufffd"},
		{`{"srcip":"` + strings.Repeat("x", 5000) + `"}`, "", strings.Repeat("x", 1024)},
		{nested(40), "", ""}, {nested(41), "nested too deeply", ""}, {strings.Repeat("[", 100000), "nested too deeply", ""},
		{"", "no value", ""}, {" ", "no value", ""}, {"{}{}", "more after its end", ""}, {`{"a":1,}`, "no name", ""}, {`[1,]`, "no value", ""},
		{`{"a" 1}`, "no colon", ""}, {`{"a":1 "b":2}`, "no comma", ""}, {`{"a":01}`, "no value", ""}, {`{"a":+1}`, "no value", ""}, {`{'a':1}`, "no name", ""},
		{`{"a":"`, "no end of a string", ""}, {"{\"a\":\"\n\"}", "no end of a string", ""}, {`{"a":"\x"}`, "no end of a string", ""},
		{`{"a":"\u12g4"}`, "no hexadecimal digit", ""}, {"{\"a\":\x00}", "no value", ""}, {"\ufeff{}", "no value", ""}, {`{"a":NaN}`, "no value", ""},
	} {
		for _, got := range fields(t, "dash", []string{"mawk"}, [][]byte{[]byte(row.document)}) {
			if fault := strings.HasPrefix(got[0], row.fault) && (got[0] == "") == (row.fault == ""); !fault || got[1] != row.srcip {
				t.Errorf("%.100q: %q, srcip %q; want %q, %q", row.document, got[0], got[1], row.fault, row.srcip)
			}
		}
	}
}
