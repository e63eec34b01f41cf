package feeds

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/internal/parry"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// addresses makes entries that were seen one second after the other.
func addresses(prefixes ...string) []Entry {
	var out []Entry
	for i, text := range prefixes {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a := netip.MustParseAddr(text)
			p = netip.PrefixFrom(a, a.BitLen())
		}
		at := noon.Unix() + int64(i)
		out = append(out, Entry{Prefix: p, First: at, Last: at, Expires: at + 3600, Count: 1, Comment: "ssh brute force"})
	}
	return out
}

func keys(texts ...string) []Entry {
	var out []Entry
	for i, k := range texts {
		out = append(out, Entry{Key: k, First: noon.Unix() + int64(i), Last: noon.Unix() + int64(i), Count: 1})
	}
	return out
}

func snap(name string, t parry.ListType, entries []Entry) *snapshot {
	return (*snapshot)(nil).next(name, t, entries, 7, 1, change{revision: 7, at: noon}, noon)
}

func rendered(t testing.TB, s *snapshot, q Query) *Rendering {
	t.Helper()
	q.Name = s.name
	q, err := q.normal(s.typ)
	if err != nil {
		t.Fatal(err)
	}
	r, err := render(s, q, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// mixed has what every format must cope with, out of order.
var mixed = []string{"203.0.113.7", "2001:db8::/48", "198.51.100.0/26", "2001:db8:1::1", "192.0.2.0/24", "203.0.113.6", "198.18.0.0/15"}

func TestFormats_areWrittenAsTheirConsumersReadThem(t *testing.T) {
	t.Parallel()
	s := snap(Blocks, parry.ListCIDR, addresses(mixed...))
	for name, c := range map[string]struct {
		q       Query
		want    string
		leftOut int
	}{
		"plain": {q: Query{}, want: "# parry feed blocks, 7 entries\n192.0.2.0/24\n198.18.0.0/15\n198.51.100.0/26\n203.0.113.6\n203.0.113.7\n2001:db8::/48\n2001:db8:1::1\n"},
		"plain, IPv4": {q: Query{Family: 4, Aggregate: true},
			want: "# parry feed blocks, 4 entries\n192.0.2.0/24\n198.18.0.0/15\n198.51.100.0/26\n203.0.113.6/31\n"},
		"plain, IPv6": {q: Query{Family: 6}, want: "# parry feed blocks, 2 entries\n2001:db8::/48\n2001:db8:1::1\n"},
		"plain, the newest three": {q: Query{Limit: 3},
			want: "# parry feed blocks, 3 entries\n192.0.2.0/24\n198.18.0.0/15\n203.0.113.6\n# truncated: 3 of 7 entries\n"},
		"cidr":              {q: Query{Format: CIDR, Family: 4}, want: "192.0.2.0/24\n198.18.0.0/15\n198.51.100.0/26\n203.0.113.6/32\n203.0.113.7/32\n"},
		"cidr, truncated":   {q: Query{Format: CIDR, Limit: 2}, want: "198.18.0.0/15\n203.0.113.6/32 # truncated: 2 of 7 entries\n"},
		"iprep":             {q: Query{Format: IPRep, Limit: 1}, want: "# parry feed blocks, 1 entries\n198.18.0.0/15,1,100\n# truncated: 1 of 7 entries\n"},
		"iprep, category":   {q: Query{Format: IPRep, Family: 6, Category: 3, Score: 127}, want: "# parry feed blocks, 2 entries\n2001:db8::/48,3,127\n2001:db8:1::1,3,127\n"},
		"geo":               {q: Query{Format: Geo, Family: 6}, want: "# parry feed blocks, 2 entries\n2001:db8::/48 1;\n2001:db8:1::1/128 1;\n"},
		"geo, value":        {q: Query{Format: Geo, Family: 4, Limit: 1, Value: "deny"}, want: "# parry feed blocks, 1 entries\n198.18.0.0/15 deny;\n# truncated: 1 of 5 entries\n"},
		"map":               {q: Query{Format: Map, Family: 6}, want: "# parry feed blocks, 2 entries\n2001:db8::/48 1\n2001:db8:1::1 1\n"},
		"cdb-wazuh, IPv6":   {q: Query{Format: CDBWazuh, Family: 6}, want: "\"2001:db8:1::1\":blocks\n", leftOut: 1},
		"cdb-ossec, IPv6":   {q: Query{Format: CDBOSSEC, Family: 6}, want: "#parry:empty\n", leftOut: 2},
		"cdb-wazuh, newest": {q: Query{Format: CDBWazuh, Limit: 1, Value: "x"}, want: "#parry:truncated\n198.18.:x\n198.19.:x\n", leftOut: 1},
		"json": {q: Query{Format: JSON, Family: 6, Limit: 1}, want: `{"feed":"blocks","type":"cidr","count":1,"total":2,"entries":[
{"key":"2001:db8:1::1","first_seen":"2026-11-21T12:00:03Z","last_seen":"2026-11-21T12:00:03Z","expires_at":"2026-11-21T13:00:03Z","count":1,"comment":"ssh brute force"}]}
`},
		"csv": {q: Query{Format: CSV, Family: 6}, want: "key,first_seen,last_seen,expires_at,count,comment\r\n" +
			"2001:db8::/48,2026-11-21T12:00:01Z,2026-11-21T12:00:01Z,2026-11-21T13:00:01Z,1,ssh brute force\r\n" +
			"2001:db8:1::1,2026-11-21T12:00:03Z,2026-11-21T12:00:03Z,2026-11-21T13:00:03Z,1,ssh brute force\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rendered(t, s, c.q)
			if d := cmp.Diff(c.want, string(r.Body)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if r.LeftOut != c.leftOut {
				t.Errorf("%d left out, want %d", r.LeftOut, c.leftOut)
			}
		})
	}
}

// A CDB key is matched by octets: what ends within one must be written out, and what is written is disjoint, because a key may stand there once.
func TestCDB_writesSubnetsByOctets(t *testing.T) {
	t.Parallel()
	r := rendered(t, snap("x", parry.ListCIDR, addresses("198.51.100.4/30", "198.51.100.5", "203.0.112.0/23", "10.0.0.0/8", "10.0.0.0/7")), Query{Format: CDBOSSEC})
	want := "10.:x\n11.:x\n"
	want += "198.51.100.4:x\n198.51.100.5:x\n198.51.100.6:x\n198.51.100.7:x\n203.0.112.:x\n203.0.113.:x\n"
	if d := cmp.Diff(want, string(r.Body)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	r = rendered(t, snap("x", parry.ListCIDR, addresses("0.0.0.0/0")), Query{Format: CDBOSSEC})
	if n := strings.Count(string(r.Body), "\n"); n != 256 || !strings.HasPrefix(string(r.Body), "0.:x\n1.:x\n") || !strings.HasSuffix(string(r.Body), "\n255.:x\n") {
		t.Errorf("everything is %d lines", n)
	}
}

func TestFormats_ofOtherKeys(t *testing.T) {
	t.Parallel()
	s := snap("users", parry.ListUser, keys(`corp\anna`, "bob:x", "eve smith", `say "hi"`, "#root", "line\nend", "=cmd()", "\xff", " lead", "zoë"))
	for name, c := range map[string]struct {
		q       Query
		want    string
		leftOut int
	}{
		"plain":     {Query{}, "# parry feed users, 6 entries\n=cmd()\nbob:x\ncorp\\anna\neve smith\nsay \"hi\"\nzoë\n", 4},
		"map":       {Query{Format: Map}, "# parry feed users, 4 entries\n=cmd() 1\nbob:x 1\ncorp\\anna 1\nzoë 1\n", 6},
		"cdb-wazuh": {Query{Format: CDBWazuh}, "=cmd():users\n\"bob:x\":users\ncorp\\anna:users\n\"eve smith\":users\nzoë:users\n", 5},
		"cdb-ossec": {Query{Format: CDBOSSEC}, "=cmd():users\ncorp\\anna:users\neve smith:users\nsay \"hi\":users\nzoë:users\n", 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rendered(t, s, c.q)
			if d := cmp.Diff(c.want, string(r.Body)); d != "" || r.LeftOut != c.leftOut {
				t.Errorf("%d left out (-want +got):\n%s", r.LeftOut, d)
			}
		})
	}
}

// grammars are the lines that each consumer's parser takes, comments apart.
var grammars = map[Format]struct {
	line     *regexp.Regexp
	comments bool
}{
	Plain: {regexp.MustCompile(`^[0-9a-f.:]+(/\d{1,3})?$`), true},
	CIDR:  {regexp.MustCompile(`^[0-9a-f.:]+/\d{1,3}( # [ -~]*)?$`), false},
	IPRep: {regexp.MustCompile(`^[0-9a-f.:]+(/\d{1,3})?,\d{1,2},\d{1,3}$`), true},
	Geo:   {regexp.MustCompile(`^[0-9a-f.:]+/\d{1,3} [A-Za-z0-9_.-]+;$`), true},
	Map:   {regexp.MustCompile(`^[0-9a-f.:]+(/\d{1,3})? [A-Za-z0-9_.-]+$`), true},
	// framework/wazuh/core/cdb_list.py, validate_cdb_list, which also refuses an empty list
	CDBWazuh: {regexp.MustCompile(`^(?:"([\w\-: ]+?)"|[^:"\s]+):(?:"([\w\-: ]*?)"$|[^:"]*$)`), false},
	CDBOSSEC: {regexp.MustCompile(`^[^:]+:[^:]*$`), false},
}

func TestFormats_everyLineFitsItsConsumersGrammar(t *testing.T) {
	t.Parallel()
	for _, entries := range [][]Entry{addresses(mixed...), nil} {
		s := snap(Blocks, parry.ListCIDR, entries)
		for format, g := range grammars {
			for _, limit := range []int{0, 1, 3} {
				r := rendered(t, s, Query{Format: format, Limit: limit})
				for i, line := range strings.Split(strings.TrimSuffix(string(r.Body), "\n"), "\n") {
					comment := strings.HasPrefix(line, "#") && (g.comments || entries == nil && i == 0)
					if !comment && !g.line.MatchString(line) {
						t.Errorf("%s, limit %d: the line %q", format, limit, line)
					}
				}
			}
		}
	}
}

func TestFormats_anEmptyFeedIsNeverAnEmptyBody(t *testing.T) {
	t.Parallel()
	for _, typ := range []parry.ListType{parry.ListCIDR, parry.ListUser} {
		s := snap("none", typ, nil)
		known := Formats
		if typ == parry.ListUser {
			known = keyFormats
		}
		for _, format := range known {
			r := rendered(t, s, Query{Format: format})
			switch first, _, _ := strings.Cut(string(r.Body), "\n"); {
			case format == CSV || format == JSON:
				if len(r.Body) == 0 {
					t.Errorf("%s is empty", format)
				}
			case !strings.HasPrefix(first, "#"):
				t.Errorf("%s begins with %q", format, first)
			}
		}
	}
}

var hostile = []string{
	`=cmd|' /C calc'!A0`, "+1", "-1", "@SUM(1)", "\t=1", "  =1", "a\r\nb,\"c\"\n=1", `</script><script>alert(1)</script>`, "\x00\x1b[31m", "\xff\xfe", "\u2028x", strings.Repeat("x", 5000),
}

func TestFormats_hostileCommentsStayText(t *testing.T) {
	t.Parallel()
	entries := addresses(mixed...)
	for len(entries) < len(hostile) {
		entries = append(entries, addresses("192.0.2."+string(rune('0'+len(entries)-7)))...)
	}
	for i := range hostile {
		entries[i].Comment = hostile[i]
	}
	s := snap(Blocks, parry.ListCIDR, entries)

	body := rendered(t, s, Query{Format: CSV}).Body
	rows, err := csv.NewReader(strings.NewReader(string(body))).ReadAll()
	if err != nil || len(rows) != len(entries)+1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	for _, row := range rows {
		for _, cell := range row {
			if strings.ContainsAny(strings.TrimLeft(cell, " ")[:min(1, len(strings.TrimLeft(cell, " ")))], "=+-@\t\r") || strings.ContainsAny(cell, "\r\n\t\x00\x1b") {
				t.Errorf("the cell %q", cell)
			}
		}
	}
	if n := strings.Count(string(body), "\n"); n != len(entries)+1 || n != strings.Count(string(body), "\r\n") {
		t.Errorf("%d lines for %d entries", n, len(entries))
	}

	body = rendered(t, s, Query{Format: JSON}).Body
	var doc struct{ Entries []struct{ Comment string } }
	if err := json.Unmarshal(body, &doc); err != nil || len(doc.Entries) != len(entries) {
		t.Fatalf("%d entries, %v", len(doc.Entries), err)
	}
	if strings.ContainsAny(string(body), "<>\x00\x1b") || !utf8.Valid(body) {
		t.Error("markup or control characters in JSON")
	}
	for _, format := range []Format{Plain, CIDR, CDBWazuh, CDBOSSEC, IPRep, Geo, Map} {
		if body := string(rendered(t, s, Query{Format: format}).Body); strings.Contains(body, "script") || strings.Contains(body, "cmd") {
			t.Errorf("%s tells comments", format)
		}
	}
}

func TestQuery_refusesWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		q     Query
		typ   parry.ListType
		param string
		says  string
	}{
		"unknown format":      {Query{Format: "xml"}, parry.ListIP, "?format", "plain, cidr, csv, json, cdb-wazuh"},
		"geo of users":        {Query{Format: Geo}, parry.ListUser, "?format", "plain, csv, json, cdb-wazuh, cdb-ossec, map"},
		"cidr of domains":     {Query{Format: CIDR}, parry.ListDomain, "?format", "feed of domain"},
		"family of users":     {Query{Family: 4}, parry.ListUser, "?family", "addresses"},
		"family 5":            {Query{Family: 5}, parry.ListIP, "?family", "4 or 6"},
		"merged users":        {Query{Aggregate: true}, parry.ListUser, "?aggregate", "addresses"},
		"scope of a list":     {Query{Name: "x", Scope: ScopeAll}, parry.ListIP, "?scope", "blocks"},
		"unknown scope":       {Query{Name: Blocks, Scope: "some"}, parry.ListCIDR, "?scope", "whole, all"},
		"limit below 1":       {Query{Limit: -1}, parry.ListIP, "?limit", "1 at least"},
		"category of plain":   {Query{Category: 1}, parry.ListIP, "?category", "iprep"},
		"category 60":         {Query{Format: IPRep, Category: 60}, parry.ListIP, "?category", "bounds"},
		"score 128":           {Query{Format: IPRep, Score: 128}, parry.ListIP, "?score", "bounds"},
		"value of plain":      {Query{Value: "x"}, parry.ListIP, "?value", "geo, map"},
		"value with a syntax": {Query{Format: Geo, Value: "1;} location / {"}, parry.ListIP, "?value", "letters"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := c.q.normal(c.typ)
			var e *parry.Error
			if !errors.As(err, &e) || e.Kind != parry.KindInvalid || len(e.Fields) != 1 || e.Fields[0].Pointer != c.param || !strings.Contains(e.Fields[0].Detail, c.says) {
				t.Errorf("got %+v", err)
			}
		})
	}
}
