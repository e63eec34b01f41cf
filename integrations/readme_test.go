package integrations_test

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What the READMEs tell to put into ossec.conf is XML whose commands, executables and rules fit together.
func TestReadme_ossecConf(t *testing.T) {
	t.Parallel()
	for dir, usual := range map[string][]string{
		"ossec": {"5712", "20151", "40601"}, "wazuh": {"5712", "20151", "40601", "81661"},
	} {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
			if err != nil {
				t.Fatal(err)
			}
			var conf strings.Builder
			inside := false
			for line := range strings.Lines(string(readme)) {
				code, ok := strings.CutPrefix(line, "    ")
				if inside = ok && (inside || strings.HasPrefix(code, "<")); inside {
					conf.WriteString(code)
				}
			}
			var got struct {
				Commands []struct {
					Name       string `xml:"name"`
					Executable string `xml:"executable"`
					Expect     string `xml:"expect"`
					Timeout    string `xml:"timeout_allowed"`
				} `xml:"command"`
				Responses []struct {
					Command  string `xml:"command"`
					Location string `xml:"location"`
					Rules    string `xml:"rules_id"`
				} `xml:"active-response"`
			}
			dec := xml.NewDecoder(strings.NewReader("<ossec_config>" + conf.String() + "</ossec_config>"))
			if err := dec.Decode(&got); err != nil {
				t.Fatalf("%v in\n%s", err, conf.String())
			}
			if _, err := dec.Token(); !errors.Is(err, io.EOF) {
				t.Errorf("more than it should be: %v", err)
			}
			var names, rules []string
			for _, c := range got.Commands {
				names = append(names, c.Name)
				if !strings.Contains(string(readme), "/active-response/bin/"+c.Executable+"\n") {
					t.Errorf("the README does not install %s", c.Executable)
				}
				if c.Timeout != "no" || (dir == "ossec") != (c.Expect == "srcip") {
					t.Errorf("command %+v", c)
				}
			}
			for _, r := range got.Responses {
				if !slices.Contains(names, r.Command) || r.Location != "server" {
					t.Errorf("response %+v", r)
				}
				rules = append(rules, strings.Split(r.Rules, ",")...)
			}
			for _, rule := range usual {
				if !slices.Contains(rules, rule) {
					t.Errorf("no response to rule %s", rule)
				}
			}
		})
	}
}

// Each copy of a script has a spool of its own, so each has a line for cron: what waits must not wait for the next alert.
func TestReadme_everyCopyIsReplayed(t *testing.T) {
	t.Parallel()
	install := regexp.MustCompile(`(?m)^    install .*-m 07[0-9]+ parry-\S+ (/\S+)$`)
	for dir, copies := range map[string]int{"ossim": 1, "ossec": 2, "wazuh": 3} {
		readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
		if err != nil {
			t.Fatal(err)
		}
		var seen []string
		for _, m := range install.FindAllStringSubmatch(string(readme), -1) {
			path := m[1]
			if slices.Contains(seen, path) {
				continue
			}
			seen = append(seen, path)
			cron := regexp.MustCompile(`(?m)^    echo '\* \* \* \* \* \w+ ` + path + ` --replay >/dev/null 2>&1' >/etc/cron\.d/` + filepath.Base(path) + `$`)
			if !cron.Match(readme) {
				t.Errorf("%s/README.md has no line for cron that replays %s", dir, path)
			}
		}
		if len(seen) != copies {
			t.Errorf("%s/README.md installs %q, want %d copies", dir, seen, copies)
		}
	}
}
