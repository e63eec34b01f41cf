package httpapi

import (
	"context"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/hooks"
	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/parry"
)

const wazuhHook = "/api/v1/hooks/wazuh"

// sample is an alert of internal/hooks/testdata. Its times are made recent, because a block's life counts from them.
func (b *bench) sample(name string) string {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "hooks", "testdata", name+".json"))
	if err != nil {
		b.t.Fatal(err)
	}
	a, err := hooks.ReadWazuh(text)
	if err != nil {
		b.t.Fatal(err)
	}
	now := b.clock.now().UTC()
	for _, layout := range []string{"2006-01-02T15:04:05.000-0700", "2006-01-02T15:04:05.000Z07:00"} {
		for _, zone := range []*time.Location{time.UTC, time.FixedZone("", 3600)} {
			text = []byte(strings.ReplaceAll(string(text), `"`+a.Time.In(zone).Format(layout)+`"`, `"`+now.In(zone).Format(layout)+`"`))
		}
	}
	return string(text)
}

// privately exempts what the default configuration does of it.
func privately(b *bench) {
	b.policy.Replace(parry.ExemptConfig, []parry.Exemption{{ID: "cfg:private", Prefix: netip.MustParsePrefix("10.0.0.0/8"), Reason: "private network"}})
}

// From the alert to the row: what each alert makes in a real database, or why it makes nothing.
func TestHookWazuh_everyKindOfAlert(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		block, reason string // the block's source, or why there is none
		firewalls     string
	}{
		"sshd_5712":                 {"203.0.113.7", "", "core"},
		"sshd_5712_active_response": {"203.0.113.7", "", "core"},
		"sshd_5712_delete":          {"", "not_an_add", ""},
		"windows_4625":              {"203.0.113.88", "", "default"},
		"windows_4625_local":        {"", "no_source", ""},
		"suricata_inbound":          {"198.51.100.23", "", "default"},
		"suricata_outbound":         {"", "outbound", ""},
		"suricata_answer":           {"", "outbound", ""},
		"office365":                 {"203.0.113.45", "", "default"},
		"cloudtrail":                {"2001:db8:51::ac1d", "", "default"},
		"cloudtrail_service":        {"", "not_an_address", ""},
		"guardduty":                 {"", "outbound", ""},
		"fortigate":                 {"203.0.113.131", "", "default"},
		"fortigate_vpn":             {"203.0.113.160", "", "default"},
		"sysmon_3":                  {"", "outbound", ""},
		"wazuh5_finding":            {"203.0.113.50", "", "core"},
		"wazuh5_active_response":    {"203.0.113.50", "", "core"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(o *Options) {
				o.Agent = func(name string) (parry.Selector, bool) { return "core", name == "web01" }
			})
			privately(b)
			body := b.sample(name)

			// The dry run tells the same and does nothing.
			dry := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook+"?dry_run=true", body), 200)
			before := into[api.BlockPage](t, b.do(parry.RoleReader, "GET", "/api/v1/blocks?status=all", ""), 200)
			if len(before.Items) != 0 {
				t.Fatalf("the dry run left %+v", before.Items)
			}
			status := http.StatusCreated
			if want.block == "" {
				status = http.StatusOK
			}
			got := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook, body), status)
			if !dry.DryRun || got.DryRun || dry.Decision != got.Decision || dry.Reason != got.Reason || dry.Detail != got.Detail || (dry.TTL == "4h") != (want.block != "") ||
				dry.Alert != got.Alert || !slices.Equal(dry.Firewalls, got.Firewalls) {
				t.Errorf("the dry run says %+v\nand the run %+v", dry, got)
			}
			blocks := into[api.BlockPage](t, b.do(parry.RoleReader, "GET", "/api/v1/blocks", ""), 200).Items
			if want.block == "" {
				if got.Decision != "ignored" || string(got.Reason) != want.reason || got.Detail == "" || len(blocks) != 0 {
					t.Errorf("got %+v and %d blocks", got, len(blocks))
				}
				return
			}
			if got.Decision != "block" || len(blocks) != 1 || blocks[0].ID != got.Block.ID || blocks[0].Source != want.block || blocks[0].Destination != "" ||
				blocks[0].Firewalls[0] != want.firewalls || got.Firewalls[0] != want.firewalls || blocks[0].Origin != "wazuh" || blocks[0].Reason != got.Alert.Description {
				t.Errorf("got %+v, blocks %+v", got, blocks)
			}
			evidence := into[api.EvidencePage](t, b.do(parry.RoleReader, "GET", "/api/v1/blocks/"+got.Block.ID+"/requests", ""), 200).Items
			if len(evidence) != 1 || evidence[0].AlertID != got.Alert.ID || evidence[0].RuleID != got.Alert.RuleID || evidence[0].Token != "trigger" ||
				!evidence[0].EventTime.Equal(got.Alert.EventTime) || evidence[0].RemoteAddr == "" {
				t.Errorf("the evidence is %+v", evidence)
			}
		})
	}
}

func TestHookWazuh_dryRunLeavesNoTrace(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	body := b.sample("sshd_5712")
	revision := func() parry.Revision {
		r, err := b.store.Revision(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	was := revision()
	for range 3 {
		if d := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook+"?dry_run=true", body), 200); d.Decision != "block" || d.Block.ID != "" || d.TTL != "4h" {
			t.Errorf("got %+v", d)
		}
	}
	if now := revision(); now != was {
		t.Errorf("the revision went from %d to %d", was, now)
	}
	made := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook, body), 201) // no key of the dry runs stands in its way
	was = revision()
	dry := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook+"?dry_run=true", body), 200)
	if dry.Block.ID != made.Block.ID || dry.Block.Count != 1 || revision() != was {
		t.Errorf("the live block that it would refresh: %+v", dry)
	}
	if strings.Contains(b.do(parry.RoleReader, "GET", "/metrics", "").body, `parry_hook_alerts_total{hook="wazuh",outcome="block"} 4`) {
		t.Error("dry runs are counted")
	}
}

// The same alert again, wrapped or not, changes nothing; the next of the same attacker is more evidence.
func TestHookWazuh_theAlertsIDMakesItIdempotent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	first := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook, b.sample("sshd_5712")), 201)
	r := b.do(parry.RoleTrigger, "POST", wazuhHook, b.sample("sshd_5712_active_response"))
	again := into[api.HookDecision](t, r, 200)
	if again.Block.ID != first.Block.ID || again.Block.Count != 1 || r.Header.Get("Idempotency-Replayed") != "true" || r.Header.Get("Location") != "/api/v1/blocks/"+first.Block.ID {
		t.Errorf("again: %+v %v", again, r.Header)
	}
	next := strings.Replace(b.sample("sshd_5712"), "1772439267.8812310", "1772439267.8812399", 1)
	if more := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook, next), 200); more.Block.Count != 2 {
		t.Errorf("another alert: %+v", more)
	}
	if two := into[api.HookDecision](t, b.do(parry.RoleOperator, "POST", wazuhHook, next), 200); two.Block.Count != 3 {
		t.Errorf("another token's: %+v", two)
	}
	noID := `{"data":{"srcip":"203.0.113.9"}}`
	into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook, noID), 201)
	if two := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook, noID), 200); two.Block.Count != 2 {
		t.Errorf("alerts without an id: %+v", two)
	}
}

func TestHookWazuh_followsItsSettings(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) {
		o.Wazuh = func() hooks.Settings {
			return hooks.Settings{MinLevel: 10, Rules: map[string]time.Duration{"5712": 24 * time.Hour, "web": 40 * 24 * time.Hour}, Internal: func(a netip.Addr) string {
				if a == netip.MustParseAddr("192.0.2.7") {
					return "192.0.2.7 is ours"
				}
				return ""
			}}
		}
	})
	post := func(source, rule string) response {
		return b.do(parry.RoleTrigger, "POST", wazuhHook, `{"data":{"srcip":"`+source+`"},"rule":`+rule+`}`)
	}
	if d := into[api.HookDecision](t, post("203.0.113.7", `{"id":"5712","level":10}`), 201); d.Block.ExpiresAt.Sub(d.Block.CreatedAt).Round(time.Minute) != 24*time.Hour {
		t.Errorf("the rule's TTL: %+v", d)
	}
	for want, r := range map[string]response{
		"below_level": post("203.0.113.7", `{"id":"5712","level":9}`), "rule_not_listed": post("203.0.113.7", `{"id":"5710","level":12}`),
		"internal_source": post("192.0.2.7", `{"id":"5712","level":12}`),
	} {
		if d := into[api.HookDecision](t, r, 200); string(d.Reason) != want {
			t.Errorf("want %s, got %+v", want, d)
		}
	}
	if d := into[api.HookDecision](t, post("8.8.8.8", `{"id":"5712","level":12}`), 200); d.Reason != "internal_source" || !strings.Contains(d.Detail, "exemption cfg:dns (resolver)") {
		t.Errorf("an exempt source: %+v", d)
	}
	if p := post("203.0.113.7", `{"level":12,"groups":["web"]}`).problem(t); p.Status != 422 || p.Errors[0].Pointer != "/rule" {
		t.Errorf("a TTL beyond the limit: %+v", p)
	}
	metrics := b.do(parry.RoleReader, "GET", "/metrics", "").body
	for _, want := range []string{`{hook="wazuh",outcome="block"} 1`, `{hook="wazuh",outcome="internal_source"} 2`, `{hook="wazuh",outcome="below_level"} 1`} {
		if !strings.Contains(metrics, "parry_hook_alerts_total"+want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
}

// A dry run knows what the database knows of the source: its offences, and an operator's grace.
func TestHookWazuh_dryRunForeseesTheLadderAndGrace(t *testing.T) {
	t.Parallel()
	b := newEscalation(t)
	alert := `{"data":{"srcip":"203.0.113.7"}}`
	dry := func() response { return b.do(parry.RoleTrigger, "POST", wazuhHook+"?dry_run=true", alert) }
	for _, want := range []time.Duration{4 * time.Hour, day, 7 * day} {
		if d := into[api.HookDecision](t, dry(), 200); d.TTL != parry.FormatTTL(want) {
			t.Errorf("foreseen for %s, want %s", d.TTL, want)
		}
		got := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook, alert), 201)
		if b.lasts(&got.Block) != want {
			t.Errorf("blocked for %s, want %s", b.lasts(&got.Block), want)
		}
		if d := into[api.HookDecision](t, dry(), 200); d.TTL != parry.FormatTTL(want) || d.Block.ID != got.Block.ID {
			t.Errorf("a refresh is foreseen for %s, want %s", d.TTL, want)
		}
		b.clock.advance(want + time.Minute)
	}
	last := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook, alert), 201).Block.ID
	b.clock.advance(time.Second)
	if r := b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks/"+last, ""); r.StatusCode != http.StatusOK {
		t.Fatal(r.body)
	}
	b.clock.advance(time.Second)
	for _, c := range []struct {
		as    parry.Role
		query string
	}{{parry.RoleTrigger, ""}, {parry.RoleTrigger, "?dry_run=true"}, {parry.RoleAdmin, ""}, {parry.RoleAdmin, "?dry_run=true"}} {
		r := b.do(c.as, "POST", wazuhHook+c.query, alert) // an alert is no operator's word, whoever brings it
		if p := r.problem(t); p.Status != 422 || p.Errors[0].Pointer != "/data/srcip" || !strings.Contains(p.Errors[0].Detail, "operator lifted the block of 203.0.113.7 with a grace") {
			t.Errorf("in grace, as %s%s: %s", c.as, c.query, r.body)
		}
	}
	if r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks?dry_run=true", `{"source":"203.0.113.7"}`); r.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("a block request in grace: %d %s", r.StatusCode, r.body)
	}
}

// Where a list says that its sources are only watched, a dry run does not even do that.
func TestHookWazuh_putsAListedSourceOnAnotherListInstead(t *testing.T) {
	t.Parallel()
	b, ctx := newBench(t), context.Background()
	list := func(name string) parry.List {
		return parry.List{Name: name, Type: parry.ListIP, TTL: day, MaxTTL: 30 * day, Refresh: parry.RefreshLastSeen, Capacity: 100}
	}
	if err := b.lists.Configure(ctx, []lists.Configured{{List: list("partners"), Blocks: lists.Policy{Instead: "watch"}}, {List: list("watch")}}, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := b.lists.Put(ctx, "partners", []parry.ListPut{{Key: "203.0.113.7", SeenAt: b.clock.now()}}); err != nil {
		t.Fatal(err)
	}
	watched := func() bool {
		_, _, found, err := b.lists.Lookup("watch", "203.0.113.7", "test")
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	alert := `{"data":{"srcip":"203.0.113.7"}}`
	for _, c := range []struct {
		path, body string
		watched    bool
	}{{wazuhHook + "?dry_run=true", alert, false}, {"/api/v1/blocks?dry_run=true", `{"source":"203.0.113.7"}`, false}, {wazuhHook, alert, true}} {
		if r := b.do(parry.RoleTrigger, "POST", c.path, c.body); r.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(r.body, "watch") || watched() != c.watched {
			t.Errorf("POST %s: %d %s, watched %v", c.path, r.StatusCode, r.body, watched())
		}
	}
}

// An alert that comes late is evidence; one from the future is from now, whatever the SIEM's clock says.
func TestHookWazuh_times(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	at := func(source string, d time.Duration) string {
		return `{"data":{"srcip":"` + source + `"},"timestamp":"` + b.clock.now().Add(d).UTC().Format("2006-01-02T15:04:05.000-0700") + `"}`
	}
	late := at("203.0.113.7", -5*time.Hour)
	for _, query := range []string{"?dry_run=true", ""} {
		if d := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook+query, late), 200); d.Decision != "ignored" || d.Reason != "ended" || (d.Block.EndReason == "expired") != (query == "") {
			t.Errorf("late%s: %+v", query, d)
		}
	}
	soon := into[api.HookDecision](t, b.do(parry.RoleTrigger, "POST", wazuhHook, at("203.0.113.8", time.Hour)), 201)
	if left := soon.Block.ExpiresAt.Sub(b.clock.now()); left > 4*time.Hour {
		t.Errorf("a clock that is an hour ahead makes the block end in %s", left)
	}
}

func TestHookWazuh_refuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for name, c := range map[string]struct {
		as     parry.Role
		query  string
		body   string
		header string
		status int
		says   string
	}{
		"no body":         {parry.RoleTrigger, "", "", "", 400, "not JSON"},
		"an array":        {parry.RoleTrigger, "", "[]", "", 400, "not a JSON object"},
		"two alerts":      {parry.RoleTrigger, "", "{}\n{}", "", 400, "something after the alert"},
		"too deep":        {parry.RoleTrigger, "", strings.Repeat(`{"a":`, 100), "", 400, "deeper"},
		"too large":       {parry.RoleTrigger, "", `{"a":"` + strings.Repeat("x", 256<<10) + `"}`, "", 413, "262144"},
		"no JSON by name": {parry.RoleTrigger, "", "{}", "Content-Type: text/plain", 415, ""},
		"a reader":        {parry.RoleReader, "", "{}", "", 403, "right block"},
		"a parameter":     {parry.RoleTrigger, "?dry_run=perhaps", "{}", "", 400, ""},
		"another":         {parry.RoleTrigger, "?wait=1s", "{}", "", 400, "dry_run"},
	} {
		var headers []string
		if c.header != "" {
			headers = append(headers, c.header)
		}
		r := b.do(c.as, "POST", wazuhHook+c.query, c.body, headers...)
		if p := r.problem(t); p.Status != c.status || !strings.Contains(r.body, c.says) {
			t.Errorf("%s: %d %s", name, r.StatusCode, r.body)
		}
	}
	if r := b.do(parry.RoleTrigger, "POST", wazuhHook, `{"full_log":"`+strings.Repeat("x", 200<<10)+"\xff"+`","data":{"srcip":"203.0.113.7"}}`); r.StatusCode != http.StatusCreated {
		t.Errorf("a large alert with bytes that are no UTF-8: %s", r.body)
	}
	b.tokens["edge"] = b.token(parry.Token{Name: "edge", Role: parry.RoleTrigger, Firewalls: []string{"core"}})
	if p := b.do("edge", "POST", wazuhHook, `{"data":{"srcip":"203.0.113.8"}}`).problem(t); p.Status != 403 || p.Errors[0].Pointer != "/agent" {
		t.Errorf("a token for other firewalls: %+v", p)
	}
	b.tokens["slow"] = b.token(parry.Token{Name: "slow", Role: parry.RoleTrigger, Rate: 1})
	b.do("slow", "POST", wazuhHook, "{}")
	if p := b.do("slow", "POST", wazuhHook, "{}").problem(t); p.Status != 429 {
		t.Errorf("too fast: %+v", p)
	}
}

// The document names every reason that the package knows.
func TestHookWazuh_reasonsAreInTheDocument(t *testing.T) {
	t.Parallel()
	for _, c := range hooks.Codes {
		if !api.HookDecisionReason(c).Valid() {
			t.Errorf("api/openapi.yaml does not have %s", c)
		}
	}
}
