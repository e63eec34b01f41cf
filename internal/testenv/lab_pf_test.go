package testenv_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/testenv"
)

// pf runs a pfctl command line on the firewall: standard output and error as they come, then the exit code.
func pf(l *testenv.Lab, args string) string {
	return l.SSH("pfctl " + args + ` 2>&1; echo "rc $?"`)
}

// load writes a ruleset on the firewall and has pf load it.
func load(l *testenv.Lab, rules string) string {
	l.SSH("cat >/tmp/r <<'END'\n" + rules + "\nEND")
	return pf(l, "-f /tmp/r")
}

func TestLabPF_tableCommands(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	for _, tc := range []struct{ args, want string }{
		{"-t new -T show", "pfctl: Table does not exist.\nrc 1\n"},
		{"-t new -T add 203.0.113.9 203.0.113.8", "1 table created.\n2/2 addresses added.\nrc 0\n"},
		{"-t new -T add 203.0.113.9", "0/1 addresses added.\nrc 0\n"},
		{"-t new -T add 2001:DB8::0:1 10.20.30.40/8", "2/2 addresses added.\nrc 0\n"},
		{"-t new -T show", "   10.0.0.0/8\n   203.0.113.8\n   203.0.113.9\n   2001:db8::1\nrc 0\n"},
		{"-t new -T test 10.1.2.3", "1/1 addresses match.\nrc 0\n"},
		{"-t new -T test 11.1.2.3", "0/1 addresses match.\nrc 2\n"},
		{"-t new -T delete 203.0.113.9 203.0.113.77", "1/2 addresses deleted.\nrc 0\n"},
		{"-t new -T replace 203.0.113.8 192.0.2.1", "1 addresses added, 2 addresses deleted.\nrc 0\n"},
		{"-t new -T replace 203.0.113.8 192.0.2.1", "no changes.\nrc 0\n"},
		{"-q -t new -T replace 203.0.113.8", "rc 0\n"},
		{"-t new -T replace nonsense", "pfctl: no IP address found for nonsense\nrc 1\n"},
		{"-t new -T replace -f /tmp/missing", "pfctl: cannot load /tmp/missing: No such file or directory\nrc 1\n"},
		{"-t new -T show", "   203.0.113.8\nrc 0\n"},
		{"-t new -T flush", "1 addresses deleted.\nrc 0\n"},
		{"-t new -T kill", "1 table deleted.\nrc 0\n"},
		{"-t new -T kill", "0 tables deleted.\nrc 0\n"},
		{"-t " + strings.Repeat("x", 32) + " -T show", "pfctl: table name too long, max 31 chars\nrc 1\n"},
	} {
		if got := pf(l, tc.args); got != tc.want {
			t.Errorf("pfctl %s = %q, want %q", tc.args, got, tc.want)
		}
	}
}

func TestLabPF_aRulesetIsRefusedWhole(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	before := l.Rules()
	for _, tc := range []struct{ rules, want string }{
		{"pass all\nblock in quick sideways", "/tmp/r:2: syntax error"},
		{"block in inet from 2001:db8::1 to any", "/tmp/r:1: rule expands to no valid combination"},
		{"block in from 192.0.2.1 to 2001:db8::1", "/tmp/r:1: rule expands to no valid combination"},
		{"block in from $nobody to any", "/tmp/r:1: macro 'nobody' not defined"},
		{"block in from any to any port 22", "/tmp/r:1: port only applies to tcp/udp/sctp"},
		{`table <x> persist file "/tmp/missing"`, `/tmp/r:1: cannot load "/tmp/missing": No such file or directory`},
		{`block in all label "` + strings.Repeat("x", 64) + `"`, "/tmp/r:1: rule label too long (max 63 chars)"},
		{"block in proto udp all flags S/SA", "/tmp/r:1: flags only apply to tcp"},
		{"set limit table-entries 3\ntable <x> persist { 192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4 }",
			"/tmp/r:2: cannot define table x: Cannot allocate memory"},
	} {
		want := tc.want + "\npfctl: Syntax error in config file: pf rules not loaded\nrc 1\n"
		if got := load(l, tc.rules); got != want {
			t.Errorf("load of %q = %q, want %q", tc.rules, got, want)
		}
	}
	if l.Rules() != before {
		t.Error("a refused ruleset changed what is loaded")
	}
}

func TestLabPF_printsLoadedRulesAsPFDoes(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	rules := `WAN = "{ em0 }"
Bad = "<bad>"
table <bad> persist { 192.0.2.1 }
block  in log  quick  on { em0 em1 } inet proto { tcp udp }  from $Bad to 198.18.10.80 port 443 ridentifier 0900000001 label "USER_RULE: x" label "id:1"
block return in quick on $WAN inet6 from $Bad to any
pass out quick proto tcp from any to !10.0.0.0/8 port 1023 >< 1026 flags any`
	if got := load(l, rules); got != "rc 0\n" {
		t.Fatalf("load = %q", got)
	}
	want := `block drop in log quick on em0 inet proto tcp from <bad> to 198.18.10.80 port = https label "USER_RULE: x" label "id:1" ridentifier 900000001
block drop in log quick on em0 inet proto udp from <bad> to 198.18.10.80 port = https label "USER_RULE: x" label "id:1" ridentifier 900000001
block drop in log quick on em1 inet proto tcp from <bad> to 198.18.10.80 port = https label "USER_RULE: x" label "id:1" ridentifier 900000001
block drop in log quick on em1 inet proto udp from <bad> to 198.18.10.80 port = https label "USER_RULE: x" label "id:1" ridentifier 900000001
block return in quick on em0 inet6 from <bad> to any
pass out quick inet proto tcp from any to ! 10.0.0.0/8 port 1023 >< 1026 flags any keep state
`
	if got := l.SSH("pfctl -sr"); got != want {
		t.Errorf("pfctl -sr =\n%swant\n%s", got, want)
	}
	if got := l.SSH("pfctl -P -sr | head -n 1"); !strings.Contains(got, "port = 443 ") {
		t.Errorf("pfctl -P -sr = %q, want ports as numbers", got)
	}
	if got := l.SSH("pfctl -vvsr | head -n 1"); !strings.HasPrefix(got, "@0 block drop") || !strings.Contains(got, "<bad:1>") {
		t.Errorf("pfctl -vvsr = %q, want the rule's number and the table's count", got)
	}
}

func TestLabPF_tablesOutliveALoadOnlyWhenKept(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	load(l, "table <kept> persist\ntable <used>\ntable <idle>\nblock in from <used> to any\nblock in from <implied> to any")
	l.SSH("pfctl -q -t kept -T add 192.0.2.1; pfctl -q -t used -T add 192.0.2.2")
	if got, want := l.SSH("pfctl -sT | grep -E 'kept|used|idle|implied'"), "implied\nkept\nused\n"; got != want {
		t.Errorf("tables = %q, want %q", got, want)
	}
	load(l, "table <kept> persist\nblock in from <used> to any")
	for table, want := range map[string]string{"kept": "   192.0.2.1\n", "used": "   192.0.2.2\n"} {
		if got := l.SSH("pfctl -t " + table + " -T show"); got != want {
			t.Errorf("table %s after a load = %q, want %q", table, got, want)
		}
	}
	if got := l.SSH("pfctl -sT"); strings.Contains(got, "implied") {
		t.Errorf("tables = %q, want no table that nothing names", got)
	}
}

func TestLabPF_killsStates(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	l.AddState("em0", "tcp", "203.0.113.9", "40000", "198.18.10.80", "443")
	l.AddState("em1", "tcp", "192.168.1.5", "40001", "203.0.113.9", "80")
	l.AddState("em0", "udp", "203.0.113.10", "40002", "198.18.10.80", "53")
	if got, want := l.SSH("pfctl -ss | head -n 1"), "em0 tcp 198.18.10.80:443 <- 203.0.113.9:40000       ESTABLISHED:ESTABLISHED\n"; got != want {
		t.Errorf("pfctl -ss = %q, want %q", got, want)
	}
	l.SSH(`echo '<?php pfSense_kill_states("203.0.113.9"); pfSense_kill_states("0.0.0.0/0", "203.0.113.9");' | /usr/local/bin/php`)
	if got := l.SSH("pfctl -ss"); strings.Count(got, "\n") != 1 || !strings.Contains(got, "203.0.113.10") {
		t.Errorf("states left = %q, want the other address's only", got)
	}
	byPF := l.SSH(`pfctl -vvss | sed -n 's|^ *id: \([0-9a-f]*\) .*|\1|p'`)
	if got := l.SSH(`echo '<?php echo pfSense_get_pf_states()[0]["id"], "\n";' | php`); got != byPF {
		t.Errorf("the extension names a state %q, pfctl %q", got, byPF)
	}
	if got, want := pf(l, "-k 203.0.113.0/24"), "killed 1 states from 1 sources and 0 destinations\nrc 0\n"; got != want {
		t.Errorf("pfctl -k = %q, want %q", got, want)
	}
}

func TestLabPF_hundredThousandEntries(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	l.SSH(`/usr/bin/awk 'BEGIN { for (i = 0; i < 100000; i++) printf "10.%d.%d.%d\n", i / 65536, i / 256 % 256, i % 256 }' >/tmp/big`)
	start := time.Now()
	if got, want := pf(l, "-t big -T replace -f /tmp/big"), "1 table created.\n100000 addresses added.\nrc 0\n"; got != want {
		t.Errorf("replace = %q, want %q", got, want)
	}
	t.Logf("replace of 100,000 entries, with the login: %v", time.Since(start))
	if got, want := strings.TrimSpace(l.SSH("pfctl -t big -T show | wc -l")), "100000"; got != want {
		t.Errorf("entries = %s, want %s", got, want)
	}
	l.SSH(fmt.Sprintf("pfctl -q -t more -T add 192.0.2.1; echo 'set limit table-entries %d' >/tmp/l; pfctl -Of /tmp/l", 100100))
	l.SSH(`sed 's/^10/11/' /tmp/big >/tmp/big2`)
	if got, want := pf(l, "-t big -T replace -f /tmp/big2"), "pfctl: Cannot allocate memory.\nrc 1\n"; got != want {
		t.Errorf("replace over the limit = %q, want %q", got, want)
	}
}
