package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/parry/parry/internal/parry"
)

const blockColumns = `id, key, rev, end_rev, end_reason, ended_by, ended_at, created_at, expires_at, count, last_at, reason, origin, created_by, widened, offence, promoted, simulated`

// scanBlock reads blockColumns.
func scanBlock(r *sql.Rows) (*block, error) {
	b := &block{}
	var key, reason, origin sql.RawBytes
	var ended, created, expires, last, simulated int64
	err := r.Scan(&b.ID, &key, &b.Rev, &b.EndRev, &b.EndReason, &b.EndedBy, &ended, &created, &expires, &b.Count, &last, &reason, &origin,
		&b.CreatedBy, &b.Widened, &b.Offence, &b.Promoted, &simulated)
	if err != nil {
		return nil, err
	}
	b.Simulated = simulated != 0
	b.key, b.Reason, b.Origin = string(key), string(reason), string(origin)
	b.EndedAt, b.CreatedAt, b.ExpiresAt, b.LastAt = fromMicros(ended), fromMicros(created), fromMicros(expires), fromMicros(last)
	b.Key, err = parseKey(b.key)
	return b, err
}

// querier is a read-only pool or a transaction on it.
type querier interface {
	QueryContext(ctx context.Context, q string, args ...any) (*sql.Rows, error)
}

// prepared asks by a statement that was prepared, whatever the text.
type prepared struct{ *sql.Stmt }

func (p prepared) QueryContext(ctx context.Context, _ string, args ...any) (*sql.Rows, error) {
	return p.Stmt.QueryContext(ctx, args...)
}

// collect reads every row with scan.
func collect[T any](ctx context.Context, db querier, q string, args []any, scan func(*sql.Rows) (T, error)) (items []T, err error) {
	rows, err := db.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		items = append(items, v)
	}
	return items, rows.Err()
}

func plainBlock(r *sql.Rows) (parry.Block, error) {
	b, err := scanBlock(r)
	if err != nil {
		return parry.Block{}, err
	}
	return b.Block, nil
}

// Block finds one by id.
func (s *Store) Block(ctx context.Context, id parry.BlockID) (parry.Block, error) {
	bs, err := collect(ctx, s.reads, `SELECT `+blockColumns+` FROM blocks WHERE id = $1`, []any{string(id)}, plainBlock)
	if err != nil {
		return parry.Block{}, s.wrap(err, "read block "+string(id))
	}
	if len(bs) == 0 {
		return parry.Block{}, noBlock(id)
	}
	return bs[0], nil
}

func noBlock(id parry.BlockID) error {
	return parry.Errorf(parry.KindNotFound, "there is no block %s; it may have ended and been forgotten", id)
}

// where gathers conditions and their parameters.
type where struct {
	conds []string
	args  []any
}

// add takes a condition with one %s for each value's parameter.
func (w *where) add(cond string, values ...any) {
	ps := make([]any, len(values))
	for i, v := range values {
		w.args = append(w.args, v)
		ps[i] = "$" + strconv.Itoa(len(w.args))
	}
	w.conds = append(w.conds, fmt.Sprintf(cond, ps...))
}

// in takes a column that must be one of the values.
func (w *where) in(column string, values []any) {
	list := placeholders(len(w.args)+1, len(values))
	w.args = append(w.args, values...)
	w.conds = append(w.conds, column+" IN ("+list+")")
}

func (w *where) String() string {
	if len(w.conds) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conds, " AND ")
}

// Blocks lists blocks, newest first.
func (s *Store) Blocks(ctx context.Context, f parry.BlockFilter) (parry.Page[parry.Block], error) {
	return page(ctx, s, "blocks", 'b', f.Limit, f.Cursor, `SELECT `+blockColumns+` FROM blocks`, matching(&f), plainBlock,
		func(b *parry.Block) string { return string(b.ID) })
}

// matching is a filter as conditions on blocks.
func matching(f *parry.BlockFilter) (w where) {
	if f.Source.IsValid() {
		w.add(`source = %s`, sourceKey(f.Source.Masked()))
	}
	if f.Covering.IsValid() {
		w.in(`source`, parents(f.Covering))
	}
	if f.Within.IsValid() {
		p := f.Within.Masked()
		w.add(`source BETWEEN %s AND %s`, sourceKey(p), sourceEnd(p))
	}
	if f.Selector != "" {
		w.add(`selector = %s`, string(f.Selector))
	}
	if len(f.Selectors) > 0 {
		var any []any
		for _, sel := range f.Selectors {
			any = append(any, string(sel))
		}
		w.in(`selector`, any)
	}
	switch {
	case f.Live == nil:
	case *f.Live:
		w.add(`end_rev = 0`)
	default:
		w.add(`end_rev > 0`)
	}
	if f.Origin != "" {
		w.add(`origin = %s`, []byte(f.Origin))
	}
	if f.CreatedBy != "" {
		w.add(`created_by = %s`, f.CreatedBy)
	}
	if !f.ExpiresBy.IsZero() {
		w.add(`end_rev = 0 AND expires_at > 0 AND expires_at <= %s`, micros(f.ExpiresBy))
	}
	return w
}

// page reads one page of a listing by id, newest first.
func page[T any](ctx context.Context, s *Store, what string, kind byte, limit int, cur, q string, w where, scan func(*sql.Rows) (T, error),
	id func(*T) string) (p parry.Page[T], err error) {
	after, err := readCursor(kind, cur)
	if err != nil {
		return p, err
	}
	if after != "" {
		w.add(`id < %s`, after)
	}
	limit = pageLimit(limit)
	q = fmt.Sprintf("%s%s ORDER BY id DESC LIMIT %d", q, w.String(), limit+1)
	if p.Items, err = collect(ctx, s.reads, q, w.args, scan); err != nil {
		return p, s.wrap(err, "list "+what)
	}
	if len(p.Items) > limit {
		p.Items = p.Items[:limit]
		p.Next = cursor(kind, id(&p.Items[limit-1]))
	}
	return p, nil
}

// Requests lists the evidence of a block, newest first: the first 10 requests and the last 100.
func (s *Store) Requests(ctx context.Context, id parry.BlockID, cur string, limit int) (p parry.Page[parry.Request], err error) {
	at, err := readCursor('q', cur)
	if err != nil {
		return p, err
	}
	before := int64(1) << 62
	if at != "" {
		if before, err = strconv.ParseInt(at, 10, 64); err != nil {
			_, err := readCursor('q', "!")
			return p, err
		}
	}
	if _, err := s.Block(ctx, id); err != nil {
		return p, err
	}
	limit = pageLimit(limit)
	p.Items, err = collect(ctx, s.reads, `SELECT block_id, n, id, received_at, event_time, ttl, token_id, token_name, remote, origin, alert_id,
		rule_id, reason, source FROM requests WHERE block_id = $1 AND n < $2 ORDER BY n DESC LIMIT $3`, []any{string(id), before, limit + 1}, scanRequest)
	if err != nil {
		return p, s.wrap(err, "list the requests of block "+string(id))
	}
	if len(p.Items) > limit {
		p.Items = p.Items[:limit]
		p.Next = cursor('q', strconv.FormatInt(p.Items[limit-1].N, 10))
	}
	return p, nil
}

func scanRequest(r *sql.Rows) (q parry.Request, err error) {
	var received, event, ttl int64
	var remote, source string
	var origin, alert, rule, reason sql.RawBytes
	err = r.Scan(&q.BlockID, &q.N, &q.ID, &received, &event, &ttl, &q.TokenID, &q.TokenName, &remote, &origin, &alert, &rule, &reason, &source)
	if err != nil {
		return q, err
	}
	q.ReceivedAt, q.EventTime, q.TTL = fromMicros(received), fromMicros(event), time.Duration(ttl)*time.Microsecond
	q.Origin, q.AlertID, q.RuleID, q.Reason = string(origin), string(alert), string(rule), string(reason)
	if remote != "" {
		if q.RemoteAddr, err = netip.ParseAddr(remote); err != nil {
			return q, err
		}
	}
	if source != "" {
		q.Source, err = parsePrefix(source)
	}
	return q, err
}

// Changes reads, in one snapshot, the revision and each block whose row was written after since; since 0, the live ones. Blocks are in no
// order.
func (s *Store) Changes(ctx context.Context, since parry.Revision) (c parry.Changes, err error) {
	tx, err := s.reads.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return c, s.wrap(err, "read the changes")
	}
	defer func() { _ = tx.Rollback() }()
	var live int64
	if err := tx.QueryRowContext(ctx, `SELECT rev, live FROM state WHERE one = 1`).Scan(&c.Revision, &live); err != nil {
		return c, s.wrap(err, "read the revision")
	}
	q, args := `SELECT `+blockColumns+` FROM blocks WHERE changed_rev > $1`, []any{int64(since)}
	if since == 0 {
		q, args = `SELECT `+blockColumns+` FROM blocks WHERE end_rev = 0`, nil
		c.Blocks = make([]parry.Block, 0, live)
	}
	rows, err := tx.QueryContext(ctx, q, args...)
	if err != nil {
		return c, s.wrap(err, "read the changes")
	}
	defer rows.Close()
	for rows.Next() {
		b, err := plainBlock(rows)
		if err != nil {
			return c, s.wrap(err, "read the changes")
		}
		c.Blocks = append(c.Blocks, b)
	}
	return c, s.wrap(rows.Err(), "read the changes")
}

// NextDue is when the next live block expires; zero when none does.
func (s *Store) NextDue(ctx context.Context) (time.Time, error) {
	var at int64
	err := s.reads.QueryRowContext(ctx, `SELECT coalesce(min(expires_at), 0) FROM blocks WHERE end_rev = 0 AND expires_at > 0`).Scan(&at)
	return fromMicros(at), s.wrap(err, "find the next block that expires")
}
