package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/cert"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
	"github.com/parry/parry/internal/store"
)

// ErrRunning says that another parry holds the state directory.
var ErrRunning = errors.New("another parry is running")

const lockName = "parry.lock"

// lockStateDir makes the state directory, for its owner alone, and takes it: the lock goes with the process, whatever ends that.
func lockStateDir(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep others out of the state directory: %w", err)
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		_ = f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the state directory: %w", err)
		}
		who := "its process is not known"
		if p := strings.TrimSpace(string(pid)); p != "" {
			who = "process " + p
		}
		return nil, fmt.Errorf("%w on %s (%s): stop it first, or give this one a state_dir of its own", ErrRunning, dir, who)
	}
	err = errors.Join(f.Truncate(0), func() error { _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); return err }())
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	// A child that is being forked when it ends has the file open, too, until it becomes another program.
	return func() error { return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close()) }, nil
}

// running tells which process holds the state directory, 0 for none.
func running(dir string) int {
	f, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return 0
	}
	defer f.Close() //nolint:errcheck // read only
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0
	}
	b, _ := io.ReadAll(io.LimitReader(f, 20))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return max(pid, 1)
}

func openStore(ctx context.Context, cfg *config.Config, now func() time.Time, log *slog.Logger) (*store.Store, error) {
	s, err := store.Open(ctx, store.Options{
		Driver: cfg.Database.Driver, Path: cfg.Database.Path, DSN: cfg.Database.DSN.Reveal(), QueueLen: cfg.Limits.Queue, Now: now, Logger: log,
		Subscriptions: subscriptions(cfg),
	})
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	return s, nil
}

func newRunner(cfg *config.Config, stateDir string, now func() time.Time, log *slog.Logger) (*ansible.Runner, error) {
	bin := cfg.Ansible.PlaybookBin
	if bin == "ansible-playbook" {
		bin = "" // on the runner's fixed PATH, whatever this process's is
	}
	r, err := ansible.New(ansible.Options{
		StateDir: stateDir, PlaybookBin: bin, Inventory: cfg.Ansible.Inventory, KnownHosts: cfg.Ansible.KnownHosts,
		KeyFile: cfg.Ansible.PrivateKeyFile, Deadline: cfg.Ansible.Deadline.D(), Grace: cfg.Ansible.Grace.D(), Now: now, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("ansible: %w", err)
	}
	return r, nil
}

func openCert(cfg *config.Config, now func() time.Time, log *slog.Logger) (*cert.Source, error) {
	if cfg.TLS.CertFile != "" {
		return cert.Files(cfg.TLS.CertFile, cfg.TLS.KeyFile, now, log)
	}
	return cert.Own(filepath.Join(cfg.StateDir, "tls"), cert.Names(cfg.Listen, cfg.TLS.Names), now, log)
}

// listenUnix makes the socket for its owner alone. It appears under its name only when its mode is right, and takes the place of one
// that nobody serves any more.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is there and is no socket: remove it, or set socket to another path", path)
		}
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("%w: it serves %s; set socket to another path", ErrRunning, path)
		}
	}
	tmp := path + ".new"
	_ = os.Remove(tmp)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the socket: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("listen on the socket: %w", err)
	}
	return &unixListener{ln, path}, nil
}

// unixListener removes its socket when it is closed.
type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		_ = os.Remove(l.path)
	}
	return err
}

func limits(cfg *config.Config) policy.Limits {
	b, p := cfg.Blocks, cfg.Escalation.Promote
	return policy.Limits{
		DefaultTTL: b.DefaultTTL.D(), MaxTTL: b.MaxTTL.D(), MinPrefixV4: b.MinPrefixV4, MinPrefixV6: b.MinPrefixV6, Ladder: cfg.Escalation.Rungs(),
		Promote: policy.Promote{Sources: p.Sources, Within: p.Within.D(), V4: p.V4, V6: p.V6},
	}
}

// runFiles opens what runs left in the state directory.
type runFiles struct {
	dir string
	app *App
}

func (f runFiles) open(r parry.Run, name string) (io.ReadCloser, error) {
	return os.OpenInRoot(filepath.Join(f.dir, "runs"), filepath.Join(string(r.ID), name))
}

func (f runFiles) Log(r parry.Run) (io.ReadCloser, error) { return f.open(r, "log.txt") }

// Command tells how to run the same again by hand, and how to see what that would change; nothing when its files or its bundle's copy are
// not on this host (any more).
func (f runFiles) Command(r parry.Run) (again, check string) {
	dir := filepath.Join(f.dir, "runs", string(r.ID))
	if _, err := os.Stat(filepath.Join(dir, "vars.json")); err != nil {
		return "", ""
	}
	b, err := f.app.library.Get(r.Bundle.Name, r.Bundle.Digest)
	if err != nil {
		return "", ""
	}
	again = ansible.ByHand(f.app.runner.Playbook(), dir, b.Dir, r.Kind, r.Revision, false)
	if r.Kind != parry.RunVerify && r.Kind != parry.RunCheck {
		check = ansible.ByHand(f.app.runner.Playbook(), dir, b.Dir, r.Kind, r.Revision, true)
	}
	return again, check
}

func (f runFiles) Events(r parry.Run) (io.ReadCloser, error) { return f.open(r, "events.jsonl") }
