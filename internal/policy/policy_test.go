package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/parry/parry/internal/parry"
)

var now = time.Date(2026, 11, 21, 2, 0, 0, 0, time.UTC)

func pfx(s string) netip.Prefix {
	if strings.Contains(s, "/") {
		return netip.MustParsePrefix(s).Masked()
	}
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}

func newPolicy(t testing.TB, l Limits) *Policy {
	t.Helper()
	p, err := New(l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOverlapping_specialRangesInBothDirections(t *testing.T) {
	t.Parallel()
	l := NewList()
	for s, want := range map[string]string{
		"0.1.2.3": "0.0.0.0/8", "127.0.0.1": "127.0.0.0/8", "169.254.169.254": "169.254.0.0/16", "224.0.0.1": "224.0.0.0/4",
		"240.0.0.1": "240.0.0.0/4", "255.255.255.255": "240.0.0.0/4", "126.0.0.0/7": "127.0.0.0/8", "0.0.0.0/0": "0.0.0.0/8",
		"::": "::/128", "::1": "::1/128", "fe80::1": "fe80::/10", "ff02::1": "ff00::/8", "::/0": "::/128", "fe00::/8": "fe80::/10",
		"::ffff:127.0.0.1": "127.0.0.0/8", "::ffff:0:0/96": "0.0.0.0/8", "::fffe:0:0/95": "::ffff:0:0/96",
		"::127.0.0.1": "127.0.0.0/8", "64:ff9b::127.0.0.1": "127.0.0.0/8", "64:ff9b::/96": "0.0.0.0/8", "64:ff9b:1::1": "64:ff9b:1::/48",
		"2002:7f00:1::1": "127.0.0.0/8", "2002:7e00::/23": "127.0.0.0/8", "2002::/16": "0.0.0.0/8",
		"2001:0:7f00:1::1": "127.0.0.0/8", "2001:0:808:808::80ff:fffe": "127.0.0.0/8", "2001::/32": "0.0.0.0/8",
		"203.0.113.7": "", "8.8.8.0/24": "", "10.0.0.1": "", "2001:db8::1": "", "64:ff9b::8.8.8.8": "", "2002:808:808::/48": "",
		"2001:0:808:808:0:0:f7f7:f7f7": "", "100.64.0.1": "", "::ffff:8.8.8.8": "",
	} {
		x, ok := l.Overlapping(pfx(s), now)
		if got := strings.TrimPrefix(string(x.ID), "special:"); got != want || ok != (want != "") {
			t.Errorf("%s: overlaps %q, want %q", s, got, want)
		}
	}
}

func TestOverlapping_exemptionsInBothDirections(t *testing.T) {
	t.Parallel()
	l := NewList()
	l.Replace(parry.ExemptConfig, []parry.Exemption{{ID: "cfg:lan", Prefix: pfx("10.0.0.0/8")}, {ID: "cfg:dns", Prefix: pfx("8.8.8.8")}})
	l.Replace(parry.ExemptFound, []parry.Exemption{{ID: "found:gw", Prefix: pfx("2001:db8:0:1::1")}})
	l.Add(parry.Exemption{ID: "x-old", Prefix: pfx("9.9.9.9"), Source: parry.ExemptAPI, ExpiresAt: now})
	l.Add(parry.Exemption{ID: "x-new", Prefix: pfx("9.9.9.10"), Source: parry.ExemptAPI, ExpiresAt: now.Add(1)})
	for s, want := range map[string]string{
		"10.1.2.3": "cfg:lan", "10.0.0.0/8": "cfg:lan", "8.0.0.0/6": "cfg:lan", "11.0.0.1": "",
		"8.8.8.8": "cfg:dns", "8.8.8.0/24": "cfg:dns", "8.8.8.9": "", "64:ff9b::8.8.8.8": "cfg:dns", "2002:808:808::/48": "cfg:dns",
		"2001:db8::/32": "found:gw", "2001:db8:0:1::1": "found:gw", "2001:db8:0:1::2": "",
		"9.9.9.9": "", "9.9.9.10": "x-new", "9.9.9.0/24": "x-new", "::ffff:10.0.0.1": "cfg:lan",
	} {
		if x, _ := l.Overlapping(pfx(s), now); string(x.ID) != want && !(s == "8.0.0.0/6" && x.ID == "cfg:dns") {
			t.Errorf("%s: overlaps %q, want %q", s, x.ID, want)
		}
	}
	if got := len(l.AllOverlapping(pfx("8.0.0.0/6"), now)); got != 3 {
		t.Errorf("8.0.0.0/6 overlaps %d exemptions, want the 3 that stand", got)
	}
	l.Replace(parry.ExemptConfig, nil)
	l.Remove("found:gw")
	for _, s := range []string{"10.1.2.3", "2001:db8:0:1::1"} {
		if x, ok := l.Overlapping(pfx(s), now); ok {
			t.Errorf("%s still overlaps %s, which was taken out", s, x.ID)
		}
	}
	if got := len(l.All()); got != 2 {
		t.Errorf("%d are left, want the two of the API", got)
	}
}

func TestFile_isWhatFirewallsAreTold(t *testing.T) {
	t.Parallel()
	l := NewList()
	want := func(at time.Time, text string) {
		t.Helper()
		if f := l.File(at); string(f.Text) != text || f.SHA256 != parry.NewExemptFile(nil).SHA256 != (text != "") {
			t.Errorf("got %q, want %q", f.Text, text)
		}
	}
	want(now, "")
	l.Replace(parry.ExemptConfig, []parry.Exemption{{ID: "cfg:lan", Prefix: pfx("10.0.0.0/8")}})
	l.Replace(parry.ExemptFound, []parry.Exemption{{ID: "found:host", Prefix: pfx("10.0.0.7")}, {ID: "found:caller", Prefix: pfx("198.51.100.9"), Fleeting: true}})
	l.Add(parry.Exemption{ID: "x-1", Prefix: pfx("203.0.113.7"), Source: parry.ExemptAPI, ExpiresAt: now.Add(time.Hour)})
	l.Add(parry.Exemption{ID: "x-2", Prefix: pfx("203.0.113.8"), Source: parry.ExemptAPI, ExpiresAt: now.Add(time.Minute)})
	want(now, "10.0.0.0/8\n203.0.113.7\n203.0.113.8\n")
	want(now.Add(time.Minute), "10.0.0.0/8\n203.0.113.7\n") // without any change of the list
	want(now.Add(time.Hour), "10.0.0.0/8\n")
	l.Remove("cfg:lan")
	want(now.Add(time.Hour), "10.0.0.7\n")
}

func TestOverlapping_agreesWithPairwiseOverlap(t *testing.T) {
	t.Parallel()
	gen := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := netip.AddrFrom4([4]byte{byte(rapid.IntRange(8, 11).Draw(t, "a")), byte(rapid.IntRange(0, 3).Draw(t, "b")), 0,
			byte(rapid.IntRange(0, 7).Draw(t, "d"))})
		return netip.PrefixFrom(a, rapid.IntRange(6, 32).Draw(t, "bits")).Masked()
	})
	rapid.Check(t, func(t *rapid.T) {
		l := NewList()
		var set []parry.Exemption
		for i, p := range rapid.SliceOfN(gen, 0, 12).Draw(t, "exemptions") {
			set = append(set, parry.Exemption{ID: parry.ExemptionID(fmt.Sprint(i)), Prefix: p})
		}
		l.Replace(parry.ExemptConfig, set)
		q := gen.Draw(t, "source")
		want := 0
		for _, x := range set {
			if x.Prefix.Overlaps(q) {
				want++
			}
		}
		if got := len(l.AllOverlapping(q, now)); got != want {
			t.Fatalf("%s overlaps %d of %v, want %d", q, got, set, want)
		}
	})
}

var fleet = &parry.Fleet{
	Firewalls: []parry.Firewall{{Name: "core", Groups: []string{"dc"}}, {Name: "edge-a", Groups: []string{"edge"}}, {Name: "edge-b", Groups: []string{"edge"}}},
	Default:   "edge",
}

func TestAdmit(t *testing.T) {
	t.Parallel()
	p := newPolicy(t, Limits{DefaultTTL: 4 * time.Hour, MaxTTL: 48 * time.Hour})
	p.Replace(parry.ExemptConfig, []parry.Exemption{{ID: "cfg:dns", Prefix: pfx("8.8.8.8"), Reason: "resolver"}})
	for name, c := range map[string]struct {
		role      parry.Role
		maxTTL    time.Duration
		firewalls []string
		source    string
		selector  parry.Selector
		ttl       time.Duration
		noEnd     bool
		kind      parry.Kind
		says      string
		granted   time.Duration
	}{
		"default TTL":            {source: "203.0.113.7", granted: 4 * time.Hour},
		"own TTL":                {source: "203.0.113.7", ttl: time.Hour, granted: time.Hour},
		"at the cap":             {source: "203.0.113.7", ttl: 48 * time.Hour, granted: 48 * time.Hour},
		"beyond the cap":         {source: "203.0.113.7", ttl: 49 * time.Hour, kind: parry.KindRefused, says: "2d, the longest that the configuration allows"},
		"beyond the token's cap": {source: "203.0.113.7", maxTTL: time.Hour, ttl: 2 * time.Hour, kind: parry.KindRefused, says: "1h, the longest that the token"},
		"default within token's": {source: "203.0.113.7", maxTTL: time.Hour, granted: time.Hour},
		"exempt":                 {source: "8.8.8.8", kind: parry.KindRefused, says: "8.8.8.8 is 8.8.8.8, which is never blocked: exemption cfg:dns (resolver)"},
		"contains an exemption":  {role: parry.RoleOperator, source: "8.8.8.0/24", kind: parry.KindRefused, says: "contains 8.8.8.8"},
		"embeds an exemption":    {source: "64:ff9b::8.8.8.8", kind: parry.KindRefused, says: "embeds an address of 8.8.8.8"},
		"lies in special":        {source: "127.0.0.1", kind: parry.KindRefused, says: "lies in 127.0.0.0/8"},
		"prefix by trigger":      {source: "203.0.113.0/24", kind: parry.KindForbidden, says: "single addresses only"},
		"prefix by operator":     {role: parry.RoleOperator, source: "203.0.113.0/24", granted: 4 * time.Hour},
		"wide prefix":            {role: parry.RoleOperator, source: "203.0.112.0/23", kind: parry.KindRefused, says: "wider than /24"},
		"wide IPv6 prefix":       {role: parry.RoleAdmin, source: "2001:db8::/47", kind: parry.KindRefused, says: "wider than /48"},
		"IPv6 prefix":            {role: parry.RoleOperator, source: "2001:db8::/48", granted: 4 * time.Hour},
		"without end by admin":   {role: parry.RoleAdmin, source: "203.0.113.7", noEnd: true},
		"without end":            {role: parry.RoleApprover, source: "203.0.113.7", noEnd: true, kind: parry.KindForbidden, says: "without-end"},
		"without end, capped":    {role: parry.RoleAdmin, maxTTL: time.Hour, source: "203.0.113.7", noEnd: true, kind: parry.KindRefused, says: "1h"},
		"selector of the token":  {firewalls: []string{"edge"}, selector: "edge", source: "203.0.113.7", granted: 4 * time.Hour},
		"firewall in its group":  {firewalls: []string{"edge"}, selector: "edge-a,edge-b", source: "203.0.113.7", granted: 4 * time.Hour},
		"other firewall":         {firewalls: []string{"edge"}, selector: "core,edge-a", source: "203.0.113.7", kind: parry.KindForbidden, says: `"core"`},
		"default not named":      {firewalls: []string{"edge"}, source: "203.0.113.7", kind: parry.KindForbidden, says: "edge only"},
		"token for all":          {firewalls: []string{"all"}, selector: "core", source: "203.0.113.7", granted: 4 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pr := &parry.Principal{Token: parry.Token{Name: "ossim", Role: parry.RoleTrigger, MaxTTL: c.maxTTL, Firewalls: c.firewalls}}
			if c.role != "" {
				pr.Token.Role = c.role
			}
			if c.selector == "" {
				c.selector = parry.SelectDefault
			}
			got, err := p.Admit(pr, fleet, Ask{Source: pfx(c.source), Selector: c.selector, TTL: c.ttl, NoEnd: c.noEnd}, now)
			if c.kind != "" {
				if parry.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
					t.Fatalf("got %v (%s), want %s with %q", err, parry.KindOf(err), c.kind, c.says)
				}
				return
			}
			if err != nil || got.TTL != c.granted || got.NoEnd != c.noEnd || got.MaxExpires.IsZero() != c.noEnd {
				t.Fatalf("got %+v, %v; want %v", got, err, c.granted)
			}
		})
	}
}

func TestExtend(t *testing.T) {
	t.Parallel()
	p := newPolicy(t, Limits{MaxTTL: 48 * time.Hour})
	operator := &parry.Principal{Token: parry.Token{Role: parry.RoleOperator}}
	admin := &parry.Principal{Token: parry.Token{Role: parry.RoleAdmin}}
	if err := p.Extend(operator, 48*time.Hour, false, "/ttl", now); err != nil {
		t.Error(err)
	}
	if err := p.Extend(operator, 49*time.Hour, false, "/expires_at", now); parry.KindOf(err) != parry.KindRefused {
		t.Errorf("beyond the cap: %v", err)
	}
	if err := p.Extend(operator, 0, true, "/ttl", now); parry.KindOf(err) != parry.KindForbidden {
		t.Errorf("without end: %v", err)
	}
	if err := p.Extend(admin, 0, true, "/ttl", now); err != nil {
		t.Error(err)
	}
}

func TestSetLimits_refusesWhatOpensTooMuch(t *testing.T) {
	t.Parallel()
	for _, l := range []Limits{{MinPrefixV4: 7}, {MinPrefixV4: 33}, {MinPrefixV6: 15}, {DefaultTTL: 2, MaxTTL: 1}, {DefaultTTL: -1}} {
		if _, err := New(l); err == nil {
			t.Errorf("%+v was taken", l)
		}
	}
}

func BenchmarkOverlapping_100000(b *testing.B) {
	l := NewList()
	set := make([]parry.Exemption, 100_000)
	for i := range set {
		set[i].Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	l.Replace(parry.ExemptConfig, set)
	q := pfx("203.0.113.7")
	b.ReportAllocs()
	for b.Loop() {
		l.Overlapping(q, now)
	}
}
