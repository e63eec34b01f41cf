package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/parry"
)

// did lists what the audit tells: who, action, outcome; newest last.
func (b *bench) did(query string) (out []string) {
	b.t.Helper()
	page := into[api.AuditPage](b.t, b.do(parry.RoleAuditor, "GET", "/api/v1/audit?limit=1000&"+query, ""), 200)
	for _, r := range slices.Backward(page.Items) {
		out = append(out, r.Actor+" "+r.Action+" "+r.Outcome)
	}
	return out
}

// flush writes what was refused until now.
func (b *bench) flush() {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	cancel()
	if err := b.server.Run(ctx); err != nil {
		b.t.Fatal(err)
	}
}

func TestAudit_tellsWhoAskedForWhat(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	made := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7","reason":"<b>\u202e x"}`, "X-Request-Id: mine"), 201)
	b.do(parry.RoleOperator, "PATCH", "/api/v1/blocks/"+made.ID, `{"ttl":"1h"}`)
	b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks/"+made.ID, "")
	b.do(parry.RoleOperator, "PUT", "/api/v1/hold", `{"reason":"work"}`)
	b.do(parry.RoleApprover, "POST", "/api/v1/exemptions", `{"prefix":"192.0.2.0/24","reason":"ours"}`)
	into[api.CreatedToken](t, b.do(parry.RoleAdmin, "POST", "/api/v1/tokens", `{"name":"new","role":"trigger"}`), 201)
	b.do(parry.RoleOperator, "POST", "/api/v1/lists", `{"name":"watch","type":"ip"}`)
	b.do(parry.RoleOperator, "PUT", "/api/v1/lists/watch/entry", `{"key":"203.0.113.9"}`)
	b.do(parry.RoleOperator, "DELETE", "/api/v1/lists/watch/entry?key=203.0.113.9", "")
	want := []string{
		"trigger block.add done", "operator block.expiry done", "operator block.end done", "operator firewall.hold done", "approver exemption.add done",
		"admin token.create done", "operator list.create done", "operator list.put done", "operator list.remove done",
	}
	var got []string
	for _, l := range b.did("") {
		if !strings.HasPrefix(l, "parry ") {
			got = append(got, l)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	page := into[api.AuditPage](t, b.do(parry.RoleAdmin, "GET", "/api/v1/audit?object="+made.ID+"&action=block.add", ""), 200)
	if len(page.Items) != 1 {
		t.Fatalf("%+v", page)
	}
	r := page.Items[0]
	if r.RequestID != "mine" || r.Remote != "192.0.2.1" || r.Role != "trigger" || !strings.HasPrefix(r.TokenID, "t-") {
		t.Errorf("%+v", r)
	}
	var detail struct{ Source, Reason string }
	if err := json.Unmarshal([]byte(r.Detail), &detail); err != nil || detail.Source != "203.0.113.7" || detail.Reason != "<b>� x" || strings.Contains(r.Detail, "<") {
		t.Errorf("%s: %v", r.Detail, err)
	}
}

func TestAudit_refusalsAreSummedUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	block := func(as parry.Role) { b.do(as, "POST", "/api/v1/blocks", `{"source":"8.8.8.8"}`) }
	for range 500 {
		block(parry.RoleTrigger)                                             // refused by policy
		b.do(parry.RoleTrigger, "DELETE", "/api/v1/tokens/t-1", "")          // forbidden
		b.do("", "GET", "/api/v1/blocks", "")                                // nobody that parry knows
		b.do("", "GET", "/api/v1/blocks", "", "Authorization: Bearer parry") // nor this
	}
	b.flush()
	b.clock.advance(2 * refusalsWithin)
	block(parry.RoleTrigger)
	b.flush()
	page := into[api.AuditPage](t, b.do(parry.RoleAuditor, "GET", "/api/v1/audit?action=request", ""), 200)
	var got []string
	for _, r := range page.Items {
		var d struct {
			Count int64
			Last  string
		}
		if err := json.Unmarshal([]byte(r.Detail), &d); err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.Join([]string{r.Actor, r.Outcome, r.Object, r.Role, string(must(json.Marshal(d.Count)))}, " "))
		if r.Outcome == "refused" && !strings.Contains(d.Last, "resolver") {
			t.Errorf("why is not told: %s", d.Last)
		}
	}
	slices.Sort(got)
	if d := cmp.Diff([]string{
		"trigger forbidden DELETE /api/v1/tokens/:id trigger 500", "trigger refused POST /api/v1/blocks trigger 1", "trigger refused POST /api/v1/blocks trigger 500",
	}, got); d != "" {
		t.Error(d)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A token's id in a wrong token says nothing of who sent it; a revoked one with its secret does.
func TestAudit_refusedTokens(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	all := into[api.TokenList](t, b.do(parry.RoleAdmin, "GET", "/api/v1/tokens", ""), 200)
	for _, tok := range all.Items {
		switch tok.Name {
		case "operator":
			guessed, _ := auth.Mint(parry.TokenID(tok.ID)) // well-formed, with another secret
			b.do("", "GET", "/api/v1/blocks", "", "Authorization: Bearer "+guessed)
		case "reader":
			b.do(parry.RoleAdmin, "DELETE", "/api/v1/tokens/"+tok.ID, "")
		}
	}
	b.do(parry.RoleReader, "GET", "/api/v1/blocks", "")
	b.flush()
	got := b.did("action=request")
	slices.Sort(got)
	if d := cmp.Diff([]string{"- request.refused unauthenticated", "reader request.refused unauthenticated"}, got); d != "" {
		t.Error(d)
	}
}

// lines reads an export.
func lines(t *testing.T, body string) iter.Seq2[audit.Row, error] {
	return func(yield func(audit.Row, error) bool) {
		for s := bufio.NewScanner(strings.NewReader(body)); s.Scan(); {
			var r audit.Row
			err := json.Unmarshal(s.Bytes(), &r)
			if !yield(r, err) {
				return
			}
		}
	}
}

func TestAudit_exportIsWhole(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for i := range 2100 {
		if err := b.store.Audit(t.Context(), parry.AuditEvent{Action: parry.ActHold, Object: string(rune('a'+i%26)) + "\xff"}); err != nil {
			t.Fatal(err)
		}
	}
	head := into[api.AuditHead](t, b.do(parry.RoleAuditor, "GET", "/api/v1/audit/head", ""), 200)
	r := b.do(parry.RoleAuditor, "GET", "/api/v1/audit/export", "")
	if ct := r.Header.Get("Content-Type"); r.StatusCode != http.StatusOK || ct != "application/x-ndjson" {
		t.Fatal(r.StatusCode, ct)
	}
	rep, err := audit.Verify(lines(t, r.body), audit.Anchor{Seq: head.Seq, Hash: head.Hash})
	if err != nil || len(rep.Problems) > 0 || rep.Last != head.Seq || !head.Whole {
		t.Errorf("%+v, %v", rep, err)
	}
	part := b.do(parry.RoleAuditor, "GET", "/api/v1/audit/export?after=2000", "")
	if n := strings.Count(part.body, "\n"); int64(n) != head.Seq-2000 {
		t.Errorf("%d lines after 2000 of %d", n, head.Seq)
	}
	q := url.Values{"since": {time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}}
	if got := b.did(q.Encode()); len(got) != 0 {
		t.Error(got)
	}

	// The program of docs/OPERATIONS.md, as somebody without parry would run it.
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "OPERATIONS.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, code, found := strings.Cut(string(doc), "    import hashlib, json, sys\n")
	code, _, ends := strings.Cut(code, "\n\n")
	if !found || !ends {
		t.Fatal("docs/OPERATIONS.md has no program that verifies an export")
	}
	code = "import hashlib, json, sys\n" + strings.ReplaceAll("\n"+code, "\n    ", "\n")
	run := func(body string) (string, error) {
		c := exec.Command("python3", "-c", code)
		c.Stdin = strings.NewReader(body)
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := run(r.body); err != nil || !strings.Contains(out, head.Hash) {
		t.Errorf("%v: %s", err, out)
	}
	for what, body := range map[string]string{
		"a changed row": strings.Replace(r.body, `"actor":"parry"`, `"actor":"perry"`, 1),
		"a row less":    strings.Join(slices.Delete(strings.SplitAfter(r.body, "\n"), 7, 8), ""),
	} {
		if out, err := run(body); err == nil {
			t.Errorf("%s passes: %s", what, out)
		}
	}
}

// brokenAudit fails at the second page.
type brokenAudit struct {
	Store
	pages int
}

func (s *brokenAudit) AuditRows(ctx context.Context, f parry.AuditFilter) (parry.Page[audit.Row], error) {
	if s.pages++; s.pages > 1 {
		return parry.Page[audit.Row]{}, parry.Errorf(parry.KindUnavailable, "gone")
	}
	return s.Store.AuditRows(ctx, f)
}

func TestAudit_aPartOfAnExportIsNoAnswer(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Store = &brokenAudit{Store: o.Store} })
	for range 1500 {
		if err := b.store.Audit(t.Context(), parry.AuditEvent{Action: parry.ActHold}); err != nil {
			t.Fatal(err)
		}
	}
	srv := httptest.NewServer(b.server)
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/api/v1/audit/export", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+b.tokens[parry.RoleAuditor])
	r, err := http.DefaultClient.Do(req)
	if err == nil {
		_, err = bufio.NewReader(r.Body).WriteTo(new(strings.Builder))
		_ = r.Body.Close()
	}
	if err == nil {
		t.Error("the connection ended as if all had been sent")
	}
}
