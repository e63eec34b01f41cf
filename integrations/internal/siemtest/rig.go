// Package siemtest drives the triggers as their SIEMs do and looks at what parry made of it.
//
// A [Rig] is a SIEM's host: one script under one shell, its configuration, its spool and its syslog. What it talks to is either a [Stub], which
// can be in any mood, or the real parry ([Rig.Service]), one for all tests of a package. [Suite] holds what every trigger must do.
package siemtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Rig is a SIEM's host with a trigger. It embeds its test.
type Rig struct {
	*testing.T
	Shell  string   // that runs the script
	Script string   // its path
	Dir    string   // everything else lies in it
	Spool  string   // made by the first call
	Conf   string   // the configuration
	Env    []string // beside the configuration's path

	n      int // makes its addresses its own
	url    string
	syslog *net.UnixConn

	mu    sync.Mutex
	lines []string // of syslog
}

var rigs atomic.Int32

// InEachShell runs the specification under the shells that these hosts have as /bin/sh, and bash.
func InEachShell(t *testing.T, script string, spec func(r *Rig)) {
	t.Helper()
	t.Parallel()
	for _, shell := range []string{"dash", "bash"} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			spec(newRig(t, shell, script))
		})
	}
}

func newRig(t *testing.T, shell, script string) *Rig {
	t.Helper()
	script, err := filepath.Abs(script)
	if err != nil {
		t.Fatal(err)
	}
	shell, err = exec.LookPath(shell)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "siem") // a short path: a socket lies in it
	if err != nil {
		t.Fatal(err)
	}
	r := &Rig{T: t, Shell: shell, Script: script, Dir: dir, Spool: dir + "/spool", Conf: dir + "/conf", n: int(rigs.Add(1))}
	r.syslog, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/log", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	go r.listen()
	t.Cleanup(func() {
		r.Idle()
		_ = r.syslog.Close()
		_ = os.RemoveAll(dir)
	})
	return r
}

// Address is the i-th IPv4 address that no other rig of the test's process uses; i is at most 255.
func (r *Rig) Address(i int) string { return fmt.Sprintf("45.%d.%d.%d", r.n/256, r.n%256, i) }

// Address6 is the same for IPv6, in a /64 of its own.
func (r *Rig) Address6(i int) string { return fmt.Sprintf("2001:db8:%x:%x::7", r.n, i) }

// Write makes or replaces a file in Dir.
func (r *Rig) Write(name, content string) {
	r.Helper()
	if err := os.WriteFile(filepath.Join(r.Dir, name), []byte(content), 0o600); err != nil {
		r.Fatal(err)
	}
}

// Install copies the script, as its README says; one that is there already may be running and is replaced as a whole.
func (r *Rig) Install(path string) {
	r.Helper()
	raw, err := os.ReadFile(r.Script)
	if err != nil {
		r.Fatal(err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "new")
	if err != nil {
		r.Fatal(err)
	}
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Chmod(0o755), f.Close(), os.Rename(f.Name(), path)); err != nil {
		r.Fatal(err)
	}
}

// Configure writes the configuration; what more says comes last and wins.
func (r *Rig) Configure(more string) {
	r.Helper()
	r.Write("conf", fmt.Sprintf("# a comment\n\n\t url =\t%s/ \t\ntoken_file=%s/token\nca_file=%[2]s/ca.pem\nspool=%s\nsyslog_socket=%[2]s/log\n%[4]s",
		r.url, r.Dir, r.Spool, more))
}

// Command is the script under the rig's shell, with cwd / and nothing on stdin.
func (r *Rig) Command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), r.Shell, append([]string{r.Script}, args...)...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PARRY_CONF=" + r.Conf}, r.Env...)
	return cmd
}

// Run calls the script and returns its exit status and what it said.
func (r *Rig) Run(args ...string) (int, string) {
	r.Helper()
	cmd := r.Command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return r.Status(cmd.Run()), out.String()
}

// Status is the exit status of a command that ended with err.
func (r *Rig) Status(err error) int {
	r.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.Fatal(err)
	}
	if exit != nil {
		return exit.ExitCode()
	}
	return 0
}

// MustRun wants the status 0.
func (r *Rig) MustRun(args ...string) {
	r.Helper()
	if status, out := r.Run(args...); status != 0 {
		r.Fatalf("%s %q: status %d, %s", filepath.Base(r.Script), args, status, out)
	}
}

// Until polls for what a background sender does.
func (r *Rig) Until(what string, met func() bool) {
	r.Helper()
	for end := time.Now().Add(30 * time.Second); !met(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("not within 30 s: %s (waiting %v, refused %v, log %q)", what, r.Files("queue"), r.Files("refused"), r.Log())
		}
	}
}

// Idle waits until no sender is at work.
func (r *Rig) Idle() {
	r.Helper()
	r.Until("the sender ends", func() bool {
		f, err := os.Open(r.Spool + "/sending.lock")
		if err != nil {
			return true
		}
		defer f.Close()
		return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
	})
}

// Sent waits until the spool is empty, and replays it each second as its timer would each minute: a sender gives up where the machine is so
// busy that parry's handshake takes seconds.
func (r *Rig) Sent() {
	r.Helper()
	next := time.Now().Add(time.Second)
	r.Until("the spool is empty", func() bool {
		if len(r.Files("queue")) > 0 && time.Now().After(next) {
			r.Run("--replay")
			next = time.Now().Add(time.Second)
		}
		return len(r.Files("queue")) == 0
	})
	r.Idle()
}

// Files lists a directory of the spool: queue, refused, seen or tmp.
func (r *Rig) Files(dir string) []string {
	entries, _ := os.ReadDir(filepath.Join(r.Spool, dir))
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (r *Rig) listen() {
	buf := make([]byte, 4096)
	for {
		n, err := r.syslog.Read(buf)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.lines = append(r.lines, string(buf[:n]))
		r.mu.Unlock()
	}
}

// Log takes every line that reached syslog since the last call.
func (r *Rig) Log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := r.lines
	r.lines = nil
	return lines
}

// WantLog wants exactly one line with all parts, of those that reached syslog since the last call.
func (r *Rig) WantLog(parts ...string) {
	r.Helper()
	var lines []string
	matching := func() (n int) {
		lines = append(lines, r.Log()...)
		for _, l := range lines {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(l, p) }) {
				n++
			}
		}
		return n
	}
	defer func() {
		if r.Failed() {
			r.Logf("syslog: %q", lines)
		}
	}()
	r.Until(fmt.Sprintf("a line in syslog with %q", parts), func() bool { return matching() > 0 })
	if n := matching(); n != 1 {
		r.Errorf("want one line in syslog with %q, got %d in %q", parts, n, lines)
	}
}
