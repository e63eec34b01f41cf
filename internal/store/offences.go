package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/parry/parry/internal/parry"
)

// forever is the end of a block that has none, where ends are compared.
var forever = fromMicros(math.MaxInt64)

// offender is a row of table offences, with what becomes of it in this transaction. Its Until is the least that is known: a refresh moves a
// block's end without writing here, so that only a time that is still to come says all.
type offender struct {
	parry.Offender
	known bool // it has a row, or will have one
	asked bool // table blocks was asked for Until
	dirty bool
}

// isWide tells whether a grace of an offender holds for what lies in it, too. That of an IPv6 address is of its /64 anyway.
func isWide(p netip.Prefix) bool {
	return p.Addr().Is4() && p.Bits() < 32 || p.Addr().Is6() && p.Bits() < 64
}

const offenceColumns = `source, offences, rung, last_at, until, grace_until, grace_by`

func scanOffender(r *sql.Rows) (*offender, error) {
	o := &offender{known: true}
	var source []byte
	var last, until, grace int64
	if err := r.Scan(&source, &o.Offences, &o.Rung, &last, &until, &grace, &o.GraceBy); err != nil {
		return nil, err
	}
	o.LastAt, o.Until, o.GraceUntil = fromMicros(last), fromMicros(until), fromMicros(grace)
	var err error
	o.Source, err = parseSource(source)
	o.GraceOf = o.Source
	return o, err
}

// lastEnd is when the last of an offender's blocks has ended or will end; the greatest number for never, 0 when there are none. What expired
// ended at its time, whenever that was noticed; what was born ended never blocked anything.
const lastEnd = `SELECT coalesce(max(CASE WHEN end_rev = 0 AND expires_at = 0 THEN 9223372036854775807 WHEN end_rev = 0 THEN expires_at
	WHEN ended_at <= created_at THEN 0 WHEN end_reason = 'expired' THEN expires_at ELSE ended_at END), 0)
	FROM blocks WHERE simulated = 0 AND source BETWEEN $1 AND $2`

// ownBlocks is the range of sources whose blocks are the offender's.
func ownBlocks(p netip.Prefix) []any {
	if p.Addr().Is6() && p.Bits() == 64 {
		return []any{sourceKey(p), sourceEnd(p)}
	}
	return []any{sourceKey(p), sourceKey(p)}
}

// loadOffenders reads what is known of the offenders, and the graces of prefixes.
func (a *admitter) loadOffenders(sources []any) error {
	return a.t.queryIn(`SELECT `+offenceColumns+` FROM offences WHERE source IN (%s)
		UNION ALL SELECT `+offenceColumns+` FROM offences WHERE wide = 1 AND grace_until > 0`, sources, func(r *sql.Rows) error {
		o, err := scanOffender(r)
		if err != nil || a.offenders[o.Source] != nil {
			return err
		}
		a.offenders[o.Source] = o
		if isWide(o.Source) {
			a.wide = append(a.wide, o)
		}
		return nil
	})
}

// offender is what is known of a source that load has asked for.
func (a *admitter) offender(source netip.Prefix) *offender {
	source = parry.OffenderOf(source)
	o := a.offenders[source]
	if o == nil {
		o = &offender{Offender: parry.Offender{Source: source}}
		a.offenders[source] = o
	}
	return o
}

// grace finds the grace that a source has, its own or that of a prefix which holds it.
func (a *admitter) grace(source netip.Prefix) *offender {
	if o := a.offender(source); o.GraceUntil.After(a.t.now) {
		return o
	}
	for _, o := range a.wide {
		if o.GraceUntil.After(a.t.now) && o.Source.Bits() <= source.Bits() && o.Source.Contains(source.Addr()) {
			return o
		}
	}
	return nil
}

// endGrace is for the operator whose request was taken. It tells whether there was one.
func (a *admitter) endGrace(source netip.Prefix) bool {
	o := a.offender(source)
	if o.GraceUntil.IsZero() {
		return false
	}
	a.change(o)
	o.GraceUntil, o.GraceBy = time.Time{}, ""
	return true
}

// offence counts a new block of the source, unless it belongs to an offence that still lasts. Nothing may refuse the block after that.
func (a *admitter) offence(p *put, source netip.Prefix) (*offender, error) {
	o, now := a.offender(source), a.t.now
	if o.known && !o.asked && !o.Until.After(now) {
		o.asked = true
		var end int64
		if err := a.t.row(lastEnd, ownBlocks(o.Source), &end); err != nil {
			return nil, err
		}
		if at := fromMicros(end); at.After(o.Until) {
			o.Until = at
			a.change(o)
		}
	}
	o.Standing = o.Until.After(now)
	if !o.Standing || o.Offences == 0 {
		o.Offences, o.Rung = p.Ladder.Next(&o.Offender, now)
		o.LastAt = round(now)
		a.change(o)
	}
	return o, nil
}

// stand notes until when a new block of the offender stands.
func (o *offender) stand(until time.Time) {
	if until.IsZero() {
		until = forever
	}
	if until.After(o.Until) {
		o.Until = until
	}
}

func (a *admitter) change(o *offender) {
	o.known = true
	if !o.dirty {
		o.dirty = true
		a.offended = append(a.offended, o)
	}
}

// promoted gives the key of the prefix that the request is to block instead of its source, and of how many sources; why not, when it would
// but for something; neither when there are not enough sources.
func (a *admitter) promoted(p *put, event time.Time) (k parry.Key, n int, why string, err error) {
	pr := p.Promote
	k = p.Key
	k.Source = pr.Prefix
	text := formatKey(&k)
	if b := a.live[text]; b != nil && b.Promoted > 0 && (b.ExpiresAt.IsZero() || b.ExpiresAt.After(a.t.now)) {
		n = b.Promoted
	} else if n, err = a.neighbours(p); err != nil || n < pr.Sources {
		return k, 0, "", err
	}
	if why = pr.Barred; why != "" {
		return k, 0, why, nil
	}
	if deleted, ok := a.deleted[text]; ok && deleted >= micros(event) {
		return k, 0, fmt.Sprintf("%s was lifted since", pr.Prefix), nil
	}
	spared, err := a.graceWithin(pr.Prefix)
	if spared.IsValid() {
		return k, 0, fmt.Sprintf("%s of %s has been given grace", parry.FormatPrefix(spared), pr.Prefix), err
	}
	return k, n, "", err
}

// neighbours counts the sources of the prefix that were asked for lately, this one included, up to as many as are needed.
func (a *admitter) neighbours(p *put) (int, error) {
	pr := p.Promote
	seen := map[netip.Prefix]bool{p.Key.Source: true}
	for _, b := range a.touched {
		if b.Live() && !b.Simulated && b.Selector == p.Key.Selector && b.Source.Bits() > pr.Prefix.Bits() && pr.Prefix.Contains(b.Source.Addr()) {
			seen[b.Source] = true
			if len(seen) >= pr.Sources {
				return pr.Sources, nil
			}
		}
	}
	err := a.t.query(`SELECT DISTINCT source FROM blocks WHERE source > $1 AND source <= $2 AND selector = $3 AND last_at > $4 AND simulated = 0
			AND (end_rev = 0 OR end_reason = 'expired' AND ended_at > created_at) LIMIT $5`,
		[]any{sourceKey(pr.Prefix), sourceEnd(pr.Prefix), string(p.Key.Selector), micros(pr.Since), int64(pr.Sources)}, func(r *sql.Rows) error {
			var key []byte
			if err := r.Scan(&key); err != nil {
				return err
			}
			source, err := parseSource(key)
			seen[source] = true
			return err
		})
	return min(len(seen), pr.Sources), err
}

// graceWithin finds an offender in the prefix, or one that holds it, that has grace.
func (a *admitter) graceWithin(p netip.Prefix) (spared netip.Prefix, err error) {
	if o := a.grace(p); o != nil {
		return o.Source, nil
	}
	err = a.t.query(`SELECT `+offenceColumns+` FROM offences WHERE source BETWEEN $1 AND $2 AND grace_until > $3`,
		[]any{sourceKey(p), sourceEnd(p), micros(a.t.now)}, func(r *sql.Rows) error {
			o, err := scanOffender(r)
			if err != nil {
				return err
			}
			if mine := a.offenders[o.Source]; mine == nil || mine.GraceUntil.After(a.t.now) { // else it has ended in this batch
				spared = o.Source
			}
			return nil
		})
	return spared, err
}

// writeOffences stores rows of offenders whole.
func (t *tx) writeOffences(os ...*offender) error {
	rows := make([]any, 0, 8*len(os))
	for _, o := range os {
		rows = append(rows, sourceKey(o.Source), flag(isWide(o.Source)), int64(o.Offences), int64(o.Rung), micros(o.LastAt), micros(o.Until),
			micros(o.GraceUntil), o.GraceBy)
	}
	return t.insert(`INSERT INTO offences (source, wide, offences, rung, last_at, until, grace_until, grace_by) VALUES `, 8, rows,
		` ON CONFLICT (source) DO UPDATE SET offences = excluded.offences, rung = excluded.rung, last_at = excluded.last_at,
		until = excluded.until, grace_until = excluded.grace_until, grace_by = excluded.grace_by`)
}

// askAgain forgets until when the offenders' blocks stand: one of them has ended early.
func (t *tx) askAgain(sources []netip.Prefix) error {
	keys := make([]any, len(sources))
	for i, s := range sources {
		keys[i] = sourceKey(parry.OffenderOf(s))
	}
	return t.queryIn(`UPDATE offences SET until = 0 WHERE source IN (%s)`, keys, func(*sql.Rows) error { return nil })
}

// lift carries out what an operator's word says of the offender. It follows the end of the block.
func (t *tx) lift(source netip.Prefix, l parry.Lift) error {
	if !l.Forget && l.Grace < 0 {
		return nil
	}
	o := &offender{Offender: parry.Offender{Source: parry.OffenderOf(source), LastAt: round(t.now)}}
	err := t.query(`SELECT `+offenceColumns+` FROM offences WHERE source = $1`, []any{sourceKey(o.Source)}, func(r *sql.Rows) (err error) {
		o, err = scanOffender(r)
		return err
	})
	if err != nil {
		return err
	}
	if l.Forget {
		o.Offences, o.Rung = 0, 0
	}
	switch {
	case l.Grace > 0:
		o.GraceUntil, o.GraceBy = round(t.now.Add(l.Grace)), l.By
	case l.Grace == 0:
		o.GraceUntil, o.GraceBy = time.Time{}, ""
	}
	if o.Offences == 0 && o.GraceUntil.IsZero() {
		return t.exec(`DELETE FROM offences WHERE source = $1`, sourceKey(o.Source))
	}
	return t.writeOffences(o)
}

// Offender tells what is known of the offender that a source belongs to; a grace may be that of a prefix which holds it.
func (s *Store) Offender(ctx context.Context, source netip.Prefix) (parry.Offender, error) {
	out := parry.Offender{Source: parry.OffenderOf(source)}
	doing := "read the offences of " + out.Source.String()
	wider := parents(out.Source)
	all, err := collect(ctx, s.reads, `SELECT `+offenceColumns+` FROM offences WHERE source IN (`+placeholders(1, len(wider))+`)`, wider, scanOffender)
	if err != nil {
		return out, s.wrap(err, doing)
	}
	now := s.now()
	for _, o := range all {
		if o.Source == out.Source {
			grace, by, of := out.GraceUntil, out.GraceBy, out.GraceOf
			out = o.Offender
			out.GraceUntil, out.GraceBy, out.GraceOf = grace, by, of
		}
		if o.GraceUntil.After(now) && o.GraceUntil.After(out.GraceUntil) {
			out.GraceUntil, out.GraceBy, out.GraceOf = o.GraceUntil, o.GraceBy, o.Source
		}
	}
	var end int64
	if err := s.reads.QueryRowContext(ctx, lastEnd, ownBlocks(out.Source)...).Scan(&end); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return out, s.wrap(err, doing)
	}
	if at := fromMicros(end); at.After(out.Until) {
		out.Until = at
	}
	out.Standing = out.Until.After(now)
	if out.Until.Equal(forever) {
		out.Until = time.Time{}
	}
	return out, nil
}
