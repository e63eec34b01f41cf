package feeds

import (
	"context"
	"fmt"
	"time"

	"github.com/parry/parry/internal/parry"
)

// standing is the live blocks as of a revision, advanced by what changed.
type standing struct {
	rev    parry.Revision
	blocks map[parry.BlockID]Entry
	newest change // of the blocks that were read last
}

// refresh brings it to the store's present and tells whether any block changed.
func (s *standing) refresh(ctx context.Context, store Store, now time.Time) (bool, error) {
	ch, err := store.Changes(ctx, s.rev)
	if err != nil {
		return false, fmt.Errorf("read changes since revision %d: %w", s.rev, err)
	}
	first := s.blocks == nil
	if first {
		s.blocks = make(map[parry.BlockID]Entry, len(ch.Blocks))
	}
	for i := range ch.Blocks {
		b := &ch.Blocks[i]
		if b.Live() && !b.Simulated {
			s.blocks[b.ID] = entryOf(b)
		} else {
			delete(s.blocks, b.ID)
		}
		if rev := max(b.Rev, b.EndRev); rev > s.newest.revision {
			s.newest = change{revision: rev, at: now}
			if first {
				s.newest.at = b.CreatedAt
			}
		}
	}
	s.rev = max(s.rev, ch.Revision)
	return first || len(ch.Blocks) > 0, nil
}

func (s *standing) entries() []Entry {
	out := make([]Entry, 0, len(s.blocks))
	for _, e := range s.blocks {
		out = append(out, e)
	}
	return out
}

func entryOf(b *parry.Block) Entry {
	return Entry{
		Prefix: b.Source,
		Narrow: b.Destination.IsValid() || b.Protocol != parry.ProtoAny || b.Port != 0 || b.Interface != "",
		First:  unix(b.CreatedAt), Last: unix(b.LastAt), Expires: unix(b.ExpiresAt), Count: b.Count, Comment: b.Reason,
	}
}

// unix is whole seconds, 0 for the zero time.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}
