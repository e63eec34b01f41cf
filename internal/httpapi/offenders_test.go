package httpapi

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
)

const day = 24 * time.Hour

// escalate gives the bench the ladder of the default configuration, and promotion at so many sources.
func (b *bench) escalate(sources int) {
	b.t.Helper()
	err := b.policy.SetLimits(policy.Limits{
		DefaultTTL: 4 * time.Hour, MaxTTL: 30 * day,
		Ladder:  parry.Ladder{Rungs: []time.Duration{4 * time.Hour, day, 7 * day, 30 * day}, Window: 30 * day, Decay: 7 * day},
		Promote: policy.Promote{Sources: sources, Within: time.Hour, V4: 24, V6: 64},
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func newEscalation(t *testing.T) *bench {
	t.Helper()
	b := newBench(t, func(o *Options) { o.Settings = func() Settings { return Settings{Grace: time.Hour} } })
	b.escalate(3)
	return b
}

func (b *bench) block(as parry.Role, body string, status int) api.Block {
	b.t.Helper()
	return into[api.Block](b.t, b.do(as, "POST", "/api/v1/blocks", body), status)
}

func (b *bench) explain(address string) api.Explanation {
	b.t.Helper()
	return into[api.Explanation](b.t, b.do(parry.RoleReader, "GET", "/api/v1/explain?address="+address, ""), 200)
}

// lasts is a block's lifetime to the minute.
func (b *bench) lasts(x *api.Block) time.Duration {
	return x.ExpiresAt.Sub(b.clock.now()).Round(time.Minute)
}

func TestCreateBlock_repeatOffendersAreBlockedLonger(t *testing.T) {
	t.Parallel()
	b := newEscalation(t)
	for i, want := range []time.Duration{4 * time.Hour, day, 7 * day, 30 * day, 30 * day} {
		got := b.block(parry.RoleTrigger, `{"source":"203.0.113.7"}`, 201)
		if got.Offence != i+1 || b.lasts(&got) != want {
			t.Errorf("offence %d for %s, want %d for %s", got.Offence, b.lasts(&got), i+1, want)
		}
		if again := b.block(parry.RoleTrigger, `{"source":"203.0.113.7"}`, 200); again.Offence != i+1 {
			t.Errorf("a repeat is offence %d", again.Offence)
		}
		b.clock.advance(want + time.Minute)
	}
	o := b.explain("203.0.113.7").Offender
	falls := o.FallsAt.Sub(b.clock.now()).Round(time.Hour)
	if o.Source != "203.0.113.7" || o.Offences != 5 || o.Rung != 4 || o.Rungs != 4 || o.NextOffence != 6 || o.NextTTL != "30d" || falls != 7*day {
		t.Errorf("explained as %+v, a rung less in %s", o, falls)
	}
	b.clock.advance(21 * day)
	if o = b.explain("203.0.113.7").Offender; o.Rung != 1 || o.NextTTL != "1d" {
		t.Errorf("three weeks later %+v", o)
	}
	b.clock.advance(9 * day)
	if o = b.explain("203.0.113.7").Offender; o.Rung != 0 || o.Offences != 0 || o.NextOffence != 1 || o.NextTTL != "4h" || !o.FallsAt.IsZero() {
		t.Errorf("a month later %+v", o)
	}
	if got := b.block(parry.RoleTrigger, `{"source":"203.0.113.7"}`, 201); got.Offence != 1 {
		t.Errorf("a month later offence %d", got.Offence)
	}
}

func TestCreateBlock_whoseTTLStands(t *testing.T) {
	t.Parallel()
	b := newEscalation(t)
	b.tokens["short"] = b.token(parry.Token{Name: "short", Role: parry.RoleTrigger, MaxTTL: 2 * time.Hour})
	b.block(parry.RoleTrigger, `{"source":"203.0.113.1","ttl":"10m"}`, 201)
	for i := range 5 {
		source := fmt.Sprintf("198.51.%d.7", 100+i)
		first := b.block(parry.RoleTrigger, `{"source":"`+source+`","ttl":"10m"}`, 201)
		if b.lasts(&first) != 10*time.Minute {
			t.Errorf("a first offence lasts %s, want what the request says", b.lasts(&first))
		}
	}
	b.clock.advance(time.Hour)
	for i, c := range []struct {
		as   parry.Role
		ttl  string
		want time.Duration
	}{
		{parry.RoleTrigger, `,"ttl":"10m"`, day},
		{parry.RoleTrigger, `,"ttl":"3d"`, 3 * day},
		{parry.RoleOperator, `,"ttl":"10m"`, 10 * time.Minute},
		{parry.RoleOperator, ``, day},
		{"short", ``, 2 * time.Hour},
	} {
		got := b.block(c.as, fmt.Sprintf(`{"source":"198.51.%d.7"%s}`, 100+i, c.ttl), 201)
		if got.Offence != 2 || b.lasts(&got) != c.want {
			t.Errorf("%s with %q: offence %d for %s, want 2 for %s", c.as, c.ttl, got.Offence, b.lasts(&got), c.want)
		}
	}
}

func TestDeleteBlock_givesGrace(t *testing.T) {
	t.Parallel()
	b := newEscalation(t)
	id := b.block(parry.RoleTrigger, `{"source":"203.0.113.7"}`, 201).ID
	del := func(query string) api.EndedBlock {
		t.Helper()
		b.clock.advance(time.Second)
		defer b.clock.advance(time.Second)
		return into[api.EndedBlock](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks/"+id+query, ""), 200)
	}
	refused := func(source string) {
		t.Helper()
		r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"`+source+`"}`)
		if r.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(r.body, "operator lifted the block of 203.0.113.7 with a grace until ") ||
			r.problem(t).Errors[0].Pointer != "/source" {
			t.Errorf("in grace: %d %s", r.StatusCode, r.body)
		}
	}
	left := func(o api.Offender) time.Duration { return o.GraceUntil.Sub(b.clock.now()).Round(time.Minute) }
	got := del("")
	if got.Offender.GraceBy != "operator" || left(got.Offender) != time.Hour || got.Offender.Offences != 1 {
		t.Errorf("by default %+v", got.Offender)
	}
	refused("203.0.113.7")
	b.clock.advance(30 * time.Minute)
	if got = del(""); left(got.Offender) != 30*time.Minute {
		t.Errorf("a repeat of the plain word leaves %s", left(got.Offender))
	}
	if got = del("?grace=2h"); left(got.Offender) != 2*time.Hour {
		t.Errorf("an explicit one is %s", left(got.Offender))
	}
	refused("203.0.113.7")
	if o := b.explain("203.0.113.7").Offender; o.GraceBy != "operator" || o.GraceOf != "203.0.113.7" || left(o) != 2*time.Hour {
		t.Errorf("explained as %+v", o)
	}
	metrics := b.do(parry.RoleReader, "GET", "/metrics", "").body
	if !strings.Contains(metrics, "parry_blocks_refused_in_grace_total 2") {
		t.Error("the metric does not count two refusals")
	}
	if got = del("?grace=0&forget=true"); !got.Offender.GraceUntil.IsZero() || got.Offender.Offences != 0 {
		t.Errorf("taken back: %+v", got.Offender)
	}
	again := b.block(parry.RoleTrigger, `{"source":"203.0.113.7"}`, 201)
	if again.Offence != 1 {
		t.Errorf("forgotten, and yet offence %d", again.Offence)
	}
	id = again.ID
	del("?grace=2h")
	if own := b.block(parry.RoleOperator, `{"source":"203.0.113.7"}`, 201); own.Offence != 2 {
		t.Errorf("an operator's own: offence %d", own.Offence)
	}
	b.block(parry.RoleTrigger, `{"source":"203.0.113.7"}`, 200)
	for _, bad := range []string{"?grace=soon", "?grace=-1h", "?grace=366d", "?forget=perhaps"} {
		if r := b.do(parry.RoleOperator, "DELETE", "/api/v1/blocks/"+id+bad, ""); r.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d %s", bad, r.StatusCode, r.body)
		}
	}
}

func TestCreateBlock_promotesAPrefix(t *testing.T) {
	t.Parallel()
	b := newEscalation(t)
	for i := 1; i <= 2; i++ {
		if got := b.block(parry.RoleTrigger, fmt.Sprintf(`{"source":"203.0.113.%d"}`, i), 201); got.PromotedFrom != 0 {
			t.Errorf("%d sources: %+v", i, got)
		}
	}
	if got := b.block(parry.RoleOperator, `{"source":"203.0.113.9"}`, 201); got.Source != "203.0.113.9" {
		t.Errorf("an operator's own became %s", got.Source)
	}
	got := b.block(parry.RoleTrigger, `{"source":"203.0.113.3"}`, 201)
	if got.Source != "203.0.113.0/24" || got.PromotedFrom != 3 || got.NotPromoted != "" {
		t.Errorf("got %+v", got)
	}
	x := b.explain("203.0.113.3")
	if len(x.Blocks) != 1 || x.Blocks[0].PromotedFrom != 3 || len(x.Requests) != 1 || x.Requests[0].Source != "203.0.113.3" {
		t.Errorf("explained as %+v", x)
	}
	own := into[api.Block](t, b.do(parry.RoleTrigger, "GET", "/api/v1/blocks/"+got.ID, ""), 200)
	if own.Source != got.Source {
		t.Error("the trigger does not see what it made")
	}

	b.policy.Replace(parry.ExemptFound, []parry.Exemption{{ID: "found:x", Prefix: netip.MustParsePrefix("198.51.100.200/32"), Reason: "our mail server"}})
	for i := 1; i <= 4; i++ {
		got := b.block(parry.RoleTrigger, fmt.Sprintf(`{"source":"198.51.100.%d"}`, i), 201)
		says := strings.Contains(got.NotPromoted, "198.51.100.0/24 contains 198.51.100.200, which is never blocked: exemption found:x (our mail server)")
		if got.PromotedFrom != 0 || says != (i >= 3) {
			t.Errorf("%d sources beside an exemption: %+v", i, got)
		}
	}
}
