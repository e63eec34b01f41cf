package store

import (
	"github.com/parry/parry/internal/parry"
)

// write stores what the batch changed: first what ended, so that its key is free for what follows.
func (a *admitter) write() error {
	t := a.t
	rows := make([]any, 0, 21*len(a.touched))
	for _, b := range a.touched {
		a.event(b)
		if !b.created {
			err := t.exec(`UPDATE blocks SET changed_rev = $2, end_rev = $3, end_reason = $4, ended_at = $5, expires_at = $6, count = $7, last_at = $8,
				reason = $9, origin = $10, rev = $11, offence = $12, simulated = $13 WHERE id = $1`,
				string(b.ID), int64(t.rev), int64(b.EndRev), string(b.EndReason), micros(b.EndedAt), micros(b.ExpiresAt), b.Count, micros(b.LastAt),
				[]byte(b.Reason), []byte(b.Origin), int64(b.Rev), int64(b.Offence), flag(b.Simulated))
			if err != nil {
				return err
			}
			continue
		}
		rows = append(rows, string(b.ID), b.key, sourceKey(b.Source), string(b.Selector), int64(b.Rev), int64(t.rev), int64(b.EndRev),
			string(b.EndReason), b.EndedBy, micros(b.EndedAt), micros(b.CreatedAt), micros(b.ExpiresAt), b.Count, micros(b.LastAt),
			[]byte(b.Reason), []byte(b.Origin), b.CreatedBy, b.Widened, int64(b.Offence), int64(b.Promoted), flag(b.Simulated))
	}
	if err := t.insert(`INSERT INTO blocks (id, key, source, selector, rev, changed_rev, end_rev, end_reason, ended_by, ended_at, created_at,
		expires_at, count, last_at, reason, origin, created_by, widened, offence, promoted, simulated) VALUES `, 21, rows, ``); err != nil {
		return err
	}
	if err := t.insert(`INSERT INTO requests (block_id, slot, n, id, received_at, event_time, ttl, token_id, token_name, remote, origin, alert_id,
		rule_id, reason, source) VALUES `, 15, a.evidence(), ` ON CONFLICT (block_id, slot) DO UPDATE SET n = excluded.n, id = excluded.id,
		received_at = excluded.received_at, event_time = excluded.event_time, ttl = excluded.ttl, token_id = excluded.token_id,
		token_name = excluded.token_name, remote = excluded.remote, origin = excluded.origin, alert_id = excluded.alert_id,
		rule_id = excluded.rule_id, reason = excluded.reason, source = excluded.source`); err != nil {
		return err
	}
	if err := t.writeOffences(a.offended...); err != nil {
		return err
	}
	if len(a.touched) > 0 {
		t.wakes |= wakeDesired
	}
	if len(a.expired) > 0 {
		t.auditBy(parry.Itself, parry.ActBlocksExpired, "", "done", many(a.expired))
	}
	if err := a.list(); err != nil {
		return err
	}
	return t.insert(`INSERT INTO idempotency (k, hash, block_id, request_id, created_at) VALUES `, 5, a.newKeys,
		` ON CONFLICT (k) DO UPDATE SET hash = excluded.hash, block_id = excluded.block_id, request_id = excluded.request_id,
		created_at = excluded.created_at`)
}

// event tells that a block began, or that one met its end here. One that did both is evidence only, and nobody's news.
func (a *admitter) event(b *block) {
	switch {
	case len(a.t.w.s.subscriptions) == 0, b.Simulated:
	case (b.created || b.realized) && b.Live():
		var first *parry.Request
		for _, q := range a.requests {
			if q.BlockID == b.ID {
				first = q.Request
				break
			}
		}
		a.t.event(parry.NotifyAdded, &b.Block, first)
	case !b.created && !b.realized && b.EndRev == a.t.rev:
		a.t.event(parry.NotifyEnded, &b.Block, nil)
	}
}

// evidence lists the rows of requests: of those that share a slot, the last.
func (a *admitter) evidence() []any {
	type place struct {
		block parry.BlockID
		slot  int64
	}
	last := map[place]int{}
	if len(a.requests) > lastRequests { // else no two can share one
		for i, q := range a.requests {
			last[place{q.BlockID, q.slot}] = i
		}
	}
	rows := make([]any, 0, 15*len(a.requests))
	for i, q := range a.requests {
		if j, ok := last[place{q.BlockID, q.slot}]; ok && j != i {
			continue
		}
		remote, source := "", ""
		if q.RemoteAddr.IsValid() {
			remote = q.RemoteAddr.String()
		}
		if q.Source.IsValid() {
			source = parry.FormatPrefix(q.Source)
		}
		rows = append(rows, string(q.BlockID), q.slot, q.N, string(q.ID), micros(q.ReceivedAt), micros(q.EventTime), q.TTL.Microseconds(),
			string(q.TokenID), q.TokenName, remote, []byte(q.Origin), []byte(q.AlertID), []byte(q.RuleID), []byte(q.Reason), source)
	}
	return rows
}
