package app_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/testenv"
)

// remote speaks HTTPS with a token, as a SIEM does.
func (r *running) remote(tb testing.TB, conns int) *api.ClientWithResponses {
	tb.Helper()
	t, err := r.site.client().CreateTokenWithResponse(tb.Context(), api.TokenRequest{Name: "siem", Role: "trigger"})
	if err != nil || t.JSON201 == nil {
		tb.Fatalf("%v", err)
	}
	ca, _ := r.CA()
	pem, err := os.ReadFile(ca)
	if err != nil {
		tb.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: conns}
	tb.Cleanup(tr.CloseIdleConnections)
	c, err := api.NewClientWithResponses("https://"+r.Addr().String(), api.WithHTTPClient(&http.Client{Transport: tr, Timeout: time.Minute}),
		api.WithRequestEditorFn(bearer(t.JSON201.Secret)))
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func percentile(d []time.Duration, p float64) time.Duration {
	slices.Sort(d)
	return d[min(len(d)-1, int(p*float64(len(d))))]
}

// BenchmarkStorm asks for 10,000 distinct sources from 64 clients over HTTPS, against one firewall: the accepts, and when all is proved.
func BenchmarkStorm(b *testing.B) {
	const n, clients = 10_000, 64
	for b.Loop() {
		lab := testenv.StartLab(b, testenv.LabOptions{Name: "fw-a"})
		s := newSite(b, "log: {level: warn}\n", lab)
		r := s.start()
		c, local := r.remote(b, clients), s.client()
		block(b, local, api.BlockRequest{Source: "203.0.113.1"}, "60s") // the first run and its verify are over
		before := runCount(b, local)
		var next atomic.Int64
		var mu sync.Mutex
		var took []time.Duration
		var wg sync.WaitGroup
		start := time.Now()
		for range clients {
			wg.Go(func() {
				for i := next.Add(1); i <= n; i = next.Add(1) {
					t := time.Now()
					a, err := c.CreateBlockWithResponse(b.Context(), &api.CreateBlockParams{IdempotencyKey: new(key())},
						api.BlockRequest{Source: fmt.Sprintf("45.0.%d.%d", i>>8, i&255), TTL: "1h", Reason: "storm", Origin: "bench"})
					if err != nil || a.StatusCode() != http.StatusCreated {
						b.Errorf("not accepted: %v", err)
						return
					}
					mu.Lock()
					took = append(took, time.Since(t))
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		accepted := time.Now()
		eventually(b, "all is proved", func() bool {
			fw, err := local.GetFirewallWithResponse(b.Context(), "fw-a")
			return err == nil && fw.JSON200.State == "proved" && fw.JSON200.Proof.Count == n+1
		})
		proved := time.Since(accepted)
		if got := len(sources(lab)); got != n+1 {
			b.Errorf("pf holds %d entries", got)
		}
		runs := runCount(b, local) - before
		b.ReportMetric(n/accepted.Sub(start).Seconds(), "accepts/s")
		b.ReportMetric(float64(percentile(took, .99).Microseconds())/1000, "p99-ms")
		b.ReportMetric(proved.Seconds(), "last-proof-s")
		b.ReportMetric(float64(runs), "runs")
		b.ReportMetric(peakMiB(b), "peak-MiB-with-clients")
		r.end()
	}
}

func runCount(tb testing.TB, c *api.ClientWithResponses) int {
	tb.Helper()
	l, err := c.ListRunsWithResponse(tb.Context(), &api.ListRunsParams{Limit: new(1000)})
	if err != nil {
		tb.Fatal(err)
	}
	return len(l.JSON200.Items)
}

// peakMiB is this process's: parry and all clients.
func peakMiB(tb testing.TB) float64 {
	tb.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "VmHWM: %f kB", &kib); err == nil {
			return kib / 1024
		}
	}
	return 0
}

// BenchmarkBlockToProof asks for one block on an idle service, 20 times, with none and with 100,000 standing, next to as many bare
// ansible-playbook runs of one raw task over a warm ssh connection, taken in turns.
func BenchmarkBlockToProof(b *testing.B) {
	for _, standing := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("standing=%d", standing), func(b *testing.B) {
			for b.Loop() {
				lab := testenv.StartLab(b, testenv.LabOptions{Name: "fw-a"})
				s := newSite(b, "log: {level: warn}\nlimits: {rate_per_minute: 10000000}\n", lab)
				r := s.start()
				c, local := r.remote(b, 64), s.client()
				block(b, local, api.BlockRequest{Source: "203.0.113.1"}, "60s")
				fill(b, c, local, standing)
				bare := bareAnsible(b, lab)
				var ours, theirs []time.Duration
				for i := range 20 {
					start := time.Now()
					got := block(b, c, api.BlockRequest{Source: fmt.Sprintf("198.51.100.%d", i+1)}, "60s")
					ours = append(ours, time.Since(start))
					if got.State != "enforced" {
						b.Fatalf("got %s", got.State)
					}
					runtime.GC()
					theirs = append(theirs, bare())
				}
				b.ReportMetric(percentile(ours, .5).Seconds(), "p50-s")
				b.ReportMetric(percentile(ours, .95).Seconds(), "p95-s")
				b.ReportMetric(percentile(theirs, .5).Seconds(), "bare-p50-s")
				b.ReportMetric(percentile(ours, .5).Seconds()/percentile(theirs, .5).Seconds(), "ratio-p50")
				b.ReportMetric(percentile(ours, .95).Seconds()/percentile(theirs, .95).Seconds(), "ratio-p95")
				r.end()
			}
		})
	}
}

// fill makes n blocks and waits for their proof.
func fill(b *testing.B, c, local *api.ClientWithResponses, n int) {
	b.Helper()
	if n == 0 {
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				a, err := c.CreateBlockWithResponse(b.Context(), &api.CreateBlockParams{IdempotencyKey: new(key())},
					api.BlockRequest{Source: fmt.Sprintf("45.%d.%d.%d", i>>16, i>>8&255, i&255), TTL: "4h"})
				if err != nil || a.StatusCode() != http.StatusCreated {
					b.Errorf("not accepted: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	eventually(b, "all is proved", func() bool {
		fw, err := local.GetFirewallWithResponse(b.Context(), "fw-a")
		return err == nil && fw.JSON200.State == "proved" && fw.JSON200.Proof.Count == n+1
	})
}

// bareAnsible gives a run of ansible-playbook with a single raw task over a connection that stands.
func bareAnsible(b *testing.B, lab *testenv.Lab) func() time.Duration {
	b.Helper()
	dir, err := os.MkdirTemp("", "bare")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	args := fmt.Sprintf("-o ControlMaster=auto -o ControlPersist=120 -o ControlPath=%s/cm -o UserKnownHostsFile=%s", dir, lab.KnownHosts)
	for name, text := range map[string]string{
		"play.yml":    "- hosts: all\n  gather_facts: false\n  tasks: [{ansible.builtin.raw: pwd}]\n",
		"ansible.cfg": "[defaults]\n[ssh_connection]\nssh_args = " + args + "\n",
		"hosts": fmt.Sprintf("fw-a ansible_host=%s ansible_port=%d ansible_user=%s ansible_ssh_private_key_file=%s\n",
			lab.Addr, lab.Port, lab.User, lab.KeyFile),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	run := func() time.Duration {
		cmd := exec.CommandContext(b.Context(), "/usr/bin/ansible-playbook", "-i", "hosts", "play.yml")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "ANSIBLE_CONFIG="+filepath.Join(dir, "ansible.cfg"))
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		return time.Since(start)
	}
	run() // warms the connection
	b.Cleanup(func() {
		_ = exec.Command("ssh", "-o", "ControlPath="+dir+"/cm", "-O", "exit", lab.User+"@"+lab.Addr.String()).Run()
	})
	return run
}

func bearer(secret string) api.RequestEditorFn {
	return func(_ context.Context, r *http.Request) error {
		r.Header.Set("Authorization", "Bearer "+secret)
		return nil
	}
}
