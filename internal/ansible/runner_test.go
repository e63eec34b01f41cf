package ansible

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/testenv"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// rig is a runner and a real sshd that it reaches.
type rig struct {
	*Runner
	sshd *testenv.SSHD
	host Host
	file string // where the test bundle keeps its entries
}

func newRig(tb testing.TB, change ...func(*Options)) *rig {
	tb.Helper()
	sshd := testenv.StartSSHD(tb)
	o := Options{
		StateDir: tb.TempDir(), KnownHosts: sshd.KnownHosts, Deadline: 30 * time.Second,
		PlaybookBin: os.Getenv("PARRY_TEST_PLAYBOOK_BIN"), // another Ansible than the installed one
	}
	for _, c := range change {
		c(&o)
	}
	r, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.Close(); err != nil {
			tb.Error(err)
		}
	})
	return &rig{
		Runner: r, sshd: sshd, file: filepath.Join(tb.TempDir(), "entries"),
		host: Host{Name: "fw1", Addr: sshd.Addr, Port: sshd.Port, User: sshd.User, KeyFile: sshd.KeyFile},
	}
}

// spec is a run of the test bundle that keeps the desired entries in g.file on the host.
func (g *rig) spec(tb testing.TB, desired string) Spec {
	tb.Helper()
	return Spec{
		RunID: parry.NewRunID(time.Now()), Host: g.host, Bundle: testBundle(tb, nil), Kind: parry.RunApply,
		Vars: map[string]any{
			"parry_controller": "c-1", "parry_epoch": 3, "parry_revision": 7, "parry_max_rules": 200, "parry_adopt": false,
			"test_file": g.file,
		},
		Desired: []byte(desired),
	}
}

// play is a run of a bundle whose apply.yml holds the tasks.
func (g *rig) play(tb testing.TB, tasks string) Spec {
	tb.Helper()
	s := g.spec(tb, "")
	s.Bundle = testBundle(tb, map[string]string{"apply.yml": "- hosts: all\n  gather_facts: false\n  tasks:\n" + tasks})
	return s
}

func (g *rig) run(tb testing.TB, s Spec) *Outcome {
	tb.Helper()
	return g.runCtx(context.Background(), tb, s)
}

func (g *rig) runCtx(ctx context.Context, tb testing.TB, s Spec) *Outcome {
	tb.Helper()
	o, err := g.Run(ctx, s)
	if err != nil {
		tb.Fatal(err)
	}
	if left := marked("PARRY_RUN=" + string(s.RunID)); len(left) != 0 {
		tb.Errorf("processes %v outlived the run", left)
	}
	return o
}

// testBundle is testdata/firewall with files put in or over.
func testBundle(tb testing.TB, files map[string]string) bundle.Bundle {
	tb.Helper()
	dir, err := filepath.Abs("testdata/firewall")
	if err != nil {
		tb.Fatal(err)
	}
	m, err := os.ReadFile(filepath.Join(dir, "bundle.yml"))
	if err != nil {
		tb.Fatal(err)
	}
	manifest, err := bundle.ParseManifest(m)
	if err != nil {
		tb.Fatal(err)
	}
	to := tb.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		tb.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(to, name), []byte(text), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	return bundle.Bundle{BundleRef: parry.BundleRef{Name: "firewall", Version: manifest.Version}, Dir: to, Manifest: *manifest}
}

func with(vars map[string]any, k string, v any) map[string]any {
	vars = maps.Clone(vars)
	vars[k] = v
	return vars
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func TestRun_successComesWithTheFirewallsProof(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	s := g.spec(t, "203.0.113.7 - - - wan 1790000000\n203.0.113.8 - tcp 22 wan -\n")
	o := g.run(t, s)
	if o.State != parry.RunSucceeded || o.Failure != "" || !o.Changed || o.RC != 0 {
		t.Fatalf("got %+v\n%s", o, o.LogTail)
	}
	want := parry.Proof{SHA256: sum("203.0.113.7 - - - wan\n203.0.113.8 - tcp 22 wan\n"), Count: 2, Epoch: 3, Controller: "c-1", MachineID: "test", RunID: string(s.RunID)}
	if *o.Proof != want {
		t.Errorf("got proof %+v, want %+v", *o.Proof, want)
	}
	if o.CPU == 0 || o.MaxRSS < 1<<20 || o.Wall == 0 {
		t.Errorf("costs are missing: %+v", o)
	}

	if out, err := exec.Command("sh", "-c", o.Command).CombinedOutput(); err != nil {
		t.Errorf("by hand: %v: %s", err, out)
	}

	s = g.spec(t, string(s.Desired))
	if o = g.run(t, s); o.State != parry.RunSucceeded || o.Changed {
		t.Errorf("second run: got %s, changed %v; want no change", o.State, o.Changed)
	}
	s.RunID, s.Kind, s.Desired = parry.NewRunID(time.Now()), parry.RunVerify, nil
	if o = g.run(t, s); o.State != parry.RunSucceeded || o.Proof.SHA256 != want.SHA256 {
		t.Errorf("verify: got %+v\n%s", o, o.LogTail)
	}
}

// TestRun_keepsWhatAnsibleParsesAtEachStart: the second run reads it; one that is damaged is made anew.
func TestRun_keepsWhatAnsibleParsesAtEachStart(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.run(t, g.spec(t, "")).want(t, parry.RunSucceeded, "")
	kept, err := filepath.Glob(filepath.Join(g.home, "yaml-*"))
	if err != nil || len(kept) == 0 {
		t.Fatalf("got %v, %v", kept, err)
	}
	whole := map[string]string{}
	for _, path := range kept {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		whole[path] = string(b)
		if err := os.WriteFile(path, b[:len(b)/2], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.run(t, g.spec(t, "")).want(t, parry.RunSucceeded, "")
	for path, want := range whole {
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%s: %d bytes, %v; want %d as before", path, len(b), err, len(want))
		}
	}
}

func TestRun_hundredThousandEntries(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	var lines, keys strings.Builder
	for i := range 100_000 {
		key := fmt.Sprintf("10.%d.%d.%d - - - wan", i>>16, i>>8&255, i&255)
		fmt.Fprintf(&lines, "%s 1790000000\n", key)
		fmt.Fprintln(&keys, key)
	}
	o := g.run(t, g.spec(t, lines.String()))
	if o.State != parry.RunSucceeded || o.Proof.Count != 100_000 || o.Proof.SHA256 != sum(keys.String()) {
		t.Fatalf("got %+v\n%s", o, o.LogTail)
	}
	t.Logf("%s, %d MiB", o.Wall, o.MaxRSS>>20)
}

func TestRun_runsFromACheckedCopy(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	src := testBundle(t, nil)
	root := filepath.Join(t.TempDir(), "bundles")
	if err := os.CopyFS(filepath.Join(root, "firewall"), os.DirFS(src.Dir)); err != nil {
		t.Fatal(err)
	}
	lib, err := bundle.New(bundle.Options{Root: root, StateDir: g.stateDir, Check: g.Syntax})
	if err != nil {
		t.Fatal(err)
	}
	b, err := lib.Refresh(t.Context(), "firewall")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "firewall/apply.yml"), []byte("- hosts: all\n  tasks:\n    - no.such.module:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	kept, err := lib.Refresh(t.Context(), "firewall")
	if err == nil || !strings.Contains(err.Error(), "no.such.module") || kept.Digest != b.Digest {
		t.Errorf("got %s, %v", kept.Digest, err)
	}
	s := g.spec(t, "203.0.113.7 - - - wan -\n")
	s.Bundle = kept
	g.run(t, s).want(t, parry.RunSucceeded, "")
	if again, err := lib.Get("firewall", b.Digest); err != nil || again.Dir != b.Dir {
		t.Errorf("after a run: %v", err)
	}
}
