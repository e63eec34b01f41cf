package playbooks_test

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parry/parry/internal/testenv"
)

// linux is a Linux firewall that real packets go through.
type linux struct {
	*firewall
	net *testenv.Linux
}

func startLinux(t *testing.T) *linux { t.Helper(); return startLinuxWith(t, "nftables") }

func startLinuxWith(t *testing.T, bundle string) *linux {
	t.Helper()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed")
	}
	l := testenv.StartLinux(t, "fw-c")
	l.Bundle = bundle
	return &linux{firewall: manage(t, l.Lab), net: l}
}

// eventually polls within a bound of minutes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within two minutes: %s", what)
		}
	}
}

// The ways of the lab by which packets go from the attackers to the server.
const (
	attacker, other, third = "203.0.113.7", "203.0.113.8", "203.0.113.65"
	behind                 = "192.0.2.66"
	attacker6, other6      = "2001:db8:bad::7", "2001:db8:bad::8"
	server, server6        = "198.18.0.80", "2001:db8:1::80"
)

// way is a try to get through, "ping FROM TO", "tcp FROM TO:PORT" or "udp FROM TO:PORT".
func (f *linux) way(s string) error {
	w := strings.Fields(s)
	if w[0] == "ping" {
		return f.net.Ping(w[1], w[2])
	}
	return f.net.Say(w[0], w[1], w[2])
}

func (f *linux) passes(ways ...string) {
	f.t.Helper()
	for _, w := range ways {
		eventually(f.t, w+" passes", func() bool { return f.way(w) == nil })
	}
}

// fails tries all at once, as each takes its time.
func (f *linux) fails(ways ...string) {
	f.t.Helper()
	var wg sync.WaitGroup
	for _, w := range ways {
		wg.Go(func() {
			if f.way(w) == nil {
				f.t.Errorf("%s passes", w)
			}
		})
	}
	wg.Wait()
}

func (f *linux) dial(network, from, to string) net.Conn {
	f.t.Helper()
	var c net.Conn
	eventually(f.t, "a connection from "+from+" to "+to, func() (ok bool) {
		var err error
		if c, err = f.net.Attacker.Dial(network, from, to); err != nil {
			return false
		}
		return testenv.Said(c, "first") == nil
	})
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// applyUntil is apply with an end for each entry, as Unix seconds; 0 is none.
func (f *linux) applyUntil(entries map[string]int64, v vars, args ...string) answer {
	f.t.Helper()
	var text strings.Builder
	for _, e := range slices.Sorted(maps.Keys(entries)) {
		end := "-"
		if entries[e] != 0 {
			end = strconv.FormatInt(entries[e], 10)
		}
		fmt.Fprintf(&text, "%s %s\n", e, end)
	}
	return f.applyFile(text.String(), v, args...)
}

// loaded is what verify writes, by entry: its end, packets and bytes.
func (f *linux) loaded() map[string][3]string {
	f.t.Helper()
	_, text := f.firewall.loaded()
	out, last := map[string][3]string{}, ""
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) != 8 {
			f.t.Fatalf("loaded file: %q", line)
		}
		key := strings.Join(w[:5], " ")
		if key <= last {
			f.t.Errorf("loaded file: %q after %q", key, last)
		}
		last, out[key] = key, [3]string(w[5:])
	}
	return out
}

func (f *linux) nft() string { f.t.Helper(); return f.SSH("nft list table inet parry") }

func TestNftables_dropsWhatTheEntrySaysAndNothingElse(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.net.Echo(7)
	f.net.Echo(9)
	cases := []struct {
		what, entry   string
		fails, passes []string
	}{
		{
			"a source", "203.0.113.7 - - - wan",
			[]string{"ping 203.0.113.7 198.18.0.80", "tcp 203.0.113.7 198.18.0.80:7", "udp 203.0.113.7 198.18.0.80:7", "ping 203.0.113.7 203.0.113.1"},
			[]string{"ping 203.0.113.8 198.18.0.80", "tcp 203.0.113.8 198.18.0.80:7", "udp 203.0.113.8 198.18.0.80:7"},
		},
		{"a source on any interface", "203.0.113.11 - - - -", []string{"tcp 203.0.113.11 198.18.0.80:7"}, nil},
		{"a source on another interface", "203.0.113.12 - - - lan", nil, []string{"tcp 203.0.113.12 198.18.0.80:7"}},
		{
			"an IPv6 source", "2001:db8:bad::7 - - - wan",
			[]string{"ping 2001:db8:bad::7 2001:db8:1::80", "tcp 2001:db8:bad::7 [2001:db8:1::80]:7", "udp 2001:db8:bad::7 [2001:db8:1::80]:7"},
			[]string{"ping 2001:db8:bad::8 2001:db8:1::80", "tcp 2001:db8:bad::8 [2001:db8:1::80]:7"},
		},
		{"a prefix", "192.0.2.64/26 - - - wan", []string{"tcp 192.0.2.66 198.18.0.80:7", "ping 192.0.2.66 198.18.0.80"}, nil},
		{"an IPv6 prefix", "2001:db8:deac::/47 - - - wan", []string{"tcp 2001:db8:dead:1::5 [2001:db8:1::80]:7"}, nil},
		{
			"a TCP port", "203.0.113.13 - tcp 7 wan",
			[]string{"tcp 203.0.113.13 198.18.0.80:7"},
			[]string{"tcp 203.0.113.13 198.18.0.80:9", "udp 203.0.113.13 198.18.0.80:7", "ping 203.0.113.13 198.18.0.80"},
		},
		{
			"a UDP port of a destination over IPv6", "2001:db8:bad::11 2001:db8:1::80 udp 7 wan",
			[]string{"udp 2001:db8:bad::11 [2001:db8:1::80]:7"},
			[]string{"udp 2001:db8:bad::11 [2001:db8:1::80]:9", "tcp 2001:db8:bad::11 [2001:db8:1::80]:7"},
		},
		{
			"a port over TCP and UDP, from a prefix to a prefix", "203.0.113.64/26 198.18.0.0/24 tcp/udp 7 wan",
			[]string{"tcp 203.0.113.65 198.18.0.80:7", "udp 203.0.113.65 198.18.0.80:7"},
			[]string{"tcp 203.0.113.65 198.18.0.80:9", "udp 203.0.113.65 198.18.0.80:9", "ping 203.0.113.65 198.18.0.80"},
		},
		{
			"a destination", "203.0.113.14 198.18.0.80 - - wan",
			[]string{"tcp 203.0.113.14 198.18.0.80:7", "ping 203.0.113.14 198.18.0.80"},
			[]string{"ping 203.0.113.14 198.18.0.1", "ping 203.0.113.14 203.0.113.1"},
		},
		{"the firewall itself", "203.0.113.15 203.0.113.1 - - wan", []string{"ping 203.0.113.15 203.0.113.1"}, []string{"ping 203.0.113.15 198.18.0.80"}},
		{"ICMP", "203.0.113.16 - icmp - wan", []string{"ping 203.0.113.16 198.18.0.80"}, []string{"tcp 203.0.113.16 198.18.0.80:7"}},
		{"ICMPv6", "2001:db8:bad::12 - icmp - wan", []string{"ping 2001:db8:bad::12 2001:db8:1::80"}, []string{"tcp 2001:db8:bad::12 [2001:db8:1::80]:7"}},
	}
	var entries, fails, passes []string
	for _, c := range cases {
		entries, fails, passes = append(entries, c.entry), append(fails, c.fails...), append(passes, c.passes...)
	}
	f.passes(append(slices.Clone(fails), passes...)...) // the control
	a := f.mustApply(entries, nil)
	f.wantProof(a, entries...)
	if !a.Changed || a.Parry.Added != len(entries) {
		t.Errorf("%+v", a)
	}
	f.fails(fails...)
	f.passes(passes...)
	loaded := f.loaded()
	for _, c := range cases {
		switch got := loaded[c.entry]; {
		case len(c.fails) > 0 && (got[1] == "0" || got[2] == "0" || got[1] == ""):
			t.Errorf("%s: packets were dropped, and its counter says %v", c.what, got)
		case len(c.fails) == 0 && got[1] != "0":
			t.Errorf("%s: nothing was dropped, and its counter says %v", c.what, got)
		}
	}
	f.mustApply(nil, nil)
	f.passes(fails...)
}

func TestNftables_openConnectionsAreCutAndOnlyTheirs(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.SSH("nft add chain inet filter seen '{ type filter hook forward priority 0; }'; nft add rule inet filter seen ct state established accept") // connections are tracked
	f.net.Echo(7)
	f.net.Echo(9)
	bad, port, good := f.dial("tcp", attacker, server+":7"), f.dial("tcp", third, server+":7"), f.dial("tcp", other, server+":7")
	spared, six := f.dial("tcp", third, server+":9"), f.dial("tcp", attacker6, "["+server6+"]:7")
	flows := func() string { return f.SSH("conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null") }
	for _, source := range []string{attacker, third, other, attacker6} {
		if !strings.Contains(flows(), "src="+source) {
			t.Fatalf("no flow of %s in\n%s", source, flows())
		}
	}
	entries := []string{attacker + " - - - wan", attacker6 + " - - - wan", third + " - tcp 7 wan"}
	f.mustApply(entries, vars{"nftables_end_connections": false})
	if testenv.Said(bad, "again") == nil || testenv.Said(port, "again") == nil || testenv.Said(six, "again") == nil {
		t.Error("an open connection of a blocked source goes on")
	}
	if !strings.Contains(flows(), "src="+attacker+" ") {
		t.Error("a flow was ended, though that is turned off")
	}
	f.mustApply(nil, nil)
	a := f.mustApply(entries, nil)
	left := flows()
	for _, gone := range []string{"src=" + attacker + " ", "src=" + attacker6 + " ", "src=" + third + " dst=" + server + " sport=" + sport(port)} {
		if strings.Contains(left, gone) {
			t.Errorf("%s is left in\n%s", gone, left)
		}
	}
	if a.Parry.FlowsKilled < 3 {
		t.Errorf("%d flows ended, want 3 at least", a.Parry.FlowsKilled)
	}
	for what, c := range map[string]net.Conn{"another's": good, "to another port": spared} {
		if err := testenv.Said(c, "again"); err != nil {
			t.Errorf("the connection %s was cut: %v", what, err)
		}
		if !strings.Contains(left, "sport="+sport(c)) {
			t.Errorf("the flow %s was ended: %s", what, left)
		}
	}
	if a := f.mustApply(append(entries, behind+" - - - wan"), nil); a.Parry.FlowsKilled != 0 {
		t.Errorf("%d flows ended for a source that has none", a.Parry.FlowsKilled)
	}
}

// What a run has loaded that broke off before it ended connections, the next one makes up for.
func TestNftables_theConnectionsThatADeadRunLeftAreCut(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.SSH("nft add chain inet filter seen '{ type filter hook forward priority 0; }'; nft add rule inet filter seen ct state established accept") // connections are tracked
	f.net.Echo(7)
	first, second, dropped := f.dial("tcp", attacker, server+":7"), f.dial("tcp", third, server+":7"), f.dial("tcp", other, server+":7")
	entries := []string{attacker + " - - - wan", third + " - tcp 7 wan", other + " - - - wan"}

	whole := f.Bundle
	f.Bundle = filepath.Join(f.dir, "dies")
	if err := os.CopyFS(f.Bundle, os.DirFS(whole)); err != nil {
		t.Fatal(err)
	}
	flows := filepath.Join(f.Bundle, "program/45-flows.py")
	program, err := os.ReadFile(flows)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(flows, append(program, "\n\ndef kill_flows(*_):\n    os.kill(os.getpid(), 9)\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing to add, and dies as well
		if a := f.apply(entries, nil); !a.Failed {
			t.Fatal("the run that was to die did not")
		}
	}
	f.Bundle = whole
	f.wantProof(f.play("verify.yml", nil), entries...)
	tracked := func(c net.Conn) bool { return strings.Contains(f.SSH("conntrack -L 2>/dev/null"), "sport="+sport(c)) }

	f.mustApply(entries, nil, "--check")
	if !tracked(first) || !tracked(second) || !tracked(dropped) {
		t.Error("check mode ended a flow, or a dead run did")
	}
	a := f.mustApply(entries[:2], nil) // the last is not wanted any more
	f.wantProof(a, entries[:2]...)
	if tracked(first) || tracked(second) || !tracked(dropped) || a.Parry.FlowsKilled != 2 {
		t.Errorf("%d flows ended; left is\n%s", a.Parry.FlowsKilled, f.SSH("conntrack -L 2>/dev/null"))
	}
	if a = f.mustApply(entries[:2], nil); a.Changed || a.Parry.FlowsKilled != 0 {
		t.Errorf("nothing to do, yet changed %t, %d flows ended", a.Changed, a.Parry.FlowsKilled)
	}
}

func sport(c net.Conn) string {
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	return port + " "
}

// A port forward changes the destination before other tables see the packet; an entry may name the address of either side.
func TestNftables_aDestinationIsThatBeforeOrBehindNAT(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.net.Echo(7)
	f.net.Echo(9)
	f.SSH("nft add table ip nat; nft add chain ip nat pre '{ type nat hook prerouting priority dstnat; }'; nft add rule ip nat pre ip daddr 203.0.113.1 tcp dport 8000 dnat to 198.18.0.80:7")
	forwarded, direct := "tcp 203.0.113.7 203.0.113.1:8000", "tcp 203.0.113.7 198.18.0.80:9"
	for _, entry := range []string{attacker + " 203.0.113.1 tcp 8000 wan", attacker + " 198.18.0.80 tcp 7 wan", attacker + " 203.0.113.1 - - wan", attacker + " - tcp 7 wan"} {
		f.mustApply(nil, nil)
		f.passes(forwarded, direct)
		open := f.dial("tcp", attacker, "203.0.113.1:8000")
		a := f.mustApply([]string{entry}, nil)
		f.wantProof(a, entry)
		f.fails(forwarded)
		f.passes(direct)
		if testenv.Said(open, "again") == nil {
			t.Errorf("%s: an open connection goes on", entry)
		}
		if got := f.loaded()[entry]; got[1] == "0" {
			t.Errorf("%s: dropped nothing by its counter", entry)
		}
	}
	if a := f.play("verify.yml", nil); a.Parry.Facts.Forwards == nil || len(a.Parry.Facts.Forwards) != 0 {
		t.Errorf("forwards %v: a destination needs no mapping here", a.Parry.Facts.Forwards)
	}
}

func TestNftables_anEntryEndsByItselfAtItsTimeAndNotBefore(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.net.Echo(7)
	way := "tcp 203.0.113.7 198.18.0.80:7"
	f.passes(way)
	end := time.Now().Add(25 * time.Second).Unix()
	entry, stays := attacker+" - - - wan", other+" - - - wan"
	a := f.applyUntil(map[string]int64{entry: end, stays: 0}, nil)
	f.wantProof(a, entry, stays)
	f.fails(way)
	if l := f.loaded(); l[entry][0] != strconv.FormatInt(end, 10) || l[stays][0] != "-" {
		t.Errorf("loaded %v, want an end at %d", l, end)
	}
	eventually(t, "the entry has ended", func() bool { return f.way(way) == nil })
	if early := end - time.Now().Unix(); early > 1 {
		t.Errorf("it ended %d s early", early)
	}
	f.wantProof(f.play("verify.yml", nil), stays)
	f.fails("tcp 203.0.113.8 198.18.0.80:7")

	// what is past its time is told as such; what is about to be is loaded for long enough to be proved, and not put off again and again
	soon := third + " - - - wan"
	eventually(t, "a run within nine seconds", func() bool {
		now := time.Now().Unix()
		a = f.applyUntil(map[string]int64{entry: now - 5, soon: now + 9, stays: 0}, nil)
		if len(a.Parry.Rejected) != 1 {
			return false
		}
		wantRejects(t, a, reject{2, "expired"})
		f.wantProof(a, soon, stays)
		a = f.applyUntil(map[string]int64{soon: now + 9, stays: 0}, nil)
		return len(a.Parry.Rejected) == 0
	})
	if a.Changed {
		t.Errorf("the second run put the end off again: %+v", a.Parry)
	}
}

func TestNftables_aLaterEndIsSetWithoutLosingTheCounter(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	entry, stays := attacker+" - - - wan", other+" - - - wan"
	now := time.Now().Unix()
	f.passes("ping 203.0.113.7 198.18.0.80", "ping 203.0.113.8 198.18.0.80")
	f.applyUntil(map[string]int64{entry: now + 300, stays: now + 300}, nil)
	f.fails("ping 203.0.113.7 198.18.0.80", "ping 203.0.113.7 198.18.0.80", "ping 203.0.113.8 198.18.0.80")
	before := f.loaded()
	a := f.applyUntil(map[string]int64{entry: now + 900, stays: now + 300}, nil, "--diff")
	if !a.Changed || a.Parry.Refreshed != 1 || a.Parry.Added+a.Parry.Removed != 0 {
		t.Errorf("%+v", a.Parry)
	}
	if want := fmt.Sprintf("+%s until %d", entry, now+900); !strings.Contains(a.Output, want) {
		t.Errorf("the diff does not show %q:\n%s", want, a.Output)
	}
	f.fails("ping 203.0.113.7 198.18.0.80")
	after := f.loaded()
	if after[entry][0] != strconv.FormatInt(now+900, 10) || after[stays] != before[stays] {
		t.Errorf("before %v, after %v", before, after)
	}
	had, _ := strconv.Atoi(before[entry][1])
	if has, _ := strconv.Atoi(after[entry][1]); has <= had || had < 2 {
		t.Errorf("the counter went from %d to %d", had, has)
	}
	f.applyUntil(map[string]int64{entry: 0, stays: now + 60}, nil) // sooner, and never
	if l := f.loaded(); l[entry][0] != "-" || l[stays][0] != strconv.FormatInt(now+60, 10) {
		t.Errorf("loaded %v", l)
	}
}

// parry sends a narrow entry beside a wider one that ends sooner.
func TestNftables_entriesWithinEachOtherEndEachAtItsTime(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	wide, mid, narrow := "192.0.2.0/24 - - - wan", "192.0.2.64/26 - - - wan", "192.0.2.66 - - - wan"
	now := time.Now().Unix()
	f.passes("ping 192.0.2.66 198.18.0.80")
	a := f.applyUntil(map[string]int64{wide: now + 20, mid: now + 25, narrow: now + 500}, nil)
	f.wantProof(a, wide, mid, narrow)
	f.fails("ping 192.0.2.66 198.18.0.80")
	eventually(t, "the wider ones have ended", func() bool { return len(f.loaded()) == 1 })
	f.wantProof(f.play("verify.yml", nil), narrow)
	f.fails("ping 192.0.2.66 198.18.0.80")
	f.mustApply(nil, nil)
	f.passes("ping 192.0.2.66 198.18.0.80")
}

func (f *linux) exempt(lines ...string) string {
	f.t.Helper()
	text := ""
	for _, l := range slices.Sorted(slices.Values(lines)) {
		text += l + "\n"
	}
	return f.write(fmt.Sprint("exempt", f.run), text)
}

func TestNftables_anExemptAddressPassesWhateverTheEntriesSay(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.net.Echo(7)
	exempt := []string{third, "2001:db8:bad::8", "198.51.100.0/24"}
	entries := []string{"203.0.113.64/26 - - - wan", third + " - tcp 7 wan", "2001:db8:bad::8 - - - -", behind + " - - - wan"}
	ways := []string{"tcp 203.0.113.65 198.18.0.80:7", "ping 203.0.113.65 198.18.0.80", "tcp 2001:db8:bad::8 [2001:db8:1::80]:7"}
	f.mustApply(entries, vars{"parry_exempt_file": f.exempt()})
	f.fails(ways...) // the control
	a := f.mustApply(entries, vars{"parry_exempt_file": f.exempt(exempt...)})
	f.wantProof(a, entries...)
	if want := proof(exempt); a.Parry.ExemptSHA256 != want || a.Parry.ExemptCount != 3 || !a.Changed {
		t.Errorf("exemptions: %s over %d, want %s over 3", a.Parry.ExemptSHA256, a.Parry.ExemptCount, want)
	}
	f.passes(ways...)
	f.fails("ping 192.0.2.66 198.18.0.80")
	if a = f.mustApply(entries, nil); a.Changed || a.Parry.ExemptCount != 3 {
		t.Errorf("a run that was given no exemptions changed them: %+v", a.Parry)
	}
	f.SSH("nft add element inet parry exempt_ip4_32 '{ 192.0.2.66 }'") // by hand
	f.passes("ping 192.0.2.66 198.18.0.80")
	if a = f.play("verify.yml", nil); a.Parry.ExemptSHA256 == proof(exempt) {
		t.Error("a foreign exemption is not seen")
	}
	a = f.mustApply(entries, vars{"parry_exempt_file": f.exempt(exempt...)})
	if a.Parry.ExemptSHA256 != proof(exempt) || !a.Changed {
		t.Errorf("a foreign exemption stays: %+v", a.Parry)
	}
	f.fails("ping 192.0.2.66 198.18.0.80")
	a = f.mustApply(entries, vars{"parry_exempt_file": f.exempt()})
	if a.Parry.ExemptSHA256 != proof(nil) {
		t.Errorf("%+v", a.Parry)
	}
	f.fails(ways...)
	f.wantFailure(f.apply(entries, vars{"parry_exempt_file": f.write("bad", "203.0.113.1/24\n")}), "bad_desired")
}

var mixedLinux = []string{
	"192.0.2.0/25 - - - lan",
	"192.0.2.0/26 - - - lan",
	"198.51.100.9 - - - -",
	"2001:db8:9::/64 - - - wan",
	"2001:db8:9::5 2001:db8:1::10 udp 53 wan",
	"203.0.113.10 - - - wan",
	"203.0.113.11 - - - wan",
	"203.0.113.7 198.51.100.0/24 icmp - wan",
	"203.0.113.7 198.51.100.77 tcp 22 wan",
	"203.0.113.9 - gre - -",
	"203.0.113.9 - tcp/udp 53 lan",
}

func TestNftables_provesEveryKindOfEntryAndRestsOnTheSecondRun(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	others := f.SSH("nft add table ip mine; nft add chain ip mine c; nft list table inet filter; nft list table ip mine")
	a := f.mustApply(mixedLinux, vars{"parry_epoch": 3})
	f.wantProof(a, mixedLinux...)
	if !a.Changed || a.Parry.Added != len(mixedLinux) || a.Parry.Epoch != 3 || a.Parry.Controller != "test" || a.Parry.RunID != "r-0" {
		t.Errorf("first run answered %+v", a)
	}
	if a.Parry.MachineID == "" || a.Parry.BootID == "" || a.Parry.Capacity < 100_000 || a.Parry.Rules != 10 {
		t.Errorf("machine %q, boot %q, capacity %d, %d rules", a.Parry.MachineID, a.Parry.BootID, a.Parry.Capacity, a.Parry.Rules)
	}
	before := f.snapshot()
	a = f.mustApply(mixedLinux, vars{"parry_epoch": 3})
	f.wantProof(a, mixedLinux...)
	if a.Changed || a.Parry.Added+a.Parry.Removed+a.Parry.Refreshed != 0 {
		t.Errorf("second run changed something: %+v", a)
	}
	a = f.play("verify.yml", nil)
	f.wantProof(a, mixedLinux...)
	if a.Changed || a.Parry.Epoch != 3 || a.Parry.Controller != "test" {
		t.Errorf("verify answered %+v", a)
	}
	facts := a.Parry.Facts
	if !slices.Contains(facts.Addresses, "203.0.113.1") || !slices.Contains(facts.Addresses, "2001:db8:1::1") || slices.Contains(facts.Addresses, "127.0.0.1") ||
		!slices.Equal(facts.Gateways, []string{"2001:db8:bad::fe", "203.0.113.254"}) || !slices.Equal(facts.Resolvers, []string{"198.18.0.53", "2001:db8:1::53"}) {
		t.Errorf("facts %+v", facts)
	}
	next := append([]string{"203.0.113.99 - gre - wan"}, mixedLinux[1:]...)
	a = f.mustApply(next, vars{"parry_epoch": 9, "parry_exempt_file": f.exempt("198.51.100.77")}, "--check", "--diff")
	if !a.Changed || a.Parry.Added != 1 || a.Parry.Removed != 1 {
		t.Errorf("check answered %+v", a)
	}
	for _, want := range []string{"\n-" + mixedLinux[0] + "\n", "\n+203.0.113.99 - gre - wan\n", "\n " + mixedLinux[1] + "\n", "\n+exempt 198.51.100.77\n"} {
		if !strings.Contains(a.Output, want) {
			t.Errorf("the diff does not show %q:\n%s", want, a.Output)
		}
	}
	if after := f.snapshot(); after != before {
		t.Errorf("runs that should change nothing did:\n%s\nwas\n%s", after, before)
	}
	f.mustApply(next, vars{"parry_epoch": 9})
	f.play("flush.yml", nil)
	if got := f.SSH("nft list table inet filter; nft list table ip mine"); got != others {
		t.Errorf("other tables changed:\n%s\nwere\n%s", got, others)
	}
}

// snapshot is all that a run may change: the table without what passes by itself, and the files.
func (f *linux) snapshot() string {
	f.t.Helper()
	return f.SSH("nft list ruleset | sed -E 's/ expires [0-9a-z]+//g; s/counter packets [0-9]+ bytes [0-9]+//g'; find /etc /var/lib -type f -exec cksum {} +; find /etc/systemd -type l")
}

func TestNftables_repairsWhatSomebodyChanged(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	blocked := attacker + " - - - wan"
	entries := append([]string{blocked}, mixedLinux...)
	handle := func(chain, rule string) string {
		return fmt.Sprintf(`$(nft -a list chain inet parry %s | sed -n '/%s/s/.*handle //p' | head -n 1)`, chain, rule)
	}
	exempt := vars{"parry_exempt_file": f.exempt("198.51.100.200")}
	f.mustApply(entries, exempt)
	for what, damage := range map[string]string{
		"the table flushed":                   "nft flush table inet parry",
		"the table deleted":                   "nft delete table inet parry",
		"all tables flushed":                  "nft flush ruleset",
		"a set flushed":                       "nft flush set inet parry ip4_32_if_wan",
		"an entry deleted":                    "nft delete element inet parry ip4_32_if_wan '{ 203.0.113.7 }'",
		"the rules flushed":                   "nft flush chain inet parry sources",
		"a rule deleted":                      "nft delete rule inet parry sources handle " + handle("sources", "@ip4_32_if_wan"),
		"a rule that counts instead of drops": "nft replace rule inet parry sources handle " + handle("sources", "@ip4_32_if_wan") + " iifname wan ip saddr @ip4_32_if_wan counter",
		"a rule that looks elsewhere":         "nft replace rule inet parry sources handle " + handle("sources", "@ip4_32_if_wan") + " iifname lan ip saddr @ip4_32_if_wan drop",
		"an accept rule ahead":                "nft insert rule inet parry prerouting accept",
		"an accept rule among the exemptions": "nft add rule inet parry exempt ip saddr 203.0.113.0/24 accept",
		"a return ahead in the chain":         "nft insert rule inet parry sources ip saddr 203.0.113.0/24 return",
		"the jump deleted":                    "nft delete rule inet parry prerouting handle " + handle("prerouting", "jump sources"),
		"the base chain at another priority":  "nft flush chain inet parry prerouting; nft delete chain inet parry prerouting; nft add chain inet parry prerouting '{ type filter hook prerouting priority 10; }'; nft add rule inet parry prerouting jump exempt; nft add rule inet parry prerouting jump sources; nft add rule inet parry prerouting jump flows",
		"the base chain at another hook":      "nft flush chain inet parry prerouting; nft delete chain inet parry prerouting; nft add chain inet parry prerouting '{ type filter hook postrouting priority -310; }'; nft add rule inet parry prerouting jump exempt; nft add rule inet parry prerouting jump sources; nft add rule inet parry prerouting jump flows",
		"the table dormant":                   "nft add table inet parry '{ flags dormant; }'",
	} {
		f.SSH(damage)
		a, text := f.firewall.loaded()
		if strings.Contains(text, blocked) {
			t.Errorf("%s: the entry still counts", what)
		}
		if n := strings.Count(text, "\n"); a.Parry.Count != n || a.Parry.SHA256 == proof(entries) {
			t.Errorf("%s: verify counts %d, writes %d", what, a.Parry.Count, n)
		}
		a = f.mustApply(entries, exempt)
		f.wantProof(a, entries...)
		if !a.Changed || a.Parry.Added == 0 {
			t.Errorf("%s: repaired, and yet changed %t, added %d", what, a.Changed, a.Parry.Added)
		}
		f.fails("ping 203.0.113.7 198.18.0.80")
		if a = f.mustApply(entries, nil); a.Changed {
			t.Errorf("%s: changed again after the repair", what)
		}
	}
	f.SSH("nft add element inet parry ip4_32_if_wan '{ 203.0.113.50 timeout 1h, 203.0.113.51 }'")
	if l := f.loaded(); len(l) != len(entries)+2 || l["203.0.113.51 - - - wan"][0] != "-" {
		t.Errorf("entries too many are not told: %v", l)
	}
	if a := f.mustApply(entries, nil); a.Parry.Removed != 2 || a.Parry.Count != len(entries) {
		t.Errorf("entries too many: %+v", a.Parry)
	}
	// harmless, and not ours: it goes, without an entry's leaving
	f.SSH("nft add chain inet parry mine; nft add set inet parry mine '{ type ipv4_addr; }'")
	f.wantProof(f.play("verify.yml", nil), entries...)
	if a := f.mustApply(entries, nil); !a.Changed || strings.Contains(f.nft(), "mine") {
		t.Errorf("a foreign chain stays: %+v", a.Parry)
	}
}

func TestNftables_aRebootLeavesNoneAndNoneForLonger(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	now := time.Now().Unix()
	long, short, never := attacker+" - - - wan", other+" - - - wan", attacker6+" - - - wan"
	f.passes("ping 203.0.113.7 198.18.0.80")
	a := f.applyUntil(map[string]int64{long: now + 600, short: now + 15, never: 0}, vars{"parry_exempt_file": f.exempt("198.51.100.200")})
	boot := a.Parry.BootID
	for what, again := range map[string]func(){"reboot": f.net.Reboot, "systemctl reload nftables": f.net.Reload} {
		eventually(t, "the short one has ended", func() bool { return time.Now().Unix() > now+15 })
		again()
		f.fails("ping 203.0.113.7 198.18.0.80", "ping 2001:db8:bad::7 2001:db8:1::80")
		f.passes("ping 203.0.113.8 198.18.0.80")
		a := f.play("verify.yml", nil)
		f.wantProof(a, long, never)
		if a.Parry.ExemptSHA256 != proof([]string{"198.51.100.200"}) || a.Parry.Controller != "test" {
			t.Errorf("after a %s: %+v", what, a.Parry)
		}
		if l := f.loaded(); l[long][0] != strconv.FormatInt(now+600, 10) {
			t.Errorf("after a %s it ends at %s, want %d", what, l[long][0], now+600)
		}
	}
	if a := f.play("verify.yml", nil); a.Parry.BootID == boot {
		t.Error("the boot has the same id")
	}
	if a := f.applyUntil(map[string]int64{long: now + 600, never: 0}, nil); a.Parry.Added+a.Parry.Removed+a.Parry.Refreshed != 0 {
		t.Errorf("after a reboot there was something to do: %+v", a.Parry)
	}
	f.SSH("echo broken >>/var/lib/parry-nftables/entries") // a line that cannot be used costs that line
	f.net.Reboot()
	f.wantProof(f.play("verify.yml", nil), long, never)
	f.play("flush.yml", nil)
	f.net.Reboot()
	f.passes("ping 203.0.113.7 198.18.0.80")
	if left := f.SSH("ls /etc/systemd/system/*/ /etc/systemd/system /var/lib/parry-nftables"); strings.Contains(left, "parry-nftables.service") || strings.Contains(left, "entries") {
		t.Errorf("a flush left %s", left)
	}
}

func TestNftables_rejectsBadEntriesOneByOne(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	lines := []struct{ line, code string }{
		{"010.0.0.1 - - - wan -", "malformed"},             // octal
		{"127.0.0.0/8 - - - wan -", "source_protected"},    // where the controller comes from
		{"203.0.113.254 - - - wan -", "source_protected"},  // the gateway
		{"198.18.0.1 - - - wan -", "source_protected"},     // own address
		{"198.18.0.53 - - - wan -", "source_protected"},    // the resolver
		{"203.0.113.0/24 - - - wan -", "source_protected"}, // holds two of them
		{"2001:db8:bad::/64 - - - wan -", "source_protected"},
		{"203.0.113.4 198.51.100.1/24 tcp 443 wan -", "malformed"}, // host bits
		{"203.0.113.4 2001:db8::1 tcp 443 wan -", "family_mismatch"},
		{"203.0.113.4 - - - eth9 -", "unknown_interface"},
		{"203.0.113.4 - ospf - wan -", "unsupported_protocol"},
		{"203.0.113.4 - icmp 8 wan -", "malformed"},
		{"203.0.113.4 - - 22 wan -", "malformed"},
		{"203.0.113.4 - tcp 65536 wan -", "malformed"},
		{"203.0.113.4 - tcp 022 wan -", "malformed"},
		{"203.0.113.4/32 - - - wan -", "malformed"},
		{"0.0.0.0/0 - - - wan -", "malformed"},
		{"203.0.113.4 - - - wan", "malformed"},
		{"203.0.113.4 - - - wan soon", "malformed"},
		{"203.0.113.4 - - - wan 5", "expired"},
		{"2001:DB8::1 - - - wan -", "malformed"},
		{"2001:db8:0::1 - - - wan -", "malformed"},
		{"203.0.113.5 - - - wan -", ""},
		{"::1.2.3.4 - - - wan -", "malformed"},
		{"::102:304 - - - wan -", ""}, // as Go and RFC 5952 write it, which libc does not
		{"203.0.113.6 - - - wan 1893456000", ""},
		{"", "malformed"},
	}
	var text strings.Builder
	var want []reject
	for i, l := range lines {
		text.WriteString(l.line + "\n")
		if l.code != "" {
			want = append(want, reject{i + 1, l.code})
		}
	}
	a := f.applyFile(text.String(), nil)
	wantRejects(t, a, want...)
	good := []string{"203.0.113.5 - - - wan", "::102:304 - - - wan", "203.0.113.6 - - - wan"}
	f.wantProof(a, good...)
	f.wantProof(f.play("verify.yml", nil), good...)
	if a = f.applyFile(text.String(), nil); a.Changed {
		t.Error("changed on the second run")
	}
	// by hand a line may stand twice: the one that ends later stands
	if a = f.applyFile("203.0.113.5 - - - wan 1893456000\n203.0.113.5 - - - wan 1893456500\n203.0.113.5 - - - wan 1893450000\n", nil); a.Parry.Count != 1 || len(a.Parry.Rejected) != 0 {
		t.Errorf("repeated lines: %+v", a.Parry)
	}
	if l := f.loaded(); l["203.0.113.5 - - - wan"][0] != "1893456500" {
		t.Errorf("loaded %v", l)
	}
}

func TestNftables_hostileLinesActOnNothing(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	canary := filepath.Join(f.dir, "canary")
	hostile := []string{
		"{{ lookup('pipe', 'touch " + canary + "') }} - - - wan -",
		"$(touch${IFS}/tmp/canary) - - - wan -",
		"203.0.113.6 - - - wan;touch${IFS}/tmp/canary -",
		"203.0.113.6 - - - `touch${IFS}/tmp/canary` -",
		"203.0.113.6 - - - wan\t -",
		"203.0.113.6 - - - wan 1e9",
		"203.0.113.6 - - - wan ٣",
		"203.0.113.6 - tcp\r - wan -",
		"203.0.113.6\x00 - - - wan -",
		"203.0.113.6%wan - - - wan -",
		"\xff\xfe - - - wan -",
		"PARRY-ANSWER {} - - - wan -",
		"203.0.113.5 - - - wan -",
	}
	a := f.applyFile(strings.Join(hostile, "\n")+"\n", nil)
	f.wantProof(a, "203.0.113.5 - - - wan")
	if a.Failed || len(a.Parry.Rejected) != len(hostile)-1 {
		t.Errorf("%s; rejected %v", a.Msg, a.Parry.Rejected)
	}
	for name, v := range map[string]vars{
		"controller": {"parry_controller": map[string]string{"__ansible_unsafe": "{{ lookup('pipe', 'touch " + canary + "') }}"}},
		"run id":     {"parry_run_id": "x'; touch /tmp/canary; '"},
		"epoch":      {"parry_epoch": -1},
	} {
		if a := f.apply(nil, v); !a.Failed {
			t.Errorf("a hostile %s was taken", name)
		}
	}
	for _, path := range []string{canary, filepath.Join(f.Root, "tmp/canary"), filepath.Join(f.Root, "root/canary")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was made", path)
		}
	}
	f.wantFailure(f.applyFile("203.0.113.5 - - - wan -", nil), "bad_desired") // cut off
	f.wantFailure(f.apply(nil, vars{"parry_desired_file": "/nonexistent"}), "bad_desired")
	f.wantFailure(f.apply(nil, vars{"parry_desired_file": "desired"}), "bad_desired")
	f.wantProof(f.play("verify.yml", nil), "203.0.113.5 - - - wan")
}

func TestNftables_limits(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.mustApply([]string{"203.0.113.12 198.51.100.9 - - wan"}, nil)
	a := f.mustApply([]string{"203.0.113.12 198.51.100.9 - - wan", "203.0.113.12 - - - wan", "203.0.113.13 - tcp 22 wan", "203.0.113.14 198.51.100.10 - - wan"}, vars{"parry_max_rules": 2})
	wantRejects(t, a, reject{3, "max_rules"}) // destinations cost none; what stands keeps its place
	if a.Parry.Count != 3 || a.Parry.Rules != 2 {
		t.Errorf("%+v", a.Parry)
	}
	var entries []string
	for i := range 20 {
		entries = append(entries, fmt.Sprintf("203.0.113.%d - - - wan", i+100))
	}
	f.mustApply(entries[10:], vars{"nftables_capacity": 15})
	a = f.mustApply(entries, vars{"nftables_capacity": 15})
	if a.Parry.Capacity != 15 || a.Parry.Count != 15 || len(a.Parry.Rejected) != 5 {
		t.Errorf("%+v", a.Parry)
	}
	for _, r := range a.Parry.Rejected {
		if r.Code != "capacity" || r.Line > 10 {
			t.Errorf("rejected %+v: what stands should keep its place", r)
		}
	}
}

func TestNftables_aDamagedMemoryStopsAllButAnAdoption(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.mustApply(mixedLinux[:3], nil)
	f.SSH("echo '{' >/var/lib/parry-nftables/state.json")
	f.wantFailure(f.apply(mixedLinux[:2], nil), "internal")
	f.mustApply(mixedLinux[:2], vars{"parry_adopt": true})
}

func TestNftables_flushLeavesTheRulesetAsItWasBeforeParryCame(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	before := f.SSH("nft list ruleset")
	f.mustApply(append([]string{attacker + " - - - wan"}, mixedLinux...), nil)
	f.fails("ping 203.0.113.7 198.18.0.80")
	f.play("flush.yml", nil)
	f.passes("ping 203.0.113.7 198.18.0.80")
	if got := f.SSH("nft list ruleset"); got != before {
		t.Errorf("the ruleset is not what it was:\n%s", got)
	}
}

func TestNftables_isBusyWhileAnotherRunHoldsItButFlushWorks(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.mustApply(mixedLinux, nil)
	f.holdLock("/run/parry-nftables.lock")
	f.wantFailure(f.apply(mixedLinux[:3], nil), "busy")
	f.wantProof(f.play("verify.yml", nil, "--check"), mixedLinux...) // takes no lock
	f.wantFailure(f.play("flush.yml", nil), "busy")
	f.wantProof(f.play("verify.yml", nil, "--check"))
	f.SSH("kill $(cat /tmp/holder)")
	f.wantFailure(f.apply(mixedLinux, nil), "flushed")
}

// What others do to the ruleset between our reading and our writing makes the run begin anew: nothing is written on top of what was not seen.
func TestNftables_othersMayChangeTheRulesetAllTheTime(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.SSH(`(while :; do nft add table ip busy; sleep 0.05; nft delete table ip busy; sleep 0.05; done) >/dev/null 2>&1 & echo $! >/tmp/busy`)
	for i := range 3 {
		entries := append([]string{fmt.Sprintf("203.0.113.%d - - - wan", 20+i)}, mixedLinux...)
		a := f.mustApply(entries, nil)
		f.wantProof(a, entries...)
		if a.Parry.Added == 0 {
			t.Errorf("%+v", a.Parry)
		}
	}
	f.SSH("kill $(cat /tmp/busy)")
}

func TestNftables_hundredThousandSources(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	entries := make([]string, 0, 100_001)
	for i := range 100_000 {
		entries = append(entries, fmt.Sprintf("%d.%d.%d.%d - - - wan", 20+i>>16, i>>8&0xff, i&0xff, i*37>>4&0xff))
	}
	f.mustApply(entries[:10], nil)
	f.passes("ping 203.0.113.7 198.18.0.80")
	a := f.mustApply(append(slices.Clone(entries), attacker+" - - - wan"), nil)
	f.wantProof(a, append(slices.Clone(entries), attacker+" - - - wan")...)
	if a.Parry.Added != len(entries)-9 || len(a.Parry.Rejected) != 0 || a.Parry.Rules != 1 {
		t.Errorf("added %d, rejected %d, %d rules", a.Parry.Added, len(a.Parry.Rejected), a.Parry.Rules)
	}
	f.fails("ping 203.0.113.7 198.18.0.80")
	f.passes("ping 203.0.113.8 198.18.0.80")
	if !strings.Contains(f.SSH("nft -t list table inet parry"), "vmap @ip4_32_parts_if_wan") {
		t.Error("so many are in one set")
	}
	f.SSH("nft add element inet parry ip4_32_3of16_if_wan '{ 99.1.2.4 timeout 1h }'") // where nobody looks for it
	if a := f.play("verify.yml", nil); a.Parry.Count != len(entries)+1 {
		t.Errorf("an entry in the wrong part counts: %d", a.Parry.Count)
	}
	entries = append(entries[1:], "99.1.2.3 - - - wan")
	a = f.mustApply(entries, nil, "--diff")
	f.wantProof(a, entries...)
	if a.Parry.Added != 1 || a.Parry.Removed != 2 {
		t.Errorf("added %d, removed %d", a.Parry.Added, a.Parry.Removed)
	}
	f.passes("ping 203.0.113.7 198.18.0.80")
	if a = f.mustApply(entries, nil); a.Changed {
		t.Error("the third run changed something")
	}
	if strings.Contains(f.SSH("nft list set inet parry ip4_32_3of16_if_wan"), "99.1.2.4 ") {
		t.Error("the misplaced entry stays")
	}
	if a = f.mustApply(entries[:500], nil); strings.Contains(f.nft(), "vmap") || a.Parry.Count != 500 {
		t.Error("so few are in many sets")
	}
	f.wantProof(a, entries[:500]...)
}

func TestNftables_anOrdinaryUserWithSudoWillDo(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	if _, err := exec.LookPath("sudo"); err != nil {
		t.Skip("sudo is not installed")
	}
	f.User = "ops"
	f.firewall = manage(t, f.Lab)
	a := f.apply(mixedLinux, nil)
	f.wantFailure(a, "internal")
	if !strings.Contains(a.Msg, "ansible_become") {
		t.Errorf("the message does not say what to do: %s", a.Msg)
	}
	a = f.mustApply(mixedLinux, nil, "--become")
	f.wantProof(a, mixedLinux...)
	a = f.applyFile("127.0.0.1 - - - wan -\n203.0.113.9 - - - wan -\n", nil, "--become")
	wantRejects(t, a, reject{1, "source_protected"}) // sudo hides where the login comes from; it is found all the same
}

func TestNftables_failuresAreToldAsWhatTheyAre(t *testing.T) {
	t.Parallel()
	f := startLinux(t)
	f.mustApply(mixedLinux, nil)
	f.SSH("mkdir /tmp/full && mount -t tmpfs -o size=4k full /tmp/full && cp /var/lib/parry-nftables/state.json /tmp/full/ && mount --bind /tmp/full /var/lib/parry-nftables; head -c 8000 /dev/zero >/var/lib/parry-nftables/zero || :")
	a := f.apply(mixedLinux[:4], vars{"parry_epoch": 7})
	f.wantFailure(a, "internal")
	if !strings.Contains(a.Msg, "state.json") {
		t.Errorf("the message does not name the file: %s", a.Msg)
	}
	f.SSH("umount /var/lib/parry-nftables")
	f.wantProof(f.play("verify.yml", nil), mixedLinux...) // nothing was changed before the claim was written
	f.SSH("printf '#!/bin/sh\\nexit 127\\n' >/tmp/python3; chmod +x /tmp/python3; mount --bind /tmp/python3 $(readlink -f /usr/bin/python3)")
	f.wantFailure(f.play("verify.yml", nil), "unsupported_version")
	f.SSH("umount $(readlink -f /usr/bin/python3); printf '#!/bin/sh\\ncat >/dev/null\\nprintf \"\\\\nPARRY-ANSWER {\\\\\"parry\\\\\": 7, \\\\\"ansible_facts\\\\\": {}}\\\\n\"\\n' >/tmp/python3; mount --bind /tmp/python3 $(readlink -f /usr/bin/python3)")
	f.wantFailure(f.play("verify.yml", nil), "internal")
	f.Stop()
	if a := f.play("verify.yml", nil); !a.Unreachable || a.Status != 4 {
		t.Errorf("answered %+v", a)
	}
}
