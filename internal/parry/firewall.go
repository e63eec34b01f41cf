package parry

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Firewall is what configuration and inventory say of one inventory host.
type Firewall struct {
	Name       string // ^[a-z0-9][a-z0-9-]*$, an inventory host
	Groups     []string
	Bundle     string // directory name below the bundle root: "pfsense"
	Pin        string // digest of the bundle to stay on; empty is the current one
	Settings   map[string]any
	Interface  string            // what an empty Match.Interface means: "wan"; "any" is every interface
	Interfaces map[string]string // names that people use → the firewall's own: "dmz" → "opt1"
	MaxRules   int
	NAT        NAT    `json:",omitzero"`
	Simulate   bool   `json:"-"` // nothing is applied; what would be is shown
	Canary     bool   `json:"-"` // takes a new version of its bundle before the others do
	Digest     string // SHA-256 over all of the above and the connection: a change makes the firewall dirty
}

// NAT is what the configuration says of a firewall's port forwards.
type NAT struct {
	Forwards     []PortForward `json:",omitempty"`
	IgnoreItsOwn bool          `json:",omitempty"` // what the firewall tells does not count
}

// Fleet is every firewall that the configuration lists, sorted by name, and what "default" means.
type Fleet struct {
	Firewalls []Firewall
	Default   Selector // never "default" itself
}

// Firewall finds one by name.
func (f *Fleet) Firewall(name string) (*Firewall, bool) {
	i := slices.IndexFunc(f.Firewalls, func(fw Firewall) bool { return fw.Name == name })
	if i < 0 {
		return nil, false
	}
	return &f.Firewalls[i], true
}

// Selects tells whether the selector means the firewall today. Names that mean nothing are passed over.
func (f *Fleet) Selects(s Selector, fw *Firewall) bool {
	for _, n := range s.Names() {
		switch {
		case n == string(SelectAll), n == fw.Name, slices.Contains(fw.Groups, n):
			return true
		case n == string(SelectDefault) && f.Default != SelectDefault && f.Selects(f.Default, fw):
			return true
		}
	}
	return false
}

// Scope lists the firewalls that a selector means today.
func (f *Fleet) Scope(s Selector) []*Firewall {
	var out []*Firewall
	for i := range f.Firewalls {
		if f.Selects(s, &f.Firewalls[i]) {
			out = append(out, &f.Firewalls[i])
		}
	}
	return out
}

// Check refuses a selector that holds a name which means nothing, and names what there is.
func (f *Fleet) Check(s Selector) error {
	known := []string{string(SelectDefault), string(SelectAll)}
	for _, fw := range f.Firewalls {
		known = append(append(known, fw.Name), fw.Groups...)
	}
	for _, n := range s.Names() {
		if !slices.Contains(known, n) {
			slices.Sort(known)
			return fmt.Errorf("%q is no firewall or group; there are %s", n, strings.Join(slices.Compact(known), ", "))
		}
	}
	return nil
}

// HoldKind is what a hold comes from.
type HoldKind string

const (
	HoldWord  HoldKind = "hold"  // an operator's word: nothing is applied, what is loaded stays
	HoldPanic HoldKind = "panic" // an operator's word: the firewall is emptied, and kept so until the panic is over
	HoldFlush HoldKind = "flush" // flush.yml, run by hand: the firewall is empty and keeps itself so until it is adopted
)

// Hold stops applying to a firewall while accepting goes on. The zero Hold is none.
type Hold struct {
	Kind   HoldKind // empty is HoldWord
	By     string
	Reason string // inert text
	Since  time.Time
	Until  time.Time // it ends by itself then; zero: when it is released
}

// Held tells whether there is one.
func (h Hold) Held() bool { return !h.Since.IsZero() }

// String says it in a few words: "held by anna until 2026-11-28T15:00:00Z: maintenance". The reason is a caller's: inert text.
func (h Hold) String() string {
	s := "held by " + h.By
	switch h.Kind {
	case HoldPanic:
		s = "in panic by " + h.By
	case HoldFlush:
		s = "emptied " + h.By
	}
	if !h.Until.IsZero() {
		s += " until " + h.Until.UTC().Format(time.RFC3339)
	}
	if h.Reason != "" {
		s += ": " + h.Reason
	}
	return s
}

// Incident is a firewall's trouble, from the first failed run until a run succeeds. The zero Incident is none.
type Incident struct {
	ID       NotificationID // stable: threads its mails
	Since    time.Time
	Failure  Failure
	Began    time.Time // of Failure: another one may have opened the incident
	Message  string    // of the newest failure; hostile text, show it inert
	Attempts int       // failed runs so far
	NextTry  time.Time
}

// Open tells whether there is one.
func (i Incident) Open() bool { return !i.Since.IsZero() }

// Proof is what a firewall reports after a run: what is really loaded.
type Proof struct {
	SHA256     string `json:"sha256"` // hex, over the sorted keys of the loaded entries
	Count      int    `json:"count"`
	Added      int    `json:"added"`
	Removed    int    `json:"removed"`
	Rules      int    `json:"rules"`
	Capacity   int    `json:"capacity"` // entries that the firewall can hold; 0 when it does not say
	Epoch      int64  `json:"epoch"`
	Controller string `json:"controller"`
	MachineID  string `json:"machine_id"`
	BootID     string `json:"boot_id,omitempty"` // another one after a reboot
	RunID      string `json:"run_id"`

	ExemptSHA256 string `json:"exempt_sha256,omitempty"` // hex, over the sorted exemptions that are loaded ahead of the drops; empty: the bundle takes none
	ExemptCount  int    `json:"exempt_count,omitempty"`
}

// FirewallFacts is what a firewall says of itself: hostile until checked, hence bounded and of single addresses only.
type FirewallFacts struct {
	Addresses []netip.Addr  `json:"addresses,omitempty"`
	Gateways  []netip.Addr  `json:"gateways,omitempty"`
	Resolvers []netip.Addr  `json:"resolvers,omitempty"`
	Forwards  []PortForward `json:"forwards,omitempty"`
}

// Canonical sorts the addresses and leaves repeats out, so that facts can be compared. The order of forwards says which one counts.
func (f *FirewallFacts) Canonical() {
	for _, all := range []*[]netip.Addr{&f.Addresses, &f.Gateways, &f.Resolvers} {
		*all = slices.Clone(*all)
		slices.SortFunc(*all, netip.Addr.Compare)
		*all = slices.Compact(*all)
	}
}

// PortForward is destination NAT: what arrives for Destination goes on to To. Its filter rules see To.
type PortForward struct {
	Destination netip.Addr `json:"destination"`
	Protocol    Protocol   `json:"protocol,omitempty"` // empty: every protocol and port, as 1:1 NAT does
	Port        uint16     `json:"port,omitempty"`     // 0: every port
	PortEnd     uint16     `json:"port_end,omitempty"` // the last one of a range; Port where it is none
	To          netip.Addr `json:"to"`
	ToPort      uint16     `json:"to_port,omitempty"` // of Port; those after it follow
}

// FirewallState is what the store knows of a firewall.
type FirewallState struct {
	Name       string
	Listed     bool // the configuration has it
	Retiring   bool // being emptied, by an operator's word
	Digest     string
	AppliedRev Revision
	DirtyRev   Revision // its scope, settings or bundle changed
	SentRev    Revision // the highest that a run may have brought to it, whether it counted or not
	VerifyRev  Revision // the operator's word, given then, that it be read back; 0: none that waits
	FactsRev   Revision // when what it says of itself last changed; 0: it has said nothing
	Epoch      int64
	Adopt      bool // the operator's word that the next run may take the firewall over
	Approval   OpenApproval
	Simulate   bool       // by the configuration: nothing is applied
	Simulation Simulation // what the last run in check mode showed; zero: there was none
	Hold       Hold       // a panic; else its own or the one for all, whichever lasts longer
	PanicRev   Revision   // when the panic began that Hold tells of; 0: none
	EmptiedRev Revision   // when a panic's run last proved that nothing is loaded
	Incident   Incident
	Proof      Proof // of the last run that counted
	ProvedAt   time.Time
	ProvedAs   string // Digest at that time: another one may mean another machine, which is read before it is written
	Drift      Drift  // what a verify found to differ since
	LastRun    RunID
	Check      RunID // of a run in check mode that somebody asked for and that waits; empty: none
}

// Simulation is what a run in check mode has shown of a firewall that is simulated, or of blocks that are.
type Simulation struct {
	RunID    RunID     `json:"run_id"`
	At       time.Time `json:"at"`
	Revision Revision  `json:"revision"` // of the desired state
	Entries  int       `json:"entries"`  // that the firewall would hold
	Added    int       `json:"added"`
	Removed  int       `json:"removed"`
	Rejected int       `json:"rejected"`
	First    []string  `json:"first"` // the first lines of the diff
	Lines    int       `json:"lines"` // how many there are
}

// Brake is what keeps a firewall as it is by somebody's will: a hold, or flush.yml run by hand. The zero Hold: nothing does.
func (s *FirewallState) Brake() Hold {
	if !s.Hold.Held() && s.Incident.Failure == FailFlushed {
		since := s.Incident.Began
		if since.IsZero() {
			since = s.Incident.Since
		}
		return Hold{Kind: HoldFlush, By: "by hand (flush.yml)", Since: since}
	}
	return s.Hold
}

// Emptied tells whether the panic that is on has been carried out: the firewall has proved that nothing is loaded.
func (s *FirewallState) Emptied() bool { return s.PanicRev > 0 && s.EmptiedRev >= s.PanicRev }

// Converged tells whether all up to rev is applied.
func (s *FirewallState) Converged(rev Revision) bool {
	return s.AppliedRev >= rev && s.DirtyRev <= s.AppliedRev
}

// Reject is one block that a firewall cannot take; the others go on.
type Reject struct {
	Firewall string
	BlockID  BlockID
	Code     string // contract 1's reject code, or a renderer's
	RunID    RunID
	At       time.Time
}

// State is a block's state on one firewall: derived, never stored.
type State string

const (
	StatePending   State = "pending"
	StateEnforced  State = "enforced"
	StateDrifted   State = "drifted" // was in force, and a verify found that it is not; being repaired
	StateRejected  State = "rejected"
	StateHeld      State = "held"
	StateSimulated State = "simulated" // would be there, were the firewall or the rule that asked not simulated
	StateDegraded  State = "degraded"  // should be there, and the lane is failing
	StateLifting   State = "lifting"
	StateLifted    State = "lifted"
)

// Derive reads a block's state on a firewall in its scope off the revisions. rejected tells whether the firewall has a Reject for it.
func Derive(b *Block, fw *FirewallState, rejected bool) State {
	if !b.Live() {
		switch {
		case b.EndRev <= fw.AppliedRev, rejected, fw.Emptied(), b.Simulated:
			return StateLifted
		default:
			return StateLifting
		}
	}
	switch {
	case b.Simulated:
		return StateSimulated
	case rejected:
		return StateRejected
	case b.Rev <= fw.AppliedRev && fw.PanicRev == 0 && fw.Drift.Concerns(b.ID):
		return StateDrifted
	case b.Rev <= fw.AppliedRev && (fw.DirtyRev <= fw.AppliedRev || fw.PanicRev == 0 && fw.Drift.Open() && fw.DirtyRev == fw.Drift.Rev):
		return StateEnforced
	case fw.PanicRev > 0 && !fw.Emptied() && b.Rev <= fw.AppliedRev:
		return StateLifting // by a panic: it may still be loaded
	case fw.Simulate:
		return StateSimulated
	case fw.Brake().Held():
		return StateHeld
	case fw.Incident.Open():
		return StateDegraded
	default:
		return StatePending
	}
}

// ListedAddr pairs an address that belongs to the infrastructure with why, for exemptions that are found.
type ListedAddr struct {
	Prefix netip.Prefix
	Why    string
}
