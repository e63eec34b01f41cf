package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/parry/parry/internal/parry"
)

// Fleet makes the nouns of the listed firewalls. connection says where the inventory has one ("192.0.2.1:22", empty for unknown): it goes
// into the digest, because another machine at the end of the line holds other entries.
func (c *Config) Fleet(connection func(name string) string) *parry.Fleet {
	f := &parry.Fleet{Default: parry.ParseSelector(c.DefaultFirewalls...)}
	for _, fw := range c.Firewalls {
		groups := slices.Clone(fw.Groups)
		slices.Sort(groups)
		n := parry.Firewall{
			Name: fw.Name, Groups: slices.Compact(groups), Bundle: fw.Bundle, Pin: fw.Pin, Canary: fw.Canary, Settings: fw.Settings,
			Interface: fw.Interface, Interfaces: fw.Interfaces, MaxRules: fw.MaxRules, Simulate: fw.Simulate || c.Simulate.All, NAT: fw.NAT.noun(),
		}
		f.Firewalls = append(f.Firewalls, n)
	}
	slices.SortFunc(f.Firewalls, func(a, b parry.Firewall) int { return strings.Compare(a.Name, b.Name) })
	for i := range f.Firewalls {
		fw := &f.Firewalls[i]
		fw.Digest = digest(fw, connection(fw.Name), f.Selects(parry.SelectDefault, fw))
	}
	return f
}

func digest(fw *parry.Firewall, connection string, byDefault bool) string {
	b, err := json.Marshal(struct { // maps are written with sorted keys
		*parry.Firewall
		Connection string
		Default    bool
	}{fw, connection, byDefault})
	if err != nil {
		b = fmt.Appendf(nil, "%+v %s %v", *fw, connection, byDefault) // a setting that JSON has no word for (.inf); fmt sorts maps too
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Exempt is the configured never-block list as nouns.
func (c *Config) Exempt() []parry.Exemption {
	out := make([]parry.Exemption, 0, len(c.Exemptions))
	for _, e := range c.Exemptions {
		out = append(out, parry.Exemption{
			ID: parry.ExemptionID("cfg:" + e.Prefix.String()), Prefix: e.Prefix.Prefix, Reason: e.Reason,
			Source: parry.ExemptConfig, CreatedBy: "configuration",
		})
	}
	return out
}
