package parry

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of a Drift: it names so many entries of each kind and so many blocks; beyond it counts.
const (
	DriftEntries = 100
	DriftBlocks  = 1000
)

// Drift is what a verify found to differ from what was proved, until a run counts again. The zero Drift is none.
type Drift struct {
	Since    time.Time `json:"since"`
	RunID    RunID     `json:"run_id"`            // the verify that found it last
	Rev      Revision  `json:"rev"`               // at which it made the firewall dirty; the store's to set
	Listed   bool      `json:"listed"`            // the bundle hands over its entries; else no more is known than that they differ
	Missing  []string  `json:"missing,omitempty"` // the first entries that should be loaded and are not: "source destination protocol port interface"
	MissingN int       `json:"missing_n"`
	Extra    []string  `json:"extra,omitempty"` // the first that are loaded and should not be
	ExtraN   int       `json:"extra_n"`
	Exempt   bool      `json:"exempt,omitempty"` // the exemptions ahead of the drops differ
	Blocks   []BlockID `json:"blocks,omitempty"` // whose traffic is not dropped, sorted
	All      bool      `json:"all,omitempty"`    // so many are concerned, or so little is known, that each counts as such
}

// Open tells whether there is one.
func (d *Drift) Open() bool { return !d.Since.IsZero() }

// Concerns tells whether the drift left the block's traffic through.
func (d *Drift) Concerns(id BlockID) bool {
	if !d.Open() {
		return false
	}
	_, ok := slices.BinarySearch(d.Blocks, id)
	return ok || d.All
}

// Loaded is what a firewall held when it was last read, entry by entry.
type Loaded struct {
	At    time.Time
	RunID RunID
	Count int
	Text  []byte // contract 1's loaded file, checked: "source destination protocol port interface expires packets bytes" a line
}

// LoadedEntry is one line of it.
type LoadedEntry struct {
	Match
	Expires int64 // Unix seconds; 0: the firewall keeps none
	Packets int64 // dropped since it was loaded; -1: not known
	Bytes   int64
}

// Reality is what is known of what a firewall really holds.
type Reality string

const (
	RealityOK      Reality = "ok"      // read back, and as it was proved
	RealityDrifted Reality = "drifted" // read back, and something else than was proved
	RealityUnknown Reality = "unknown" // never read, not readable now, or not read for too long
)

// ReadingGood is for how long a reading tells what a firewall holds, where it is verified so often: two verifies may be missed.
func ReadingGood(verifyEvery time.Duration) time.Duration { return 3*verifyEvery + time.Minute }

// Reality tells what is known at a time, where a reading is good for so long. What is in force is then as it was last proved.
func (s *FirewallState) Reality(now time.Time, good time.Duration) Reality {
	switch {
	case s.Drift.Open():
		return RealityDrifted
	case s.ProvedAt.IsZero(), s.Incident.Open() && !s.Incident.Failure.Refused() && s.Incident.Failure != FailProof,
		s.Incident.Failure.Unread(), good > 0 && now.Sub(s.ProvedAt) > good:
		return RealityUnknown
	}
	return RealityOK
}

// Unread tells whether a run that failed so could not read the firewall at all.
func (f Failure) Unread() bool {
	return f == FailUnreachable || f == FailAuthentication || f == FailHostKey || f == FailForeignController || f == FailDuplicateMachine
}

// String says it in one line: "2 entries are missing, 1 is not ours: -203.0.113.7 - - - wan, …".
func (d *Drift) String() string {
	var parts []string
	count := func(n int, one, many string) {
		switch {
		case n == 1:
			parts = append(parts, "1 entry "+one)
		case n > 1:
			parts = append(parts, strconv.Itoa(n)+" entries "+many)
		}
	}
	count(d.MissingN, "is missing", "are missing")
	count(d.ExtraN, "is loaded that was not sent", "are loaded that were not sent")
	if d.Exempt {
		parts = append(parts, "other exemptions stand ahead of the drops")
	}
	if len(parts) == 0 {
		parts = append(parts, "it holds something else than was proved")
	}
	s := strings.Join(parts, ", ")
	if names := d.Lines(5); len(names) > 0 {
		s += ": " + strings.Join(names, "; ")
	}
	return s
}

// Lines names the first entries: "- ENTRY" for a missing one, "+ ENTRY" for one too many, and last how many more there are.
func (d *Drift) Lines(most int) []string {
	var out []string
	for _, k := range d.Missing {
		out = append(out, "- "+k)
	}
	for _, k := range d.Extra {
		out = append(out, "+ "+k)
	}
	out = out[:min(len(out), most)]
	if more := d.MissingN + d.ExtraN - len(out); more > 0 && len(out) > 0 {
		out = append(out, "and "+strconv.Itoa(more)+" more")
	}
	return out
}
