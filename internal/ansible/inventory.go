package ansible

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/apenella/go-ansible/v2/pkg/inventory"
)

var (
	hostRE  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	userRE  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)
	wordsRE = map[string]*regexp.Regexp{
		"ansible_become_user":        userRE,
		"ansible_become_method":      regexp.MustCompile(`^(sudo|su|doas)$`),
		"ansible_python_interpreter": regexp.MustCompile(`^(/[A-Za-z0-9/._+-]+|auto|auto_silent)$`),
		"ansible_shell_type":         regexp.MustCompile(`^(sh|csh|fish)$`),
		"ansible_remote_tmp":         regexp.MustCompile(`^[/~][A-Za-z0-9/._-]*$`),
	}
)

// why tells what to do instead, of variables that operators are likely to have.
var why = map[string]string{
	"ansible_password":        "parry uses ssh keys only: set ansible_ssh_private_key_file",
	"ansible_ssh_pass":        "parry uses ssh keys only: set ansible_ssh_private_key_file",
	"ansible_ssh_password":    "parry uses ssh keys only: set ansible_ssh_private_key_file",
	"ansible_become_password": "let the user become without a password on the firewall",
	"ansible_become_pass":     "let the user become without a password on the firewall",
	"ansible_ssh_common_args": "parry sets ssh's options itself; take it out of what parry reads",
	"ansible_ssh_extra_args":  "parry sets ssh's options itself; take it out of what parry reads",
	"ansible_ssh_args":        "parry sets ssh's options itself; take it out of what parry reads",
}

var aliases = map[string]string{
	"ansible_ssh_host":         "ansible_host",
	"ansible_ssh_port":         "ansible_port",
	"ansible_ssh_user":         "ansible_user",
	"ansible_private_key_file": "ansible_ssh_private_key_file",
	"ansible_sudo":             "ansible_become",
}

// check tells why the host cannot be used. Hosts are checked when the inventory is read and again before each run.
func (h *Host) check() error {
	switch {
	case h.Err != nil:
		return h.Err
	case !hostRE.MatchString(h.Name):
		return fmt.Errorf("%q is no firewall name: write lower case letters, digits and -", h.Name)
	case !h.Addr.IsValid():
		return fmt.Errorf("host %s is not in the inventory, or has no ansible_host", h.Name)
	case h.Addr.Zone() != "" || h.Addr.Is4In6():
		return fmt.Errorf("host %s: address %s: write it without a zone, IPv4 in dotted form", h.Name, h.Addr)
	case h.Port < 1 || h.Port > 65535:
		return fmt.Errorf("host %s: port %d", h.Name, h.Port)
	case h.User != "" && !userRE.MatchString(h.User):
		return fmt.Errorf("host %s: ansible_user %q is no user name", h.Name, h.User)
	case h.KeyFile != "" && checkPath("", h.KeyFile) != nil:
		return fmt.Errorf("host %s: %w", h.Name, checkPath("ansible_ssh_private_key_file", h.KeyFile))
	}
	for _, k := range slices.Sorted(maps.Keys(h.Vars)) {
		if err := checkVar(k, h.Vars[k]); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
	}
	return nil
}

func (h *Host) address() string { return net.JoinHostPort(h.Addr.String(), strconv.Itoa(h.Port)) }

// Digest stands for all that decides how the host is reached: it changes when any of it does.
func (h Host) Digest() string { return digest(h.Name, h.address(), h.User, h.KeyFile, h.Vars) }

func checkVar(k string, v any) error {
	if k == "ansible_become" {
		if _, ok := v.(bool); !ok {
			return fmt.Errorf("%s: write true or false", k)
		}
		return nil
	}
	re, ok := wordsRE[k]
	if !ok {
		hint := why[k]
		if hint == "" {
			hint = "parry passes on only what it knows to be safe; take it out of what parry reads"
		}
		return fmt.Errorf("%s is not taken: %s", k, hint)
	}
	if s, _ := v.(string); !re.MatchString(s) {
		return fmt.Errorf("%s: %v is not taken", k, v)
	}
	return nil
}

// LoadInventory reads the operators' inventory once, through ansible-inventory, for the hosts' connection variables; other variables are
// not looked at, and nothing in it is executed: YAML and INI only. A host that cannot be used is there with its Err.
func (r *Runner) LoadInventory(ctx context.Context) (map[string]Host, error) {
	if r.inventory == "" {
		return nil, errors.New("read inventory: none is configured")
	}
	if _, err := os.Stat(r.inventory); err != nil {
		return nil, fmt.Errorf("read inventory: %w", err)
	}
	work, err := os.MkdirTemp(r.home, "inventory-")
	if err != nil {
		return nil, fmt.Errorf("read inventory: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := r.prepare(work, "yaml, ini", r.sshOptions(), r.deadline); err != nil {
		return nil, fmt.Errorf("read inventory: %w", err)
	}
	cmd := inventory.NewAnsibleInventoryCmd(inventory.WithBinary(r.invBin), inventory.WithPattern("all"),
		inventory.WithInventoryOptions(&inventory.AnsibleInventoryOptions{Inventory: r.inventory, List: true}))
	var out bytes.Buffer
	stderr := newCappedLog(io.Discard, 0)
	ctx, cancel := context.WithTimeout(ctx, r.deadline)
	defer cancel()
	p, err := r.aside(ctx, work, cmd, &out, stderr)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read inventory: %w", err)
	case p.ended:
		return nil, fmt.Errorf("read inventory: %w", ctx.Err())
	case p.rc != 0:
		return nil, fmt.Errorf("read inventory: %s", ansibleError(string(stderr.last(tailSize)), p.rc))
	}
	return r.parseInventory(out.Bytes())
}

// parseInventory reads ansible-inventory --list: {"_meta": {"hostvars": {…}}, GROUP: {"hosts": […]}, …}. Hosts without variables are in
// groups only.
func (r *Runner) parseInventory(b []byte) (map[string]Host, error) {
	var groups map[string]json.RawMessage
	if err := json.Unmarshal(b, &groups); err != nil {
		return nil, fmt.Errorf("read inventory: %w", err)
	}
	var meta struct {
		HostVars map[string]map[string]json.RawMessage `json:"hostvars"`
	}
	if err := json.Unmarshal(groups["_meta"], &meta); err != nil {
		return nil, fmt.Errorf("read inventory: %w", err)
	}
	hosts := map[string]Host{}
	for name, vars := range meta.HostVars {
		hosts[name] = r.parseHost(name, vars)
	}
	for name, raw := range groups {
		var g struct {
			Hosts []string `json:"hosts"`
		}
		if name == "_meta" || json.Unmarshal(raw, &g) != nil {
			continue
		}
		for _, h := range g.Hosts {
			if _, ok := hosts[h]; !ok {
				hosts[h] = r.parseHost(h, nil)
			}
		}
	}
	return hosts, nil
}

func (r *Runner) parseHost(name string, vars map[string]json.RawMessage) Host {
	h := Host{Name: name, Port: 22, KeyFile: r.keyFile}
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		if !strings.HasPrefix(k, "ansible_") {
			continue
		}
		if err := h.set(k, vars[k]); err != nil && h.Err == nil {
			h.Err = fmt.Errorf("host %s: %w", name, err)
		}
	}
	if h.Err == nil && !h.Addr.IsValid() {
		h.Err = fmt.Errorf("host %s: ansible_host is missing: write the firewall's address", name)
	}
	h.Err = h.check()
	return h
}

func (h *Host) set(k string, raw json.RawMessage) error {
	if a, ok := aliases[k]; ok {
		k = a
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("%s: %w", k, err)
	}
	s, isString := v.(string)
	switch k {
	case "ansible_host":
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return fmt.Errorf("%s: %s is no address; a name is not taken, because DNS must not decide where blocks go", k, raw)
		}
		h.Addr = addr.Unmap()
	case "ansible_port":
		if !isString {
			s = string(raw)
		}
		port, err := strconv.ParseUint(s, 10, 16)
		if err != nil || port == 0 {
			return fmt.Errorf("%s: %s is no port", k, raw)
		}
		h.Port = int(port)
	case "ansible_user":
		if !userRE.MatchString(s) {
			return fmt.Errorf("%s: %s is no user name", k, raw)
		}
		h.User = s
	case "ansible_ssh_private_key_file":
		if err := checkPath(k, s); err != nil {
			return err
		}
		h.KeyFile = s
	case "ansible_connection":
		if s != "ssh" && s != "smart" {
			return fmt.Errorf("%s: %s is not taken: firewalls are reached by ssh", k, raw)
		}
	default:
		if s, ok := v.(string); ok && k == "ansible_become" { // INI has no booleans
			switch strings.ToLower(s) {
			case "true", "yes", "on", "1":
				v = true
			case "false", "no", "off", "0":
				v = false
			}
		}
		if err := checkVar(k, v); err != nil {
			return err
		}
		if h.Vars == nil {
			h.Vars = map[string]any{}
		}
		h.Vars[k] = v
	}
	return nil
}
