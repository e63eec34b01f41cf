package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/parry/parry/internal/hooks"
	"github.com/parry/parry/internal/parry"
)

// Hooks is what SIEMs' own words mean here: their agents, their deletes, their alerts.
type Hooks struct {
	Agents       map[string][]string `yaml:"agents"`        // agent's name or id → firewalls and groups
	HonourDelete bool                `yaml:"honour_delete"` // a SIEM may end the blocks that it made
	Wazuh        WazuhHook           `yaml:"wazuh"`
}

// WazuhHook says which alerts of POST /api/v1/hooks/wazuh become blocks.
type WazuhHook struct {
	MinLevel int                 `yaml:"min_level"`
	Rules    map[string]Duration `yaml:"rules"`    // rule id or group → TTL, 0 for the default; empty: every rule
	Internal []Prefix            `yaml:"internal"` // one's own side, beside the exemptions
}

const maxAgentName = 128 // as in a block request

// AgentSelector is what the agent of a name or id stands for; false when it is not listed.
func (h *Hooks) AgentSelector(agent string) (parry.Selector, bool) {
	names, ok := h.Agents[agent]
	return parry.ParseSelector(names...), ok
}

// Settings are the hook's, for package hooks.
func (w *WazuhHook) Settings() hooks.Settings {
	s := hooks.Settings{MinLevel: w.MinLevel, Rules: make(map[string]time.Duration, len(w.Rules))}
	for rule, ttl := range w.Rules {
		s.Rules[rule] = ttl.D()
	}
	s.Internal = func(a netip.Addr) string {
		for _, p := range w.Internal {
			if p.Contains(a) {
				return fmt.Sprintf("%s lies in %s, which is our own side (hooks.wazuh.internal)", a, p)
			}
		}
		return ""
	}
	return s
}

// hooks holds the agents' selectors against the fleet.
func (v *validator) hooks(h *Hooks, fleet *parry.Fleet) {
	for _, agent := range slices.Sorted(maps.Keys(h.Agents)) {
		key := "hooks.agents." + agent
		v.require(agent != "" && len(agent) <= maxAgentName, key, "an agent's name or id has 1 to %d bytes", maxAgentName)
		if names := h.Agents[agent]; len(names) == 0 {
			v.add(key, "write firewalls or groups: %s: [fw-a]", agent)
		} else if err := fleet.Check(parry.ParseSelector(names...)); err != nil {
			v.add(key, "%v", err)
		}
	}
	w := &h.Wazuh
	v.count("hooks.wazuh.min_level", int64(w.MinLevel), 0, 16)
	for _, rule := range slices.Sorted(maps.Keys(w.Rules)) {
		key := "hooks.wazuh.rules." + rule
		v.require(rule != "", key, "write a rule's id or group")
		if ttl := w.Rules[rule]; ttl != 0 {
			v.within(key, ttl, time.Second, 10*year)
		}
	}
	for i, p := range w.Internal {
		v.require(p.IsValid() && p.Bits() > 0, fmt.Sprintf("hooks.wazuh.internal[%d]", i), "%s would make everything internal; write your own networks", p)
	}
}
