package httpapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

func TestPanic_isShownEverywhere(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	got := into[api.Panic](t, b.do(parry.RoleOperator, "PUT", "/api/v1/panic", `{"reason":"our own customers","firewalls":["edge"]}`), 202)
	if len(got.Firewalls) != 2 || got.Firewalls[0].Name != "edge-a" || got.Firewalls[0].State != "panic" || got.Firewalls[0].Hold.Kind != "panic" ||
		got.Firewalls[0].Hold.Reason != "our own customers" || got.Firewalls[0].Hold.Empty {
		t.Errorf("got %+v", got)
	}
	block := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201)
	if want := "in panic by operator: our own customers"; block.State != "held" || block.Status[0].Reason != want {
		t.Errorf("a block meanwhile: %+v", block)
	}
	if r := b.do(parry.RoleReader, "GET", "/readyz", ""); !strings.Contains(r.body, "edge-a is in panic by operator: our own customers; being emptied") {
		t.Errorf("readyz: %s", r.body)
	}
	// A hold's release is not the panic's.
	into[api.Firewall](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/firewalls/edge-a/hold", ""), 200)
	over := into[api.Panic](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/panic?firewalls=edge-a", ""), 202)
	if len(over.Firewalls) != 1 || over.Firewalls[0].State != "pending" {
		t.Errorf("after it: %+v", over)
	}
	if fw := into[api.Firewall](t, b.do(parry.RoleReader, "GET", "/api/v1/firewalls/edge-b", ""), 200); fw.State != "panic" {
		t.Errorf("the other: %+v", fw)
	}
	into[api.Panic](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/panic", ""), 202)
	if r := b.do(parry.RoleOperator, "DELETE", "/api/v1/panic", ""); r.StatusCode != http.StatusConflict {
		t.Errorf("no panic is on: %d %s", r.StatusCode, r.body)
	}
	for body, want := range map[string]int{
		`{"firewalls":["nowhere"]}`: http.StatusNotFound, `{"firewalls":[""]}`: http.StatusBadRequest, `{"now":true}`: http.StatusBadRequest,
	} {
		if r := b.do(parry.RoleOperator, "PUT", "/api/v1/panic", body); r.StatusCode != want {
			t.Errorf("%s: %d %s", body, r.StatusCode, r.body)
		}
	}
	if r := b.do(parry.RoleTrigger, "PUT", "/api/v1/panic", `{}`); r.StatusCode != http.StatusForbidden {
		t.Errorf("a trigger's panic: %d", r.StatusCode)
	}
}

// With end, what means none but the firewalls ends; what means others, too, stays.
func TestPanic_endsBlocksWhereItIsAsked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := map[string]string{}
	for name, body := range map[string]string{
		"default": `{"source":"203.0.113.1"}`, "edge-a": `{"source":"203.0.113.2","firewalls":["edge-a"]}`, "all": `{"source":"203.0.113.3","firewalls":["all"]}`,
	} {
		ids[name] = into[api.Block](t, b.do(parry.RoleOperator, "POST", "/api/v1/blocks", body), 201).ID
	}
	live := func() (out string) {
		for _, name := range []string{"default", "edge-a", "all"} {
			if into[api.Block](t, b.do(parry.RoleReader, "GET", "/api/v1/blocks/"+ids[name], ""), 200).EndReason == "" {
				out += " " + name
			}
		}
		return out
	}
	for _, step := range []struct {
		firewalls, left string
		ended           int
	}{{`["edge-a"]`, " default all", 1}, {`["edge"]`, " all", 1}, {`[]`, "", 1}} {
		got := into[api.Panic](t, b.do(parry.RoleOperator, "PUT", "/api/v1/panic", `{"end":true,"firewalls":`+step.firewalls+`}`), 202)
		if left := live(); got.EndedBlocks != step.ended || left != step.left {
			t.Errorf("panic on %s ended %d, left%s; want %d, left%s", step.firewalls, got.EndedBlocks, left, step.ended, step.left)
		}
	}
}
