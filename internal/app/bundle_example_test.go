package app_test

import (
	"path/filepath"
	"testing"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/testenv"
)

// The bundle that docs/PLAYBOOKS.md walks through does all that parry asks of one, and nothing is asked of it that it does not claim.
func TestBundleFromTheGuide_isAsGoodAsOurs(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLinux(t, "fw-x")
	lab.Bundle = "blackhole"
	s := newSite(t, "bundles: bundles\nlisten: \"\"\n", lab.Lab)
	if err := testenv.CopyPlaybooks("examples/blackhole", filepath.Join(s.dir, "bundles", "blackhole")); err != nil {
		t.Fatal(err)
	}
	s.start()
	c := s.client()
	const attacker, other, server = "203.0.113.7", "203.0.113.8", "198.18.0.80"

	b := block(t, c, api.BlockRequest{Source: attacker, TTL: "1h"}, "60s")
	if b.State != "enforced" || lab.Ping(attacker, server) == nil {
		t.Errorf("%s is %s, and its ping is answered: %t", attacker, b.State, lab.Ping(attacker, server) == nil)
	}
	if err := lab.Ping(other, server); err != nil {
		t.Error(err)
	}
	r, err := c.CreateBlockWithResponse(t.Context(), &api.CreateBlockParams{IdempotencyKey: new(key())}, api.BlockRequest{Source: other, DestinationPort: 443, TTL: "1h"})
	if err != nil || r.StatusCode() != 422 {
		t.Errorf("a port, which the bundle cannot express: %v: %s", err, r.Body)
	}

	lab.Console("ip rule flush protocol 112")
	if r, err := c.VerifyFirewallWithResponse(t.Context(), "fw-x"); err != nil || r.JSON202 == nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	eventually(t, "what somebody took out by hand is back", func() bool {
		return firewall(t, c, "fw-x").State == "proved" && lab.Ping(attacker, server) != nil
	})
	if r, err := c.DeleteBlockWithResponse(t.Context(), b.ID, nil); err != nil || r.StatusCode() >= 300 {
		t.Fatalf("%v: %s", err, r.Body)
	}
	eventually(t, "it is lifted", func() bool { return lab.Ping(attacker, server) == nil })
}
