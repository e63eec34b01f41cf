package ansible

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"strings"

	"github.com/parry/parry/internal/bundle"
)

var varRE = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

const maxVarDepth = 8

// extraVars makes the variables file of a run. Each name must be contract 1's or one of the bundle's settings, so that none can change how
// Ansible itself works; each string is marked so that Ansible never templates it. The file is always JSON that Ansible's JSON parser
// takes: were it left to its YAML parser, the marks would mean nothing.
func extraVars(vars map[string]any, m *bundle.Manifest) ([]byte, error) {
	out := make(map[string]any, len(vars))
	for name, v := range vars {
		_, setting := m.Settings[name]
		if !varRE.MatchString(name) || strings.HasPrefix(name, "ansible_") || !setting && !strings.HasPrefix(name, "parry_") {
			return nil, fmt.Errorf("variable %q is neither contract %d's nor a setting of bundle %s", name, bundle.Contract, m.Name)
		}
		u, err := inert(v, maxVarDepth)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", name, err)
		}
		out[name] = u
	}
	return json.Marshal(out)
}

// inert wraps every string so that Ansible takes it as it is.
func inert(v any, depth int) (any, error) {
	if depth == 0 {
		return nil, errors.New("nested too deeply")
	}
	switch x := v.(type) {
	case nil, bool, int, int64, float64:
		return x, nil
	case string:
		return map[string]string{"__ansible_unsafe": x}, nil
	case []string:
		out := make([]any, len(x))
		for i := range x {
			out[i], _ = inert(x[i], depth)
		}
		return out, nil
	case []any:
		out := make([]any, len(x))
		for i := range x {
			var err error
			if out[i], err = inert(x[i], depth-1); err != nil {
				return nil, err
			}
		}
		return out, nil
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, e := range x {
			if !varRE.MatchString(k) {
				return nil, fmt.Errorf("key %q: only lower case letters, digits and _", k)
			}
			var err error
			if out[k], err = inert(e, depth-1); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("a %T cannot be passed", v)
}

// inventoryJSON makes the inventory of a run: the target and nothing else. Host.check has seen to it that no value can be a template.
func inventoryJSON(h *Host) ([]byte, error) {
	vars := map[string]any{
		"ansible_connection": "ssh",
		"ansible_host":       h.Addr.String(),
		"ansible_port":       h.Port,
	}
	if h.User != "" {
		vars["ansible_user"] = h.User
	}
	if h.KeyFile != "" {
		vars["ansible_ssh_private_key_file"] = h.KeyFile
	}
	maps.Copy(vars, h.Vars)
	return json.Marshal(map[string]any{"all": map[string]any{"hosts": map[string]any{h.Name: vars}}})
}

// writeNew writes a file that must not exist yet, for parry's user only.
func writeNew(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}
