package hooks_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/parry/parry/internal/hooks"
)

// ours is the own side of the alerts in testdata.
func ours(a netip.Addr) string {
	for _, p := range []string{"10.0.0.0/8", "127.0.0.0/8", "::1/128", "fe80::/10"} {
		if p := netip.MustParsePrefix(p); p.Contains(a) {
			return a.String() + " lies in " + p.String()
		}
	}
	return ""
}

func alert(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func read(t testing.TB, document []byte) *hooks.Alert {
	t.Helper()
	a, err := hooks.ReadWazuh(document)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Each alert in testdata, with the block that it asks for or the reason for none.
func TestJudge_everyKindOfAlert(t *testing.T) {
	t.Parallel()
	s := hooks.Settings{Internal: ours}
	seen := map[string]bool{}
	for _, c := range []struct {
		alert  string
		source string // of the block
		place  string
		code   hooks.Code // why there is none
		detail string
	}{
		{"sshd_5712", "203.0.113.7", "data.srcip", "", ""},
		{"sshd_5712_active_response", "203.0.113.7", "parameters.alert.data.srcip", "", ""},
		{"sshd_5712_delete", "203.0.113.7", "parameters.alert.data.srcip", hooks.NotAnAdd, `"delete"`},
		{"windows_4625", "203.0.113.88", "data.win.eventdata.ipAddress", "", ""},
		{"windows_4625_local", "", "", hooks.NoSource, "none of the places"},
		{"suricata_inbound", "198.51.100.23", "data.src_ip", "", ""},
		{"suricata_outbound", "10.20.0.77", "data.src_ip", hooks.Outbound, "to 203.0.113.200"},
		{"suricata_answer", "192.0.2.80", "data.src_ip", hooks.Outbound, "data.direction is to_client"},
		{"office365", "203.0.113.45", "data.office365.ClientIP", "", ""},
		{"cloudtrail", "2001:db8:51::ac1d", "data.aws.sourceIPAddress", "", ""},
		{"cloudtrail_service", "", "data.aws.sourceIPAddress", hooks.NotAnAddress, `"cloudtrail.amazonaws.com"`},
		{"guardduty", "203.0.113.99", "data.aws.service.action.networkConnectionAction.remoteIpDetails.ipAddressV4", hooks.Outbound, "connectionDirection"},
		{"fortigate", "203.0.113.131", "data.srcip", "", ""},
		{"fortigate_vpn", "203.0.113.160", "data.remip", "", ""},
		{"sysmon_3", "192.0.2.114", "data.win.eventdata.sourceIp", hooks.Outbound, "initiated is true"},
		{"wazuh5_finding", "203.0.113.50", "source.ip", "", ""},
		{"wazuh5_active_response", "203.0.113.50", "source.ip", "", ""},
	} {
		seen[c.alert+".json"] = true
		t.Run(c.alert, func(t *testing.T) {
			t.Parallel()
			got := s.Judge(read(t, alert(t, c.alert)))
			var source string
			if got.Source.IsValid() {
				source = got.Source.String()
			}
			if source != c.source || got.Place != c.place || got.Code != c.code || !strings.Contains(got.Detail, c.detail) || (got.Detail == "") != (c.code == "") {
				t.Errorf("got %+v", got)
			}
		})
	}
	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !seen[f.Name()] && !f.IsDir() {
			t.Errorf("testdata/%s is in no row", f.Name())
		}
	}
}

func TestReadWazuh_evidence(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]hooks.Alert{
		"sshd_5712_active_response": {
			Command: "add", ID: "1772439267.8812310", Manager: "siem01 master-node", RuleID: "5712",
			Groups:      []string{"syslog", "sshd", "authentication_failures"},
			Description: "sshd: brute force trying to get access to the system. Non existent user.", Level: 10, Agent: "web01", AgentID: "003",
			Time: time.Date(2026, 3, 2, 8, 14, 27, 518e6, time.UTC),
		},
		"wazuh5_finding": {
			ID: "2f3f7a4e-1c7f-4f2b-9a50-6a7d0b2c9e11", Manager: "wazuh node01", RuleID: "b7a1f2de-8d5c-4f52-9f0d-5a53a1b0c2d4",
			Groups:      []string{"attack.credential-access", "attack.t1110"},
			Description: "SSH login failure of an unknown user", Level: 12, Agent: "web01", AgentID: "003",
			Time: time.Date(2026, 11, 5, 10, 12, 3, 118e6, time.UTC),
		},
		"wazuh5_active_response": {Command: "enable", Level: -1, Agent: "web01", AgentID: "003"},
	} {
		got := read(t, alert(t, name))
		if d := cmp.Diff(want, *got, cmpopts.IgnoreUnexported(hooks.Alert{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestReadWazuh_refusesWhatIsNoAlert(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		"":                                      "not JSON",
		"{":                                     "not JSON",
		"[]":                                    "not a JSON object",
		`"x"`:                                   "not a JSON object",
		"null":                                  "not a JSON object",
		"{} {}":                                 "something after the alert, at byte 2",
		"{}\n{}\n":                              "something after the alert",
		strings.Repeat(`{"a":`, 65) + "1":       "deeper than 64",
		strings.Repeat("[", 100_000):            "deeper than 64",
		`{"a":"` + strings.Repeat("x", 256<<10): "262144 bytes at most",
	} {
		if _, err := hooks.ReadWazuh([]byte(body)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q…: got %v, want %s", body, err, want)
		}
	}
	if _, err := hooks.ReadWazuh([]byte(`{"full_log":"` + strings.Repeat("[", 70_000) + "\xff\x00"[:1] + `"}` + "\r\n")); err != nil {
		t.Errorf("brackets and bytes that are no UTF-8, in text: %v", err)
	}
}

func TestJudge_levelAndRules(t *testing.T) {
	t.Parallel()
	doc := func(rule string) string { return `{"data":{"srcip":"203.0.113.7"},"rule":` + rule + `}` }
	listed := map[string]time.Duration{"5712": time.Hour, "ssh": 2 * time.Hour, "auth": 3 * time.Hour, "web": 0}
	for name, c := range map[string]struct {
		s    hooks.Settings
		rule string
		code hooks.Code
		ttl  time.Duration
	}{
		"as low as it may":                   {hooks.Settings{MinLevel: 7}, `{"level":7}`, "", 0},
		"a number in quotes":                 {hooks.Settings{MinLevel: 7}, `{"level":"10"}`, "", 0},
		"too low":                            {hooks.Settings{MinLevel: 7}, `{"level":6}`, hooks.BelowLevel, 0},
		"no level":                           {hooks.Settings{MinLevel: 7}, `{"id":"1"}`, hooks.BelowLevel, 0},
		"no level, none wanted":              {hooks.Settings{}, `{"id":"1"}`, "", 0},
		"a level that is none":               {hooks.Settings{MinLevel: 1}, `{"level":{"a":1}}`, hooks.BelowLevel, 0},
		"a negative level":                   {hooks.Settings{MinLevel: 1}, `{"level":-3}`, hooks.BelowLevel, 0},
		"medium, of Wazuh 5":                 {hooks.Settings{MinLevel: 7}, `{"level":"Medium"}`, "", 0},
		"low, of Wazuh 5":                    {hooks.Settings{MinLevel: 7}, `{"level":"low"}`, hooks.BelowLevel, 0},
		"by id":                              {hooks.Settings{Rules: listed}, `{"id":"5712","groups":["auth"]}`, "", time.Hour},
		"by an id that is number":            {hooks.Settings{Rules: listed}, `{"id":5712}`, "", time.Hour},
		"by the longest group":               {hooks.Settings{Rules: listed}, `{"id":"1","groups":["ssh","auth","x"]}`, "", 3 * time.Hour},
		"by the longest, whatever the order": {hooks.Settings{Rules: listed}, `{"groups":["auth","ssh"]}`, "", 3 * time.Hour},
		"by a group, default TTL":            {hooks.Settings{Rules: listed}, `{"id":"1","groups":["web"]}`, "", 0},
		"not listed":                         {hooks.Settings{Rules: listed}, `{"id":"1","groups":["x"]}`, hooks.RuleNotListed, 0},
		"no rule":                            {hooks.Settings{Rules: listed}, `{}`, hooks.RuleNotListed, 0},
		"groups that are none":               {hooks.Settings{Rules: listed}, `{"groups":{"ssh":1}}`, hooks.RuleNotListed, 0},
	} {
		if got := c.s.Judge(read(t, []byte(doc(c.rule)))); got.Code != c.code || got.TTL != c.ttl {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func TestJudge_sources(t *testing.T) {
	t.Parallel()
	s := hooks.Settings{Internal: ours}
	for data, want := range map[string]string{ // an address, or a code
		`{"srcip":"::ffff:203.0.113.7"}`:                                       "203.0.113.7",
		`{"srcip":"203.0.113.7:51000"}`:                                        "203.0.113.7",
		`{"srcip":"[2001:db8::7]:51000"}`:                                      "2001:db8::7",
		`{"srcip":"[2001:db8::7]"}`:                                            "2001:db8::7",
		`{"srcip":["203.0.113.7"]}`:                                            "203.0.113.7",
		`{"srcip":["203.0.113.7","203.0.113.7"]}`:                              "203.0.113.7",
		`{"srcip":["203.0.113.7","203.0.113.8"]}`:                              "not_an_address",
		`{"srcip":"web01.example.net"}`:                                        "not_an_address",
		`{"srcip":"web01.example.net","src_ip":"203.0.113.7"}`:                 "not_an_address",
		`{"srcip":"-","src_ip":"203.0.113.7"}`:                                 "203.0.113.7",
		`{"srcip":"","src_ip":null,"ip_address":" 203.0.113.7 "}`:              "203.0.113.7",
		`{"srcip":{"a":1},"src_ip":[[]],"remip":"203.0.113.7"}`:                "203.0.113.7",
		`{"srcip":"203.0.113.0/24"}`:                                           "not_an_address",
		`{"srcip":"010.0.0.1"}`:                                                "not_an_address",
		`{"srcip":"fe80::1%eth0"}`:                                             "not_an_address",
		`{"srcip":"[fe80::1%eth0]:22"}`:                                        "not_an_address",
		`{"srcip":3405803783}`:                                                 "not_an_address",
		`{"srcip":true}`:                                                       "not_an_address",
		`{"srcip":"203.0.113.7\nX"}`:                                           "not_an_address",
		`{"srcip":"` + strings.Repeat("9", 5000) + `"}`:                        "not_an_address",
		`{"srcip":"127.0.0.1"}`:                                                "internal_source",
		`{"srcip":"::ffff:10.1.2.3"}`:                                          "internal_source",
		`{"srcip":"10.1.2.3","dstip":"10.1.2.4"}`:                              "internal_source",
		`{"srcip":"10.1.2.3","dstip":"203.0.113.7"}`:                           "outbound",
		`{"srcip":"203.0.113.7","direction":"Outbound"}`:                       "outbound",
		`{"srcip":"203.0.113.7","direction":"outgoing"}`:                       "203.0.113.7",
		`{"srcip":"203.0.113.7","srcintfrole":"lan","dstintfrole":"wan"}`:      "outbound",
		`{"src_ip":"203.0.113.7","flow":{"src_ip":"10.1.2.3"}}`:                "outbound",
		`{"src_ip":"203.0.113.7","flow":{"src_ip":"203.0.113.7"}}`:             "203.0.113.7",
		`{"src_ip":"203.0.113.7","flow":"x"}`:                                  "203.0.113.7",
		`{"gcp":{"jsonPayload":{"sourceIP":"203.0.113.7"}}}`:                   "203.0.113.7",
		`{"gcp.jsonPayload.sourceIP":"203.0.113.7"}`:                           "203.0.113.7",
		`{"win":{"eventdata":{"sourceIp":"203.0.113.7","initiated":"false"}}}`: "203.0.113.7",
		`{"win":{"eventdata":{"sourceIp":"203.0.113.7","initiated":true}}}`:    "outbound",
		`{"win.eventdata":{"ipAddress":"203.0.113.7"}}`:                        "203.0.113.7",
		`{"win":"x","aws":7,"office365":[],"gcp":{"jsonPayload":false}}`:       "no_source",
		`[]`:                      "no_source",
		`{"SRCIP":"203.0.113.7"}`: "no_source",
	} {
		got := s.Judge(read(t, []byte(`{"data":`+data+`}`)))
		have := string(got.Code)
		if have == "" {
			have = got.Source.String()
		}
		if have != want {
			t.Errorf("%.80s: got %s, want %s: %s", data, have, want, got.Detail)
		}
		if strings.ContainsAny(got.Detail, "\n\x00") || len(got.Detail) > 300 {
			t.Errorf("%.80s: the detail is %q", data, got.Detail)
		}
	}
}

// An agent's own address is no source, not even where nothing else is internal.
func TestJudge_neverTheAgent(t *testing.T) {
	t.Parallel()
	var s hooks.Settings
	for doc, want := range map[string]hooks.Code{
		`{"agent":{"ip":"203.0.113.7"}}`:                                                          hooks.NoSource,
		`{"agent":{"ip":"203.0.113.7"},"data":{"srcip":"203.0.113.7"}}`:                           hooks.InternalSource,
		`{"agent":{"ip":"::ffff:203.0.113.7"},"data":{"srcip":"203.0.113.7"}}`:                    hooks.InternalSource,
		`{"agent":{"ip":"203.0.113.7"},"data":{"srcip":"203.0.113.7","dstip":"203.0.113.8"}}`:     hooks.Outbound,
		`{"agent":{"ip":"203.0.113.7"},"data":{"srcip":"203.0.113.8","dstip":"203.0.113.7"}}`:     "",
		`{"wazuh":{"agent":{"host":{"ip":["::1","203.0.113.7"]}}},"source":{"ip":"203.0.113.7"}}`: hooks.InternalSource,
	} {
		if got := s.Judge(read(t, []byte(doc))); got.Code != want {
			t.Errorf("%s: got %+v, want %q", doc, got, want)
		}
	}
}

func TestReadWazuh_time(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"2026-03-02T09:14:27.518+0100": "2026-03-02T08:14:27.518Z", "2026-03-02T09:14:27+0000": "2026-03-02T09:14:27Z",
		"2026-11-05T10:12:03.118Z": "2026-11-05T10:12:03.118Z", "2026-11-05T10:12:03+02:00": "2026-11-05T08:12:03Z",
		"1970-01-01T00:00:00Z": "", "yesterday": "", "": "",
	} {
		got := read(t, []byte(`{"timestamp":"`+text+`"}`)).Time
		if text := got.Format(time.RFC3339Nano); !got.IsZero() && text != want || got.IsZero() != (want == "") {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// The same alert has the same key however it is wrapped; another manager's, rule's or source's does not.
func TestKey(t *testing.T) {
	t.Parallel()
	plain, wrapped := read(t, alert(t, "sshd_5712")), read(t, alert(t, "sshd_5712_active_response"))
	source := netip.MustParseAddr("203.0.113.7")
	key, ok := plain.Key(source)
	if again, _ := wrapped.Key(source); !ok || again != key {
		t.Errorf("wrapped, the key differs")
	}
	if other, _ := plain.Key(source.Next()); other == key {
		t.Error("another source has the same key")
	}
	elsewhere := *plain
	elsewhere.Manager = "siem02"
	if other, _ := elsewhere.Key(source); other == key {
		t.Error("another manager has the same key")
	}
	if _, ok := new(hooks.Alert).Key(source); ok {
		t.Error("an alert without an id has a key")
	}
}

func TestReadWazuh_cutsText(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 5000)
	a := read(t, []byte(`{"id":"`+long+`","rule":{"id":"`+long+`","description":"`+long+`"},"agent":{"name":"`+long+`"}}`))
	for text, most := range map[string]int{a.ID: 256, a.RuleID: 256, a.Agent: 256, a.Description: 1024} {
		if len(text) > most || len(text) < most-4 || !strings.HasSuffix(text, "…") {
			t.Errorf("%d bytes of %d: …%q", len(text), most, text[len(text)-8:])
		}
	}
}

// Nothing that is in an alert makes it panic, and what it asks for is an address that is not our own.
func FuzzJudge(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, seed := range []string{
		`{}`, `{"data":[]}`, `{"data":{"win":[{}]}}`, `{"rule":[[1]],"agent":7,"timestamp":{}}`, `{"parameters":{"alert":[]}}`, `{"parameters.alert":{"data.srcip":"::1"}}`,
		`{"":{"":""},".":{".":"."},"data.":{"srcip":1}}`, `{"data":{"srcip":"\ud800"}}`, `{"rule":{"level":1e999,"id":-0}}`,
	} {
		f.Add([]byte(seed))
	}
	s := hooks.Settings{MinLevel: 1, Rules: map[string]time.Duration{"5712": 0}, Internal: ours}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := hooks.ReadWazuh(b)
		if err != nil {
			return
		}
		for _, s := range []hooks.Settings{{Internal: ours}, s} {
			v := s.Judge(a)
			if v.Code == "" && (!v.Source.IsValid() || v.Source.Is4In6() || v.Source.Zone() != "" || ours(v.Source) != "" || v.Place == "") {
				t.Errorf("it asks for %+v", v)
			}
			if (v.Code == "") != (v.Detail == "") {
				t.Errorf("code %q, detail %q", v.Code, v.Detail)
			}
		}
		if len(a.ID) > 256 || len(a.Description) > 1024 {
			t.Error("text is too long")
		}
	})
}
