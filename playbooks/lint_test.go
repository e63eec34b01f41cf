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
	b, err := os.ReadFile("pfsense/bundle.yml")
	if err != nil {
		t.Fatal(err)
	}
	m, err := bundle.ParseManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.CheckSettings(map[string]any{"pfsense_role": "secondary", "pfsense_action": "reject", "pfsense_log": true, "pfsense_kill_states": false}); err != nil {
		t.Error(err)
	}
	if err := m.CheckSettings(map[string]any{"pfsense_role": "tertiary"}); err == nil {
		t.Error("an unknown role was taken")
	}
}

func TestBundle_passesItsLinters(t *testing.T) {
	t.Parallel()
	parts, err := filepath.Glob("pfsense/program/*.php")
	if err != nil || len(parts) != 7 {
		t.Fatalf("program parts: %v, %v", parts, err)
	}
	commands := [][]string{{"yamllint", "--strict", "-c", "yamllint.yml", "."}, {"ansible-lint", "--offline", "--profile", "production", "-q",
		"pfsense/apply.yml", "pfsense/verify.yml", "pfsense/flush.yml", "pfsense/roles/parry"}}
	for _, part := range parts {
		commands = append(commands, []string{"php", "-l", part})
	}
	for _, argv := range commands {
		if _, err := exec.LookPath(argv[0]); err != nil {
			t.Logf("%s is not installed", argv[0])
			continue
		}
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "ANSIBLE_ROLES_PATH=pfsense/roles", "HOME="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", argv, err, out)
		}
	}
}
