package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/parry/parry/internal/parry"
)

const (
	firstRequests = 10 // evidence that is kept from a block's beginning
	lastRequests  = 100
	ruleStays     = 24 * time.Hour // a rule without entries stays on a firewall
)

// put is an admission on its way, and its answer.
type put struct {
	parry.Admission
	res parry.Admitted
}

// Put takes a request into the desired state. Its answer means committed and fsynced. A full queue is KindUnavailable; a limit, or an
// idempotency key with another body, is KindRefused. When ctx ends first the request may still be taken.
func (s *Store) Put(ctx context.Context, a parry.Admission) (parry.Admitted, error) {
	p := &put{Admission: a}
	o := &op{put: p, done: make(chan struct{})}
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return parry.Admitted{}, errClosed()
	}
	select {
	case s.queue <- o:
		s.mu.RUnlock()
	default:
		s.mu.RUnlock()
		return parry.Admitted{}, &parry.Error{Kind: parry.KindUnavailable, RetryAfter: time.Second,
			Detail: fmt.Sprintf("%d requests wait for the database already; try again", cap(s.queue))}
	}
	if err := s.await(ctx, "put a block", o); err != nil {
		return parry.Admitted{}, err
	}
	return p.res, nil
}

// putAll decides requests in their order (the package's comment has the rules) and writes the outcome.
func (t *tx) putAll(ops []*op) error {
	a := &admitter{
		t: t, live: map[string]*block{}, ended: map[string]*block{}, deleted: map[string]int64{}, byID: map[parry.BlockID]*block{},
		keys: map[[32]byte]idempotent{},
	}
	if err := a.load(ops); err != nil {
		return err
	}
	for _, o := range ops {
		o.err = a.admit(o.put)
		if e := (*parry.Error)(nil); o.err != nil && !errors.As(o.err, &e) {
			return o.err
		}
	}
	return a.write()
}

// admitter holds what a batch of requests needs to know, and what it changes.
type admitter struct {
	t       *tx
	live    map[string]*block // by natural key
	ended   map[string]*block // newest ended one, where it was asked for or ended here
	deleted map[string]int64  // when an operator last deleted a block of the key
	byID    map[parry.BlockID]*block
	keys    map[[32]byte]idempotent

	touched  []*block // in order
	requests []*request
	newKeys  []any
	listed   []*put // accepted, with entries for lists
}

// block is a row, with what becomes of it in this transaction.
type block struct {
	parry.Block
	key            string
	created, dirty bool
}

type request struct {
	*parry.Request
	slot int64
}

type idempotent struct {
	hash    [32]byte
	block   parry.BlockID
	request parry.RequestID
}

func idempotencyKey(i *parry.Idempotency) [32]byte {
	return sha256.Sum256([]byte(i.Scope + "\x00" + i.Key))
}

// widened is the key without what costs a rule of its own; ok is false when there is nothing to drop.
func widened(k parry.Key) (_ parry.Key, what string, ok bool) {
	if !k.Destination.IsValid() && k.Protocol == parry.ProtoAny && k.Port == 0 {
		return k, "", false
	}
	if k.Destination.IsValid() {
		what = "destination " + parry.FormatPrefix(k.Destination)
	}
	proto := ""
	switch {
	case k.Port != 0 && k.Protocol != parry.ProtoAny:
		proto = fmt.Sprintf("port %d/%s", k.Port, k.Protocol)
	case k.Port != 0:
		proto = fmt.Sprintf("port %d", k.Port)
	case k.Protocol != parry.ProtoAny:
		proto = "protocol " + string(k.Protocol)
	}
	if what != "" && proto != "" {
		what += " "
	}
	what += proto
	return parry.Key{Match: parry.Match{Source: k.Source, Interface: k.Interface}, Selector: k.Selector}, what, true
}

// load reads what the batch's keys have met before.
func (a *admitter) load(ops []*op) error {
	seen := make(map[string]bool, len(ops))
	var keys, ids []any
	want := func(k *parry.Key) {
		if s := formatKey(k); !seen[s] {
			seen[s] = true
			keys = append(keys, s)
		}
	}
	for _, o := range ops {
		want(&o.put.Key)
		if w, _, ok := widened(o.put.Key); ok && o.put.MaxRules > 0 && o.put.WidenBeyond {
			want(&w)
		}
		if o.put.Idempotency != nil {
			k := idempotencyKey(o.put.Idempotency)
			ids = append(ids, k[:])
		}
	}
	if err := a.t.queryIn(`SELECT `+blockColumns+` FROM blocks WHERE end_rev = 0 AND key IN (%s)`, keys, func(r *sql.Rows) error {
		b, err := scanBlock(r)
		if err == nil {
			a.live[b.key], a.byID[b.ID] = b, b
		}
		return err
	}); err != nil {
		return err
	}
	if err := a.t.queryIn(`SELECT key, max(ended_at) FROM blocks WHERE end_reason = 'deleted' AND key IN (%s) GROUP BY key`, keys, func(r *sql.Rows) error {
		var k string
		var at int64
		err := r.Scan(&k, &at)
		a.deleted[k] = at
		return err
	}); err != nil {
		return err
	}
	return a.t.queryIn(`SELECT k, hash, block_id, request_id FROM idempotency WHERE k IN (%s)`, ids, func(r *sql.Rows) error {
		var k, hash []byte
		var i idempotent
		if err := r.Scan(&k, &hash, &i.block, &i.request); err != nil {
			return err
		}
		copy(i.hash[:], hash)
		a.keys[[32]byte(k)] = i
		return nil
	})
}

// admit decides one request.
func (a *admitter) admit(p *put) error {
	var ik [32]byte
	if p.Idempotency != nil {
		ik = idempotencyKey(p.Idempotency)
		if seen, ok := a.keys[ik]; ok {
			b, err := a.find(seen.block)
			switch {
			case err == nil && seen.hash != p.Idempotency.Hash && seen.request != p.Request.ID:
				return &parry.Error{Kind: parry.KindRefused, Detail: "the idempotency key was used for another request",
					Fields: []parry.FieldError{{Pointer: "Idempotency-Key", Detail: "it came with another body before; take a new key for a new request"}}}
			case err == nil:
				own := a.t.again && seen.request == p.Request.ID // this very request, committed although the answer was lost
				p.res = parry.Admitted{Block: b.Block, Request: seen.request, Created: own && b.ID == p.BlockID, Replayed: !own}
				return nil
			case !errors.Is(err, sql.ErrNoRows): // no rows: pruned since, so the key is free again
				return err
			}
		}
	}
	if a.t.again {
		if b, err := a.committed(p); b != nil || err != nil {
			if b != nil {
				p.res = parry.Admitted{Block: b.Block, Request: p.Request.ID, Created: b.ID == p.BlockID}
			}
			return err
		}
	}
	b, created, err := a.decide(p)
	if err != nil {
		return err
	}
	a.count(b, p)
	if p.Idempotency != nil {
		a.keys[ik] = idempotent{hash: p.Idempotency.Hash, block: b.ID, request: p.Request.ID}
		a.newKeys = append(a.newKeys, ik[:], p.Idempotency.Hash[:], string(b.ID), string(p.Request.ID), micros(a.t.now))
	}
	p.res = parry.Admitted{Block: b.Block, Request: p.Request.ID, Created: created}
	if len(p.Lists) > 0 {
		a.listed = append(a.listed, p)
	}
	return nil
}

// decide finds or makes the block that the request counts on: steps 2 to 7.
func (a *admitter) decide(p *put) (b *block, created bool, err error) {
	t := a.t
	event := p.Request.EventTime
	if event.IsZero() {
		event = p.Request.ReceivedAt
	}
	var until time.Time
	if !p.NoEnd {
		until = event.Add(p.Request.TTL)
		if !p.MaxExpires.IsZero() && until.After(p.MaxExpires) {
			until = p.MaxExpires
		}
		until = round(until)
	}
	key, note := p.Key, ""
	for {
		k := formatKey(&key)
		b = a.live[k]
		if b != nil && !b.ExpiresAt.IsZero() && !b.ExpiresAt.After(t.now) {
			a.end(b, parry.EndExpired)
			b = nil
		}
		deleted, ok := a.deleted[k]
		late := !p.NoEnd && !until.After(t.now) || ok && deleted >= micros(event)
		switch {
		case b != nil && late:
			return b, false, nil
		case late:
			if b, err = a.newestEnded(k, key); b != nil || err != nil {
				return b, false, err
			}
			b = a.create(p, k, key, until, note)
			a.end(b, parry.EndExpired)
			return b, true, nil
		case b != nil:
			if p.NoEnd {
				b.ExpiresAt = time.Time{}
			} else if !b.ExpiresAt.IsZero() && until.After(b.ExpiresAt) {
				b.ExpiresAt = until
			}
			return b, false, nil
		}
		if fits, err := t.ruleFits(p, &key.Match); err != nil {
			return nil, false, err
		} else if fits {
			break
		}
		w, what, ok := widened(key)
		if !ok || !p.WidenBeyond {
			return nil, false, parry.Errorf(parry.KindRefused,
				"the firewalls in scope would need more than %d distinct rules (destination, protocol, port, interface); ask for the source alone, or raise the firewall's max_rules",
				p.MaxRules)
		}
		key, note = w, what
	}
	if p.MaxBlocks > 0 && t.live >= p.MaxBlocks {
		return nil, false, parry.Errorf(parry.KindRefused, "there are %d live blocks and no more than %d may be; lift some, or raise blocks.max_blocks",
			t.live, p.MaxBlocks)
	}
	return a.create(p, formatKey(&key), key, until, note), true, nil
}

func (a *admitter) create(p *put, k string, key parry.Key, until time.Time, widened string) *block {
	b := &block{key: k, created: true, dirty: true, Block: parry.Block{
		ID: p.BlockID, Key: key, Rev: a.t.rev, CreatedAt: round(a.t.now), ExpiresAt: until, CreatedBy: p.Request.TokenName, Widened: widened,
	}}
	a.live[k], a.byID[b.ID] = b, b
	a.touched = append(a.touched, b)
	a.t.live++
	a.t.rule(&b.Key, 1)
	return b
}

func (a *admitter) end(b *block, why parry.EndReason) {
	b.EndRev, b.EndReason, b.EndedAt = a.t.rev, why, round(a.t.now)
	delete(a.live, b.key)
	a.ended[b.key] = b
	a.touch(b)
	a.t.live--
	a.t.ended++
	a.t.rule(&b.Key, -1)
}

func (a *admitter) touch(b *block) {
	if !b.dirty {
		b.dirty = true
		a.touched = append(a.touched, b)
	}
}

// count adds the request to the block's evidence.
func (a *admitter) count(b *block, p *put) {
	a.touch(b)
	b.Count++
	b.LastAt = round(p.Request.ReceivedAt)
	b.Reason, b.Origin = p.Request.Reason, p.Request.Origin
	p.Request.BlockID, p.Request.N = b.ID, b.Count
	a.requests = append(a.requests, &request{&p.Request, slot(b.Count)})
}

// slot is where the n-th request of a block is kept.
func slot(n int64) int64 {
	if n <= firstRequests {
		return n
	}
	return firstRequests + 1 + (n-firstRequests-1)%lastRequests
}

// find gives a block by its id, from this batch or the database; sql.ErrNoRows if there is none.
func (a *admitter) find(id parry.BlockID) (*block, error) {
	if b, ok := a.byID[id]; ok {
		return b, nil
	}
	var b *block
	err := a.t.query(`SELECT `+blockColumns+` FROM blocks WHERE id = $1`, []any{string(id)}, func(r *sql.Rows) (err error) {
		b, err = scanBlock(r)
		return err
	})
	if err == nil && b == nil {
		err = sql.ErrNoRows
	}
	if err == nil {
		a.byID[id] = b
	}
	return b, err
}

func (a *admitter) newestEnded(k string, key parry.Key) (b *block, err error) {
	if b, ok := a.ended[k]; ok {
		return b, nil
	}
	err = a.t.query(`SELECT `+blockColumns+` FROM blocks WHERE source = $1 AND key = $2 AND end_rev > 0 ORDER BY ended_at DESC, id DESC LIMIT 1`,
		[]any{sourceKey(key.Source), k}, func(r *sql.Rows) error {
			b, err = scanBlock(r)
			return err
		})
	if err != nil || b == nil {
		return nil, err
	}
	if known, ok := a.byID[b.ID]; ok {
		b = known
	}
	a.ended[k], a.byID[b.ID] = b, b
	return b, nil
}

// committed finds the block of a request that an earlier try has stored.
func (a *admitter) committed(p *put) (*block, error) {
	keys := []parry.Key{p.Key}
	if w, _, ok := widened(p.Key); ok && p.WidenBeyond {
		keys = append(keys, w)
	}
	for _, k := range keys {
		var id parry.BlockID
		err := a.t.row(`SELECT b.id FROM blocks b JOIN requests q ON q.block_id = b.id WHERE b.source = $1 AND b.key = $2 AND q.id = $3`,
			[]any{sourceKey(k.Source), formatKey(&k), string(p.Request.ID)}, &id)
		if err == nil {
			return a.find(id)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
	}
	return nil, nil
}

// write stores what the batch changed: first what ended, so that its key is free for what follows.
func (a *admitter) write() error {
	t := a.t
	var rows []any
	for _, b := range a.touched {
		a.event(b)
		if !b.created {
			err := t.exec(`UPDATE blocks SET changed_rev = $2, end_rev = $3, end_reason = $4, ended_at = $5, expires_at = $6, count = $7, last_at = $8,
				reason = $9, origin = $10 WHERE id = $1`,
				string(b.ID), int64(t.rev), int64(b.EndRev), string(b.EndReason), micros(b.EndedAt), micros(b.ExpiresAt), b.Count, micros(b.LastAt),
				[]byte(b.Reason), []byte(b.Origin))
			if err != nil {
				return err
			}
			continue
		}
		rows = append(rows, string(b.ID), b.key, sourceKey(b.Source), string(b.Selector), int64(b.Rev), int64(t.rev), int64(b.EndRev),
			string(b.EndReason), b.EndedBy, micros(b.EndedAt), micros(b.CreatedAt), micros(b.ExpiresAt), b.Count, micros(b.LastAt),
			[]byte(b.Reason), []byte(b.Origin), b.CreatedBy, b.Widened)
	}
	if err := t.insert(`INSERT INTO blocks (id, key, source, selector, rev, changed_rev, end_rev, end_reason, ended_by, ended_at, created_at,
		expires_at, count, last_at, reason, origin, created_by, widened) VALUES `, 18, rows, ``); err != nil {
		return err
	}
	if err := t.insert(`INSERT INTO requests (block_id, slot, n, id, received_at, event_time, ttl, token_id, token_name, remote, origin, alert_id,
		rule_id, reason) VALUES `, 14, a.evidence(), ` ON CONFLICT (block_id, slot) DO UPDATE SET n = excluded.n, id = excluded.id,
		received_at = excluded.received_at, event_time = excluded.event_time, ttl = excluded.ttl, token_id = excluded.token_id,
		token_name = excluded.token_name, remote = excluded.remote, origin = excluded.origin, alert_id = excluded.alert_id,
		rule_id = excluded.rule_id, reason = excluded.reason`); err != nil {
		return err
	}
	if len(a.touched) > 0 {
		t.wakes |= wakeDesired
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
	case len(a.t.w.s.subscriptions) == 0:
	case b.created && b.Live():
		var first *parry.Request
		for _, q := range a.requests {
			if q.BlockID == b.ID {
				first = q.Request
				break
			}
		}
		a.t.event(parry.NotifyAdded, &b.Block, first)
	case !b.created && b.EndRev == a.t.rev:
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
	rows := make([]any, 0, 14*len(a.requests))
	for i, q := range a.requests {
		if j, ok := last[place{q.BlockID, q.slot}]; ok && j != i {
			continue
		}
		remote := ""
		if q.RemoteAddr.IsValid() {
			remote = q.RemoteAddr.String()
		}
		rows = append(rows, string(q.BlockID), q.slot, q.N, string(q.ID), micros(q.ReceivedAt), micros(q.EventTime), q.TTL.Microseconds(),
			string(q.TokenID), q.TokenName, remote, []byte(q.Origin), []byte(q.AlertID), []byte(q.RuleID), []byte(q.Reason))
	}
	return rows
}
