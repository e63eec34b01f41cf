package reconcile

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
		if old, ok := e.sent[b.id]; ok {
			first, sooner = moves(first, sooner, old, b.expires)
		}
	})
	e.plan(first, sooner, now)
	return time.Time{}
}

// moves takes an end that was sent, and what it is now, into the first of those that come too soon, and whether one comes too late.
func moves(first int64, sooner bool, old, now int64) (int64, bool) {
	switch {
	case old == now:
	case old == 0 || now != 0 && now < old:
		sooner = true
	case first == 0 || old < first:
		first = old
	}
	return first, sooner
}

// plan says when the next run is due.
func (e *ends) plan(first int64, sooner bool, now time.Time) {
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
}

// recall finds out what was told before the lane was taken: the lines of the last desired file, beside what would be told now. A run is due
// at once for a line that it cannot tell anything of.
func (e *ends) recall(r *rendering, file []sentLine, now time.Time) {
	*e = ends{sent: r.ends, at: now, moved: r.revision}
	if file == nil {
		e.due = now
		return
	}
	var first int64
	sooner, k := false, 0
	for i := range r.lines {
		l := &r.lines[i]
		for k < len(file) && file[k].key < l.key {
			k++
		}
		if k == len(file) || file[k].key != l.key {
			e.due = now
			return
		}
		old := file[k].expire
		if first, sooner = moves(first, sooner, old, l.expire); old != 0 && (l.expire == 0 || old < l.expire) {
			for _, id := range l.blocks() {
				e.sent[id] = old
			}
		}
		e.lines = append(e.lines, old)
	}
	e.plan(first, sooner, now)
}

// recallEnds is called after the firewall was read. It also finds ends that somebody has changed on the firewall itself: those are no part of
// what is compared.
func (t *try) recallEnds(ctx context.Context) {
	m, now := &t.mem, t.now()
	if !t.bundle.Manifest.Timeouts {
		return
	}
	file := t.proved(ctx, &t.run.Got, now)
	if m.ends.sent == nil {
		rr := &renderer{firewall: t.fw, manifest: &t.bundle.Manifest, noCover: m.rejected}
		var err error
		if rr.nat, err = t.natTable(ctx, t.st, t.fw, &t.bundle.Manifest); err != nil {
			return // the next verify tries again
		}
		blocks, rev := t.r.view.in(t.sc)
		m.ends.recall(rr.render(rev, blocks), file, now)
	}
	other := 0
	for i := range min(len(t.loaded), len(file)) { // the same entries, in the same order, as is proved
		if !alike(file[i].expire, t.loaded[i].Expires, now) {
			other++
		}
	}
	if other > 0 {
		t.log.Warn("the firewall would end entries at other times than it was told", "run_id", t.run.ID, "entries", other)
		m.ends.due = now
	}
}

// alike tells whether an end is the one that was sent, as far as two clocks can tell.
func alike(sent, got int64, now time.Time) bool {
	if sent == 0 || got == 0 {
		return sent == got
	}
	off := int64(endsUnequal / time.Second)
	return got >= sent-off && got <= max(sent, now.Add(endsLeast).Unix())+off
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

// sentLine is a line of what was sent.
type sentLine struct {
	key    string
	expire int64
}

// less leaves out what the firewall may have let go by itself by a time: as many of the lines whose time had come as are missing in the
// proof, those that end first. ok tells whether the others are what is proved.
func less(lines []sentLine, proof *parry.Proof, at time.Time) (rest []sentLine, ok bool) {
	gone := len(lines) - proof.Count
	var may []int
	for i := range lines {
		if gone > 0 && ended(lines[i].expire, at.Add(endsLeast)) {
			may = append(may, i)
		}
	}
	if gone < 0 || len(may) < gone {
		return nil, false
	}
	slices.SortStableFunc(may, func(a, b int) int { return cmp.Compare(lines[a].expire, lines[b].expire) })
	if rest = lines; gone > 0 {
		out := make(map[int]bool, gone)
		for _, i := range may[:gone] {
			out[i] = true
		}
		rest = make([]sentLine, 0, proof.Count)
		for i, l := range lines {
			if !out[i] {
				rest = append(rest, l)
			}
		}
	}
	h, buf := sha256.New(), make([]byte, 0, 32<<10)
	for _, l := range rest {
		if buf = append(append(buf, l.key...), '\n'); len(buf) > 31<<10 {
			h.Write(buf)
			buf = buf[:0]
		}
	}
	h.Write(buf)
	return rest, hex.EncodeToString(h.Sum(nil)) == proof.SHA256
}

// without is the lines less some, given by index.
func (r *rendering) without(skip map[int]bool) []sentLine {
	out := make([]sentLine, 0, len(r.lines))
	for i := range r.lines {
		if !skip[i] {
			out = append(out, sentLine{r.lines[i].key, r.lines[i].expire})
		}
	}
	return out
}

// lapsed tells whether a rejected line is none that was refused: its time had come before the run got there.
func (r *rendering) lapsed(j ansible.Rejection, at time.Time) bool {
	return j.Code == rejectExpired && ended(r.lines[j.Line-1].expire, at)
}
