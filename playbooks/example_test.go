package playbooks_test

import (
	"strings"
	"testing"

	"github.com/parry/parry/internal/testenv"
)

// blackholeLab is a router with the example bundle of docs/PLAYBOOKS.md: a linuxLab in all that this file does not say.
type blackholeLab struct{ linuxLab }

func startBlackhole(t *testing.T) blackholeLab {
	t.Helper()
	return blackholeLab{linuxLab{startLinuxWith(t, "examples/blackhole")}}
}

func (l blackholeLab) entries() []string {
	return []string{
		"192.0.2.0/24 - - - -", "2001:db8:bad::7 - - - -", "2001:db8:dead::/48 2001:db8:1::/64 - - -", "203.0.113.65 198.18.0.80 - - -",
		"203.0.113.7 - - - -",
	}
}
func (l blackholeLab) entry(source string) string { return source + " - - - -" }
func (l blackholeLab) hold()                      { l.t.Helper(); l.holdLock("/run/lock/parry-blackhole") }
func (l blackholeLab) snapshot() string {
	l.t.Helper()
	return l.SSH("ip rule; ip -6 rule; stat -c '%y %n' /var/lib/*; cat /var/lib/*.json")
}

func (l blackholeLab) damage() map[string]func() {
	const rule = "from 203.0.113.7 pref 1 protocol 112"
	instead := func(other string) func() {
		return func() { l.t.Helper(); l.SSH("ip rule del " + rule + " blackhole && ip rule add " + other) }
	}
	return map[string]func(){
		"a rule was taken out":            func() { l.SSH("ip rule del " + rule + " blackhole") },
		"all rules were flushed":          func() { l.SSH("ip rule flush protocol 112; ip -6 rule flush protocol 112") },
		"a rule was narrowed":             instead(rule + " iif lan blackhole"),
		"a rule lets pass instead":        instead(rule + " lookup main"),
		"a rule was put below the routes": instead("from 203.0.113.7 pref 40000 protocol 112 blackhole"),
		"the router was rebooted":         l.reboot,
	}
}

func (l blackholeLab) intrude(source string) {
	l.t.Helper()
	l.SSH("ip rule add from " + source + " pref 1 protocol 112 blackhole")
}

func TestBlackhole_dropsWhatTheEntrySaysAndNothingElse(t *testing.T) {
	t.Parallel()
	l := startBlackhole(t)
	l.net.Echo(7)
	held := l.dial("tcp", "203.0.113.7", "198.18.0.80:7")
	l.mustApply(l.entries(), nil)
	if err := testenv.Said(held, "on"); err == nil {
		t.Error("an open connection goes on")
	}
	l.fails("ping 203.0.113.7 198.18.0.80", "tcp 203.0.113.65 198.18.0.80:7", "udp 192.0.2.66 198.18.0.80:7", "ping 2001:db8:bad::7 2001:db8:1::80",
		"ping 2001:db8:dead:1::5 2001:db8:1::80")
	l.passes("ping 203.0.113.8 198.18.0.80", "tcp 203.0.113.8 198.18.0.80:7", "ping 2001:db8:bad::8 2001:db8:1::80",
		"ping 203.0.113.7 203.0.113.1") // the router itself is not behind its rules, as docs/PLAYBOOKS.md says
	l.mustApply(nil, nil)
	l.passes("ping 203.0.113.7 198.18.0.80", "ping 2001:db8:bad::7 2001:db8:1::80")
}

// What the router itself sends would be dropped, its answers to Ansible first of all.
func TestBlackhole_neverTakesTheRouterOffTheNetwork(t *testing.T) {
	t.Parallel()
	l := startBlackhole(t)
	a := l.applyFile("2001:db8:bad::/64 - - - - -\n203.0.113.0/24 - - - - -\n203.0.113.1 - - - - -\n203.0.113.7 - - - - -\n", nil)
	wantRejects(t, a, reject{1, "source_protected"}, reject{2, "source_protected"}, reject{3, "source_protected"})
	l.wantProof(a, "203.0.113.7 - - - -")
}

// Nobody's rule but parry's is ever taken out, so this one is told and waits for who put it there.
func TestBlackhole_aRuleOfOthersAheadIsTold(t *testing.T) {
	t.Parallel()
	l := startBlackhole(t)
	l.mustApply(l.entries(), nil)
	l.SSH("ip rule add from 203.0.113.0/24 pref 0 lookup main")
	l.passes("ping 203.0.113.7 198.18.0.80")
	l.wantProof(l.play("verify.yml", nil), "2001:db8:bad::7 - - - -", "2001:db8:dead::/48 2001:db8:1::/64 - - -")
	a := l.apply(l.entries(), nil)
	l.wantFailure(a, "internal")
	if !strings.Contains(a.Msg, "ip rule") {
		t.Errorf("the message does not say where to look: %s", a.Msg)
	}
	l.SSH("ip rule del from 203.0.113.0/24 pref 0 lookup main")
	l.wantProof(l.mustApply(l.entries(), nil), l.entries()...)
}
