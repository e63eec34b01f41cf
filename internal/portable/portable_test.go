package portable

import (
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

func write[R any](t testing.TB, f Format, table *Table[R], rows ...R) string {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, f, table, noon)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		if err := w.Write(&rows[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// read gives the rows, their lines, and what was wrong by line.
func read[R any](t testing.TB, table *Table[R], file string) (rows []R, lines []int, wrong map[int]string) {
	t.Helper()
	r, err := NewReader(strings.NewReader(file), table)
	if err != nil {
		t.Fatal(err)
	}
	wrong = map[int]string{}
	for {
		row, line, err := r.Next()
		var bad *RowError
		switch {
		case errors.Is(err, io.EOF):
			return rows, lines, wrong
		case errors.As(err, &bad):
			wrong[line] = err.Error()
		case err != nil:
			t.Fatal(err)
		default:
			rows, lines = append(rows, row), append(lines, line)
		}
	}
}

func TestFormats_giveEveryTextBackExactly(t *testing.T) {
	t.Parallel()
	odd := rapid.OneOf(rapid.String(), rapid.StringOf(rapid.SampledFrom([]rune("=+-@\t\r\n',\";＝ \x00é"))))
	rapid.Check(t, func(t *rapid.T) {
		b := Block{
			Source: odd.Draw(t, "source"), DestinationPort: rapid.IntRange(0, 65535).Draw(t, "port"), Reason: odd.Draw(t, "reason"),
			Origin: odd.Draw(t, "origin"), TTL: odd.Draw(t, "ttl"), Firewalls: []string{"edge-a", "dc"}, CreatedBy: odd.Draw(t, "by"),
			ExpiresAt: time.UnixMicro(rapid.Int64Range(1e15, 4e15).Draw(t, "expires")).UTC(),
		}
		for _, f := range Formats {
			var file bytes.Buffer
			w, err := NewWriter(&file, f, Blocks, noon)
			if err == nil {
				err = errors.Join(w.Write(&b), w.Write(&b), w.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := NewReader(&file, Blocks)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				got, _, err := r.Next()
				if err != nil {
					t.Fatalf("%s: %v", f, err)
				}
				want := b
				want.ExportedAt = noon
				if d := cmp.Diff(want, got); d != "" {
					t.Fatalf("%s (-want +got)\n%s", f, d)
				}
			}
			if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
				t.Fatalf("%s: %v behind the last row", f, err)
			}
		}
	})
}

func TestEntries_comeBackExactly(t *testing.T) {
	t.Parallel()
	rows := []Entry{
		{List: "bad", Type: "domain", TTL: "24h", MaxTTL: "none", Refresh: "first-seen", Capacity: 1000, Subdomains: true, HitSyslog: true, HitEvery: "1m"},
		{List: "bad", Type: "domain", Key: "example.org", ExpiresAt: noon, LastSeen: noon.Add(-time.Hour), Comment: "=1+1", Origin: "a, b", Count: 7},
		{List: "bad", Type: "domain", Key: "example.net", TTL: "none"},
	}
	for _, f := range Formats {
		got, _, wrong := read(t, Entries, write(t, f, Entries, slices.Clone(rows)...))
		for i := range got {
			got[i].ExportedAt = time.Time{}
		}
		if d := cmp.Diff(rows, got); d != "" || len(wrong) > 0 {
			t.Errorf("%s: %v (-want +got)\n%s", f, wrong, d)
		}
	}
	if _, _, wrong := read(t, Entries, "list,key,subdomains\nbad,x,perhaps\nbad,y,FALSE\n"); len(wrong) != 1 || wrong[2] == "" {
		t.Errorf("wrong are %v", wrong)
	}
}

// What a field is must not be forgotten in one of the formats.
func TestTables_haveAColumnForEachMember(t *testing.T) {
	t.Parallel()
	check := func(row any, columns []string) {
		typ := reflect.TypeOf(row)
		var members []string
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if name == "-" {
				name = "exported_at"
			}
			members = append(members, name)
		}
		if d := cmp.Diff(members, columns); d != "" {
			t.Errorf("%s: members and columns differ\n%s", typ, d)
		}
	}
	check(Block{}, names(Blocks))
	check(Exemption{}, names(Exemptions))
	check(Entry{}, names(Entries))
}

func names[R any](t *Table[R]) (out []string) {
	for _, c := range t.columns {
		out = append(out, c.name)
	}
	return out
}

func TestCSV_isInertInASpreadsheet(t *testing.T) {
	t.Parallel()
	file := write(t, CSV, Exemptions, Exemption{Prefix: "203.0.113.7", Reason: `=cmd|'/c calc'!A1`}, Exemption{Prefix: "203.0.113.8", Reason: "'quoted'"},
		Exemption{Prefix: "203.0.113.9", Reason: "\t@sum(\"1,2\")\r\nsecond line"}, Exemption{Prefix: "203.0.113.10", Reason: "-1"})
	other := csv.NewReader(strings.NewReader(file)) // another's reader agrees on the cells
	records, err := other.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range records[1:] {
		for _, cell := range r {
			if cell != "" && strings.ContainsRune("=+-@\t\r\n", rune(cell[0])) {
				t.Errorf("a spreadsheet would take %q for a formula", cell)
			}
		}
		got = append(got, r[1])
	}
	if d := cmp.Diff([]string{`'=cmd|'/c calc'!A1`, `''quoted'`, "'\t@sum(\"1,2\")\nsecond line", "'-1"}, got); d != "" {
		t.Errorf("reasons (-want +got)\n%s", d)
	}
	if strings.Count(file, "\r\n") != strings.Count(file, "\n") {
		t.Error("a line end is no CRLF")
	}
}

// Exports can be joined; each row is as old as its own.
func TestReader_takesJoinedFiles(t *testing.T) {
	t.Parallel()
	one, two := Block{Source: "203.0.113.7"}, Block{Source: "203.0.113.8"}
	joined := write(t, JSON, Blocks, one) + strings.Replace(write(t, JSON, Blocks, two), "2026-03-01", "2026-03-02", 1)
	rows, lines, wrong := read(t, Blocks, joined)
	one.ExportedAt, two.ExportedAt = noon, noon.AddDate(0, 0, 1)
	if d := cmp.Diff([]Block{one, two}, rows); d != "" || len(wrong) > 0 || !slices.Equal(lines, []int{2, 4}) {
		t.Errorf("lines %v, wrong %v (-want +got)\n%s", lines, wrong, d)
	}
	r, err := NewReader(strings.NewReader(write(t, JSON, Blocks)+write(t, JSON, Exemptions)), Blocks)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Next(); err == nil || !strings.Contains(err.Error(), "holds exemptions, not blocks") {
		t.Errorf("a file of another kind in the middle: %v", err)
	}
}

// What people write by hand: few columns, in their own order, with LF, a BOM and blank lines.
func TestReader_takesWhatPeopleWrite(t *testing.T) {
	t.Parallel()
	rows, lines, wrong := read(t, Blocks, "\ufeffreason, source ,ttl,destination_port\n\"two\nlines\",203.0.113.7,4h,22\n\n,203.0.113.8,none,\n")
	want := []Block{{Source: "203.0.113.7", Reason: "two\nlines", TTL: "4h", DestinationPort: 22}, {Source: "203.0.113.8", TTL: "none"}}
	if d := cmp.Diff(want, rows); d != "" || len(wrong) > 0 {
		t.Errorf("%v (-want +got)\n%s", wrong, d)
	}
	if d := cmp.Diff([]int{2, 5}, lines); d != "" {
		t.Errorf("lines (-want +got)\n%s", d)
	}
	rows, lines, wrong = read(t, Blocks, "{\"source\":\"203.0.113.7\"}\n\n{ \"source\": \"203.0.113.8\", \"firewalls\": [\"edge\"] }")
	if d := cmp.Diff([]Block{{Source: "203.0.113.7"}, {Source: "203.0.113.8", Firewalls: []string{"edge"}}}, rows); d != "" || len(wrong) > 0 {
		t.Errorf("%v (-want +got)\n%s", wrong, d)
	}
	if d := cmp.Diff([]int{1, 3}, lines); d != "" {
		t.Errorf("lines (-want +got)\n%s", d)
	}
	if rows, _, wrong := read(t, Blocks, ""); len(rows)+len(wrong) > 0 {
		t.Errorf("an empty file holds %v, %v", rows, wrong)
	}
}

func TestReader_goesOnAfterABadRow(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]map[int]string{
		"source,expires_at,destination_port\na,tomorrow,\nb,,x\nc\nd\"d,,\n\"e\"e,,\n\xff,,\nlast,,\n": {
			2: `expires_at: "tomorrow" is no time such as 2006-01-02T15:04:05Z`, 3: `destination_port: "x" is no number`,
			4: "the row has 1 cells, and the header 3", 5: errQuote.Error(), 6: errQuote.Error(), 7: "source is not UTF-8",
		},
		`{"parry": "blocks", "version": 1}` + "\n" + `{"source":1}` + "\n" + `{"sauce":"x"}` + "\nnonsense\n" + `{"source":"a"}{"source":"b"}` + "\n{\"source\":\"\xff\"}\n" +
			`{"source":"last"}`: {
			2: "cannot unmarshal number into Go struct field Block.source of type string", 3: `unknown field "sauce"`,
			4: "invalid character 'o' in literal null (expecting 'u')", 5: "there is something behind the row", 6: "this is not UTF-8",
		},
	} {
		rows, _, wrong := read(t, Blocks, file)
		if d := cmp.Diff(want, wrong); d != "" {
			t.Errorf("wrong (-want +got)\n%s", d)
		}
		if len(rows) != 1 || rows[0].Source != "last" {
			t.Errorf("read %+v", rows)
		}
	}
}

func TestReader_refusesAFileThatIsAnother(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		`{"parry":"exemptions","version":1}`: "this file holds exemptions, not blocks",
		`{"parry":"blocks","version":2}`:     "this file is of version 2, and this parry reads 1",
		"source;reason\n":                    `the header row has a column "source;reason"; there are source, `,
		"source,source\n":                    "twice",
		"\"source\n":                         "not closed",
	} {
		if _, err := NewReader(strings.NewReader(file), Blocks); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", file, err, want)
		}
	}
	for _, file := range []string{"source\n\"" + strings.Repeat("x", maxRecord+1), "{\"source\":\"" + strings.Repeat("x", 2*maxRecord) + "\"}", "source\n\"a"} {
		r, err := NewReader(strings.NewReader(file), Blocks)
		if err != nil {
			t.Fatal(err)
		}
		var bad *RowError
		if _, _, err := r.Next(); err == nil || errors.As(err, &bad) || errors.Is(err, io.EOF) {
			t.Errorf("%.20q…: %v", file, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add("source,reason\n203.0.113.7,\"a\"\"b\"\r\n")
	f.Add(`{"parry":"blocks","version":1}` + "\n" + `{"source":"203.0.113.7"}`)
	f.Fuzz(func(t *testing.T, file string) {
		r, err := NewReader(strings.NewReader(file), Blocks)
		if err != nil {
			return
		}
		for range len(file) + 2 {
			_, _, err := r.Next()
			var bad *RowError
			if err != nil && !errors.As(err, &bad) {
				return
			}
		}
		t.Fatal("reading does not end")
	})
}
