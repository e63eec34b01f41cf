package httpapi

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/parry"
)

const (
	asTrigger  = parry.RoleTrigger
	asReader   = parry.RoleReader
	asOperator = parry.RoleOperator
)

func (b *bench) list(body string) api.ActiveList {
	b.t.Helper()
	return into[api.ActiveList](b.t, b.do(asOperator, "POST", "/api/v1/lists", body), http.StatusCreated)
}

func (b *bench) putOn(list, body string, status int) api.ListPutResult {
	b.t.Helper()
	return into[api.ListPutResult](b.t, b.do(asTrigger, "PUT", "/api/v1/lists/"+list+"/entry", body), status)
}

func (b *bench) lookup(list, key string) api.ListLookup {
	b.t.Helper()
	return into[api.ListLookup](b.t, b.do(asReader, "GET", "/api/v1/lists/"+list+"/lookup?key="+url.QueryEscape(key), ""), http.StatusOK)
}

// refusedAt wants a problem of a kind, with an error at each pointer.
func refusedAt(t *testing.T, r response, status int, pointers ...string) {
	t.Helper()
	if r.StatusCode != status {
		t.Errorf("got %d, want %d: %s", r.StatusCode, status, r.body)
		return
	}
	var got []string
	for _, f := range r.problem(t).Errors {
		got = append(got, f.Pointer)
	}
	if fmt.Sprint(got) != fmt.Sprint(pointers) {
		t.Errorf("problems at %v, want %v: %s", got, pointers, r.body)
	}
}

func TestLists_areMadeShownAndDeleted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.list(`{"name":"bad","type":"ip"}`)
	if l.TTL != "1d" || l.MaxTTL != "30d" || l.Refresh != "last-seen" || l.Capacity != 100_000 || l.Source != "api" || l.CreatedBy != "operator" {
		t.Errorf("%+v", l)
	}
	l = b.list(`{"name":"own","type":"domain","ttl":"none","max_ttl":"none","refresh":"first-seen","capacity":5,"comment":"<b>","subdomains":true,"on_hit":{"syslog":true,"every":"5m"}}`)
	if l.TTL != "none" || l.MaxTTL != "none" || l.Capacity != 5 || !l.Subdomains || !l.OnHit.Syslog || l.OnHit.Every != "5m" || l.Comment != "<b>" {
		t.Errorf("%+v", l)
	}
	if l := b.list(`{"name":"short","type":"ip","max_ttl":"1h"}`); l.TTL != "1h" {
		t.Errorf("the default TTL is beyond the cap: %+v", l)
	}
	all := into[api.ActiveLists](t, b.do(asReader, "GET", "/api/v1/lists", ""), 200)
	if len(all.Items) != 3 || all.Items[0].Name != "bad" {
		t.Errorf("%+v", all)
	}
	refusedAt(t, b.do(asOperator, "POST", "/api/v1/lists", `{"name":"bad","type":"ip"}`), 409)
	refusedAt(t, b.do(asOperator, "POST", "/api/v1/lists", `{"name":"Bad one","type":"ip","ttl":"40d","capacity":5}`), 400, "/name", "/ttl")
	refusedAt(t, b.do(asOperator, "POST", "/api/v1/lists", `{"name":"x","type":"net"}`), 400, "/type")
	refusedAt(t, b.do(asOperator, "POST", "/api/v1/lists", `{"name":"x","type":"ip","ttl":"none"}`), 400, "/ttl")
	refusedAt(t, b.do(asOperator, "POST", "/api/v1/lists", `{"name":"x","type":"ip","subdomains":"yes","on_hit":{"sylog":true}}`), 400, "/subdomains", "/on_hit/sylog")
	if r := b.do(asOperator, "DELETE", "/api/v1/lists/own", ""); r.StatusCode != http.StatusNoContent {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	refusedAt(t, b.do(asReader, "GET", "/api/v1/lists/own", ""), 404)
}

func TestLists_ofTheConfigurationAreChangedThere(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.configure("")
	refusedAt(t, b.do(asOperator, "DELETE", "/api/v1/lists/worse", ""), 409)
	l := into[api.ActiveList](t, b.do(asReader, "GET", "/api/v1/lists/worse", ""), 200)
	if l.Source != "config" || l.Blocks.TTL != "7d" {
		t.Errorf("%+v", l)
	}
	b.putOn("worse", `{"key":"203.0.113.7"}`, 201)
}

func TestPutEntry_makesAndRefreshes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.list(`{"name":"bad","type":"ip"}`)
	done := b.putOn("bad", `{"key":"::ffff:203.0.113.7","ttl":"2h","comment":"ssh {{x}}","alert_id":"1.2","rule_id":"5712","origin":"wazuh"}`, 201)
	e := done.Entry
	if done.Added != 1 || e.Key != "203.0.113.7" || e.Count != 1 || e.Comment != "ssh {{x}}" || e.RuleID != "5712" || e.PutBy != "trigger" ||
		fmt.Sprint(e.Sources) != "[wazuh]" || e.ExpiresAt.Sub(e.LastSeen) != 2*time.Hour {
		t.Errorf("%+v", done)
	}
	if done = b.putOn("bad", `{"key":"203.0.113.7"}`, 200); done.Refreshed != 1 || done.Entry.Count != 2 {
		t.Errorf("%+v", done)
	}
	if done = b.putOn("bad", `{"key":"203.0.113.8","seen_at":"2020-01-01T00:00:00Z"}`, 200); done.Late != 1 || done.Entry.Key != "" {
		t.Errorf("%+v", done)
	}
	put := func(body string) response { return b.do(asTrigger, "PUT", "/api/v1/lists/bad/entry", body) }
	refusedAt(t, put(`{"key":"203.0.113.0/24","ttl":"x","seen_at":"2999-01-01T00:00:00Z"}`), 400, "/key", "/ttl", "/seen_at")
	refusedAt(t, put(`{"key":"203.0.113.7","ttl":"31d"}`), 422, "/ttl")
	refusedAt(t, put(`{"key":"203.0.113.7","ttl":"none"}`), 422, "/ttl")
	refusedAt(t, put(`{"key":"203.0.113.7","kye":"x"}`), 400, "/kye")
	refusedAt(t, b.do(asTrigger, "PUT", "/api/v1/lists/none/entry", `{"key":"203.0.113.7"}`), 404)
	b.clock.advance(25 * time.Hour)
	if l := b.lookup("bad", "203.0.113.7"); l.Found {
		t.Errorf("what has run out is found: %+v", l)
	}
}

func TestPutEntries_takesAllOrNone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.list(`{"name":"bad","type":"cidr","capacity":10000}`)
	batch := func(n int, more ...string) string {
		var es []string
		for i := range n {
			es = append(es, fmt.Sprintf(`{"key":"10.%d.%d.0/24","comment":"a"}`, i>>8, i&255))
		}
		return `{"entries": [ ` + strings.Join(append(es, more...), " ,\n") + ` ] }`
	}
	post := func(body string) response { return b.do(asTrigger, "POST", "/api/v1/lists/bad/entries", body) }
	refusedAt(t, post(batch(3, `{"key":"x"}`, `{"ttl":"1h"}`, `7`, `{"key":"::1","key":"::2"}`)), 400, "/entries/5", "/entries/6/key", "/entries/4/key", "/entries/5/key", "/entries/3/key")
	refusedAt(t, post(batch(1, `{"key":"x"}`)), 400, "/entries/1/key")
	refusedAt(t, post(batch(10_001)), 400, "/entries")
	refusedAt(t, post(`{"entries":[]}`), 400, "/entries")
	refusedAt(t, post(`{"entries":{}}`), 400, "/entries")
	refusedAt(t, post(`{}`), 400, "/entries")
	refusedAt(t, post(""), 400, "")
	refusedAt(t, post(batch(2, `{"key":"192.0.2.1","ttl":"40d"}`)), 422, "/entries/2/ttl")
	if l := into[api.ActiveList](t, b.do(asReader, "GET", "/api/v1/lists/bad", ""), 200); l.Entries != 0 {
		t.Fatalf("something was put: %+v", l)
	}
	done := into[api.ListPutResult](t, post(batch(10_000)), 200)
	if done.Added != 10_000 || done.List != "bad" {
		t.Errorf("%+v", done)
	}
	r := post(batch(1, `{"key":"192.0.2.1"}`))
	refusedAt(t, r, 422)
	if !strings.Contains(r.problem(t).Detail, "10000 entries stand on it") {
		t.Error(r.body)
	}
	if done := into[api.ListPutResult](t, post(batch(10_000)), 200); done.Refreshed != 10_000 {
		t.Errorf("%+v", done)
	}
}

func TestListEntries_filtersAndPages(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.list(`{"name":"bad","type":"cidr"}`)
	for i, origin := range []string{"ossim", "wazuh", "wazuh"} {
		b.putOn("bad", fmt.Sprintf(`{"key":"203.0.113.%d","origin":%q,"rule_id":"r%d"}`, 9+i, origin, i), 201)
	}
	b.clock.advance(time.Hour)
	b.putOn("bad", `{"key":"203.0.112.0/22"}`, 201)
	b.putOn("bad", `{"key":"2001:db8::/32","ttl":"10m"}`, 201)
	get := func(query string) (api.ListEntryPage, string) {
		t.Helper()
		p := into[api.ListEntryPage](t, b.do(asReader, "GET", "/api/v1/lists/bad/entries"+query, ""), 200)
		var keys []string
		for _, e := range p.Items {
			keys = append(keys, strings.TrimPrefix(e.Key, "203.0.113."))
		}
		return p, strings.Join(keys, " ")
	}
	for query, want := range map[string]string{
		"":                       "203.0.112.0/22 9 10 11 2001:db8::/32",
		"?within=203.0.113.0/24": "9 10 11",
		"?within=203.0.0.0/16":   "203.0.112.0/22 9 10 11",
		"?origin=wazuh":          "10 11",
		"?rule_id=r0":            "9",
		"?seen_within=30m":       "203.0.112.0/22 2001:db8::/32",
		"?expires_within=1h":     "2001:db8::/32",
	} {
		if _, got := get(query); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	first, got := get("?limit=2")
	second, more := get("?limit=2&cursor=" + first.Next)
	third, rest := get("?limit=2&cursor=" + second.Next)
	if all := got + " " + more + " " + rest; all != "203.0.112.0/22 9 10 11 2001:db8::/32" || third.Next != "" {
		t.Errorf("pages %q, next %q", all, third.Next)
	}
	for query, at := range map[string]string{
		"?within=x": "?within", "?seen_within=x": "?seen_within", "?cursor=x": "?cursor", "?limit=0": "?limit", "?key=x": "?key",
	} {
		refusedAt(t, b.do(asReader, "GET", "/api/v1/lists/bad/entries"+query, ""), 400, at)
	}
}

func TestLookup_ofOneManyAndAll(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.list(`{"name":"bad","type":"cidr"}`)
	b.list(`{"name":"users","type":"user"}`)
	b.putOn("bad", `{"key":"203.0.113.0/24"}`, 201)
	b.putOn("users", `{"key":"Anna Ünal"}`, 201)
	if l := b.lookup("bad", "203.0.113.7"); !l.Found || l.Key != "203.0.113.7" || l.Entry.Key != "203.0.113.0/24" || l.Entry.Type != "cidr" {
		t.Errorf("%+v", l)
	}
	if l := b.lookup("bad", "203.0.112.7"); l.Found || l.Entry.Key != "" {
		t.Errorf("%+v", l)
	}
	if l := b.lookup("users", "ANNA ünal"); !l.Found {
		t.Errorf("%+v", l)
	}
	refusedAt(t, b.do(asReader, "GET", "/api/v1/lists/bad/lookup?key=x", ""), 400, "?key")
	refusedAt(t, b.do(asReader, "GET", "/api/v1/lists/bad/lookup", ""), 400, "?key")
	refusedAt(t, b.do(asReader, "GET", "/api/v1/lists/none/lookup?key=x", ""), 404)

	many := into[api.ListLookups](t, b.do(asReader, "POST", "/api/v1/lists/bad/lookup", `{"keys":["203.0.113.7","192.0.2.1","::ffff:203.0.113.9"]}`), 200)
	if len(many.Items) != 3 || !many.Items[0].Found || many.Items[1].Found || many.Items[2].Key != "203.0.113.9" || !many.Items[2].Found {
		t.Errorf("%+v", many)
	}
	refusedAt(t, b.do(asReader, "POST", "/api/v1/lists/bad/lookup", `{"keys":["203.0.113.7","x",""]}`), 400, "/keys/2")
	refusedAt(t, b.do(asReader, "POST", "/api/v1/lists/bad/lookup", `{"keys":["203.0.113.7","x"]}`), 400, "/keys/1")

	all := into[api.Lookup](t, b.do(asReader, "GET", "/api/v1/lookup?key=203.0.113.7", ""), 200)
	if !all.Found || len(all.Entries) != 1 || all.Entries[0].List != "bad" {
		t.Errorf("%+v", all)
	}
	if none := into[api.Lookup](t, b.do(asReader, "GET", "/api/v1/lookup?key=x", ""), 200); none.Found || none.Entries == nil {
		t.Errorf("%+v", none)
	}
	ex := into[api.Explanation](t, b.do(asReader, "GET", "/api/v1/explain?address=203.0.113.7", ""), 200)
	if len(ex.Lists) != 1 || ex.Lists[0].Key != "203.0.113.0/24" {
		t.Errorf("%+v", ex.Lists)
	}
}

func TestDeleteEntry(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.list(`{"name":"bad","type":"cidr"}`)
	b.putOn("bad", `{"key":"203.0.113.0/24"}`, 201)
	path := "/api/v1/lists/bad/entry?key="
	refusedAt(t, b.do(asOperator, "DELETE", path+"203.0.113.7", ""), 404) // another key, though it is covered
	if r := b.do(asOperator, "DELETE", path+"203.0.113.9/24", ""); r.StatusCode != http.StatusNoContent {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	if b.lookup("bad", "203.0.113.7").Found {
		t.Error("it is found still")
	}
	refusedAt(t, b.do(asOperator, "DELETE", path+"203.0.113.0/24", ""), 404)
	refusedAt(t, b.do(asOperator, "DELETE", path, ""), 400, "?key")
}

// configure gives lists with a say in blocks; every accepted block's source goes on the list blocked, if it is named.
func (b *bench) configure(blocked string) {
	b.t.Helper()
	l := func(name string, t parry.ListType, p lists.Policy) lists.Configured {
		return lists.Configured{Blocks: p, List: parry.List{Name: name, Type: t, TTL: time.Hour, MaxTTL: 24 * time.Hour, Refresh: parry.RefreshLastSeen, Capacity: 2}}
	}
	if err := b.lists.Configure(b.t.Context(), []lists.Configured{
		l("worse", parry.ListIP, lists.Policy{TTL: 7 * 24 * time.Hour}), l("partners", parry.ListCIDR, lists.Policy{Instead: "watch"}),
		l("watch", parry.ListIP, lists.Policy{}), l("seen", parry.ListIP, lists.Policy{}),
	}, blocked); err != nil {
		b.t.Fatal(err)
	}
}

func lasts(blk api.Block) time.Duration { return blk.ExpiresAt.Sub(blk.CreatedAt).Round(time.Minute) }

func TestCreateBlock_ofAListedSourceLastsLonger(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.configure("")
	for i := range 5 {
		if i < 2 {
			b.putOn("worse", fmt.Sprintf(`{"key":"203.0.113.%d"}`, i), 201)
		}
	}
	ask := func(as parry.Role, body string) time.Duration {
		t.Helper()
		return lasts(into[api.Block](t, b.do(as, "POST", "/api/v1/blocks", body), 201))
	}
	week := 7 * 24 * time.Hour
	if got := ask(asTrigger, `{"source":"203.0.113.0","ttl":"1h"}`); got != week {
		t.Errorf("a trigger's TTL: %s", got)
	}
	if got := ask(asOperator, `{"source":"203.0.113.1","destination_port":22,"protocol":"tcp","ttl":"1h"}`); got != time.Hour {
		t.Errorf("an operator's own TTL: %s", got)
	}
	if got := ask(asOperator, `{"source":"203.0.113.1"}`); got != week {
		t.Errorf("an operator's default: %s", got)
	}
	if got := ask(asTrigger, `{"source":"203.0.113.0","destination_port":22,"protocol":"tcp","ttl":"10d"}`); got != 10*24*time.Hour {
		t.Errorf("a longer one: %s", got)
	}
	if got := ask(asTrigger, `{"source":"203.0.113.9","ttl":"1h"}`); got != time.Hour {
		t.Errorf("a source that is on no list: %s", got)
	}
	b.tokens["capped"] = b.token(parry.Token{Name: "capped", Role: parry.RoleTrigger, MaxTTL: 2 * time.Hour})
	if got := ask("capped", `{"source":"203.0.113.0","destination_port":23,"protocol":"tcp"}`); got != 2*time.Hour {
		t.Errorf("beyond a token's cap: %s", got)
	}
}

func TestCreateBlock_ofAListedSourceIsListedInstead(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.configure("")
	b.putOn("partners", `{"key":"198.51.100.0/24"}`, 201)
	r := b.do(asTrigger, "POST", "/api/v1/blocks", `{"source":"198.51.100.6"}`, "Idempotency-Key: a b")
	refusedAt(t, r, 400, "Idempotency-Key")
	if b.lookup("watch", "198.51.100.6").Found {
		t.Error("a request that is not valid has put its source on the list")
	}
	r = b.do(asTrigger, "POST", "/api/v1/blocks", `{"source":"198.51.100.7","reason":"ssh","rule_id":"5712","origin":"wazuh"}`)
	refusedAt(t, r, 422, "/source")
	for _, want := range []string{`"partners"`, `"watch"`, "instead of being blocked"} {
		if !strings.Contains(r.problem(t).Detail, want) {
			t.Errorf("%s is not told: %s", want, r.body)
		}
	}
	l := b.lookup("watch", "198.51.100.7")
	if !l.Found || l.Entry.Comment != "ssh" || l.Entry.RuleID != "5712" || l.Entry.PutBy != "trigger" {
		t.Errorf("%+v", l)
	}
	if page := into[api.BlockPage](t, b.do(asReader, "GET", "/api/v1/blocks?status=all", ""), 200); len(page.Items) != 0 {
		t.Errorf("something is blocked: %+v", page.Items)
	}
	b.putOn("watch", `{"key":"192.0.2.9"}`, 201) // full now
	r = b.do(asTrigger, "POST", "/api/v1/blocks", `{"source":"198.51.100.8"}`)
	refusedAt(t, r, 422, "/source")
	if !strings.Contains(r.body, "is full") {
		t.Error(r.body)
	}
}

func TestHookWazuh_heedsTheListsAndADryRunPutsNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.configure("")
	b.putOn("partners", `{"key":"198.51.100.0/24"}`, 201)
	alert := `{"timestamp":"` + b.clock.now().Format("2006-01-02T15:04:05.000-0700") + `","rule":{"level":10,"id":"5763","description":"sshd"},"agent":{"id":"003","name":"web01"},"id":"1.2","data":{"srcip":"198.51.100.7"}}`
	r := b.do(asTrigger, "POST", "/api/v1/hooks/wazuh?dry_run=true", alert)
	if r.StatusCode != http.StatusUnprocessableEntity || b.lookup("watch", "198.51.100.7").Found {
		t.Errorf("a dry run: %d %s", r.StatusCode, r.body)
	}
	r = b.do(asTrigger, "POST", "/api/v1/hooks/wazuh", alert)
	if l := b.lookup("watch", "198.51.100.7"); r.StatusCode != http.StatusUnprocessableEntity || !l.Found || l.Entry.RuleID != "5763" {
		t.Errorf("%d %s: %+v", r.StatusCode, r.body, l)
	}
}

func TestCreateBlock_putsItsSourceOnTheBlocksList(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.configure("seen")
	ctx := t.Context()
	go func() { _ = b.lists.Run(ctx) }()
	for range 2 {
		if r := b.do(asTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7","reason":"ssh","origin":"ossim"}`); r.StatusCode >= 300 {
			t.Fatalf("%d %s", r.StatusCode, r.body)
		}
	}
	eventually(t, "it is on the list", func() bool { return b.lookup("seen", "203.0.113.7").Entry.Count == 2 })
	b.do(asOperator, "POST", "/api/v1/blocks", `{"source":"203.0.113.0/24"}`)
	b.do(asTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.8"}`)
	r := b.do(asTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.9"}`) // the list is full
	if r.StatusCode != http.StatusCreated {
		t.Errorf("a full list costs a block: %d %s", r.StatusCode, r.body)
	}
	if r := b.do(asTrigger, "POST", "/api/v1/blocks", `{"source":"8.8.8.8"}`); r.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	if m := b.do(asReader, "GET", "/metrics", "").body; !strings.Contains(m, `parry_list_unlisted_total{list="seen"} 1`) {
		t.Error("what did not fit is not counted, or what was refused is")
	}
	eventually(t, "the second is on the list", func() bool { return b.lookup("seen", "203.0.113.8").Entry.Count == 1 })
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
