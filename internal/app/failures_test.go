package app_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/testenv"
)

// pair is a site with two firewalls, of which fw-a is to be broken, and a mail server.
type pair struct {
	*site
	a, b *testenv.Lab
	mail *testenv.Mail
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{
		a: testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"}), b: testenv.StartLab(t, testenv.LabOptions{Name: "fw-b"}),
		mail: testenv.StartMail(t, testenv.MailOptions{}),
	}
	p.site = newSite(t, "bundles: bundles\nlisten: \"\"\nmail: {server: \""+p.mail.Addr+"\", security: plain, from: parry@example.net, to: [noc@example.net]}\n", p.a, p.b)
	p.bundle("pfsense")
	return p
}

// bundle copies the pfSense bundle under a name.
func (p *pair) bundle(name string) (dir string) {
	p.tb.Helper()
	dir = filepath.Join(p.dir, "bundles", name)
	if err := testenv.CopyPlaybooks("pfsense", dir); err != nil {
		p.tb.Fatal(err)
	}
	p.replace(filepath.Join(dir, "bundle.yml"), "name: pfsense", "name: "+name)
	return dir
}

func (p *pair) replace(path, from, to string) {
	p.tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		p.tb.Fatal(err)
	}
	if !strings.Contains(string(b), from) {
		p.tb.Fatalf("%s has no %q", path, from)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), from, to, 1)), 0o600); err != nil {
		p.tb.Fatal(err)
	}
}

// breakBundle gives fw-a a bundle of its own with one file changed.
func (p *pair) breakBundle(file, from, to string) {
	p.tb.Helper()
	p.replace(filepath.Join(p.bundle("broken"), file), from, to)
	p.replace(p.config, "name: fw-a, bundle: pfsense", "name: fw-a, bundle: broken")
}

// remember changes what fw-a remembers of who holds it, after a parry has held it.
func (p *pair) remember(key string, value any) {
	p.tb.Helper()
	r := p.start()
	block(p.tb, p.client(), api.BlockRequest{Source: "203.0.113.1"}, "60s")
	r.end()
	path := filepath.Join(p.a.Root, "cf", "conf", "parry.json")
	b, err := os.ReadFile(path)
	if err != nil {
		p.tb.Fatal(err)
	}
	state := map[string]any{}
	if err := json.Unmarshal(b, &state); err != nil {
		p.tb.Fatal(err)
	}
	state[key] = value
	if b, err = json.Marshal(state); err != nil {
		p.tb.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		p.tb.Fatal(err)
	}
}

// reroute sends ssh to fw-a through a listener of the test's, which gives each connection to serve.
func (p *pair) reroute(serve func(net.Conn)) {
	p.tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.tb.Fatal(err)
	}
	p.tb.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.tb.Cleanup(func() { _ = c.Close() })
			go serve(c)
		}
	}()
	a := *p.a
	a.Port = ln.Addr().(*net.TCPAddr).Port
	p.inventory(&a, p.b)
	known := p.read("known_hosts")
	p.write("known_hosts", known+strings.ReplaceAll(known, fmt.Sprintf(":%d ", p.a.Port), fmt.Sprintf(":%d ", a.Port)))
}

// freeze passes on the first bytes of what the firewall says, enough for a login, and nothing after that. Nobody hangs up.
func (p *pair) freeze(c net.Conn) {
	to, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.a.Port))
	if err != nil {
		return
	}
	p.tb.Cleanup(func() { _ = to.Close() })
	go func() { _, _ = io.Copy(to, c) }()
	_, _ = io.CopyN(c, to, 2250)
}

// TestFailures_eachHasItsNameAndStopsNobodyElse breaks one of two firewalls. Whatever it is, it is told by its name in the block's state, the
// runs, the mail and the metrics, in time, and the block is in force on the other.
func TestFailures_eachHasItsNameAndStopsNobodyElse(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		breaks func(p *pair)
		want   string // the name of the failure, when it is not the case's
	}{
		"an ssh that hangs before the login": {want: "unreachable", breaks: func(p *pair) { p.reroute(func(net.Conn) {}) }},
		"an ssh that hangs after the login":  {want: "unreachable", breaks: func(p *pair) { p.reroute(p.freeze) }},
		"timeout": {breaks: func(p *pair) {
			p.replace(p.config, "known_hosts: known_hosts", "known_hosts: known_hosts, deadline: 12s, grace: 1s")
			p.a.Fault("hang", "pf")
		}},
		"unreachable": {breaks: func(p *pair) { p.a.Stop() }},
		"host_key": {breaks: func(p *pair) {
			known := strings.Fields(p.read("known_hosts"))
			for i, w := range known {
				if strings.HasPrefix(w, "AAAA") { // fw-a's comes first
					p.replace(filepath.Join(p.dir, "known_hosts"), w, known[slices.IndexFunc(known[i+1:], func(s string) bool { return strings.HasPrefix(s, "AAAA") })+i+1])
					return
				}
			}
		}},
		"authentication": {breaks: func(p *pair) { a := *p.a; a.KeyFile = p.b.KeyFile; p.inventory(&a, p.b) }},
		"inventory":      {breaks: func(p *pair) { p.inventory(p.b) }},
		"bundle":         {breaks: func(p *pair) { p.breakBundle("apply.yml", "hosts: all", "hosts: [all") }},
		"task": {breaks: func(p *pair) {
			p.breakBundle("apply.yml", "  tasks:\n", "  tasks:\n    - ansible.builtin.fail: {msg: no}\n")
		}},
		"playbook":   {breaks: func(p *pair) { p.breakBundle("apply.yml", "hosts: all", "hosts: nobody") }},
		"pf_refused": {breaks: func(p *pair) { p.a.Fault("pf-refuse") }},
		"no_proof": {breaks: func(p *pair) {
			p.breakBundle("apply.yml", "    - name: Apply", "    - ansible.builtin.raw: pwd\n    - when: false\n      name: Apply")
		}},
		"proof_mismatch":     {breaks: func(p *pair) { p.breakBundle("program/40-pf.php", "hash('sha256', ", "hash('sha256', 'x' . ") }},
		"stale_epoch":        {breaks: func(p *pair) { p.remember("epoch", 1<<40) }},
		"stale_revision":     {breaks: func(p *pair) { p.remember("revision", 1<<40) }},
		"foreign_controller": {breaks: func(p *pair) { p.remember("controller", "another") }},
		"flushed":            {breaks: func(p *pair) { p.remember("held", true) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := cmp.Or(tc.want, name)
			p := newPair(t)
			tc.breaks(p)
			p.start()
			c := p.client()
			asked := time.Now()
			got := block(t, c, api.BlockRequest{Source: "203.0.113.7"}, "60s")
			if took := time.Since(asked); took > 45*time.Second {
				t.Errorf("told after %s", took)
			}
			states := map[string]api.BlockState{}
			for _, s := range got.Status {
				states[s.Name] = s.State
			}
			waits, stands := api.BlockState("degraded"), api.FirewallCondition("failing")
			if want == "flushed" {
				waits, stands = "held", "held"
			}
			if states["fw-a"] != waits || states["fw-b"] != "enforced" {
				t.Errorf("states %v", states)
			}
			fw, err := c.GetFirewallWithResponse(t.Context(), "fw-a")
			if err != nil || fw.JSON200.State != stands || fw.JSON200.Incident.Failure != want {
				t.Fatalf("fw-a: %v %s", err, fw.Body)
			}
			runs, err := c.ListRunsWithResponse(t.Context(), &api.ListRunsParams{Firewall: new("fw-a"), Limit: new(100)})
			if err != nil || !slices.ContainsFunc(runs.JSON200.Items, func(r api.Run) bool { return r.Failure == want }) {
				t.Errorf("runs: %v %s", err, runs.Body)
			}
			letters := p.mail.Wait(1, 30*time.Second)
			if len(letters) != 1 || !strings.Contains(string(letters[0].Data), want) || !strings.Contains(string(letters[0].Data), "Subject: parry: fw-a") {
				t.Errorf("%d mails, the first: %s", len(letters), letters[0].Data)
			}
			m, err := c.GetMetricsWithResponse(t.Context())
			if err != nil || !strings.Contains(string(m.Body), `result="`+want+`"`) {
				t.Errorf("metrics do not tell %s: %v", want, err)
			}
			if strings.Contains(string(m.Body), "203.0.113.") {
				t.Error("metrics bear an address")
			}
		})
	}
}

func TestBundle_aBadEditIsToldAndTheLastGoodOneGoesOn(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.start()
	c := p.client()
	block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "60s")
	book := filepath.Join(p.dir, "bundles", "pfsense", "apply.yml")
	p.replace(book, "hosts: all", "hosts: [all")
	if got := block(t, c, api.BlockRequest{Source: "203.0.113.2"}, "60s"); got.State != "enforced" || got.Enforced != 2 {
		t.Errorf("with a broken playbook beside the good copy: %+v", got)
	}
	problem := func(part string) bool {
		r, err := c.GetReadinessWithResponse(t.Context())
		return err == nil && strings.Contains(string(r.Body), part)
	}
	eventually(t, "readyz tells of it", func() bool { return problem("apply.yml") })
	p.replace(book, "hosts: [all", "hosts: all")
	eventually(t, "readyz is content again", func() bool { return !problem("apply.yml") })
}

func TestReject_oneBadEntryAmongAHundredStopsNoOther(t *testing.T) {
	t.Parallel()
	lab, mail := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"}), testenv.StartMail(t, testenv.MailOptions{})
	s := newSite(t, "listen: \"\"\nmail: {server: \""+mail.Addr+"\", security: plain, from: parry@example.net, to: [noc@example.net]}\n", lab)
	s.start()
	c := s.client()
	for i := range 100 {
		block(t, c, api.BlockRequest{Source: fmt.Sprintf("203.0.113.%d", i+1)}, "")
	}
	bad := block(t, c, api.BlockRequest{Source: "198.51.100.7", Destination: "198.18.0.10"}, "60s")
	if bad.State != "rejected" || bad.Status[0].Reason == "" {
		t.Errorf("the bad one: %+v", bad)
	}
	eventually(t, "the others are in force", func() bool { return len(sources(lab)) == 100 })
	fw, err := c.GetFirewallWithResponse(t.Context(), "fw-a")
	if err != nil || len(fw.JSON200.Rejects) != 1 || fw.JSON200.Rejects[0].Code != "destination_is_firewall" {
		t.Errorf("%v %s", err, fw.Body)
	}
	runs, err := c.ListRunsWithResponse(t.Context(), &api.ListRunsParams{Limit: new(100)})
	if err != nil || !slices.ContainsFunc(runs.JSON200.Items, func(r api.Run) bool { return r.State == "succeeded" && r.Rejected == 1 }) {
		t.Errorf("runs: %v %s", err, runs.Body)
	}
	letter := strings.ReplaceAll(string(mail.Wait(1, 30*time.Second)[0].Data), "=\r\n", "")
	for _, want := range []string{bad.ID, "destination_is_firewall", "In force     100\r\n"} {
		if !strings.Contains(letter, want) {
			t.Errorf("the mail lacks %q: %s", want, letter)
		}
	}
	m, err := c.GetMetricsWithResponse(t.Context())
	if err != nil || !strings.Contains(string(m.Body), `parry_firewall_blocks{firewall="fw-a",state="rejected"} 1`) ||
		!strings.Contains(string(m.Body), `parry_firewall_blocks{firewall="fw-a",state="enforced"} 100`) {
		t.Errorf("metrics: %v", err)
	}
}

// TestHostileText_isKeptAsWrittenAndActsOnNothing sends what would act on the Ansible host, the firewall, a mail or a log in every free-text
// field, and lets the firewall fail so that a mail is written about it.
func TestHostileText_isKeptAsWrittenAndActsOnNothing(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	canary := filepath.Join(p.dir, "canary")
	hostile := "{{ lookup('pipe','touch " + canary + "') }} {% set x=1 %} $(touch " + canary + ") `touch " + canary + "` ;touch " + canary +
		"\r\nBcc: evil@example.net\r\n\r\n<script>alert(1)</script> ]]></descr><x/> \x1b[2J =cmd|'/C calc'!A1 ! # \\ \" '"
	r := p.start()
	c := p.client()
	block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "60s")
	before := p.a.Config()
	plain := block(t, c, api.BlockRequest{Source: "203.0.113.3", Agent: hostile[:128], Reason: hostile, Origin: hostile[:250], AlertID: hostile[:250], RuleID: hostile[:250]}, "60s")
	if plain.State != "enforced" || !slices.Contains(sources(p.a), "203.0.113.3") {
		t.Errorf("in force: %+v", plain)
	}
	evidence, err := c.ListBlockRequestsWithResponse(t.Context(), plain.ID, &api.ListBlockRequestsParams{Limit: new(10)})
	if err != nil || len(evidence.JSON200.Items) != 1 || evidence.JSON200.Items[0].Reason != hostile || evidence.JSON200.Items[0].AlertID != hostile[:250] ||
		evidence.JSON200.Items[0].RuleID != hostile[:250] {
		t.Errorf("the evidence is not kept as written: %v %s", err, evidence.Body)
	}
	if p.a.Config() != before {
		t.Error("an entry of a rule that stands changed config.xml")
	}
	p.a.Fault("pf-refuse")
	b := block(t, c, api.BlockRequest{Source: "203.0.113.2", Destination: "198.51.100.1", Reason: hostile, Origin: hostile[:250], AlertID: hostile[:250], RuleID: hostile[:250]}, "60s")
	if b.Reason != hostile || b.Origin != hostile[:250] {
		t.Errorf("not kept as written: %q", b.Reason)
	}
	letters := p.mail.Wait(1, 30*time.Second)
	for _, l := range letters {
		head, _, _ := strings.Cut(string(l.Data), "\r\n\r\n")
		if strings.Contains(head, "evil") || len(l.To) != 1 || strings.Contains(string(l.Data), "<script>") {
			t.Errorf("the mail: %s", l.Data)
		}
	}
	if got := p.a.Config(); got != before {
		t.Error("config.xml of a firewall that refuses was changed")
	}
	p.a.Fault("off")
	h, err := c.HoldFirewallWithResponse(t.Context(), "fw-b", api.HoldRequest{Reason: hostile})
	if err != nil || h.JSON200 == nil || h.JSON200.Hold.Reason != hostile {
		t.Errorf("hold: %v %s", err, h.Body)
	}
	x, err := c.CreateExemptionWithResponse(t.Context(), api.ExemptionRequest{Prefix: "192.0.2.77", Reason: hostile})
	if err != nil || x.JSON201 == nil || x.JSON201.Exemption.Reason != hostile {
		t.Errorf("exemption: %v %s", err, x.Body)
	}
	if _, err := c.VerifyFirewallWithResponse(t.Context(), "fw-a"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the block is in force", func() bool { return slices.Contains(sources(p.a), "203.0.113.2") })
	for _, l := range []*testenv.Lab{p.a, p.b} {
		for _, part := range []string{"canary", "evil", "alert(1)", "lookup", "calc"} {
			if strings.Contains(l.Config(), part) || strings.Contains(l.Rules(), part) {
				t.Errorf("%s holds %q", l.Name, part)
			}
		}
	}
	if _, err := os.Stat(canary); err == nil {
		t.Error("the canary was touched")
	}
	r.end()
	for line := range strings.Lines(r.log.String()) {
		if !strings.HasPrefix(line, "time=") || strings.ContainsRune(line, 0x1b) {
			t.Errorf("the log: %q", line)
		}
	}
}
