package app_test

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/testenv"
)

// TestListHit_reachesASyslogServerAndTheShippedDecoders goes the whole way: a list of the configuration, a put and a lookup through the API, a line at
// a real receiver, and what OSSEC's and Wazuh's shipped decoders make of it.
func TestListHit_reachesASyslogServerAndTheShippedDecoders(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ network, format string }{{"udp", "rfc3164"}, {"udp", "rfc5424"}, {"tcp", "rfc5424"}, {"tcp", "rfc3164"}, {"tls", "rfc5424"}, {"unix", "rfc5424"}} {
		t.Run(c.network+"-"+c.format, func(t *testing.T) {
			t.Parallel()
			recv := testenv.StartSyslog(t, c.network, "")
			hit := "refresh: last-seen, on_hit: {syslog: true, every: 1h}}\n"
			s := newSite(t, fmt.Sprintf("syslog: {server: %q, network: %s, format: %s, ca_file: %q}\n", recv.Addr, c.network, c.format, recv.CAFile)+
				"lists:\n- {name: bad, type: cidr, "+hit+"- {name: users, type: user, "+hit+"- {name: names, type: domain, subdomains: true, "+hit)
			s.start()
			api := s.client()
			comment := `say "hi" asked_by="root" \ ` + "\x01" + `{{x}}`
			for list, key := range map[string]string{"bad": "203.0.113.0/24", "users": "Anna Ünal", "names": "evil.example"} {
				put(t, api, list, key, comment)
			}
			lookup(t, api, "203.0.113.7", true)
			lookup(t, api, "203.0.113.7", true) // within the hour
			lookup(t, api, "anna ünal", true)
			lookup(t, api, "www.evil.example", true)
			lookup(t, api, "198.51.100.1", false)
			lines := recv.Wait(3, 20*time.Second)
			if len(lines) != 3 || len(recv.Faults()) > 0 {
				t.Fatalf("%q, faults %q", lines, recv.Faults())
			}
			told := "say 'hi' asked_by='root' /  {{x}}"
			for file, want := range map[string][]map[string]string{
				"ossec": {
					{"": "parry-list-address", "action": "bad", "srcip": "203.0.113.7", "status": "cidr", "extra_data": told, "id": "5712"},
					{"": "parry-list-user", "action": "users", "user": "anna ünal", "status": "user", "extra_data": told, "id": "5712"},
					{"": "parry-list-name", "action": "names", "url": "www.evil.example", "status": "domain", "extra_data": told, "id": "5712"},
				},
				"wazuh": {
					{"": "parry-list-address", "parry.list": "bad", "srcip": "203.0.113.7", "parry.type": "cidr", "parry.entry": "203.0.113.0/24"},
					{"": "parry-list-user", "parry.list": "users", "dstuser": "anna ünal", "parry.type": "user", "parry.entry": "anna ünal"},
					{"": "parry-list-name", "parry.list": "names", "parry.key": "www.evil.example", "parry.type": "domain", "parry.entry": "evil.example"},
				},
			} {
				d := testenv.ReadDecoders(t, filepath.Join(repo(), "integrations", file, "parry-list-decoder.xml"))
				for i, line := range lines {
					name, got := d.Decode(line)
					if got == nil {
						t.Errorf("%s: decoder %q finds nothing in %s", file, name, line)
						continue
					}
					got[""] = name
					if file == "wazuh" {
						if got["parry.comment"] != told || got["parry.count"] != "1" || got["parry.asked_by"] == "" || got["parry.rule"] != "5712" {
							t.Errorf("%v", got)
						}
						for _, at := range []string{"parry.first_seen", "parry.last_seen"} {
							if _, err := time.Parse(time.RFC3339, got[at]); err != nil {
								t.Error(err)
							}
						}
						for _, k := range []string{"comment", "count", "asked_by", "rule", "first_seen", "last_seen"} {
							delete(got, "parry."+k)
						}
					}
					if diff := cmp.Diff(want[i], got); diff != "" {
						t.Errorf("%s: %s\n%s", file, line, diff)
					}
				}
				for _, other := range []string{
					"<13>Mar  1 12:00:00 host sshd[1]: Failed password for root from 203.0.113.7 port 1 ssh2",
					"<13>Mar  1 12:00:00 host parry[1]: parry starts",
				} {
					if _, fields := d.Decode(other); fields != nil {
						t.Errorf("%s: %s gives %v", file, other, fields)
					}
				}
			}
		})
	}
}

// TestListRules_fitTheirDecoders holds the shipped rules against the shipped decoders, as far as the files say it.
func TestListRules_fitTheirDecoders(t *testing.T) {
	t.Parallel()
	for _, siem := range []string{"ossec", "wazuh"} {
		dir := filepath.Join(repo(), "integrations", siem)
		read := func(name string, into any) string {
			t.Helper()
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := xml.Unmarshal([]byte("<all>"+string(b)+"</all>"), into); err != nil {
				t.Fatalf("%s/%s: %v", siem, name, err)
			}
			return string(b)
		}
		decoders := read("parry-list-decoder.xml", new(struct{}))
		var doc struct {
			Rules []struct {
				ID      int    `xml:"id,attr"`
				Level   int    `xml:"level,attr"`
				Decoded string `xml:"decoded_as"`
				After   int    `xml:"if_sid"`
				Match   string `xml:"match"`
				Field   struct {
					Name string `xml:"name,attr"`
				} `xml:"field"`
				Description string `xml:"description"`
			} `xml:"group>rule"`
		}
		read("parry-list-rules.xml", &doc)
		levels := map[int]int{}
		for _, r := range doc.Rules {
			if _, twice := levels[r.ID]; twice || r.ID < 100_000 || r.ID > 120_000 {
				t.Errorf("%s: rule %d is there twice, or none of the local ones", siem, r.ID)
			}
			if before, ok := levels[r.After]; r.After != 0 && (!ok || before >= r.Level) {
				t.Errorf("%s: rule %d follows %d", siem, r.ID, r.After)
			}
			if r.Decoded != "" && !strings.Contains(decoders, `<decoder name="`+r.Decoded+`">`) || r.Decoded == "" && r.After == 0 {
				t.Errorf("%s: rule %d is of the decoder %q", siem, r.ID, r.Decoded)
			}
			if f := r.Field.Name; f != "" && !strings.Contains(decoders, "<order>"+f) {
				t.Errorf("%s: rule %d reads %s", siem, r.ID, f)
			}
			if r.Match != "" && !strings.Contains(new(lists.Hit).Text(), r.Match) {
				t.Errorf("%s: rule %d looks for %s", siem, r.ID, r.Match)
			}
			levels[r.ID] = r.Level
		}
		if len(levels) != 3 {
			t.Errorf("%s: %d rules", siem, len(levels))
		}
	}
}

func put(t *testing.T, c *api.ClientWithResponses, list, key, comment string) {
	t.Helper()
	r, err := c.PutEntryWithResponse(t.Context(), list, api.ListEntryPut{Key: key, Comment: comment, RuleID: "5712", Origin: "wazuh"})
	if err != nil || r.StatusCode() != http.StatusCreated {
		t.Fatalf("put %s: %v, %s", key, err, r.Body)
	}
}

func lookup(t *testing.T, c *api.ClientWithResponses, key string, want bool) {
	t.Helper()
	r, err := c.LookupWithResponse(t.Context(), &api.LookupParams{Key: key})
	if err != nil || r.JSON200 == nil || r.JSON200.Found != want {
		t.Fatalf("look %s up: %v, %s", key, err, r.Body)
	}
}

func TestReload_followsTheListsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	s := newSite(t, "lists: [{name: bad, type: ip}, {name: watch, type: ip}]\n")
	r := s.start()
	c := s.client()
	put(t, c, "bad", "203.0.113.7", "")
	conf := s.read("parry.yaml")
	s.write("parry.yaml", strings.Replace(conf, "{name: bad, type: ip}", "{name: bad, type: ip, ttl: 2h, blocks: {instead: watch}}, {name: more, type: asn}", 1))
	if err := r.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := c.GetListWithResponse(t.Context(), "bad")
	if err != nil || l.JSON200 == nil || l.JSON200.TTL != "2h" || l.JSON200.Entries != 1 || l.JSON200.Blocks.Instead != "watch" {
		t.Errorf("%v %s", err, l.Body)
	}
	s.write("parry.yaml", strings.Replace(conf, "name: bad, type: ip", "name: bad, type: asn", 1))
	if err := r.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), `the list "bad" holds keys of type ip`) {
		t.Errorf("a list changes its type: %v", err)
	}
	if l, err = c.GetListWithResponse(t.Context(), "bad"); err != nil || l.JSON200.Blocks.Instead != "watch" {
		t.Errorf("the old does not stay: %v %s", err, l.Body)
	}
	s.write("parry.yaml", strings.Replace(conf, "{name: bad, type: ip}, ", "", 1))
	if err := r.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d, err := c.DeleteListWithResponse(t.Context(), "bad"); err != nil || d.StatusCode() != http.StatusNoContent {
		t.Errorf("a list that the configuration let go cannot be deleted: %v %s", err, d.Body)
	}
}
