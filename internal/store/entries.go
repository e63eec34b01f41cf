package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/parry"
)

// PutEntries makes or refreshes entries of a list, all of them in one transaction or none: KindNotFound when there is no such list, KindRefused
// when they do not all fit. The list's TTL, cap and mode are applied here. The puts' keys are canonical.
//
// A put counts once, whatever became of the commit's answer; only if another replica put on the same list between the two tries does it count twice.
func (s *Store) PutEntries(ctx context.Context, name string, puts []parry.ListPut) (done parry.ListDone, err error) {
	id := rand.Text()
	err = s.write(ctx, "put entries on list "+name, func(t *tx) error { return t.putEntries(name, id, puts, &done) })
	return done, err
}

func (t *tx) putEntries(name, id string, puts []parry.ListPut, done *parry.ListDone) error {
	l, err := t.readList(name)
	if err != nil {
		return err
	}
	if t.again && l.lastPut == id {
		*done = parry.ListDone{Revision: t.rev, Refreshed: len(puts)}
		return nil
	}
	p, err := t.newListing(l, puts)
	if err != nil {
		return err
	}
	for i := range puts {
		if err := p.put(&puts[i]); err != nil {
			return err
		}
	}
	if p.beyond > 0 {
		return parry.Errorf(parry.KindRefused, "the list %q is full: %d entries stand on it, it takes %d, and %d of these do not fit; nothing was put. "+
			"Raise its capacity, shorten its TTL, or take entries off", name, l.Capacity-p.free(), l.Capacity, p.beyond)
	}
	*done = p.done
	t.auditPut(name, puts, done)
	return p.write(id)
}

// listing puts on one list within a transaction. Nothing is written before write.
type listing struct {
	t       *tx
	l       list
	have    map[string]*listRow
	touched []*listRow
	room    int64 // for entries that make the list longer
	counted bool  // room knows of what has run out
	newRows int64
	beyond  int // puts that found no room
	done    parry.ListDone
}

type listRow struct {
	parry.ListEntry
	removedAt             time.Time
	stored, live, touched bool
}

const entryColumns = `list_id, key, rev, count, first_seen, last_seen, expires_at, removed_at, sources, comment, alert_id, rule_id, put_by`

func scanEntry(r *sql.Rows) (listID int64, e listRow, err error) {
	var first, last, expires, removed int64
	var sources, comment, alert, rule sql.RawBytes
	if err = r.Scan(&listID, &e.Key, &e.Rev, &e.Count, &first, &last, &expires, &removed, &sources, &comment, &alert, &rule, &e.By); err != nil {
		return listID, e, err
	}
	e.FirstSeen, e.LastSeen, e.ExpiresAt, e.removedAt = fromMicros(first), fromMicros(last), fromMicros(expires), fromMicros(removed)
	e.Comment, e.AlertID, e.RuleID = string(comment), string(alert), string(rule)
	if len(sources) > len(`[]`) {
		err = json.Unmarshal(sources, &e.Sources)
	}
	return listID, e, err
}

// newListing reads the rows that the puts' keys have.
func (t *tx) newListing(l list, puts []parry.ListPut) (*listing, error) {
	p := &listing{t: t, l: l, have: make(map[string]*listRow, len(puts)), room: l.Capacity - l.rows, done: parry.ListDone{Revision: t.rev}}
	keys := make([]any, 0, len(puts))
	for i := range puts {
		if _, ok := p.have[puts[i].Key]; !ok {
			p.have[puts[i].Key] = &listRow{ListEntry: parry.ListEntry{List: l.Name, Key: puts[i].Key}}
			keys = append(keys, puts[i].Key)
		}
	}
	const q = `SELECT ` + entryColumns + ` FROM list_entries WHERE list_id = $1 AND key IN (%s)`
	for _, part := range chunks(keys, 64) {
		st, err := t.list(q, len(part), func() string { return fmt.Sprintf(q, placeholders(2, len(part))) })
		if err != nil {
			return nil, err
		}
		if err := t.read(st, q, append([]any{l.ID}, part...), func(r *sql.Rows) error {
			_, e, err := scanEntry(r)
			e.List, e.stored, e.live = l.Name, true, e.Live(t.now)
			p.have[e.Key] = &e
			return err
		}); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// put decides one put.
func (p *listing) put(q *parry.ListPut) error {
	e, now := p.have[q.Key], p.t.now
	seen := round(q.SeenAt)
	until := p.until(q, seen)
	late := !until.IsZero() && !until.After(now) || !e.removedAt.IsZero() && !seen.After(e.removedAt)
	if late && !e.live {
		p.done.Late++
		return nil
	}
	if !e.live {
		fits, err := p.fits()
		if err != nil {
			return err
		}
		if !fits {
			p.beyond++
			return nil
		}
		p.room--
		p.done.Added++
		if !e.stored {
			p.newRows++
		}
		e.ListEntry = parry.ListEntry{List: e.List, Key: e.Key, FirstSeen: seen, LastSeen: seen, ExpiresAt: until}
		e.removedAt, e.stored, e.live = time.Time{}, true, true
	} else {
		if late {
			p.done.Late++
		} else {
			p.done.Refreshed++
			e.ExpiresAt = refreshed(p.l.Refresh, &e.ListEntry, seen, until)
		}
		if seen.After(e.LastSeen) {
			e.LastSeen = seen
		}
		if seen.Before(e.FirstSeen) {
			e.FirstSeen = seen
		}
	}
	e.Count++
	e.Rev, e.By = p.t.rev, q.By
	for _, f := range []struct {
		to   *string
		text string
	}{{&e.Comment, q.Comment}, {&e.AlertID, q.AlertID}, {&e.RuleID, q.RuleID}} {
		if f.text != "" {
			*f.to = strings.ToValidUTF8(f.text, "\ufffd") // readers in SQL rely on it
		}
	}
	if q.Origin != "" && len(e.Sources) < parry.MaxListSources && !slices.Contains(e.Sources, q.Origin) {
		e.Sources = append(slices.Clip(e.Sources), q.Origin)
	}
	if !e.touched {
		e.touched = true
		p.touched = append(p.touched, e)
	}
	return nil
}

// until is when a put would end, within the list's cap; zero is without end.
func (p *listing) until(q *parry.ListPut, seen time.Time) time.Time {
	ttl, most := q.TTL, p.l.MaxTTL
	if ttl == 0 && !q.NoEnd {
		ttl = p.l.TTL
	}
	switch {
	case most > 0 && (ttl == 0 || ttl > most):
		ttl = most
	case ttl == 0:
		return time.Time{}
	}
	return round(seen.Add(ttl))
}

// refreshed is the end of an entry after another sight of it.
func refreshed(mode parry.Refresh, e *parry.ListEntry, seen, until time.Time) time.Time {
	switch {
	case mode == parry.RefreshFirstSeen:
	case mode == parry.RefreshLastSeen && !seen.Before(e.LastSeen):
		return until
	case mode == parry.RefreshNeverShorten && !e.ExpiresAt.IsZero() && (until.IsZero() || until.After(e.ExpiresAt)):
		return until
	}
	return e.ExpiresAt
}

// fits tells whether the list may become longer. What has run out is counted only when it must be.
func (p *listing) fits() (bool, error) {
	if p.room <= 0 && !p.counted {
		var over int64
		if err := p.t.row(`SELECT count(*) FROM list_entries WHERE list_id = $1 AND expires_at > 0 AND expires_at <= $2`,
			[]any{p.l.ID, micros(p.t.now)}, &over); err != nil {
			return false, err
		}
		p.room, p.counted = p.room+over, true
	}
	return p.room > 0, nil
}

// free is the room that there was before the puts.
func (p *listing) free() int64 { return p.room + int64(p.done.Added) }

// write stores what the puts changed.
func (p *listing) write(id string) error {
	t := p.t
	rows := make([]any, 0, 13*len(p.touched))
	for _, e := range p.touched {
		sources := []byte(`[]`)
		if len(e.Sources) > 0 {
			var err error
			if sources, err = json.Marshal(e.Sources); err != nil {
				return fmt.Errorf("sources of %s: %w", e.Key, err)
			}
		}
		rows = append(rows, p.l.ID, e.Key, int64(e.Rev), e.Count, micros(e.FirstSeen), micros(e.LastSeen), micros(e.ExpiresAt), int64(0),
			string(sources), []byte(e.Comment), []byte(e.AlertID), []byte(e.RuleID), e.By)
	}
	if err := t.insert(`INSERT INTO list_entries (`+entryColumns+`) VALUES `, 13, rows, ` ON CONFLICT (key, list_id) DO UPDATE SET rev = excluded.rev,
		count = excluded.count, first_seen = excluded.first_seen, last_seen = excluded.last_seen, expires_at = excluded.expires_at,
		removed_at = excluded.removed_at, sources = excluded.sources, comment = excluded.comment, alert_id = excluded.alert_id,
		rule_id = excluded.rule_id, put_by = excluded.put_by`); err != nil {
		return err
	}
	if len(p.touched) > 0 {
		t.wakes |= wakeLists
	}
	return t.exec(`UPDATE lists SET entries = entries + $2, last_put = $3 WHERE id = $1`, p.l.ID, p.newRows, id)
}

// list puts the entries that come with accepted blocks. A list that is full or gone never costs a block.
func (a *admitter) list() error {
	if len(a.listed) == 0 {
		return nil
	}
	byList := map[string][]*put{}
	for _, p := range a.listed {
		for i := range p.Lists {
			if name := p.Lists[i].List; !slices.Contains(byList[name], p) {
				byList[name] = append(byList[name], p)
			}
		}
	}
	for name, asked := range byList {
		l, err := a.t.readList(name)
		if e := (*parry.Error)(nil); err != nil && !errors.As(err, &e) {
			return err
		}
		var puts []parry.ListPut
		for _, p := range asked {
			for i := range p.Lists {
				switch {
				case p.Lists[i].List != name:
				case err != nil:
					p.res.Unlisted = append(p.res.Unlisted, name)
				default:
					puts = append(puts, p.Lists[i].ListPut)
				}
			}
		}
		if err != nil {
			continue
		}
		batch, err := a.t.newListing(l, puts)
		if err != nil {
			return err
		}
		for _, p := range asked {
			for i := range p.Lists {
				if p.Lists[i].List != name {
					continue
				}
				before := batch.beyond
				if err := batch.put(&p.Lists[i].ListPut); err != nil {
					return err
				}
				if batch.beyond > before {
					p.res.Unlisted = append(p.res.Unlisted, name)
				}
			}
		}
		if err := batch.write(""); err != nil {
			return err
		}
	}
	return nil
}

// RemoveEntry takes an entry off its list. KindNotFound when it is not on it, or has run out. What was seen before does not put it back.
func (s *Store) RemoveEntry(ctx context.Context, name, key, by string) (rev parry.Revision, err error) {
	err = s.write(ctx, "remove an entry of list "+name, func(t *tx) error {
		l, err := t.readList(name)
		if err != nil {
			return err
		}
		t.audit(parry.ActListRemove, name, map[string]string{"key": audit.Plain(key, maxObject)})
		n, err := t.execN(`UPDATE list_entries SET rev = $3, expires_at = 1, removed_at = $4
			WHERE list_id = $1 AND key = $2 AND (expires_at = 0 OR expires_at > $4)`, l.ID, key, int64(t.rev), micros(t.now))
		if err == nil && n == 0 && !t.again {
			return parry.Errorf(parry.KindNotFound, "%s is not on the list %q", key, name)
		}
		rev = t.rev
		t.wakes |= wakeLists
		return err
	})
	if err == nil {
		s.log.Info("an entry was taken off a list", "list", name, "key", key, "by", by)
	}
	return rev, err
}
