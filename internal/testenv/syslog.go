package testenv

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Syslog is a real syslog receiver: udp, tcp and tls on a free port of loopback, unix on a datagram socket in a directory of the test. Over
// tcp and tls it takes octet counting (RFC 6587, 3.4.1), and lines (3.4.2) that begin with their priority. Its methods may be called from any goroutine.
type Syslog struct {
	Addr   string // host:port, or the socket's path
	CAFile string // trusts its certificate; of tls only

	mu    sync.Mutex
	lines []string
	bad   []string
	conns map[net.Conn]bool
	dials int
	news  chan struct{} // closed and made anew with each line
	wg    sync.WaitGroup
	close func()
}

// StartSyslog starts a receiver that ends with the test. addr is empty but to come back where one has been.
func StartSyslog(tb testing.TB, network, addr string) *Syslog {
	tb.Helper()
	s := &Syslog{conns: map[net.Conn]bool{}, news: make(chan struct{})}
	var err error
	if addr == "" && network != "unix" {
		addr = "127.0.0.1:0"
	}
	switch network {
	case "unix", "udp":
		err = s.packets(tb, network, addr)
	case "tcp", "tls":
		err = s.streams(tb, network, addr)
	default:
		err = fmt.Errorf("network %q", network)
	}
	if err != nil {
		tb.Fatalf("start a syslog receiver: %v", err)
	}
	tb.Cleanup(s.Close)
	return s
}

func (s *Syslog) packets(tb testing.TB, network, addr string) error {
	if network == "unix" {
		network = "unixgram"
		if addr == "" {
			dir, err := os.MkdirTemp("", "log") // a socket's path must be short
			if err != nil {
				return err
			}
			tb.Cleanup(func() { _ = os.RemoveAll(dir) })
			addr = filepath.Join(dir, "log")
		}
	}
	c, err := net.ListenPacket(network, addr)
	if err != nil {
		return err
	}
	s.Addr, s.close = c.LocalAddr().String(), func() { _ = c.Close() }
	s.wg.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			s.take(string(b[:n]))
		}
	})
	return nil
}

func (s *Syslog) streams(tb testing.TB, network, addr string) error {
	l, err := Listen(addr)
	if err != nil {
		return err
	}
	s.Addr = l.Addr().String()
	if network == "tls" {
		cert, ca, err := selfSigned()
		if err != nil {
			return err
		}
		s.CAFile = filepath.Join(tb.TempDir(), "ca.pem")
		if err := os.WriteFile(s.CAFile, ca, 0o600); err != nil {
			return err
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	}
	s.close = func() { _ = l.Close() }
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = true
			s.dials++
			s.mu.Unlock()
			s.wg.Go(func() { s.stream(c) })
		}
	})
	return nil
}

func (s *Syslog) stream(c net.Conn) {
	defer func() {
		_ = c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	r := bufio.NewReader(c)
	for {
		if b, err := r.Peek(1); err == nil && b[0] == '<' {
			line, err := r.ReadString('\n')
			if err != nil {
				s.fault(fmt.Sprintf("a line without end: %q", line))
				return
			}
			s.take(strings.TrimSuffix(line, "\n"))
			continue
		}
		count, err := r.ReadString(' ')
		if err != nil {
			if count != "" {
				s.fault(fmt.Sprintf("no frame: %q", count))
			}
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(count, " "))
		if err != nil || n <= 0 || n > 64<<10 || count[0] == '0' {
			s.fault(fmt.Sprintf("no octet count: %q", count))
			return
		}
		line := make([]byte, n)
		if _, err := io.ReadFull(r, line); err != nil {
			s.fault("a frame was cut short")
			return
		}
		s.take(string(line))
	}
}

func (s *Syslog) take(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
	close(s.news)
	s.news = make(chan struct{})
}

func (s *Syslog) fault(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad = append(s.bad, text)
}

// Faults are what was received and is no syslog.
func (s *Syslog) Faults() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.bad...)
}

// Lines returns what has arrived, without its framing.
func (s *Syslog) Lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

// Dials counts the connections so far.
func (s *Syslog) Dials() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

// Wait returns what has arrived once there are n lines, or after a while what there is.
func (s *Syslog) Wait(n int, atMost time.Duration) []string {
	timeout := time.After(atMost)
	for {
		s.mu.Lock()
		news, have := s.news, len(s.lines)
		s.mu.Unlock()
		if have >= n {
			return s.Lines()
		}
		select {
		case <-news:
		case <-timeout:
			return s.Lines()
		}
	}
}

// Close ends the receiver and its connections. It may be called again.
func (s *Syslog) Close() {
	s.close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
