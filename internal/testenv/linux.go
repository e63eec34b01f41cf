package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Linux is a running Linux router with nftables (lab/nftables), between an attacker and a server. Real packets go through it; each instance's
// networks are its own, so that the addresses below are the same in all.
type Linux struct {
	*Lab
	Attacker Side // 203.0.113.7, .8, .11 to .19 and .65, 192.0.2.66, 2001:db8:bad::7, ::8 and ::11 to ::15, 2001:db8:dead:1::5
	Server   Side // 198.18.0.80, 2001:db8:1::80
}

// patience bounds one try of a packet to get through and back: a fraction of a millisecond, but for the machine's other work.
const patience = time.Second

// StartLinux starts a Linux firewall that forwards everything, and ends it with the test.
func StartLinux(tb testing.TB, name string) *Linux {
	tb.Helper()
	l := &Linux{Lab: startLab(tb, "nftables", "root", name)}
	l.Attacker, l.Server = Side{l.Lab, "attacker.pid"}, Side{l.Lab, "server.pid"}
	return l
}

// Reboot starts the firewall anew: nftables, connections, /run and /tmp are empty but for what boot loads. The attacker and the server stay.
func (l *Linux) Reboot() { l.tb.Helper(); l.script("reboot", "--dir", l.dir) }

// Reload does what systemctl reload nftables does, which flushes every table.
func (l *Linux) Reload() { l.tb.Helper(); l.script("reboot", "--dir", l.dir, "--reload") }

// Console runs a command on the firewall, not by ssh: also while its sshd hangs.
func (l *Linux) Console(cmd string) string {
	l.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), labPatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "bash", "-c", `. "$1/lib.sh" && lab_in "$2" sh -c "$3"`, filepath.Join(l.scripts, "console"), l.scripts, l.dir, cmd).CombinedOutput()
	if err != nil {
		l.tb.Fatalf("on lab %s: %s: %v: %s", l.Name, cmd, err, out)
	}
	return string(out)
}

// Echo has the server send back what comes over TCP and UDP to the port, over IPv4 and IPv6, until the test ends.
func (l *Linux) Echo(port int) {
	l.tb.Helper()
	addr := net.JoinHostPort("::", strconv.Itoa(port))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []io.Closer // connections too: each has a goroutine
	l.tb.Cleanup(func() {
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	err := l.Server.do(func() error {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			return errors.Join(err, ln.Close())
		}
		open = append(open, ln, udp)
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				mu.Lock()
				open = append(open, c)
				mu.Unlock()
				wg.Go(func() {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				})
			}
		})
		wg.Go(func() {
			b := make([]byte, 1500)
			for {
				n, from, err := udp.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = udp.WriteTo(b[:n], from)
			}
		})
		return nil
	})
	if err != nil {
		l.tb.Fatalf("echo on port %d of lab %s: %v", port, l.Name, err)
	}
}

// Ping asks the server from one of the attacker's addresses; nil when it answers in time. Like Say it may be called from any goroutine.
func (l *Linux) Ping(from, to string) error {
	ctx, cancel := context.WithTimeout(context.Background(), labPatience)
	defer cancel()
	path, err := l.Attacker.path()
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "nsenter", "--net="+path, "ping", "-n", "-c", "1", "-W", "1", "-I", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ping from %s to %s: %w: %s", from, to, err, out)
	}
	return nil
}

// Say sends a word over "tcp" or "udp" from one of the attacker's addresses to an echo and waits for its return; nil when it comes back in time.
func (l *Linux) Say(network, from, to string) error {
	c, err := l.Attacker.Dial(network, from, to)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return Said(c, "hello")
}

// Said tells whether a word comes back over a connection to an echo; nil when it does in time.
func Said(c net.Conn, word string) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, word); err != nil {
		return err
	}
	b := make([]byte, len(word))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != word {
		return fmt.Errorf("%q came back for %q", b, word)
	}
	return nil
}

// Side is a network beside the firewall. The test itself can take part in it.
type Side struct {
	lab  *Lab
	file string // names the process that holds the network
}

// Dial connects from an address of this side; network is tcp or udp. What it returns can be used anywhere.
func (s Side) Dial(network, from, to string) (c net.Conn, err error) {
	ip := net.IP(netip.MustParseAddr(from).AsSlice())
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: ip}}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: ip}
	}
	err = s.do(func() (err error) {
		c, err = d.Dial(network, to)
		return err
	})
	return c, err
}

func (s Side) path() (string, error) {
	b, err := os.ReadFile(filepath.Join(s.lab.dir, s.file))
	pid, _, _ := strings.Cut(string(b), " ")
	return "/proc/" + pid + "/ns/net", err
}

// The process's first thread is what /proc/net of all others shows: nothing but main may run on it, so that do never takes it elsewhere.
func init() { runtime.LockOSThread() }

// do runs f on a thread that is in this network. A socket stays in the network that it was made in.
func (s Side) do(f func() error) error {
	path, err := s.path()
	if err != nil {
		return err
	}
	there, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = there.Close() }()
	runtime.LockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() { _ = here.Close() }()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network: %w", err)
	}
	err = f()
	if back := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread stays locked and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}
