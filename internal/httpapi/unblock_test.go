package httpapi

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

// standing lists the sources of the live blocks, sorted.
func (b *bench) standing() (out []string) {
	b.t.Helper()
	for _, x := range into[api.BlockPage](b.t, b.do(parry.RoleReader, "GET", "/api/v1/blocks?limit=1000", ""), 200).Items {
		out = append(out, x.Source)
	}
	slices.Sort(out)
	return out
}

func (b *bench) make(as parry.Role, source, more string) api.Block {
	b.t.Helper()
	return into[api.Block](b.t, b.do(as, "POST", "/api/v1/blocks", `{"source":"`+source+`"`+more+`}`), 201)
}

func TestDeleteBlocks_endsWhatEveryFilterMatches(t *testing.T) {
	t.Parallel()
	for query, left := range map[string][]string{
		"source=203.0.113.1":                                   {"203.0.113.2", "203.0.113.2", "198.51.100.0/24"},
		"source=203.0.113.2&destination=192.0.2.1":             {"203.0.113.1", "203.0.113.2", "198.51.100.0/24"},
		"destination_port=22":                                  {"203.0.113.1", "203.0.113.2", "198.51.100.0/24"},
		"within=203.0.113.0/30":                                {"198.51.100.0/24"},
		"covering=198.51.100.7":                                {"203.0.113.1", "203.0.113.2", "203.0.113.2"},
		"origin=ossim":                                         {"203.0.113.2", "203.0.113.2", "198.51.100.0/24"},
		"created_by=operator":                                  {"203.0.113.1", "203.0.113.2"},
		"firewalls=core":                                       {"203.0.113.1", "203.0.113.2", "198.51.100.0/24"},
		"within=203.0.113.0/24&origin=nobody":                  {"203.0.113.1", "203.0.113.2", "203.0.113.2", "198.51.100.0/24"},
		"expires_by=" + stamp(5*time.Hour):                     {"203.0.113.2", "203.0.113.2"},
		"expires_by=" + stamp(5*time.Hour) + "&origin=ossim":   {"203.0.113.2", "203.0.113.2", "198.51.100.0/24"},
		"expires_by=" + stamp(100*time.Hour) + "&dry_run=true": {"203.0.113.1", "203.0.113.2", "203.0.113.2", "198.51.100.0/24"},
	} {
		t.Run(query, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.make(parry.RoleTrigger, "203.0.113.1", `,"origin":"ossim"`)
			b.make(parry.RoleTrigger, "203.0.113.2", `,"ttl":"20h"`)
			b.make(parry.RoleOperator, "203.0.113.2", `,"ttl":"20h","destination":"192.0.2.1","destination_port":22,"firewalls":["core"]`)
			b.make(parry.RoleOperator, "198.51.100.0/24", "")
			all := len(b.standing())
			dry := strings.HasSuffix(query, "&dry_run=true")
			plan := into[api.EndedBlocks](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks?"+strings.TrimSuffix(query, "&dry_run=true")+"&dry_run=true", ""), 200)
			if got := len(b.standing()); !plan.DryRun || plan.Ended != 0 || got != all {
				t.Fatalf("a dry run gave %+v and left %d of %d", plan, got, all)
			}
			got := into[api.EndedBlocks](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks?"+query, ""), 200)
			if got.Matched != plan.Matched || !slices.Equal(got.Blocks, plan.Blocks) || got.DryRun != dry || !dry && got.Ended != got.Matched ||
				int(got.Matched) != len(got.Blocks) {
				t.Errorf("planned %+v, got %+v", plan, got)
			}
			slices.Sort(left)
			if now := b.standing(); !slices.Equal(now, left) {
				t.Errorf("left are %q, want %q", now, left)
			}
			for _, id := range got.Blocks {
				if x := into[api.Block](t, b.do(parry.RoleReader, "GET", "/api/v1/blocks/"+id, ""), 200); !dry && (x.EndReason != "deleted" || x.EndedBy != "operator") {
					t.Errorf("ended as %+v", x)
				}
			}
		})
	}
}

func stamp(in time.Duration) string {
	return url.QueryEscape(time.Now().Add(in).UTC().Format(time.RFC3339))
}

// A gap in somebody's template must never end more than was meant.
func TestDeleteBlocks_refusesWhatSaysTooLittle(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.make(parry.RoleTrigger, "203.0.113.1", `,"origin":"ossim"`)
	for query, pointer := range map[string]string{
		"":                               "?",
		"?dry_run=true":                  "?",
		"?source=&origin=ossim":          "?source",
		"?within=&origin=ossim":          "?within",
		"?origin=":                       "?origin",
		"?created_by=&origin=ossim":      "?created_by",
		"?firewalls=&origin=ossim":       "?firewalls",
		"?expires_by=&origin=ossim":      "?expires_by",
		"?destination_port=&origin=x":    "?destination_port",
		"?destination_port=0&origin=x":   "?destination_port",
		"?dry_run=&origin=ossim":         "?dry_run",
		"?dry_run=please&origin=ossim":   "?dry_run",
		"?sourc=203.0.113.1":             "?sourc",
		"?source=203.0.113.1/24":         "?source",
		"?source=x&within=y":             "?source",
		"?source=1.1.1.1&source=1.1.1.2": "?source",
	} {
		r := b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks"+query, "")
		if p := r.problem(t); p.Status != 400 || len(p.Errors) == 0 || p.Errors[0].Pointer != pointer {
			t.Errorf("%q: %d %s", query, r.StatusCode, r.body)
		}
	}
	if got := b.standing(); len(got) != 1 {
		t.Errorf("left are %q", got)
	}
}

func TestDeleteBlocks_aTriggerEndsItsOwnWhereThatIsHonoured(t *testing.T) {
	t.Parallel()
	honour := false
	b := newBench(t, func(o *Options) { o.Settings = func() Settings { return Settings{HonourDelete: honour} } })
	b.make(parry.RoleTrigger, "203.0.113.1", "")
	b.make(parry.RoleOperator, "203.0.113.2", "")
	const all = "/api/v1/blocks?within=0.0.0.0/0"
	if r := b.do(parry.RoleTrigger, "DELETE", all, ""); r.StatusCode != http.StatusForbidden || !strings.Contains(r.problem(t).Detail, "hooks.honour_delete") {
		t.Errorf("got %d %s", r.StatusCode, r.body)
	}
	honour = true
	if r := b.do(parry.RoleReader, "DELETE", all, ""); r.StatusCode != http.StatusForbidden {
		t.Errorf("a reader: %d", r.StatusCode)
	}
	if got := into[api.EndedBlocks](t, b.do(parry.RoleTrigger, "DELETE", all+"&created_by=operator", ""), 200); got.Matched != 0 || got.Blocks == nil {
		t.Errorf("another's: %+v", got)
	}
	if got := into[api.EndedBlocks](t, b.do(parry.RoleTrigger, "DELETE", all, ""), 200); got.Ended != 1 {
		t.Errorf("its own: %+v", got)
	}
	if got := b.standing(); !slices.Equal(got, []string{"203.0.113.2"}) {
		t.Errorf("left are %q", got)
	}
}

// A trigger sends what it kept during an outage in order, an end at the time of its sending: what came up after the end was spooled must block.
func TestDeleteBlocks_aTriggersLateEndTakesNothingFromALaterAlert(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Settings = func() Settings { return Settings{HonourDelete: true} } })
	again := `{"source":"203.0.113.1","event_time":"` + b.clock.now().Add(-5*time.Minute).UTC().Format(time.RFC3339) + `"}`
	b.make(parry.RoleTrigger, "203.0.113.1", "")
	if got := into[api.EndedBlocks](t, b.do(parry.RoleTrigger, "DELETE", "/api/v1/blocks?source=203.0.113.1", ""), 200); got.Ended != 1 {
		t.Fatalf("got %+v", got)
	}
	made := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", again), 201)
	if got := into[api.BlockPage](t, b.do(parry.RoleReader, "GET", "/api/v1/blocks?status=ended", ""), 200); len(got.Items) != 1 || got.Items[0].EndReason != "withdrawn" {
		t.Errorf("got %+v", got.Items)
	}
	into[api.EndedBlock](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks/"+made.ID+"?grace=0", ""), 200)
	if r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", again); r.StatusCode == http.StatusCreated {
		t.Errorf("an operator's word holds for what came up before it: %s", r.body)
	}
}

func TestDeleteBlocks_keepsToTheTokensFirewalls(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.make(parry.RoleOperator, "203.0.113.1", `,"firewalls":["core"]`)
	b.make(parry.RoleOperator, "203.0.113.2", `,"firewalls":["edge-a"]`)
	b.make(parry.RoleOperator, "203.0.113.3", `,"firewalls":["all"]`)
	b.tokens["edge"] = b.token(parry.Token{Name: "edge", Role: parry.RoleOperator, Firewalls: []string{"edge"}})
	if got := into[api.EndedBlocks](t, b.do("edge", "DELETE", "/api/v1/blocks?within=0.0.0.0/0", ""), 200); got.Matched != 1 {
		t.Errorf("got %+v", got)
	}
	if got := b.standing(); !slices.Equal(got, []string{"203.0.113.1", "203.0.113.3"}) {
		t.Errorf("left are %q", got)
	}
}

// Beyond one transaction, and beyond the ids that an answer holds.
func TestDeleteBlocks_many(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for i := range 1200 {
		b.make(parry.RoleTrigger, fmt.Sprintf("11.0.%d.%d", i/256, i%256), "")
	}
	b.make(parry.RoleTrigger, "203.0.113.1", "")
	got := into[api.EndedBlocks](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks?within=11.0.0.0/16", ""), 200)
	if got.Matched != 1200 || got.Ended != 1200 || len(got.Blocks) != 1000 {
		t.Errorf("matched %d, ended %d, named %d", got.Matched, got.Ended, len(got.Blocks))
	}
	if left := b.standing(); !slices.Equal(left, []string{"203.0.113.1"}) {
		t.Errorf("left are %q", left)
	}
}
