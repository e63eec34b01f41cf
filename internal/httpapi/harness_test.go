package httpapi

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/feeds"
	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
	"github.com/parry/parry/internal/store"
)

// bench is the server on a real store, with a token for each role.
type bench struct {
	t      testing.TB
	server *Server
	store  *store.Store
	policy *policy.Policy
	auth   *auth.Auth
	feeds  *feeds.Feeds
	lists  *lists.Lists
	tokens map[parry.Role]string
	log    *logBuffer
	clock  *clock
}

// clock is real time plus what a test adds.
type clock struct {
	mu   sync.Mutex
	plus time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.plus)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plus += d
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var testFleet = &parry.Fleet{
	Firewalls: []parry.Firewall{
		{Name: "core", Groups: []string{"dc"}, Bundle: "pfsense", Interface: "wan", MaxRules: 200, Digest: "c"},
		{Name: "edge-a", Groups: []string{"edge"}, Bundle: "pfsense", Interface: "wan", MaxRules: 200, Digest: "a"},
		{Name: "edge-b", Groups: []string{"edge"}, Bundle: "pfsense", Interface: "wan", MaxRules: 200, Digest: "b"},
	},
	Default: "edge",
}

func newBench(t testing.TB, change ...func(*Options)) *bench {
	t.Helper()
	return newBenchOn(t, store.Options{Driver: "sqlite", Path: filepath.Join(t.TempDir(), "parry.db")}, change...)
}

func newBenchOn(t testing.TB, on store.Options, change ...func(*Options)) *bench {
	t.Helper()
	b := &bench{t: t, tokens: map[parry.Role]string{}, log: &logBuffer{}, clock: &clock{}}
	ctx := context.Background()
	var err error
	on.Now, on.Logger = b.clock.now, slog.New(slog.DiscardHandler)
	if b.store, err = store.Open(ctx, on); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.store.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := b.store.SyncFirewalls(ctx, testFleet.Firewalls); err != nil {
		t.Fatal(err)
	}
	for _, role := range parry.Roles {
		b.tokens[role] = b.token(parry.Token{Name: string(role), Role: role})
	}
	if b.policy, err = policy.New(policy.Limits{DefaultTTL: 4 * time.Hour, MaxTTL: 30 * 24 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	b.policy.Replace(parry.ExemptConfig, []parry.Exemption{{ID: "cfg:dns", Prefix: netip.MustParsePrefix("8.8.8.8/32"), Reason: "resolver"}})
	logger := slog.New(slog.NewJSONHandler(b.log, nil))
	if b.auth, err = auth.New(auth.Options{Store: b.store, Now: b.clock.now, Logger: logger}); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	if b.feeds, err = feeds.New(feeds.Options{Store: b.store, Now: b.clock.now, Logger: logger, Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	if b.lists, err = lists.New(lists.Options{Store: b.store, Now: b.clock.now, Logger: logger, Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	o := Options{
		Lists: b.lists, Store: b.store, Auth: b.auth, Policy: b.policy, Fleet: func() *parry.Fleet { return testFleet }, Feeds: b.feeds, Registry: registry,
		Now: b.clock.now, Logger: logger,
	}
	for _, f := range change {
		f(&o)
	}
	if b.server, err = New(o); err != nil {
		t.Fatal(err)
	}
	return b
}

// token stores a token and gives its text.
func (b *bench) token(tok parry.Token) string {
	b.t.Helper()
	tok.ID, tok.CreatedAt = parry.NewTokenID(b.clock.now()), b.clock.now()
	text, hash := auth.Mint(tok.ID)
	tok.Hash = hash
	if err := b.store.CreateToken(context.Background(), tok); err != nil {
		b.t.Fatal(err)
	}
	return text
}

type response struct {
	*http.Response
	body string
}

// do sends a request with the header lines "Name: value"; body is sent as JSON unless a header says otherwise.
func (b *bench) do(as parry.Role, method, path, body string, headers ...string) response {
	b.t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, path, rd)
	if as != "" {
		r.Header.Set("Authorization", "Bearer "+b.tokens[as])
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Del(name)
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	w := httptest.NewRecorder()
	b.server.ServeHTTP(w, r)
	return response{w.Result(), w.Body.String()}
}

func (r response) problem(t testing.TB) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		t.Fatalf("%d is no problem document: %v: %s", r.StatusCode, err, r.body)
	}
	if got := r.Header.Get("Content-Type"); got != problemType || p.Status != r.StatusCode || !strings.HasPrefix(p.Type, "urn:parry:problem:") ||
		p.RequestID == "" || p.RequestID != r.Header.Get("X-Request-Id") {
		t.Errorf("problem %+v came as %d %s, request id %q", p, r.StatusCode, got, r.Header.Get("X-Request-Id"))
	}
	return p
}

func into[T any](t testing.TB, r response, status int) (v T) {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("got %d, want %d: %s", r.StatusCode, status, r.body)
	}
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
	return v
}

// run plays a run of a firewall that proves everything up to now, or fails.
func (b *bench) run(firewall string, failure parry.Failure, rejects ...parry.Reject) {
	b.t.Helper()
	ctx := context.Background()
	lane, err := b.store.AcquireLane(ctx, firewall)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() {
		if err := lane.Release(ctx); err != nil {
			b.t.Error(err)
		}
	}()
	rev, err := b.store.Revision(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	r := parry.Run{Epoch: lane.Epoch, ID: parry.NewRunID(b.clock.now()), Firewall: firewall, Kind: parry.RunApply, State: parry.RunRunning, Revision: rev,
		StartedAt: b.clock.now()}
	if err := b.store.BeginRun(ctx, r); err != nil {
		b.t.Fatal(err)
	}
	f := parry.FinishRun{Run: r, Applied: failure == "", Rejects: rejects, SetRejects: true}
	f.Run.EndedAt, f.Run.State, f.Run.Failure = b.clock.now(), parry.RunSucceeded, failure
	f.Run.Got = parry.Proof{SHA256: "00", Count: 1}
	if failure != "" {
		f.Run.State = parry.RunFailed
		f.Incident = parry.Incident{ID: parry.NewNotificationID(b.clock.now()), Since: b.clock.now(), Failure: failure, Attempts: 1}
	}
	if err := b.store.FinishRun(ctx, f); err != nil {
		b.t.Fatal(err)
	}
}
