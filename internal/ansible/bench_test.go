package ansible

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/testenv"
)

// BenchmarkRun holds runs to a bare ansible-playbook with one raw task over the same warm ssh, in turns; each ratio is of medians:
// raw-ratio of the same play through the runner, ratio of a play that sends entries and brings back a proof.
func BenchmarkRun(b *testing.B) {
	g := newRig(b)
	raw := g.play(b, "    - ansible.builtin.raw: exit 0\n").Bundle
	compare(b, g.Runner, g.host, map[string]func(int) *Outcome{
		"raw-ratio": func(int) *Outcome {
			s := g.spec(b, "")
			s.Bundle = raw
			return g.run(b, s)
		},
		"ratio": func(n int) *Outcome { return g.run(b, g.spec(b, fmt.Sprintf("203.0.113.%d - - - wan -\n", n%250))) },
	})
}

// BenchmarkPfSense does so with the delivered bundle against a lab firewall: one entry added, and 100,000 standing.
func BenchmarkPfSense(b *testing.B) {
	for name, standing := range map[string]int{"idle": 1, "100000": 100_000} {
		b.Run(name, func(b *testing.B) {
			s := newSite(b)
			var entries []parry.Entry
			for i := range standing {
				entries = append(entries, entry(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), ""))
			}
			compare(b, s.Runner, s.host, map[string]func(int) *Outcome{"ratio": func(n int) *Outcome {
				o, _ := s.run(b, parry.RunApply, nil, append(slices.Clone(entries), entry(fmt.Sprintf("203.0.113.%d", n%250), ""))...)
				return o
			}})
		})
	}
}

// BenchmarkNftables does so with the delivered bundle against a Linux host: one entry added, one lifted, with 0, 1,000 and 100,000 standing.
func BenchmarkNftables(b *testing.B) {
	for _, standing := range []int{0, 1000, 100_000} {
		b.Run(fmt.Sprintf("standing=%d", standing), func(b *testing.B) {
			s := siteFor(b, testenv.StartLinux(b, "fw-c").Lab)
			end := time.Now().Add(24 * time.Hour).Unix()
			var entries []parry.Entry
			for i := range standing {
				entries = append(entries, entry(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), ""))
				entries[i].Expires = end
			}
			compare(b, s.Runner, s.host, map[string]func(int) *Outcome{"ratio": func(n int) *Outcome {
				more := entry(fmt.Sprintf("198.51.100.%d", n%250), "")
				more.Expires = end
				o, want := s.run(b, parry.RunApply, nil, append(slices.Clone(entries), more)...)
				if o.Proof == nil || o.Proof.SHA256 != want || o.Proof.Added == 0 {
					b.Fatalf("%+v: %s", o.Proof, o.LogTail)
				}
				return o
			}})
		})
	}
}

func compare(b *testing.B, r *Runner, h Host, runs map[string]func(n int) *Outcome) {
	b.Helper()
	if err := r.Warm(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	control, warm := r.masters.control(h)
	if !warm {
		b.Fatal("the connection is not warm")
	}
	dir := b.TempDir()
	book, inv := filepath.Join(dir, "raw.yml"), filepath.Join(dir, "inventory.json")
	hosts, err := inventoryJSON(&h)
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
		cmd := exec.Command(r.playbookBin, "-i", inv, book)
		cmd.Env = append(os.Environ(), "ANSIBLE_SSH_ARGS="+strings.Join(r.sshOptions(control...), " "))
		t0 := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		return time.Since(t0)
	}
	took := map[string][]time.Duration{}
	n := 0
	round := func() {
		took["bare"] = append(took["bare"], bare())
		for name, run := range runs {
			o := run(n)
			if !o.Warm || o.Stats.OK == 0 || o.Stats.Failures > 0 {
				b.Fatalf("%s: %+v\n%s", name, o, o.LogTail)
			}
			took[name] = append(took[name], o.Wall)
		}
		n++
	}
	round() // what is done once only: compiling plugins, the first structure on the firewall
	clear(took)
	for b.Loop() {
		round()
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return d[len(d)/2].Seconds()
	}
	b.ReportMetric(median(took["bare"]), "bare-s")
	for name := range runs {
		b.ReportMetric(median(took[name])/median(took["bare"]), name)
	}
	b.ReportMetric(0, "ns/op")
}
