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

// byHand runs a playbook of the firewall's bundle as an operator would with parry gone: plain ansible-playbook with the site's inventory.
func (s *site) byHand(bundle, book string, l *testenv.Lab) {
	s.tb.Helper()
	c := exec.CommandContext(s.tb.Context(), "ansible-playbook", "-i", filepath.Join(s.dir, "inventory.json"), "--limit", l.Name,
		"--ssh-common-args", "-o UserKnownHostsFile="+filepath.Join(s.dir, "known_hosts"), filepath.Join(repo(), "playbooks", bundle, book))
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

// stateOf is a block's state now.
func stateOf(tb testing.TB, c *api.ClientWithResponses, id string) string {
	tb.Helper()
	r, err := c.GetBlockWithResponse(tb.Context(), id)
	if err != nil || r.JSON200 == nil {
		tb.Fatalf("block %s: %v %s", id, err, r.Body)
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

// Held over a restart, and released by itself.
func TestBrakes_hold(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	s := newSite(t, "listen: \"\"\n", lab)
	r := s.start()
	c := s.client()
	block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "60s")
	h, err := c.HoldFirewallWithResponse(t.Context(), "fw-a", api.HoldRequest{Reason: "maintenance", For: "15s"})
	if err != nil || h.JSON200 == nil || h.JSON200.State != "held" || h.JSON200.Hold.Until.IsZero() {
		t.Fatalf("hold: %v %s", err, h.Body)
	}
	held := block(t, c, api.BlockRequest{Source: "203.0.113.2"}, "60s")
	if held.State != "held" || !strings.Contains(held.Status[0].Reason, "until") {
		t.Errorf("a block on a held firewall: %+v", held)
	}
	r.end()
	s.start()
	if got := firewall(t, c, "fw-a"); got.Hold != h.JSON200.Hold {
		t.Errorf("after the restart the hold is %+v, was %+v", got.Hold, h.JSON200.Hold)
	}
	if got := sources(lab); slices.Contains(got, "203.0.113.2") {
		t.Errorf("pf holds %v while held", got)
	}
	eventually(t, "it goes on by itself", func() bool { return stateOf(t, c, held.ID) == "enforced" })
	if time.Now().Before(h.JSON200.Hold.Until) {
		t.Error("released before its time")
	}
	if got := sources(lab); !slices.Contains(got, "203.0.113.2") {
		t.Errorf("pf holds %v after the hold", got)
	}
}

// flush.yml, with parry stopped and its database out of reach, is a hold when parry is back.
func TestBrakes_flushByHand(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	s := newSite(t, "listen: \"\"\n", lab)
	r := s.start()
	c := s.client()
	b := block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "60s")
	r.end()
	s.byHand("pfsense", "flush.yml", lab)
	if got := sources(lab); len(got) != 0 {
		t.Fatalf("pf holds %v after flush.yml", got)
	}
	for range 2 { // at the next start, and at the one after that
		r = s.start()
		eventually(t, "it shows as held", func() bool { return firewall(t, c, "fw-a").Hold.Kind == "flush" && stateOf(t, c, b.ID) == "held" })
		fw := firewall(t, c, "fw-a")
		if fw.State != "held" || fw.Hold.By != "by hand (flush.yml)" || time.Since(fw.Hold.Since) > 5*time.Minute {
			t.Errorf("the firewall: %+v", fw)
		}
		if got := readyz(t, c); !strings.Contains(got, "emptied by hand") || !strings.Contains(got, "parry firewalls adopt fw-a") {
			t.Errorf("readyz: %s", got)
		}
		if got := block(t, c, api.BlockRequest{Source: "203.0.113.2"}, "60s"); got.State != "held" || len(sources(lab)) != 0 {
			t.Errorf("a new block is %s, and pf holds %v", got.State, sources(lab))
		}
		r.end()
	}
	s.start()
	if _, err := c.AdoptFirewallWithResponse(t.Context(), "fw-a"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is in force again", func() bool { return len(sources(lab)) == 2 && stateOf(t, c, b.ID) == "enforced" })
}

// One of two firewalls is down: the other is emptied at once, and that one as soon as it answers. All is proved, held over a restart, told by one
// mail, and comes back when the panic is over.
func TestBrakes_panic(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	r := p.start()
	c := p.client()
	b := block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "60s")
	p.a.Stop()
	called, err := c.PanicWithResponse(t.Context(), api.PanicRequest{Reason: "our own customers"})
	if err != nil || called.JSON202 == nil || len(called.JSON202.Firewalls) != 2 {
		t.Fatalf("panic: %v %s", err, called.Body)
	}
	eventually(t, "fw-b is empty", func() bool { return firewall(t, c, "fw-b").Hold.Empty })
	if got := sources(p.b); len(got) != 0 {
		t.Errorf("fw-b's pf holds %v", got)
	}
	eventually(t, "fw-a is told", func() bool { return strings.Contains(readyz(t, c), "NOT empty yet, it is failing: unreachable") })
	if got := firewall(t, c, "fw-a"); got.State != "panic" || got.Hold.Empty {
		t.Errorf("fw-a: %+v", got)
	}
	if got := block(t, c, api.BlockRequest{Source: "203.0.113.2"}, "60s"); got.State != "held" {
		t.Errorf("a block meanwhile: %+v", got)
	}
	p.a.Start()
	eventually(t, "fw-a is empty as soon as it answers", func() bool { return firewall(t, c, "fw-a").Hold.Empty })
	r.end()
	p.start()
	eventually(t, "it is read after the restart", func() bool { return firewall(t, c, "fw-a").Phase == "panic" && firewall(t, c, "fw-b").Phase == "panic" })
	for _, l := range []*testenv.Lab{p.a, p.b} {
		if got := sources(l); len(got) != 0 {
			t.Errorf("%s's pf holds %v in panic", l.Name, got)
		}
	}
	if got := stateOf(t, c, b.ID); got != "held" {
		t.Errorf("the block is %s", got)
	}
	m, err := c.GetMetricsWithResponse(t.Context())
	if err != nil || !strings.Contains(string(m.Body), `parry_firewalls_in_panic{empty="true"} 2`) {
		t.Errorf("metrics: %v", err)
	}
	if over, err := c.EndPanicWithResponse(t.Context(), nil); err != nil || over.JSON202 == nil {
		t.Fatalf("over: %v %s", err, over.Body)
	}
	eventually(t, "all is in force again", func() bool {
		return len(sources(p.a)) == 2 && len(sources(p.b)) == 2 && stateOf(t, c, b.ID) == "enforced"
	})
	var told []string
	eventually(t, "the mails have come", func() bool {
		told = nil
		for _, l := range p.mail.Letters() {
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

// A group is taken from a firewall, so that many entries would go: nothing goes before the word, before and after a restart; the mail shows what.
func TestBrakes_approval(t *testing.T) {
	t.Parallel()
	lab, mail := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"}), testenv.StartMail(t, testenv.MailOptions{})
	s := newSite(t, "listen: \"\"\nmail: {server: \""+mail.Addr+"\", security: plain, from: parry@example.net, to: [noc@example.net]}\n", lab)
	r := s.start()
	c := s.client()
	for i := range 30 {
		block(t, c, api.BlockRequest{Source: fmt.Sprintf("203.0.113.%d", i+1), Firewalls: []string{"edge"}}, "")
	}
	eventually(t, "all are in force", func() bool { return len(sources(lab)) == 30 })
	r.end()
	text := s.read("parry.yaml")
	s.write("parry.yaml", strings.Replace(text, "groups: [edge]", "groups: [other]", 1))
	var id string
	for range 2 {
		r = s.start()
		eventually(t, "it is asked", func() bool { return firewall(t, c, "fw-a").Approval != "" })
		if was := id; was != "" && firewall(t, c, "fw-a").Approval != was {
			t.Errorf("a restart asks anew: %s, was %s", firewall(t, c, "fw-a").Approval, was)
		}
		id = firewall(t, c, "fw-a").Approval
		if got := len(sources(lab)); got != 30 {
			t.Errorf("pf holds %d before the word", got)
		}
		r.end()
	}
	s.start()
	a, err := c.GetApprovalWithResponse(t.Context(), id)
	if err != nil || a.JSON200 == nil || a.JSON200.Removed != 30 || a.JSON200.First[0] != "- 203.0.113.1 - - - wan" {
		t.Fatalf("it shows %v %s", err, a.Body)
	}
	letter := strings.ReplaceAll(string(mail.Wait(1, 30*time.Second)[0].Data), "=\r\n", "")
	for _, want := range []string{"parry approvals approve " + id, "- 203.0.113.1 - - - wan", "Would change (30)"} {
		if !strings.Contains(letter, want) {
			t.Errorf("the mail lacks %q: %s", want, letter)
		}
	}
	if d, err := c.ApproveWithResponse(t.Context(), id, api.DecisionRequest{Reason: "moved"}); err != nil || d.JSON200 == nil {
		t.Fatalf("approve: %v %s", err, d.Body)
	}
	eventually(t, "they are gone", func() bool { return len(sources(lab)) == 0 })
	eventually(t, "it is told", func() bool {
		a, err := c.GetApprovalWithResponse(t.Context(), id)
		return err == nil && a.JSON200.State == "applied" && firewall(t, c, "fw-a").State == "proved"
	})
}
