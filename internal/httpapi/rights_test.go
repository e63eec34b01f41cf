package httpapi

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/parry/parry/internal/parry"
)

// routes lists every route of the document with the least role that may use it: "" is public. A reader has no right to block, and a trigger
// none to read all, so those rows name the roles themselves.
var routes = map[string][]parry.Role{
	"GET /healthz":             nil,
	"GET /readyz":              nil,
	"GET /api/v1/openapi.json": nil,

	"GET /metrics":        atLeast(parry.RoleReader),
	"GET /api/v1/whoami":  parry.Roles,
	"GET /api/v1/version": parry.Roles,

	"POST /api/v1/blocks":             {parry.RoleTrigger, parry.RoleOperator, parry.RoleApprover, parry.RoleAdmin},
	"GET /api/v1/blocks":              atLeast(parry.RoleTrigger),
	"GET /api/v1/blocks/:id":          atLeast(parry.RoleTrigger),
	"GET /api/v1/blocks/:id/requests": atLeast(parry.RoleTrigger),
	"PATCH /api/v1/blocks/:id":        atLeast(parry.RoleOperator),
	"DELETE /api/v1/blocks/:id":       atLeast(parry.RoleOperator),
	"DELETE /api/v1/blocks":           atLeast(parry.RoleOperator), // a trigger where its word is honoured
	"GET /api/v1/explain":             atLeast(parry.RoleReader),

	"POST /api/v1/hooks/wazuh": {parry.RoleTrigger, parry.RoleOperator, parry.RoleApprover, parry.RoleAdmin},

	"GET /api/v1/firewalls":                atLeast(parry.RoleReader),
	"GET /api/v1/firewalls/:name":          atLeast(parry.RoleReader),
	"GET /api/v1/firewalls/:name/entries":  atLeast(parry.RoleReader),
	"PUT /api/v1/firewalls/:name/hold":     atLeast(parry.RoleOperator),
	"DELETE /api/v1/firewalls/:name/hold":  atLeast(parry.RoleOperator),
	"PUT /api/v1/hold":                     atLeast(parry.RoleOperator),
	"GET /api/v1/approvals":                atLeast(parry.RoleReader),
	"GET /api/v1/approvals/:id":            atLeast(parry.RoleReader),
	"GET /api/v1/approvals/:id/diff":       atLeast(parry.RoleReader),
	"POST /api/v1/approvals/:id/approve":   atLeast(parry.RoleApprover),
	"POST /api/v1/approvals/:id/deny":      atLeast(parry.RoleApprover),
	"PUT /api/v1/panic":                    atLeast(parry.RoleOperator),
	"DELETE /api/v1/panic":                 atLeast(parry.RoleOperator),
	"DELETE /api/v1/hold":                  atLeast(parry.RoleOperator),
	"POST /api/v1/firewalls/:name/verify":  atLeast(parry.RoleOperator),
	"POST /api/v1/firewalls/:name/retire":  atLeast(parry.RoleApprover),
	"POST /api/v1/firewalls/:name/adopt":   atLeast(parry.RoleApprover),
	"POST /api/v1/firewalls/:name/approve": atLeast(parry.RoleApprover),

	"GET /api/v1/bundles":                 atLeast(parry.RoleReader),
	"GET /api/v1/bundles/:name":           atLeast(parry.RoleReader),
	"GET /api/v1/bundles/:name/diff":      atLeast(parry.RoleReader),
	"POST /api/v1/bundles/:name/check":    atLeast(parry.RoleOperator),
	"PUT /api/v1/bundles/:name/use":       atLeast(parry.RoleApprover),
	"POST /api/v1/bundles/:name/rollback": atLeast(parry.RoleApprover),

	"GET /api/v1/runs":            atLeast(parry.RoleReader),
	"GET /api/v1/runs/:id":        atLeast(parry.RoleReader),
	"GET /api/v1/runs/:id/log":    atLeast(parry.RoleReader),
	"GET /api/v1/runs/:id/events": atLeast(parry.RoleReader),

	"GET /api/v1/feeds":        atLeast(parry.RoleReader),
	"GET /api/v1/feeds/:name":  append([]parry.Role{parry.RoleFeed}, atLeast(parry.RoleReader)...),
	"HEAD /api/v1/feeds/:name": append([]parry.Role{parry.RoleFeed}, atLeast(parry.RoleReader)...),

	"GET /api/v1/exemptions":        atLeast(parry.RoleReader),
	"POST /api/v1/exemptions":       atLeast(parry.RoleApprover),
	"DELETE /api/v1/exemptions/:id": atLeast(parry.RoleApprover),

	"GET /api/v1/channels":             atLeast(parry.RoleReader),
	"POST /api/v1/channels/:name/test": atLeast(parry.RoleOperator),
	"GET /api/v1/lists":                atLeast(parry.RoleReader),
	"POST /api/v1/lists":               atLeast(parry.RoleOperator),
	"GET /api/v1/lists/:name":          atLeast(parry.RoleReader),
	"DELETE /api/v1/lists/:name":       atLeast(parry.RoleOperator),
	"GET /api/v1/lists/:name/entries":  atLeast(parry.RoleReader),
	"POST /api/v1/lists/:name/entries": {parry.RoleTrigger, parry.RoleOperator, parry.RoleApprover, parry.RoleAdmin},
	"PUT /api/v1/lists/:name/entry":    {parry.RoleTrigger, parry.RoleOperator, parry.RoleApprover, parry.RoleAdmin},
	"DELETE /api/v1/lists/:name/entry": atLeast(parry.RoleOperator),
	"GET /api/v1/lists/:name/lookup":   atLeast(parry.RoleReader),
	"POST /api/v1/lists/:name/lookup":  atLeast(parry.RoleReader),
	"GET /api/v1/lookup":               atLeast(parry.RoleReader),

	"GET /api/v1/tokens":        atLeast(parry.RoleAdmin),
	"POST /api/v1/tokens":       atLeast(parry.RoleAdmin),
	"DELETE /api/v1/tokens/:id": atLeast(parry.RoleAdmin),

	"POST /api/v1/tokens/:id/resume": atLeast(parry.RoleOperator),

	"GET /api/v1/audit":        {parry.RoleAuditor, parry.RoleAdmin},
	"GET /api/v1/audit/head":   {parry.RoleAuditor, parry.RoleAdmin},
	"GET /api/v1/audit/export": {parry.RoleAuditor, parry.RoleAdmin},
}

func atLeast(r parry.Role) []parry.Role { return parry.Roles[slices.Index(parry.Roles, r):] }

func TestRights_everyRouteForEveryRole(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	served := map[string]bool{}
	for _, r := range b.server.engine.Routes() {
		served[r.Method+" "+r.Path] = true
	}
	for route := range served {
		if _, ok := routes[route]; !ok {
			t.Errorf("%s is served and not in this test's table", route)
		}
	}
	for route, may := range routes {
		if !served[route] {
			t.Errorf("%s is not served", route)
			continue
		}
		method, path, _ := strings.Cut(route, " ")
		path = strings.NewReplacer(":id", "none", ":name", "none").Replace(path)
		denied := func(as parry.Role) int {
			r := b.do(as, method, path, "")
			if r.StatusCode == http.StatusUnauthorized || r.StatusCode == http.StatusForbidden {
				r.problem(t)
				return r.StatusCode
			}
			return 0
		}
		public := may == nil
		if got := denied(""); (got == http.StatusUnauthorized) == public {
			t.Errorf("%s without a token: %d", route, got)
		}
		for _, role := range parry.Roles {
			want := 0
			if !public && !slices.Contains(may, role) {
				want = http.StatusForbidden
			}
			if got := denied(role); got != want {
				t.Errorf("%s as %s: %d, want %d", route, role, got, want)
			}
		}
	}
}

func TestRights_rootAtTheSocketNeedsNoToken(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := httptest.NewRequest(http.MethodGet, "/api/v1/tokens", nil)
	r.RemoteAddr = "@"
	w := httptest.NewRecorder()
	b.server.ServeHTTP(w, r)
	if w.Code != http.StatusUnauthorized {
		t.Errorf("a request that only looks local: %d", w.Code)
	}
}

func TestReadOwn_anothersBlockIsNotThere(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	mine := into[map[string]any](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7"}`), 201)["id"].(string)
	theirs := into[map[string]any](t, b.do(parry.RoleOperator, "POST", "/api/v1/blocks", `{"source":"203.0.113.8"}`), 201)["id"].(string)
	for _, path := range []string{"", "/requests"} {
		if r := b.do(parry.RoleTrigger, "GET", "/api/v1/blocks/"+mine+path, ""); r.StatusCode != http.StatusOK {
			t.Errorf("its own%s: %d", path, r.StatusCode)
		}
		other := b.do(parry.RoleTrigger, "GET", "/api/v1/blocks/"+theirs+path, "")
		none := b.do(parry.RoleTrigger, "GET", "/api/v1/blocks/b-none"+path, "")
		a, z := other.problem(t), none.problem(t)
		if a.Status != 404 || strings.ReplaceAll(a.Detail, theirs, "") != strings.ReplaceAll(z.Detail, "b-none", "") {
			t.Errorf("another's%s can be told from none: %+v, %+v", path, a, z)
		}
		if r := b.do(parry.RoleReader, "GET", "/api/v1/blocks/"+mine+path, ""); r.StatusCode != http.StatusOK {
			t.Errorf("a reader gets %d", r.StatusCode)
		}
	}
	for query, want := range map[string]int{"": 1, "?created_by=trigger": 1, "?created_by=operator": 0, "?source=203.0.113.8": 0, "?status=all": 1} {
		page := into[struct{ Items []struct{ Source string } }](t, b.do(parry.RoleTrigger, "GET", "/api/v1/blocks"+query, ""), 200)
		if len(page.Items) != want || want == 1 && page.Items[0].Source != "203.0.113.7" {
			t.Errorf("a trigger's list %q holds %v", query, page.Items)
		}
	}
}

func TestTokenLimits_bindWhatItMayChange(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.tokens["narrow"] = b.token(parry.Token{Name: "narrow", Role: parry.RoleApprover, Firewalls: []string{"edge"}})
	post := func(as parry.Role, body string) response { return b.do(as, "POST", "/api/v1/blocks", body) }
	if r := post("narrow", `{"source":"203.0.113.7"}`); r.StatusCode != http.StatusForbidden || r.problem(t).Errors[0].Pointer != "/firewalls" {
		t.Errorf("the default by a token for edge: %s", r.body)
	}
	if r := post("narrow", `{"source":"203.0.113.7","firewalls":["edge-a"]}`); r.StatusCode != http.StatusCreated {
		t.Errorf("a firewall of edge: %s", r.body)
	}
	core := into[struct{ ID string }](t, post(parry.RoleAdmin, `{"source":"203.0.113.9","firewalls":["core"]}`), 201).ID
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"DELETE", "/api/v1/blocks/" + core, "", 403}, {"PATCH", "/api/v1/blocks/" + core, `{"ttl":"1h"}`, 403},
		{"PUT", "/api/v1/firewalls/core/hold", "", 403}, {"PUT", "/api/v1/hold", "", 403}, {"PUT", "/api/v1/panic", "", 403}, {"POST", "/api/v1/firewalls/core/adopt", "", 403},
		{"PUT", "/api/v1/firewalls/edge-a/hold", "", 200}, {"POST", "/api/v1/firewalls/edge-b/verify", "", 202},
	} {
		if r := b.do("narrow", c.method, c.path, c.body); r.StatusCode != c.want {
			t.Errorf("%s %s: %d, want %d: %s", c.method, c.path, r.StatusCode, c.want, r.body)
		}
	}
}

func TestRevokeToken_takesEffectAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	made := into[struct {
		Token  struct{ ID, Name string }
		Secret string
	}](t, b.do(parry.RoleAdmin, "POST", "/api/v1/tokens", `{"name":"siem","role":"trigger","ttl":"1w","sources":["192.0.2.0/24"],"max_ttl":"1d","rate":600}`), 201)
	b.tokens["siem"] = made.Secret
	if r := b.do("siem", "GET", "/api/v1/whoami", ""); r.StatusCode != http.StatusOK || !strings.Contains(r.body, `"name":"siem"`) || !strings.Contains(r.body, `"max_ttl":"1d"`) {
		t.Fatalf("%d %s", r.StatusCode, r.body)
	}
	if list := b.do(parry.RoleAdmin, "GET", "/api/v1/tokens", ""); strings.Contains(list.body, made.Secret[40:]) || !strings.Contains(list.body, made.Token.ID) {
		t.Errorf("the list is %s", list.body)
	}
	if r := b.do(parry.RoleAdmin, "DELETE", "/api/v1/tokens/"+made.Token.ID, ""); r.StatusCode != http.StatusNoContent {
		t.Fatalf("%d %s", r.StatusCode, r.body)
	}
	if r := b.do("siem", "GET", "/api/v1/whoami", ""); r.StatusCode != http.StatusUnauthorized || r.Header.Get("WWW-Authenticate") == "" {
		t.Errorf("a revoked token: %d %s", r.StatusCode, r.body)
	}
}

func TestCreateToken_refuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for body, pointer := range map[string]string{
		`{"name":"local","role":"admin"}`: "/name", `{"name":"a b","role":"admin"}`: "/name", `{"role":"admin"}`: "/name", `{"name":"x"}`: "/role",
		`{"name":"x","role":"root"}`: "/role", `{"name":"x","role":"reader","sources":["192.0.2.1/24"]}`: "/sources/0", `{"name":"x","role":"reader","ttl":"x"}`: "/ttl",
		`{"name":"x","role":"reader","firewalls":["edge","moon"]}`: "/firewalls/1", `{"name":"x","role":"reader","max_ttl":"none"}`: "/max_ttl",
		`{"name":"x","role":"reader","rate":-1}`: "/rate", `{"name":"x","role":"reader","secret":"y"}`: "/secret",
	} {
		r := b.do(parry.RoleAdmin, "POST", "/api/v1/tokens", body)
		if p := r.problem(t); p.Status != 400 || len(p.Errors) != 1 || p.Errors[0].Pointer != pointer {
			t.Errorf("%s: %s", body, r.body)
		}
	}
	if r := b.do(parry.RoleAdmin, "POST", "/api/v1/tokens", `{"name":"admin","role":"reader"}`); r.StatusCode != http.StatusConflict {
		t.Errorf("a name twice: %d %s", r.StatusCode, r.body)
	}
}

func TestRate_answers429(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.tokens["slow"] = b.token(parry.Token{Name: "slow", Role: parry.RoleTrigger, Rate: 1})
	if r := b.do("slow", "POST", "/api/v1/blocks", `{"source":"203.0.113.7"}`); r.StatusCode != http.StatusCreated {
		t.Fatal(r.body)
	}
	r := b.do("slow", "POST", "/api/v1/blocks", `{"source":"203.0.113.7"}`)
	if p := r.problem(t); p.Status != 429 || r.Header.Get("Retry-After") == "" || r.Header.Get("Retry-After") == "0" {
		t.Errorf("%d, Retry-After %q: %s", r.StatusCode, r.Header.Get("Retry-After"), r.body)
	}
	b.clock.advance(61e9)
	if r := b.do("slow", "POST", "/api/v1/blocks", `{"source":"203.0.113.7"}`); r.StatusCode != http.StatusOK {
		t.Errorf("a minute later: %s", r.body)
	}
}
