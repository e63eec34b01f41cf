package app_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/testenv"
)

// The firewall forwards 198.18.0.2:443/tcp, its own address, to 198.18.10.80:8443. All that parry knows of it is what it tells.
func TestNAT_aPublicAddressMeansWhatLiesBehindIt(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	s := newSite(t, "listen: \"\"\n", lab)
	r := s.start()
	c := s.client()
	if got := block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "60s"); got.State != "enforced" {
		t.Fatalf("got %+v", got)
	}
	fw := firewall(t, c, "fw-a")
	if !slices.Contains(fw.Facts.Addresses, "198.18.0.2") || len(fw.Facts.Forwards) != 1 || fw.Facts.Forwards[0].To != "198.18.10.80" {
		t.Fatalf("it says of itself %+v", fw.Facts)
	}

	web := block(t, c, api.BlockRequest{Source: "203.0.113.7", Destination: "198.18.0.2", DestinationPort: 443}, "60s")
	want := []api.Target{{Destination: "198.18.10.80", Protocol: "tcp", DestinationPort: 8443}}
	if web.State != "enforced" || web.Destination != "198.18.0.2" || !slices.Equal(web.Status[0].Becomes, want) {
		t.Errorf("got %+v", web)
	}
	if rules := lab.Rules(); !strings.Contains(rules, "to 198.18.10.80 port = 8443") || strings.Contains(rules, "to 198.18.0.2 port = 443") {
		t.Errorf("pf's rules:\n%s", rules)
	}
	ssh := block(t, c, api.BlockRequest{Source: "203.0.113.8", Destination: "198.18.0.2", DestinationPort: 22, Protocol: "tcp"}, "60s")
	if ssh.State != "rejected" || ssh.Status[0].Reason != "destination_is_firewall" || !strings.Contains(ssh.Status[0].Hint, "No port forward") {
		t.Errorf("got %+v", ssh)
	}

	// Its addresses, gateways and resolvers are exempt by its own word.
	for source, why := range map[string]string{
		"198.18.0.10": "address of firewall fw-a", "198.18.0.1": "gateway of firewall fw-a", "198.18.0.53": "resolver of firewall fw-a",
	} {
		eventually(t, source+" is refused", func() bool {
			r, err := c.CreateBlockWithResponse(t.Context(), &api.CreateBlockParams{IdempotencyKey: new(key())}, api.BlockRequest{Source: source})
			return err == nil && r.StatusCode() == 422 && strings.Contains(string(r.Body), why)
		})
	}

	// An admin moves the forward. The next verify sees that, and the rule follows.
	path := filepath.Join(lab.Root, "cf/conf/config.xml")
	moved := strings.Replace(lab.Config(), "<target>198.18.10.80</target>", "<target>198.18.10.81</target>", 1)
	if err := os.WriteFile(path, []byte(moved), 0o644); err != nil {
		t.Fatal(err)
	}
	lab.SSH("rm -f /tmp/config.cache")
	if r, err := c.VerifyFirewallWithResponse(t.Context(), "fw-a"); err != nil || r.JSON202 == nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	eventually(t, "the rule is for the new inside address", func() bool {
		return strings.Contains(lab.Rules(), "to 198.18.10.81 port = 8443") && stateOf(t, c, web.ID) == "enforced"
	})

	// What it told outlives a restart, and the configuration has the last word.
	r.end()
	s.write("parry.yaml", strings.Replace(s.read("parry.yaml"), "groups: [edge]", "groups: [edge], nat: {forwards: [{destination: 198.18.0.2, to: 198.18.10.90}]}", 1))
	lab.Fault("hang")
	s.start()
	c = s.client()
	if r, err := c.CreateBlockWithResponse(t.Context(), &api.CreateBlockParams{IdempotencyKey: new(key())}, api.BlockRequest{Source: "198.18.0.10"}); err != nil || r.StatusCode() != 422 {
		t.Errorf("with a firewall that does not answer: %v: %s", err, r.Body)
	}
	lab.Fault("off")
	eventually(t, "both blocks are for the configured inside address", func() bool {
		rules := lab.Rules()
		return strings.Contains(rules, "to 198.18.10.90 port = 443") && strings.Contains(rules, "to 198.18.10.90 port = 22") &&
			stateOf(t, c, web.ID) == "enforced" && stateOf(t, c, ssh.ID) == "enforced"
	})
}
