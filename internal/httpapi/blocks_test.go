package httpapi

import (
	"testing"

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
	if r.Header.Get("Location") != "/api/v1/blocks/"+got.ID {
		t.Errorf("Location is %q", r.Header.Get("Location"))
	}
	again := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks",
		`{"source":"203.0.113.7","destination":"198.51.100.10","destination_port":22,"protocol":"tcp/udp","ttl":"8h"}`), 200)
	if again.ID != got.ID || again.Count != 2 || !again.ExpiresAt.After(got.ExpiresAt) {
		t.Errorf("a repeat gave %+v after %+v", again, got)
	}
	if shown := into[api.Block](t, b.do(parry.RoleTrigger, "GET", "/api/v1/blocks/"+got.ID, ""), 200); shown.Count != 2 {
		t.Errorf("got %+v", shown)
	}
}
