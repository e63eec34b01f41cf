package ansible

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/testenv"
)

// site is the whole way from an operators' inventory to a lab firewall, with the bundle that is delivered for its kind.
type site struct {
	*Runner
	lab    *testenv.Lab
	host   Host
	bundle bundle.Bundle
}

func newSite(tb testing.TB) *site {
	tb.Helper()
	return siteFor(tb, testenv.StartLab(tb, testenv.LabOptions{Name: "fw-a"}))
}

func siteFor(tb testing.TB, lab *testenv.Lab) *site {
	tb.Helper()
	inv := filepath.Join(tb.TempDir(), "hosts.yml")
	text := fmt.Sprintf("all:\n  hosts:\n    %s: {ansible_host: %s, ansible_port: %d, ansible_user: %s}\n", lab.Name, lab.Addr, lab.Port, lab.User)
	if err := os.WriteFile(inv, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	r, err := New(Options{StateDir: tb.TempDir(), Inventory: inv, KnownHosts: lab.KnownHosts, KeyFile: lab.KeyFile, Deadline: 20 * time.Second})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = r.Close() })
	hosts, err := r.LoadInventory(context.Background())
	if err != nil || hosts[lab.Name].Err != nil {
		tb.Fatal(err, hosts)
	}
	lib, err := bundle.New(bundle.Options{Root: testenv.Playbooks(tb), StateDir: r.stateDir, Check: r.Syntax})
	if err != nil {
		tb.Fatal(err)
	}
	b, err := lib.Refresh(context.Background(), lab.Bundle)
	if err != nil {
		tb.Fatal(err)
	}
	return &site{Runner: r, lab: lab, host: hosts[lab.Name], bundle: b}
}

func (s *site) run(tb testing.TB, kind parry.RunKind, change func(*Spec), entries ...parry.Entry) (*Outcome, string) {
	tb.Helper()
	var lines []string
	for _, e := range entries {
		lines = append(lines, string(e.AppendLine(nil)))
	}
	slices.Sort(lines)
	desired, keys := []byte{}, []byte{}
	for _, l := range lines {
		desired = append(desired, l...)
	}
	slices.SortFunc(entries, func(a, b parry.Entry) int { return slices.Compare(a.AppendKey(nil), b.AppendKey(nil)) })
	for _, e := range entries {
		keys = append(e.AppendKey(keys), '\n')
	}
	spec := Spec{
		RunID: parry.NewRunID(time.Now()), Host: s.host, Bundle: s.bundle, Kind: kind, Desired: desired,
		Vars: map[string]any{"parry_controller": "c-1", "parry_epoch": 3, "parry_revision": 7, "parry_max_rules": 200, "parry_adopt": false},
	}
	if change != nil {
		change(&spec)
	}
	o, err := s.Run(context.Background(), spec)
	if err != nil {
		tb.Fatal(err)
	}
	return o, sum(string(keys))
}

func entry(source, destination string) parry.Entry {
	e := parry.Entry{Match: parry.Match{Source: prefix(source), Interface: "wan"}}
	if destination != "" {
		e.Destination = prefix(destination)
	}
	return e
}

func TestPfSense_provedVerifiedAndNamedFailures(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a, b := entry("203.0.113.7", ""), entry("2001:db8:bad::/48", "")
	o, want := s.run(t, parry.RunApply, nil, a, b)
	o.want(t, parry.RunSucceeded, "")
	if o.Proof == nil || o.Proof.SHA256 != want || o.Proof.Count != 2 || o.Proof.Epoch != 3 || o.Proof.Controller != "c-1" || !o.Changed {
		t.Fatalf("got %+v, changed %v, want %s", o.Proof, o.Changed, want)
	}
	if o, _ = s.run(t, parry.RunApply, nil, a, b); o.State != parry.RunSucceeded || o.Changed {
		t.Errorf("second run: %s, changed %v", o.State, o.Changed)
	}
	if o, _ = s.run(t, parry.RunVerify, nil); o.State != parry.RunSucceeded || o.Proof.SHA256 != want || o.Changed {
		t.Errorf("verify: %+v %+v", o, o.Proof)
	}
	own := entry("203.0.113.9", "127.0.0.1")
	if o, _ = s.run(t, parry.RunApply, nil, a, own); o.State != parry.RunSucceeded || len(o.Rejected) > 1 {
		t.Errorf("reject: %+v\n%s", o, o.LogTail)
	}
	o, _ = s.run(t, parry.RunApply, func(s *Spec) { s.Vars["parry_epoch"] = 2 }, a)
	o.want(t, parry.RunFailed, parry.FailStaleEpoch)
	if fmt.Sprint(o.Details["epoch"]) != "3" {
		t.Errorf("got details %v", o.Details)
	}
	o, _ = s.run(t, parry.RunApply, func(s *Spec) { s.Vars["parry_controller"] = "c-2" }, a)
	o.want(t, parry.RunFailed, parry.FailForeignController)
	s.lab.Fault("pf-refuse")
	o, _ = s.run(t, parry.RunApply, nil, a, entry("203.0.113.10", "198.51.100.10"))
	o.want(t, parry.RunFailed, parry.FailPFRefused)
	s.lab.Fault("off")
	s.lab.Fault("hang")
	o, _ = s.run(t, parry.RunApply, func(s *Spec) { s.Deadline = 3 * time.Second }, a, b)
	o.want(t, parry.RunUnknown, parry.FailTimeout)
	s.lab.Fault("off")
	if err := s.Warm(t.Context(), s.host); err != nil {
		t.Fatal(err)
	}
	if o, want = s.run(t, parry.RunRetire, nil); o.State != parry.RunSucceeded || o.Proof.SHA256 != want || o.Proof.Count != 0 || !o.Warm {
		t.Errorf("retire: %+v %+v\n%s", o, o.Proof, o.LogTail)
	}
}

func prefix(s string) netip.Prefix {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p
	}
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}
