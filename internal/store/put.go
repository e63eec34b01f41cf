package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
	by  *parry.Actor
	res parry.Admitted
}

func newPut(ctx context.Context, a parry.Admission) *put {
	p := &put{Admission: a, by: parry.ActorOf(ctx)}
	if p.by == parry.Itself { // the request says who asks
		p.by = &parry.Actor{Name: a.Request.TokenName, Token: a.Request.TokenID, Remote: a.Request.RemoteAddr}
	}
	return p
}

// Put takes a request into the desired state. Its answer means committed and fsynced. A full queue is KindUnavailable; a limit, or an
// idempotency key with another body, is KindRefused. When ctx ends first the request may still be taken.
func (s *Store) Put(ctx context.Context, a parry.Admission) (parry.Admitted, error) {
	p := newPut(ctx, a)
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
	select {
	case <-o.done:
	case <-ctx.Done():
		return parry.Admitted{}, fmt.Errorf("put a block: %w (it may still be done)", ctx.Err())
	}
	if o.err != nil {
		return parry.Admitted{}, s.wrap(o.err, "put a block")
	}
	return p.res, nil
}

// putAll decides requests in their order (the package's comment has the rules) and writes the outcome.
func (t *tx) putAll(ops []*op) error {
	a := &admitter{
		t: t, live: make(map[string]*block, len(ops)), ended: map[string]*block{}, deleted: map[string]int64{},
		byID: make(map[parry.BlockID]*block, len(ops)), keys: map[[32]byte]idempotent{}, offenders: make(map[netip.Prefix]*offender, len(ops)),
	}
	t.audits = slices.Grow(t.audits, len(ops))
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

	offenders map[netip.Prefix]*offender
	wide      []*offender // prefixes that have or had grace

	touched  []*block // in order
	offended []*offender
	requests []*request
	newKeys  []any
	listed   []*put // accepted, with entries for lists
	expired  []parry.BlockID
}

// block is a row, with what becomes of it in this transaction.
type block struct {
	parry.Block
	key                      string
	created, realized, dirty bool // realized: a simulated one that has become a real one
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

// targets are the keys that the request may come to count on.
func (p *put) targets() []parry.Key {
	keys := append(make([]parry.Key, 0, 4), p.Key)
	if p.Promote != nil {
		k := p.Key
		k.Source = p.Promote.Prefix
		keys = append(keys, k)
	}
	if p.MaxRules > 0 && p.WidenBeyond {
		for _, k := range keys {
			if w, _, ok := widened(k); ok {
				keys = append(keys, w)
			}
		}
	}
	return keys
}

// load reads what the batch's keys have met before.
func (a *admitter) load(ops []*op) error {
	seen, offenders := make(map[string]bool, len(ops)), make(map[netip.Prefix]bool, len(ops))
	var keys, ids, sources []any
	for _, o := range ops {
		for _, k := range o.put.targets() {
			if s := formatKey(&k); !seen[s] {
				seen[s] = true
				keys = append(keys, s)
			}
			if of := parry.OffenderOf(k.Source); !offenders[of] {
				offenders[of] = true
				sources = append(sources, sourceKey(of))
			}
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
	if err := a.loadOffenders(sources); err != nil {
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
	graceEnded := p.EndsGrace && b.Live() && a.endGrace(p.Key.Source)
	a.audit(p, b, created, graceEnded)
	if p.Idempotency != nil {
		a.keys[ik] = idempotent{hash: p.Idempotency.Hash, block: b.ID, request: p.Request.ID}
		a.newKeys = append(a.newKeys, ik[:], p.Idempotency.Hash[:], string(b.ID), string(p.Request.ID), micros(a.t.now))
	}
	p.res = parry.Admitted{Block: b.Block, Request: p.Request.ID, Created: created, NotPromoted: p.res.NotPromoted}
	if len(p.Lists) > 0 {
		a.listed = append(a.listed, p)
	}
	return nil
}

// decide finds or makes the block that the request counts on: steps 2 to 9.
func (a *admitter) decide(p *put) (b *block, created bool, err error) {
	t := a.t
	if o := a.grace(p.Key.Source); o != nil && !p.EndsGrace {
		return nil, false, parry.RefuseInGrace(p.Key.Source, &o.Offender)
	}
	event := p.Request.EventTime
	if event.IsZero() {
		event = p.Request.ReceivedAt
	}
	end := func(ttl time.Duration) time.Time {
		if p.NoEnd {
			return time.Time{}
		}
		until := event.Add(ttl)
		if !p.MaxExpires.IsZero() && until.After(p.MaxExpires) {
			until = p.MaxExpires
		}
		return round(until)
	}
	until := end(p.Request.TTL)
	to := block{Block: parry.Block{Key: p.Key, Simulated: p.Simulate}}
	var shadow *block // a simulated one of the key, of which a request that is none makes a real one
	for promoted := false; ; {
		to.key = formatKey(&to.Key)
		b, shadow = a.live[to.key], nil
		if b != nil && !b.ExpiresAt.IsZero() && !b.ExpiresAt.After(t.now) {
			a.end(b, parry.EndExpired)
			a.expired = append(a.expired, b.ID)
			b = nil
		}
		deleted, ok := a.deleted[to.key]
		late := !p.NoEnd && !until.After(t.now) || ok && deleted >= micros(event)
		switch {
		case b != nil && (late || p.Simulate && !b.Simulated):
			return b, false, nil
		case late:
			if b, err = a.newestEnded(to.key, to.Key); b != nil || err != nil {
				return b, false, err
			}
			to.ExpiresAt = until
			b = a.create(p, &to)
			a.end(b, parry.EndExpired)
			return b, true, nil
		case b != nil && b.Simulated && !p.Simulate:
			shadow = b
		case b != nil:
			if p.Ladder != nil && p.LadderTTL && b.Offence > 0 {
				until = end(max(p.Request.TTL, p.Ladder.Least(a.offender(b.Source).Rung)))
			}
			if p.NoEnd {
				b.ExpiresAt = time.Time{}
			} else if !b.ExpiresAt.IsZero() && until.After(b.ExpiresAt) {
				b.ExpiresAt = until
			}
			return b, false, nil
		}
		if p.Promote != nil && !promoted {
			promoted = true
			k, n, why, err := a.promoted(p, event)
			if err != nil {
				return nil, false, err
			}
			if p.res.NotPromoted = why; n > 0 {
				to.Key, to.Promoted = k, n
				continue
			}
		}
		if fits, err := t.ruleFits(p, &to.Match); err != nil {
			return nil, false, err
		} else if fits {
			break
		}
		w, what, ok := widened(to.Key)
		if !ok || !p.WidenBeyond {
			return nil, false, parry.Errorf(parry.KindRefused,
				"the firewalls in scope would need more than %d distinct rules (destination, protocol, port, interface); ask for the source alone, or raise the firewall's max_rules",
				p.MaxRules)
		}
		to.Key, to.Widened = w, what
	}
	if p.MaxBlocks > 0 && shadow == nil && t.live >= p.MaxBlocks {
		return nil, false, parry.Errorf(parry.KindRefused, "there are %d live blocks and no more than %d may be; lift some, or raise blocks.max_blocks",
			t.live, p.MaxBlocks)
	}
	to.ExpiresAt = until
	if p.Ladder != nil {
		o, err := a.offence(p, to.Source)
		if err != nil {
			return nil, false, err
		}
		if to.Offence = o.Offences; p.LadderTTL {
			to.ExpiresAt = end(max(p.Request.TTL, p.Ladder.Least(o.Rung)))
		}
		o.stand(to.ExpiresAt)
	}
	if shadow != nil {
		return a.realize(shadow, &to), false, nil
	}
	return a.create(p, &to), true, nil
}

// realize makes a real block of a simulated one, which keeps its id and its evidence.
func (a *admitter) realize(b, to *block) *block {
	b.Simulated, b.realized, b.Rev, b.ExpiresAt, b.Offence = false, true, a.t.rev, to.ExpiresAt, to.Offence
	a.touch(b)
	a.t.rule(&b.Key, 1)
	return b
}

// create makes a block from what was decided of it.
func (a *admitter) create(p *put, b *block) *block {
	b.created, b.dirty = true, true
	b.ID, b.Rev, b.CreatedAt, b.CreatedBy = p.BlockID, a.t.rev, round(a.t.now), p.Request.TokenName
	a.live[b.key], a.byID[b.ID] = b, b
	a.touched = append(a.touched, b)
	a.t.live++
	if !b.Simulated {
		a.t.rule(&b.Key, 1)
	}
	return b
}

func (a *admitter) end(b *block, why parry.EndReason) {
	b.EndRev, b.EndReason, b.EndedAt = a.t.rev, why, round(a.t.now)
	delete(a.live, b.key)
	a.ended[b.key] = b
	a.touch(b)
	a.t.live--
	a.t.ended++
	if !b.Simulated {
		a.t.rule(&b.Key, -1)
	}
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
	p.Request.BlockID, p.Request.N, p.Request.Source = b.ID, b.Count, netip.Prefix{}
	if b.Source != p.Key.Source {
		p.Request.Source = p.Key.Source
	}
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
	for _, k := range p.targets() {
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
