package reconcile

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/parry/parry/internal/parry"
)

// Bounds of a change that is made without an approval.
type Bounds struct {
	Remove        int           // entries that may go although no block of theirs has ended; 0 is 20
	RemovePercent int           // of those sent last, where that is more; 0 is 30
	Add           int           // entries that may come in one run; 0 is any number: admission bounds them
	Expire        time.Duration // an approval that nobody decides is asked for anew after so long; 0 is a week
}

func (b *Bounds) setDefaults() {
	if b.Remove <= 0 {
		b.Remove = 20
	}
	if b.RemovePercent <= 0 {
		b.RemovePercent = 30
	}
	if b.Expire <= 0 {
		b.Expire = 7 * 24 * time.Hour
	}
}

// removals is how many entries of so many may go unasked.
func (b *Bounds) removals(of int) int { return max(b.Remove, of*b.RemovePercent/100) }

// change is what an apply would do to the entries that were sent last.
type change struct {
	of      int
	removed []string // sorted: those that go although no block of theirs has ended and no wider entry covers them
	n       int      // how many these are
	ended   int      // go because their blocks have ended
	added   []string // sorted
	known   bool     // which entries these are; else only n and the length of added are near
}

// change compares a rendering with what was sent last. Where neither bound can be passed it does not look closely.
func (l *lane) change(ctx context.Context, st *parry.FirewallState, r *rendering, rr *renderer, sc *scope) (c change, err error) {
	if st.ProvedAt.IsZero() {
		return c, nil
	}
	var gone []string
	file, _ := l.lastSent(ctx)
	if old := keysOfFile(file); old != nil {
		c.known, c.of, gone, c.added = true, bytes.Count(old, []byte{'\n'}), r.missing(old), r.fresh(old)
		c.n = len(gone)
	} else { // only the count is known
		c.of, c.n = st.Proof.Count, max(0, st.Proof.Count-len(r.lines))
		c.added = make([]string, max(0, len(r.lines)-st.Proof.Count))
	}
	if !l.over(&c) {
		return c, nil
	}
	ch, err := l.r.o.Store.Changes(ctx, st.AppliedRev)
	if err != nil {
		return c, err
	}
	var endedBlocks []standing
	for i := range ch.Blocks {
		if b := &ch.Blocks[i]; !b.Live() && sc.has(b.Selector) {
			endedBlocks = append(endedBlocks, stand(b))
		}
	}
	if !c.known {
		c.ended = min(c.n, len(endedBlocks))
		c.n -= c.ended
		return c, nil
	}
	ended := map[string]bool{}
	explain := func(rr renderer, blocks []standing) {
		for i := range blocks {
			all, _ := rr.resolve(nil, blocks[i].Match)
			for _, m := range all {
				ended[string(parry.Entry{Match: m}.AppendKey(nil))] = true
			}
		}
	}
	explain(*rr, endedBlocks)
	if was := *rr; l.mem.sentNAT != nil { // what stands may have moved with the forwards
		was.nat = l.mem.sentNAT
		blocks, _ := l.r.view.in(sc)
		explain(was, append(blocks, endedBlocks...))
	}
	entries := make([]parry.Entry, 0, len(r.lines))
	for i := range r.lines {
		if m, ok := parry.ParseKey(r.lines[i].key); ok {
			entries = append(entries, parry.Entry{Match: m})
		}
	}
	still := newCoverage(entries, nil)
	for _, k := range gone {
		switch m, ok := parry.ParseKey(k); {
		case ended[k]:
			c.ended++
		case ok && !still.covers(m):
			c.removed = append(c.removed, k)
		}
	}
	c.n = len(c.removed)
	return c, nil
}

// over tells whether the change passes a bound.
func (l *lane) over(c *change) bool {
	b := &l.r.o.Bounds
	return c.n > b.removals(c.of) || b.Add > 0 && len(c.added) > b.Add
}

func (c *change) why(b *Bounds) string {
	var why []string
	if c.n > b.removals(c.of) {
		why = append(why, fmt.Sprintf("%d of %d entries would be removed although no block of theirs has ended", c.n, c.of))
	}
	if b.Add > 0 && len(c.added) > b.Add {
		why = append(why, fmt.Sprintf("%d entries would be added in one run", len(c.added)))
	}
	return strings.Join(why, ", and ")
}

// diff is the change for people, and what an approval is bound to.
func (c *change) diff() parry.Diff {
	if !c.known {
		return nil
	}
	d := make(parry.Diff, 0, len(c.removed)+len(c.added))
	for _, k := range c.removed {
		d = append(d, "- "+k)
	}
	for _, k := range c.added {
		d = append(d, "+ "+k)
	}
	return d
}

// approval is what there is to say of a change: nothing, when it may be made.
type approval struct {
	why  string           // it may not be made
	ask  *parry.Approval  // to be asked for; nil: somebody was asked already, or has denied it
	diff parry.Diff       // of ask
	used parry.ApprovalID // that lets it be made
}

// mayMake holds a change against the bounds, and then against the firewall's open approval. That is for the change which it shows: less of it is
// covered, and so is what goes beyond it by no more than the bounds. A larger change is asked for anew.
func (l *lane) mayMake(ctx context.Context, st *parry.FirewallState, c change) (v approval, err error) {
	if !l.over(&c) {
		return v, nil
	}
	b, now := &l.r.o.Bounds, l.now()
	v.why = c.why(b)
	if open := st.Approval; open.ID != "" && !open.Due(now) {
		a, err := l.r.o.Store.Approval(ctx, open.ID)
		if err != nil {
			return v, err
		}
		diff, err := l.r.o.Store.ApprovalDiff(ctx, open.ID)
		if err != nil {
			return v, err
		}
		if rest := c.beyond(&a, diff); !l.over(&rest) {
			switch a.State {
			case parry.ApprovalApproved:
				return approval{used: a.ID}, nil
			case parry.ApprovalDenied:
				v.why += "; denied by " + a.DecidedBy
			}
			return v, nil
		}
	}
	v.diff = c.diff()
	v.ask = &parry.Approval{
		ID: parry.NewApprovalID(now), Firewall: l.name, State: parry.ApprovalWaiting, Why: v.why, Revision: st.AppliedRev, CreatedAt: now,
		ExpiresAt: now.Add(b.Expire), Of: c.of, Removed: c.n, Ended: c.ended, Added: len(c.added), Known: c.known,
	}
	return v, nil
}

// beyond is what of the change an approval does not show.
func (c *change) beyond(a *parry.Approval, shown parry.Diff) change {
	rest := change{of: c.of, known: c.known}
	if !a.Known || !c.known {
		rest.n, rest.added = max(0, c.n-a.Removed), make([]string, max(0, len(c.added)-a.Added))
		return rest
	}
	has := make(map[string]bool, len(shown))
	for _, l := range shown {
		has[l] = true
	}
	for _, k := range c.removed {
		if !has["- "+k] {
			rest.n++
		}
	}
	rest.added = slices.DeleteFunc(slices.Clone(c.added), func(k string) bool { return has["+ "+k] })
	return rest
}
