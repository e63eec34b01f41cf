package app

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
	"github.com/parry/parry/internal/testenv"
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

func TestReload_thatFailsHalfwayLeavesTheOldConfiguration(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "parry") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "parry.yaml")
	load := func() (*config.Config, error) { return config.Load(path, nil) }
	write := func(more string) {
		text := "socket: parry.sock\nstate_dir: state\nlisten: \"\"\nbundles: " + testenv.Playbooks(t) +
			"\nmail: {server: \"mail.invalid:25\", security: plain, from: parry@example.net, to: [noc@example.net]}\n" + more
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("blocks: {max_ttl: 1h, default_ttl: 1h}\nlists: [{name: bad, type: ip, ttl: 1h}]\nexemptions: [{prefix: 203.0.113.0/28, reason: ours}]\n")
	cfg, err := load()
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(t.Context(), Options{Config: cfg, Load: load, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	exempt := func() (out []string) {
		for _, x := range a.policy.All() {
			out = append(out, string(x.ID)+" "+x.Reason)
		}
		return out
	}
	before := exempt()
	write("blocks: {max_ttl: 9h, default_ttl: 1h}\nlists: [{name: bad, type: ip, ttl: 2h}]\nexemptions: [{prefix: 198.51.100.0/28, reason: theirs}]\n")
	ctx, cancel := context.WithCancel(t.Context())
	a.found.lookup = func(context.Context, string, string) ([]netip.Addr, error) { // in the midst of it
		cancel()
		return []netip.Addr{netip.MustParseAddr("198.51.100.200")}, nil
	}
	if err := a.Reload(ctx); err == nil || !strings.Contains(err.Error(), "the old configuration stays: ") {
		t.Fatalf("got %v", err)
	}
	if a.config() != cfg {
		t.Error("the new configuration was taken up")
	}
	if after := exempt(); !slices.Equal(after, before) {
		t.Errorf("never blocked are %q, want %q", after, before)
	}
	if l, err := a.lists.Get("bad"); err != nil || l.TTL != time.Hour {
		t.Errorf("the list's TTL is %v, %v", l.TTL, err)
	}
	admin := &parry.Principal{Token: parry.Token{Role: parry.RoleAdmin}}
	ask := policy.Ask{Source: netip.MustParsePrefix("203.0.113.77/32"), Selector: parry.SelectDefault, TTL: 2 * time.Hour}
	if _, err := a.policy.Admit(admin, a.fleet(), ask, time.Now()); err == nil || !strings.Contains(err.Error(), "policy refuses") {
		t.Errorf("the old limit does not stand: %v", err)
	}
}
