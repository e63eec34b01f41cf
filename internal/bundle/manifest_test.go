package bundle

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/parry/parry/internal/parry"
)

const pfsense = `name: pfsense
version: 1.2.3
contract: 1
families: [inet, inet6]
prefixes: true
protocols: [any, tcp, udp]
ports: true
interfaces: true
timeouts: false
settings:
  fw_role: {choices: [single, primary, secondary], default: single, required: true}
  fw_log: {type: bool, default: false}
  fw_level: {type: int, min: 1, max: 9}
`

func TestParseManifest_strict(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest([]byte(pfsense))
	if err != nil {
		t.Fatal(err)
	}
	if m.Protocols[0] != parry.ProtoAny || m.Settings["fw_role"].Type != "string" || *m.Settings["fw_level"].Max != 9 {
		t.Errorf("got %+v", m)
	}
	for edit, word := range map[string]string{
		"prefixes: true>prefixs: true":          "line 5",
		"ports: true>ports: yess":               "line 7",
		"ports: true>ports: true\nports: false": "already defined",
		"contract: 1>contract: 2":               "contract 1",
		"version: 1.2.3>version: 1.2":           "semantic",
		"name: pfsense>name: ../x":              "bundle name",
		"[inet, inet6]>[inet, inet7]":           "inet7",
		"[any, tcp, udp]>[any, tpc]":            "tpc",
		"fw_log>ansible_host":                   "taken",
		"fw_log>Log":                            "lower case",
		"type: bool>type: boolean":              "boolean",
		"default: single>default: double":       "double",
		"default: false>default: 1":             "no bool",
		"min: 1, max>minimum: 1, max":           "line 13",
		"type: int, min>type: string, min":      "for an int",
	} {
		from, to, _ := strings.Cut(edit, ">")
		text := strings.Replace(pfsense, from, to, 1)
		if _, err := ParseManifest([]byte(text)); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: got %v, want a word about %q", edit, err, word)
		}
	}
	for _, text := range []string{"", pfsense + "---\nname: x\n", "[]"} {
		if _, err := ParseManifest([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestCheckSettings_namesSettingAndMend(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest([]byte(pfsense))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.CheckSettings(map[string]any{"fw_role": "primary", "fw_log": true, "fw_level": 3}); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		name string
		v    any
		word string
	}{
		{"fw_role", "first", "not one of [single primary secondary]"},
		{"fw_role", true, "no string"},
		{"fw_log", "yes", "no bool"},
		{"fw_level", 10, "more than 9"},
		{"fw_level", 0, "less than 1"},
		{"fw_roles", "single", "it takes fw_level, fw_log, fw_role"},
	} {
		err := m.CheckSettings(map[string]any{"fw_role": "single", c.name: c.v})
		if err == nil || !strings.Contains(err.Error(), c.word) || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%s %v: got %v", c.name, c.v, err)
		}
	}
	if err := m.CheckSettings(nil); err == nil || !strings.Contains(err.Error(), "fw_role is missing") {
		t.Errorf("got %v", err)
	}
}

func TestExpresses_whatTheKindOfFirewallCan(t *testing.T) {
	t.Parallel()
	all, err := ParseManifest([]byte(pfsense))
	if err != nil {
		t.Fatal(err)
	}
	least := &Manifest{Name: "least", Families: []string{"inet"}, Protocols: []parry.Protocol{parry.ProtoTCP}}
	v4, v6 := netip.MustParsePrefix("203.0.113.7/32"), netip.MustParsePrefix("2001:db8::/64")
	for _, c := range []struct {
		match parry.Match
		all   string
		least string
	}{
		{parry.Match{Source: v4, Protocol: parry.ProtoTCP}, "", ""},
		{parry.Match{Source: v4}, "", "needs a protocol"},
		{parry.Match{Source: v6, Protocol: parry.ProtoTCP}, "", "no IPv6"},
		{parry.Match{Source: v4, Destination: netip.MustParsePrefix("10.0.0.0/8"), Protocol: parry.ProtoTCP}, "", "single addresses"},
		{parry.Match{Source: v4, Protocol: parry.ProtoTCP, Port: 22}, "", "ports"},
		{parry.Match{Source: v4, Protocol: parry.ProtoTCP, Interface: "wan"}, "", "interface"},
		{parry.Match{Source: v4, Protocol: parry.ProtoESP}, "protocol esp", "protocol esp"},
	} {
		for m, word := range map[*Manifest]string{all: c.all, least: c.least} {
			err := m.Expresses(c.match)
			if (word == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), word) {
				t.Errorf("%s, %+v: got %v, want %q", m.Name, c.match, err, word)
			}
		}
	}
}
