package testenv

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// MailOptions say what mail server to start. The zero value is one that takes everything in the clear on a free port of loopback.
type MailOptions struct {
	Addr      string       // host:port; "127.0.0.1:0" when empty
	Security  string       // "plain" (when empty: no TLS at all), "starttls" or "tls"
	User      string       // when set, nobody may send without having logged in
	Password  string       //
	Mechanism string       // the one that is offered: PLAIN (when empty), LOGIN or CRAM-MD5
	OnMessage func(Letter) // called for each one that was taken, before the sender is told so
}

// Letter is a message as it arrived.
type Letter struct {
	At   time.Time
	From string
	To   []string
	User string // who had logged in
	TLS  bool
	Data []byte // as sent, dots unstuffed
}

// Mail is a real SMTP server that keeps what it is sent. Its methods may be called from any goroutine.
type Mail struct {
	Addr  string         // host:port
	Roots *x509.CertPool // trusts its certificate
	CA    []byte         // the same as PEM; nil for a plain one

	o        MailOptions
	listener net.Listener
	server   *smtp.Server
	served   chan struct{}

	mu      sync.Mutex
	fault   string
	times   int
	stuck   []net.Conn
	letters []Letter
	dials   int
	news    chan struct{} // closed and made anew with each letter
}

// StartMail starts a mail server that ends with the test.
func StartMail(tb testing.TB, o MailOptions) *Mail {
	tb.Helper()
	m, err := NewMail(o)
	if err != nil {
		tb.Fatalf("start a mail server: %v", err)
	}
	tb.Cleanup(m.Close)
	return m
}

// NewMail starts a mail server; Close ends it.
func NewMail(o MailOptions) (*Mail, error) {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	m := &Mail{o: o, news: make(chan struct{}), served: make(chan struct{})}
	m.server = smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &session{m: m, c: c}, nil }))
	m.server.Domain = "mail.test"
	m.server.MaxMessageBytes = 8 << 20
	m.server.ReadTimeout, m.server.WriteTimeout = time.Minute, time.Minute
	m.server.ErrorLog = log.New(io.Discard, "", 0)
	m.server.AllowInsecureAuth = o.Security == "" || o.Security == "plain"
	var cert tls.Certificate
	switch o.Security {
	case "", "plain":
	case "starttls", "tls":
		var err error
		if cert, m.CA, err = selfSigned(); err != nil {
			return nil, err
		}
		m.Roots = x509.NewCertPool()
		m.Roots.AppendCertsFromPEM(m.CA)
	default:
		return nil, fmt.Errorf("security %q: write plain, starttls or tls", o.Security)
	}
	l, err := Listen(o.Addr)
	if err != nil {
		return nil, err
	}
	m.Addr, m.listener = l.Addr().String(), &faultyListener{l, m}
	switch conf := (&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}); o.Security {
	case "starttls":
		m.server.TLSConfig = conf
	case "tls":
		m.listener = tls.NewListener(m.listener, conf)
	}
	go func() {
		defer close(m.served)
		_ = m.server.Serve(m.listener)
	}()
	return m, nil
}

// Close ends the server and its connections.
func (m *Mail) Close() {
	_ = m.server.Close()
	_ = m.listener.Close() // the server does not know it before Serve has begun
	m.mu.Lock()
	for _, c := range m.stuck {
		_ = c.Close()
	}
	m.mu.Unlock()
	<-m.served
}

// Fault makes the next so many conversations fail (0: all, until the next call). Kinds: "refuse" closes at once, "hang" never says a word,
// "hang-data" takes the message and never answers, "tempfail" answers 451 to MAIL, "permfail" 550 to RCPT, "off" ends it.
func (m *Mail) Fault(kind string, times int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault, m.times = kind, times; kind == "off" {
		m.fault = ""
	}
}

// struck tells whether the fault is on now, and counts it.
func (m *Mail) struck(kind string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault != kind {
		return false
	}
	if m.times > 0 {
		if m.times--; m.times == 0 {
			m.fault = ""
		}
	}
	return true
}

// Letters returns what has arrived.
func (m *Mail) Letters() []Letter {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Letter(nil), m.letters...)
}

// Dials counts the connections so far.
func (m *Mail) Dials() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dials
}

// Wait returns what has arrived once there are n, or after a while what there is.
func (m *Mail) Wait(n int, atMost time.Duration) []Letter {
	timeout := time.After(atMost)
	for {
		m.mu.Lock()
		news, have := m.news, len(m.letters)
		m.mu.Unlock()
		if have >= n {
			return m.Letters()
		}
		select {
		case <-news:
		case <-timeout:
			return m.Letters()
		}
	}
}

type faultyListener struct {
	net.Listener
	m *Mail
}

func (l *faultyListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.m.mu.Lock()
		l.m.dials++
		l.m.mu.Unlock()
		switch {
		case l.m.struck("refuse"):
			_ = c.Close()
		case l.m.struck("hang"):
			l.m.mu.Lock()
			l.m.stuck = append(l.m.stuck, c)
			l.m.mu.Unlock()
		default:
			return c, nil
		}
	}
}

type session struct {
	m      *Mail
	c      *smtp.Conn
	user   string
	letter Letter
}

func (s *session) Reset()        { s.letter = Letter{} }
func (s *session) Logout() error { return nil }

func (s *session) AuthMechanisms() []string {
	if s.m.o.User == "" {
		return nil
	}
	if s.m.o.Mechanism != "" {
		return []string{s.m.o.Mechanism}
	}
	return []string{"PLAIN"}
}

func (s *session) Auth(mech string) (sasl.Server, error) {
	check := func(user, password string) error {
		if user != s.m.o.User || password != s.m.o.Password {
			return smtp.ErrAuthFailed
		}
		s.user = user
		return nil
	}
	switch mech {
	case "PLAIN":
		return sasl.NewPlainServer(func(_, user, password string) error { return check(user, password) }), nil
	case "LOGIN":
		return &loginServer{check: check}, nil
	case "CRAM-MD5":
		return &cramServer{password: s.m.o.Password, check: check}, nil
	}
	return nil, smtp.ErrAuthUnknownMechanism
}

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	switch {
	case s.m.o.User != "" && s.user == "":
		return smtp.ErrAuthRequired
	case s.m.struck("tempfail"):
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 7, 1}, Message: "Greylisted, please try again"}
	}
	s.letter.From = from
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if s.m.struck("permfail") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "No such user"}
	}
	s.letter.To = append(s.letter.To, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if s.m.struck("hang-data") {
		_, _ = io.Copy(io.Discard, s.c.Conn()) // until the sender goes away
		return errors.New("hung")
	}
	_, encrypted := s.c.TLSConnectionState()
	l := s.letter
	l.At, l.Data, l.User, l.TLS = time.Now(), b, s.user, encrypted
	if s.m.o.OnMessage != nil {
		s.m.o.OnMessage(l)
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.letters = append(s.m.letters, l)
	close(s.m.news)
	s.m.news = make(chan struct{})
	return nil
}

// loginServer is the LOGIN mechanism: it asks for a name, then for a password.
type loginServer struct {
	check func(user, password string) error
	step  int
	user  string
}

func (a *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	a.step++
	switch a.step {
	case 1:
		return []byte("Username:"), false, nil
	case 2:
		a.user = string(response)
		return []byte("Password:"), false, nil
	}
	return nil, true, a.check(a.user, string(response))
}

// cramServer is CRAM-MD5 (RFC 2195): the password never travels.
type cramServer struct {
	password string
	check    func(user, password string) error
	asked    []byte
}

func (a *cramServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if a.asked == nil {
		a.asked = fmt.Appendf(nil, "<%d@mail.test>", time.Now().UnixNano())
		return a.asked, false, nil
	}
	user, digest, _ := strings.Cut(string(response), " ")
	h := hmac.New(md5.New, []byte(a.password))
	h.Write(a.asked)
	if !hmac.Equal([]byte(hex.EncodeToString(h.Sum(nil))), []byte(digest)) {
		return nil, true, smtp.ErrAuthFailed
	}
	return nil, true, a.check(user, a.password)
}

func selfSigned() (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "mail.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost", "mail.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	var ca bytes.Buffer
	if err := pem.Encode(&ca, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, ca.Bytes(), nil
}
