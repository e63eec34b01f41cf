package siemtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/parry/parry/internal/testenv"
)

// Token is the one that a stub knows.
const Token = "parry_t01JTEST_s3cretS3cretS3cret"

// Body is what parry takes; the decoder refuses anything else.
type Body struct {
	Source          string   `json:"source"`
	Destination     string   `json:"destination"`
	DestinationPort int      `json:"destination_port"`
	Protocol        string   `json:"protocol"`
	Firewalls       []string `json:"firewalls"`
	TTL             string   `json:"ttl"`
	Reason          string   `json:"reason"`
	Origin          string   `json:"origin"`
	AlertID         string   `json:"alert_id"`
	RuleID          string   `json:"rule_id"`
	Agent           string   `json:"agent"`
	EventTime       string   `json:"event_time"`
}

// Call is one request as parry received it: a block with its key, or the end of a source's blocks.
type Call struct {
	Body   Body
	Key    string
	Ending string // the source of a DELETE
}

// Stub answers in parry's place and can be up, down or in a mood.
type Stub struct {
	t      *testing.T
	Addr   string
	cert   tls.Certificate
	server *httptest.Server

	mu     sync.Mutex
	mood   func(http.ResponseWriter, Body) bool // true: it has answered
	calls  []Call                               // that were accepted
	tried  int
	strays []string // what no client of parry may send
}

// Stub makes one that is up, and configures the script for it.
func (r *Rig) Stub() *Stub {
	r.Helper()
	s := &Stub{t: r.T, Addr: ownAddr()}
	s.cert = SelfSigned(r.T, ownHost())
	r.url = "https://" + s.Addr
	r.Write("ca.pem", PEM(s.cert))
	r.Write("token", Token+"\n")
	r.Configure("")
	s.Up()
	r.Cleanup(func() {
		s.Down()
		for _, stray := range s.strays {
			r.Errorf("parry received %s", stray)
		}
	})
	return s
}

// SelfSigned is a CA that is its own server's certificate.
func SelfSigned(t *testing.T, host string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "parry"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(host)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// PEM is the certificate's file.
func PEM(c tls.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
}

// Up begins to listen, with TLS 1.2 as the oldest hosts know it.
func (s *Stub) Up() {
	s.t.Helper()
	ln, err := testenv.Listen(s.Addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = &httptest.Server{Listener: ln, TLS: &tls.Config{Certificates: []tls.Certificate{s.cert}, MinVersion: tls.VersionTLS12,
		MaxVersion: tls.VersionTLS12}, Config: &http.Server{Handler: http.HandlerFunc(s.serve), ErrorLog: log.New(io.Discard, "", 0)}}
	s.server.StartTLS()
}

// Down refuses connections.
func (s *Stub) Down() {
	if s.server != nil {
		s.server.CloseClientConnections()
		s.server.Close()
		s.server = nil
	}
}

func (s *Stub) serve(w http.ResponseWriter, req *http.Request) {
	raw, _ := io.ReadAll(req.Body)
	c := Call{Key: req.Header.Get("Idempotency-Key"), Ending: req.URL.Query().Get("source")}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	ok := req.URL.Path == "/api/v1/blocks"
	switch req.Method {
	case http.MethodPost:
		ok = ok && dec.Decode(&c.Body) == nil && c.Key != "" && c.Ending == "" && req.Header.Get("Content-Type") == "application/json"
	case http.MethodDelete:
		ok = ok && c.Ending != "" && len(raw) == 0
	default:
		ok = false
	}
	s.mu.Lock()
	s.tried++
	mood := s.mood
	if !ok {
		s.strays = append(s.strays, fmt.Sprintf("%s %s %v %q", req.Method, req.URL, req.Header, raw))
	}
	s.mu.Unlock()
	if req.Header.Get("Authorization") != "Bearer "+Token {
		Problem(w, http.StatusUnauthorized, "the token is not known")
		return
	}
	if mood != nil && mood(w, c.Body) {
		return
	}
	s.mu.Lock()
	s.calls = append(s.calls, c)
	id := fmt.Sprintf("b-%026d", len(s.calls))
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if req.Method == http.MethodDelete {
		fmt.Fprint(w, `{"matched":1,"ended":1,"blocks":[],"dry_run":false}`)
		return
	}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"id":%q,"source":%q}`, id, c.Body.Source)
}

// Problem answers with a problem document.
func Problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"type": "urn:parry:problem:test", "status": status, "detail": detail})
}

// SetMood makes the stub answer otherwise where mood returns true; nil ends that.
func (s *Stub) SetMood(mood func(http.ResponseWriter, Body) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mood = mood
}

// Accepted lists what was accepted, in its order.
func (s *Stub) Accepted() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Attempts counts all requests.
func (s *Stub) Attempts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tried
}

// Sources lists the calls' sources.
func Sources(calls []Call) []string {
	out := make([]string, 0, len(calls))
	for _, c := range calls {
		out = append(out, c.Body.Source)
	}
	return out
}
