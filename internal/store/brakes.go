package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/parry/parry/internal/parry"
)

// SetHold holds one firewall, or all of them under the name "". The zero Hold releases; a firewall's own hold outlives the release of all.
func (s *Store) SetHold(ctx context.Context, name string, h parry.Hold) error {
	return s.write(ctx, "hold "+name, func(t *tx) error {
		if name != "" {
			var one int64
			err := t.row(`SELECT 1 FROM firewalls WHERE name = $1`, []any{name}, &one)
			if errors.Is(err, sql.ErrNoRows) {
				return noFirewall(name)
			}
			if err != nil {
				return err
			}
		}
		t.wakes |= wakeDesired
		if !h.Held() {
			return t.exec(`DELETE FROM holds WHERE name = $1`, name)
		}
		return t.exec(`INSERT INTO holds (name, held_by, reason, since, until) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (name) DO UPDATE SET held_by = excluded.held_by, reason = excluded.reason, since = excluded.since, until = excluded.until`,
			name, h.By, []byte(h.Reason), micros(h.Since), micros(h.Until))
	})
}

// NextHoldEnd is when the first hold ends by itself; zero when none does.
func (s *Store) NextHoldEnd(ctx context.Context) (time.Time, error) {
	var at int64
	err := s.reads.QueryRowContext(ctx, `SELECT coalesce(min(until), 0) FROM holds WHERE until > 0`).Scan(&at)
	return fromMicros(at), s.wrap(err, "find the next hold that ends")
}

// EndHolds releases what is held until now at most, and names it; "" is the hold of all.
func (s *Store) EndHolds(ctx context.Context, now time.Time) (ended []string, err error) {
	err = s.write(ctx, "end the holds that are over", func(t *tx) error {
		ended = nil
		err := t.query(`DELETE FROM holds WHERE until > 0 AND until <= $1 RETURNING name`, []any{micros(now)}, func(r *sql.Rows) error {
			var name string
			err := r.Scan(&name)
			ended = append(ended, name)
			return err
		})
		if len(ended) > 0 {
			t.wakes |= wakeDesired | wakeApplied
		}
		return err
	})
	return ended, err
}
