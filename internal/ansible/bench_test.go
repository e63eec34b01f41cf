package ansible

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
)

// BenchmarkRun holds a run to a bare ansible-playbook with one raw task over the same warm ssh, one after the other: "ratio" is of medians.
func BenchmarkRun(b *testing.B) {
	g := newRig(b)
	m := g.warm(b)
	dir := b.TempDir()
	book, inv := filepath.Join(dir, "raw.yml"), filepath.Join(dir, "inventory.json")
	hosts, err := inventoryJSON(&g.host)
	if err != nil {
		b.Fatal(err)
	}
	for path, text := range map[string]string{
		book: "- hosts: all\n  gather_facts: false\n  tasks:\n    - ansible.builtin.raw: exit 0\n", inv: string(hosts),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	bare := func() time.Duration {
		cmd := exec.Command(g.playbookBin, "-i", inv, book)
		cmd.Env = append(os.Environ(), "ANSIBLE_SSH_ARGS="+strings.Join(g.sshOptions("ControlMaster=no", "ControlPath="+m.path), " "))
		t0 := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		return time.Since(t0)
	}
	raw := g.play(b, "    - ansible.builtin.raw: exit 0\n").Bundle
	var bares, raws, proved []time.Duration
	measure := func(s Spec, want parry.Failure) time.Duration {
		t0 := time.Now()
		if o := g.run(b, s); o.Failure != want || !o.Warm {
			b.Fatalf("got %+v\n%s", o, o.LogTail)
		}
		return time.Since(t0)
	}
	bare()
	for b.Loop() {
		bares = append(bares, bare())
		s := g.spec(b, "203.0.113.7 - - - wan -\n")
		s.Bundle = raw
		raws = append(raws, measure(s, parry.FailNoProof))
		proved = append(proved, measure(g.spec(b, "203.0.113.7 - - - wan -\n"), ""))
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return d[len(d)/2].Seconds()
	}
	b.ReportMetric(median(bares), "bare-s")
	b.ReportMetric(median(raws)/median(bares), "raw-ratio")
	b.ReportMetric(median(proved)/median(bares), "ratio")
	b.ReportMetric(0, "ns/op")
}
