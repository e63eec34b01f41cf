package httpapi

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

func TestSimulate_aRulesBlocksAreEvidence(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) {
		o.Settings = func() Settings { return Settings{Simulates: func(_, rule string) bool { return rule == "5712" }} }
	})
	const body = `{"source":"203.0.113.7","rule_id":"5712","origin":"wazuh"}`
	got := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", body), 201)
	if !got.Simulated || got.State != "simulated" || got.Status[0].Reason != "only simulated rules have asked for it" || got.Offence != 0 {
		t.Errorf("got %+v", got)
	}
	x := into[api.Explanation](t, b.do(parry.RoleReader, "GET", "/api/v1/explain?address=203.0.113.7", ""), 200)
	if len(x.Blocks) != 1 || !x.Blocks[0].Simulated || len(x.Requests) != 1 || x.Requests[0].RuleID != "5712" {
		t.Errorf("explained by %+v", x)
	}
	real := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", strings.Replace(body, "5712", "100", 1)), 200)
	if real.ID != got.ID || real.Simulated || real.State != "pending" || real.Count != 2 {
		t.Errorf("a real request makes it %+v", real)
	}
	if again := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", body), 200); again.Simulated || again.Count != 3 {
		t.Errorf("and it stays so: %+v", again)
	}
}

func TestSimulate_aFirewallShowsWhatWouldChange(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	fws := slices.Clone(testFleet.Firewalls)
	for i := range fws {
		fws[i].Simulate = fws[i].Name == "edge-a"
	}
	if err := b.store.SyncFirewalls(t.Context(), fws); err != nil {
		t.Fatal(err)
	}
	if got := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201); got.Status[0].State != "simulated" || got.Status[1].State != "pending" {
		t.Errorf("got %+v", got)
	}
	l, err := b.store.AcquireLane(t.Context(), "edge-a")
	if err != nil {
		t.Fatal(err)
	}
	now := b.clock.now()
	run := parry.Run{ID: parry.NewRunID(now), Firewall: "edge-a", Kind: parry.RunCheck, State: parry.RunSucceeded, StartedAt: now, EndedAt: now, Epoch: l.Epoch}
	sim := parry.Simulation{RunID: run.ID, At: now, Revision: 9, Entries: 1, Added: 1, First: []string{"+ 203.0.113.7 - - - wan"}, Lines: 1}
	if err := b.store.FinishRun(t.Context(), parry.FinishRun{Run: run, Simulation: &sim}); err != nil {
		t.Fatal(err)
	}
	fw := into[api.Firewall](t, b.do(parry.RoleReader, "GET", "/api/v1/firewalls/edge-a", ""), 200)
	if fw.State != "simulated" || !fw.Simulate || fw.Simulation.Added != 1 || fw.Simulation.First[0] != sim.First[0] || fw.Simulation.At.Sub(now) > time.Second {
		t.Errorf("got %+v", fw)
	}
	if r := b.do(parry.RoleReader, "GET", "/readyz", ""); !strings.Contains(r.body, "edge-a is simulated") {
		t.Errorf("readyz: %s", r.body)
	}
	if r := b.do(parry.RoleReader, "GET", "/api/v1/runs?limit=1", ""); !strings.Contains(r.body, `"check"`) {
		t.Errorf("runs: %s", r.body)
	}
}
