package testenv_test

import (
	"strings"
	"testing"

	"github.com/parry/parry/internal/testenv"
)

func TestLabConfig_aGUISaveKeepsWhatWasWrittenThroughTheAPI(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2.7.2", "2.8", "2.9"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			l := testenv.StartLab(t, testenv.LabOptions{Version: version})
			runPHP(t, l, strings.ReplaceAll(addBlock, "NAME", "parry_t1"))
			l.GUISave("floating=VPN for all")
			if got := strings.Count(l.Config(), "<address>parry_t1</address>"); got != 1 {
				t.Errorf("config.xml names the table in %d rules, want 1", got)
			}
			rules := l.Rules()
			theirs, ours := strings.Index(rules, "VPN for all"), strings.Index(rules, "<parry_t1>")
			if theirs < 0 || ours < 0 || theirs > ours {
				t.Errorf("loaded rules lack the admin's floating rule above ours:\n%s", rules)
			}
			if got := l.Config(); !strings.Contains(got, "<username><![CDATA[admin@192.168.1.100 (Local Database)]]></username>") {
				t.Error("the revision does not name the admin")
			}
		})
	}
}

// The old practice edits config.xml as text. Up to 2.8 the next save in the GUI works on the cache and undoes the edit; 2.9 sees the newer file.
func TestLabConfig_aGUISaveWithAWarmCacheErasesATextEdit(t *testing.T) {
	t.Parallel()
	for version, survives := range map[string]bool{"2.7.2": false, "2.8": false, "2.9": true} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			l := testenv.StartLab(t, testenv.LabOptions{Version: version})
			l.GUISave() // warms the cache
			l.SSH(`touch -d '1 minute ago' /tmp/config.cache; sed -i 's|<timezone>.*<|<timezone>Europe/Vienna<|' /cf/conf/config.xml`)
			l.GUISave()
			if got := strings.Contains(l.Config(), "Europe/Vienna"); got != survives {
				t.Errorf("the edit survives = %v, want %v", got, survives)
			}
		})
	}
}

func TestLabConfig_historyKeepsThirtyRevisions(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	got := runPHP(t, l, `<?php
require_once('config.inc');
require_once('functions.inc');
for ($i = 1; $i <= 35; $i++) {
	$config['revision']['time'] = 1600000010 + $i;	/* the clock of a write is the second; play 35 of them */
	write_config("change {$i}");
}
echo count(glob('/cf/conf/backup/config-*.xml')), ' ', count(get_backups()['versions']);
`)
	if want := "30 30"; got != want {
		t.Errorf("backups and cache = %s, want %s", got, want)
	}
}

func TestLabConfig_writeConfigUnderTheConfigLockWaitsForItself(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	got := l.SSH(`timeout 1 /usr/local/bin/php -r '
		require "config.inc"; require "functions.inc"; $held = lock("config", LOCK_EX); write_config("never");'; echo "rc $?"`)
	if want := "rc 124\n"; got != want {
		t.Errorf("write_config under the config lock = %q, want it to wait for itself", got)
	}
}

func TestLabConfig_aRepeatedElementBreaksTheFile(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	l.SSH(`sed -i 's|^\t<filter>|\t<filter></filter>\n\t<filter>|' /cf/conf/config.xml; rm -f /tmp/config.cache`)
	got := l.SSH(`/usr/local/bin/php -r 'try { require "config.inc"; echo "read"; } catch (Exception $e) { echo $e->getMessage(); }'`)
	if !strings.Contains(got, "FILTER at line") || !strings.Contains(got, "cannot occur more than once") {
		t.Errorf("reading the file = %q, want the exception that 2.7 throws", got)
	}
}

func TestLabConfig_anEmptyTableFileDisablesItsRule(t *testing.T) {
	t.Parallel()
	l := testenv.StartLab(t, testenv.LabOptions{})
	runPHP(t, l, strings.ReplaceAll(addBlock, "NAME", "parry_t1"))
	l.SSH(": >/var/db/aliastables/parry_t1.txt; /etc/rc.filter_configure_sync")
	if strings.Contains(l.Rules(), "<parry_t1>") {
		t.Error("a rule on an empty table is loaded")
	}
	if got := l.SSH("cat /tmp/notices"); !strings.Contains(got, "Unresolvable source alias 'parry_t1' for rule 'test'") {
		t.Errorf("notices = %q, want the alert about the alias", got)
	}
	l.Reboot(true)
	if got := l.SSH("ls /var/db/aliastables"); got != "" {
		t.Errorf("table files after a reboot with /var on a RAM disk = %q, want none", got)
	}
}

func TestLabConfig_haSyncCarriesRulesButNoTableFiles(t *testing.T) {
	t.Parallel()
	primary := testenv.StartLab(t, testenv.LabOptions{Name: "fw-1"})
	secondary := testenv.StartLab(t, testenv.LabOptions{Name: "fw-2"})
	runPHP(t, primary, strings.ReplaceAll(addBlock, "NAME", "parry_t1"))
	primary.SyncTo(secondary)
	if got := secondary.Config(); !strings.Contains(got, "<address>parry_t1</address>") || !strings.Contains(got, "<hostname>fw-2</hostname>") {
		t.Error("the secondary lacks the primary's rule, or its own name")
	}
	if strings.Contains(secondary.Rules(), "<parry_t1>") {
		t.Error("the secondary has loaded a rule whose table file it does not have")
	}
	if got := secondary.SSH("ls /var/db/aliastables"); got != "" {
		t.Errorf("table files on the secondary = %q, want none", got)
	}
}
