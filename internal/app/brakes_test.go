package app_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/testenv"
)

// wall is a firewall of any kind.
type wall struct {
	*testenv.Lab
	bundle string
	blocks func(source string) bool // whether it drops what comes from an address
	empty  func() bool              // whether nothing of parry's is in force
}

// both is a site with a firewall of each kind, fw-a with pfSense and fw-l with nftables, and a mail server.
type both struct {
	*site
	walls []wall
	mail  *testenv.Mail
}

func newBoth(t *testing.T, more string) *both {
	t.Helper()
	pf, linux, mail := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"}), testenv.StartLinux(t, "fw-l"), testenv.StartMail(t, testenv.MailOptions{})
	s := &both{
		site: newSite(t, "listen: \"\"\nmail: {server: \""+mail.Addr+"\", security: plain, from: parry@example.net, to: [noc@example.net]}\n"+more, pf, linux.Lab),
		mail: mail,
		walls: []wall{
			{pf, "pfsense", func(source string) bool { return slices.Contains(sources(pf), source) }, func() bool { return len(sources(pf)) == 0 }},
			{linux.Lab, "nftables", func(source string) bool { return linux.Ping(source, "198.18.0.80") != nil }, func() bool {
				return linux.Ping("203.0.113.7", "198.18.0.80") == nil && linux.Ping("203.0.113.8", "198.18.0.80") == nil
			}},
		},
	}
	return s
}

// byHand runs a playbook of the firewall's bundle as an operator would with parry gone: plain ansible-playbook with the site's inventory.
func (s *site) byHand(w wall, book string) {
	s.tb.Helper()
	c := exec.CommandContext(s.tb.Context(), "ansible-playbook", "-i", filepath.Join(s.dir, "inventory.json"), "--limit", w.Name,
		"--ssh-common-args", "-o UserKnownHostsFile="+filepath.Join(s.dir, "known_hosts"), filepath.Join(repo(), "playbooks", w.bundle, book))
	c.Dir = s.dir
	if out, err := c.CombinedOutput(); err != nil {
		s.tb.Fatalf("%s by hand: %v\n%s", book, err, out)
	}
}

func firewall(tb testing.TB, c *api.ClientWithResponses, name string) *api.Firewall {
	tb.Helper()
	r, err := c.GetFirewallWithResponse(tb.Context(), name)
	if err != nil || r.JSON200 == nil {
		tb.Fatalf("firewall %s: %v %s", name, err, r.Body)
	}
	return r.JSON200
}

// stateOf is a block's state now, the worst of all.
func stateOf(tb testing.TB, c *api.ClientWithResponses, id string) string {
	tb.Helper()
	return stateOn(tb, c, id, "")
}

// stateOn is a block's state on one firewall now.
func stateOn(tb testing.TB, c *api.ClientWithResponses, id, name string) string {
	tb.Helper()
	r, err := c.GetBlockWithResponse(tb.Context(), id)
	if err != nil || r.JSON200 == nil {
		tb.Fatalf("block %s: %v %s", id, err, r.Body)
	}
	for _, on := range r.JSON200.Status {
		if on.Name == name {
			return string(on.State)
		}
	}
	return string(r.JSON200.State)
}

func readyz(tb testing.TB, c *api.ClientWithResponses) string {
	tb.Helper()
	r, err := c.GetReadinessWithResponse(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return string(r.Body)
}

const neighbour = other

// holding tells whether every firewall drops, or none drops, what comes from an address.
func (s *both) holding(source string, want bool) func() bool {
	return func() bool {
		return !slices.ContainsFunc(s.walls, func(w wall) bool { return w.blocks(source) != want })
	}
}

// Held over a restart, and released by itself.
func TestBrakes_hold(t *testing.T) {
	t.Parallel()
	s := newBoth(t, "")
	r := s.start()
	c := s.client()
	block(t, c, api.BlockRequest{Source: attacker}, "90s")
	h, err := c.HoldAllWithResponse(t.Context(), api.HoldRequest{Reason: "maintenance", For: "20s"})
	if err != nil || h.JSON200 == nil || h.JSON200.Items[0].State != "held" || h.JSON200.Items[1].Hold.Until.IsZero() {
		t.Fatalf("hold: %v %s", err, h.Body)
	}
	held := block(t, c, api.BlockRequest{Source: neighbour}, "60s")
	if held.State != "held" || !strings.Contains(held.Status[0].Reason, "until") {
		t.Errorf("a block on a held firewall: %+v", held)
	}
	r.end()
	s.start()
	for i, w := range s.walls {
		if got, want := firewall(t, c, w.Name).Hold, h.JSON200.Items[i].Hold; got != want {
			t.Errorf("after the restart the hold of %s is %+v, was %+v", w.Name, got, want)
		}
		if !w.blocks(attacker) || w.blocks(neighbour) {
			t.Errorf("held, %s drops %s: %v, and %s: %v", w.Name, attacker, w.blocks(attacker), neighbour, w.blocks(neighbour))
		}
	}
	eventually(t, "it goes on by itself", func() bool { return stateOf(t, c, held.ID) == "enforced" })
	if time.Now().Before(h.JSON200.Items[0].Hold.Until) {
		t.Error("released before its time")
	}
	if !s.holding(neighbour, true)() {
		t.Error("enforced, and not everywhere in force")
	}
}

// flush.yml, with parry stopped and its database out of reach, is a hold when parry is back.
func TestBrakes_flushByHand(t *testing.T) {
	t.Parallel()
	s := newBoth(t, "")
	r := s.start()
	c := s.client()
	b := block(t, c, api.BlockRequest{Source: attacker}, "90s")
	r.end()
	for _, w := range s.walls {
		if s.byHand(w, "flush.yml"); !w.empty() {
			t.Fatalf("%s still drops after flush.yml", w.Name)
		}
	}
	for range 2 { // at the next start, and at the one after that
		r = s.start()
		for _, w := range s.walls {
			eventually(t, w.Name+" shows as held", func() bool {
				return firewall(t, c, w.Name).Hold.Kind == "flush" && stateOn(t, c, b.ID, w.Name) == "held"
			})
			fw := firewall(t, c, w.Name)
			if fw.State != "held" || fw.Hold.By != "by hand (flush.yml)" || time.Since(fw.Hold.Since) > 5*time.Minute {
				t.Errorf("the firewall: %+v", fw)
			}
			if got := readyz(t, c); !strings.Contains(got, "emptied by hand") || !strings.Contains(got, "parry firewalls adopt "+w.Name) {
				t.Errorf("readyz: %s", got)
			}
		}
		if got := block(t, c, api.BlockRequest{Source: neighbour}, "60s"); got.State != "held" || !s.holding(neighbour, false)() {
			t.Errorf("a new block is %s; in force nowhere: %v", got.State, s.holding(neighbour, false)())
		}
		r.end()
	}
	s.start()
	for _, w := range s.walls {
		if _, err := c.AdoptFirewallWithResponse(t.Context(), w.Name); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all is in force again", func() bool { return stateOf(t, c, b.ID) == "enforced" })
	if !s.holding(attacker, true)() || !s.holding(neighbour, true)() {
		t.Error("enforced, and not everywhere in force")
	}
}

// One of two firewalls is down: the other is emptied at once, and that one as soon as it answers. All is proved, held over a restart, told by one
// mail, and comes back when the panic is over.
func TestBrakes_panic(t *testing.T) {
	t.Parallel()
	s := newBoth(t, "")
	down, up := s.walls[0], s.walls[1]
	r := s.start()
	c := s.client()
	b := block(t, c, api.BlockRequest{Source: attacker}, "90s")
	down.Stop()
	called, err := c.PanicWithResponse(t.Context(), api.PanicRequest{Reason: "our own customers"})
	if err != nil || called.JSON202 == nil || len(called.JSON202.Firewalls) != 2 {
		t.Fatalf("panic: %v %s", err, called.Body)
	}
	eventually(t, up.Name+" is empty", func() bool { return firewall(t, c, up.Name).Hold.Empty })
	if !up.empty() {
		t.Errorf("%s claims to be empty", up.Name)
	}
	eventually(t, down.Name+" is told", func() bool { return strings.Contains(readyz(t, c), "NOT empty yet, it is failing: unreachable") })
	if got := firewall(t, c, down.Name); got.State != "panic" || got.Hold.Empty || stateOn(t, c, b.ID, down.Name) != "lifting" {
		t.Errorf("%s: %+v", down.Name, got)
	}
	if got := block(t, c, api.BlockRequest{Source: neighbour}, "60s"); got.State != "held" {
		t.Errorf("a block meanwhile: %+v", got)
	}
	down.Start()
	eventually(t, down.Name+" is empty as soon as it answers", func() bool { return firewall(t, c, down.Name).Hold.Empty })
	r.end()
	s.start()
	for _, w := range s.walls {
		eventually(t, w.Name+" is read after the restart", func() bool { return firewall(t, c, w.Name).Phase == "panic" })
		if !w.empty() || stateOn(t, c, b.ID, w.Name) != "held" {
			t.Errorf("in panic %s is empty: %v, and the block there %s", w.Name, w.empty(), stateOn(t, c, b.ID, w.Name))
		}
	}
	m, err := c.GetMetricsWithResponse(t.Context())
	if err != nil || !strings.Contains(string(m.Body), `parry_firewalls_in_panic{empty="true"} 2`) {
		t.Errorf("metrics: %v", err)
	}
	if over, err := c.EndPanicWithResponse(t.Context(), nil); err != nil || over.JSON202 == nil {
		t.Fatalf("over: %v %s", err, over.Body)
	}
	eventually(t, "all is in force again", func() bool { return stateOf(t, c, b.ID) == "enforced" })
	if !s.holding(attacker, true)() || !s.holding(neighbour, true)() {
		t.Error("enforced, and not everywhere in force")
	}
	var told []string
	eventually(t, "the mails have come", func() bool {
		told = nil
		for _, l := range s.mail.Letters() {
			if strings.Contains(string(l.Data), "X-Parry-Kind: panic") {
				told = append(told, string(l.Data))
			}
		}
		return len(told) == 2
	})
	if !strings.Contains(told[0], "PANIC by local") || !strings.Contains(told[0], "our own customers") || !strings.Contains(told[1], "is over") {
		t.Errorf("the mails: %s", told)
	}
}

// A group is taken from the firewalls, so that many entries would go: nothing goes before the word, before and after a restart; the mail shows what.
func TestBrakes_approval(t *testing.T) {
	t.Parallel()
	s := newBoth(t, "")
	r := s.start()
	c := s.client()
	block(t, c, api.BlockRequest{Source: attacker, Firewalls: []string{"edge"}}, "")
	for i := range 29 {
		block(t, c, api.BlockRequest{Source: fmt.Sprintf("198.51.100.%d", i+1), Firewalls: []string{"edge"}}, "")
	}
	proved := func(count int) func() bool {
		return func() bool {
			return !slices.ContainsFunc(s.walls, func(w wall) bool {
				fw := firewall(t, c, w.Name)
				return fw.State != "proved" || fw.Proof.Count != count
			})
		}
	}
	eventually(t, "all are in force", func() bool { return proved(30)() && s.holding(attacker, true)() })
	r.end()
	s.write("parry.yaml", strings.ReplaceAll(s.read("parry.yaml"), "groups: [edge]", "groups: [other]"))
	ids := map[string]string{}
	for range 2 {
		r = s.start()
		for _, w := range s.walls {
			eventually(t, w.Name+" asks", func() bool { return firewall(t, c, w.Name).Approval != "" })
			id := firewall(t, c, w.Name).Approval
			if was := ids[w.Name]; was != "" && id != was {
				t.Errorf("a restart asks anew: %s, was %s", id, was)
			}
			if ids[w.Name] = id; !w.blocks(attacker) {
				t.Errorf("%s has let go before the word", w.Name)
			}
		}
		r.end()
	}
	s.start()
	letters := ""
	eventually(t, "the mails have come", func() bool {
		letters = ""
		for _, l := range s.mail.Letters() {
			letters += strings.ReplaceAll(string(l.Data), "=\r\n", "")
		}
		return strings.Contains(letters, ids["fw-a"]) && strings.Contains(letters, ids["fw-l"])
	})
	for _, w := range s.walls {
		id := ids[w.Name]
		a, err := c.GetApprovalWithResponse(t.Context(), id)
		if err != nil || a.JSON200 == nil || a.JSON200.Removed != 30 || !strings.HasPrefix(a.JSON200.First[0], "- 198.51.100.1 - - -") {
			t.Fatalf("it shows %v %s", err, a.Body)
		}
		for _, want := range []string{"parry approvals approve " + id, "- 198.51.100.1 - - -", "Would change (30)"} {
			if !strings.Contains(letters, want) {
				t.Errorf("the mails lack %q: %s", want, letters)
			}
		}
		if d, err := c.ApproveWithResponse(t.Context(), id, api.DecisionRequest{Reason: "moved"}); err != nil || d.JSON200 == nil {
			t.Fatalf("approve: %v %s", err, d.Body)
		}
	}
	eventually(t, "they are gone", func() bool { return proved(0)() && s.holding(attacker, false)() })
	for _, id := range ids {
		if a, err := c.GetApprovalWithResponse(t.Context(), id); err != nil || a.JSON200.State != "applied" {
			t.Errorf("then %v %s", err, a.Body)
		}
	}
}

// Simulated firewalls are run in check mode and left alone, over a restart; what stands is applied when that is over. A simulated rule's block is
// shown and not applied, until somebody else asks for it.
func TestBrakes_simulate(t *testing.T) {
	t.Parallel()
	s := newBoth(t, "simulate: {all: true, rules: [\"5712\"]}\n")
	r := s.start()
	c := s.client()
	b := block(t, c, api.BlockRequest{Source: attacker}, "30s")
	if b.State != "simulated" {
		t.Errorf("got %+v", b)
	}
	for range 2 {
		for _, w := range s.walls {
			eventually(t, w.Name+" shows it", func() bool { return firewall(t, c, w.Name).Simulation.Added == 1 })
			fw := firewall(t, c, w.Name)
			if fw.State != "simulated" || !strings.HasPrefix(fw.Simulation.First[0], "+ "+attacker+" ") || !w.empty() {
				t.Errorf("%s: %+v; nothing is in force: %v", w.Name, fw, w.empty())
			}
			log, err := c.GetRunLogWithResponse(t.Context(), fw.Simulation.RunID)
			if err != nil || !strings.Contains(string(log.Body), attacker) {
				t.Errorf("the run's log shows no diff: %v %s", err, log.Body)
			}
		}
		r.end()
		r = s.start()
	}
	r.end()
	s.write("parry.yaml", strings.Replace(s.read("parry.yaml"), "all: true", "all: false", 1))
	s.start()
	eventually(t, "what stands is applied", func() bool { return stateOf(t, c, b.ID) == "enforced" })
	shadow := block(t, c, api.BlockRequest{Source: neighbour, RuleID: "5712"}, "30s")
	if shadow.State != "simulated" || !shadow.Simulated {
		t.Errorf("of a simulated rule: %+v", shadow)
	}
	for _, w := range s.walls {
		eventually(t, w.Name+" shows it", func() bool { return firewall(t, c, w.Name).Simulation.Entries == 2 })
		if !w.blocks(attacker) || w.blocks(neighbour) || firewall(t, c, w.Name).State != "proved" {
			t.Errorf("%s drops %s: %v, and %s: %v", w.Name, attacker, w.blocks(attacker), neighbour, w.blocks(neighbour))
		}
	}
	if real := block(t, c, api.BlockRequest{Source: neighbour}, "90s"); real.ID != shadow.ID || real.State != "enforced" || !s.holding(neighbour, true)() {
		t.Errorf("a real request: %+v", real)
	}
}
