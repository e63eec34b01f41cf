package ansible

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/testenv"
)

func (g *rig) warm(tb testing.TB) *master {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := g.Warm(ctx, g.host); err != nil {
		tb.Fatal(err)
	}
	g.masters.mu.Lock()
	defer g.masters.mu.Unlock()
	return g.masters.byName[g.host.Name]
}

func (m *master) pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc == nil {
		return 0
	}
	return m.proc.Pid
}

func TestWarm_runsShareItsConnection(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	m := g.warm(t)
	if len(m.path) >= 100 {
		t.Errorf("ControlPath %s is too long", m.path)
	}
	lock, err := g.LockLane("fw1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	for range 2 {
		s := g.spec(t, "")
		s.Lock = lock
		o := g.run(t, s)
		o.want(t, parry.RunSucceeded, "")
		if !o.Warm {
			t.Error("the run was not over the warm connection")
		}
	}
	if n := g.sshd.Connections(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.pid()))
	for _, l := range links {
		if to, _ := os.Readlink(l); strings.HasSuffix(to, ".lock") {
			t.Error("the master holds the lane's lock")
		}
	}
	g.CoolAll()
	until(t, 5*time.Second, "the connection is closed", func() bool { return g.sshd.Open() == 0 })
	o := g.run(t, g.spec(t, ""))
	o.want(t, parry.RunSucceeded, "")
	if o.Warm || g.sshd.Connections() != 2 {
		t.Errorf("cold: warm %v, %d connections", o.Warm, g.sshd.Connections())
	}
}

func TestWarm_restartsAndIsNeverNeeded(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	m := g.warm(t)
	g.sshd.Cut()
	until(t, 5*time.Second, "the loss is seen", func() bool { return !m.isReady() })
	g.run(t, g.spec(t, "")).want(t, parry.RunSucceeded, "")
	until(t, 10*time.Second, "it is back", m.isReady)
	// A socket that nobody serves any more, as a parry that was killed leaves it.
	pid := m.pid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stale := g.masters.dir + "/stale"
	if err := os.Rename(m.path, stale); err != nil {
		t.Fatal(err)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	_ = os.Rename(stale, m.path)
	g.run(t, g.spec(t, "")).want(t, parry.RunSucceeded, "")
}

func TestWarm_hungMasterDelaysARunToItsDeadlineOnly(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	m := g.warm(t)
	pid := m.pid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s := g.spec(t, "")
	s.Deadline = 4 * time.Second
	o := g.run(t, s)
	o.want(t, parry.RunUnknown, parry.FailTimeout)
	if o.Wall > s.Deadline+late {
		t.Errorf("it took %s", o.Wall)
	}
	until(t, 10*time.Second, "another master stands", func() bool { return m.isReady() && m.pid() != pid })
	g.run(t, g.spec(t, "")).want(t, parry.RunSucceeded, "")
}

func TestWarm_closesWhenKeyOrHostChanges(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.warm(t)
	other := filepath.Join(t.TempDir(), "other")
	testenv.Keygen(t, other)
	pub, err := os.ReadFile(other + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.sshd.KnownHosts, fmt.Appendf(nil, "[127.0.0.1]:%d %s", g.host.Port, pub), 0o600); err != nil {
		t.Fatal(err)
	}
	o := g.run(t, g.spec(t, ""))
	o.want(t, parry.RunFailed, parry.FailHostKey)
	until(t, 5*time.Second, "the old connection is closed", func() bool { return g.sshd.Open() == 0 })
	if err := g.Warm(t.Context(), g.host); err == nil || !strings.Contains(err.Error(), "Host key verification failed") {
		t.Errorf("got %v", err)
	}
	if err := g.Warm(t.Context(), g.host); err == nil {
		t.Error("the second call forgot the failure")
	}
}

// Firewalls lock out who knocks too often: after a refusal it is the runs' pause that counts, and no timer of the connection's own.
func TestWarm_aRefusedKeyIsNotTriedAgainBeforeARunGotIn(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	var timers atomic.Int32
	g.masters.after = func(time.Duration) <-chan time.Time {
		timers.Add(1)
		return nil
	}
	keys := g.sshd.KeyFile + ".pub" // whom the server lets in
	if err := os.Rename(keys, keys+".away"); err != nil {
		t.Fatal(err)
	}
	if err := g.Warm(t.Context(), g.host); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Fatalf("got %v", err)
	}
	g.run(t, g.spec(t, "")).want(t, parry.RunFailed, parry.FailAuthentication)
	if n := g.sshd.Connections(); n != 2 { // its own and the run's
		t.Errorf("%d connections, want 2", n)
	}
	if err := os.Rename(keys+".away", keys); err != nil {
		t.Fatal(err)
	}
	g.run(t, g.spec(t, "")).want(t, parry.RunSucceeded, "")
	g.masters.mu.Lock()
	m := g.masters.byName[g.host.Name]
	g.masters.mu.Unlock()
	until(t, 10*time.Second, "it stands", m.isReady)
	if n := timers.Load(); n != 0 {
		t.Errorf("it would have knocked again by itself %d times", n)
	}
}

// TestWarmHelper is no test: TestWarm_diesWithParry runs it as another process, and kills that.
func TestWarmHelper(t *testing.T) {
	args := strings.Fields(os.Getenv("PARRY_TEST_WARM"))
	if len(args) == 0 {
		t.Skip("runs as the child of another test")
	}
	r, err := New(Options{StateDir: args[0], KnownHosts: args[1]})
	if err != nil {
		t.Fatal(err)
	}
	var h Host
	if _, err := fmt.Sscan(args[2], &h.Port); err != nil {
		t.Fatal(err)
	}
	h.Name, h.KeyFile = "fw1", args[3]
	h.Addr = netipLoopback
	if err := r.Warm(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	select {}
}

var netipLoopback = netip.MustParseAddr("127.0.0.1")

func TestWarm_diesWithParry(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestWarmHelper$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("PARRY_TEST_WARM=%s %s %d %s", g.stateDir, g.knownHosts, g.host.Port, g.host.KeyFile))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	until(t, 20*time.Second, "it is connected", func() bool { return g.sshd.Open() == 1 })
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	until(t, 5*time.Second, "the master is gone", func() bool { return g.sshd.Open() == 0 })
	g.warm(t) // over the stale socket
}
