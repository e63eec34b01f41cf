package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/parry/parry/internal/parry"
)

// undelivered is how long a notification stays that nobody has delivered or given up, at least.
const undelivered = 14 * 24 * time.Hour

// Prune takes out what the retention no longer keeps, in small transactions, so that requests need not wait. Blocks go when they have ended so
// long ago and every known firewall has applied that; with their evidence.
func (s *Store) Prune(ctx context.Context, keep parry.Retention) (p parry.Pruned, err error) {
	now := s.now()
	if keep.EndedBlocks > 0 {
		if p.Blocks, err = s.pruneBlocks(ctx, now.Add(-keep.EndedBlocks)); err != nil {
			return p, err
		}
	}
	if p.Runs, err = s.pruneRuns(ctx, now, keep); err != nil {
		return p, err
	}
	if keep.Runs > 0 {
		n, err := s.pruneRows(ctx, "approvals", `SELECT id FROM approvals WHERE created_at < $1 AND state NOT IN ('waiting', 'approved', 'denied') LIMIT $2`,
			[]any{micros(now.Add(-keep.Runs))}, `DELETE FROM approvals WHERE id IN (%s)`)
		if p.Approvals = n; err != nil {
			return p, err
		}
	}
	if keep.Idempotency > 0 {
		p.Keys, err = s.pruneRows(ctx, "idempotency keys", `SELECT k FROM idempotency WHERE created_at < $1 LIMIT $2`,
			[]any{micros(now.Add(-keep.Idempotency))}, `DELETE FROM idempotency WHERE k IN (%s)`)
		if err != nil {
			return p, err
		}
	}
	if keep.Outbox > 0 {
		// What is long past every worker's patience was for a channel that is configured no more.
		p.Notifications, err = s.pruneRows(ctx, "notifications", `SELECT id FROM outbox WHERE created_at < $1
			AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.outbox_id = outbox.id AND (d.delivered_at >= $1 OR d.delivered_at = 0 AND outbox.created_at >= $2))
			LIMIT $3`, []any{micros(now.Add(-keep.Outbox)), micros(now.Add(-max(keep.Outbox, undelivered)))}, `DELETE FROM outbox WHERE id IN (%s)`)
		if err != nil {
			return p, err
		}
	}
	if keep.Offences > 0 {
		if p.Offenders, err = s.pruneOffenders(ctx, now.Add(-keep.Offences)); err != nil {
			return p, err
		}
	}
	if keep.Audit > 0 {
		if p.AuditRows, err = s.pruneAudit(ctx, now.Add(-keep.Audit)); err != nil {
			return p, err
		}
	}
	if p.ListEntries, err = s.sweepLists(ctx, now); err != nil {
		return p, err
	}
	return p, s.pruneSmall(ctx, now)
}

// pruneOffenders forgets those that have had no block and no grace since.
func (s *Store) pruneOffenders(ctx context.Context, since time.Time) (total int64, err error) {
	for after := []byte{}; ; {
		var old []*offender
		var gone []any
		err := s.write(ctx, "prune offenders", func(t *tx) error {
			old, gone = nil, nil
			if err := t.query(`SELECT `+offenceColumns+` FROM offences WHERE source > $1 AND last_at <= $2 AND until <= $2 AND grace_until <= $2
				ORDER BY source LIMIT $3`, []any{after, micros(since), int64(endBatch)}, func(r *sql.Rows) error {
				o, err := scanOffender(r)
				old = append(old, o)
				return err
			}); err != nil {
				return err
			}
			for _, o := range old {
				var end int64
				if err := t.row(lastEnd, ownBlocks(o.Source), &end); err != nil {
					return err
				}
				if end <= micros(since) {
					gone = append(gone, sourceKey(o.Source))
				}
			}
			return t.queryIn(`DELETE FROM offences WHERE source IN (%s)`, gone, func(*sql.Rows) error { return nil })
		})
		if err != nil {
			return total, err
		}
		if total += int64(len(gone)); len(old) < endBatch {
			return total, nil
		}
		after = sourceKey(old[len(old)-1].Source)
	}
}

// pruneRows finds rows with find, whose last parameter is the batch's size, and takes them out with each statement of del, until there are none.
func (s *Store) pruneRows(ctx context.Context, what, find string, args []any, del ...string) (total int64, err error) {
	for {
		ids, err := collect(ctx, s.reads, find, append(args[:len(args):len(args)], endBatch), func(r *sql.Rows) (id any, err error) {
			err = r.Scan(&id)
			return id, err
		})
		if err != nil || len(ids) == 0 {
			return total, s.wrap(err, "find old "+what)
		}
		err = s.write(ctx, "prune "+what, func(t *tx) error {
			for _, q := range del {
				if err := t.queryIn(q, ids, func(*sql.Rows) error { return nil }); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return total, err
		}
		total += int64(len(ids))
		if len(ids) < endBatch {
			return total, nil
		}
	}
}

func (s *Store) pruneBlocks(ctx context.Context, before time.Time) (total int64, err error) {
	// A block that ended before a time was made before it, and ids begin with when they were made: older ones are found without an index.
	newest := string(parry.NewBlockID(before.Add(time.Hour)))
	for {
		ids, err := collect(ctx, s.reads, `SELECT id FROM blocks WHERE id < $1 AND end_rev > 0 AND ended_at < $2
				AND end_rev <= (SELECT coalesce(min(applied_rev), (SELECT rev FROM state)) FROM firewalls) ORDER BY id LIMIT $3`,
			[]any{newest, micros(before), int64(endBatch)}, func(r *sql.Rows) (id any, err error) {
				err = r.Scan(&id)
				return id, err
			})
		if err != nil || len(ids) == 0 {
			return total, s.wrap(err, "find old blocks")
		}
		var gone int64
		err = s.write(ctx, "prune blocks", func(t *tx) error {
			gone = 0
			none := func(*sql.Rows) error { return nil }
			if err := t.queryIn(`DELETE FROM requests WHERE block_id IN (%s)`, ids, none); err != nil {
				return err
			}
			err := t.queryIn(`DELETE FROM blocks WHERE id IN (%s) RETURNING id`, ids, func(*sql.Rows) error { gone++; return nil })
			t.ended -= gone
			return err
		})
		if err != nil {
			return total, err
		}
		total += gone
		if len(ids) < endBatch {
			return total, nil
		}
	}
}

// pruneRuns keeps each firewall's newest RunCount runs of those younger than Runs; one that is on always stays.
func (s *Store) pruneRuns(ctx context.Context, now time.Time, keep parry.Retention) (total int64, err error) {
	const del = `DELETE FROM runs WHERE id IN (%s)`
	if keep.Runs > 0 {
		total, err = s.pruneRows(ctx, "runs", `SELECT id FROM runs WHERE state <> 'running' AND started_at < $1 LIMIT $2`,
			[]any{micros(now.Add(-keep.Runs))}, del)
		if err != nil {
			return total, err
		}
	}
	if keep.RunCount > 0 {
		n, err := s.pruneRows(ctx, "runs", `SELECT id FROM (SELECT id, state, row_number() OVER (PARTITION BY firewall ORDER BY id DESC) AS nth FROM runs) r
			WHERE r.nth > $1 AND r.state <> 'running' LIMIT $2`, []any{int64(keep.RunCount)}, del)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// pruneSmall takes out what needs no setting: rules that are gone from the firewalls, exemptions that ran out a month ago.
func (s *Store) pruneSmall(ctx context.Context, now time.Time) error {
	return s.write(ctx, "prune rules and exemptions", func(t *tx) error {
		if err := t.exec(`DELETE FROM rules WHERE live <= 0 AND gone_at < $1`, micros(now.Add(-ruleStays))); err != nil {
			return err
		}
		if err := t.exec(`UPDATE offences SET grace_until = 0, grace_by = '' WHERE grace_until > 0 AND grace_until <= $1`, micros(now)); err != nil {
			return err
		}
		if err := t.exec(`DELETE FROM checks WHERE asked_at < $1`, micros(now.Add(-time.Hour))); err != nil {
			return err
		}
		return t.exec(`DELETE FROM exemptions WHERE expires_at > 0 AND expires_at < $1`, micros(now.AddDate(0, -1, 0)))
	})
}
