package httpapi

import (
	"context"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

// foresight is what the database would do with an admission.
type foresight struct {
	live *api.Block    // the block that would be refreshed; nil: a new one would be made
	ttl  time.Duration // how long a new one would last, from the event's time; 0: without end
	late bool          // the event is older than its block would last
}

// foresee tells a dry run what would come of an admission, and refuses what a grace refuses. Promotion, what an operator lifted since the event, and
// the limits of blocks, rules and lists are the transaction's to know.
func (s *Server) foresee(ctx context.Context, a *parry.Admission, now time.Time) (f foresight, err error) {
	o, err := s.o.Store.Offender(ctx, a.Key.Source)
	if err != nil {
		return f, err
	}
	if o.GraceUntil.After(now) && !a.EndsGrace {
		return f, parry.RefuseInGrace(a.Key.Source, &o)
	}
	if f.live, err = s.liveBlock(ctx, a.Key); err != nil {
		return f, err
	}
	if f.live != nil && f.live.Simulated && !a.Simulate {
		f.live = nil // it would become a real one
	}
	event := a.Request.EventTime
	if event.IsZero() {
		event = now
	}
	f.ttl = a.Request.TTL
	if a.NoEnd {
		return f, nil
	}
	f.late = !event.Add(f.ttl).After(now)
	if a.Ladder != nil && a.LadderTTL {
		rung := o.Rung // of the offence that still lasts
		if !o.Standing || o.Offences == 0 {
			_, rung = a.Ladder.Next(&o, now)
		}
		f.ttl = max(f.ttl, a.Ladder.Least(rung))
	}
	if !a.MaxExpires.IsZero() {
		f.ttl = min(f.ttl, a.MaxExpires.Sub(event))
	}
	return f, nil
}

// liveBlock is the live block of a key, or nil.
func (s *Server) liveBlock(ctx context.Context, key parry.Key) (*api.Block, error) {
	live := true
	f := parry.BlockFilter{Source: key.Source, Selector: key.Selector, Live: &live, Limit: 1000}
	for {
		page, err := s.o.Store.Blocks(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, b := range page.Items {
			if b.Key == key {
				shown, err := s.show(ctx, b)
				if err != nil {
					return nil, err
				}
				return &shown[0], nil
			}
		}
		if f.Cursor = page.Next; f.Cursor == "" {
			return nil, nil
		}
	}
}
