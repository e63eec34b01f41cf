package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/testenv"
)

// process is parry in a process of its own, so that it can be killed.
type process struct {
	*exec.Cmd
	log *logBuffer
}

// spawn starts one and returns when its socket answers.
func (s *site) spawn() *process {
	s.tb.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], "serve", "--config", s.config), log: &logBuffer{}}
	p.Env = append(os.Environ(), "PARRY_TEST_MAIN=1")
	p.Stderr = p.log
	p.WaitDelay = time.Second // an orphaned run may hold standard error
	if err := p.Start(); err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
	})
	eventually(s.tb, "parry answers", func() bool {
		c, err := net.Dial("unix", s.socket)
		if err == nil {
			_ = c.Close()
		} else if p.Process.Signal(syscall.Signal(0)) != nil {
			s.tb.Fatalf("parry has ended:\n%s", p.log)
		}
		return err == nil
	})
	return p
}

// noting is a copy of the pfSense bundle that has each run note its begin and its end on the firewall.
func noting(t *testing.T, dir string) {
	t.Helper()
	if err := testenv.CopyPlaybooks("pfsense", filepath.Join(dir, "bundles", "pfsense")); err != nil {
		t.Fatal(err)
	}
	task := func(section, word string) string {
		return "  " + section + ":\n    - name: Note the " + word + "\n      ansible.builtin.raw: echo {{ parry_run_id }} " + word + " >> /root/runs.log\n"
	}
	for _, play := range []string{"apply.yml", "verify.yml"} {
		path := filepath.Join(dir, "bundles", "pfsense", play)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(b), "  tasks:\n", task("pre_tasks", "begin")+"  tasks:\n", 1) + task("post_tasks", "end")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// ledger is what callers were told.
type ledger struct {
	mu      sync.Mutex
	next    int
	blocked map[string]string // id → source, of acknowledged blocks
	brief   map[string]bool   // ids of those that end soon
	ended   map[string]bool   // ids whose end was acknowledged
	unsure  map[string]bool   // ids whose end was asked for, without an answer
}

func (l *ledger) source() (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return fmt.Sprintf("45.%d.%d.%d", l.next>>16&255, l.next>>8&255, l.next&255), l.next%7 == 0
}

// pick takes an acknowledged block to be ended.
func (l *ledger) pick() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.blocked { // in random order
		if !l.ended[id] && !l.unsure[id] && !l.brief[id] {
			l.unsure[id] = true
			return id
		}
	}
	return ""
}

func (l *ledger) work(ctx context.Context, c *api.ClientWithResponses) {
	for n := 0; ctx.Err() == nil; n++ {
		if n%6 == 5 {
			if id := l.pick(); id != "" {
				r, err := c.DeleteBlockWithResponse(ctx, id, &api.DeleteBlockParams{})
				if err == nil && r.StatusCode() == http.StatusOK {
					l.mu.Lock()
					l.ended[id] = true
					delete(l.unsure, id)
					l.mu.Unlock()
				}
			}
			continue
		}
		source, brief := l.source()
		req := api.BlockRequest{Source: source, TTL: "1h"}
		if brief {
			req.TTL = "2s"
		}
		r, err := c.CreateBlockWithResponse(ctx, &api.CreateBlockParams{IdempotencyKey: new(key())}, req)
		if err == nil && r.JSON201 != nil {
			l.mu.Lock()
			l.blocked[r.JSON201.ID], l.brief[r.JSON201.ID] = source, brief
			l.mu.Unlock()
		}
		select { // a breath, so that the machine has time for runs too
		case <-ctx.Done():
		case <-time.After(3 * time.Millisecond):
		}
	}
}

// TestKill_nothingIsLostOrLeakedAndRunsNeverOverlap kills parry at random moments while blocks come and go and runs are on. More cycles
// by PARRY_KILL_CYCLES.
func TestKill_nothingIsLostOrLeakedAndRunsNeverOverlap(t *testing.T) {
	t.Parallel()
	for engine, cycles := range map[string]int{"sqlite": 30, "postgres": 6} {
		if testing.Short() {
			cycles = 3
		}
		if n, err := strconv.Atoi(os.Getenv("PARRY_KILL_CYCLES")); err == nil {
			cycles = n
		}
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			more := ""
			if engine == "postgres" {
				more = "database: {driver: postgres, dsn: \"" + testenv.Postgres(t, testenv.PostgresOptions{}) + "\"}\n"
			}
			killAgainAndAgain(t, cycles, more)
		})
	}
}

func killAgainAndAgain(t *testing.T, cycles int, more string) {
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("%d cycles, seed %d", cycles, seed)

	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	s := newSite(t, "bundles: bundles\nlisten: \"\"\nblocks: {expiry_slack: 1s}\nlog: {level: warn}\n"+more, lab)
	noting(t, s.dir)
	told := &ledger{blocked: map[string]string{}, brief: map[string]bool{}, ended: map[string]bool{}, unsure: map[string]bool{}}
	during := 0
	for range cycles {
		p := s.spawn()
		c := s.client()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { told.work(ctx, c) })
		}
		time.Sleep(50*time.Millisecond + time.Duration(random.Int64N(int64(2*time.Second)))) // the random moment
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = p.Wait()
		cancel()
		wg.Wait()
		if b, err := os.ReadFile(filepath.Join(lab.Root, "root", "runs.log")); err == nil && !strings.HasSuffix(string(b), " end\n") {
			during++
		}
	}

	p := s.spawn()
	c := s.client()
	last, want := time.Now(), map[string]string{} // live in the database: source → id
	var held []string
	eventually(t, "all is proved", func() bool {
		r, err := c.GetFirewallWithResponse(t.Context(), "fw-a")
		if err != nil || r.JSON200 == nil || r.JSON200.State != "proved" {
			return false
		}
		clear(want)
		for q := (&api.ListBlocksParams{Limit: new(1000)}); ; {
			l, err := c.ListBlocksWithResponse(t.Context(), q)
			if err != nil || l.JSON200 == nil {
				return false
			}
			for _, b := range l.JSON200.Items {
				want[b.Source] = b.ID
				if b.State != "enforced" {
					return false
				}
			}
			if q.Cursor = &l.JSON200.Next; *q.Cursor == "" {
				break
			}
		}
		running, err := c.ListRunsWithResponse(t.Context(), &api.ListRunsParams{State: new(api.RunStateRunning), Limit: new(1)})
		held = sources(lab)
		return err == nil && len(running.JSON200.Items) == 0 && time.Since(last) > 4*time.Second // those that end soon have ended
	})

	for source, id := range want {
		if _, ok := slices.BinarySearch(held, source); !ok {
			t.Errorf("%s (%s) is said to be enforced, and pf does not hold it", source, id)
		}
	}
	if len(held) != len(want) {
		t.Errorf("leaked: pf holds %d entries for %d live blocks", len(held), len(want))
	}
	for id, source := range told.blocked {
		_, lives := want[source]
		switch gone := told.ended[id] || told.brief[id]; {
		case told.unsure[id]: // either is right
		case gone && lives:
			t.Errorf("%s (%s) ended, by word or by time, and lives", source, id)
		case !gone && !lives:
			t.Errorf("lost: %s (%s) was acknowledged and is no live block", source, id)
		}
	}
	if did := verifyAudit(t, c); did[string(parry.ActStart)] != cycles+1 || did[string(parry.ActBlockAdd)] < len(told.blocked) {
		t.Errorf("the audit tells of %d starts of %d and of %d blocks of %d", did[string(parry.ActStart)], cycles+1, did[string(parry.ActBlockAdd)], len(told.blocked))
	}
	runs := overlaps(t, filepath.Join(lab.Root, "root", "runs.log"))
	for q := (&api.ListRunsParams{Limit: new(1000)}); ; {
		l, err := c.ListRunsWithResponse(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range l.JSON200.Items {
			if r.Failure == "busy" || r.State == "running" {
				t.Errorf("run %s: %s %s", r.ID, r.State, r.Failure)
			}
		}
		if q.Cursor = &l.JSON200.Next; *q.Cursor == "" {
			break
		}
	}
	t.Logf("%d blocks acknowledged, %d live; %d runs on the firewall; %d kills while one was on", len(told.blocked), len(want), runs, during)

	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("ended by SIGTERM: %v\n%s", err, p.log)
	}
}

// verifyAudit holds the chain against its head: it is whole, with a start for each process.
func verifyAudit(t *testing.T, c *api.ClientWithResponses) (actions map[string]int) {
	t.Helper()
	head, err := c.GetAuditHeadWithResponse(t.Context())
	if err != nil || head.JSON200 == nil {
		t.Fatalf("the head of the audit: %v", err)
	}
	r, err := c.ExportAudit(t.Context(), &api.ExportAuditParams{})
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("the audit: %v", err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	actions = map[string]int{}
	rep, err := audit.Verify(func(yield func(audit.Row, error) bool) {
		for line := range bytes.Lines(body) {
			var row audit.Row
			err := json.Unmarshal(line, &row)
			actions[row.Action]++
			if !yield(row, err) {
				return
			}
		}
	}, audit.Anchor{Seq: head.JSON200.Seq, Hash: head.JSON200.Hash})
	if err != nil || len(rep.Problems) > 0 {
		t.Errorf("the audit is not whole: %v, %v", rep.Problems, err)
	}
	return actions
}

// overlaps reads what runs noted on the firewall: one must not go on after another has begun.
func overlaps(t *testing.T, path string) (runs int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	current := ""
	for line := range strings.Lines(string(b)) {
		id, word, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case word == "begin":
			current = id
			runs++
		case id != current:
			t.Errorf("run %s went on after %s had begun", id, current)
		}
	}
	return runs
}
