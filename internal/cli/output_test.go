package cli

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/parry/parry/api"
)

var now = time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)

func draw(f func(p *printer)) string {
	p := &printer{out: new(bytes.Buffer), width: 80, now: now}
	f(p)
	return p.out.String()
}

const hostile = "\x1b[2J\x1b]0;pwned\x07 {{ 7*7 }} $(id) <script>\r\n\u202egnp.exe\u2066 \xff\xfe \x9b31m \u0085 tail"

func TestInert_nothingActsOnATerminal(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain é 漢 →":      "plain é 漢 →",
		"\x1b[31m":         `\x1b[31m`,
		"a\r\nb\tc":        `a\r\nb\tc`,
		"\u202eabc":        `\u202eabc`,
		"\xff":             `\xff`,
		"\u009b31m":        `\u009b31m`,
		"\u2028\ufeff\x00": `\u2028\ufeff\x00`,
	} {
		if got := inert(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got, want := inertLines("a\n\tb\x1b\r"), "a\n\tb\\x1b\\r"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// harmless fails when a line is wider than the terminal or holds what a terminal acts on.
func harmless(t *testing.T, what, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > 80 {
			t.Errorf("%s: %d columns: %s", what, n, line)
		}
		if i := strings.IndexFunc(line, func(r rune) bool { return unicode.IsControl(r) || unicode.In(r, unicode.Cf) }); i >= 0 || !utf8.ValidString(line) {
			t.Errorf("%s: not inert: %q", what, line)
		}
	}
}

func TestTables_fit80ColumnsWhateverTheValues(t *testing.T) {
	t.Parallel()
	id := "b-01JD6QW2Z3X4Y5V6T7S8R9Q0PA"
	v6 := "2001:db8:1234:5678:9abc:def0:1234:5678/128"
	blocks := []api.Block{
		{ID: id, Source: "203.0.113.7", Destination: "198.51.100.10", DestinationPort: 22, Protocol: "tcp", State: "enforced", Enforced: 2, InScope: 2,
			ExpiresAt: now.Add(4 * time.Hour), Reason: hostile, Origin: "ossim"},
		{ID: id, Source: v6, Destination: v6, DestinationPort: 65535, Protocol: "tcp/udp", Interface: strings.Repeat("i", 64), State: "degraded",
			Enforced: 1000, InScope: 1000, Reason: strings.Repeat("long ", 100), Origin: hostile},
	}
	table := draw(func(p *printer) { p.blockTable(blocks) })
	harmless(t, "blocks", table)
	if !strings.Contains(table, v6) {
		t.Errorf("a long source was cut:\n%s", table)
	}
	harmless(t, "firewalls", draw(func(p *printer) {
		p.firewallTable([]api.Firewall{
			{Name: strings.Repeat("f", 63), State: "failing", Bundle: "pfsense", Proof: api.Proof{Sha256: "x", Count: 1000000}, ProvedAt: now.Add(-49 * time.Hour),
				Incident: api.Incident{Since: now.Add(-time.Hour), Failure: "unreachable", Message: hostile, Attempts: 3, NextTry: now.Add(time.Minute)},
				Hold:     api.Hold{Since: now.Add(-time.Hour), By: "local", Reason: hostile}},
		})
	}))
	harmless(t, "block", draw(func(p *printer) {
		p.blockDetail(&api.Block{ID: id, Source: "203.0.113.7", State: "rejected", Status: []api.BlockStatus{{
			Name: "fw-a", State: "rejected", Reason: "destination_is_firewall", Hint: hostile + strings.Repeat(" long", 100),
			Becomes: []api.Target{{Destination: v6[:39], Protocol: "tcp/udp", DestinationPort: 65535}, {DestinationPort: 53, Protocol: hostile[:7]}},
		}}})
	}))
	harmless(t, "firewall", draw(func(p *printer) {
		all := api.FirewallFacts{Addresses: slices.Repeat([]string{v6}, 1024), Gateways: []string{hostile}}
		for range 1024 {
			all.Forwards = append(all.Forwards, api.PortForward{Destination: v6[:39], Protocol: "tcp/udp", Port: 60000, PortEnd: 60010, To: v6[:39], ToPort: 50000})
		}
		p.firewallDetail(&api.Firewall{Name: "fw-a", State: "proved", Facts: all})
	}))
	key := v6 + " " + v6 + " tcp/udp 65535 " + strings.Repeat("i", 64)
	approval := api.Approval{ID: "a-01JD6QW2Z3X4Y5V6T7S8R9Q0PA", Firewall: strings.Repeat("f", 63), State: "denied", Why: strings.Repeat(hostile, 3), Removed: 123456, Added: 123456,
		CreatedAt: now.Add(-49 * time.Hour), ExpiresAt: now.Add(time.Hour), DecidedAt: now, DecidedBy: hostile, Reason: hostile, First: []string{"- " + key, "+ " + key}}
	harmless(t, "approvals", draw(func(p *printer) { p.approvalTable([]api.Approval{approval}) }))
	harmless(t, "approval", draw(func(p *printer) { p.approvalDetail(&approval) }))
	simulated := api.Firewall{Name: "fw-a", State: "simulated", Simulate: true, Approval: approval.ID, Hold: api.Hold{Kind: "panic", By: hostile, Since: now, Reason: hostile},
		Simulation: api.Simulation{RunID: "r-01JD6QW2Z3X4Y5V6T7S8R9Q0PA", At: now, Entries: 123456, Added: 123456, Removed: 123456, First: approval.First, Lines: 9}}
	harmless(t, "a simulated firewall", draw(func(p *printer) { p.firewallDetail(&simulated) }))
	harmless(t, "firewalls in panic", draw(func(p *printer) {
		p.panicLine([]api.Firewall{simulated})
		p.firewallTable([]api.Firewall{simulated})
		p.panicHead(&api.Panic{}, []string{strings.Repeat("f", 30), "fw-b"})
	}))
	harmless(t, "runs", draw(func(p *printer) {
		p.runTable([]api.Run{{ID: id, Firewall: strings.Repeat("f", 63), Kind: "apply", State: "succeeded", StartedAt: now.Add(-49 * time.Hour), EndedAt: now,
			Failure: "task", Message: hostile}})
	}))
	harmless(t, "exemptions", draw(func(p *printer) {
		p.exemptionTable([]api.Exemption{{ID: "x-1", Prefix: v6, Reason: strings.Repeat(hostile, 9), Source: "api", CreatedBy: hostile, ExpiresAt: now.Add(time.Hour)}})
	}))
	harmless(t, "tokens", draw(func(p *printer) {
		p.tokenTable([]api.Token{{ID: "t-01JD6QW2Z3X4Y5V6T7S8R9Q0PA", Name: strings.Repeat("n", 64), Role: "approver", ExpiresAt: now.Add(53 * time.Hour),
			LastUsed: now.Add(-53 * time.Hour), Sources: []string{v6, v6, v6}}})
	}))
	harmless(t, "evidence", draw(func(p *printer) {
		p.evidence([]api.Evidence{{N: 1 << 40, ReceivedAt: now.Add(-53 * time.Hour), Token: strings.Repeat("n", 64), RemoteAddr: v6, Origin: hostile, AlertID: hostile,
			RuleID: hostile, Reason: hostile}})
	}))
}

func TestColour_leavesTheColumnsWhereTheyAre(t *testing.T) {
	t.Parallel()
	rows := []row{{cells: []cell{state("enforced"), text("a")}}, {cells: []cell{state("ok"), text("b")}}}
	p := &printer{out: new(bytes.Buffer), width: 80, colour: true}
	p.table([]string{"STATE", "X"}, []int{0, 0}, rows)
	got := strings.NewReplacer("\x1b[32m", "", "\x1b[2m", "", "\x1b[0m", "").Replace(p.out.String())
	want := draw(func(p *printer) { p.table([]string{"STATE", "X"}, []int{0, 0}, rows) })
	if got != want || p.out.String() == want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestShort(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", 1100 * time.Millisecond: "1.1s", 12 * time.Second: "12s", 90 * time.Second: "1m30s", 29 * time.Minute: "29m",
		3*time.Hour + 58*time.Minute: "3h58m", 4*time.Hour - time.Second: "4h", 52 * time.Hour: "2d4h", 12 * 24 * time.Hour: "12d", -time.Second: "0s",
	} {
		if got := short(d); got != want {
			t.Errorf("%s: got %s, want %s", d, got, want)
		}
	}
}
