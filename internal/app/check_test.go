package app_test

import (
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/app"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/testenv"
)

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
