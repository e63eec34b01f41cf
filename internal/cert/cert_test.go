package cert_test

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/cert"
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

var quiet = slog.New(slog.DiscardHandler)

func own(t *testing.T, dir string, c *clock, names ...string) *cert.Source {
	t.Helper()
	s, err := cert.Own(dir, names, c.now, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func leaf(t *testing.T, s *cert.Source) *x509.Certificate {
	t.Helper()
	c, err := s.Get(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func pool(t *testing.T, s *cert.Source) *x509.CertPool {
	t.Helper()
	path, _ := s.CA()
	pem, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in the CA's file")
	}
	return p
}

func TestOwn_staysAndRenewsWithoutANewCA(t *testing.T) {
	t.Parallel()
	dir, c := filepath.Join(t.TempDir(), "tls"), &clock{time.Now()}
	s := own(t, dir, c, "localhost", "192.0.2.1", "2001:db8::1", "parry.example.net")
	first := leaf(t, s)
	for _, n := range []string{"localhost", "192.0.2.1", "2001:db8::1", "parry.example.net"} {
		if _, err := first.Verify(x509.VerifyOptions{DNSName: n, Roots: pool(t, s)}); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
	_, print1 := s.CA()
	again := own(t, dir, c, "localhost", "192.0.2.1")
	if got := leaf(t, again); !got.Equal(first) {
		t.Error("a restart made another certificate though the old one fits")
	}
	if got := leaf(t, own(t, dir, c, "localhost", "192.0.2.2")); got.Equal(first) || got.VerifyHostname("192.0.2.2") != nil {
		t.Error("a new name needs a new certificate")
	}
	c.t = c.t.Add(61 * 24 * time.Hour) // less than a third is left
	renewed := leaf(t, s)
	if renewed.Equal(first) || renewed.NotAfter.Before(c.t.Add(80*24*time.Hour)) {
		t.Errorf("not renewed: ends %s", renewed.NotAfter)
	}
	if _, err := renewed.Verify(x509.VerifyOptions{DNSName: "localhost", Roots: pool(t, s), CurrentTime: c.t}); err != nil {
		t.Error(err)
	}
	if _, print2 := s.CA(); print1 != print2 || len(print1) != 32*3-1 {
		t.Errorf("the CA changed or its fingerprint is odd: %s, %s", print1, print2)
	}
	for _, f := range []string{"ca.key", "server.key"} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
}

func TestOwn_refusesADamagedCA(t *testing.T) {
	t.Parallel()
	dir, c := t.TempDir(), &clock{time.Now()}
	own(t, dir, c, "localhost")
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Own(dir, []string{"localhost"}, c.now, quiet); err == nil || !strings.Contains(err.Error(), "restore") {
		t.Errorf("got %v", err)
	}
}

// serve accepts handshakes until the test ends.
func serve(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _ = c.(*tls.Conn).Handshake(); _ = c.Close() }()
		}
	}()
	return ln.Addr().String()
}

func TestConfig_oldClientsHandshake(t *testing.T) {
	t.Parallel()
	s := own(t, t.TempDir(), &clock{time.Now()}, "localhost", "127.0.0.1")
	roots := pool(t, s)
	for name, tc := range map[string]struct {
		min  string
		cl   *tls.Config
		good bool
	}{
		"OpenSSL 1.0.2's best": {"1.2", &tls.Config{MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.CurveP256},
			CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}}, true},
		"TLS 1.3":              {"1.2", &tls.Config{MinVersion: tls.VersionTLS13}, true},
		"TLS 1.1":              {"1.2", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
		"CBC":                  {"1.2", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, false},
		"1.2 where 1.3 is set": {"1.3", &tls.Config{MaxVersion: tls.VersionTLS12}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, s.Config(tc.min))
			tc.cl.RootCAs, tc.cl.ServerName = roots, "localhost"
			d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: tc.cl}
			c, err := d.DialContext(t.Context(), "tcp", addr)
			if err == nil {
				_ = c.Close()
			}
			if (err == nil) != tc.good {
				t.Errorf("got %v, want good: %v", err, tc.good)
			}
		})
	}
}

func TestConfig_opensslHandshakesInTLS12(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	s := own(t, t.TempDir(), &clock{time.Now()}, "127.0.0.1")
	ca, _ := s.CA()
	cmd := exec.CommandContext(t.Context(), openssl, "s_client", "-connect", serve(t, s.Config("1.2")), "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256",
		"-curves", "prime256v1", "-CAfile", ca, "-verify_ip", "127.0.0.1", "-verify_return_error")
	cmd.Stdin = strings.NewReader("")
	out, err := cmd.CombinedOutput()
	if !strings.Contains(string(out), "Verify return code: 0 (ok)") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestFiles_areReadAgainWhenTheyChange(t *testing.T) {
	t.Parallel()
	a, b, c := t.TempDir(), t.TempDir(), &clock{time.Now()}
	own(t, a, c, "localhost")
	other := leaf(t, own(t, b, c, "localhost"))
	crt, key := filepath.Join(a, "server.crt"), filepath.Join(a, "server.key")
	s, err := cert.Files(crt, key, c.now, quiet)
	if err != nil {
		t.Fatal(err)
	}
	was := leaf(t, s)
	replace := func(path, from string) {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(data, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	replace(crt, filepath.Join(b, "server.crt"))
	c.t = c.t.Add(2 * time.Minute)
	if got := leaf(t, s); !got.Equal(was) {
		t.Error("a certificate without its key must not be taken")
	}
	replace(key, filepath.Join(b, "server.key"))
	c.t = c.t.Add(2 * time.Minute)
	if got := leaf(t, s); !got.Equal(other) {
		t.Error("the new pair was not taken")
	}
	if ca, _ := s.CA(); ca != "" {
		t.Errorf("CA %s of foreign files", ca)
	}
}
