package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

func TestCreateBlock_makesThenRefreshes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks",
		`{"source":"::ffff:203.0.113.7","destination":"198.51.100.10","destination_port":22,"ttl":"4h","reason":"ssh {{ 7*7 }} <b>","origin":"ossim"}`)
	got := into[api.Block](t, r, 201)
	if got.Source != "203.0.113.7" || got.Destination != "198.51.100.10" || got.Protocol != "tcp/udp" || got.State != "pending" || got.InScope != 2 ||
		got.Enforced != 0 || got.Reason != "ssh {{ 7*7 }} <b>" || got.CreatedBy != "trigger" || got.Firewalls[0] != "default" {
		t.Errorf("got %+v", got)
	}
	if strings.Contains(r.body, "<b>") {
		t.Error("the answer holds what a browser could take for HTML")
	}
	if r.Header.Get("Location") != "/api/v1/blocks/"+got.ID {
		t.Errorf("Location is %q", r.Header.Get("Location"))
	}
	again := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks",
		`{"source":"203.0.113.7","destination":"198.51.100.10","destination_port":22,"protocol":"tcp/udp","ttl":"8h"}`), 200)
	if again.ID != got.ID || again.Count != 2 || !again.ExpiresAt.After(got.ExpiresAt) {
		t.Errorf("a repeat gave %+v after %+v", again, got)
	}
	evidence := into[api.EvidencePage](t, b.do(parry.RoleTrigger, "GET", "/api/v1/blocks/"+got.ID+"/requests", ""), 200).Items
	if len(evidence) != 2 || evidence[1].Reason != "ssh {{ 7*7 }} <b>" || evidence[1].TTL != "4h" || evidence[0].TTL != "8h" || evidence[0].RemoteAddr != "192.0.2.1" {
		t.Errorf("the evidence is %+v", evidence)
	}
}

// A bad rule, or a stolen token, is seen by what it keeps asking for.
func TestCreateBlock_aTokenThatInsistsOnProtectedSourcesIsToldApart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const warning = "a token keeps asking for blocks of what is never blocked"
	ask := func(role parry.Role, n int, source string, status int) {
		t.Helper()
		for range n {
			if r := b.do(role, "POST", "/api/v1/blocks", `{"source":"`+source+`"}`); r.StatusCode != status {
				t.Fatalf("got %d: %s", r.StatusCode, r.body)
			}
		}
	}
	metric := func(want string) {
		t.Helper()
		if text := b.do(parry.RoleReader, "GET", "/metrics", "").body; !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("no %q in the metrics", want)
		}
	}
	ask(parry.RoleTrigger, 9, "8.8.8.8", 422)
	ask(parry.RoleOperator, 9, "8.8.8.8", 422)
	ask(parry.RoleTrigger, 1, "203.0.113.7", 201)
	metric("parry_http_never_block_refusals_total 18")
	metric("parry_http_never_block_insisting_tokens 0")
	if strings.Contains(b.log.String(), warning) {
		t.Error("warned of too few")
	}
	ask(parry.RoleTrigger, 30, "8.8.8.8", 422)
	metric("parry_http_never_block_insisting_tokens 1")
	if got := b.log.String(); strings.Count(got, warning) != 1 || !strings.Contains(got, warning+`","token":"trigger"`) {
		t.Errorf("want one line that names the token: %s", got)
	}
	b.clock.advance(time.Hour)
	metric("parry_http_never_block_insisting_tokens 0")
}

// blind is a store that cannot tell of the firewalls.
type blind struct{ Store }

func (blind) Firewalls(context.Context) ([]parry.FirewallState, error) {
	return nil, parry.Errorf(parry.KindUnavailable, "the database does not take this now; nothing was accepted, try again")
}

// Whoever is told that nothing was accepted asks again, or gives up.
func TestCreateBlock_whatWasAcceptedIsNeverAnsweredAsAnError(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Store = blind{o.Store} })
	if got := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201); got.State != "pending" || got.ID == "" {
		t.Errorf("a new one: %+v", got)
	}
	if got := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 200); got.State != "pending" || got.Count != 2 {
		t.Errorf("a refreshed one: %+v", got)
	}
	if r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks?wait=1s", goodBlock); r.StatusCode != http.StatusAccepted {
		t.Errorf("one that is waited for: %d %s", r.StatusCode, r.body)
	}
}

func TestCreateBlock_aDryRunChecksAndDoesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	try := func(as parry.Role, body string) response {
		return b.do(as, "POST", "/api/v1/blocks?dry_run=true", body)
	}
	if r := try(parry.RoleTrigger, goodBlock); r.StatusCode != http.StatusNoContent || r.body != "" {
		t.Errorf("a new block: %d %s", r.StatusCode, r.body)
	}
	if got := b.standing(); len(got) != 0 {
		t.Fatalf("a dry run made %q", got)
	}
	made := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201)
	if got := into[api.Block](t, try(parry.RoleTrigger, goodBlock), 200); got.ID != made.ID || got.Count != 1 {
		t.Errorf("a refresh: %+v", got)
	}
	if got := into[api.Block](t, b.do(parry.RoleReader, "GET", "/api/v1/blocks/"+made.ID, ""), 200); got.Count != 1 {
		t.Errorf("a dry run counted: %+v", got)
	}
	for body, status := range map[string]int{`{"source":"8.8.8.8"}`: 422, `{"source":"203.0.113.0/24"}`: 403, `{"source":"moon"}`: 400} {
		if r := try(parry.RoleTrigger, body); r.StatusCode != status {
			t.Errorf("%s: %d, want %d", body, r.StatusCode, status)
		}
	}
}

func TestCreateBlock_withoutEnd(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if r := b.do(parry.RoleApprover, "POST", "/api/v1/blocks", `{"source":"203.0.113.7","ttl":"none"}`); r.StatusCode != http.StatusForbidden {
		t.Errorf("an approver: %d", r.StatusCode)
	}
	if got := into[api.Block](t, b.do(parry.RoleAdmin, "POST", "/api/v1/blocks", `{"source":"203.0.113.7","ttl":"none"}`), 201); !got.ExpiresAt.IsZero() {
		t.Errorf("got %+v", got)
	}
}

// A spooled request whose time is over is evidence, and blocks nothing.
func TestCreateBlock_lateEventIsEvidenceOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	when := time.Now().Add(-5 * time.Hour).UTC().Format(time.RFC3339)
	got := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7","ttl":"4h","event_time":"`+when+`"}`), 200)
	if got.EndReason != "expired" || got.State != "lifting" && got.State != "lifted" {
		t.Errorf("got %+v", got)
	}
	if live := into[api.BlockPage](t, b.do(parry.RoleReader, "GET", "/api/v1/blocks", ""), 200); len(live.Items) != 0 {
		t.Errorf("%d blocks are live", len(live.Items))
	}
}

func TestCreateBlock_idempotencyKey(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	post := func(as parry.Role, key, body string) response {
		return b.do(as, "POST", "/api/v1/blocks", body, "Idempotency-Key: "+key)
	}
	first := into[api.Block](t, post(parry.RoleTrigger, "k1", goodBlock), 201)
	r := post(parry.RoleTrigger, "k1", goodBlock)
	if again := into[api.Block](t, r, 200); again.ID != first.ID || again.Count != 1 || r.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("a repeat: %+v, replayed %q", again, r.Header.Get("Idempotency-Replayed"))
	}
	r = post(parry.RoleTrigger, "k1", `{"source":"203.0.113.8"}`)
	if p := r.problem(t); p.Status != 422 || p.Errors[0].Pointer != "Idempotency-Key" {
		t.Errorf("another body: %s", r.body)
	}
	if other := into[api.Block](t, post(parry.RoleOperator, "k1", goodBlock), 200); other.Count != 2 {
		t.Errorf("another token's key: %+v", other)
	}
	if more := into[api.Block](t, post(parry.RoleTrigger, "k2", goodBlock), 200); more.Count != 3 {
		t.Errorf("another key: %+v", more)
	}
}

func TestCreateBlock_agentMeansItsFirewallsWhereNoneAreNamed(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) {
		o.Agent = func(name string) (parry.Selector, bool) { return "core", name == "db01" || name == "007" }
	})
	for body, want := range map[string]string{
		`{"source":"203.0.113.1","agent":"db01"}`:                        "core",
		`{"source":"203.0.113.2","agent":"007"}`:                         "core",
		`{"source":"203.0.113.3","agent":"db01","firewalls":["edge-a"]}`: "edge-a",
		`{"source":"203.0.113.4","agent":"web01"}`:                       "default",
		`{"source":"203.0.113.5"}`:                                       "default",
	} {
		if got := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", body), 201); got.Firewalls[0] != want {
			t.Errorf("%s is for %v, want %s", body, got.Firewalls, want)
		}
	}
	b.tokens["narrow"] = b.token(parry.Token{Name: "narrow", Role: parry.RoleTrigger, Firewalls: []string{"edge"}})
	if r := b.do("narrow", "POST", "/api/v1/blocks", `{"source":"203.0.113.6","agent":"db01"}`); r.StatusCode != http.StatusForbidden {
		t.Errorf("an agent stands for what the token may not name: %d %s", r.StatusCode, r.body)
	}
}

func TestCreateBlock_refusesWhatNoFirewallExpresses(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) {
		o.Express = func(fw *parry.Firewall, m parry.Match) error {
			if m.Protocol == parry.ProtoSCTP && fw.Name != "core" {
				return errors.New("it knows no sctp")
			}
			return nil
		}
	})
	r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7","protocol":"sctp"}`)
	if p := r.problem(t); p.Status != 422 || len(p.Errors) != 2 || p.Errors[0].Detail != "edge-a: it knows no sctp" {
		t.Errorf("%s", r.body)
	}
	if r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7","protocol":"sctp","firewalls":["all"]}`); r.StatusCode != http.StatusCreated {
		t.Errorf("one can: %s", r.body)
	}
}

func TestCreateBlock_limits(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Settings = func() Settings { return Settings{MaxBlocks: 2} } })
	for i, want := range []int{201, 201, 422} {
		if r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.`+string(rune('1'+i))+`"}`); r.StatusCode != want {
			t.Errorf("block %d: %d, want %d: %s", i, r.StatusCode, want, r.body)
		}
	}
}

// posting sends a request that waits, and tells when it is among those that wait.
func (b *bench) posting(path, body string) <-chan response {
	b.t.Helper()
	before := b.server.waiters.Load()
	done := make(chan response, 1)
	go func() { done <- b.do(parry.RoleOperator, "POST", path, body) }()
	b.eventually(func() bool { return b.server.waiters.Load() > before || len(done) > 0 })
	return done
}

func (b *bench) eventually(ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatal("it did not come true within 10 s")
		}
	}
}

func (b *bench) accepted(n int) {
	b.t.Helper()
	b.eventually(func() bool {
		page, err := b.store.Blocks(context.Background(), parry.BlockFilter{Limit: 100})
		return err == nil && len(page.Items) == n
	})
}

func TestWait_answersWhenEveryFirewallHasSpoken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		second  func(b *bench, id parry.BlockID)
		state   api.BlockState
		reason  string
		enforce int
	}{
		"proved":  {func(b *bench, _ parry.BlockID) { b.run("edge-b", "") }, "enforced", "", 2},
		"failing": {func(b *bench, _ parry.BlockID) { b.run("edge-b", parry.FailUnreachable) }, "degraded", "unreachable", 1},
		"rejected": {func(b *bench, id parry.BlockID) {
			b.run("edge-b", "", parry.Reject{Firewall: "edge-b", BlockID: id, Code: "capacity", At: time.Now()})
		}, "rejected", "capacity", 1},
		"held": {func(b *bench, _ parry.BlockID) { b.do(parry.RoleOperator, "PUT", "/api/v1/firewalls/edge-b/hold", "") }, "held", "held by operator", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if name != "held" { // no run tells of that
				b.server.lookAgain = time.Hour
			}
			done := b.posting("/api/v1/blocks?wait=2m", goodBlock)
			b.accepted(1)
			b.run("edge-a", "")
			select {
			case r := <-done:
				t.Fatalf("answered before edge-b had spoken: %s", r.body)
			case <-time.After(50 * time.Millisecond):
			}
			page, _ := b.store.Blocks(context.Background(), parry.BlockFilter{})
			c.second(b, page.Items[0].ID)
			var r response
			select {
			case r = <-done:
			case <-time.After(20 * time.Second):
				t.Fatal("nothing woke it")
			}
			got := into[api.Block](t, r, 201)
			if got.State != c.state || got.Enforced != c.enforce || got.InScope != 2 || got.Status[1].Reason != c.reason {
				t.Errorf("got %+v", got)
			}
			b.eventually(func() bool { return b.server.waiters.Load() == 0 })
		})
	}
}

func TestWait_isOver(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if got := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks?wait=1s", goodBlock), 202); got.State != "pending" {
		t.Errorf("got %+v", got)
	}
}

func TestWait_endsAtOnceWhenDraining(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	done := b.posting("/api/v1/blocks?wait=2m", goodBlock)
	b.accepted(1)
	b.server.Drain()
	if got := into[api.Block](t, <-done, 202); got.State != "pending" {
		t.Errorf("got %+v", got)
	}
}

func TestWait_beyondTheBoundIsAnsweredWithoutWaiting(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Settings = func() Settings { return Settings{Waiters: 1} } })
	done := b.posting("/api/v1/blocks?wait=2m", goodBlock)
	b.accepted(1)
	r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks?wait=2m", `{"source":"203.0.113.8"}`)
	if got := into[api.Block](t, r, 202); got.State != "pending" {
		t.Errorf("got %+v", got)
	}
	b.accepted(2)
	b.server.Drain()
	<-done
}

// A wait outlives the server's write deadline, and a caller that goes away frees its place.
func TestWait_overARealConnection(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	srv := httptest.NewUnstartedServer(b.server)
	srv.Config.WriteTimeout = 300 * time.Millisecond
	srv.Start()
	defer srv.Close()
	post := func(ctx context.Context, body string) (*http.Response, error) {
		r, _ := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/api/v1/blocks?wait=1s", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+b.tokens[parry.RoleTrigger])
		r.Header.Set("Content-Type", jsonType)
		return srv.Client().Do(r)
	}
	res, err := post(t.Context(), goodBlock)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || res.StatusCode != http.StatusAccepted {
		t.Errorf("got %d %s, %v", res.StatusCode, body, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if res, err := post(ctx, `{"source":"203.0.113.8"}`); err == nil {
			res.Body.Close()
		}
	})
	b.accepted(2)
	cancel()
	wg.Wait()
	b.eventually(func() bool { return b.server.waiters.Load() == 0 })
}

func TestDeleteBlock_tellsWhatStillCovers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id := into[api.Block](t, b.do(parry.RoleOperator, "POST", "/api/v1/blocks", goodBlock), 201).ID
	wide := into[api.Block](t, b.do(parry.RoleOperator, "POST", "/api/v1/blocks", `{"source":"203.0.113.0/24"}`), 201).ID
	b.run("edge-a", "")
	b.run("edge-b", "")
	got := into[api.EndedBlock](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks/"+id, ""), 200)
	if got.Block.State != "lifting" || got.Block.Enforced != 2 || got.Block.EndReason != "deleted" || got.Block.EndedBy != "operator" ||
		len(got.StillCoveredBy) != 1 || got.StillCoveredBy[0].ID != wide {
		t.Errorf("got %+v", got)
	}
	done := make(chan response, 1)
	go func() { done <- b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks/"+id+"?wait=30s", "") }()
	b.eventually(func() bool { return b.server.waiters.Load() == 1 })
	b.run("edge-a", "")
	b.run("edge-b", "")
	if got := into[api.EndedBlock](t, <-done, 200); got.Block.State != "lifted" || got.Block.Enforced != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestUpdateBlock_extendsAndShortens(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	made := into[api.Block](t, b.do(parry.RoleOperator, "POST", "/api/v1/blocks", goodBlock), 201)
	patch := func(as parry.Role, body string) response { return b.do(as, "PATCH", "/api/v1/blocks/"+made.ID, body) }
	if got := into[api.Block](t, patch(parry.RoleOperator, `{"ttl":"1h"}`), 200); !got.ExpiresAt.Before(made.ExpiresAt) {
		t.Errorf("shortened to %s", got.ExpiresAt)
	}
	want := time.Now().Add(10 * 24 * time.Hour).UTC().Truncate(time.Second)
	if got := into[api.Block](t, patch(parry.RoleOperator, `{"expires_at":"`+want.Format(time.RFC3339)+`"}`), 200); !got.ExpiresAt.Equal(want) {
		t.Errorf("got %s, want %s", got.ExpiresAt, want)
	}
	if r := patch(parry.RoleOperator, `{"ttl":"31d"}`); r.StatusCode != http.StatusUnprocessableEntity || r.problem(t).Errors[0].Pointer != "/ttl" {
		t.Errorf("beyond the cap: %s", r.body)
	}
	if r := patch(parry.RoleOperator, `{"ttl":"none"}`); r.StatusCode != http.StatusForbidden {
		t.Errorf("without end by an operator: %d", r.StatusCode)
	}
	if got := into[api.Block](t, patch(parry.RoleAdmin, `{"ttl":"none"}`), 200); !got.ExpiresAt.IsZero() {
		t.Errorf("without end: %s", got.ExpiresAt)
	}
	b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks/"+made.ID, "")
	if r := patch(parry.RoleOperator, `{"ttl":"1h"}`); r.StatusCode != http.StatusConflict {
		t.Errorf("an ended one: %d %s", r.StatusCode, r.body)
	}
}

func TestListBlocks_filtersAndPages(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, body := range []string{
		`{"source":"203.0.113.1","origin":"ossim"}`, `{"source":"203.0.113.2","ttl":"1h"}`, `{"source":"203.0.113.0/24","firewalls":["core"]}`, `{"source":"2001:db8::1"}`,
	} {
		into[api.Block](t, b.do(parry.RoleOperator, "POST", "/api/v1/blocks", body), 201)
	}
	ended := into[api.Block](t, b.do(parry.RoleOperator, "POST", "/api/v1/blocks", `{"source":"203.0.113.9"}`), 201).ID
	b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks/"+ended, "")
	for query, want := range map[string]string{
		"": "203.0.113.1 203.0.113.2 203.0.113.0/24 2001:db8::1", "?status=ended": "203.0.113.9", "?source=203.0.113.0/24": "203.0.113.0/24",
		"?covering=203.0.113.2": "203.0.113.2 203.0.113.0/24", "?within=203.0.113.0/24": "203.0.113.1 203.0.113.2 203.0.113.0/24", "?origin=ossim": "203.0.113.1",
		"?firewalls=core": "203.0.113.0/24", "?created_by=nobody": "", "?expires_within=2h": "203.0.113.2", "?within=203.0.113.0/24&status=ended": "203.0.113.9",
	} {
		var got []string
		for _, x := range into[api.BlockPage](t, b.do(parry.RoleReader, "GET", "/api/v1/blocks"+query, ""), 200).Items {
			got = append(got, x.Source)
		}
		slices.Sort(got) // those of one millisecond have no order
		if sorted := slices.Sorted(slices.Values(strings.Fields(want))); !slices.Equal(got, sorted) {
			t.Errorf("%q: got %v, want %s", query, got, want)
		}
	}
	var all []string
	for cursor, n := "", 0; n == 0 || cursor != ""; n++ {
		page := into[api.BlockPage](t, b.do(parry.RoleReader, "GET", "/api/v1/blocks?limit=3&status=all&cursor="+cursor, ""), 200)
		for _, x := range page.Items {
			all = append(all, x.ID)
		}
		cursor = page.Next
	}
	if len(all) != 5 || len(slices.Compact(slices.Sorted(slices.Values(all)))) != 5 {
		t.Errorf("paging gave %v", all)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, src := range []string{"203.0.113.0/24", "203.0.113.7", "203.0.113.8"} {
		b.do(parry.RoleOperator, "POST", "/api/v1/blocks", `{"source":"`+src+`","reason":"scan of `+src+`"}`)
	}
	got := into[api.Explanation](t, b.do(parry.RoleReader, "GET", "/api/v1/explain?address=203.0.113.7", ""), 200)
	if len(got.Blocks) != 2 || len(got.Requests) != 2 || len(got.Exemptions) != 0 || got.Special != "" || len(got.Ended) != 0 {
		t.Errorf("got %+v", got)
	}
	if got := into[api.Explanation](t, b.do(parry.RoleReader, "GET", "/api/v1/explain?address=8.8.8.0/24", ""), 200); len(got.Exemptions) != 1 || got.Exemptions[0].ID != "cfg:dns" {
		t.Errorf("got %+v", got)
	}
	if got := into[api.Explanation](t, b.do(parry.RoleReader, "GET", "/api/v1/explain?address=::ffff:127.0.0.1", ""), 200); got.Special == "" || got.Address != "127.0.0.1" {
		t.Errorf("got %+v", got)
	}
}

// Destinations and ports cost rules on a firewall; sources alone do not.
func TestCreateBlock_beyondMaxRules(t *testing.T) {
	t.Parallel()
	for _, widen := range []bool{false, true} {
		b := newBench(t, func(o *Options) {
			fleet := &parry.Fleet{Firewalls: slices.Clone(testFleet.Firewalls), Default: testFleet.Default}
			fleet.Firewalls[1].MaxRules = 2 // edge-a: the least in scope counts
			o.Fleet = func() *parry.Fleet { return fleet }
			o.Settings = func() Settings { return Settings{WidenBeyondMax: widen} }
		})
		post := func(members string) response {
			return b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7",`+members+`}`)
		}
		for _, members := range []string{`"destination_port":22`, `"destination_port":23`, `"destination_port":22,"firewalls":["edge-a"]`} {
			into[api.Block](t, post(members), http.StatusCreated)
		}
		r := post(`"destination":"198.51.100.10","destination_port":24,"protocol":"tcp","firewalls":["edge-a"]`)
		if !widen {
			if p := r.problem(t); p.Status != http.StatusUnprocessableEntity || !strings.Contains(p.Detail, "2 distinct rules") {
				t.Errorf("beyond max_rules: %s", r.body)
			}
		} else if got := into[api.Block](t, r, http.StatusCreated); got.Widened != "destination 198.51.100.10 port 24/tcp" || got.Destination != "" {
			t.Errorf("widened to %+v", got)
		}
		into[api.Block](t, post(`"destination_port":24,"firewalls":["core"]`), http.StatusCreated) // another firewall's rules
	}
}

// A selector's meaning is remembered, and must follow the configuration.
func TestCreateBlock_selectorsFollowTheFleet(t *testing.T) {
	t.Parallel()
	fleet := testFleet
	b := newBench(t, func(o *Options) { o.Fleet = func() *parry.Fleet { return fleet } })
	into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7","firewalls":["dc"]}`), http.StatusCreated)
	fleet = &parry.Fleet{Firewalls: testFleet.Firewalls[1:], Default: "edge"}
	if r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7","firewalls":["dc"]}`); r.StatusCode != http.StatusBadRequest {
		t.Errorf("a group that is gone: %d %s", r.StatusCode, r.body)
	}
}

func TestBlocks_tellWhatTheyBecomeWhereDestinationsAreForwarded(t *testing.T) {
	t.Parallel()
	inside := netip.MustParsePrefix("10.0.0.5/32")
	b := newBench(t, func(o *Options) {
		o.Becomes = func(fw *parry.Firewall, m parry.Match) []parry.Match {
			if fw.Name != "edge-a" || m.Port != 443 {
				return nil
			}
			m.Destination, m.Port = inside, 8443
			return []parry.Match{m}
		}
	})
	made := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks",
		`{"source":"203.0.113.7","destination":"198.51.100.1","destination_port":443,"protocol":"tcp"}`), 201)
	into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7"}`), 201)
	b.run("edge-b", "", parry.Reject{Firewall: "edge-b", BlockID: parry.BlockID(made.ID), Code: "destination_is_firewall"})
	got := into[api.Explanation](t, b.do(parry.RoleReader, "GET", "/api/v1/explain?address=203.0.113.7", ""), 200)
	for _, block := range got.Blocks {
		for _, on := range block.Status {
			want := []api.Target(nil)
			if block.ID == made.ID && on.Name == "edge-a" {
				want = []api.Target{{Destination: "10.0.0.5", Protocol: "tcp", DestinationPort: 8443}}
			}
			if diff := cmp.Diff(want, on.Becomes); diff != "" {
				t.Errorf("%s on %s: %s", block.ID, on.Name, diff)
			}
			if rejected := block.ID == made.ID && on.Name == "edge-b"; strings.Contains(on.Hint, "No port forward") != rejected {
				t.Errorf("%s on %s: %s, hint %q", block.ID, on.Name, on.State, on.Hint)
			}
		}
		if block.ID == made.ID && (block.Destination != "198.51.100.1" || block.DestinationPort != 443) {
			t.Errorf("the block keeps what was asked for, and has %+v", block)
		}
	}
}
