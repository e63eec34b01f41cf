package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func passes(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if err = try(); err == nil {
			return
		}
	}
	t.Errorf("%s does not pass: %v", what, err)
}

func TestLinux_packetsPassBothWaysAndNftablesFiltersThem(t *testing.T) {
	t.Parallel()
	l := StartLinux(t, "fw-c")
	l.Echo(7)
	ways := map[string]func() error{
		"ping":                       func() error { return l.Ping("203.0.113.7", "198.18.0.80") },
		"ping over IPv6":             func() error { return l.Ping("2001:db8:bad::7", "2001:db8:1::80") },
		"TCP":                        func() error { return l.Say("tcp", "203.0.113.8", "198.18.0.80:7") },
		"UDP":                        func() error { return l.Say("udp", "203.0.113.65", "198.18.0.80:7") },
		"TCP over IPv6":              func() error { return l.Say("tcp", "2001:db8:bad::8", "[2001:db8:1::80]:7") },
		"UDP from behind the router": func() error { return l.Say("udp", "192.0.2.66", "198.18.0.80:7") },
		"TCP to the firewall itself": func() error { return l.Ping("2001:db8:dead:1::5", "2001:db8:1::1") },
	}
	for what, try := range ways {
		passes(t, what, try)
	}
	open, err := l.Attacker.Dial("tcp", "203.0.113.7", "198.18.0.80:7")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	l.SSH("nft add chain inet filter pre '{ type filter hook prerouting priority -300; policy accept; }'; nft add rule inet filter pre iifname wan drop")
	for what, try := range ways {
		if try() == nil {
			t.Errorf("%s passes a rule that drops everything", what)
		}
	}
	if Said(open, "word") == nil {
		t.Error("the open connection goes on")
	}
	l.Reboot()
	for what, try := range ways {
		passes(t, what+" after a reboot", try)
	}
}

func TestLinux_isAMachineOfItsOwn(t *testing.T) {
	t.Parallel()
	a, b := StartLinux(t, "fw-c"), StartLinux(t, "fw-d")
	a.SSH("nft add table inet mine; echo mine >/etc/nftables.d; touch /var/lib/mine /run/mine /tmp/mine")
	for what, cmd := range map[string]string{
		"tables": "nft list tables", "files": "ls -R /etc /var/lib /run /tmp", "machine id": "cat /etc/machine-id", "boot id": "cat /proc/sys/kernel/random/boot_id",
		"host name": "hostname",
	} {
		if a.SSH(cmd) == b.SSH(cmd) {
			t.Errorf("two firewalls share their %s", what)
		}
	}
	if host, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil || strings.Contains(string(host), "mine") {
		t.Errorf("the host has the firewall's table: %v %s", err, host)
	}
	machine, boot := a.SSH("cat /etc/machine-id"), a.SSH("cat /proc/sys/kernel/random/boot_id")
	a.Reboot()
	if a.SSH("cat /etc/machine-id") != machine || a.SSH("cat /proc/sys/kernel/random/boot_id") == boot {
		t.Error("after a reboot it should be the same machine in another boot")
	}
	if got := a.SSH("nft list tables; ls /run /tmp"); strings.Contains(got, "mine") || !strings.Contains(got, "inet filter") {
		t.Errorf("a reboot left %s", got)
	}
	a.Stop()
	if _, err := os.Stat(filepath.Join(a.Root, "var/lib/mine")); err != nil {
		t.Error(err)
	}
	a.Start()
	if a.SSH("cat /etc/machine-id") != machine {
		t.Error("stopped and started it is another machine")
	}
}

// What stands for systemd starts the units that want nftables to be there first after it, and reloads them with it.
func TestLinux_unitsRunAtBootAndReload(t *testing.T) {
	t.Parallel()
	l := StartLinux(t, "fw-c")
	l.SSH(`printf '[Unit]\nAfter=nftables.service\nReloadPropagatedFrom=nftables.service\n[Service]\nExecStart=/usr/sbin/nft add chain inet filter booted\nExecReload=-/usr/sbin/nft add chain inet filter reloaded\n' >/etc/systemd/system/sysinit.target.wants/a.service`)
	l.Reboot()
	if got := l.Console("nft list ruleset"); !strings.Contains(got, "chain booted") || strings.Contains(got, "chain reloaded") {
		t.Errorf("after a reboot: %s", got)
	}
	l.Reload()
	if got := l.Console("nft list ruleset"); strings.Contains(got, "chain booted") || !strings.Contains(got, "chain reloaded") {
		t.Errorf("after a reload: %s", got)
	}
}

func TestLinux_faultsTakeTimeAndEnd(t *testing.T) {
	t.Parallel()
	l := StartLinux(t, "fw-c")
	l.Fault("hang")
	done := make(chan error, 1)
	go func() {
		done <- exec.Command(filepath.Join(l.scripts, "ssh"), "--dir", l.dir, "true").Run()
	}()
	select {
	case err := <-done:
		t.Errorf("a command got through a hang: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	l.Fault("off")
	if err := <-done; err != nil {
		t.Error(err)
	}
}
