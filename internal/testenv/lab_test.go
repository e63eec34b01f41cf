package testenv_test

import (
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/internal/testenv"
)

// addBlock is a program as a playbook would run it on the firewall: an alias fed from a file, a floating rule on it, a synchronous reload.
const addBlock = `<?php
require_once('config.inc');
require_once('functions.inc');
require_once('filter.inc');
file_put_contents('/var/db/aliastables/NAME.txt', "203.0.113.9\n203.0.113.128/25\n");
config_set_path('aliases/alias', array_merge(config_get_path('aliases/alias', []), [['name' => 'NAME', 'type' => 'urltable',
    'url' => 'file:///var/db/aliastables/NAME.txt', 'updatefreq' => '9999', 'address' => 'file:///var/db/aliastables/NAME.txt', 'descr' => 'test']]));
config_set_path('filter/rule', array_merge([['id' => '', 'tracker' => '900000001', 'type' => 'block', 'floating' => 'yes', 'quick' => 'yes',
    'interface' => 'wan', 'direction' => 'in', 'ipprotocol' => 'inet', 'source' => ['address' => 'NAME'], 'destination' => ['any' => ''],
    'descr' => 'test']], config_get_path('filter/rule', [])));
write_config('test -NoReMoTeBaCkUp');
alias_make_table();
var_dump(filter_configure_sync(false));
`

func runPHP(t *testing.T, l *testenv.Lab, program string) string {
	t.Helper()
	l.SSH("cat >/root/program.php <<'END'\n" + program + "\nEND")
	return strings.TrimSpace(l.SSH("/usr/local/bin/php /root/program.php"))
}

func TestLab_adminLogsInWithThePinnedHostKey(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})

	ssh := func(knownHosts string) (string, error) {
		out, err := exec.Command("ssh", "-F", "none", "-i", l.KeyFile, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes",
			"-o", "UserKnownHostsFile="+knownHosts, "-p", strconv.Itoa(l.Port), l.User+"@"+l.Addr.String(),
			"echo $HOME; id -u; head -c 5 /etc/version").CombinedOutput()
		return string(out), err
	}
	got, err := ssh(l.KnownHosts)
	if want := "/root\n0\n2.7.2"; err != nil || got != want {
		t.Errorf("login = %q, %v; want %q", got, err, want)
	}
	if got, err := ssh(os.DevNull); err == nil || !strings.Contains(got, "Host key verification failed") {
		t.Errorf("login without the pinned key = %q, %v; want it refused", got, err)
	}
}

func TestLab_noPythonOnTheFirewall(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	if got := strings.TrimSpace(l.SSH("python3 -c 'print(1)' 2>/dev/null || echo none")); got != "none" {
		t.Errorf("python3 on the firewall = %q, want none", got)
	}
}

func TestLab_filterConfigureSyncLoadsRuleAndTable(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ version, rest string }{
		{"2.7.2", `reply-to (em0 198.18.0.1) inet from <parry_t1> to any label "USER_RULE: test" label "id:900000001"`},
		{"2.8", `reply-to (em0 198.18.0.1) inet from <parry_t1> to any label "USER_RULE: test" label "id:900000001"`},
		{"2.9", `inet from <parry_t1> to any label "id=900000001" label "tags=user_rule" label "descr=test"`},
	} {
		t.Run(tc.version, func(t *testing.T) {
			t.Parallel()
			l := testenv.StartLab(t, testenv.LabOptions{Version: tc.version})
			if got := runPHP(t, l, strings.ReplaceAll(addBlock, "NAME", "parry_t1")); got != "int(0)" {
				t.Fatalf("filter_configure_sync = %s, want int(0)", got)
			}
			want := "block drop in quick on em0 " + tc.rest + " ridentifier 900000001\n"
			if got := l.SSH("pfctl -sr"); !strings.Contains(got, want) {
				t.Errorf("pfctl -sr lacks %q:\n%s", want, got)
			}
			if got, want := l.SSH("pfctl -t parry_t1 -T show"), "   203.0.113.9\n   203.0.113.128/25\n"; got != want {
				t.Errorf("table = %q, want %q", got, want)
			}
			if diff := cmp.Diff([]string{"203.0.113.9", "203.0.113.128/25"}, l.Tables()["parry_t1"]); diff != "" {
				t.Errorf("Tables (-want +got):\n%s", diff)
			}
			if got := l.Config(); !strings.Contains(got, "<description><![CDATA[(system): test ]]></description>") {
				t.Error("config.xml bears no revision of the change")
			}
			if backups := l.SSH("ls /cf/conf/backup"); !strings.Contains(backups, "config-1600000010.xml") {
				t.Errorf("backups = %q, want the previous revision among them", backups)
			}
		})
	}
}

func TestLab_pfRefusesTheRuleset(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	before := l.Rules()
	l.Fault("pf-refuse")
	if got := runPHP(t, l, strings.ReplaceAll(addBlock, "NAME", "parry_t1")); got != "NULL" {
		t.Errorf("filter_configure_sync = %s, want NULL", got)
	}
	if diff := cmp.Diff(before, l.Rules()); diff != "" {
		t.Errorf("loaded rules changed (-before +after):\n%s", diff)
	}
	l.Fault("off")
	again := "<?php require 'filter.inc'; require 'config.inc'; require 'functions.inc'; var_dump(filter_configure_sync());"
	if got := runPHP(t, l, again); got != "int(0)" {
		t.Errorf("filter_configure_sync after the fault = %s, want int(0)", got)
	}
}

func TestLab_hangEndsWithTheFault(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	l.Fault("hang")
	done := make(chan string, 1)
	cmd := exec.Command("ssh", "-F", "none", "-i", l.KeyFile, "-o", "BatchMode=yes", "-o", "UserKnownHostsFile="+l.KnownHosts,
		"-p", strconv.Itoa(l.Port), l.User+"@"+l.Addr.String(), "echo through")
	go func() {
		out, _ := cmd.Output()
		done <- string(out)
	}()
	select {
	case got := <-done:
		t.Fatalf("a hanging firewall answered %q", got)
	case <-time.After(500 * time.Millisecond):
	}
	l.Fault("off")
	select {
	case got := <-done:
		if got != "through\n" {
			t.Errorf("after the fault the command said %q", got)
		}
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		t.Error("the command did not go on when the fault was lifted")
	}
}

func TestLab_twoDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	a := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	b := testenv.StartLab(t, testenv.LabOptions{Name: "fw-b"})
	a.SSH("pfctl -q -t only_a -T add 203.0.113.1; touch /tmp/a /cf/conf/a")
	if _, there := b.Tables()["only_a"]; there {
		t.Error("fw-b has fw-a's table")
	}
	if got := b.SSH("ls /tmp/a /cf/conf/a 2>/dev/null; ps ax | grep -c '[s]shd -D'; hostname"); got != "1\nfw-b\n" {
		t.Errorf("fw-b sees %q, want its own process and name only", got)
	}
	if _, err := os.Stat("/cf/conf/a"); err == nil {
		t.Error("the host's file system was written to")
	}
}

func TestLab_stopAndStartKeepState(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	l.SSH("pfctl -q -t kept -T add 203.0.113.1 2001:db8::/32; echo mark >/cf/conf/mark; (sleep 1000 >/dev/null 2>&1 &)")
	addr := net.JoinHostPort(l.Addr.String(), strconv.Itoa(l.Port))

	l.Stop()
	if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
		c.Close()
		t.Fatal("a stopped firewall still listens")
	}
	l.Start()
	want := "   203.0.113.1\n   2001:db8::/32\nmark\n0\n"
	if got := l.SSH("pfctl -t kept -T show; cat /cf/conf/mark; ps ax | grep -c '[s]leep 1000' || :"); got != want {
		t.Errorf("after stop and start = %q, want %q", got, want)
	}
	l.Reboot(false)
	if got, want := l.SSH("pfctl -t kept -T show 2>&1; cat /cf/conf/mark"), "pfctl: Table does not exist.\nmark\n"; got != want {
		t.Errorf("after a reboot = %q, want %q", got, want)
	}
}
