// Package testenv starts the real things that tests need: lab firewalls behind a real sshd.
//
// Everything is owned by the test that asked for it: it listens on a port of its own on loopback, keeps its files in the test's temporary
// directory and is gone when the test ends. Labs need root (mount and pid namespaces); without it the test is skipped.
package testenv

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// labPatience bounds every call of a lab script; starting one takes well under a second.
const labPatience = 30 * time.Second

// LabOptions say what firewall to start. The zero value is usable.
type LabOptions struct {
	Name    string // host name, and the name in an inventory; "fw" when empty
	Version string // of pfSense: "2.7.2" (when empty), "2.8" or "2.9"
}

// Lab is a running firewall: a stand-in for pfSense (lab/pfsense), or what [Linux] has of one. Its methods fail the test on error and may be
// called from the test's goroutine only.
type Lab struct {
	Name       string
	Bundle     string     // the playbook bundle for its kind
	Addr       netip.Addr // always loopback
	Port       int
	User       string // uid 0: "admin" behind pfSense's console shell, "root"
	KeyFile    string // private key that User logs in with
	KnownHosts string // file that pins the host key
	Root       string // the firewall's file system as the host sees it, also while it is stopped

	tb      testing.TB
	dir     string
	scripts string
	more    []string // further options of up
}

// StartLab starts a pfSense with a fresh configuration and ends it with the test.
func StartLab(tb testing.TB, o LabOptions) *Lab {
	tb.Helper()
	if o.Version == "" {
		o.Version = "2.7.2"
	}
	return startLab(tb, "pfsense", "admin", o.Name, "--version", o.Version)
}

func startLab(tb testing.TB, kind, user, name string, more ...string) *Lab {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("a lab firewall needs root")
	}
	if name == "" {
		name = "fw"
	}
	_, here, _, _ := runtime.Caller(0)
	dir := tb.TempDir()
	l := &Lab{
		Name:       name,
		Bundle:     kind,
		Addr:       netip.AddrFrom4([4]byte{127, 0, 0, 1}),
		User:       user,
		KeyFile:    filepath.Join(dir, "id_ed25519"),
		KnownHosts: filepath.Join(dir, "known_hosts"),
		Root:       filepath.Join(dir, "root"),
		tb:         tb,
		dir:        dir,
		scripts:    filepath.Join(filepath.Dir(here), "..", "..", "lab", kind),
		more:       more,
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			if log, err := os.ReadFile(filepath.Join(dir, "sshd.log")); err == nil {
				tb.Logf("sshd of %s:\n%s", l.Name, log)
			}
		}
		l.script("down", "--dir", dir, "--purge")
	})
	// The port is free when it is chosen; should another process take it first, the start fails loudly and a new one is tried.
	var out string
	for range 5 {
		l.Port = freePort(tb)
		var err error
		if out, err = l.run("up", l.upArgs()...); err == nil {
			return l
		}
		if !strings.Contains(out, "Address already in use") {
			break
		}
	}
	tb.Fatalf("start lab %s: %s", l.Name, out)
	return nil
}

// Stop takes the firewall off the network, and everything that runs on it with it. Its configuration, tables and rules stay.
func (l *Lab) Stop() { l.tb.Helper(); l.script("down", "--dir", l.dir) }

// Start brings a stopped firewall back on the same port, as it was.
func (l *Lab) Start() {
	l.tb.Helper()
	l.script("up", l.upArgs()...)
}

// upArgs name this process as the owner, so that a test binary that is killed leaves no firewall behind.
func (l *Lab) upArgs() []string {
	return append([]string{"--dir", l.dir, "--name", l.Name, "--port", strconv.Itoa(l.Port), "--owner", strconv.Itoa(os.Getpid())}, l.more...)
}

// Reboot starts the firewall anew: pf is empty but for what config.xml says; with ramDisk the table files are gone too.
func (l *Lab) Reboot(ramDisk bool) {
	l.tb.Helper()
	args := []string{"--dir", l.dir}
	if ramDisk {
		args = append(args, "--ram-disk")
	}
	l.script("reboot", args...)
}

// Fault breaks the firewall until Fault("off"): "pf-refuse", "slow" SECONDS, "hang", the last two with "login" (default) or "pf" as the place.
func (l *Lab) Fault(kind string, arg ...string) {
	l.tb.Helper()
	l.script("fault", append([]string{"--dir", l.dir, kind}, arg...)...)
}

// GUISave plays an admin who saves a page in the web interface; see lab/pfsense/gui-save for what.
func (l *Lab) GUISave(what ...string) {
	l.tb.Helper()
	l.script("gui-save", append([]string{"--dir", l.dir}, what...)...)
}

// SyncTo plays the configuration sync of an HA pair: l's rules and aliases replace the secondary's, files stay behind.
func (l *Lab) SyncTo(secondary *Lab) {
	l.tb.Helper()
	l.script("ha-sync", l.dir, secondary.dir)
}

// AddState puts a connection into the firewall's state table; ports are "-" for a protocol that has none.
func (l *Lab) AddState(iface, proto, src, sport, dst, dport string) {
	l.tb.Helper()
	l.script("state", "--dir", l.dir, "add", iface, proto, src, sport, dst, dport)
}

// SSH runs a command on the firewall as User and returns its standard output.
func (l *Lab) SSH(cmd string) string {
	l.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), labPatience)
	defer cancel()
	var stderr strings.Builder
	c := exec.CommandContext(ctx, filepath.Join(l.scripts, "ssh"), "--dir", l.dir, cmd)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		l.tb.Fatalf("on lab %s: %s: %v: %s", l.Name, cmd, err, stderr.String())
	}
	return string(out)
}

// Config is the firewall's config.xml.
func (l *Lab) Config() string {
	l.tb.Helper()
	return l.file("cf/conf/config.xml")
}

// Rules is the ruleset that pf has loaded, one rule a line as pfctl -sr prints it with ports as numbers.
func (l *Lab) Rules() string {
	l.tb.Helper()
	return l.file(".lab/pf/rules")
}

// Tables are pf's loaded tables: name to entries, in pf's order.
func (l *Lab) Tables() map[string][]string {
	l.tb.Helper()
	lock, err := os.OpenFile(filepath.Join(l.Root, ".lab/pf/lock"), os.O_CREATE|os.O_RDONLY, 0o644) // pfctl's
	if err != nil {
		l.tb.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH); err != nil {
		l.tb.Fatal(err)
	}
	tables := make(map[string][]string)
	for line := range strings.Lines(l.file(".lab/pf/index")) {
		name, _, _ := strings.Cut(line, " ")
		tables[name] = strings.Fields(l.file(filepath.Join(".lab/pf/tables", name)))
	}
	return tables
}

func (l *Lab) file(name string) string {
	l.tb.Helper()
	b, err := os.ReadFile(filepath.Join(l.Root, name))
	if err != nil {
		l.tb.Fatalf("lab %s: %v", l.Name, err)
	}
	return string(b)
}

func (l *Lab) script(name string, args ...string) {
	l.tb.Helper()
	if out, err := l.run(name, args...); err != nil {
		l.tb.Fatalf("lab %s: %s %s: %v: %s", l.Name, name, strings.Join(args, " "), err, out)
	}
}

func (l *Lab) run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), labPatience)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(l.scripts, name), args...)
	c.WaitDelay = time.Second
	out, err := c.CombinedOutput()
	return string(out), err
}

func freePort(tb testing.TB) int {
	tb.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("find a free port: %v", err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}
