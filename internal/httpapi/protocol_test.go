package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"context"

	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/parry"
)

const goodBlock = `{"source":"203.0.113.7"}`

func TestProtocol_refusals(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		pointer            string
	}{
		"unknown path":             {method: "GET", path: "/api/v1/nothing", status: 404},
		"trailing slash":           {method: "GET", path: "/api/v1/blocks/", status: 404},
		"other case":               {method: "GET", path: "/API/v1/blocks", status: 404},
		"double slash":             {method: "GET", path: "//api/v1/blocks", status: 404},
		"dot segments":             {method: "GET", path: "/api/v1/../v1/blocks", status: 404},
		"wrong method":             {method: "PUT", path: "/api/v1/blocks", body: goodBlock, status: 405},
		"HEAD":                     {method: "HEAD", path: "/api/v1/blocks", status: 405},
		"TRACE":                    {method: "TRACE", path: "/api/v1/blocks", status: 405},
		"made-up method":           {method: "BREW", path: "/api/v1/blocks", status: 405},
		"no content type":          {method: "POST", path: "/api/v1/blocks", body: goodBlock, headers: []string{"Content-Type: "}, status: 415, pointer: "Content-Type"},
		"form":                     {method: "POST", path: "/api/v1/blocks", body: goodBlock, headers: []string{"Content-Type: application/x-www-form-urlencoded"}, status: 415, pointer: "Content-Type"},
		"text":                     {method: "POST", path: "/api/v1/blocks", body: goodBlock, headers: []string{"Content-Type: text/plain"}, status: 415, pointer: "Content-Type"},
		"other charset":            {method: "POST", path: "/api/v1/blocks", body: goodBlock, headers: []string{"Content-Type: application/json; charset=utf-16"}, status: 415, pointer: "Content-Type"},
		"json-like":                {method: "POST", path: "/api/v1/blocks", body: goodBlock, headers: []string{"Content-Type: application/jsonx"}, status: 415, pointer: "Content-Type"},
		"merge patch":              {method: "PATCH", path: "/api/v1/blocks/x", body: `{"ttl":"1h"}`, headers: []string{"Content-Type: application/merge-patch+json"}, status: 415, pointer: "Content-Type"},
		"compressed":               {method: "POST", path: "/api/v1/blocks", body: goodBlock, headers: []string{"Content-Encoding: gzip"}, status: 415, pointer: "Content-Encoding"},
		"empty body":               {method: "POST", path: "/api/v1/blocks", status: 400, pointer: ""},
		"too large":                {method: "POST", path: "/api/v1/blocks", body: `{"source":"203.0.113.7","reason":"` + strings.Repeat("x", 64<<10) + `"}`, status: 413},
		"too large by blanks":      {method: "POST", path: "/api/v1/blocks", body: goodBlock + strings.Repeat(" ", 64<<10), status: 413},
		"unknown parameter":        {method: "POST", path: "/api/v1/blocks?wiat=30s", body: goodBlock, status: 400, pointer: "?wiat"},
		"parameter of another":     {method: "POST", path: "/api/v1/blocks?limit=3", body: goodBlock, status: 400, pointer: "?limit"},
		"parameter twice":          {method: "POST", path: "/api/v1/blocks?wait=1s&wait=2s", body: goodBlock, status: 400, pointer: "?wait"},
		"malformed query":          {method: "GET", path: "/api/v1/blocks?a=%zz", status: 400, pointer: "?"},
		"semicolon query":          {method: "GET", path: "/api/v1/blocks?limit=1;x=2", status: 400, pointer: "?"},
		"NUL in a parameter":       {method: "GET", path: "/api/v1/blocks?created_by=a%00b", status: 400, pointer: "?created_by"},
		"a parameter not UTF-8":    {method: "GET", path: "/api/v1/blocks?firewalls=%ff", status: 400, pointer: "?firewalls"},
		"NUL in the path":          {method: "GET", path: "/api/v1/blocks/%00", status: 400, pointer: "{id}"},
		"a path not UTF-8":         {method: "GET", path: "/api/v1/firewalls/%ff/entries", status: 400, pointer: "{name}"},
		"wait without unit":        {method: "POST", path: "/api/v1/blocks?wait=soon", body: goodBlock, status: 400, pointer: "?wait"},
		"wait too long":            {method: "POST", path: "/api/v1/blocks?wait=3m", body: goodBlock, status: 400, pointer: "?wait"},
		"limit no number":          {method: "GET", path: "/api/v1/blocks?limit=x", status: 400, pointer: "?limit"},
		"limit zero":               {method: "GET", path: "/api/v1/blocks?limit=0", status: 400, pointer: "?limit"},
		"limit too large":          {method: "GET", path: "/api/v1/runs?limit=1001", status: 400, pointer: "?limit"},
		"cursor of nowhere":        {method: "GET", path: "/api/v1/blocks?cursor=x", status: 400, pointer: "?cursor"},
		"status unknown":           {method: "GET", path: "/api/v1/blocks?status=dead", status: 400, pointer: "?status"},
		"filter with zone":         {method: "GET", path: "/api/v1/blocks?source=fe80::1%25x", status: 400, pointer: "?source"},
		"expires_within":           {method: "GET", path: "/api/v1/blocks?expires_within=x", status: 400, pointer: "?expires_within"},
		"run state":                {method: "GET", path: "/api/v1/runs?state=dead", status: 400, pointer: "?state"},
		"explain nothing":          {method: "GET", path: "/api/v1/explain", status: 400, pointer: "?address"},
		"explain a name":           {method: "GET", path: "/api/v1/explain?address=example.org", status: 400, pointer: "?address"},
		"idempotency with blanks":  {method: "POST", path: "/api/v1/blocks", body: goodBlock, headers: []string{"Idempotency-Key: a b"}, status: 400, pointer: "Idempotency-Key"},
		"idempotency too long":     {method: "POST", path: "/api/v1/blocks", body: goodBlock, headers: []string{"Idempotency-Key: " + strings.Repeat("x", 129)}, status: 400, pointer: "Idempotency-Key"},
		"unknown firewall":         {method: "POST", path: "/api/v1/blocks", body: `{"source":"203.0.113.7","firewalls":["moon"]}`, status: 400, pointer: "/firewalls"},
		"exempt":                   {method: "POST", path: "/api/v1/blocks", body: `{"source":"8.8.8.8"}`, status: 422, pointer: "/source"},
		"ttl beyond the cap":       {method: "POST", path: "/api/v1/blocks", body: `{"source":"203.0.113.7","ttl":"31d"}`, status: 422, pointer: "/ttl"},
		"unknown block":            {method: "GET", path: "/api/v1/blocks/b-none", status: 404},
		"unknown run":              {method: "GET", path: "/api/v1/runs/r-none/log", status: 404},
		"unknown firewall, hold":   {method: "PUT", path: "/api/v1/firewalls/moon/hold", status: 404},
		"unknown firewall, verify": {method: "POST", path: "/api/v1/firewalls/moon/verify", status: 404},
		"hold, strictly":           {method: "PUT", path: "/api/v1/hold", body: `{"Reason":"x"}`, status: 400, pointer: "/Reason"},
		"update of both":           {method: "PATCH", path: "/api/v1/blocks/x", body: `{"ttl":"1h","expires_at":"2030-01-01T00:00:00Z"}`, status: 400, pointer: ""},
		"update of neither":        {method: "PATCH", path: "/api/v1/blocks/x", body: `{}`, status: 400, pointer: ""},
		"update into the past":     {method: "PATCH", path: "/api/v1/blocks/x", body: `{"expires_at":"2020-01-01T00:00:00Z"}`, status: 400, pointer: "/expires_at"},
		"exemption too wide":       {method: "POST", path: "/api/v1/exemptions", body: `{"prefix":"0.0.0.0/0","reason":"x"}`, status: 400, pointer: "/prefix"},
		"exemption without reason": {method: "POST", path: "/api/v1/exemptions", body: `{"prefix":"192.0.2.1"}`, status: 400, pointer: "/reason"},
		"configured exemption":     {method: "DELETE", path: "/api/v1/exemptions/cfg:dns", status: 409},
		"unknown exemption":        {method: "DELETE", path: "/api/v1/exemptions/x-none", status: 404},
		"unknown token":            {method: "DELETE", path: "/api/v1/tokens/t-none", status: 404},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := b.do(parry.RoleAdmin, c.method, c.path, c.body, c.headers...)
			if r.StatusCode != c.status {
				t.Fatalf("got %d, want %d: %s", r.StatusCode, c.status, r.body)
			}
			p := r.problem(t)
			if p.Detail == "" && len(p.Errors) == 0 {
				t.Errorf("it does not say what is wrong: %s", r.body)
			}
			if c.status == 400 {
				found := false
				for _, f := range p.Errors {
					found = found || f.Pointer == c.pointer && f.Detail != "" && !strings.Contains(f.Detail, "<nil>")
				}
				if !found {
					t.Errorf("nothing at %q: %s", c.pointer, r.body)
				}
			}
			if c.status == 405 && r.Header.Get("Allow") == "" {
				t.Error("no Allow header")
			}
		})
	}
}

func TestProtocol_contentTypesThatAreJSON(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, ct := range []string{"application/json", "application/json; charset=utf-8", `Application/JSON;charset="UTF-8"`} {
		if r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock, "Content-Type: "+ct); r.StatusCode/100 != 2 {
			t.Errorf("%s: %s", ct, r.body)
		}
	}
}

func TestProtocol_chunkedBodyIsCappedToo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	srv := httptest.NewServer(b.server)
	defer srv.Close()
	r, _ := http.NewRequest(http.MethodPost, srv.URL+"/api/v1/blocks", io.MultiReader(strings.NewReader(goodBlock), strings.NewReader(strings.Repeat(" ", 70<<10))))
	r.Header.Set("Authorization", "Bearer "+b.tokens[parry.RoleTrigger])
	r.Header.Set("Content-Type", jsonType)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("got %d", res.StatusCode)
	}
}

func TestProtocol_forwardedForIsBelievedOfProxiesOnly(t *testing.T) {
	t.Parallel()
	for name, proxies := range map[string][]string{"192.0.2.1": nil, "198.51.100.9": {"192.0.2.0/24"}} {
		b := newBench(t, func(o *Options) { o.Proxies = proxies })
		for _, h := range []string{"X-Forwarded-For: 198.51.100.9", "X-Real-IP: 198.51.100.66"} {
			want := name
			if strings.HasPrefix(h, "X-Real") {
				want = "192.0.2.1" // httptest's
			}
			if r := b.do(parry.RoleReader, "GET", "/api/v1/whoami", "", h); !strings.Contains(r.body, `"remote_addr":"`+want+`"`) {
				t.Errorf("behind %v with %s: %s", proxies, h, r.body)
			}
		}
	}
	b := newBench(t)
	b.tokens["home"] = b.token(parry.Token{Name: "home", Role: parry.RoleTrigger, Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if r := b.do("home", "GET", "/api/v1/whoami", "", "X-Forwarded-For: 10.0.0.1"); r.StatusCode != http.StatusForbidden {
		t.Errorf("a spoofed source: %d", r.StatusCode)
	}
}

func TestRequestID_isTakenIfSane(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for id, kept := range map[string]bool{
		"siem-2026.11_A": true, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false, "a b": false, "a\"b": false, "a;b": false, "é": false, "${x}": false,
	} {
		r := b.do(parry.RoleReader, "GET", "/api/v1/blocks/b-none", "", "X-Request-Id: "+id)
		got := r.problem(t).RequestID
		if (got == id) != kept || got == "" {
			t.Errorf("%q became %q", id, got)
		}
		if !strings.Contains(b.log.String(), `"request_id":"`+got+`"`) {
			t.Errorf("%q is not in the log", got)
		}
	}
}

func TestLog_hasALinePerRequestAndNoSecret(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7","reason":"a\nb"}`)
	b.do(parry.RoleTrigger, "GET", "/api/v1/tokens", "")
	b.do("", "GET", "/api/v1/blocks", "", "Authorization: Bearer "+b.tokens[parry.RoleTrigger][:71]+"x")
	lines := strings.Split(strings.TrimSpace(b.log.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines:\n%s", len(lines), b.log.String())
	}
	var first map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil {
		t.Fatal(err)
	}
	var block struct{ ID string }
	_ = json.Unmarshal([]byte(r.body), &block)
	for k, want := range map[string]any{"msg": "request", "token": "trigger", "route": "/api/v1/blocks", "method": "POST", "status": 201.0, "block_id": block.ID, "remote": "192.0.2.1"} {
		if first[k] != want {
			t.Errorf("%s is %v, want %v", k, first[k], want)
		}
	}
	if secret := b.tokens[parry.RoleTrigger][33:70]; strings.Contains(b.log.String(), secret) {
		t.Error("the token's secret is in the log")
	}
}

// failing breaks one method of the store.
type failing struct {
	Store
	err error
}

func (f failing) Runs(context.Context, parry.RunFilter) (parry.Page[parry.Run], error) {
	if f.err == nil {
		panic("the store has a bug")
	}
	return parry.Page[parry.Run]{}, f.err
}

func (f failing) Ping(context.Context) error { return f.err }

func TestInternalError_hidesItsCauseAndLogsItOnce(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{"an error": errors.New("dial tcp 10.9.8.7: password=hunter2"), "a panic": nil} {
		b := newBench(t, func(o *Options) { o.Store = failing{o.Store, err} })
		r := b.do(parry.RoleReader, "GET", "/api/v1/runs", "")
		p := r.problem(t)
		if p.Status != 500 || p.Type != "urn:parry:problem:internal" || strings.Contains(r.body, "hunter2") || strings.Contains(r.body, "bug") {
			t.Errorf("%s: %s", name, r.body)
		}
		if got := strings.Count(b.log.String(), `"level":"ERROR"`); got != 1 || !strings.Contains(b.log.String(), p.RequestID) {
			t.Errorf("%s was logged %d times:\n%s", name, got, b.log.String())
		}
	}
	hidden := &parry.Error{Kind: parry.KindUnavailable, Detail: "try again", Err: errors.New("hunter2")}
	b := newBench(t, func(o *Options) { o.Store = failing{o.Store, hidden} })
	r := b.do(parry.RoleReader, "GET", "/api/v1/runs", "")
	if p := r.problem(t); p.Status != 503 || p.Detail != "try again" || strings.Contains(r.body, "hunter2") || r.Header.Get("Retry-After") != "1" {
		t.Errorf("a hidden cause: %s", r.body)
	}
}

func TestReadiness_tellsDetailsToReaders(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) {
		o.Store = failing{o.Store, errors.New("disk on fire")}
		o.Checks = []Check{{Name: "mail", Advisory: true, Func: func(context.Context) error { return errors.New("no answer from mx.example") }}}
	})
	open, told := b.do("", "GET", "/readyz", ""), b.do(parry.RoleReader, "GET", "/readyz", "")
	if open.StatusCode != http.StatusServiceUnavailable || told.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("got %d and %d", open.StatusCode, told.StatusCode)
	}
	if strings.Contains(open.body, "on fire") || strings.Contains(open.body, "mx.example") || !strings.Contains(open.body, `"check":"database"`) {
		t.Errorf("everyone is told %s", open.body)
	}
	if !strings.Contains(told.body, "disk on fire") || !strings.Contains(told.body, "mx.example") {
		t.Errorf("a reader is told %s", told.body)
	}

	b = newBench(t)
	b.run("edge-a", parry.FailUnreachable)
	r := b.do(parry.RoleReader, "GET", "/readyz", "")
	if r.StatusCode != http.StatusOK || !strings.Contains(r.body, "edge-a is failing: unreachable") {
		t.Errorf("with a failing firewall: %d %s", r.StatusCode, r.body)
	}
	if r := b.do("", "GET", "/readyz", ""); strings.Contains(r.body, "edge-a") {
		t.Errorf("everyone is told %s", r.body)
	}
}

func TestMetrics_haveNoAddress(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id := into[struct{ ID string }](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201).ID
	b.do(parry.RoleReader, "GET", "/api/v1/explain?address=203.0.113.7", "")
	b.do(parry.RoleReader, "GET", "/api/v1/blocks/"+id, "")
	b.do(parry.RoleReader, "GET", "/203.0.113.7", "")
	b.do(parry.RoleReader, "EVIL203", "/", "")
	r := b.do(parry.RoleReader, "GET", "/metrics", "")
	if r.StatusCode != http.StatusOK || strings.Contains(r.body, "203.0") || strings.Contains(r.body, "EVIL") || strings.Contains(r.body, id) || strings.Contains(r.body, "192.0.2") {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	for _, want := range []string{
		`parry_http_requests_total{code="201",method="POST",route="/api/v1/blocks"} 1`, `route="unmatched"`, `method="other"`, "parry_http_request_duration_seconds_bucket",
	} {
		if !strings.Contains(r.body, want) {
			t.Errorf("no %s in %s", want, r.body)
		}
	}
}

func TestSocket_rootIsLocal(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	path := t.TempDir() + "/s"
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: b.server, ConnContext: auth.ConnContext}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	defer client.CloseIdleConnections()
	res, err := client.Post("http://parry/api/v1/tokens", jsonType, strings.NewReader(`{"name":"first","role":"admin"}`)) // the tests run as root
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusCreated || !strings.Contains(string(body), `"created_by":"local"`) {
		t.Errorf("got %d %s", res.StatusCode, body)
	}
}

func TestOpenAPI_isServed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	doc := into[struct {
		OpenAPI string
		Paths   map[string]map[string]any
	}](t, b.do("", "GET", "/api/v1/openapi.json", ""), 200)
	if doc.OpenAPI != "3.0.3" {
		t.Errorf("got %q", doc.OpenAPI)
	}
	served := map[string]bool{}
	for _, r := range b.server.engine.Routes() {
		served[r.Method+" "+r.Path] = true
	}
	n := 0
	for path, item := range doc.Paths {
		for method := range item {
			if method == "parameters" {
				continue
			}
			n++
			if k := strings.ToUpper(method) + " " + strings.NewReplacer("{", ":", "}", "").Replace(path); !served[k] {
				t.Errorf("%s is not served", k)
			}
		}
	}
	if n != len(served) {
		t.Errorf("%d operations, %d routes", n, len(served))
	}
}
