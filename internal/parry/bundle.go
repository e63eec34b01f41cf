package parry

import (
	"slices"
	"time"
)

// Pin keeps firewalls on one copy of a bundle by an operator's word.
type Pin struct {
	Bundle   string
	Firewall string // empty: every firewall of the bundle
	Digest   string
	Version  string
	By       string
	At       time.Time
}

// Release is the version of a bundle with a canary that the other firewalls follow.
type Release struct {
	Digest  string    `json:"digest"`
	Version string    `json:"version"`
	By      string    `json:"by"` // whoever gave the word, or the last canary that passed
	At      time.Time `json:"at"`
}

// Trial is how far a new version has come on the canaries of its bundle. One that no canary has touched yet has none.
type Trial struct {
	Digest   string         `json:"digest"`
	Version  string         `json:"version"`
	Passed   []string       `json:"passed,omitempty"` // canaries that have proved it
	Refused  bool           `json:"refused"`          // a canary failed with it: nobody takes it
	Firewall string         `json:"firewall,omitempty"`
	Run      RunID          `json:"run,omitempty"`
	Why      string         `json:"why,omitempty"` // hostile text
	At       time.Time      `json:"at"`
	Told     NotificationID `json:"told,omitempty"` // the report of the refusal
}

// BundleState is what the store knows of a bundle: the same for every replica.
type BundleState struct {
	Name    string
	Pins    []Pin
	Release Release // zero: there is no canary
	Trial   Trial
	Problem BundleProblem
}

// Pin finds the word that holds for a firewall: its own before the bundle's.
func (s *BundleState) Pin(firewall string) (Pin, bool) {
	for _, name := range []string{firewall, ""} {
		if i := slices.IndexFunc(s.Pins, func(p Pin) bool { return p.Firewall == name }); i >= 0 {
			return s.Pins[i], true
		}
	}
	return Pin{}, false
}

// ByConfiguration is who pins a firewall by its `pin`.
const ByConfiguration = "configuration"

// Choice is the copy of its bundle that a firewall is to be converged with.
type Choice struct {
	Digest   string
	PinnedBy string // ByConfiguration, or a token's name; empty: it follows
	Trial    bool   // it is new, and the firewall a canary that is to prove it
}

// Choose tells what a firewall is to be converged with: what it is pinned to, by the configuration before an operator's word for it before one
// for its bundle; else the current copy, or, beside a canary, the release.
func (f *Fleet) Choose(s *BundleState, fw *Firewall, current string) Choice {
	if fw.Pin != "" {
		return Choice{Digest: fw.Pin, PinnedBy: ByConfiguration}
	}
	if p, ok := s.Pin(fw.Name); ok {
		return Choice{Digest: p.Digest, PinnedBy: p.By}
	}
	switch {
	case !f.HasCanary(fw.Bundle), s.Release.Digest == "", s.Release.Digest == current:
		return Choice{Digest: current}
	case fw.Canary && current != "" && !(s.Trial.Refused && s.Trial.Digest == current):
		return Choice{Digest: current, Trial: true}
	}
	return Choice{Digest: s.Release.Digest}
}

// HasCanary tells whether new versions of a bundle go to canaries first.
func (f *Fleet) HasCanary(bundle string) bool {
	return slices.ContainsFunc(f.Firewalls, func(fw Firewall) bool { return fw.Canary && fw.Bundle == bundle })
}

// Canaries are the firewalls that must prove a new version of the bundle, and those that follow then; who is pinned is of neither.
func (f *Fleet) Canaries(b *BundleState) (canaries, others []string) {
	for i := range f.Firewalls {
		fw := &f.Firewalls[i]
		if _, pinned := b.Pin(fw.Name); pinned || fw.Pin != "" || fw.Bundle != b.Name {
			continue
		}
		if fw.Canary {
			canaries = append(canaries, fw.Name)
		} else {
			others = append(others, fw.Name)
		}
	}
	return canaries, others
}

// BundleProblem is what is wrong with the newest edit of a bundle whose last good copy goes on. The zero BundleProblem is none.
type BundleProblem struct {
	Text    string         `json:"text"` // hostile text
	Replica string         `json:"replica"`
	Since   time.Time      `json:"since"`
	Seen    time.Time      `json:"seen"`
	Told    NotificationID `json:"told,omitempty"`
}

// Tried is what a run has shown of a bundle's new version on a canary.
type Tried struct {
	Bundle   BundleRef
	Refused  bool
	Why      string
	Told     NotificationID
	Over     []Notification // to tell when the others follow and an earlier refusal was told; the store threads it
	Canaries []string       // all that must pass
	Others   []string       // the firewalls that follow then
}

// BundleUse is one copy that kept runs of a firewall name.
type BundleUse struct {
	Firewall string
	Bundle   BundleRef
	Applied  RunID // the last apply that succeeded
	Proved   bool  // a verify has confirmed such an apply
	Last     RunID // of any kind and end
}

// BundleView is a bundle as one replica sees it.
type BundleView struct {
	BundleState
	Source    string // directory
	Current   BundleRef
	Bad       string   // what is wrong with the newest edit, on this replica; hostile text
	Waits     []string // why firewalls do not follow the current copy
	Copies    []BundleCopy
	Firewalls []BundleFirewall
}

// BundleCopy is a copy that the replica keeps.
type BundleCopy struct {
	BundleRef
	Taken   time.Time
	Became  time.Time // current, last
	Current bool
	Proved  bool     // a firewall has applied it, and a verify confirmed that
	UsedBy  []string // firewalls that were converged with it last
}

// BundleFirewall is how a firewall stands to its bundle.
type BundleFirewall struct {
	Name   string
	Canary bool
	Used   BundleRef // by the last apply that succeeded
	Choice Choice
}

// BundleChecked is what came of looking at a bundle's source.
type BundleChecked struct {
	Bundle   BundleRef // the copy that is current now
	Problems []string  // none: the source can be used
	Run      RunID     // of the check on a firewall; empty: none
}

// BundleChosen is what came of a word.
type BundleChosen struct {
	Bundle  BundleRef // Digest is empty when the word was taken back
	Proved  bool
	Affects []string // firewalls that take it up
	Stay    []string // firewalls of the bundle that do not, and why: one line each
}

// Check is an operator's word to run a bundle in check mode against a firewall. Nothing is changed by it.
type Check struct {
	RunID    RunID // of the run that does it, made beforehand
	Firewall string
	Bundle   string
	Digest   string
	By       string
	At       time.Time
}
