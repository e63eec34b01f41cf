package app

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
	"github.com/parry/parry/internal/store"
)

// keeper is the part of an App that keeps the never-block list, on a real store, with firewalls whose words the test speaks.
type keeper struct {
	*App
	t *testing.T
}

func newKeeper(t *testing.T, firewalls ...string) *keeper {
	t.Helper()
	dir := t.TempDir()
	a := &App{now: time.Now, log: slog.New(slog.DiscardHandler)}
	a.o.Now = time.Now
	k := &keeper{a, t}
	var err error
	a.store, err = store.Open(t.Context(), store.Options{Driver: "sqlite", Path: filepath.Join(dir, "parry.db"), Logger: a.log})
	k.must(err)
	t.Cleanup(func() { k.must(a.store.Close()) })
	a.policy, err = policy.New(policy.Limits{})
	k.must(err)
	a.callers, err = openCallers(dir, time.Now)
	k.must(err)
	a.state.Store(&state{cfg: config.Default(), fleet: &parry.Fleet{}})
	k.list(firewalls...)
	return k
}

func (k *keeper) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

func (k *keeper) list(names ...string) {
	k.t.Helper()
	var fws []parry.Firewall
	for _, n := range names {
		fws = append(fws, parry.Firewall{Name: n, Digest: n})
	}
	k.must(k.store.SyncFirewalls(k.t.Context(), fws))
}

// finish ends a run of the firewall.
func (k *keeper) finish(name string, f parry.FinishRun) {
	k.t.Helper()
	ctx := context.Background()
	lane, err := k.store.AcquireLane(ctx, name)
	k.must(err)
	f.Run = parry.Run{ID: parry.NewRunID(time.Now()), Firewall: name, Kind: parry.RunVerify, State: parry.RunSucceeded, Epoch: lane.Epoch, StartedAt: time.Now()}
	k.must(k.store.BeginRun(ctx, f.Run))
	k.must(k.store.FinishRun(ctx, f))
	k.must(lane.Release(ctx))
}

func (k *keeper) says(name string, f parry.FirewallFacts) {
	k.t.Helper()
	k.finish(name, parry.FinishRun{Facts: &f})
	k.must(k.refreshExemptions(k.t.Context(), k.state.Load()))
}

func (k *keeper) block(source string) parry.BlockID {
	k.t.Helper()
	p, err := netip.ParsePrefix(source)
	k.must(err)
	now := time.Now()
	done, err := k.store.Put(k.t.Context(), parry.Admission{
		BlockID: parry.NewBlockID(now), Request: parry.Request{ID: parry.NewRequestID(now), ReceivedAt: now, TTL: time.Hour}, MaxExpires: now.Add(time.Hour),
		Key: parry.Key{Match: parry.Match{Source: p}, Selector: parry.SelectDefault},
	})
	k.must(err)
	return done.Block.ID
}

func (k *keeper) live(id parry.BlockID) bool {
	k.t.Helper()
	b, err := k.store.Block(k.t.Context(), id)
	k.must(err)
	return b.Live()
}

// why is the reason of the exemption of an address, empty for none.
func (k *keeper) why(addr string) string {
	a := netip.MustParseAddr(addr)
	x, _ := k.policy.Overlapping(netip.PrefixFrom(a, a.BitLen()), time.Now())
	return x.Reason
}

func addrs(all ...string) (out []netip.Addr) {
	for _, s := range all {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestClaims_whatAFirewallSaysOfItselfIsNeverBlocked(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, "fw-a", "fw-b")
	wide, other := k.block("198.51.100.0/24"), k.block("203.0.113.7/32")
	k.says("fw-a", parry.FirewallFacts{Addresses: addrs("198.51.100.1", "2001:db8::1"), Gateways: addrs("198.51.100.254"), Resolvers: addrs("192.0.2.53")})
	for addr, want := range map[string]string{
		"198.51.100.1": "address of firewall fw-a", "2001:db8::1": "address of firewall fw-a", "198.51.100.254": "gateway of firewall fw-a",
		"192.0.2.53": "resolver of firewall fw-a", "198.51.100.2": "",
	} {
		if got := k.why(addr); got != want {
			t.Errorf("%s: got %q, want %q", addr, got, want)
		}
	}
	if k.live(wide) || !k.live(other) {
		t.Error("a block that a new address lies in ends, and no other")
	}
	k.list("fw-b")
	k.must(k.refreshExemptions(t.Context(), k.state.Load()))
	if k.why("198.51.100.254") == "" {
		t.Error("a firewall that was taken out of the configuration is there all the same, until it is retired")
	}
	k.says("fw-a", parry.FirewallFacts{Addresses: addrs("198.51.100.1")})
	if k.why("198.51.100.254") != "" || k.why("198.51.100.1") == "" {
		t.Error("what a firewall says no more is no exemption any more, the rest stays")
	}
	k.finish("fw-a", parry.FinishRun{Retired: true})
	k.must(k.refreshExemptions(t.Context(), k.state.Load()))
	if k.why("198.51.100.1") != "" {
		t.Error("the addresses of a retired firewall stay exempt")
	}
}

func TestBecomes_byTheConfigurationAndTheFirewallsWord(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, "fw-a", "fw-b", "fw-d")
	a := netip.MustParseAddr
	fws := []parry.Firewall{{Name: "fw-a"}, {Name: "fw-b", NAT: parry.NAT{Forwards: []parry.PortForward{{Destination: a("198.51.100.1"), To: a("10.0.0.7")}}}},
		{Name: "fw-c", NAT: parry.NAT{Forwards: []parry.PortForward{{Destination: a("198.51.100.1"), To: a("10.0.0.8")}}}}, {Name: "fw-d"}}
	k.state.Store(&state{cfg: config.Default(), fleet: &parry.Fleet{Firewalls: fws}, manifests: map[string]bundle.Manifest{"fw-a": {AfterNAT: true}, "fw-b": {AfterNAT: true}}})
	told := parry.FirewallFacts{Forwards: []parry.PortForward{{Destination: a("198.51.100.1"), Protocol: parry.ProtoTCP, Port: 443, PortEnd: 443, To: a("10.0.0.5"), ToPort: 8443}}}
	k.says("fw-a", told)
	k.says("fw-b", told)
	k.says("fw-d", told) // its bundle filters before port forwarding
	m := parry.Match{Source: netip.MustParsePrefix("203.0.113.7/32"), Destination: netip.MustParsePrefix("198.51.100.1/32"), Protocol: parry.ProtoTCP, Port: 443}
	for i, want := range []string{"10.0.0.5/32 8443", "10.0.0.7/32 443", "10.0.0.8/32 443", ""} {
		got := ""
		for _, to := range k.becomes(&fws[i], m) {
			got += fmt.Sprintf("%s %d", to.Destination, to.Port)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", fws[i].Name, got, want)
		}
	}
	if m.Port = 22; k.becomes(&fws[0], m) != nil {
		t.Error("what nothing forwards is what it is")
	}
}

func TestClaims_aFirewallThatWasTakenOverOpensLittle(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, "fw-a")
	var ids []parry.BlockID
	var sources []string
	for i := range maxOverruled + 1 {
		sources = append(sources, fmt.Sprintf("203.0.113.%d", i+1))
		ids = append(ids, k.block(sources[i]+"/32"))
	}
	k.says("fw-a", parry.FirewallFacts{Addresses: addrs("198.51.100.1"), Gateways: addrs(sources...)})
	for i, id := range ids {
		if !k.live(id) || k.why(sources[i]) != "" {
			t.Errorf("%s was let go by a firewall's word", sources[i])
		}
	}
	if k.why("198.51.100.1") == "" {
		t.Error("an address that no block drops is exempt")
	}
	if err := k.claims.check(t.Context()); err == nil || !strings.Contains(err.Error(), "fw-a") || !strings.Contains(err.Error(), sources[0]) ||
		!strings.Contains(err.Error(), "parry exempt add") {
		t.Errorf("readyz is told %v", err)
	}
	_, _, err := k.store.EndBlock(t.Context(), ids[0], parry.Lift{By: "operator"})
	k.must(err)
	k.must(k.refreshExemptions(t.Context(), k.state.Load()))
	if k.why(sources[0]) != "" {
		t.Error("what was refused became an exemption once its block had ended")
	}
	x := parry.Exemption{ID: "x-1", Prefix: netip.MustParsePrefix(sources[1] + "/32"), Source: parry.ExemptAPI, Reason: "ours"}
	k.policy.Add(x)
	k.must(k.refreshExemptions(t.Context(), k.state.Load()))
	if err := k.claims.check(t.Context()); err == nil || strings.Contains(err.Error(), sources[1]) {
		t.Errorf("an operator's own exemption settles it: %v", err)
	}

	var many parry.FirewallFacts
	for i := range 2 * maxClaims {
		many.Addresses = append(many.Addresses, netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}))
	}
	k.says("fw-a", many)
	n := 0
	for _, x := range k.policy.All() {
		if strings.HasSuffix(x.Reason, "fw-a") {
			n++
		}
	}
	if n != maxClaims {
		t.Errorf("%d addresses are exempt by one firewall's word, want at most %d", n, maxClaims)
	}
	k.says("fw-a", parry.FirewallFacts{})
	if err := k.claims.check(t.Context()); err != nil {
		t.Errorf("nothing is claimed any more, and readyz is told %v", err)
	}
}

func TestUpkeep_hearsOnlyWhatIsNew(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, "fw-a")
	heard := k.hear(t.Context(), nil)
	f := parry.FirewallFacts{Addresses: addrs("198.51.100.1")}
	k.finish("fw-a", parry.FinishRun{Facts: &f})
	if heard = k.hear(t.Context(), heard); k.why("198.51.100.1") == "" {
		t.Error("what a run brought is not exempt")
	}
	k.policy.Replace(parry.ExemptFound, nil)
	if k.hear(t.Context(), heard); !slices.Equal(k.policy.All(), nil) {
		t.Error("what was heard before is found again at every run")
	}
}
