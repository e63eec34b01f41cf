package app_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/app"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/testenv"
)

// By hand it runs as root, who reads everything.
func TestCheck_tellsWhatTheServiceMayNotRead(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	s := newSite(t, "listen: \"\"\nfirewalls: [{name: fw-a, bundle: pfsense}]\n")
	s.write("id", "")
	s.write("inventory.json", `{"all": {"hosts": {"fw-a": {"ansible_host": "192.0.2.1", "ansible_ssh_private_key_file": "`+filepath.Join(s.dir, "id")+`"}}}}`)
	state := filepath.Join(s.dir, "state")
	if err := errors.Join(os.Mkdir(state, 0o700), os.Chown(state, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	unread := func() (of []string) {
		t.Helper()
		cfg, err := config.Load(s.config, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range app.Check(t.Context(), app.CheckOptions{Config: cfg, Offline: true, Now: time.Now}) {
			if strings.Contains(f.Detail, "parry's user (uid 65534) may not read") && f.Level == app.Fail && f.Mend != "" {
				of = append(of, f.Check)
			}
		}
		return of
	}
	if got := unread(); !slices.Equal(got, []string{"inventory", "host keys", "fw-a"}) {
		t.Errorf("root's own: %q", got)
	}
	err := errors.Join(os.Chmod(filepath.Join(s.dir, "known_hosts"), 0o644), os.Chown(filepath.Join(s.dir, "inventory.json"), 0, 65534),
		os.Chmod(filepath.Join(s.dir, "inventory.json"), 0o640), os.Chown(filepath.Join(s.dir, "id"), 65534, 0))
	if err != nil {
		t.Fatal(err)
	}
	if got := unread(); len(got) != 0 {
		t.Errorf("for all, of its group, its own: %q", got)
	}
}

// The practice before parry put each rule right behind <filter>, all with the same tracker.
func TestCheck_tellsRulesOfTheOldPracticeAndLeavesThem(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	s := newSite(t, "listen: \"\"\n", lab)
	check := func() (told []app.Finding) {
		t.Helper()
		cfg, err := config.Load(s.config, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range app.Check(t.Context(), app.CheckOptions{Config: cfg, Now: time.Now}) {
			if f.Check == "fw-a" && f.Level != app.OK && strings.Contains(f.Detail, "123456789") {
				told = append(told, f)
			} else if f.Level == app.Fail {
				t.Errorf("%+v", f)
			}
		}
		return told
	}
	if told := check(); len(told) != 0 {
		t.Errorf("without such rules: %+v", told)
	}
	rule := `<rule><type>block<\/type><interface>wan<\/interface><ipprotocol>inet<\/ipprotocol><source><address>203.0.113.7<\/address><\/source>` +
		`<destination><any\/><port>22<\/port><\/destination><descr>OSSIM<\/descr><tracker>123456789<\/tracker><\/rule>`
	lab.SSH("sed -i '0,/<filter>/s//<filter>" + rule + rule + "/' /cf/conf/config.xml; rm -f /tmp/config.cache")
	before := lab.Config()
	told := check()
	if len(told) != 1 || told[0].Level != app.Warn || !strings.HasPrefix(told[0].Detail, "2 rules ") || !strings.Contains(told[0].Mend, "moving over") {
		t.Errorf("with two of them: %+v", told)
	}
	if lab.Config() != before {
		t.Error("the check changed the firewall's configuration")
	}
}
