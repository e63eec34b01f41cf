package app

import (
	"context"
	"net/netip"
	"testing"

	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/parry"
)

func TestSettle_looksUpBeforeItTellsTheDatabase(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, "fw-a")
	cfg := config.Default()
	cfg.Mail.Server = "mail.example.net:25"
	st := &state{cfg: cfg, fleet: &parry.Fleet{Firewalls: []parry.Firewall{{Name: "fw-a", Digest: "other"}}}}
	digest := func() string {
		f, err := k.store.FirewallState(t.Context(), "fw-a")
		k.must(err)
		return f.Digest
	}
	asked := false
	k.found.lookup = func(context.Context, string, string) ([]netip.Addr, error) {
		if asked = true; digest() != "fw-a" {
			t.Error("lanes are woken by a firewall that is not there yet for as long as a resolver takes")
		}
		return nil, nil
	}
	k.must(k.settle(t.Context(), st))
	if !asked || digest() != "other" || k.state.Load() != st {
		t.Errorf("asked %v, in the database %q, taken up %v", asked, digest(), k.state.Load() == st)
	}
}
