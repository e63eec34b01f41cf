package reconcile

import (
	"context"
	"slices"
	"time"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/parry"
)

// A firewall whose bundle has `timeouts` ends each entry by itself, when its line said. A repeated request moves a block's end without a
// revision, so that nothing un-enforces; the lane sees to it that the firewall learns of the new end before the old one comes, together with
// all others that moved meanwhile.
const (
	endsLook    = 2 * time.Second  // so often at most are the ends looked through
	endsMargin  = 2 * time.Minute  // so long before an old end the new one is sent; less where little was left as it was sent
	endsGather  = 10 * time.Second // an end that moved forward waits so long for others
	endsEvery   = 5 * time.Second  // so often at most is a run begun for ends alone
	endsLeast   = 10 * time.Second // contract 1: what has less left is loaded for so long
	endsUnequal = 5 * time.Second  // so far the firewall's clock and its way of counting may be off
)

// ends is what a lane knows of a firewall that ends entries by itself.
type ends struct {
	sent   map[parry.BlockID]int64 // until when a block stood as it was told, Unix seconds, 0 for ever; nil: not known
	lines  []int64                 // when it lets go of each line
	at     time.Time               // when it was told so
	moved  parry.Revision          // of the newest move that was looked at
	looked time.Time
	due    time.Time // when a run is due for ends alone; zero: none is
	gap    time.Time // when it lets go of something that stands for longer; zero: it does not
}

// told takes what a run has sent.
func (e *ends) told(r *rendering, at time.Time) {
	*e = ends{sent: r.ends, at: at, moved: r.revision}
	if r.ends != nil {
		for i := range r.lines {
			e.lines = append(e.lines, r.lines[i].expire)
		}
	}
}

// last tells whether the lines that were told, which are the rendering's, last as long as its own.
func (e *ends) last(r *rendering) bool {
	if r.ends == nil {
		return true
	}
	if len(e.lines) != len(r.lines) {
		return false
	}
	for i, old := range e.lines {
		if x := r.lines[i].expire; old != 0 && (x == 0 || x > old) {
			return false
		}
	}
	return true
}

// behind takes over the blocks that came to stand behind lines which last as long as they do, and need no run for that.
func (e *ends) behind(r *rendering) {
	for id, x := range r.ends {
		if _, ok := e.sent[id]; !ok {
			e.sent[id] = x
		}
	}
}

// look finds when the next run is due for ends alone. A look through all blocks is taken only after one has moved.
func (e *ends) look(v *view, sc *scope, now time.Time) (next time.Time) {
	if e.sent == nil {
		return time.Time{}
	}
	moved := v.moved(sc)
	if moved <= e.moved {
		return time.Time{}
	}
	if next = e.looked.Add(endsLook); now.Before(next) {
		return next
	}
	e.looked, e.moved = now, moved
	var first int64 // of the old ends that come too soon
	sooner := false
	v.each(sc, func(b *standing) {
		old, ok := e.sent[b.id]
		switch {
		case !ok || old == b.expires:
		case old == 0 || b.expires != 0 && b.expires < old:
			sooner = true
		case first == 0 || old < first:
			first = old
		}
	})
	e.due, e.gap = time.Time{}, time.Time{}
	if first != 0 {
		e.gap = time.Unix(first, 0)
		e.due = e.gap.Add(-max(0, min(endsMargin, e.gap.Sub(e.at)/4)))
	}
	if sooner && (e.due.IsZero() || now.Add(endsGather).Before(e.due)) {
		e.due = now.Add(endsGather)
	}
	if least := e.at.Add(endsEvery); !e.due.IsZero() && e.due.Before(least) {
		e.due = least
	}
	return time.Time{}
}

// endsDue is when a run is due because the firewall would let go of something too soon or too late, zero: none is; and when to look again all
// the same. Once it has let go of something that stands, it is dirty: nothing is said to be in force there before a run has proved it.
func (l *lane) endsDue(ctx context.Context, st *parry.FirewallState, sc *scope) (due, next time.Time) {
	e, now := &l.mem.ends, l.now()
	next = e.look(l.r.view, sc, now)
	if e.gap.IsZero() || st.DirtyRev > st.AppliedRev || st.ProvedAt.IsZero() {
		return e.due, next
	}
	if now.Before(e.gap) {
		if next.IsZero() || e.gap.Before(next) {
			next = e.gap
		}
		return e.due, next
	}
	l.log.Warn("the firewall was not told in time that blocks stand longer")
	if err := l.r.o.Store.MarkDirty(ctx, l.name); err != nil {
		l.log.Error("mark the firewall dirty", "err", err)
		return e.due, now.Add(endsEvery)
	}
	if again, err := l.state(ctx); err == nil { // our own word must not cut the backoff short as an operator's does
		*st, l.mem.triedDirty = again, max(l.mem.triedDirty, again.DirtyRev)
	}
	e.gap = time.Time{}
	return e.due, next
}

// ended tells whether a line's time had come when a run ended, by this clock, the firewall's being about the same.
func ended(expire int64, at time.Time) bool {
	return expire != 0 && !at.Add(endsUnequal).Before(time.Unix(expire, 0))
}

// without finds what the firewall may have let go by itself between the rendering and the reading: as many of the lines whose time had come
// as are missing, those that end first. It returns the sum over the others if that is what was read.
func (r *rendering) without(skip map[int]bool, got *parry.Proof, at time.Time) (map[int]bool, bool) {
	gone := len(r.lines) - len(skip) - got.Count
	if gone <= 0 {
		return nil, false
	}
	var may []int
	for i := range r.lines {
		if x := r.lines[i].expire; !skip[i] && ended(x, at.Add(endsLeast)) {
			may = append(may, i)
		}
	}
	if len(may) < gone {
		return nil, false
	}
	slices.SortStableFunc(may, func(a, b int) int { return int(r.lines[a].expire - r.lines[b].expire) })
	less := make(map[int]bool, len(skip)+gone)
	for i := range skip {
		less[i] = true
	}
	for _, i := range may[:gone] {
		less[i] = true
	}
	return less, r.sumWithout(less) == got.SHA256
}

// lapsed tells whether a rejected line is none that was refused: its time had come before the run got there.
func (r *rendering) lapsed(j ansible.Rejection, at time.Time) bool {
	return j.Code == rejectExpired && ended(r.lines[j.Line-1].expire, at)
}
