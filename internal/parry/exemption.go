package parry

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Exemption is an entry of the never-block list. A block overlaps it when either prefix contains the other.
type Exemption struct {
	ID        ExemptionID
	Prefix    netip.Prefix
	Reason    string
	Source    ExemptionSource
	CreatedBy string
	CreatedAt time.Time
	ExpiresAt time.Time // zero: without end
	Fleeting  bool      // found by what comes and goes (a caller, a name's addresses): it is held against blocks, and not told to firewalls
}

// ExemptFile is the exemptions as contract 1's exempt file has them: what firewalls put ahead of their drops, as a second line of defence.
type ExemptFile struct {
	Text   []byte // one a line, canonical, sorted bytewise, nested ones left out; never nil
	SHA256 string // hex, over Text
	Count  int
}

// NewExemptFile writes the prefixes, which are masked and unmapped, in any order.
func NewExemptFile(all []netip.Prefix) ExemptFile {
	all = slices.Clone(all)
	slices.SortFunc(all, netip.Prefix.Compare) // one that contains another comes before it, and nothing else in between
	var lines []string
	var last netip.Prefix
	for _, p := range all {
		if last.IsValid() && last.Overlaps(p) {
			continue
		}
		last = p
		lines = append(lines, FormatPrefix(p)+"\n")
	}
	slices.Sort(lines)
	f := ExemptFile{Text: []byte(strings.Join(lines, "")), Count: len(lines)}
	sum := sha256.Sum256(f.Text)
	f.SHA256 = hex.EncodeToString(sum[:])
	return f
}

// ExemptionSource is where an exemption comes from; only KindAPI ones can be taken out by request.
type ExemptionSource string

const (
	ExemptAPI    ExemptionSource = "api"
	ExemptConfig ExemptionSource = "config"
	ExemptFound  ExemptionSource = "found"
)
