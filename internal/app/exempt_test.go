package app_test

import (
	"strings"
	"testing"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/testenv"
)

// What is exempt stands ahead of the drops on a Linux firewall itself. What somebody puts there by hand is drift, and what is exempt no more
// goes with the run that blocks it.
func TestExemptions_standOnTheFirewallItself(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLinux(t, "fw-l")
	s := newSite(t, "listen: \"\"\n", lab.Lab)
	s.start()
	c := s.client()
	const attacker, server = "203.0.113.7", "198.18.0.80"
	exempted := func(addr string) bool { return strings.Contains(lab.Console("nft list table inet parry"), addr) }

	x, err := c.CreateExemptionWithResponse(t.Context(), api.ExemptionRequest{Prefix: "203.0.113.65", Reason: "ours"})
	if err != nil || x.JSON201 == nil {
		t.Fatalf("%v: %s", err, x.Body)
	}
	if b := block(t, c, api.BlockRequest{Source: attacker, TTL: "1h"}, "60s"); b.State != "enforced" {
		t.Fatalf("got %+v", b)
	}
	fw := firewall(t, c, "fw-l")
	if !exempted("203.0.113.65") || fw.Proof.ExemptSha256 == "" || fw.Proof.ExemptCount < 5 {
		t.Errorf("it proves %+v and holds\n%s", fw.Proof, lab.Console("nft list table inet parry"))
	}
	if lab.Ping(attacker, server) == nil {
		t.Error("a blocked source's ping is answered")
	}

	lab.Console("nft add element inet parry exempt_ip4_32 '{ " + attacker + " }'")
	if err := lab.Ping(attacker, server); err != nil {
		t.Errorf("what stands ahead of the drops passes, so that this shows something: %v", err)
	}
	if r, err := c.VerifyFirewallWithResponse(t.Context(), "fw-l"); err != nil || r.JSON202 == nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	eventually(t, "an exemption by hand is found and taken out", func() bool {
		return lab.Ping(attacker, server) != nil && firewall(t, c, "fw-l").State == "proved"
	})

	if r, err := c.DeleteExemptionWithResponse(t.Context(), x.JSON201.Exemption.ID); err != nil || r.StatusCode() != 204 {
		t.Fatalf("%v: %s", err, r.Body)
	}
	if b := block(t, c, api.BlockRequest{Source: "203.0.113.65", TTL: "1h"}, "60s"); b.State != "enforced" {
		t.Fatalf("got %+v", b)
	}
	if lab.Ping("203.0.113.65", server) == nil {
		t.Error("it is blocked, enforced, and passes by an exemption of before")
	}
	if r, err := c.RetireFirewallWithResponse(t.Context(), "fw-l"); err != nil || r.JSON202 == nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	eventually(t, "the firewall is forgotten", func() bool {
		r, err := c.GetFirewallWithResponse(t.Context(), "fw-l")
		return err == nil && r.StatusCode() == 404
	})
	if left := lab.Console("nft list ruleset"); strings.Contains(left, "10.0.0.0/8") || strings.Contains(left, attacker) {
		t.Errorf("left behind:\n%s", left)
	}
}
