package app

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/parry"
)

func tempFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestGateways_readTheKernelsTables(t *testing.T) {
	t.Parallel()
	v4 := tempFile(t, "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\nens3\t00000000\tFE7100CB\t0003\t0\t0\t0\t00000000\nens3\t007100CB\t00000000\t0001\n")
	v6 := tempFile(t, "00000000000000000000000000000000 00 00000000000000000000000000000000 00 20010db8000000000000000000000001 00000400 00000001 00000000 00000003 ens3\nshort line\n")
	got := gateways(v4, v6)
	for _, want := range []string{"203.0.113.254", "2001:db8::1"} {
		if !slices.Contains(got, netip.MustParseAddr(want)) {
			t.Errorf("got %v, want %s", got, want)
		}
	}
	if got := gateways("/nonexistent", "/nonexistent"); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestFind_namesWhyEachIsNeverBlocked(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Mail.Server = "198.51.100.25:25"
	cfg.Channels = []config.Channel{
		{Name: "hook", Type: "webhook", URL: "https://198.51.100.61:8443/x"}, {Name: "siem", Type: "syslog", Network: "udp", Server: "198.51.100.62"},
		{Name: "tls", Type: "syslog", Network: "tls", Server: "[2001:db8::62]:6514"}, {Name: "local", Type: "syslog", Network: "unix", Server: "/dev/log"},
	}
	cfg.Database = config.Database{Driver: "postgres", DSN: "postgres://u:p@198.51.100.54:5432/d"}
	hosts := map[string]ansible.Host{"fw-a": {Name: "fw-a", Addr: netip.MustParseAddr("198.51.100.1")}, "broken": {Name: "broken"}}
	var f finder
	got := map[string]string{}
	for _, x := range f.find(t.Context(), cfg, hosts, claims("fw-b", parry.FirewallFacts{
		Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("2001:db8::b")},
		Gateways:  []netip.Addr{netip.MustParseAddr("198.51.100.254")}, Resolvers: []netip.Addr{netip.MustParseAddr("198.51.100.53")},
	}), map[netip.Addr]string{netip.MustParseAddr("::ffff:198.51.100.77"): "siem"}) {
		got[x.Prefix.String()] = x.Reason
		if caller := strings.HasPrefix(x.Reason, "caller"); x.Fleeting != (caller || x.Prefix.Addr().IsLinkLocalUnicast()) {
			t.Errorf("%s (%s): told to firewalls: %v", x.Prefix, x.Reason, !x.Fleeting)
		}
		if !strings.HasPrefix(string(x.ID), "found:") || x.Source != parry.ExemptFound {
			t.Errorf("%+v", x)
		}
	}
	for prefix, why := range map[string]string{
		"198.51.100.61/32": "server of channel hook", "198.51.100.62/32": "server of channel siem", "2001:db8::62/128": "server of channel tls",
		"198.51.100.25/32": "mail server", "198.51.100.54/32": "database server", "198.51.100.1/32": "inventory host fw-a",
		"2001:db8::b/128": "address of firewall fw-b", "198.51.100.254/32": "gateway of firewall fw-b", "198.51.100.53/32": "resolver of firewall fw-b",
		"198.51.100.77/32": "caller with the token siem",
	} {
		if got[prefix] != why {
			t.Errorf("%s: got %q, want %q", prefix, got[prefix], why)
		}
	}
	for prefix := range got {
		if p := netip.MustParsePrefix(prefix); p.Addr().IsLoopback() || p.Addr().IsUnspecified() {
			t.Errorf("%s was found", prefix)
		}
	}
}

func TestCallers_areKeptAndGoWithTheirToken(t *testing.T) {
	t.Parallel()
	dir, now := t.TempDir(), time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	open := func() *callers {
		c, err := openCallers(dir, clock)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	list := func(c *callers, revoked ...parry.TokenID) []string {
		m, err := c.list(func(id parry.TokenID) bool { return !slices.Contains(revoked, id) })
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for a, token := range m {
			out = append(out, a.String()+" "+token)
		}
		slices.Sort(out)
		return out
	}
	c := open()
	use := func(addr, id string) {
		c.note(&parry.Principal{Token: parry.Token{ID: parry.TokenID(id), Name: id}, Remote: netip.MustParseAddr(addr)})
	}
	use("198.51.100.1", "t-a")
	use("198.51.100.2", "t-b")
	use("127.0.0.1", "t-b")
	c.note(&parry.Principal{}) // the unix socket
	select {
	case <-c.fresh:
	default:
		t.Error("nobody was told of a new caller")
	}
	if got := list(c); !slices.Equal(got, []string{"198.51.100.1 t-a", "198.51.100.2 t-b"}) {
		t.Fatalf("got %v", got)
	}
	c = open() // a restart
	if got := list(c, "t-b"); !slices.Equal(got, []string{"198.51.100.1 t-a"}) {
		t.Errorf("after t-b was revoked: got %v", got)
	}
	now = now.Add(callerAge + time.Hour)
	if got := list(c); len(got) != 0 {
		t.Errorf("not seen for a week: got %v", got)
	}
	for i := range 2 * maxCallers {
		use(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}).String(), "t-a")
	}
	if got := list(c); len(got) != maxCallers {
		t.Errorf("%d callers are kept, want %d", len(got), maxCallers)
	}
}
