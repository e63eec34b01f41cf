package playbooks_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// contractLab is a lab firewall of some kind under the contract's tests, and what somebody can do to it by hand. What its bundle.yml does not claim
// is not asked of it: then bare and drops are never called.
type contractLab interface {
	base() *firewall
	// entries are at least five, of all the kinds that it can express, sorted, and each in a rule or set of its own as far as that goes.
	entries() []string
	// entry is one that blocks all of a source, where the packets of drops come in.
	entry(source string) string
	// drops tells whether parry's rules drop what comes from the source.
	drops(source string) bool
	// snapshot is all that a run may change, for comparison.
	snapshot() string
	// damage is what people and accidents do, after which some of the entries are no longer in force, with the command that repairs nothing else.
	damage() map[string]func()
	// bare is what they do after which the exemptions no longer stand ahead of the drops.
	bare() map[string]func()
	// intrude has the firewall drop a source by an entry that parry did not make, in the place of parry's own.
	intrude(source string)
	// hold takes the firewall's lock as a run would, until /tmp/holder is killed.
	hold()
	reboot()
}

// kinds are the bundles that must keep contract 1. A new one needs a lab and the methods above.
var kinds = map[string]func(*testing.T) contractLab{
	"blackhole":     func(t *testing.T) contractLab { return startBlackhole(t) },
	"pfsense 2.7.2": func(t *testing.T) contractLab { return pfsenseLab{start(t, "2.7.2")} },
	"pfsense 2.9":   func(t *testing.T) contractLab { return pfsenseLab{start(t, "2.9")} },
	"nftables":      func(t *testing.T) contractLab { return linuxLab{startLinux(t)} },
}

// each runs a test against every kind of firewall.
func each(t *testing.T, test func(t *testing.T, lab contractLab)) {
	t.Helper()
	t.Parallel()
	for name, start := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start(t))
		})
	}
}

func TestContract_applyProvesWhatIsLoadedAndRestsOnTheSecondRun(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f, entries := lab.base(), lab.entries()
		a := f.mustApply(entries, vars{"parry_epoch": 3})
		f.wantProof(a, entries...)
		if p := a.Parry; !a.Changed || p.Added != len(entries) || p.Epoch != 3 || p.Controller != "test" || p.RunID != "r-0" || len(p.Rejected) != 0 {
			t.Errorf("first run answered %+v", a)
		}
		if p := a.Parry; p.MachineID == "" || p.BootID == "" || p.Rules == 0 || p.Capacity < len(entries) {
			t.Errorf("machine %q, boot %q, %d rules, capacity %d", p.MachineID, p.BootID, p.Rules, p.Capacity)
		}
		before := lab.snapshot()
		a = f.mustApply(entries, vars{"parry_epoch": 3})
		f.wantProof(a, entries...)
		if a.Changed || a.Parry.Added+a.Parry.Removed != 0 || lab.snapshot() != before {
			t.Errorf("second run changed something: %+v", a)
		}
		a = f.play("verify.yml", nil)
		f.wantProof(a, entries...)
		if a.Changed || a.Parry.Epoch != 3 || a.Parry.Controller != "test" || lab.snapshot() != before {
			t.Errorf("verify answered %+v", a)
		}
		a = f.mustApply(entries[2:], vars{"parry_epoch": 3})
		f.wantProof(a, entries[2:]...)
		if !a.Changed || a.Parry.Removed != 2 {
			t.Errorf("two taken off: %+v", a)
		}
		f.wantProof(f.mustApply(nil, vars{"parry_epoch": 3}))
	})
}

func TestContract_checkShowsTheDiffAndChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f, entries := lab.base(), lab.entries()
		f.mustApply(entries[1:], nil)
		before := lab.snapshot()
		a := f.mustApply(entries[:len(entries)-1], vars{"parry_epoch": 9, "parry_exempt_file": f.write("exempt", "192.0.2.200\n")}, "--check", "--diff")
		if !a.Changed || a.Parry.Added != 1 || a.Parry.Removed != 1 || a.Parry.ExemptCount != 0 {
			t.Errorf("check answered %+v", a)
		}
		f.wantProof(a, entries[1:]...)
		for _, want := range []string{"\n-" + entries[len(entries)-1] + "\n", "\n+" + entries[0] + "\n"} {
			if !strings.Contains(a.Output, want) {
				t.Errorf("the diff does not show %q:\n%s", want, a.Output)
			}
		}
		if after := lab.snapshot(); after != before {
			t.Errorf("check mode changed the firewall:\n%s\nwas\n%s", after, before)
		}
		if a := f.mustApply(entries[1:], nil, "--check"); a.Changed {
			t.Error("check of what is in force says changed")
		}
	})
}

func TestContract_verifyHandsOverWhatIsLoaded(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f, entries := lab.base(), lab.entries()
		f.needs("loaded", f.claims.Loaded)
		a, text := f.loaded()
		if text != "" || a.Parry.Count != 0 {
			t.Errorf("%d entries on a fresh firewall: %q", a.Parry.Count, text)
		}
		f.mustApply(entries, nil)
		a, text = f.loaded()
		f.wantProof(a, entries...)
		f.wantLoaded(text, entries...)

		target := f.write("target", "kept")
		link := filepath.Join(f.dir, "link")
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{target, link, "relative"} {
			if a := f.play("verify.yml", vars{"parry_loaded_file": path}); !a.Failed || a.Parry.Failure != "internal" || !strings.Contains(a.Msg, "parry_loaded_file") {
				t.Errorf("%s: failed %t, %q: %s", path, a.Failed, a.Parry.Failure, a.Msg)
			}
		}
		if b, err := os.ReadFile(target); err != nil || string(b) != "kept" {
			t.Errorf("a file that was there holds %q (%v)", b, err)
		}
	})
}

func TestContract_whatIsExemptGetsPastTheDrops(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f := lab.base()
		f.needs("exemptions", f.claims.Exemptions)
		entries := []string{lab.entry("2001:db8:bad::7"), lab.entry("2001:db8:bad::8"), lab.entry("203.0.113.7"), lab.entry("203.0.113.8")}
		exempt := []string{"192.0.2.64/27", "2001:db8:bad::8", "203.0.113.8/31"}
		drops := func(when string, want map[string]bool) {
			t.Helper()
			for source, dropped := range want {
				if lab.drops(source) != dropped {
					t.Errorf("%s: %s is dropped: %t, want %t", when, source, !dropped, dropped)
				}
			}
		}
		all := map[string]bool{"203.0.113.7": true, "203.0.113.8": true, "2001:db8:bad::7": true, "2001:db8:bad::8": true}
		some := map[string]bool{"203.0.113.7": true, "203.0.113.8": false, "2001:db8:bad::7": true, "2001:db8:bad::8": false}

		a := f.mustApply(entries, nil)
		wantExempt(t, a)
		drops("no exemption", all)
		a = f.mustApply(entries, vars{"parry_exempt_file": f.write("exempt", strings.Join(exempt, "\n")+"\n")})
		f.wantProof(a, entries...)
		wantExempt(t, a, exempt...)
		if !a.Changed {
			t.Error("exemptions came, yet changed is false")
		}
		drops("exempt", some)

		a = f.mustApply(entries, vars{"parry_exempt_file": f.write("exempt", strings.Join(exempt, "\n")+"\n")})
		if a.Changed {
			t.Error("the second run changed something")
		}
		wantExempt(t, f.mustApply(entries, nil), exempt...) // by hand, without the file: they stay
		wantExempt(t, f.play("verify.yml", nil), exempt...)

		lab.intrude("192.0.2.66")
		drops("an entry made by hand", map[string]bool{"192.0.2.66": false})
		a, text := f.loaded()
		f.wantLoaded(text, append([]string{lab.entry("192.0.2.66")}, entries...)...)
		wantExempt(t, a, exempt...)

		for what, bare := range lab.bare() {
			bare()
			if a := f.play("verify.yml", nil); a.Parry.ExemptSHA256 == proof(exempt) {
				t.Errorf("%s, yet verify tells the exemptions", what)
			}
			a := f.mustApply(entries, vars{"parry_exempt_file": f.write("exempt", strings.Join(exempt, "\n")+"\n")})
			f.wantProof(a, entries...)
			wantExempt(t, a, exempt...)
			if !a.Changed {
				t.Errorf("%s: they came back, yet changed is false", what)
			}
			drops(what, some)
		}

		a = f.mustApply(entries, vars{"parry_exempt_file": f.write("exempt", "")})
		wantExempt(t, a)
		drops("none exempt any more", all)
		for _, bad := range []string{"203.0.113.8", "203.0.113.1/24\n", "2001:DB8::1\n", "here\n"} {
			f.wantFailure(f.apply(entries, vars{"parry_exempt_file": f.write("exempt", bad)}), "bad_desired")
		}
		f.wantFailure(f.apply(entries, vars{"parry_exempt_file": "relative"}), "bad_desired")
	})
}

func wantExempt(t *testing.T, a answer, exempt ...string) {
	t.Helper()
	if a.Parry.ExemptSHA256 != proof(exempt) || a.Parry.ExemptCount != len(exempt) {
		t.Errorf("%d exemptions are proved (%.12s), want %d (%.12s)", a.Parry.ExemptCount, a.Parry.ExemptSHA256, len(exempt), proof(exempt))
	}
}

func TestContract_verifyTellsDamageAndApplyRepairsIt(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f, entries := lab.base(), lab.entries()
		f.mustApply(entries, nil)
		damage := lab.damage()
		for _, what := range slices.Sorted(maps.Keys(damage)) {
			damage[what]()
			a, lines := f.inForce()
			if a.Parry.SHA256 == proof(entries) || a.Parry.Count == len(entries) || f.claims.Loaded && len(lines) != a.Parry.Count {
				t.Errorf("%s, yet verify tells %d entries of %d:\n%s", what, a.Parry.Count, len(entries), lines)
			}
			a = f.mustApply(entries, nil)
			f.wantProof(a, entries...)
			if !a.Changed {
				t.Errorf("%s: it came back, yet changed is false", what)
			}
		}
		lab.intrude("203.0.113.99")
		a, _ := f.inForce()
		f.wantProof(a, append([]string{lab.entry("203.0.113.99")}, entries...)...)
		f.wantProof(f.mustApply(entries, nil), entries...)
	})
}

func TestContract_oneBadLineDoesNotStopTheOthers(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f := lab.base()
		good := lab.entry("203.0.113.200")
		bad := []string{"010.0.0.1 - - - - -", "203.0.113.1/24 - - - - -", "2001:DB8::1 - - - - -", "203.0.113.4 - - -", "", "$(id) - - - - -"}
		if f.claims.Ports {
			bad = append(bad, "203.0.113.4 - - 22 - -", "203.0.113.4 - tcp 65536 - -")
		}
		a := f.applyFile(strings.Join(append(bad, good+" -"), "\n")+"\n", nil)
		f.wantProof(a, good)
		var want []reject
		for i := range bad {
			want = append(want, reject{i + 1, "malformed"})
		}
		wantRejects(t, a, want...)
	})
}

// parry does not send what bundle.yml does not claim; a file made by hand may hold it all the same, and half of an entry is another entry.
func TestContract_whatABundleDoesNotClaimIsRejectedWhole(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f := lab.base()
		lines := []string{lab.entry("203.0.113.200") + " -"}
		for line, claimed := range map[string]bool{
			"203.0.113.201 - tcp 22 - -":                        f.claims.Ports,
			"203.0.113.202 - - - wan -":                         f.claims.Interfaces,
			"203.0.113.203 - icmp - - -":                        slices.Contains(f.claims.Protocols, "icmp"),
			"2001:db8:bad::201 - - - - -":                       slices.Contains(f.claims.Families, "inet6"),
			"203.0.113.204 - - - - -":                           slices.Contains(f.claims.Families, "inet"),
			"198.51.100.0/25 - - - - -":                         f.claims.Prefixes,
			"203.0.113.205 - quic - - -":                        false,
			"203.0.113.206 2001:db8::80 - - - -":                false,
			"203.0.113.207 - - - no-such-interface-anywhere0 -": false,
		} {
			if !claimed {
				lines = append(lines, line)
			}
		}
		a := f.applyFile(strings.Join(lines, "\n")+"\n", nil)
		f.wantProof(a, lab.entry("203.0.113.200"))
		if len(a.Parry.Rejected) != len(lines)-1 {
			t.Errorf("rejected %v of\n%s", a.Parry.Rejected, strings.Join(lines, "\n"))
		}
	})
}

func TestContract_isBusyWhileAnotherRunHoldsTheFirewall(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f, entries := lab.base(), lab.entries()
		f.mustApply(entries, nil)
		lab.hold()
		f.wantFailure(f.apply(entries[:3], nil), "busy")
		f.SSH("kill $(cat /tmp/holder)")
		f.wantProof(f.play("verify.yml", nil), entries...)
		f.wantProof(f.mustApply(entries[:3], nil), entries[:3]...)
	})
}

func TestContract_badDesiredFileIsNamedAndChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f, entries := lab.base(), lab.entries()
		f.mustApply(entries, nil)
		f.wantFailure(f.applyFile(lab.entry("203.0.113.5")+" -", nil), "bad_desired") // cut off
		f.wantFailure(f.apply(nil, vars{"parry_desired_file": "/nonexistent"}), "bad_desired")
		f.wantFailure(f.apply(nil, vars{"parry_desired_file": "desired"}), "bad_desired")
		f.wantProof(f.play("verify.yml", nil), entries...)
	})
}

func TestContract_fencing(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f := lab.base()
		one, two := lab.entries()[:3], lab.entries()[3:5]
		f.mustApply(one, vars{"parry_epoch": 5})
		a := f.apply(two, vars{"parry_epoch": 4})
		f.wantFailure(a, "stale_epoch")
		if a.Parry.Epoch != 5 {
			t.Errorf("the failure names epoch %d, want 5", a.Parry.Epoch)
		}
		a = f.apply(two, vars{"parry_epoch": 9, "parry_controller": "other"})
		f.wantFailure(a, "foreign_controller")
		if a.Parry.Controller != "test" {
			t.Errorf("the failure names controller %q", a.Parry.Controller)
		}
		f.wantProof(f.play("verify.yml", nil), one...)
		a = f.mustApply(two, vars{"parry_epoch": 1, "parry_controller": "other", "parry_adopt": true})
		f.wantProof(a, two...)
		f.wantFailure(f.apply(one, vars{"parry_epoch": 6}), "foreign_controller")
	})
}

// What a controller has sent before travels with each run; one that knows less than the firewall was restored from a backup.
func TestContract_aControllerThatForgotIsRefused(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f := lab.base()
		at := func(sent, revision int) vars {
			return vars{"parry_epoch": 5, "parry_sent_revision": sent, "parry_revision": revision}
		}
		one, two := lab.entries()[:3], lab.entries()[3:5]
		f.mustApply(one, at(0, 100))
		if a := f.mustApply(two, at(100, 140)); a.Parry.Revision != 140 {
			t.Errorf("the answer names revision %d, want 140", a.Parry.Revision)
		}
		f.mustApply(two, at(140, 150)) // changes nothing, so the firewall stays at what changed it last
		if a := f.play("verify.yml", nil); a.Parry.Revision != 140 {
			t.Errorf("verify answers revision %d, want 140", a.Parry.Revision)
		}
		forgot := at(100, 900) // restored at 100; what came in since has raised its revision
		forgot["parry_epoch"] = 6
		for _, args := range [][]string{{"--check"}, nil} {
			a := f.apply(one, forgot, args...)
			f.wantFailure(a, "stale_revision")
			if a.Parry.Revision != 140 {
				t.Errorf("the failure names revision %d, want 140", a.Parry.Revision)
			}
		}
		f.wantFailure(f.apply(one, vars{"parry_epoch": 5, "parry_revision": 120}), "stale_revision") // an old run by hand
		f.wantProof(f.play("verify.yml", nil), two...)

		forgot["parry_adopt"] = true
		f.wantProof(f.mustApply(one, forgot), one...)
		f.mustApply(two, vars{"parry_epoch": 6, "parry_sent_revision": 900, "parry_revision": 901})
		// adopted, and nothing to change: the word counts for the next run all the same
		f.mustApply(two, vars{"parry_epoch": 7, "parry_sent_revision": 10, "parry_revision": 20, "parry_adopt": true})
		f.mustApply(one, vars{"parry_epoch": 7, "parry_sent_revision": 20, "parry_revision": 21})
	})
}

// parry judges a verify by its run_id, its held and by who it says controls the firewall.
func TestContract_flushEmptiesAndHoldsUntilAdopted(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f, entries := lab.base(), lab.entries()
		verify := func(id, controller string, epoch int, held bool, args ...string) {
			t.Helper()
			a := f.play("verify.yml", vars{"parry_run_id": id}, args...)
			if p := a.Parry; p.RunID != id || p.Controller != controller || p.Epoch != epoch || p.Held != held || a.Failed || a.Changed {
				t.Errorf("%s: status %d, changed %t, %+v", id, a.Status, a.Changed, p)
			}
		}
		verify("r-new", "", 0, false)
		f.mustApply(entries, vars{"parry_epoch": 3})
		verify("r-01ABC", "test", 3, false)
		before := lab.snapshot()
		if a := f.play("flush.yml", nil, "--check"); !a.Changed || a.Parry.Removed != len(entries) || lab.snapshot() != before {
			t.Errorf("flush in check mode: %+v", a)
		}
		a := f.play("flush.yml", nil)
		f.wantProof(a)
		if a.Failed || !a.Changed || a.Parry.Removed != len(entries) || !a.Parry.Held {
			t.Errorf("flush answered %+v", a)
		}
		verify("r-02", "test", 3, true)
		verify("r-03", "test", 3, true, "--check")
		if a := f.play("flush.yml", nil); a.Failed || a.Changed {
			t.Errorf("second flush: %+v", a)
		}
		f.wantFailure(f.apply(entries, vars{"parry_epoch": 3}), "flushed")
		f.wantProof(f.mustApply(entries, vars{"parry_epoch": 4, "parry_adopt": true}), entries...)
		verify("r-04", "test", 4, false)
		if a = f.mustApply(entries, vars{"parry_epoch": 4}); a.Changed {
			t.Error("after the adoption a plain run changed something")
		}
	})
}

func TestContract_verifyTellsTheMachineItsBootAndItsNetwork(t *testing.T) {
	each(t, func(t *testing.T, lab contractLab) {
		f := lab.base()
		before := f.play("verify.yml", nil).Parry
		if n := before.Facts; f.claims.Facts && (len(n.Addresses) == 0 || len(n.Gateways) == 0 || len(n.Resolvers) == 0 || len(n.Forwards) > 1024) {
			t.Errorf("facts %+v", n)
		}
		lab.reboot()
		after := f.play("verify.yml", nil).Parry
		if before.MachineID == "" || after.MachineID != before.MachineID || before.BootID == "" || after.BootID == before.BootID {
			t.Errorf("machine %q of boot %q is after a reboot machine %q of boot %q", before.MachineID, before.BootID, after.MachineID, after.BootID)
		}
	})
}

// pfsenseLab is the stand-in for pfSense; there, what pf would do with a packet is worked out from the rules and tables that it has loaded.
type pfsenseLab struct{ *firewall }

func (l pfsenseLab) base() *firewall            { return l.firewall }
func (l pfsenseLab) entries() []string          { return slices.Sorted(slices.Values(mixed)) }
func (l pfsenseLab) entry(source string) string { return source + " - - - wan" }
func (l pfsenseLab) reboot()                    { l.t.Helper(); l.Reboot(true) }
func (l pfsenseLab) hold()                      { l.t.Helper(); l.holdLock("/tmp/parry.lock") }

func (l pfsenseLab) drops(source string) bool {
	l.t.Helper()
	to := "198.18.10.80"
	if strings.Contains(source, ":") {
		to = "2001:2:0:1::80"
	}
	rule := l.packet("em0 tcp", source, to, "8443")
	return strings.HasPrefix(rule, "block ") && strings.Contains(rule, " from <parry_")
}

// packet is the rule that decides on a packet which comes in.
func (l pfsenseLab) packet(args ...string) string {
	l.t.Helper()
	return l.SSH("lab_packet " + strings.Join(args, " "))
}

func (l pfsenseLab) damage() map[string]func() {
	tables := func(do string) func() {
		return func() { l.t.Helper(); l.SSH("for t in $(pfctl -sT | grep 'parry_[0-9a-f]*$'); do " + do + "; done") }
	}
	return map[string]func(){
		"an entry was taken out":                     tables("pfctl -q -t $t -T delete 203.0.113.10"),
		"tables were flushed":                        tables("pfctl -q -t $t -T flush"),
		"a rule was deleted in the web interface":    func() { l.GUISave("delete=" + l.tracker("[0-9a-f]{12}")) },
		"a rule was disabled":                        func() { l.GUISave("disable=" + l.tracker("[0-9a-f]{12}")) },
		"a pass rule was put above in the interface": func() { l.GUISave("floating=Admin") },
		"a pass rule was loaded above by hand": func() {
			l.SSH("sed -i '/userrules/a pass in quick on em0 inet all flags S/SA keep state' /.lab/pf/rules")
		},
		"a rule that tags was loaded above by hand":    func() { l.SSH("sed -i '1i match in on em0 inet all tag parry_exempt' /.lab/pf/rules") },
		"pf was switched off":                          func() { l.SSH("pfctl -q -d") },
		"it was rebooted, and /var lies on a RAM disk": func() { l.Reboot(true) },
	}
}

func (l pfsenseLab) bare() map[string]func() {
	return map[string]func(){
		"their table was flushed":                     func() { l.SSH("pfctl -q -t parry_exempt -T flush") },
		"their rule was deleted in the web interface": func() { l.GUISave("delete=" + l.tracker("exempt4")) },
		"their rule was loaded for an interface only": func() {
			l.SSH("sed -i 's/^match in inet from <parry_exempt>/match in on em1 inet from <parry_exempt>/' /.lab/pf/rules")
		},
		"a drop was loaded that takes no heed": func() { l.SSH("sed -i 's/ ! tagged parry_exempt//' /.lab/pf/rules") },
	}
}

// intrude also writes the table's file: a reload must not be what takes the entry out again.
func (l pfsenseLab) intrude(source string) {
	l.t.Helper()
	family := "inet"
	if strings.Contains(source, ":") {
		family = "inet6"
	}
	for _, rule := range l.ourRules() {
		if name, rest, _ := strings.Cut(rule[strings.Index(rule, "<parry_")+1:], ">"); strings.Contains(rule, "on em0 ") && strings.Contains(rule, " "+family+" from") && strings.HasPrefix(rest, " to any ") {
			l.SSH("pfctl -q -t " + name + " -T add " + source + "; echo " + source + " >>/var/db/aliastables/" + name + ".txt")
			return
		}
	}
	l.t.Fatalf("no rule of parry's blocks all of a source:\n%s", l.Rules())
}

// linuxLab is a Linux router, where real packets tell what is dropped.
type linuxLab struct{ *linux }

func (l linuxLab) base() *firewall            { return l.firewall }
func (l linuxLab) entries() []string          { return mixedLinux }
func (l linuxLab) entry(source string) string { return source + " - - - wan" }
func (l linuxLab) reboot()                    { l.t.Helper(); l.net.Reboot() }
func (l linuxLab) hold()                      { l.t.Helper(); l.holdLock("/run/parry-nftables.lock") }

// drops believes in a drop only after several tries: a packet can be late on a busy machine.
func (l linuxLab) drops(source string) bool {
	l.t.Helper()
	to := server
	if strings.Contains(source, ":") {
		to = server6
	}
	for range 2 {
		if l.net.Ping(source, to) == nil {
			return false
		}
	}
	return true
}

func (l linuxLab) damage() map[string]func() {
	by := func(command string) func() { return func() { l.t.Helper(); l.SSH(command) } }
	return map[string]func(){
		"an entry was taken out":        by("nft delete element inet parry ip4_32_if_wan '{ 203.0.113.10 }'"),
		"the whole ruleset was flushed": by("nft flush ruleset"),
	}
}

func (l linuxLab) bare() map[string]func() {
	return map[string]func(){
		"their rules were flushed": func() { l.SSH("nft flush chain inet parry exempt") },
		"one was taken out":        func() { l.SSH("nft delete element inet parry exempt_ip6_128 '{ 2001:db8:bad::8 }'") },
	}
}

func (l linuxLab) intrude(source string) {
	l.t.Helper()
	l.SSH("nft add element inet parry ip4_32_if_wan '{ " + source + " }'")
}
