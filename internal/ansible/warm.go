package ansible

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/parry/parry/internal/parry"
)

const (
	warmFirst  = time.Second      // the first wait before a master is started again
	warmLast   = time.Minute      // the longest
	warmStable = 30 * time.Second // a master that lived so long starts again at warmFirst
	maxSocket  = 85               // bytes of a ControlPath: ssh adds 17, and a socket's path has at most 107
)

// masters are the warm ssh masters, one per firewall: children of parry that keep a connection open, so that a run need not make one.
// Nothing depends on them: ssh without one connects by itself. They die with parry (PDEATHSIG), and inherit no lane's lock.
type masters struct {
	r      *Runner
	dir    string
	tmp    bool // dir is a temporary one
	after  func(time.Duration) <-chan time.Time
	mu     sync.Mutex
	closed bool
	byName map[string]*master
}

type master struct {
	host   Host
	digest string // of the host, its key file and the pinned host keys
	path   string // of the control socket
	args   []string
	cancel context.CancelFunc
	done   chan struct{}
	kick   chan struct{} // a run got in: start again now

	mu    sync.Mutex
	ready bool
	err   error // why the newest attempt failed
	tried chan struct{}
	proc  *os.Process
}

func (ms *masters) init(r *Runner) error {
	ms.r, ms.byName, ms.after = r, map[string]*master{}, time.After
	ms.dir = filepath.Join(r.stateDir, "ssh")
	if len(ms.dir)+len("/0123456789abcdef") > maxSocket {
		dir, err := os.MkdirTemp("", "parry-ssh-")
		if err != nil {
			return fmt.Errorf("directory for ssh sockets: %w", err)
		}
		ms.dir, ms.tmp = dir, true
	}
	if err := os.MkdirAll(ms.dir, 0o700); err != nil {
		return fmt.Errorf("directory for ssh sockets: %w", err)
	}
	return nil
}

// digest is the hex SHA-256 over JSON of the values.
func digest(v ...any) string {
	b, _ := json.Marshal(v)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// key changes when a master of before must no longer be used: an open connection ignores that a key was changed or a host key unpinned.
func (ms *masters) key(h Host) string {
	stat := func(path string) string {
		info, err := os.Stat(path)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(info.Size(), info.ModTime().UnixNano(), info.Sys().(*syscall.Stat_t).Ino)
	}
	return digest(h.Digest(), stat(h.KeyFile), stat(ms.r.knownHosts))
}

// Warm keeps an ssh connection to the host open from now on, and returns when it stands, when the first attempt failed, or at ctx's end.
// Called again it is cheap: it looks whether the host changed. Runs work without it, slower.
func (r *Runner) Warm(ctx context.Context, h Host) error {
	if err := h.check(); err != nil {
		return fmt.Errorf("warm ssh: %w", err)
	}
	if h.KeyFile == "" {
		h.KeyFile = r.keyFile
	}
	m, err := r.masters.ensure(h)
	if err != nil {
		return fmt.Errorf("warm ssh to %s: %w", h.Name, err)
	}
	m.mu.Lock()
	tried := m.tried
	m.mu.Unlock()
	select {
	case <-tried:
	case <-ctx.Done():
		return fmt.Errorf("warm ssh to %s: %w", h.Name, ctx.Err())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ready && m.err != nil {
		return fmt.Errorf("warm ssh to %s: %w", h.Name, m.err)
	}
	return nil
}

// Cool closes a host's warm connection.
func (r *Runner) Cool(name string) {
	r.masters.mu.Lock()
	m := r.masters.byName[name]
	delete(r.masters.byName, name)
	r.masters.mu.Unlock()
	if m != nil {
		m.stop()
	}
}

// CoolAll closes every warm connection.
func (r *Runner) CoolAll() {
	r.masters.mu.Lock()
	old := r.masters.byName
	r.masters.byName = map[string]*master{}
	r.masters.mu.Unlock()
	for _, m := range old {
		m.cancel()
	}
	for _, m := range old {
		m.stop()
	}
}

func (ms *masters) close() error {
	ms.mu.Lock()
	ms.closed = true
	ms.mu.Unlock()
	ms.r.CoolAll()
	if ms.tmp {
		return os.RemoveAll(ms.dir)
	}
	return nil
}

// ensure returns the host's master, a new one when there was none or the host changed.
func (ms *masters) ensure(h Host) (*master, error) {
	key := ms.key(h)
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.closed {
		return nil, errors.New("the runner is closed")
	}
	if m := ms.byName[h.Name]; m != nil {
		if m.digest == key {
			return m, nil
		}
		m.stop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &master{
		host: h, digest: key, cancel: cancel,
		path: filepath.Join(ms.dir, digest(h.Name)[:16]),
		done: make(chan struct{}), kick: make(chan struct{}, 1), tried: make(chan struct{}),
	}
	m.args = append(ms.r.sshOptions("ControlMaster=yes", "ControlPath="+m.path, "ControlPersist=no"), "-N", "-p", fmt.Sprint(h.Port))
	if h.User != "" {
		m.args = append(m.args, "-l", h.User)
	}
	if h.KeyFile != "" {
		m.args = append(m.args, "-i", h.KeyFile)
	}
	m.args = append(m.args, "--", h.Addr.String())
	ms.byName[h.Name] = m
	go m.run(ctx, ms.r)
	return m, nil
}

// control gives the ssh options of a run to the host, and whether they use a master that stands. One of before the host changed is closed.
func (ms *masters) control(h Host) (opts []string, warm bool) {
	ms.mu.Lock()
	m := ms.byName[h.Name]
	ms.mu.Unlock()
	if m != nil && m.digest != ms.key(h) {
		ms.r.Cool(h.Name)
		m = nil
	}
	if m == nil || !m.isReady() {
		return []string{"ControlMaster=no", "ControlPath=none"}, false
	}
	return []string{"ControlMaster=no", "ControlPath=" + m.path}, true
}

// learn takes from a run whether the master is any good: one that runs hang on is replaced, one that is waiting after a refusal is woken.
func (ms *masters) learn(name string, o *Outcome) {
	ms.mu.Lock()
	m := ms.byName[name]
	ms.mu.Unlock()
	if m == nil {
		return
	}
	switch {
	case o.Warm && (o.Failure == parry.FailTimeout || o.Failure == parry.FailUnreachable):
		m.end(syscall.SIGKILL)
	case o.State == parry.RunSucceeded && !m.isReady():
		select {
		case m.kick <- struct{}{}:
		default:
		}
	}
}

func (m *master) isReady() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ready
}

func (m *master) stop() {
	m.cancel()
	<-m.done
}

func (m *master) end(sig syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready = false
	if m.proc != nil {
		_ = m.proc.Signal(sig)
	}
}

// run keeps the master up until ctx ends. A key or host that is refused is not tried again before a run got in: firewalls lock out who knocks
// too often, and how often a run may is configured. PDEATHSIG is sent when the thread that started the child ends, so it stays on one thread.
func (m *master) run(ctx context.Context, r *Runner) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(m.done)
	wait := warmFirst
	for {
		select {
		case <-m.kick: // of a run before this attempt
		default:
		}
		began := time.Now()
		err := m.once(ctx, r)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > warmStable {
			wait = warmFirst
		}
		var again <-chan time.Time
		if msg := err.Error(); !hostKeyRE.MatchString(msg) && !authRE.MatchString(msg) {
			again = r.masters.after(wait/2 + rand.N(wait/2+1))
		}
		r.log.Debug("warm ssh connection is down", "firewall", m.host.Name, "err", err, "refused", again == nil)
		wait = min(2*wait, warmLast)
		select {
		case <-ctx.Done():
		case <-m.kick:
		case <-again:
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// once starts ssh and returns when it ended, with why.
func (m *master) once(ctx context.Context, r *Runner) error {
	_ = os.Remove(m.path) // of a parry that was killed
	cmd := exec.Command(r.ssh, m.args...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + fixedPath, "LANG=C.UTF-8", "HOME=" + r.home}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	stderr := newCappedLog(io.Discard, 0)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		m.attempted(false, err)
		return err
	}
	m.mu.Lock()
	m.proc = cmd.Process
	m.mu.Unlock()
	var ended error
	exited := make(chan struct{})
	go func() {
		ended = cmd.Wait()
		close(exited)
	}()
	defer func() { _ = os.Remove(m.path) }()

	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	ready := poll.C
	for {
		select {
		case <-ready: // ssh makes the socket once it is let in
			if info, err := os.Lstat(m.path); err == nil && info.Mode()&os.ModeSocket != 0 {
				ready = nil
				m.attempted(true, nil)
			}
		case <-ctx.Done():
			_ = cmd.Process.Signal(syscall.SIGTERM)
			timer := time.NewTimer(500 * time.Millisecond)
			defer timer.Stop()
			select {
			case <-exited:
			case <-timer.C:
				_ = cmd.Process.Kill()
				<-exited
			}
			m.attempted(false, ctx.Err())
			return ctx.Err()
		case <-exited:
			err := ended
			if s := strings.TrimSpace(string(stderr.last(1 << 10))); s != "" {
				err = fmt.Errorf("%s", strings.ToValidUTF8(s, "�"))
			} else if err == nil {
				err = errors.New("ssh ended")
			}
			m.attempted(false, err)
			return err
		}
	}
}

// attempted notes what the newest attempt came to.
func (m *master) attempted(ready bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready, m.err = ready, err
	if !ready {
		m.proc = nil
	}
	select {
	case <-m.tried:
	default:
		close(m.tried)
	}
}
