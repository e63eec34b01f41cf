package app_test

import (
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
