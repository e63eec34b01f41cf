package playbooks_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/parry/parry/internal/bundle"
)

func TestBundle_manifestIsWhatParryReads(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string][2]map[string]any{ // good ones, and one that is not
		"pfsense": {
			{"pfsense_role": "secondary", "pfsense_action": "reject", "pfsense_log": true, "pfsense_kill_states": false}, {"pfsense_role": "tertiary"},
		},
		"nftables": {{"nftables_capacity": 5000, "nftables_end_connections": false}, {"nftables_capacity": 0}},
	} {
		b, err := os.ReadFile(filepath.Join(name, "bundle.yml"))
		if err != nil {
			t.Fatal(err)
		}
		m, err := bundle.ParseManifest(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.CheckSettings(settings[0]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := m.CheckSettings(settings[1]); err == nil {
			t.Errorf("%s: %v was taken", name, settings[1])
		}
	}
}

func TestBundle_passesItsLinters(t *testing.T) {
	t.Parallel()
	parts, err := filepath.Glob("pfsense/program/*.php")
	if err != nil || len(parts) != 7 {
		t.Fatalf("program parts: %v, %v", parts, err)
	}
	commands := [][]string{{"yamllint", "--strict", "-c", "yamllint.yml", "."}}
	for _, name := range []string{"pfsense", "nftables"} {
		commands = append(commands, []string{"ansible-lint", "--offline", "--profile", "production", "-q",
			name + "/apply.yml", name + "/verify.yml", name + "/flush.yml", name + "/roles/parry"})
	}
	commands = append(commands, []string{"ansible-lint", "--offline", "--profile", "production", "-q",
		"examples/blackhole/apply.yml", "examples/blackhole/verify.yml", "examples/blackhole/flush.yml"})
	for _, part := range parts {
		commands = append(commands, []string{"php", "-l", part})
	}
	for _, argv := range commands {
		if _, err := exec.LookPath(argv[0]); err != nil {
			t.Logf("%s is not installed", argv[0])
			continue
		}
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "ANSIBLE_ROLES_PATH=pfsense/roles:nftables/roles", "HOME="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", argv, err, out)
		}
	}
}
