package reconcile

import (
	"context"
	"fmt"
	"sync"

	"github.com/parry/parry/internal/parry"
)

// standing is what a lane must know of a live block.
type standing struct {
	parry.Key
	id                parry.BlockID
	rev               parry.Revision
	created           int64 // Unix milliseconds
	expires           int64 // Unix seconds, rounded up; 0 is without end
	offence, promoted int   // as the block's
}

// view is the live blocks as of a revision, shared by all lanes and advanced by what changed, so that no run reads 100,000 blocks again.
type view struct {
	store interface {
		Changes(context.Context, parry.Revision) (parry.Changes, error)
	}

	refreshing sync.Mutex // one refresh at a time; held over the query

	mu      sync.RWMutex
	rev     parry.Revision
	blocks  map[parry.BlockID]standing
	touched map[parry.Selector]parry.Revision // the newest change of a selector's blocks, since the view was first read
	shifted map[parry.Selector]parry.Revision // the newest refresh that found the end of one moved

	simulated  map[parry.BlockID]standing // blocks that are never applied, apart
	simTouched map[parry.Selector]parry.Revision
}

// refresh brings the view to the store's present. It returns after a refresh that began after it was called.
func (v *view) refresh(ctx context.Context) error {
	v.refreshing.Lock()
	defer v.refreshing.Unlock()
	ch, err := v.store.Changes(ctx, v.rev) // v.rev is written under refreshing only
	if err != nil {
		return fmt.Errorf("read changes since revision %d: %w", v.rev, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.blocks == nil {
		v.blocks = make(map[parry.BlockID]standing, len(ch.Blocks))
		v.touched, v.shifted = map[parry.Selector]parry.Revision{}, map[parry.Selector]parry.Revision{}
		v.simulated, v.simTouched = map[parry.BlockID]standing{}, map[parry.Selector]parry.Revision{}
	}
	for i := range ch.Blocks {
		b := &ch.Blocks[i]
		_, was := v.simulated[b.ID]
		if b.Simulated || was {
			v.simTouched[b.Selector] = max(v.simTouched[b.Selector], changed(b))
			if delete(v.simulated, b.ID); b.Simulated && b.Live() {
				v.simulated[b.ID] = stand(b)
			}
		}
		if b.Simulated {
			continue
		}
		if b.Live() {
			now := stand(b)
			if was, ok := v.blocks[b.ID]; ok && was.expires != now.expires {
				v.shifted[b.Selector] = ch.Revision
			}
			v.blocks[b.ID] = now
		} else {
			delete(v.blocks, b.ID)
		}
		v.touched[b.Selector] = max(v.touched[b.Selector], changed(b))
	}
	v.rev = max(v.rev, ch.Revision)
	return nil
}

// changed is the newest revision at which the block made a difference to a firewall.
func changed(b *parry.Block) parry.Revision { return max(b.Rev, b.EndRev) }

func stand(b *parry.Block) standing {
	s := standing{Key: b.Key, id: b.ID, rev: b.Rev, created: b.CreatedAt.UnixMilli(), offence: b.Offence, promoted: b.Promoted}
	if !b.ExpiresAt.IsZero() {
		s.expires = (b.ExpiresAt.UnixMilli() + 999) / 1000
	}
	return s
}

// scope tells whether a selector means a firewall; it remembers the answers.
type scope struct {
	fleet    *parry.Fleet
	firewall *parry.Firewall
	known    map[parry.Selector]bool
}

func newScope(fleet *parry.Fleet, fw *parry.Firewall) *scope {
	return &scope{fleet, fw, map[parry.Selector]bool{}}
}

func (s *scope) has(sel parry.Selector) bool {
	in, ok := s.known[sel]
	if !ok {
		in = s.fleet.Selects(sel, s.firewall)
		s.known[sel] = in
	}
	return in
}

// relevant is the newest change that concerns the scope, and the newest of all.
func (v *view) relevant(s *scope) (newest, any parry.Revision) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for sel, r := range v.touched {
		if any = max(any, r); r > newest && s.has(sel) {
			newest = r
		}
	}
	return newest, any
}

// moved is as of when the newest end in the scope moved; 0: none has.
func (v *view) moved(s *scope) (newest parry.Revision) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for sel, r := range v.shifted {
		if r > newest && s.has(sel) {
			newest = r
		}
	}
	return newest
}

// simRelevant is the newest change of simulated blocks that concerns the scope.
func (v *view) simRelevant(s *scope) (newest parry.Revision) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for sel, r := range v.simTouched {
		if r > newest && s.has(sel) {
			newest = r
		}
	}
	return newest
}

// with copies the blocks that the scope means, those that are simulated too.
func (v *view) with(s *scope) ([]standing, parry.Revision) {
	out, rev := v.in(s)
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, b := range v.simulated {
		if s.has(b.Selector) {
			out = append(out, b)
		}
	}
	return out, rev
}

// revision is the one as of which the view is.
func (v *view) revision() parry.Revision {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.rev
}

// in copies the blocks that the scope means.
func (v *view) in(s *scope) ([]standing, parry.Revision) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	out := make([]standing, 0, len(v.blocks))
	for _, b := range v.blocks {
		if s.has(b.Selector) {
			out = append(out, b)
		}
	}
	return out, v.rev
}

// count tells how many blocks the scope means, and how many of those are of a revision above applied.
func (v *view) count(s *scope, applied parry.Revision) (all, above int) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, b := range v.blocks {
		if s.has(b.Selector) {
			all++
			if b.rev > applied {
				above++
			}
		}
	}
	return all, above
}

// each calls f for the blocks of the scope.
func (v *view) each(s *scope, f func(*standing)) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, b := range v.blocks {
		if s.has(b.Selector) {
			f(&b)
		}
	}
}

// block finds a standing block.
func (v *view) block(id parry.BlockID) (standing, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	b, ok := v.blocks[id]
	return b, ok
}

// between calls f for the blocks of the scope whose revision is in (from, to].
func (v *view) between(s *scope, from, to parry.Revision, f func(*standing)) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, b := range v.blocks {
		if b.rev > from && b.rev <= to && s.has(b.Selector) {
			f(&b)
		}
	}
}
