package httpapi

import (
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
	"github.com/parry/parry/internal/testenv"
)

func suspendAfter(n int) func(*Options) {
	return func(o *Options) {
		o.Settings = func() Settings {
			return Settings{Suspend: Suspend{After: n, Within: 10 * time.Minute, For: 15 * time.Minute}}
		}
	}
}

// ask asks for blocks and wants each to be answered so.
func (b *bench) ask(as parry.Role, n int, source string, status int) {
	b.t.Helper()
	for range n {
		if r := b.do(as, "POST", "/api/v1/blocks", `{"source":"`+source+`"}`); r.StatusCode != status {
			b.t.Fatalf("%s as %s: got %d, want %d: %s", source, as, r.StatusCode, status, r.body)
		}
	}
}

func TestSuspension_ofATokenThatInsists(t *testing.T) {
	t.Parallel()
	b := newBench(t, suspendAfter(20))
	b.ask(parry.RoleTrigger, 20, "8.8.8.8", http.StatusUnprocessableEntity)
	r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7"}`)
	p := r.problem(t)
	if r.StatusCode != http.StatusTooManyRequests { // a trigger of parry's keeps it then
		t.Fatalf("got %d: %s", r.StatusCode, r.body)
	}
	if after, err := strconv.Atoi(r.Header.Get("Retry-After")); err != nil || after < 1 || after > 60 {
		t.Errorf("Retry-After %q: an operator may end it before its time", r.Header.Get("Retry-After"))
	}
	for _, want := range []string{"the token trigger is suspended until 2", "20 of its 20 block requests", "from 192.0.2.1", "resolver", "parry token resume trigger"} {
		if !strings.Contains(p.Detail, want) {
			t.Errorf("no %q in %q", want, p.Detail)
		}
	}
	for path, body := range map[string]string{
		"POST /api/v1/hooks/wazuh": `{}`, "DELETE /api/v1/blocks?source=203.0.113.7": "", "PUT /api/v1/lists/x/entry": `{"key":"203.0.113.7"}`,
	} {
		method, path, _ := strings.Cut(path, " ")
		if r := b.do(parry.RoleTrigger, method, path, body); r.StatusCode != http.StatusTooManyRequests {
			t.Errorf("%s %s while suspended: %d", method, path, r.StatusCode)
		}
	}
	b.ask(parry.RoleOperator, 1, "203.0.113.7", http.StatusCreated) // others go on

	// Reading goes on, and tells.
	if who := into[api.Caller](t, b.do(parry.RoleTrigger, "GET", "/api/v1/whoami", ""), 200); who.SuspendedUntil.IsZero() || who.SuspendedWhy == "" {
		t.Errorf("whoami: %+v", who)
	}
	into[api.BlockPage](t, b.do(parry.RoleTrigger, "GET", "/api/v1/blocks", ""), 200)
	all := into[api.TokenList](t, b.do(parry.RoleAdmin, "GET", "/api/v1/tokens", ""), 200)
	suspended := slices.DeleteFunc(all.Items, func(k api.Token) bool { return k.SuspendedUntil.IsZero() })
	if len(suspended) != 1 || suspended[0].Name != "trigger" || suspended[0].SuspendedUntil.Sub(suspended[0].SuspendedAt).Round(time.Second) != 15*time.Minute {
		t.Errorf("%+v", suspended)
	}

	// An operator ends it; the token itself cannot, nor a reader.
	for _, as := range []parry.Role{parry.RoleTrigger, parry.RoleReader} {
		if r := b.do(as, "POST", "/api/v1/tokens/trigger/resume", ""); r.StatusCode != http.StatusForbidden {
			t.Errorf("resumed by %s: %d", as, r.StatusCode)
		}
	}
	if r := b.do(parry.RoleOperator, "POST", "/api/v1/tokens/trigger/resume", ""); r.StatusCode != http.StatusNoContent {
		t.Fatalf("resume: %d %s", r.StatusCode, r.body)
	}
	if r := b.do(parry.RoleOperator, "POST", "/api/v1/tokens/trigger/resume", ""); r.StatusCode != http.StatusConflict {
		t.Errorf("resumed twice: %d", r.StatusCode)
	}
	if r := b.do(parry.RoleOperator, "POST", "/api/v1/tokens/nobody/resume", ""); r.StatusCode != http.StatusNotFound {
		t.Errorf("nobody resumed: %d", r.StatusCode)
	}
	b.ask(parry.RoleTrigger, 1, "203.0.113.8", http.StatusCreated)

	// It counts anew, and its time ends by itself.
	b.ask(parry.RoleTrigger, 20, "8.8.8.8", http.StatusUnprocessableEntity)
	b.ask(parry.RoleTrigger, 1, "203.0.113.9", http.StatusTooManyRequests)
	b.clock.advance(15 * time.Minute)
	b.ask(parry.RoleTrigger, 1, "203.0.113.9", http.StatusCreated)

	b.flush()
	got := b.did("action=token")
	if got = got[len(parry.Roles):]; !slices.Equal(got, []string{"parry token.suspend done", "operator token.resume done", "parry token.suspend done"}) {
		t.Errorf("audit: %q", got)
	}
	if got := b.did("action=request&actor=trigger"); !slices.Contains(got, "trigger request.refused rate-limited") {
		t.Errorf("audit: %q", got)
	}
}

// A bad rule among good ones costs no real block: each would be an attacker let in.
func TestSuspension_notWhenMostIsReal(t *testing.T) {
	t.Parallel()
	b := newBench(t, suspendAfter(20))
	for i := range 60 {
		b.ask(parry.RoleTrigger, 1, fmt.Sprintf("203.0.113.%d", i), http.StatusCreated)
		b.ask(parry.RoleTrigger, 1, "8.8.8.8", http.StatusUnprocessableEntity)
	}
}

func TestSuspension_whatDoesNotCount(t *testing.T) {
	t.Parallel()
	b := newBench(t, suspendAfter(20))
	for range 50 { // dry runs: nothing would come of them
		if r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks?dry_run=true", `{"source":"8.8.8.8"}`); r.StatusCode != http.StatusUnprocessableEntity {
			t.Fatal(r.StatusCode)
		}
	}
	b.ask(parry.RoleTrigger, 19, "8.8.8.8", http.StatusUnprocessableEntity)
	b.clock.advance(10 * time.Minute) // what is long past
	b.ask(parry.RoleTrigger, 19, "8.8.8.8", http.StatusUnprocessableEntity)
	b.ask(parry.RoleTrigger, 1, "203.0.113.7", http.StatusCreated)
	never := newBench(t, suspendAfter(0))
	never.ask(parry.RoleTrigger, 200, "8.8.8.8", http.StatusUnprocessableEntity)
}

// A restart and other replicas honour it.
func TestSuspension_isEverybodys(t *testing.T) {
	t.Parallel()
	for engine, on := range map[string]store.Options{
		"sqlite": {Path: filepath.Join(t.TempDir(), "parry.db")}, "postgres": {Driver: "postgres", DSN: testenv.Postgres(t, testenv.PostgresOptions{})},
	} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			b := newBenchOn(t, on, suspendAfter(20))
			other, err := auth.New(auth.Options{Store: b.store, Now: b.clock.now, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			o := b.server.o
			o.Auth, o.Registry = other, prometheus.NewRegistry()
			replica, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			second := &bench{t: t, server: replica, store: b.store, tokens: b.tokens, clock: b.clock}
			second.ask(parry.RoleTrigger, 1, "203.0.113.7", http.StatusCreated)
			b.ask(parry.RoleTrigger, 20, "8.8.8.8", http.StatusUnprocessableEntity)
			b.clock.advance(3 * time.Second) // how long a token is trusted without a look
			second.ask(parry.RoleTrigger, 1, "203.0.113.8", http.StatusTooManyRequests)
			if r := second.do(parry.RoleOperator, "POST", "/api/v1/tokens/trigger/resume", ""); r.StatusCode != http.StatusNoContent {
				t.Fatal(r.StatusCode)
			}
			second.ask(parry.RoleTrigger, 1, "203.0.113.8", http.StatusCreated)
			b.clock.advance(3 * time.Second)
			b.ask(parry.RoleTrigger, 1, "203.0.113.9", http.StatusCreated)
		})
	}
}
