// Package cert gives the HTTPS listener its certificate: parry's own, or the operator's files.
//
// Without configured files parry is its own authority: a CA of ten years and a server certificate of ninety days, ECDSA P-256 because
// OpenSSL 1.0.2, which the oldest triggers bring, can do that. The server certificate is renewed while serving, from [Source.Get], when a
// third of its life is left or a name is missing. The CA bears no name constraints: clients hold it for parry alone (curl --cacert), and a
// constraint would make a new address of the host into a new CA on every client.
package cert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	caLife     = 10 * 365 * 24 * time.Hour
	serverLife = 90 * 24 * time.Hour
	backdate   = time.Hour // for clients whose clock is behind
)

// Source gives the certificate of each handshake. Safe for concurrent use.
type Source struct {
	now  func() time.Time
	log  *slog.Logger
	own  *authority // nil with the operator's files
	cert string
	key  string

	mu      sync.Mutex
	current *tls.Certificate
	stamp   string // of the files as last read
	checked time.Time
}

// authority is parry's own CA.
type authority struct {
	dir   string
	names []string
	cert  *x509.Certificate
	key   crypto.Signer
}

// Own opens parry's own authority in dir, or makes it, and a certificate for the names: DNS names and addresses.
func Own(dir string, names []string, now func() time.Time, log *slog.Logger) (*Source, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", dir, err)
	}
	names = slices.Clone(names)
	slices.Sort(names)
	a := &authority{dir: dir, names: slices.Compact(names)}
	s := &Source{now: now, log: log, own: a, cert: filepath.Join(dir, "server.crt"), key: filepath.Join(dir, "server.key")}
	if err := a.open(now()); err != nil {
		return nil, err
	}
	if c, err := load(s.cert, s.key); err == nil && a.fits(c.Leaf) {
		s.current = c
	}
	_, err := s.Get(nil)
	return s, err
}

// Files serves the operator's certificate and key, and reads them again when they change. Files that cannot be read then are told in the
// log, and the last good pair stays.
func Files(certFile, keyFile string, now func() time.Time, log *slog.Logger) (*Source, error) {
	s := &Source{now: now, log: log, cert: certFile, key: keyFile}
	c, err := load(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	s.current, s.stamp, s.checked = c, stamp(certFile, keyFile), now()
	return s, nil
}

// CA is the path of parry's own CA certificate and its SHA-256 fingerprint, as `openssl x509 -fingerprint -sha256` writes it; both are
// empty with the operator's files.
func (s *Source) CA() (path, fingerprint string) {
	if s.own == nil {
		return "", ""
	}
	return s.own.path("ca.crt"), Fingerprint(s.own.cert.Raw)
}

// Expires is when the current certificate ends.
func (s *Source) Expires() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current.Leaf.NotAfter
}

// Fingerprint writes a certificate's SHA-256 in pairs of digits.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
}

// Get is tls.Config.GetCertificate.
func (s *Source) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.own != nil {
		if s.current == nil || s.current.Leaf.NotAfter.Sub(now) < serverLife/3 || now.Before(s.current.Leaf.NotBefore) {
			c, err := s.own.issue(s.cert, s.key, now)
			switch {
			case err != nil && s.current == nil:
				return nil, err
			case err != nil:
				if now.Sub(s.checked) >= time.Hour {
					s.checked = now
					s.log.Error("renew the server certificate", "err", err)
				}
			default:
				s.log.Info("server certificate made", "until", c.Leaf.NotAfter, "names", strings.Join(s.own.names, " "))
				s.current = c
			}
		}
		return s.current, nil
	}
	if now.Sub(s.checked) >= time.Minute || now.Before(s.checked) {
		s.checked = now
		if st := stamp(s.cert, s.key); st != s.stamp {
			if c, err := load(s.cert, s.key); err != nil {
				s.log.Error("read the changed certificate", "err", err)
			} else {
				s.log.Info("server certificate read again", "until", c.Leaf.NotAfter)
				s.current, s.stamp = c, st
			}
		}
	}
	return s.current, nil
}

// Config is the listener's TLS configuration: minVersion "1.2" or "1.3", forward secrecy and authenticated encryption only.
func (s *Source) Config(minVersion string) *tls.Config {
	c := &tls.Config{
		GetCertificate: s.Get,
		MinVersion:     tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
	if minVersion == "1.3" {
		c.MinVersion = tls.VersionTLS13
	}
	return c
}

// Names are those under which a host is reached that listens on address:port: the address, or all of this host's when it is a wildcard,
// the host's name, localhost, and more.
func Names(listen string, more []string) []string {
	names := append([]string{"localhost", "127.0.0.1", "::1"}, more...)
	if h, err := os.Hostname(); err == nil && h != "" {
		names = append(names, h)
	}
	host, _, _ := net.SplitHostPort(listen)
	if a, err := netip.ParseAddr(host); host != "" && (err != nil || !a.IsUnspecified()) {
		return append(names, host)
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			names = append(names, n.IP.String())
		}
	}
	return names
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// open reads the CA, or makes it when there is none. A CA that cannot be read is an error: a new one would lock out every client.
func (a *authority) open(now time.Time) error {
	c, err := load(a.path("ca.crt"), a.path("ca.key"))
	if errors.Is(err, fs.ErrNotExist) {
		return a.create(now)
	}
	if err != nil {
		return fmt.Errorf("read parry's CA: %w; restore both files of %s from a backup, or remove them to get a new CA that clients must be given", err, a.dir)
	}
	key, ok := c.PrivateKey.(crypto.Signer)
	if !ok || !c.Leaf.IsCA {
		return fmt.Errorf("%s is no CA; restore it from a backup", a.path("ca.crt"))
	}
	a.cert, a.key = c.Leaf, key
	return nil
}

func (a *authority) create(now time.Time) error {
	host, _ := os.Hostname()
	serial := newSerial()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the CA's key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "parry CA on " + host, SerialNumber: fmt.Sprintf("%x", serial.Bytes()[:4])},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return fmt.Errorf("make the CA: %w", err)
	}
	if err := save(a.path("ca.crt"), a.path("ca.key"), der, key); err != nil {
		return fmt.Errorf("keep the CA: %w", err)
	}
	a.key = key
	a.cert, err = x509.ParseCertificate(der)
	return err
}

// fits tells whether a certificate is of this CA and has every name.
func (a *authority) fits(c *x509.Certificate) bool {
	return c.CheckSignatureFrom(a.cert) == nil && !slices.ContainsFunc(a.names, func(n string) bool { return c.VerifyHostname(n) != nil })
}

func (a *authority) issue(certFile, keyFile string, now time.Time) (*tls.Certificate, error) {
	serial := newSerial()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the server's key: %w", err)
	}
	end := now.Add(serverLife)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "parry"},
		NotBefore: now.Add(-backdate), NotAfter: end,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range a.names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("make the server certificate: %w", err)
	}
	if err := save(certFile, keyFile, der, key); err != nil {
		return nil, fmt.Errorf("keep the server certificate: %w", err)
	}
	return load(certFile, keyFile)
}

func newSerial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the program instead
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

func load(certFile, keyFile string) (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	if c.Leaf == nil {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

func stamp(paths ...string) string {
	var b strings.Builder
	for _, p := range paths {
		if st, err := os.Stat(p); err == nil {
			fmt.Fprintf(&b, "%d %d;", st.ModTime().UnixNano(), st.Size())
		}
	}
	return b.String()
}

// save writes the key first: a crash in between leaves no certificate without its key, and what does not match is made anew.
func save(certFile, keyFile string, der []byte, key *ecdsa.PrivateKey) error {
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := write(keyFile, "PRIVATE KEY", k, 0o600); err != nil {
		return err
	}
	return write(certFile, "CERTIFICATE", der, 0o644)
}

func write(path, kind string, der []byte, mode os.FileMode) error {
	var b bytes.Buffer
	if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	_, err = f.Write(b.Bytes())
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
