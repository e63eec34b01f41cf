package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/parry"
)

const maxLists = 256

// list is a row of lists.
type list struct {
	parry.List
	rows    int64 // with what has run out and is not swept yet
	lastPut string
}

const listColumns = `id, name, type, ttl, max_ttl, refresh, capacity, comment, subdomains, hit_syslog, hit_every, source, created_by, created_at,
	entries, last_put`

func scanList(r *sql.Rows) (l list, err error) {
	var ttl, maxTTL, subdomains, hit, every, created int64
	var comment sql.RawBytes
	err = r.Scan(&l.ID, &l.Name, &l.Type, &ttl, &maxTTL, &l.Refresh, &l.Capacity, &comment, &subdomains, &hit, &every, &l.Source, &l.CreatedBy,
		&created, &l.rows, &l.lastPut)
	l.TTL, l.MaxTTL, l.Comment, l.Subdomains = fromTTL(ttl), fromTTL(maxTTL), string(comment), subdomains != 0
	l.OnHit = parry.OnHit{Syslog: hit != 0, Every: fromTTL(every)}
	l.CreatedAt = fromMicros(created)
	return l, err
}

func fromTTL(us int64) time.Duration { return time.Duration(us) * time.Microsecond }

// readList finds a list by its name.
func (t *tx) readList(name string) (l list, err error) {
	found := false
	err = t.query(`SELECT `+listColumns+` FROM lists WHERE name = $1 AND deleted_at = 0`, []any{name}, func(r *sql.Rows) (err error) {
		found = true
		l, err = scanList(r)
		return err
	})
	if err == nil && !found {
		err = noList(name)
	}
	return l, err
}

func noList(name string) error { return parry.Errorf(parry.KindNotFound, "there is no list %q", name) }

// CreateList makes a list. KindConflict when there is one of its name, KindRefused when there are too many.
func (s *Store) CreateList(ctx context.Context, l parry.List) (parry.List, error) {
	err := s.write(ctx, "create list "+l.Name, func(t *tx) error {
		have, err := t.readList(l.Name)
		switch {
		case err == nil && t.again && have.CreatedBy == l.CreatedBy && have.CreatedAt.Equal(round(l.CreatedAt)):
			l = have.List
			return nil
		case err == nil:
			return parry.Errorf(parry.KindConflict, "there is a list %q already, of type %s; delete it or take another name", l.Name, have.Type)
		case parry.KindOf(err) != parry.KindNotFound:
			return err
		}
		l.Source = parry.ListAPI
		t.audit(parry.ActListCreate, l.Name, map[string]any{"type": l.Type, "capacity": l.Capacity, "comment": audit.Plain(l.Comment, 256)})
		l.ID, err = t.insertList(&l)
		return err
	})
	l.CreatedAt = round(l.CreatedAt)
	return l, err
}

func (t *tx) insertList(l *parry.List) (id int64, err error) {
	var n int64
	if err := t.row(`SELECT count(*), coalesce(max(id), 0) + 1 FROM lists`, nil, &n, &id); err != nil {
		return 0, err
	}
	if n >= maxLists {
		return 0, parry.Errorf(parry.KindRefused, "there are %d lists and no more than that may be; delete one (its room is free within the hour)", maxLists)
	}
	t.wakes |= wakeLists
	return id, t.exec(`INSERT INTO lists (`+listColumns+`, deleted_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 0, '', 0)`,
		append([]any{id, l.Name}, append(listSettings(l), string(l.Source), l.CreatedBy, micros(l.CreatedAt))...)...)
}

// listSettings are the columns from type to hit_every.
func listSettings(l *parry.List) []any {
	return []any{string(l.Type), l.TTL.Microseconds(), l.MaxTTL.Microseconds(), string(l.Refresh), l.Capacity, []byte(l.Comment), flag(l.Subdomains),
		flag(l.OnHit.Syslog), l.OnHit.Every.Microseconds()}
}

// DeleteList takes a list away with all that is on it. KindConflict when it is one of the configuration.
func (s *Store) DeleteList(ctx context.Context, name, by string) error {
	err := s.write(ctx, "delete list "+name, func(t *tx) error {
		l, err := t.readList(name)
		switch {
		case t.again && parry.KindOf(err) == parry.KindNotFound:
			return nil
		case err != nil:
			return err
		case l.Source == parry.ListConfigured:
			return parry.Errorf(parry.KindConflict, "the list %q is one of the configuration: take it out there first", name)
		}
		t.wakes |= wakeLists
		t.audit(parry.ActListDelete, name, map[string]any{"type": l.Type, "rows": l.rows})
		return t.exec(`UPDATE lists SET deleted_at = $2 WHERE id = $1`, l.ID, micros(t.now))
	})
	if err == nil {
		s.log.Info("a list was deleted", "list", name, "by", by)
	}
	return err
}

// SyncLists brings the configured lists up to date. One that the API made before becomes configured, with its entries; one that the
// configuration has no longer keeps its entries and becomes one that the API may delete. KindConflict, and nothing done, when a list would change
// its type while there is something on it.
func (s *Store) SyncLists(ctx context.Context, configured []parry.List) error {
	return s.write(ctx, "sync the configured lists", func(t *tx) error {
		have := map[string]list{}
		if err := t.query(`SELECT `+listColumns+` FROM lists WHERE deleted_at = 0`, nil, func(r *sql.Rows) error {
			l, err := scanList(r)
			have[l.Name] = l
			return err
		}); err != nil {
			return err
		}
		for i := range configured {
			l := &configured[i]
			if h, ok := have[l.Name]; ok && h.Type != l.Type && h.rows > 0 {
				return parry.Errorf(parry.KindConflict, "the list %q holds keys of type %s and cannot become one of type %s; give it another name, "+
					"or take it out of the configuration, delete it and configure it anew", l.Name, h.Type, l.Type)
			}
		}
		for _, l := range configured {
			l.Source = parry.ListConfigured
			h, ok := have[l.Name]
			delete(have, l.Name)
			l.ID, l.CreatedBy, l.CreatedAt = h.ID, h.CreatedBy, h.CreatedAt
			switch {
			case !ok:
				l.CreatedAt = t.now
				if _, err := t.insertList(&l); err != nil {
					return err
				}
			case l != h.List:
				t.wakes |= wakeLists
				if err := t.exec(`UPDATE lists SET type = $2, ttl = $3, max_ttl = $4, refresh = $5, capacity = $6, comment = $7, subdomains = $8,
					hit_syslog = $9, hit_every = $10, source = $11 WHERE id = $1`,
					append(append([]any{l.ID}, listSettings(&l)...), string(l.Source))...); err != nil {
					return err
				}
			}
		}
		for _, h := range have {
			if h.Source != parry.ListConfigured {
				continue
			}
			t.wakes |= wakeLists
			if err := t.exec(`UPDATE lists SET source = $2 WHERE id = $1`, h.ID, string(parry.ListAPI)); err != nil {
				return err
			}
		}
		return nil
	})
}

// ListChanges reads, in one snapshot, the revision, the lists, and each entry that was written after since; since 0, the live ones. Entries
// are in no order.
func (s *Store) ListChanges(ctx context.Context, since parry.Revision) (c parry.ListChanges, err error) {
	tx, err := s.reads.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return c, s.wrap(err, "read the lists")
	}
	defer func() { _ = tx.Rollback() }()
	if err := tx.QueryRowContext(ctx, `SELECT rev FROM state WHERE one = 1`).Scan(&c.Revision); err != nil {
		return c, s.wrap(err, "read the revision")
	}
	names, rows := map[int64]string{}, int64(0)
	c.Lists, err = collect(ctx, tx, `SELECT `+listColumns+` FROM lists WHERE deleted_at = 0 ORDER BY name`, nil, func(r *sql.Rows) (parry.List, error) {
		l, err := scanList(r)
		names[l.ID] = l.Name
		rows += l.rows
		return l.List, err
	})
	if err != nil {
		return c, s.wrap(err, "read the lists")
	}
	q, args := `SELECT `+entryColumns+` FROM list_entries WHERE rev > $1`, []any{int64(since)}
	if since == 0 {
		q, args = `SELECT `+entryColumns+` FROM list_entries WHERE expires_at = 0 OR expires_at > $1`, []any{micros(s.now())}
		c.Entries = make([]parry.ListEntry, 0, rows)
	}
	found, err := tx.QueryContext(ctx, q, args...)
	if err != nil {
		return c, s.wrap(err, "read the lists' entries")
	}
	defer found.Close()
	for found.Next() {
		id, e, err := scanEntry(found)
		if err != nil {
			return c, s.wrap(err, "read the lists' entries")
		}
		if name, ok := names[id]; ok {
			e.List = name
			c.Entries = append(c.Entries, e.ListEntry)
		}
	}
	return c, s.wrap(found.Err(), "read the lists' entries")
}

const (
	sweepAfter   = time.Hour          // an entry that has run out stays for so long, so that a replica that was away learns of it
	removedStays = 7 * 24 * time.Hour // what an operator took off is remembered for so long, against spools
)

// sweepLists takes out what has run out and the entries of deleted lists.
func (s *Store) sweepLists(ctx context.Context, now time.Time) (total int64, err error) {
	type target struct {
		id      int64
		deleted bool
	}
	all, err := collect(ctx, s.reads, `SELECT id, deleted_at FROM lists WHERE entries > 0 OR deleted_at > 0`, nil, func(r *sql.Rows) (t target, err error) {
		var deleted int64
		err = r.Scan(&t.id, &deleted)
		t.deleted = deleted > 0
		return t, err
	})
	if err != nil {
		return 0, s.wrap(err, "find lists to sweep")
	}
	for _, l := range all {
		find, args := `SELECT key FROM list_entries WHERE list_id = $1 AND expires_at > 0 AND expires_at < $2 AND removed_at < $3 LIMIT $4`,
			[]any{l.id, micros(now.Add(-sweepAfter)), micros(now.Add(-removedStays)), int64(endBatch)}
		if l.deleted {
			find, args = `SELECT key FROM list_entries WHERE list_id = $1 LIMIT $2`, []any{l.id, int64(endBatch)}
		}
		for n := int64(endBatch); n == endBatch; total += n {
			err = s.write(ctx, "sweep the lists", func(t *tx) error {
				keys, err := t.ids(find, args...)
				if n = int64(len(keys)); err != nil {
					return err
				}
				for _, part := range chunks(keys, 64) {
					if err := t.exec(`DELETE FROM list_entries WHERE list_id = $1 AND key IN (`+placeholders(2, len(part))+`)`,
						append([]any{l.id}, part...)...); err != nil {
						return err
					}
				}
				if l.deleted && n < endBatch {
					return t.exec(`DELETE FROM lists WHERE id = $1`, l.id)
				}
				return t.exec(`UPDATE lists SET entries = entries - $2 WHERE id = $1`, l.id, n)
			})
			if err != nil {
				return total, err
			}
		}
	}
	return total, nil
}
