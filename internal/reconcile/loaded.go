package reconcile

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parry/parry/internal/parry"
)

// readLoaded takes what a verify handed over, if it is what its proof is about.
func readLoaded(text []byte, proof *parry.Proof) ([]parry.LoadedEntry, error) {
	entries, err := parry.ReadLoaded(string(text))
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	var buf []byte
	for i := range entries {
		if buf = append(parry.Entry{Match: entries[i].Match}.AppendKey(buf), '\n'); len(buf) > 31<<10 {
			h.Write(buf)
			buf = buf[:0]
		}
	}
	h.Write(buf)
	if sum := hex.EncodeToString(h.Sum(nil)); sum != proof.SHA256 || len(entries) != proof.Count {
		return nil, fmt.Errorf("it has %d entries (%.12s), the proof is over %d (%.12s)", len(entries), sum, proof.Count, proof.SHA256)
	}
	return entries, nil
}

// proved is what the firewall was proved to hold by a time, from memory or from the directory of the run that proved it; nil when neither has
// just that.
func (l *lane) proved(ctx context.Context, want *parry.Proof, at time.Time) []sentLine {
	file, rejected := l.lastSent(ctx)
	if file == nil {
		return nil
	}
	lines, text := make([]sentLine, 0, want.Count), string(file)
	for i := 0; len(text) > 0; i++ {
		var ln string
		ln, text, _ = strings.Cut(text, "\n")
		if rejected[i] {
			continue
		}
		key, rest := parry.SplitKey(ln)
		s := sentLine{key: key}
		if rest != "-" {
			s.expire, _ = strconv.ParseInt(rest, 10, 64)
		}
		lines = append(lines, s)
	}
	if lines, ok := less(lines, want, at); ok {
		return lines
	}
	return nil
}

// lastSent is the desired file of the last apply that succeeded and which of its lines, from 0, the firewall refused: from memory, else
// from its run's directory; nil when neither has them.
func (l *lane) lastSent(ctx context.Context) (file []byte, rejected map[int]bool) {
	if l.mem.sent != nil || l.r.o.StateDir == "" {
		return l.mem.sent, l.mem.refused
	}
	runs, err := l.r.o.Store.Runs(ctx, parry.RunFilter{Firewall: l.name, State: parry.RunSucceeded, Limit: 1000})
	if err != nil {
		return nil, nil
	}
	i := slices.IndexFunc(runs.Items, func(r parry.Run) bool { return r.Kind == parry.RunApply || r.Kind == parry.RunPanic })
	if i < 0 {
		return nil, nil
	}
	dir := filepath.Join(l.r.o.StateDir, runs.Items[i].Dir)
	var result struct {
		Rejected []struct {
			Line int `json:"line"`
		} `json:"rejected"`
	}
	if b, err := os.ReadFile(filepath.Join(dir, "result.json")); err == nil && json.Unmarshal(b, &result) != nil {
		return nil, nil
	}
	if file, err = os.ReadFile(filepath.Join(dir, "desired.txt")); err != nil {
		return nil, nil
	}
	rejected = map[int]bool{}
	for _, r := range result.Rejected {
		rejected[r.Line-1] = true
	}
	l.mem.sent, l.mem.refused = file, rejected
	return file, rejected
}

// keysOfFile leaves the expiry out of each line of a desired file; nil stays nil.
func keysOfFile(file []byte) []byte {
	if file == nil {
		return nil
	}
	out := make([]byte, 0, len(file))
	for ln := range strings.Lines(string(file)) {
		key, _ := parry.SplitKey(ln)
		out = append(append(out, key...), '\n')
	}
	return out
}

// compare looks into a verify that read something else than was proved, entry by entry. What has merely run out is no drift: then the
// verdict becomes a success over what is left.
func (t *try) compare(ctx context.Context, v *verdict, want parry.Proof) {
	d := parry.Drift{Since: t.now(), RunID: t.run.ID, Rev: t.st.Drift.Rev}
	if t.st.Drift.Open() {
		d.Since = t.st.Drift.Since
	}
	got := t.out.Proof
	d.Exempt = want.ExemptSHA256 != "" && got.ExemptSHA256 != want.ExemptSHA256
	same := got.SHA256 == want.SHA256 && got.Count == want.Count
	defer func() { v.drift = &d }()
	proved := t.proved(ctx, &want, t.now())
	if _, ok := less(proved, got, t.now()); ok && proved != nil && !same && !d.Exempt { // some have merely run out
		v.state, v.failure, v.message = parry.RunSucceeded, "", ""
		v.want.SHA256, v.want.Count, d = got.SHA256, got.Count, parry.Drift{}
		return
	}
	switch {
	case same:
		d.Listed = true
		return
	case t.loaded == nil, proved == nil:
		d.All = true
		return
	}
	name := func(n *int, first *[]string, key string) {
		if *n++; len(*first) < parry.DriftEntries {
			*first = append(*first, strings.Clone(key))
		}
	}
	var key []byte
	k := 0 // both are sorted
	missing := func() {
		if !ended(proved[k].expire, t.now()) {
			name(&d.MissingN, &d.Missing, proved[k].key)
		}
	}
	for i := range t.loaded {
		key = parry.Entry{Match: t.loaded[i].Match}.AppendKey(key[:0])
		for ; k < len(proved) && proved[k].key < string(key); k++ {
			missing()
		}
		if k < len(proved) && proved[k].key == string(key) {
			k++
			continue
		}
		name(&d.ExtraN, &d.Extra, string(key))
	}
	for ; k < len(proved); k++ {
		missing()
	}
	d.Listed = true
	if d.MissingN+d.ExtraN == 0 && !d.Exempt {
		v.state, v.failure, v.message = parry.RunSucceeded, "", ""
		v.want.SHA256, v.want.Count, d = got.SHA256, got.Count, parry.Drift{}
		return
	}
	v.message = d.String()
	t.concerned(ctx, &d)
}

// concerned finds the standing blocks that what is loaded does not drop.
func (t *try) concerned(ctx context.Context, d *parry.Drift) {
	if d.MissingN == 0 {
		return
	}
	table := t.mem.sentNAT
	if table == nil {
		var err error
		if table, err = t.natTable(ctx, t.st, t.fw, &t.bundle.Manifest); err != nil {
			d.All = true
			return
		}
	}
	entries := make([]parry.Entry, len(t.loaded))
	for i := range t.loaded {
		entries[i].Match = t.loaded[i].Match
	}
	in := newCoverage(entries, nil)
	rr := &renderer{firewall: t.fw, manifest: &t.bundle.Manifest, nat: table}
	blocks, _ := t.r.view.in(t.sc)
	var to []parry.Match
	for i := range blocks {
		b := &blocks[i]
		if _, no := t.mem.rejected[b.id]; no || b.rev > t.st.AppliedRev || t.bundle.Manifest.Timeouts && ended(b.expires, t.now()) {
			continue
		}
		var code string
		if to, code = rr.resolve(to[:0], b.Match); code == "" && slices.ContainsFunc(to, func(m parry.Match) bool { return !in.covers(m) }) {
			d.Blocks = append(d.Blocks, b.id)
		}
	}
	if len(d.Blocks) > parry.DriftBlocks {
		d.Blocks, d.All = nil, true
	}
	slices.SortFunc(d.Blocks, func(a, b parry.BlockID) int { return cmp.Compare(a, b) })
}
