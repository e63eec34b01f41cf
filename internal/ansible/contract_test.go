package ansible

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/parry/parry/internal/parry"
)

const twoEntries = "203.0.113.7 - - - wan 1790000000\n203.0.113.8 - tcp 22 wan -\n"

func (g *rig) verify(tb testing.TB, vars map[string]any) *Outcome {
	tb.Helper()
	s := g.spec(tb, "")
	s.Kind, s.Desired = parry.RunVerify, nil
	maps.Copy(s.Vars, vars)
	return g.run(tb, s)
}

func TestRun_verifyHandsOverWhatIsLoaded(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.run(t, g.spec(t, twoEntries)).want(t, parry.RunSucceeded, "")
	o := g.verify(t, nil)
	o.want(t, parry.RunSucceeded, "")
	if got, want := string(o.Loaded), strings.ReplaceAll(twoEntries, "\n", " 0 0\n"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := os.Stat(filepath.Join(o.Dir, "loaded.txt")); !os.IsNotExist(err) {
		t.Errorf("the run's directory keeps what the outcome has: %v", err)
	}
}

func TestRun_exemptionsTravelInAFileAndAreProved(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	s := g.spec(t, twoEntries)
	s.Exempt = []byte("198.51.100.0/24\n2001:db8::1\n")
	o := g.run(t, s)
	o.want(t, parry.RunSucceeded, "")
	if o.Proof.ExemptSHA256 != sum(string(s.Exempt)) || o.Proof.ExemptCount != 2 {
		t.Errorf("got %+v", o.Proof)
	}
	if o = g.run(t, g.spec(t, twoEntries)); o.Proof.ExemptSHA256 != "" {
		t.Errorf("a run that was given none proves %+v", o.Proof)
	}
}

func TestRun_checkChangesNothing(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.run(t, g.spec(t, twoEntries)).want(t, parry.RunSucceeded, "")
	s := g.spec(t, "203.0.113.9 - - - wan -\n")
	s.Kind = parry.RunCheck
	g.run(t, s).want(t, parry.RunSucceeded, "")
	if b, err := os.ReadFile(g.file); err != nil || string(b) != twoEntries {
		t.Errorf("got %q, %v after a check", b, err)
	}
}

func TestRun_factsAreReadStrictly(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	o := g.verify(t, map[string]any{"test_facts": `{"addresses": ["198.51.100.1", "::ffff:10.0.0.1"], "gateways": ["198.51.100.254"], "resolvers": ["2001:db8::53"],
		"forwards": [{"destination": "198.51.100.1", "protocol": "tcp", "port": 8000, "port_end": 8010, "to": "10.0.0.5", "to_port": 80},
			{"destination": "198.51.100.2", "protocol": "-", "to": "10.0.0.6"}]}`})
	o.want(t, parry.RunSucceeded, "")
	a := netip.MustParseAddr
	want := &parry.FirewallFacts{
		Addresses: []netip.Addr{a("198.51.100.1"), a("10.0.0.1")}, Gateways: []netip.Addr{a("198.51.100.254")}, Resolvers: []netip.Addr{a("2001:db8::53")},
		Forwards: []parry.PortForward{
			{Destination: a("198.51.100.1"), Protocol: parry.ProtoTCP, Port: 8000, PortEnd: 8010, To: a("10.0.0.5"), ToPort: 80},
			{Destination: a("198.51.100.2"), To: a("10.0.0.6")},
		},
	}
	if diff := cmp.Diff(want, o.Facts, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	if o = g.verify(t, nil); o.Facts != nil {
		t.Errorf("got facts %+v of a firewall that gave none", o.Facts)
	}
	for name, facts := range map[string]string{
		"a prefix":        `{"addresses": ["0.0.0.0/0"]}`,
		"a name":          `{"gateways": ["gw.example.net"]}`,
		"a zone":          `{"resolvers": ["fe80::1%em0"]}`,
		"unspecified":     `{"addresses": ["0.0.0.0"]}`,
		"a protocol":      `{"forwards": [{"destination": "198.51.100.1", "protocol": "{{ 1 }}", "to": "10.0.0.5"}]}`,
		"ports of none":   `{"forwards": [{"destination": "198.51.100.1", "protocol": "icmp", "port": 1, "to": "10.0.0.5"}]}`,
		"ports beyond":    `{"forwards": [{"destination": "198.51.100.1", "protocol": "tcp", "port": 1, "port_end": 9, "to": "10.0.0.5", "to_port": 65530}]}`,
		"another family":  `{"forwards": [{"destination": "198.51.100.1", "protocol": "tcp", "port": 1, "to": "2001:db8::1"}]}`,
		"far too many":    `{"addresses": ["198.51.100.1"` + strings.Repeat(`, "198.51.100.1"`, maxFacts) + `]}`,
		"another's shape": `{"addresses": {"198.51.100.1": true}}`,
	} {
		if f, err := parseFacts([]byte(`{"facts": ` + facts + `}`)); err == nil {
			t.Errorf("%s: took %+v", name, f)
		}
	}
	g.verify(t, map[string]any{"test_facts": `{"addresses": ["0.0.0.0/0"]}`}).want(t, parry.RunFailed, parry.FailNoProof)
}

func TestTakeLoaded_whatIsNoPlainFileIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret, link := filepath.Join(dir, "secret"), filepath.Join(dir, "loaded.txt")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, link); err != nil {
		t.Fatal(err)
	}
	if b, err := takeLoaded(link); err == nil {
		t.Errorf("followed a link to %q", b)
	}
	if b, err := takeLoaded(filepath.Join(dir, "none")); b != nil || err != nil {
		t.Errorf("got %q, %v of no file", b, err)
	}
}
