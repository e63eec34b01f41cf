package syslog_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	parser "github.com/leodido/go-syslog/v4/rfc5424"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/parry/parry/internal/syslog"
	"github.com/parry/parry/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var at = time.Date(2026, 8, 1, 12, 30, 45, 123456789, time.FixedZone("", 2*3600))

func client(t *testing.T, o syslog.Options) *syslog.Client {
	t.Helper()
	o.Now, o.Hostname = func() time.Time { return at }, "host.example.net"
	c, err := syslog.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestSend_arrivesOverEveryNetworkAsRFC5424(t *testing.T) {
	t.Parallel()
	for _, network := range []syslog.Network{syslog.UDP, syslog.TCP, syslog.TLS, syslog.Unix} {
		t.Run(string(network), func(t *testing.T) {
			t.Parallel()
			srv := testenv.StartSyslog(t, string(network), "")
			c := client(t, syslog.Options{Network: network, Address: srv.Addr, CAFile: srv.CAFile, Format: syslog.RFC5424})
			for i := range 3 {
				err := c.Send(t.Context(), syslog.Message{Severity: syslog.Warning, MsgID: "list-hit", Text: fmt.Sprintf("parry: hit %d", i),
					Data: []syslog.Param{{Name: "key", Value: `a"b]c\d`}, {Name: "n", Value: "7"}}})
				if err != nil {
					t.Fatal(err)
				}
			}
			lines := srv.Wait(3, 10*time.Second)
			if len(lines) != 3 || len(srv.Faults()) != 0 {
				t.Fatalf("got %q, faults %q", lines, srv.Faults())
			}
			want := fmt.Sprintf(`<164>1 2026-08-01T10:30:45.123456Z host.example.net parry %d list-hit [parry@32473 key="a\"b\]c\\d" n="7"] parry: hit 0`, os.Getpid())
			if lines[0] != want {
				t.Errorf("got  %s\nwant %s", lines[0], want)
			}
			if srv.Dials() > 1 {
				t.Errorf("%d connections for three lines", srv.Dials())
			}
		})
	}
}

func TestSend_theLocalSocketGetsWhatSyslog3Writes(t *testing.T) {
	t.Parallel()
	srv := testenv.StartSyslog(t, "unix", "")
	c := client(t, syslog.Options{Network: syslog.Unix, Address: srv.Addr, Facility: "daemon"})
	if err := c.Send(t.Context(), syslog.Message{Severity: syslog.Info, Text: "parry: hello"}); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("<30>%s parry[%d]: parry: hello", at.Local().Format(time.Stamp), os.Getpid())
	if got := srv.Wait(1, 10*time.Second); len(got) != 1 || got[0] != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSend_aReceiverThatCameBackLosesNoLine(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "tls"} {
		for _, confirm := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,confirm=%v", network, confirm), func(t *testing.T) {
				t.Parallel()
				srv := testenv.StartSyslog(t, network, "")
				c := client(t, syslog.Options{Network: syslog.Network(network), Address: srv.Addr, CAFile: srv.CAFile, Confirm: confirm})
				send := func(s string) error { return c.Send(t.Context(), syslog.Message{Text: s}) }
				if err := send("one"); err != nil {
					t.Fatal(err)
				}
				if len(srv.Wait(1, 10*time.Second)) != 1 {
					t.Fatal("the first line did not arrive")
				}
				srv.Close()
				// The end of the connection is noticed as soon as this host knows of it.
				for deadline := time.Now().Add(10 * time.Second); send("into the void") == nil; {
					if time.Now().After(deadline) {
						t.Fatal("a receiver that is gone is not noticed")
					}
				}
				if network == "tls" {
					return // it would come back with another certificate
				}
				again := testenv.StartSyslog(t, network, srv.Addr)
				if err := send("two"); err != nil {
					t.Fatal(err)
				}
				if got := again.Wait(1, 10*time.Second); len(got) != 1 || !strings.HasSuffix(got[0], " two") {
					t.Errorf("got %q", got)
				}
			})
		}
	}
}

// rude takes connections and breaks them off without reading.
func rude(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1))
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func TestSend_confirmedMeansReadByTheReceiver(t *testing.T) {
	t.Parallel()
	c := client(t, syslog.Options{Network: syslog.TCP, Address: rude(t), Confirm: true})
	if err := c.Send(t.Context(), syslog.Message{Text: strings.Repeat("x", 4000)}); err == nil {
		t.Error("a receiver that broke off has confirmed")
	}
}

func TestSend_endsWithItsDeadline(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := client(t, syslog.Options{Network: syslog.TLS, Address: l.Addr().String(), Timeout: 100 * time.Millisecond})
	begin := time.Now()
	if err := c.Send(t.Context(), syslog.Message{Text: "x"}); err == nil || time.Since(begin) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Send(ctx, syslog.Message{Text: "x"}); err == nil {
		t.Error("sent although the context was done")
	}
}

func TestSend_trustsTheConfiguredCAOnly(t *testing.T) {
	t.Parallel()
	srv, other := testenv.StartSyslog(t, "tls", ""), testenv.StartSyslog(t, "tls", "")
	c := client(t, syslog.Options{Network: syslog.TLS, Address: srv.Addr, CAFile: other.CAFile})
	if err := c.Send(t.Context(), syslog.Message{Text: "x"}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v, want a fault of the certificate", err)
	}
}

func TestSend_manyAtOnce(t *testing.T) {
	t.Parallel()
	srv := testenv.StartSyslog(t, "tcp", "")
	c := client(t, syslog.Options{Network: syslog.TCP, Address: srv.Addr})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 100 {
				if err := c.Send(t.Context(), syslog.Message{Text: "x"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(srv.Wait(1600, 10*time.Second)); got != 1600 || len(srv.Faults()) > 0 {
		t.Errorf("%d of 1600 lines, faults %q", got, srv.Faults())
	}
}

// Whatever it is given, a line is RFC 5424 by another's strict parser, within the limit, valid UTF-8 and one line.
func TestMessage_hostileTextStaysInert(t *testing.T) {
	t.Parallel()
	srv := testenv.StartSyslog(t, "unix", "")
	c := client(t, syslog.Options{Network: syslog.Unix, Address: srv.Addr, Format: syslog.RFC5424, MaxBytes: 1000})
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"a\r\n<0>1 - - - - - - forged", "\u202e\x00\x1b[31m", "\xff\xfe", strings.Repeat("é", 900)}))
		m := syslog.Message{Severity: syslog.Severity(rapid.IntRange(-1, 9).Draw(rt, "severity")), MsgID: text.Draw(rt, "id"), Text: text.Draw(rt, "text")}
		for range rapid.IntRange(0, 4).Draw(rt, "params") {
			m.Data = append(m.Data, syslog.Param{Name: text.Draw(rt, "name"), Value: text.Draw(rt, "value")})
		}
		if err := c.Send(t.Context(), m); err != nil {
			rt.Fatal(err)
		}
		n++
		lines := srv.Wait(n, 10*time.Second)
		if len(lines) != n {
			rt.Fatal("not arrived")
		}
		line := lines[n-1]
		if _, err := parser.NewParser().Parse([]byte(line)); err != nil {
			rt.Errorf("%q: %v", line, err)
		}
		if len(line) > 1000 || !utf8.ValidString(line) || strings.ContainsAny(line, "\r\n\x00\x1b\u202e") {
			rt.Errorf("%d bytes: %q", len(line), line)
		}
	})
}

func TestNew_refusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	for _, o := range []syslog.Options{
		{}, {Network: "sctp", Address: "h:1"}, {Network: syslog.UDP}, {Network: syslog.TCP, Address: "h:x"}, {Network: syslog.TCP, Address: "a:b:1"},
		{Network: syslog.UDP, Address: "h", Facility: "local9"}, {Network: syslog.UDP, Address: "h", Format: "cef"},
		{Network: syslog.TLS, Address: "h", CAFile: "/nowhere"}, {Network: syslog.UDP, Address: "h", MaxBytes: 100},
	} {
		if _, err := syslog.New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
	for _, a := range []string{"h", "h:514", "192.0.2.1", "2001:db8::1", "[2001:db8::1]:514"} {
		if _, err := syslog.New(syslog.Options{Network: syslog.TCP, Address: a}); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
}
