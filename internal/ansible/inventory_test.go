package ansible

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func inventoryRunner(t *testing.T, name, text string) *Runner {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil { // the exec bit: a script would be run
		t.Fatal(err)
	}
	r, err := New(Options{StateDir: t.TempDir(), Inventory: path, KeyFile: "/etc/parry/id_ed25519"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestLoadInventory_connectionVariablesOnly(t *testing.T) {
	t.Parallel()
	r := inventoryRunner(t, "hosts.yml", `
all:
  vars: {ansible_user: admin, site: "{{ lookup('pipe', 'touch /tmp/parry-canary') }}"}
  children:
    edge:
      hosts:
        fw1: {ansible_host: 192.0.2.1, ansible_port: 2222, ansible_ssh_private_key_file: /keys/fw1, other: 1}
        fw2: {ansible_host: "2001:db8::1", ansible_become: true, ansible_become_user: root, ansible_python_interpreter: /usr/local/bin/python3}
        mapped: {ansible_host: "::ffff:192.0.2.9"}
        bare: {}
        named: {ansible_host: fw.example.net}
        templated: {ansible_host: "{{ site }}"}
        option: {ansible_host: "-oProxyCommand=id"}
        zone: {ansible_host: "fe80::1%eth0"}
        args: {ansible_host: 192.0.2.3, ansible_ssh_common_args: "-o StrictHostKeyChecking=no"}
        password: {ansible_host: 192.0.2.3, ansible_password: secret}
        local: {ansible_host: 192.0.2.3, ansible_connection: local}
        user: {ansible_host: 192.0.2.3, ansible_user: "root -oX"}
        port: {ansible_host: 192.0.2.3, ansible_port: 99999}
        key: {ansible_host: 192.0.2.3, ansible_ssh_private_key_file: "/a b; touch /tmp/x"}
        python: {ansible_host: 192.0.2.3, ansible_python_interpreter: "/usr/bin/python3 -c id"}
        Upper.example: {ansible_host: 192.0.2.3}
`)
	hosts, err := r.LoadInventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fw1 := hosts["fw1"]
	if fw1.Err != nil || fw1.Addr != netip.MustParseAddr("192.0.2.1") || fw1.Port != 2222 || fw1.User != "admin" || fw1.KeyFile != "/keys/fw1" || fw1.Vars != nil {
		t.Errorf("got %+v", fw1)
	}
	fw2 := hosts["fw2"]
	if fw2.Err != nil || fw2.Port != 22 || fw2.KeyFile != "/etc/parry/id_ed25519" || fw2.Vars["ansible_become"] != true || len(fw2.Vars) != 3 {
		t.Errorf("got %+v", fw2)
	}
	if hosts["mapped"].Addr != netip.MustParseAddr("192.0.2.9") || hosts["mapped"].Err != nil {
		t.Errorf("got %+v", hosts["mapped"])
	}
	for name, word := range map[string]string{
		"bare": "ansible_host is missing", "named": "DNS must not decide", "templated": "no address", "option": "no address", "zone": "no address",
		"args": "ssh's options itself", "password": "ssh keys only", "local": "by ssh", "user": "no user name", "port": "no port",
		"key": "absolute path", "python": "not taken", "Upper.example": "no firewall name",
	} {
		h, ok := hosts[name]
		if !ok || h.Err == nil || !strings.Contains(h.Err.Error(), word) || !strings.Contains(h.Err.Error(), name) {
			t.Errorf("%s: got %v, want a word about %q", name, h.Err, word)
		}
	}
	if len(hosts) != 16 {
		t.Errorf("got %d hosts", len(hosts))
	}
	if _, err := os.Stat("/tmp/parry-canary"); err == nil {
		t.Error("a template was run")
	}
}

func TestLoadInventory_INI(t *testing.T) {
	t.Parallel()
	r := inventoryRunner(t, "hosts", "[edge]\nfw1 ansible_host=192.0.2.1 ansible_port=22 ansible_become=yes\nfw[2:3] ansible_host=192.0.2.2\n")
	hosts, err := r.LoadInventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(hosts) != 3 || hosts["fw1"].Err != nil || hosts["fw1"].Port != 22 || hosts["fw1"].Vars["ansible_become"] != true {
		t.Errorf("got %+v", hosts)
	}
}

func TestLoadInventory_scriptsAreNotRun(t *testing.T) {
	t.Parallel()
	canary := filepath.Join(t.TempDir(), "canary")
	r := inventoryRunner(t, "hosts", "#!/bin/sh\ntouch "+canary+"\necho '{}'\n")
	if hosts, err := r.LoadInventory(t.Context()); err == nil {
		t.Errorf("got %v", hosts)
	}
	if _, err := os.Stat(canary); err == nil {
		t.Error("it was run")
	}
}

func TestHostDigest_changesWithTheConnection(t *testing.T) {
	t.Parallel()
	h := Host{Name: "fw1", Addr: netip.MustParseAddr("192.0.2.1"), Port: 22}
	seen := map[string]bool{h.Digest(): true}
	for _, change := range []func(*Host){
		func(h *Host) { h.Port = 23 }, func(h *Host) { h.User = "a" }, func(h *Host) { h.KeyFile = "/k" },
		func(h *Host) { h.Vars = map[string]any{"ansible_become": true} }, func(h *Host) { h.Addr = h.Addr.Next() },
	} {
		other := h
		change(&other)
		if seen[other.Digest()] {
			t.Errorf("%+v has a digest of another", other)
		}
		seen[other.Digest()] = true
	}
}

func TestLoadInventory_takesTheExampleThatIsShipped(t *testing.T) {
	t.Parallel()
	example, err := os.ReadFile("../../inventory/example/hosts.yml")
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := inventoryRunner(t, "hosts.yml", string(example)).LoadInventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(hosts) != 5 {
		t.Errorf("got %d hosts, want 5", len(hosts))
	}
	for name, h := range hosts {
		if h.Err != nil {
			t.Errorf("%s: %v", name, h.Err)
		}
	}
}
