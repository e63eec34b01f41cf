package app_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
)

// liar is a playbook that claims what it was sent, and does nothing.
const liar = `---
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.raw: pwd
    - ansible.builtin.set_stats:
        data:
          parry:
            sha256: "{{ (lookup('file', parry_desired_file).splitlines() | map('regex_replace', ' [^ ]*$', '') | join('\n') ~ '\n') | hash('sha256') }}"
            count: "{{ lookup('file', parry_desired_file).splitlines() | length }}"
            epoch: "{{ parry_epoch }}"
            controller: "{{ parry_controller }}"
            run_id: "{{ parry_run_id }}"
`

func (p *pair) edit(file string, change func(string) string) {
	p.tb.Helper()
	path := filepath.Join(p.dir, "bundles", "pfsense", file)
	b, err := os.ReadFile(path)
	if err != nil {
		p.tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(change(string(b))), 0o644); err != nil {
		p.tb.Fatal(err)
	}
}

func before(marker, text string) func(string) string {
	return func(s string) string { return strings.Replace(s, marker, text+marker, 1) }
}

// look takes an edit over and gives its digest.
func (p *pair) look(c *api.ClientWithResponses) api.BundleChecked {
	p.tb.Helper()
	r, err := c.CheckBundleWithResponse(p.tb.Context(), "pfsense", api.BundleCheckRequest{})
	if err != nil || r.JSON200 == nil {
		p.tb.Fatalf("check: %v %s", err, r.Body)
	}
	return *r.JSON200
}

func (p *pair) runsOf(c *api.ClientWithResponses, firewall string) []api.Run {
	p.tb.Helper()
	r, err := c.ListRunsWithResponse(p.tb.Context(), &api.ListRunsParams{Firewall: &firewall, Limit: new(100)})
	if err != nil || r.JSON200 == nil {
		p.tb.Fatalf("runs: %v", err)
	}
	return r.JSON200.Items
}

func states(b *api.Block) map[string]string {
	out := map[string]string{}
	for _, s := range b.Status {
		out[s.Name] = string(s.State)
	}
	return out
}

// titles are the subjects of the mails so far.
func (p *pair) titles() (out []string) {
	for _, l := range p.mail.Letters() {
		for line := range strings.Lines(string(l.Data)) {
			if s, ok := strings.CutPrefix(line, "Subject: "); ok {
				out = append(out, strings.TrimSpace(s))
				break
			}
		}
	}
	return out
}

// TestBundle_badEditsHurtNobodyForLongAndOneCommandUndoesThem edits the bundle of two firewalls in ways that Ansible's syntax check cannot
// find. What was in force stays so, what is new waits and says why, and a rollback brings it back.
func TestBundle_badEditsHurtNobodyForLongAndOneCommandUndoesThem(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		edit func(p *pair)
		want string
	}{
		"a failing task": {func(p *pair) {
			p.edit("apply.yml", before("    - name: Apply", "    - ansible.builtin.fail: {msg: not on my watch}\n"))
		}, "task"},
		"a lie about its proof": {func(p *pair) { p.edit("apply.yml", func(string) string { return liar }) }, "proof_mismatch"},
		"a slow one": {func(p *pair) {
			p.edit("apply.yml", before("    - name: Apply", "    - ansible.builtin.raw: sleep 600\n"))
		}, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			if tc.want == "timeout" {
				p.replace(p.config, "known_hosts: known_hosts", "known_hosts: known_hosts, deadline: 20s, grace: 1s")
			}
			p.start()
			c := p.client()
			if got := block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "120s"); got.State != "enforced" {
				t.Fatalf("before: %+v", got)
			}
			good := p.look(c)
			tc.edit(p)
			bad := p.look(c)
			if len(bad.Problems) != 0 || bad.Bundle.Digest == good.Bundle.Digest {
				t.Fatalf("the edit: %+v", bad)
			}
			got := block(t, c, api.BlockRequest{Source: "203.0.113.2"}, "120s")
			if s := states(got); s["fw-a"] != "degraded" || s["fw-b"] != "degraded" {
				t.Errorf("with the bad version: %v", s)
			}
			eventually(t, "the failure is named", func() bool {
				return slices.ContainsFunc(p.runsOf(c, "fw-a"), func(r api.Run) bool { return r.Failure == tc.want && r.Bundle.Digest == bad.Bundle.Digest })
			})
			for _, l := range []string{"203.0.113.1"} {
				if !slices.Contains(sources(p.a), l) {
					t.Errorf("what was in force is gone: %v", sources(p.a))
				}
			}
			r, err := c.RollBackBundleWithResponse(t.Context(), "pfsense", api.BundleCheckRequest{})
			if err != nil || r.JSON200 == nil || r.JSON200.Bundle.Digest != good.Bundle.Digest || !r.JSON200.Proved || len(r.JSON200.Affects) != 2 {
				t.Fatalf("rollback: %v %s", err, r.Body)
			}
			eventually(t, "the block is in force on both", func() bool {
				b, err := c.GetBlockWithResponse(t.Context(), got.ID)
				return err == nil && b.JSON200.State == "enforced" && slices.Contains(sources(p.a), "203.0.113.2") && slices.Contains(sources(p.b), "203.0.113.2")
			})
			fw, err := c.GetFirewallWithResponse(t.Context(), "fw-a")
			if err != nil || fw.JSON200.PinnedBy != "local" || fw.JSON200.Pin != good.Bundle.Digest || fw.JSON200.Used.Digest != good.Bundle.Digest {
				t.Errorf("fw-a: %v %s", err, fw.Body)
			}
			eventually(t, "each firewall's failure and its end are told", func() bool { return len(p.titles()) == 4 })
		})
	}
}

func TestBundle_aYAMLErrorIsToldOnceAndSoIsItsEnd(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.start()
	c := p.client()
	block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "120s")
	good := p.look(c)
	p.edit("verify.yml", func(s string) string { return strings.Replace(s, "hosts: all", "hosts: [all", 1) })
	for range 3 {
		if bad := p.look(c); len(bad.Problems) != 1 || !strings.Contains(bad.Problems[0], "verify.yml") || bad.Bundle.Digest != good.Bundle.Digest {
			t.Fatalf("the edit: %+v", bad)
		}
	}
	if got := block(t, c, api.BlockRequest{Source: "203.0.113.2"}, "120s"); got.State != "enforced" {
		t.Errorf("with the last good copy: %+v", got)
	}
	p.edit("verify.yml", func(s string) string { return strings.Replace(s, "hosts: [all", "hosts: all", 1) })
	if again := p.look(c); len(again.Problems) != 0 || again.Bundle.Digest != good.Bundle.Digest {
		t.Fatalf("mended: %+v", again)
	}
	p.mail.Wait(2, 60*time.Second)
	got := p.titles()
	if len(got) != 2 || !strings.Contains(got[0], "an edit of bundle pfsense cannot be used, pfsense 1.0.0") || !strings.Contains(got[1], "can be used again") {
		t.Errorf("mails: %q", got)
	}
}

func TestBundle_anEditNeverReachesARunThatIsOn(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.start()
	c := p.client()
	block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "120s")
	good := p.look(c)
	p.a.Fault("slow", "5", "pf")
	answered := make(chan *api.Block, 1)
	go func() {
		answered <- block(t, c, api.BlockRequest{Source: "203.0.113.2", Firewalls: []string{"fw-a"}}, "120s")
	}()
	eventually(t, "a run is on", func() bool {
		return slices.ContainsFunc(p.runsOf(c, "fw-a"), func(r api.Run) bool { return r.State == "running" })
	})
	p.edit("apply.yml", before("    - name: Apply", "    - ansible.builtin.fail: {msg: no}\n"))
	p.edit("program/40-pf.php", func(string) string { return "<?php exit(1);\n" })
	bad := p.look(c)
	if got := <-answered; got.State != "enforced" {
		t.Errorf("the run that was on: %+v", got)
	}
	for _, r := range p.runsOf(c, "fw-a") {
		if r.Failure != "" || r.Bundle.Digest != good.Bundle.Digest {
			t.Errorf("run %s of %.12s: %s", r.ID, r.Bundle.Digest, r.Failure)
		}
	}
	p.a.Fault("off")
	block(t, c, api.BlockRequest{Source: "203.0.113.3", Firewalls: []string{"fw-a"}}, "120s")
	if rs := p.runsOf(c, "fw-a"); rs[0].Bundle.Digest != bad.Bundle.Digest {
		t.Errorf("the next run is of %.12s, want %.12s", rs[0].Bundle.Digest, bad.Bundle.Digest)
	}
}

func TestBundle_aCanaryKeepsABadVersionFromTheOthers(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.replace(p.config, "name: fw-a", "name: fw-a, canary: true")
	p.start()
	c := p.client()
	block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "120s")
	good := p.look(c)
	p.edit("apply.yml", before("    - name: Apply", "    - ansible.builtin.fail: {msg: no}\n"))
	bad := p.look(c)
	detail := func() api.BundleDetail {
		r, err := c.GetBundleWithResponse(t.Context(), "pfsense")
		if err != nil || r.JSON200 == nil {
			t.Fatalf("%v %s", err, r.Body)
		}
		return *r.JSON200
	}
	eventually(t, "the canary refuses it", func() bool {
		w := detail().Waits
		return len(w) == 1 && strings.Contains(w[0], "canary fw-a failed with it")
	})
	got := block(t, c, api.BlockRequest{Source: "203.0.113.2"}, "120s")
	if got.State != "enforced" || got.Enforced != 2 {
		t.Errorf("with the last good version on both: %+v", got)
	}
	for _, r := range p.runsOf(c, "fw-b") {
		if r.Bundle.Digest != good.Bundle.Digest {
			t.Errorf("fw-b has had %.12s", r.Bundle.Digest)
		}
	}
	p.mail.Wait(1, 60*time.Second)
	if got := p.titles(); len(got) != 1 || !strings.Contains(got[0], "canary fw-a failed with pfsense 1.0.0") {
		t.Errorf("mails: %q", got)
	}
	ready, err := c.GetReadinessWithResponse(t.Context())
	if err != nil || !strings.Contains(string(ready.Body), bad.Bundle.Digest[:12]+") is not for all yet") {
		t.Errorf("readyz: %s", ready.Body)
	}
	p.edit("apply.yml", func(s string) string {
		return strings.Replace(s, "    - ansible.builtin.fail: {msg: no}\n", "    - ansible.builtin.raw: pwd\n", 1)
	})
	mended := p.look(c)
	eventually(t, "both have the mended version", func() bool {
		d := detail()
		return d.Release.Digest == mended.Bundle.Digest && !slices.ContainsFunc(d.Firewalls, func(f api.BundleFirewall) bool { return f.Used.Digest != mended.Bundle.Digest })
	})
	p.mail.Wait(2, 60*time.Second)
	if got := p.titles(); len(got) != 2 || !strings.Contains(got[1], "has passed canary fw-a, the others follow") {
		t.Errorf("mails: %q", got)
	}
	if kinds := p.runsOf(c, "fw-a"); !slices.ContainsFunc(kinds, func(r api.Run) bool {
		return r.Kind == "check" && r.State == "succeeded" && r.Bundle.Digest == mended.Bundle.Digest
	}) {
		t.Error("the canary has not seen the mended version in check mode first")
	}
}

// TestRun_canBeRepeatedByTheCommandThatItPrints executes what `parry runs` prints.
func TestRun_canBeRepeatedByTheCommandThatItPrints(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	r := p.start()
	c := p.client()
	block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "120s")
	eventually(t, "the runs are done", func() bool {
		fw, err := c.GetFirewallWithResponse(t.Context(), "fw-a")
		return err == nil && fw.JSON200.Phase == "idle"
	})
	var apply api.Run
	for _, run := range p.runsOf(c, "fw-a") {
		if run.Kind == "apply" && run.State == "succeeded" {
			apply = run
			break
		}
	}
	got, err := c.GetRunWithResponse(t.Context(), apply.ID)
	if err != nil || got.JSON200.Command == "" || got.JSON200.CheckCommand == "" {
		t.Fatalf("%v %s", err, got.Body)
	}
	p.edit("apply.yml", before("    - name: Apply", "    - ansible.builtin.fail: {msg: an edit since}\n"))
	p.look(c)
	r.end() // later, with parry gone
	held := sources(p.a)
	for name, command := range map[string]string{"check": got.JSON200.CheckCommand, "again": got.JSON200.Command} {
		cmd := exec.Command("sh", "-c", command)
		cmd.Env, cmd.Dir = []string{"HOME=" + t.TempDir(), "ANSIBLE_STDOUT_CALLBACK=null", "ANSIBLE_HOST_KEY_CHECKING=False"}, t.TempDir()
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("failed=0")) || !bytes.Contains(out, []byte("unreachable=0")) {
			t.Errorf("%s: %v\n%s\n%s", name, err, command, out)
		}
	}
	if now := sources(p.a); !slices.Equal(now, held) {
		t.Errorf("pf holds %v, and held %v", now, held)
	}
}
