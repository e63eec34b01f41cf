package store

import (
	"context"
	"database/sql"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/parry/parry/internal/parry"
)

// endBatch is how many blocks one transaction ends or prunes: requests that come in meanwhile wait for no longer.
const endBatch = 512

// block reads one row; sql.ErrNoRows if there is none.
func (t *tx) block(id parry.BlockID) (b *block, err error) {
	err = t.query(`SELECT `+blockColumns+` FROM blocks WHERE id = $1`, []any{string(id)}, func(r *sql.Rows) error {
		b, err = scanBlock(r)
		return err
	})
	if err == nil && b == nil {
		err = sql.ErrNoRows
	}
	return b, err
}

// end ends those of the blocks that live, and gives their ids.
func (t *tx) end(ids []any, why parry.EndReason, by string) (ended []parry.BlockID, err error) {
	var early []netip.Prefix
	for _, part := range chunks(ids, 64) {
		q := `UPDATE blocks SET end_rev = $1, changed_rev = $1, end_reason = $2, ended_by = $3, ended_at = $4
			WHERE end_rev = 0 AND id IN (` + placeholders(5, len(part)) + `) RETURNING ` + blockColumns
		args := append([]any{int64(t.rev), string(why), by, micros(t.now)}, part...)
		if err := t.query(q, args, func(r *sql.Rows) error {
			b, err := scanBlock(r)
			if err != nil {
				return err
			}
			ended = append(ended, b.ID)
			if b.Simulated {
				return nil
			}
			t.rule(&b.Key, -1)
			t.event(parry.NotifyEnded, &b.Block, nil)
			if why != parry.EndExpired {
				early = append(early, b.Source)
			}
			return nil
		}); err != nil {
			return ended, err
		}
	}
	if err := t.askAgain(early); err != nil {
		return ended, err
	}
	if len(ended) > 0 {
		t.live -= int64(len(ended))
		t.ended += int64(len(ended))
		t.wakes |= wakeDesired
	}
	return ended, nil
}

// ids reads the ids of blocks that a query finds.
func (t *tx) ids(q string, args ...any) (ids []any, err error) {
	err = t.query(q, args, func(r *sql.Rows) error {
		var id string
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	})
	return ids, err
}

// SetExpiry moves a live block's end out or in; the zero time takes it away. KindConflict when the block has ended or is due, KindInvalid when
// the time is not in the future.
func (s *Store) SetExpiry(ctx context.Context, id parry.BlockID, expires time.Time, by string) (out parry.Block, err error) {
	err = s.write(ctx, "set the expiry of block "+string(id), func(t *tx) error {
		b, err := t.block(id)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return noBlock(id)
		case err != nil:
			return err
		case !b.Live(), !b.ExpiresAt.IsZero() && !b.ExpiresAt.After(t.now):
			return parry.Errorf(parry.KindConflict, "block %s has ended; ask for a new one", id)
		case !expires.IsZero() && !expires.After(t.now):
			return parry.Invalid("/expires_at", "%s is not in the future; to end the block now, delete it", expires.UTC().Format(time.RFC3339))
		}
		if err := t.askAgain([]netip.Prefix{b.Source}); err != nil {
			return err
		}
		d := detailOf(&b.Block)
		d.Was, d.Expires = d.Expires, auditTime(expires)
		t.audit(parry.ActBlockExpiry, string(id), d)
		b.ExpiresAt = round(expires)
		out = b.Block
		t.wakes |= wakeDesired
		return t.exec(`UPDATE blocks SET changed_rev = $2, expires_at = $3 WHERE id = $1`, string(id), int64(t.rev), micros(expires))
	})
	if err == nil {
		s.log.Info("a block's expiry was set", "block_id", id, "expires", expires, "by", by)
	}
	return out, err
}

// EndBlock ends a block by an operator's word, and tells which other live blocks still cover its source. One that has ended stays as it is; what
// the word says of the source's offences and grace holds all the same.
func (s *Store) EndBlock(ctx context.Context, id parry.BlockID, l parry.Lift) (out parry.Block, covered []parry.Block, err error) {
	err = s.write(ctx, "end block "+string(id), func(t *tx) error {
		b, err := t.block(id)
		if errors.Is(err, sql.ErrNoRows) {
			return noBlock(id)
		}
		if err != nil {
			return err
		}
		if b.Live() {
			if _, err := t.end([]any{string(id)}, l.EndReason(), l.By); err != nil {
				return err
			}
			b.EndRev, b.EndReason, b.EndedBy, b.EndedAt = t.rev, l.EndReason(), l.By, round(t.now)
		}
		if err := t.lift(b.Source, l); err != nil {
			return err
		}
		d := detailOf(&b.Block)
		d.Grace, d.Forget = graceDetail(l), l.Forget
		t.audit(parry.ActBlockEnd, string(id), d)
		out, covered = b.Block, nil
		return t.queryIn(`SELECT `+blockColumns+` FROM blocks WHERE end_rev = 0 AND simulated = 0 AND source IN (%s)`, parents(b.Source), func(r *sql.Rows) error {
			c, err := plainBlock(r)
			if err == nil && (c.ExpiresAt.IsZero() || c.ExpiresAt.After(t.now)) {
				covered = append(covered, c)
			}
			return err
		})
	})
	return out, covered, err
}

const firstEnded = 1000 // ids in the answer of EndBlocks

// EndBlocks ends by somebody's word the live blocks that the filter finds now and of which ok, unless nil, is true; with dry it only tells
// them. It does so in small transactions, after one reading: an error leaves those that come after it, and a repeat goes on.
func (s *Store) EndBlocks(ctx context.Context, f parry.BlockFilter, ok func(*parry.Key) bool, l parry.Lift, dry bool) (out parry.EndedBlocks, err error) {
	live := true
	f.Live = &live
	w := matching(&f)
	sources := map[parry.BlockID]netip.Prefix{}
	found, err := collect(ctx, s.reads, `SELECT id, key FROM blocks`+w.String()+` ORDER BY id`, w.args, func(r *sql.Rows) (id any, err error) {
		var name, key string
		if err := r.Scan(&name, &key); err != nil {
			return nil, err
		}
		k, err := parseKey(key)
		if err == nil && (ok == nil || ok(&k)) {
			id, sources[parry.BlockID(name)] = name, k.Source
		}
		return id, err
	})
	if err != nil {
		return out, s.wrap(err, "find the blocks to end")
	}
	found = slices.DeleteFunc(found, func(id any) bool { return id == nil })
	out.Matched = len(found)
	for _, id := range found[:min(len(found), firstEnded)] {
		out.First = append(out.First, parry.BlockID(id.(string)))
	}
	if dry {
		return out, nil
	}
	for _, part := range chunks(found, endBatch) {
		n := 0
		if err := s.write(ctx, "end the blocks that match", func(t *tx) error {
			ended, err := t.end(part, l.EndReason(), l.By)
			n = len(ended)
			for i := 0; err == nil && i < n; i++ {
				err = t.lift(sources[ended[i]], l)
			}
			if n > 0 {
				t.audit(parry.ActBlocksEnd, "", struct {
					manyDetail
					Filter filterDetail `json:"filter"`
					Grace  string       `json:"grace,omitempty"`
				}{many(ended), filterOf(&f), graceDetail(l)})
			}
			return err
		}); err != nil {
			return out, err
		}
		out.Ended += n
	}
	s.log.Info("blocks were ended by a filter", "matched", out.Matched, "ended", out.Ended, "by", l.By)
	return out, nil
}

// EndDue ends every live block whose time has come, in small transactions, and counts them.
func (s *Store) EndDue(ctx context.Context, now time.Time) (ended int, err error) {
	for {
		next, err := s.NextDue(ctx)
		if err != nil || next.IsZero() || next.After(now) {
			return ended, err
		}
		n := 0
		err = s.write(ctx, "end the blocks that are due", func(t *tx) error {
			ids, err := t.ids(`SELECT id FROM blocks WHERE end_rev = 0 AND expires_at > 0 AND expires_at <= $1 ORDER BY expires_at LIMIT $2`,
				micros(now), int64(endBatch))
			if err != nil {
				return err
			}
			done, err := t.end(ids, parry.EndExpired, "")
			if n = len(done); n > 0 {
				t.audit(parry.ActBlocksExpired, "", many(done))
			}
			return err
		})
		if err != nil {
			return ended, err
		}
		ended += n
	}
}

// overlapping finds the live blocks whose source holds the prefix or lies within it.
func (t *tx) overlapping(p netip.Prefix) (ids []any, err error) {
	p = p.Masked()
	if ids, err = t.ids(`SELECT id FROM blocks WHERE end_rev = 0 AND source BETWEEN $1 AND $2`, sourceKey(p), sourceEnd(p)); err != nil {
		return nil, err
	}
	wider := parents(p)
	err = t.queryIn(`SELECT id FROM blocks WHERE end_rev = 0 AND source IN (%s)`, wider[:len(wider)-1], func(r *sql.Rows) error {
		var id string
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	})
	return ids, err
}

// AddExemption stores an exemption and ends the live blocks that it overlaps, in one transaction.
func (s *Store) AddExemption(ctx context.Context, x parry.Exemption) (ended []parry.BlockID, err error) {
	err = s.write(ctx, "add exemption "+string(x.ID), func(t *tx) (err error) {
		err = t.exec(`INSERT INTO exemptions (id, prefix, reason, created_by, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (id) DO NOTHING`,
			string(x.ID), x.Prefix.Masked().String(), []byte(x.Reason), x.CreatedBy, micros(x.CreatedAt), micros(x.ExpiresAt))
		if err != nil {
			return err
		}
		t.wakes |= wakeDesired
		if ended, err = t.endExempted(x); err != nil {
			return err
		}
		t.audit(parry.ActExemptionAdd, string(x.ID), struct {
			exemptionDetail
			Ended manyDetail `json:"ended_blocks"`
		}{exemptionOf(&x), many(ended)})
		return nil
	})
	return ended, err
}

func (t *tx) endExempted(x parry.Exemption) ([]parry.BlockID, error) {
	if !x.ExpiresAt.IsZero() && !x.ExpiresAt.After(t.now) {
		return nil, nil
	}
	ids, err := t.overlapping(x.Prefix)
	if err != nil {
		return nil, err
	}
	return t.end(ids, parry.EndExempted, string(x.ID))
}

// EndExempted ends the live blocks that any of the exemptions overlaps: configured and found ones, which no row holds.
func (s *Store) EndExempted(ctx context.Context, xs []parry.Exemption) (ended []parry.BlockID, err error) {
	if len(xs) == 0 {
		return nil, nil
	}
	err = s.write(ctx, "end exempted blocks", func(t *tx) error {
		ended = nil
		for _, x := range xs {
			ids, err := t.endExempted(x)
			if err != nil {
				return err
			}
			if len(ids) > 0 {
				t.audit(parry.ActBlocksExempt, string(x.ID), struct {
					exemptionDetail
					Ended manyDetail `json:"ended_blocks"`
				}{exemptionOf(&x), many(ids)})
			}
			ended = append(ended, ids...)
		}
		return nil
	})
	return ended, err
}

// Exemptions lists those that AddExemption stored and that have not run out.
func (s *Store) Exemptions(ctx context.Context) ([]parry.Exemption, error) {
	xs, err := collect(ctx, s.reads, `SELECT id, prefix, reason, created_by, created_at, expires_at FROM exemptions
		WHERE expires_at = 0 OR expires_at > $1 ORDER BY id`, []any{micros(s.now())}, func(r *sql.Rows) (parry.Exemption, error) {
		x := parry.Exemption{Source: parry.ExemptAPI}
		var prefix string
		var reason []byte
		var created, expires int64
		err := r.Scan(&x.ID, &prefix, &reason, &x.CreatedBy, &created, &expires)
		if err != nil {
			return x, err
		}
		x.Reason, x.CreatedAt, x.ExpiresAt = string(reason), fromMicros(created), fromMicros(expires)
		x.Prefix, err = netip.ParsePrefix(prefix)
		return x, err
	})
	return xs, s.wrap(err, "list the exemptions")
}

// RemoveExemption takes a stored exemption out.
func (s *Store) RemoveExemption(ctx context.Context, id parry.ExemptionID, by string) error {
	err := s.write(ctx, "remove exemption "+string(id), func(t *tx) error {
		prefix := ""
		err := t.row(`DELETE FROM exemptions WHERE id = $1 RETURNING prefix`, []any{string(id)}, &prefix)
		switch {
		case !errors.Is(err, sql.ErrNoRows):
			t.audit(parry.ActExemptionRemove, string(id), map[string]string{"prefix": prefix})
		case t.again:
			err = nil
		default:
			return parry.Errorf(parry.KindNotFound, "there is no exemption %s that can be removed; configured and found ones are taken out where they come from", id)
		}
		t.wakes |= wakeDesired
		return err
	})
	if err == nil {
		s.log.Info("an exemption was removed", "exemption_id", id, "by", by)
	}
	return err
}
