package playbooks_test

import (
	"os"
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
