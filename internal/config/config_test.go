package config_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/parry"
)

const shipped = "../../configs/parry.yaml"

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "parry.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, text string, env ...string) (*config.Config, error) {
	t.Helper()
	return config.Load(write(t, text), env)
}

func TestShippedFile_isTheDefaults(t *testing.T) {
	t.Parallel()
	got, err := config.Load(shipped, nil)
	if err != nil {
		t.Fatal(err)
	}
	want, err := load(t, "")
	if err != nil {
		t.Fatal(err)
	}
	got.Digest, want.Digest = "", ""
	if got, want := fmt.Sprintf("%+v", *got), fmt.Sprintf("%+v", *want); got != want {
		t.Errorf("configs/parry.yaml differs from the defaults:\n got %s\nwant %s", got, want)
	}
}

func TestShippedFile_explainsEverySetting(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	// The examples of a list stand commented out, "#- name:" after "#firewalls:", and what they are examples of before them, empty.
	text := string(data)
	for _, name := range regexp.MustCompile(`(?m)^#([a-z_]+):$`).FindAllStringSubmatch(text, -1) {
		text = strings.Replace(text, "\n"+name[1]+": []\n", "\n", 1)
		at := strings.Index(text, "\n#"+name[1]+":\n")
		end := at + strings.Index(text[at:], "\n\n")
		text = text[:at] + regexp.MustCompile(`(?m)^#`).ReplaceAllString(text[at:end], "") + text[end:]
	}
	var doc map[string]any
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	var shows func(v any, key string) bool // in one item of each list, at least
	shows = func(v any, key string) bool {
		k, rest, more := strings.Cut(key, ".")
		name, isList := strings.CutSuffix(k, "[]")
		m, _ := v.(map[string]any)
		v, ok := m[name]
		switch {
		case !ok || !more:
			return ok
		case !isList:
			return shows(v, rest)
		}
		items, _ := v.([]any)
		return slices.ContainsFunc(items, func(item any) bool { return shows(item, rest) })
	}
	for _, key := range config.Keys() {
		if !shows(doc, key) {
			t.Errorf("configs/parry.yaml does not show %s", key)
		}
	}
	c, err := load(t, text)
	if err != nil {
		t.Fatalf("with the examples uncommented: %v", err)
	}
	if got, want := c.Firewalls[0].Name, "fw-a"; got != want {
		t.Errorf("firewall %q, want %q", got, want)
	}
}

func TestLoad_faultsNameLineKeyAndMend(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(secret, []byte("x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"typo":             {"log:\n  formt: json\n", `parry.yaml:2: log.formt: there is no such setting; did you mean format\?`},
		"nothing near":     {"mail:\n  zzzzzzzzz: 1\n", `parry.yaml:2: mail.zzzzzzzzz: .*there are from, helo`},
		"in a list":        {"firewalls:\n- name: fw-a\n- nam: fw-b\n", `parry.yaml:3: firewalls\[1\].nam: .*did you mean name\?`},
		"twice":            {"listen: \":1\"\nlisten: \":2\"\n", `parry.yaml:2: .*already defined`},
		"wrong type":       {"limits:\n  queue: many\n", `parry.yaml:2: cannot unmarshal .*many`},
		"scalar for group": {"tls: yes\n", `parry.yaml:1: tls: write settings below it`},
		"second document":  {"listen: \"\"\n---\nlisten: \"\"\n", `second document`},
		"bad yaml":         {"listen: [\n", `parry.yaml:\d+: .*did not find expected`},
		"duration":         {"blocks:\n  max_ttl: soon\n", `parry.yaml:2: "soon" is no duration; write 30s`},
		"bounds":           {"blocks:\n  default_ttl: 31d\n", `parry.yaml:2: blocks.default_ttl: 31d is longer than max_ttl \(30d\)`},
		"host bits":        {"exemptions:\n- prefix: 10.0.0.1/8\n", `did you mean 10.0.0.0/8\?`},
		"all exempt":       {"exemptions:\n- prefix: 0.0.0.0/0\n", `parry.yaml:2: exemptions\[0\].prefix: .*hold`},
		"listen":           {"listen: 8443\n", `parry.yaml:1: listen: "8443" is no address:port`},
		"half a cert":      {"tls:\n  cert_file: a.pem\n", `parry.yaml:1: tls: set cert_file and key_file both`},
		"tls 1.1":          {"tls:\n  min_version: 1.1\n", `parry.yaml:2: tls.min_version: "1.1" is not known; write 1.2 or 1.3`},
		"postgres":         {"database:\n  driver: postgres\n", `parry.yaml:1: database: postgres needs dsn`},
		"firewall name":    {"firewalls:\n- name: FW_A\n", `parry.yaml:2: firewalls\[0\].name: "FW_A" is no firewall's name`},
		"firewall twice":   {"firewalls:\n- name: a\n- name: a\n", `parry.yaml:3: firewalls\[1\].name: "a" is listed twice`},
		"group is fw":      {"firewalls:\n- name: a\n  groups: [a]\n", `"a" is a firewall's name too`},
		"default unknown":  {"firewalls:\n- name: a\ndefault_firewalls: [b]\n", `parry.yaml:3: default_firewalls: "b" is no firewall or group; there are a, all`},
		"mail to nobody":   {"mail:\n  server: a:25\n  from: a@example.net\n", `mail.to: write who`},
		"mail address":     {"mail:\n  server: a:25\n  from: \"a@x\\r\\nBcc: b@x\"\n  to: [b@example.net]\n", `parry.yaml:3: mail.from: .* is no mail address`},
		"secret missing":   {"mail:\n  password_file: nowhere\n", `parry.yaml:2: mail.password_file: .*make it, mode 0600`},
		"secret open":      {"mail:\n  password_file: " + secret + "\n", `mail.password_file: .*chmod 600`},
		"agent unknown":    {"firewalls:\n- name: a\nhooks:\n  agents:\n    web01: [b]\n", `parry.yaml:4: hooks.agents.web01: "b" is no firewall or group; there are a, all`},
		"agent of none":    {"hooks:\n  agents: {003: []}\n", `parry.yaml:2: hooks.agents.003: write firewalls or groups`},
		"hook level":       {"hooks:\n  wazuh:\n    min_level: 17\n", `parry.yaml:3: hooks.wazuh.min_level: 17 is out of bounds`},
		"hook rule":        {"hooks:\n  wazuh: {rules: {5712: 1ms}}\n", `hooks.wazuh.rules.5712: 1ms is out of bounds`},
		"list name":        {"lists:\n- {name: A, type: ip}\n", `parry.yaml:2: lists\[0\].name: "A" is no list's name`},
		"list twice":       {"lists:\n- {name: a, type: ip}\n- {name: a, type: ip}\n", `parry.yaml:3: lists\[1\].name: "a" is listed twice`},
		"list type":        {"lists:\n- {name: a, type: net}\n", `parry.yaml:2: lists\[0\].type: "net" is not known; write ip`},
		"list key":         {"lists:\n- {name: a, type: ip, on_hit: {sylog: true}}\n", `parry.yaml:2: lists\[0\].on_hit.sylog: .*did you mean syslog`},
		"list ttl":         {"lists:\n- {name: a, type: ip, ttl: 40d}\n", `lists\[0\].ttl: 40d is longer than max_ttl \(30d\)`},
		"list without end": {"lists:\n- {name: a, type: ip, ttl: 0s}\n", `lists\[0\].ttl: without end is beyond max_ttl \(30d\)`},
		"list capacity":    {"lists:\n- {name: a, type: ip, capacity: 0}\n", `lists\[0\].capacity: 0 is out of bounds`},
		"list subdomains":  {"lists:\n- {name: a, type: user, subdomains: true}\n", `lists\[0\].subdomains: this is for lists of the type domain`},
		"list hits":        {"lists:\n- {name: a, type: ip, on_hit: {syslog: true}}\n", `lists\[0\].on_hit.syslog: there is nobody to tell; write syslog.server`},
		"list both":        {"lists:\n- {name: a, type: ip, blocks: {ttl: 1h, instead: a}}\n", `lists\[0\].blocks: set ttl or instead, not both`},
		"list of users":    {"lists:\n- {name: a, type: user, blocks: {ttl: 1h}}\n", `lists\[0\].blocks: this is for lists of the types ip and cidr`},
		"list instead":     {"lists:\n- {name: a, type: ip, blocks: {instead: b}}\n", `lists\[0\].blocks.instead: "b" is no list of this configuration`},
		"blocks' list":     {"blocks:\n  list: b\nlists:\n- {name: b, type: asn}\n", `parry.yaml:2: blocks.list: "b" is of the type asn`},
		"syslog network":   {"syslog:\n  network: sctp\n", `parry.yaml:2: syslog.network: "sctp" is not known`},
		"syslog facility":  {"syslog: {facility: local9}\n", `syslog.facility: "local9" is no syslog facility`},
		"syslog server":    {"syslog: {server: 'a:b:c'}\n", `syslog: `},
		"hook internal":    {"hooks:\n  wazuh: {internal: [0.0.0.0/0]}\n", `hooks.wazuh.internal\[0\]: .*your own networks`},
		"ladder":           {"escalation:\n  ladder: [4h, 1h]\n", `parry.yaml:2: escalation.ladder\[1\]: 1h is shorter than the rung before \(4h\)`},
		"promote one":      {"escalation:\n  promote: {sources: 1}\n", `parry.yaml:2: escalation.promote.sources: 1 is out of bounds`},
		"promote wide":     {"escalation:\n  promote: {sources: 5, v4: 16}\n", `escalation.promote.v4: 16 is out of bounds; write 24 to 31`},
		"list of blocks":   {"lists:\n- {name: blocks, type: ip}\n", `parry.yaml:2: lists\[0\].name: "blocks" is the feed of the live blocks`},
		"feed's age":       {"feeds:\n  max_age: 100ms\n", `parry.yaml:2: feeds.max_age: 100ms is out of bounds; write 1s to 1h`},
		"secret twice":     {"database:\n  driver: postgres\n  dsn: a\n  dsn_file: b\n", `database.dsn: set this or database.dsn_file, not both`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := load(t, tc.text)
			if err == nil {
				t.Fatal("loaded")
			}
			if !regexp.MustCompile(tc.want).MatchString(err.Error()) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestLoad_tellsAllFaultsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := load(t, "log: {format: xml, level: loud}\n")
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("want two faults, got %v", err)
	}
}

func TestLoad_environmentWins(t *testing.T) {
	t.Parallel()
	c, err := load(t, "listen: \":1\"\nstate_dir: here\n", "PARRY_LISTEN=127.0.0.1:0", "PARRY_DATABASE_DRIVER=postgres",
		"PARRY_DATABASE_DSN=postgres://p:s3cret@h/d", "PARRY_BLOCKS_MAX_TTL=2w", "PARRY_LIMITS_QUEUE=7", "PARRY_MAIL_TO=a@example.net, b@example.net",
		"PARRY_FIREWALLS=[{name: fw-z, settings: {pfsense_log: true}}]", "PARRY_TRUSTED_PROXIES=[192.0.2.0/24]", "PARRY_MAIL_SERVER=m:25",
		"PARRY_MAIL_FROM=p@example.net", "PARRY_ESCALATION_LADDER=[1h, 2d]")
	if err != nil {
		t.Fatal(err)
	}
	got := []any{c.Listen, c.Database.DSN.Reveal(), c.Blocks.MaxTTL.D(), c.Limits.Queue, c.Mail.To[1], c.Firewalls[0].Name, c.Firewalls[0].Settings["pfsense_log"],
		c.TrustedProxies[0].String(), filepath.Base(c.StateDir), c.Firewalls[0].MaxRules, c.Escalation.Ladder[1].D()}
	want := []any{"127.0.0.1:0", "postgres://p:s3cret@h/d", 14 * 24 * time.Hour, 7, "b@example.net", "fw-z", true, "192.0.2.0/24", "here", 200, 48 * time.Hour}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := load(t, "", "PARRY_FIREWALLS=[{nmae: a}]"); err == nil || !strings.Contains(err.Error(), "PARRY_FIREWALLS: ") {
		t.Errorf("got %v", err)
	}
	if d := cmp.Diff([]string{"PARRY_LISTENN"}, config.UnknownEnv([]string{"PARRY_LISTENN=1", "PARRY_LISTEN=1", "HOME=/", "PARRY_TOKEN=x"})); d != "" {
		t.Error(d)
	}
}

func TestLoad_pathsCountFromTheFile(t *testing.T) {
	t.Parallel()
	path := write(t, "state_dir: state\nansible:\n  inventory: inv/hosts\n  playbook_bin: venv/bin/ansible-playbook\nmail: {server: 'm:25', username: u, password_file: pw, from: a@example.net, to: [b@example.net]}\n")
	dir := filepath.Dir(path)
	if err := os.WriteFile(filepath.Join(dir, "pw"), []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.StateDir, c.Database.Path, c.Ansible.Inventory, c.Ansible.PlaybookBin, c.Mail.Password.Reveal(), c.Socket}
	want := []string{dir + "/state", dir + "/state/parry.db", dir + "/inv/hosts", dir + "/venv/bin/ansible-playbook", "hunter2", config.DefaultSocket}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestSecret_showsItselfToNobody(t *testing.T) {
	t.Parallel()
	s := config.Secret("hunter2")
	j, _ := json.Marshal(map[string]any{"s": s, "p": &s})
	y, _ := yaml.Marshal(struct{ S config.Secret }{s})
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "s", s, "in", struct{ S config.Secret }{s})
	slog.New(slog.NewTextHandler(&b, nil)).Info("m", "s", s, "in", struct{ S config.Secret }{s})
	for _, out := range []string{string(j), string(y), b.String(), fmt.Sprintf("%v %s %q %d %x %#v %+v", s, s, s, s, s, s, struct{ S config.Secret }{s})} {
		if strings.Contains(out, "hunter2") || strings.Contains(out, "68756e74657232") {
			t.Errorf("leaked: %s", out)
		}
	}
	if s.Reveal() != "hunter2" || fmt.Sprint(config.Secret("")) != "" {
		t.Error("a secret reveals itself, and an empty one is empty")
	}
}

func TestDuration_roundTrips(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"30s": "30s", "90s": "1m30s", "4h": "4h", "36h": "1d12h", "2w": "14d", "1w1d1h1m1s": "8d1h1m1s", "0s": "0s", "1500ms": "1.5s", "30d": "30d",
	} {
		d, err := config.ParseDuration(text)
		if got := config.Duration(d).String(); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", text, got, err, want)
		}
	}
	for _, bad := range []string{"", "d", "4", "1y", "-1d", "99999999999d", "1d x"} {
		if d, err := config.ParseDuration(bad); err == nil {
			t.Errorf("%q was read as %s", bad, d)
		}
	}
}

func TestFleet_forwardsAreRead(t *testing.T) {
	t.Parallel()
	c, err := load(t, `
firewalls:
- name: fw-a
  nat:
    ignore_firewall: true
    forwards:
    - {destination: 198.51.100.1, protocol: tcp, port: 443, to: 10.0.0.5, to_port: 8443}
    - {destination: 198.51.100.1, protocol: udp, port: 5000-5010, to: 10.0.0.6}
    - {destination: "2001:db8::1", protocol: any, to: "2001:db8:1::1"}
`)
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr
	want := parry.NAT{IgnoreItsOwn: true, Forwards: []parry.PortForward{
		{Destination: a("198.51.100.1"), Protocol: parry.ProtoTCP, Port: 443, PortEnd: 443, To: a("10.0.0.5"), ToPort: 8443},
		{Destination: a("198.51.100.1"), Protocol: parry.ProtoUDP, Port: 5000, PortEnd: 5010, To: a("10.0.0.6"), ToPort: 5000},
		{Destination: a("2001:db8::1"), To: a("2001:db8:1::1")},
	}}
	if d := cmp.Diff(want, c.Fleet(func(string) string { return "" }).Firewalls[0].NAT, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); d != "" {
		t.Error(d)
	}
	for forward, mend := range map[string]string{
		"{destination: 198.51.100.0/24, to: 10.0.0.1}":                                         `destination: write one address`,
		"{destination: 198.51.100.1}":                                                          `to: write one address`,
		"{destination: 198.51.100.1, to: \"2001:db8::1\"}":                                     `to: .*two IPv4 or two IPv6`,
		"{destination: 198.51.100.1, to: 10.0.0.1, port: 443}":                                 `port: a port needs a protocol`,
		"{destination: 198.51.100.1, to: 10.0.0.1, protocol: icmp, port: 443}":                 `port: a port needs a protocol`,
		"{destination: 198.51.100.1, to: 10.0.0.1, protocol: tpc}":                             `protocol: "tpc" is not known`,
		"{destination: 198.51.100.1, to: 10.0.0.1, protocol: tcp, port: 0}":                    `port: "0" is no port`,
		"{destination: 198.51.100.1, to: 10.0.0.1, protocol: tcp, port: 9-8}":                  `port: "9-8" is no port`,
		"{destination: 198.51.100.1, to: 10.0.0.1, protocol: tcp, to_port: 443}":               `to_port: .*write port:`,
		"{destination: 198.51.100.1, to: 10.0.0.1, protocol: tcp, port: 1-10, to_port: 65530}": `to_port: .*write 1 to 65526`,
	} {
		if _, err := load(t, "firewalls:\n- name: fw-a\n  nat: {forwards: ["+forward+"]}\n"); err == nil || !regexp.MustCompile(mend).MatchString(err.Error()) {
			t.Errorf("%s: got %v, want %s", forward, err, mend)
		}
	}
}

func TestFleet_digestChangesWithWhatTheFirewallHolds(t *testing.T) {
	t.Parallel()
	base := "firewalls:\n- name: fw-b\n- name: fw-a\n  groups: [edge, core]\n  settings: {pfsense_log: true, pfsense_role: single}\n"
	digestOf := func(text, conn string) string {
		c, err := load(t, text)
		if err != nil {
			t.Fatal(err)
		}
		f := c.Fleet(func(string) string { return conn })
		if f.Firewalls[0].Name != "fw-a" {
			t.Fatal("not sorted")
		}
		return f.Firewalls[0].Digest
	}
	was := digestOf(base, "192.0.2.1:22")
	if got := digestOf(strings.Replace(base, "edge, core", "core, edge", 1), "192.0.2.1:22"); got != was {
		t.Error("the order of groups is no change")
	}
	for what, got := range map[string]string{
		"connection": digestOf(base, "192.0.2.2:22"),
		"setting":    digestOf(strings.Replace(base, "true", "false", 1), "192.0.2.1:22"),
		"group":      digestOf(strings.Replace(base, "edge", "rand", 1), "192.0.2.1:22"),
		"forward":    digestOf(strings.Replace(base, "  groups", "  nat: {forwards: [{destination: 198.51.100.1, to: 10.0.0.1}]}\n  groups", 1), "192.0.2.1:22"),
		"default":    digestOf(base+"default_firewalls: [fw-b]\n", "192.0.2.1:22"),
	} {
		if got == was {
			t.Errorf("%s: the digest stayed", what)
		}
	}
}

func TestExempt_namesItsSource(t *testing.T) {
	t.Parallel()
	c, err := load(t, "exemptions:\n- {prefix: 198.51.100.0/24, reason: ours}\n")
	if err != nil {
		t.Fatal(err)
	}
	got := c.Exempt()
	if len(got) != 1 || got[0].ID != "cfg:198.51.100.0/24" || got[0].Source != parry.ExemptConfig || got[0].Reason != "ours" {
		t.Errorf("got %+v", got)
	}
}

func TestSimulate_namesRulesAloneOrOfAnOrigin(t *testing.T) {
	t.Parallel()
	s := config.Simulate{Rules: []string{"5712", "ossec/100", "ossim/*"}}
	for _, c := range []struct {
		origin, id string
		want       bool
	}{
		{"wazuh", "5712", true}, {"", "5712", true}, {"ossec", "100", true}, {"wazuh", "100", false}, {"ossim", "7", true}, {"ossim", "", true},
		{"", "", false}, {"cli", "", false}, {"", "*", false},
	} {
		if got := s.Rule(c.origin, c.id); got != c.want {
			t.Errorf("%s/%s: %v, want %v", c.origin, c.id, got, c.want)
		}
	}
}
