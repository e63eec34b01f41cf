package app_test

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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
func (s *site) bundle(name string) (dir string) {
	s.tb.Helper()
	dir = filepath.Join(s.dir, "bundles", name)
	if err := testenv.CopyPlaybooks("pfsense", dir); err != nil {
		s.tb.Fatal(err)
	}
	s.replace(filepath.Join(dir, "bundle.yml"), "name: pfsense", "name: "+name)
	return dir
}

func (s *site) replace(path, from, to string) {
	s.tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		s.tb.Fatal(err)
	}
	if !strings.Contains(string(b), from) {
		s.tb.Fatalf("%s has no %q", path, from)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), from, to, 1)), 0o600); err != nil {
		s.tb.Fatal(err)
	}
}

// breakBundle gives the firewall a bundle of its own with one file changed.
func (s *site) breakBundle(l *testenv.Lab, file, from, to string) {
	s.tb.Helper()
	s.replace(filepath.Join(s.bundle(l.Name), file), from, to)
	s.replace(s.config, "name: "+l.Name+", bundle: pfsense", "name: "+l.Name+", bundle: "+l.Name)
}

// remember changes what a firewall that a parry has held remembers of that.
func (s *site) remember(l *testenv.Lab, key string, value any) {
	s.tb.Helper()
	path := filepath.Join(l.Root, "cf", "conf", "parry.json")
	b, err := os.ReadFile(path)
	if err != nil {
		s.tb.Fatal(err)
	}
	state := map[string]any{}
	if err := json.Unmarshal(b, &state); err != nil {
		s.tb.Fatal(err)
	}
	state[key] = value
	if b, err = json.Marshal(state); err != nil {
		s.tb.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		s.tb.Fatal(err)
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

// named holds that a broken firewall is told by the failure's name: in the block's state, the runs, a mail and the metrics.
func named(t *testing.T, c *api.ClientWithResponses, mail *testenv.Mail, got *api.Block, fw, want string) {
	t.Helper()
	waits, stands := api.BlockState("degraded"), api.FirewallCondition("failing")
	if want == "flushed" {
		waits, stands = "held", "held"
	}
	if state := stateAt(got, fw); state != waits {
		t.Errorf("the block is %s there", state)
	}
	f, err := c.GetFirewallWithResponse(t.Context(), fw)
	if err != nil || f.JSON200.State != stands || f.JSON200.Incident.Failure != want {
		t.Fatalf("%v %s", err, f.Body)
	}
	runs, err := c.ListRunsWithResponse(t.Context(), &api.ListRunsParams{Firewall: &fw, Limit: new(100)})
	if err != nil || !slices.ContainsFunc(runs.JSON200.Items, func(r api.Run) bool { return r.Failure == want }) {
		t.Errorf("runs: %v %s", err, runs.Body)
	}
	var letters []string
	eventually(t, "a mail tells of it", func() bool {
		letters = nil
		for _, l := range mail.Letters() {
			if strings.Contains(string(l.Data), "Subject: parry: "+fw) {
				letters = append(letters, string(l.Data))
			}
		}
		return len(letters) > 0
	})
	if len(letters) != 1 || !strings.Contains(letters[0], want) {
		t.Errorf("%d mails, the first: %s", len(letters), letters[0])
	}
	m, err := c.GetMetricsWithResponse(t.Context())
	if err != nil || !strings.Contains(string(m.Body), `result="`+want+`"`) {
		t.Errorf("metrics do not tell %s: %v", want, err)
	}
	if strings.Contains(string(m.Body), "203.0.113.") {
		t.Error("metrics bear an address")
	}
}

func stateAt(b *api.Block, fw string) api.BlockState {
	for _, s := range b.Status {
		if s.Name == fw {
			return s.State
		}
	}
	return ""
}

// told asks for a block, which must be answered in time and be in force on the sound firewall.
func told(t *testing.T, c *api.ClientWithResponses, sound *testenv.Lab) *api.Block {
	t.Helper()
	asked := time.Now()
	got := block(t, c, api.BlockRequest{Source: "203.0.113.7"}, "60s")
	if took := time.Since(asked); took > 45*time.Second {
		t.Errorf("told after %s", took)
	}
	if state := stateAt(got, sound.Name); state != "enforced" {
		t.Errorf("on the sound firewall it is %s", state)
	}
	return got
}

// TestFailures_thatTakeTimeStopNobodyElse breaks one of two firewalls so that nothing answers.
func TestFailures_thatTakeTimeStopNobodyElse(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		breaks func(p *pair)
		want   string
	}{
		"an ssh that hangs before the login": {want: "unreachable", breaks: func(p *pair) { p.reroute(func(net.Conn) {}) }},
		"an ssh that hangs after the login":  {want: "unreachable", breaks: func(p *pair) { p.reroute(p.freeze) }},
		"a program that hangs": {want: "timeout", breaks: func(p *pair) {
			p.replace(p.config, "known_hosts: known_hosts", "known_hosts: known_hosts, deadline: 20s, grace: 1s")
			p.a.Fault("hang", "pf")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			tc.breaks(p)
			p.start()
			c := p.client()
			named(t, c, p.mail, told(t, c, p.b), "fw-a", tc.want)
		})
	}
}

// TestFailures_eachHasItsNameAndStopsNobodyElse breaks all firewalls but one, each in another way.
func TestFailures_eachHasItsNameAndStopsNobodyElse(t *testing.T) {
	t.Parallel()
	var s *site
	inventory := map[string]*testenv.Lab{}
	sound := testenv.StartLab(t, testenv.LabOptions{Name: "sound"})
	inventory["sound"] = sound
	known := map[string]func(*testenv.Lab){ // a parry has held these before
		"stale_epoch":        func(l *testenv.Lab) { s.remember(l, "epoch", 1<<40) },
		"stale_revision":     func(l *testenv.Lab) { s.remember(l, "revision", 1<<40) },
		"foreign_controller": func(l *testenv.Lab) { s.remember(l, "controller", "another") },
		"flushed":            func(l *testenv.Lab) { s.remember(l, "held", true) },
	}
	fresh := map[string]func(*testenv.Lab){
		"unreachable": func(l *testenv.Lab) { l.Stop() },
		"host_key": func(l *testenv.Lab) {
			keys := regexp.MustCompile(`:(\d+) ssh-ed25519 (\S+)`).FindAllStringSubmatch(s.read("known_hosts"), -1)
			own := slices.IndexFunc(keys, func(k []string) bool { return k[1] == strconv.Itoa(l.Port) })
			s.replace(filepath.Join(s.dir, "known_hosts"), keys[own][2], keys[(own+1)%len(keys)][2])
		},
		"authentication": func(l *testenv.Lab) {
			stranger := *l
			stranger.KeyFile = sound.KeyFile
			inventory[l.Name] = &stranger
		},
		"inventory": func(l *testenv.Lab) { delete(inventory, l.Name) },
		"bundle":    func(l *testenv.Lab) { s.breakBundle(l, "apply.yml", "hosts: all", "hosts: [all") },
		"task": func(l *testenv.Lab) {
			s.breakBundle(l, "apply.yml", "  tasks:\n", "  tasks:\n    - ansible.builtin.fail: {msg: no}\n")
		},
		"playbook":   func(l *testenv.Lab) { s.breakBundle(l, "apply.yml", "hosts: all", "hosts: nobody") },
		"pf_refused": func(l *testenv.Lab) { l.Fault("pf-refuse") },
		"no_proof": func(l *testenv.Lab) {
			s.breakBundle(l, "apply.yml", "    - name: Apply", "    - ansible.builtin.raw: pwd\n    - when: false\n      name: Apply")
		},
		"proof_mismatch": func(l *testenv.Lab) {
			s.breakBundle(l, "program/40-pf.php", "hash('sha256', ", "hash('sha256', 'x' . ")
		},
	}
	labs := map[string]*testenv.Lab{}
	start := func(failures iter.Seq[string]) {
		for f := range failures {
			name := "fw-" + string(rune('a'+len(labs))) // says nothing of the failure, which is looked for in mails
			labs[f] = testenv.StartLab(t, testenv.LabOptions{Name: name})
			inventory[labs[f].Name] = labs[f]
		}
	}
	mail := testenv.StartMail(t, testenv.MailOptions{})
	more := "bundles: bundles\nlisten: \"\"\nreconcile: {backoff_min: 30s}\nmail: {server: \"" + mail.Addr + "\", security: plain, from: parry@example.net, to: [noc@example.net]}\n"
	start(maps.Keys(known))
	s = newSite(t, more, slices.Collect(maps.Values(inventory))...)
	s.bundle("pfsense")
	r := s.start()
	if b := block(t, s.client(), api.BlockRequest{Source: "203.0.113.1"}, "60s"); b.Enforced != len(inventory) {
		t.Fatalf("before: %+v", b)
	}
	r.end()

	start(maps.Keys(fresh))
	s.configure(more, slices.Collect(maps.Values(inventory))...)
	maps.Copy(fresh, known)
	for failure, breaks := range fresh {
		breaks(labs[failure])
	}
	s.inventory(slices.Collect(maps.Values(inventory))...)
	s.start()
	c := s.client()
	got := told(t, c, sound)
	for failure, l := range labs {
		t.Run(failure, func(t *testing.T) { named(t, c, mail, got, l.Name, failure) })
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
