package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
)

func TestAdmit_escalation(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	limits := Limits{DefaultTTL: 4 * time.Hour, MaxTTL: 10 * day, Ladder: parry.Ladder{Rungs: []time.Duration{4 * time.Hour, day, 30 * day}},
		Promote: Promote{Sources: 5, Within: time.Hour, V4: 24, V6: 64}}
	p := newPolicy(t, limits)
	p.Replace(parry.ExemptConfig, []parry.Exemption{{ID: "cfg:mx", Prefix: pfx("198.51.100.25"), Reason: "mail"}})
	for name, c := range map[string]struct {
		role            parry.Role
		source          string
		ttl             time.Duration
		ladder, grace   bool // LadderTTL, EndsGrace
		promote, barred string
	}{
		"trigger":                {parry.RoleTrigger, "203.0.113.7", 0, true, false, "203.0.113.0/24", ""},
		"trigger with a TTL":     {parry.RoleTrigger, "203.0.113.7", time.Hour, true, false, "203.0.113.0/24", ""},
		"trigger of IPv6":        {parry.RoleTrigger, "2001:db8::7", 0, true, false, "2001:db8::/64", ""},
		"beside an exemption":    {parry.RoleTrigger, "198.51.100.7", 0, true, false, "198.51.100.0/24", "contains 198.51.100.25, which is never blocked: exemption cfg:mx (mail)"},
		"operator":               {parry.RoleOperator, "203.0.113.7", 0, true, true, "", ""},
		"operator with a TTL":    {parry.RoleOperator, "203.0.113.7", time.Hour, false, true, "", ""},
		"operator with a prefix": {parry.RoleOperator, "203.0.113.0/24", time.Hour, false, true, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pr := &parry.Principal{Token: parry.Token{Role: c.role}}
			got, err := p.Admit(pr, fleet, Ask{Source: pfx(c.source), Selector: parry.SelectDefault, TTL: c.ttl}, now)
			if err != nil || got.Ladder == nil || got.LadderTTL != c.ladder || got.EndsGrace != c.grace || (got.Promote != nil) != (c.promote != "") {
				t.Fatalf("got %+v, %v", got, err)
			}
			if pm := got.Promote; pm != nil && (pm.Prefix.String() != c.promote || pm.Sources != 5 || !pm.Since.Equal(now.Add(-time.Hour)) ||
				!strings.Contains(pm.Barred, c.barred) || (pm.Barred == "") != (c.barred == "")) {
				t.Errorf("promotion %+v", pm)
			}
		})
	}

	o := parry.Offender{Offences: 2, Rung: 2, LastAt: now}
	if got := p.Outlook(&o, now); got.Rung != 2 || got.Rungs != 3 || got.Next != 3 || got.TTL != 10*day {
		t.Errorf("the cap bounds the next TTL: %+v", got)
	}
	limits.Ladder, limits.Promote.Sources, limits.MinPrefixV4 = parry.Ladder{}, 0, 28
	off := newPolicy(t, limits)
	got, err := off.Admit(&parry.Principal{Token: parry.Token{Role: parry.RoleTrigger}}, fleet, Ask{Source: pfx("203.0.113.7"), Selector: parry.SelectDefault}, now)
	if err != nil || got.Ladder != nil || got.LadderTTL || got.Promote != nil || off.Outlook(&o, now) != (Outlook{}) {
		t.Errorf("switched off: %+v, %v", got, err)
	}
	limits.Promote.Sources = 5
	narrow := newPolicy(t, limits)
	got, err = narrow.Admit(&parry.Principal{Token: parry.Token{Role: parry.RoleTrigger}}, fleet, Ask{Source: pfx("203.0.113.7"), Selector: parry.SelectDefault}, now)
	if err != nil || !strings.Contains(got.Promote.Barred, "wider than /28") {
		t.Errorf("a prefix that may not be blocked: %+v, %v", got.Promote, err)
	}
}
