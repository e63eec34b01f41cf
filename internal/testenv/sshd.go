package testenv

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// SSHD is a real OpenSSH server on a loopback port, with a host key and a client key of its own. It runs commands as the user that runs
// the test. Each connection is an sshd of its own, so that connections can be counted, frozen and cut.
type SSHD struct {
	Addr       netip.Addr
	Port       int
	User       string
	KeyFile    string // the client's private key, let in
	KnownHosts string // pins the host key
	Dir        string // its files
	Log        string // sshd's own log

	tb     testing.TB
	config string
	wg     sync.WaitGroup
	mu     sync.Mutex
	ln     net.Listener
	live   map[int]bool // process groups
	count  int
}

// StartSSHD starts a server, and ends it and what it runs when the test ends.
func StartSSHD(tb testing.TB) *SSHD {
	tb.Helper()
	u, err := user.Current()
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "parry-sshd-")
	if err != nil {
		tb.Fatal(err)
	}
	s := &SSHD{
		Addr: netip.MustParseAddr("127.0.0.1"), User: u.Username, Dir: dir, tb: tb, live: map[int]bool{},
		KeyFile: filepath.Join(dir, "id_ed25519"), KnownHosts: filepath.Join(dir, "known_hosts"),
		Log: filepath.Join(dir, "sshd.log"), config: filepath.Join(dir, "sshd_config"),
	}
	tb.Cleanup(func() {
		s.Stop()
		_ = os.RemoveAll(dir)
	})
	if os.Getuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd's own chroot for its unprivileged half
			tb.Fatal(err)
		}
	}
	host := filepath.Join(dir, "hostkey")
	Keygen(tb, host)
	Keygen(tb, s.KeyFile)
	s.write(s.config, fmt.Sprintf(`HostKey %s
AuthorizedKeysFile %s.pub
StrictModes no
KexAlgorithms curve25519-sha256
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
UseDNS no
Subsystem sftp internal-sftp
MaxSessions 100
SetEnv %s
`, host, s.KeyFile, s.marker()))
	s.listen(0)
	s.Port = s.ln.Addr().(*net.TCPAddr).Port
	pub, err := os.ReadFile(host + ".pub")
	if err != nil {
		tb.Fatal(err)
	}
	s.write(s.KnownHosts, fmt.Sprintf("[%s]:%d %s", s.Addr, s.Port, pub))
	return s
}

// Keygen makes an ed25519 key pair at path and path.pub.
func Keygen(tb testing.TB, path string) {
	tb.Helper()
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path).CombinedOutput(); err != nil {
		tb.Fatalf("ssh-keygen: %v: %s", err, out)
	}
}

func (s *SSHD) write(path, text string) {
	s.tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.tb.Fatal(err)
	}
}

// marker is in the environment of every command that the server runs.
func (s *SSHD) marker() string { return "PARRY_SSHD=" + s.Dir }

// Start listens again, on the same port, after Stop.
func (s *SSHD) Start() {
	s.tb.Helper()
	s.listen(s.Port)
}

func (s *SSHD) listen(port int) {
	s.tb.Helper()
	ln, err := Listen(netip.AddrPortFrom(s.Addr, uint16(port)).String())
	if err != nil {
		s.tb.Fatal(err)
	}
	s.mu.Lock()
	s.ln = ln
	s.mu.Unlock()
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.serve(c.(*net.TCPConn))
		}
	})
}

func (s *SSHD) serve(c *net.TCPConn) {
	defer func() { _ = c.Close() }()
	f, err := c.File()
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	cmd := exec.Command("/usr/sbin/sshd", "-i", "-f", s.config, "-E", s.Log)
	cmd.Stdin, cmd.Stdout = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	if err := cmd.Start(); err != nil {
		s.tb.Logf("sshd: %v", err)
		return
	}
	s.live[cmd.Process.Pid] = true
	s.wg.Go(func() {
		_ = cmd.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.live, cmd.Process.Pid)
	})
}

// Connections counts those accepted so far.
func (s *SSHD) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Open counts those that stand.
func (s *SSHD) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// Freeze stops the server's side of every connection, so that the peer looks dead while its kernel answers. Cut ends it.
func (s *SSHD) Freeze() { s.signal(syscall.SIGSTOP) }

// Cut ends every connection.
func (s *SSHD) Cut() { s.signal(syscall.SIGKILL) }

func (s *SSHD) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid := range s.live {
		_ = syscall.Kill(-pid, sig)
	}
}

// Stop stops listening and ends every connection and command.
func (s *SSHD) Stop() {
	s.mu.Lock()
	_ = s.ln.Close()
	s.mu.Unlock()
	s.Cut()
	s.wg.Wait()
	for range 10 {
		if s.Kill() == 0 {
			return
		}
	}
}

// Running lists the commands that the server started and that still run.
func (s *SSHD) Running() []int {
	paths, _ := filepath.Glob("/proc/[0-9]*/environ")
	var pids []int
	for _, p := range paths {
		env, _ := os.ReadFile(p)
		if pid := 0; strings.Contains(string(env), s.marker()+"\x00") {
			if _, err := fmt.Sscanf(p, "/proc/%d/", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// Kill ends the commands that the server started and that still run, and counts them.
func (s *SSHD) Kill() int {
	pids := s.Running()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return len(pids)
}
