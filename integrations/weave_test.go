package integrations_test

import (
	"os"
	"strings"
	"testing"
)

const (
	begin = "# === core: the same in every trigger. It is edited in integrations/core.part and put here by integrations/weave. ===\n"
	end   = "# === end of the core ===\n"
)

// A trigger is installed by copying one file, so each holds the core; this holds the copies together.
func TestTriggers_holdTheSameCore(t *testing.T) {
	t.Parallel()
	core, err := os.ReadFile("core.part")
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{"ossim/parry-ossim", "ossec/parry-ossec", "wazuh/parry-wazuh", "wazuh/custom-parry"} {
		raw, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, began := strings.Cut(string(raw), begin)
		got, _, ended := strings.Cut(rest, end)
		if !began || !ended || got != string(core) {
			t.Errorf("%s holds another core than core.part: run `go generate ./integrations`", script)
		}
	}
}
