package playbooks_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestApply_pfRefusesAndEverythingIsAsBefore(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2.7.2", "2.8", "2.9"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			f := start(t, version)
			f.mustApply(mixed, nil)
			config, rules, tables := f.Config(), f.Rules(), fmt.Sprint(f.Tables())
			files := f.SSH("cd /var/db/aliastables; cksum *")
			f.Fault("pf-refuse")
			a := f.apply(append([]string{"203.0.113.99 - gre - wan", "203.0.113.98 - - - wan"}, mixed...), nil)
			f.Fault("off")
			f.wantFailure(a, "pf_refused")
			if f.Config() != config {
				t.Error("config.xml changed")
			}
			if f.Rules() != rules || fmt.Sprint(f.Tables()) != tables {
				t.Errorf("loaded rules or tables changed: %v, were %v", f.Tables(), tables)
			}
			if got := f.SSH("cd /var/db/aliastables; cksum *"); got != files {
				t.Errorf("table files changed:\n%s", got)
			}
			f.wantProof(f.play("verify.yml", nil), mixed...)
		})
	}
}

func TestApply_aConfigurationSavedMeanwhileIsNotOverwritten(t *testing.T) {
	t.Parallel()
	f := start(t, "2.7.2")
	f.Fault("slow", "2", "pf") // the load of the ruleset takes so long
	done := make(chan answer)
	go func() { done <- f.apply(mixed, nil) }()
	for { // the table files, seven and that of the exemptions, are in place before the load
		if files, _ := filepath.Glob(filepath.Join(f.Root, "var/db/aliastables/parry_*.txt")); len(files) == 8 {
			break
		}
		select {
		case a := <-done:
			t.Fatalf("the run ended before its time: %s", a.Msg)
		case <-time.After(10 * time.Millisecond):
		}
	}
	path := filepath.Join(f.Root, "cf/conf/config.xml")
	theirs := strings.Replace(f.Config(), "<hostname>fw-a</hostname>", "<hostname>saved-meanwhile</hostname>", 1)
	if err := os.WriteFile(path, []byte(theirs), 0o644); err != nil {
		t.Fatal(err)
	}
	f.Fault("off")
	f.wantFailure(<-done, "config_changed")
	if f.Config() != theirs {
		t.Error("the other's configuration is gone")
	}
	if len(f.ourRules())+len(f.tableEntries()) != 0 {
		t.Errorf("a refused run left %v %v", f.ourRules(), f.tableEntries())
	}
	f.wantProof(f.mustApply(mixed, nil), mixed...)
	if !strings.Contains(f.Config(), "saved-meanwhile") {
		t.Error("the next run took the other's change back")
	}
}

func TestApply_rejectsBadEntriesOneByOne(t *testing.T) {
	t.Parallel()
	f := start(t, "2.7.2")
	var good []string
	for i := range 99 {
		good = append(good, fmt.Sprintf("203.0.113.%d - - - wan", i+100))
	}
	a := f.apply(append([]string{"203.0.113.1 - - 22 wan"}, good...), nil) // a port without a protocol
	f.wantProof(a, good...)
	wantRejects(t, a, reject{1, "malformed"})

	a = f.applyFile(strings.Join([]string{
		"010.0.0.1 - - - wan -",                     // octal
		"127.0.0.0/8 - - - wan -",                   // where the controller comes from
		"198.18.0.1 - - - wan -",                    // the gateway
		"198.18.0.10 - - - wan -",                   // own virtual address
		"198.18.0.53 - - - wan -",                   // the resolver
		"198.18.0.0/16 - - - wan -",                 // holds all of them
		"203.0.113.1 198.18.0.10 tcp 443 wan -",     // own address
		"203.0.113.1 198.51.100.1/24 tcp 443 wan -", // host bits
		"203.0.113.1 2001:db8::1 tcp 443 wan -",
		"203.0.113.1 - - - opt9 -",
		"203.0.113.1 - - - - -",
		"203.0.113.1 - ospf - wan -",
		"203.0.113.1 - icmp 8 wan -",
		"203.0.113.1 - tcp 65536 wan -",
		"203.0.113.1 - tcp 022 wan -",
		"203.0.113.1/32 - - - wan -",
		"203.0.113.1 - - - wan",
		"203.0.113.1 - - - wan soon",
		"255.255.255.255 - - - wan -",
		"2001:2:0:1::1 - - - wan -",
		"2001:DB8::1 - - - wan -",
		"203.0.113.5 - - - wan -",
		"",
		"",
	}, "\n"), nil)
	f.wantProof(a, "203.0.113.5 - - - wan")
	var codes []string
	for i, r := range a.Parry.Rejected {
		if want := i + 1; r.Line != want && r.Line != 23 {
			t.Errorf("reject %d names line %d", want, r.Line)
		}
		codes = append(codes, r.Code)
	}
	want := "malformed source_protected source_protected source_protected source_protected source_protected destination_is_firewall malformed family_mismatch " +
		"unknown_interface unknown_interface unsupported_protocol malformed malformed malformed malformed malformed malformed malformed source_protected malformed malformed"
	if got := strings.Join(codes, " "); got != want {
		t.Errorf("codes\n%s, want\n%s", got, want)
	}
}

func TestApply_hostileLinesActOnNothing(t *testing.T) {
	t.Parallel()
	f := start(t, "2.7.2")
	canary := filepath.Join(f.dir, "canary")
	f.mustApply([]string{"203.0.113.5 - - - wan"}, nil)
	before := f.structure()
	hostile := []string{
		"{{ lookup('pipe', 'touch " + canary + "') }} - - - wan -",
		"$(touch${IFS}/tmp/canary) - - - wan -",
		"203.0.113.6 - - - wan;touch${IFS}/tmp/canary -",
		"203.0.113.6 - - - `touch${IFS}/tmp/canary` -",
		"PARRYEND); touch('/tmp/canary'); parry_main([ - - - wan -",
		"PARRYEND",
		"'.touch('/tmp/canary').' - - - wan -",
		"203.0.113.6 - - - </interface><x>wan -",
		"203.0.113.6 - tcp\r - wan -",
		"203.0.113.6\x00 - - - wan -",
		"\xff\xfe - - - wan -",
		"203.0.113.5 - - - wan -",
	}
	a := f.applyFile(strings.Join(hostile, "\n")+"\n", nil)
	f.wantProof(a, "203.0.113.5 - - - wan")
	if a.Failed || len(a.Parry.Rejected) != len(hostile)-1 {
		t.Errorf("%s; rejected %v", a.Msg, a.Parry.Rejected)
	}
	if f.structure() != before {
		t.Error("config.xml changed")
	}
	for _, path := range []string{canary, filepath.Join(f.Root, "tmp/canary"), filepath.Join(f.Root, "root/canary")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was made", path)
		}
	}
	for name, v := range map[string]vars{
		"controller": {"parry_controller": map[string]string{"__ansible_unsafe": "{{ lookup('pipe', 'touch " + canary + "') }}"}},
		"run id":     {"parry_run_id": "x'; touch /tmp/canary; '"},
		"epoch":      {"parry_epoch": -1},
	} {
		if a := f.apply(nil, v); !a.Failed {
			t.Errorf("a hostile %s was taken", name)
		}
	}
	if _, err := os.Stat(canary); err == nil {
		t.Error("a variable was evaluated")
	}
}

func TestApply_limits(t *testing.T) {
	t.Parallel()
	f := start(t, "2.7.2")
	f.mustApply([]string{"203.0.113.1 198.51.100.9 - - wan"}, nil)
	var want []reject
	entries := []string{"203.0.113.1 198.51.100.9 - - wan"} // in force, so it keeps its place
	for i := range 5 {
		entries = append(entries, fmt.Sprintf("203.0.113.1 198.51.100.%d - - wan", i))
	}
	a := f.mustApply(entries, vars{"parry_max_rules": 3})
	if a.Parry.Count != 3 || a.Parry.Rules != 3 || len(a.Parry.Rejected) != 3 {
		t.Errorf("%d entries, %d rules, rejected %v", a.Parry.Count, a.Parry.Rules, a.Parry.Rejected)
	}
	for _, r := range a.Parry.Rejected {
		if r.Code != "max_rules" || r.Line == 6 {
			t.Errorf("rejected %+v", r)
		}
	}

	f.SSH("sed -i 's/^table-entries .*/table-entries 20/' /.lab/pf/limits")
	entries = nil
	for i := range 20 {
		entries = append(entries, fmt.Sprintf("203.0.113.%d - - - wan", i+100))
	}
	a = f.apply(entries, nil, "--check")
	if a.Parry.Capacity >= 10 || len(a.Parry.Rejected) != 20-a.Parry.Capacity {
		t.Errorf("capacity %d, rejected %v", a.Parry.Capacity, a.Parry.Rejected)
	}
	for i := a.Parry.Capacity; i < 20; i++ {
		want = append(want, reject{i + 1, "capacity"})
	}
	wantRejects(t, a, want...)
}

func TestFlush_leavesTheConfigurationAsItWasBeforeParryCame(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2.7.2", "2.8", "2.9"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			f := start(t, version)
			f.GUISave() // pfSense writes the file in its own way
			before := f.structure()
			f.mustApply(mixed, nil)
			f.wantProof(f.play("flush.yml", nil))
			if len(f.ourRules())+len(f.tableEntries()) != 0 {
				t.Error("something of parry's is loaded")
			}
			if got := f.structure(); got != before {
				t.Errorf("the configuration is not what it was before parry came:\n%s", got)
			}
			f.wantProof(f.mustApply(mixed, vars{"parry_adopt": true}), mixed...)
		})
	}
}

func TestRun_namesWhatAnOldPfSenseLacks(t *testing.T) {
	t.Parallel()
	for _, book := range []string{"apply.yml", "verify.yml", "flush.yml"} {
		t.Run(book, func(t *testing.T) {
			t.Parallel()
			f := start(t, "2.7.2")
			f.mustApply(mixed, nil)
			before := f.Config()
			f.SSH("echo 2.6.0-RELEASE >/etc/version; sed -i 's/function alias_make_table(/function alias_make_tables(/' /etc/inc/*.inc")
			a := f.play(book, vars{"parry_desired_file": f.write("none", "")})
			f.wantFailure(a, "unsupported_version")
			for _, part := range []string{"2.6.0", "alias_make_table", "2.7.0 or later"} {
				if !strings.Contains(a.Msg, part) {
					t.Errorf("the message lacks %q: %s", part, a.Msg)
				}
			}
			if f.Config() != before || len(f.tableEntries()) != len(mixed) {
				t.Error("something was changed")
			}
		})
	}
}

func TestRun_namesAPHPThatCannotReadTheProgram(t *testing.T) {
	t.Parallel()
	f := start(t, "2.7.2")
	for _, to := range []string{">&2", ""} { // by PHP's display_errors
		f.SSH(`printf '#!/bin/sh\ncat >/dev/null\necho "PHP Parse error:  syntax error, unexpected '"'string'"' in Standard input code on line 18" ` + to +
			`\nexit 255\n' >/tmp/php74; chmod +x /tmp/php74; ln -sf /tmp/php74 /usr/local/bin/php`)
		f.wantFailure(f.play("verify.yml", nil), "unsupported_version")
	}
}

func TestFlush_worksWhileARunHangs(t *testing.T) {
	t.Parallel()
	f := start(t, "2.7.2")
	f.mustApply(mixed, nil)
	f.holdLock("/tmp/parry.lock")
	f.wantFailure(f.play("flush.yml", nil), "busy")
	if left := f.tableEntries(); len(left) != 0 {
		t.Errorf("tables hold %v", left)
	}
	f.wantProof(f.play("verify.yml", nil, "--check")) // takes no lock
	f.SSH("kill $(cat /tmp/holder)")
	f.wantFailure(f.apply(mixed, nil), "flushed")
}

func TestFlush_aRunThatHangsBeforeItChangesAnythingStopsAtTheHold(t *testing.T) {
	t.Parallel()
	f := start(t, "2.7.2")
	f.mustApply(mixed[:1], nil)
	f.SSH(`mv /sbin/pfctl /sbin/pfctl.whole; touch /tmp/hang; cat >/sbin/pfctl <<'END'
#!/bin/sh
case $* in -sr) touch /tmp/hangs; while [ -e /tmp/hang ]; do sleep 0.02; done ;; esac
exec /sbin/pfctl.whole "$@"
END
chmod +x /sbin/pfctl`)
	done := make(chan answer)
	other := manage(t, f.Lab) // runs beside f's
	go func() { done <- other.apply(mixed, nil) }()
	f.SSH("until [ -e /tmp/hangs ]; do sleep 0.02; done")
	f.wantFailure(f.play("flush.yml", nil), "busy")
	f.SSH("rm /tmp/hang")
	f.wantFailure(<-done, "flushed")
	if left := f.tableEntries(); len(left) != 0 {
		t.Errorf("tables hold %v", left)
	}
	f.wantFailure(f.apply(mixed, nil), "flushed")
}

func TestFlush_opensTheFirewallEvenWhenPfRefusesTheRuleset(t *testing.T) {
	t.Parallel()
	f := start(t, "2.7.2")
	f.mustApply(mixed, nil)
	f.Fault("pf-refuse")
	f.wantFailure(f.play("flush.yml", nil), "pf_refused")
	if left := f.tableEntries(); len(left) != 0 {
		t.Errorf("tables hold %v", left)
	}
	f.Fault("off")
	f.wantFailure(f.apply(mixed, nil), "flushed")
	f.wantProof(f.play("flush.yml", nil))
	if strings.Contains(f.Config(), "parry_") {
		t.Error("the second flush left something of parry's in config.xml")
	}
}

func TestRun_takesOverNothingElseFromTheFirewallsAnswer(t *testing.T) {
	t.Parallel()
	f := start(t, "2.7.2")
	answer := `{"changed":"{{ 7*7 }}","msg":"{{ 7*7 }}","ansible_facts":{"ansible_connection":"local"},"add_host":{"host_name":"x"},"parry":{"count":7,"run_id":"{{ 7*7 }}"}}`
	for name, text := range map[string]string{"answer": "PARRY-ANSWER " + answer + "\n", "php": "#!/bin/sh\ncat >/dev/null\ncat /tmp/answer\n"} {
		if err := os.WriteFile(filepath.Join(f.Root, "tmp", name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.SSH("ln -sf /tmp/php /usr/local/bin/php")
	a := f.play("verify.yml", nil, "-v")
	if a.Failed || a.Changed || a.Parry.Count != 7 || a.Msg != "{{ 7*7 }}" || a.Parry.RunID != "{{ 7*7 }}" {
		t.Errorf("answered %+v", a)
	}
	if strings.Contains(a.Output, "ansible_facts") || strings.Contains(a.Output, "add_host") {
		t.Errorf("a key of the firewall's reached Ansible:\n%s", a.Output)
	}
}

func TestRun_anUnreachableFirewallIsUnreachable(t *testing.T) {
	t.Parallel()
	f := start(t, "2.7.2")
	f.Stop()
	if a := f.play("verify.yml", nil); !a.Unreachable || a.Status != 4 {
		t.Errorf("answered %+v", a)
	}
}

func TestRun_brokenPHPIsAFailureAndNotALostConnection(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]string{
		"a fatal error in pfSense's code": `echo '<?php no_such_function();' > /etc/inc/shaper.inc`,
		"die() in pfSense's code":         `echo '<?php echo "sorry"; die("Config.xml is corrupted");' > /etc/inc/shaper.inc`,
		"an exception":                    `echo '<?php throw new Exception("x");' > /etc/inc/shaper.inc`,
		"noise":                           `echo '<?php echo "Warning: PARRY-ANSWER {}\n";' > /etc/inc/shaper.inc`,
		"no PHP at all":                   `rm /usr/local/bin/php`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, "2.7.2")
			f.SSH(damage)
			a := f.play("verify.yml", nil)
			if name == "noise" {
				f.wantProof(a)
				return
			}
			f.wantFailure(a, "internal")
			if a.Unreachable {
				t.Error("told as unreachable")
			}
		})
	}
}
