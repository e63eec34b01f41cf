package store

import (
	"context"

	"github.com/parry/parry/internal/parry"
)

// AdvanceApplied raises a firewall's applied revision without a run: nothing up to rev concerns it, or what it is proved to hold is what is
// desired at rev. One that has become dirty meanwhile stays where it is: a run makes it clean. The proof and its time stay. It wakes Applied,
// as a finished run does, and no lane.
func (s *Store) AdvanceApplied(ctx context.Context, firewall string, rev parry.Revision) error {
	return s.write(ctx, "advance "+firewall, func(t *tx) error {
		n, err := t.execN(`UPDATE firewalls SET applied_rev = CASE WHEN applied_rev < $2 AND dirty_rev <= applied_rev THEN $2 ELSE applied_rev END WHERE name = $1`,
			firewall, int64(rev))
		if err == nil && n == 0 {
			return noFirewall(firewall)
		}
		t.wakes |= wakeApplied
		return err
	})
}
