package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/parry/parry/internal/parry"
)

const (
	maxBatch = 512                    // operations in one transaction
	moment   = 500 * time.Microsecond // that a transaction waits for more of them, at most
)

// op is one operation on its way through the writer: put, or any other as fn. fn may run twice (see the package's comment) and must not
// have written when it returns an error that bears a kind.
type op struct {
	put   *put
	fn    func(*tx) error
	by    *parry.Actor
	at    time.Time   // of the first try
	taken atomic.Bool // by the writer, or by a caller of fn that gave up: whoever comes second leaves it alone
	err   error
	done  chan struct{}
}

// write runs fn in a writing transaction and waits until that is committed. When ctx ends first, fn is not run at all, or, when it is being
// run, waited for: what it leaves in its caller's variables is whole.
func (s *Store) write(ctx context.Context, doing string, fn func(*tx) error) error {
	o := &op{fn: fn, by: parry.ActorOf(ctx), done: make(chan struct{})}
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return errClosed()
	}
	select {
	case s.queue <- o:
		s.mu.RUnlock()
	case <-ctx.Done():
		s.mu.RUnlock()
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	select {
	case <-o.done:
	case <-ctx.Done():
		if o.taken.CompareAndSwap(false, true) {
			return fmt.Errorf("%s: %w", doing, ctx.Err())
		}
		<-o.done // soon: a batch has a time limit
	}
	return s.wrap(o.err, doing)
}

func errClosed() error {
	return &parry.Error{Kind: parry.KindUnavailable, Detail: "parry is shutting down", RetryAfter: 5 * time.Second}
}

// writeLoop commits what queued, until the queue is closed and empty.
func (s *Store) writeLoop() {
	defer close(s.written)
	w := &writer{s: s, told: map[telling]bool{}}
	defer w.drop()
	batch := make([]*op, 0, maxBatch)
	for o := range s.queue {
		last := len(batch)
		batch = s.gather(o.take(batch[:0]), last)
		if len(batch) > 0 {
			w.commit(batch)
		}
		clear(batch)
	}
}

// take adds an operation whose caller still waits.
func (o *op) take(batch []*op) []*op {
	if o.taken.CompareAndSwap(false, true) {
		return append(batch, o)
	}
	return batch
}

// gather adds what is queued. Those who were answered just now often come again at once, and a commit costs as much as a dozen operations: when
// there were many in the last batch and there are few in this one, it waits a moment for half of them.
func (s *Store) gather(batch []*op, last int) []*op {
	for n := len(s.queue); n > 0 && len(batch) < maxBatch; n-- {
		batch = (<-s.queue).take(batch)
	}
	enough := (last + len(batch)) / 2
	if len(batch) >= enough {
		return batch
	}
	late := time.After(moment)
	for len(batch) < enough {
		select {
		case o, ok := <-s.queue:
			if !ok {
				return batch
			}
			batch = o.take(batch)
		case <-late:
			return batch
		}
	}
	return batch
}

// writer owns the writing connection and its prepared statements. Only writeLoop uses it.
type writer struct {
	s       *Store
	conn    *sql.Conn
	stmts   map[stmtKey]*sql.Stmt
	inserts map[stmtKey]inserter

	told   map[telling]bool // in this minute
	minute int64
}

// commit runs a batch and answers its operations.
func (w *writer) commit(batch []*op) {
	err := w.try(batch, false)
	if err != nil {
		w.s.log.Warn("a batch of writes failed, trying each by itself", "operations", len(batch), "err", err)
		var down error
		for _, o := range batch {
			if down != nil {
				o.err = down
				continue
			}
			one := []*op{o}
			if err := w.try(one, true); err != nil {
				o.err = err
				if w.s.eng.kind(err) == parry.KindUnavailable {
					down = err // the rest would fail alike, each after its own time-out
				}
			}
		}
	}
	for _, o := range batch {
		close(o.done)
	}
}

// try runs operations in one transaction. An error means that it was not committed, or, seldom, that this is not known.
func (w *writer) try(ops []*op, again bool) (err error) {
	ctx, cancel := w.s.eng.batchContext()
	defer cancel()
	if err := w.connect(ctx); err != nil {
		return err
	}
	t := &tx{w: w, ctx: ctx, now: w.s.now(), again: again}
	defer func() {
		if err == nil {
			w.s.wake(t.wakes)
			w.remember(t)
			return
		}
		// Whatever is left of the transaction goes with its connection.
		w.drop()
	}()
	if err := t.exec(w.s.eng.begin()); err != nil {
		return err
	}
	if err := t.row(`UPDATE state SET rev = rev + 1 WHERE one = 1 RETURNING rev, live, ended, audit_seq, audit_hash`, nil,
		&t.rev, &t.live, &t.ended, &t.auditSeq, &t.auditHash); err != nil {
		return fmt.Errorf("take a revision: %w", err)
	}
	live, ended := t.live, t.ended
	for rest := ops; len(rest) > 0; {
		n := 0
		for n < len(rest) && rest[n].put != nil {
			n++
		}
		if n > 0 {
			if err := t.putAll(rest[:n]); err != nil {
				return err
			}
			rest = rest[n:]
			continue
		}
		if err := t.do(rest[0]); err != nil {
			return err
		}
		rest = rest[1:]
	}
	if err := errors.Join(t.writeRules(), t.writeEvents(), t.writeAudit()); err != nil {
		return err
	}
	if t.live != live || t.ended != ended || t.wakes != 0 || len(t.audits) > 0 {
		if err := t.exec(`UPDATE state SET live = $1, ended = $2, desired = CASE WHEN $3 = 1 THEN rev ELSE desired END,
			applied = CASE WHEN $4 = 1 THEN rev ELSE applied END, outbox = CASE WHEN $5 = 1 THEN rev ELSE outbox END,
			lists = CASE WHEN $6 = 1 THEN rev ELSE lists END, audit_seq = $7, audit_hash = $8 WHERE one = 1`,
			t.live, t.ended, flag(t.wakes&wakeDesired != 0), flag(t.wakes&wakeApplied != 0), flag(t.wakes&wakeOutbox != 0),
			flag(t.wakes&wakeLists != 0), t.auditSeq, t.auditHash); err != nil {
			return err
		}
	}
	if t.wakes != 0 {
		if err := w.s.eng.notify(t, t.wakes); err != nil {
			return err
		}
	}
	if t.failed != nil {
		return t.failed
	}
	return t.exec(`COMMIT`)
}

// do runs an operation that is no put. Only an error without a kind ends the transaction.
func (t *tx) do(o *op) error {
	if !t.again {
		o.at = t.now
	}
	t.by, t.at = o.by, o.at
	before := len(t.audits)
	o.err = o.fn(t)
	if e := (*parry.Error)(nil); errors.As(o.err, &e) {
		t.audits = t.audits[:before]
		return nil
	} else if o.err != nil || !t.again || len(t.audits) == before {
		return o.err
	}
	done, err := t.audited(&t.audits[before])
	if done {
		t.audits = t.audits[:before]
	}
	return err
}

func (w *writer) connect(ctx context.Context) error {
	if w.conn != nil {
		return nil
	}
	conn, err := w.s.writes.Conn(ctx)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	w.conn, w.stmts, w.inserts = conn, map[stmtKey]*sql.Stmt{}, map[stmtKey]inserter{}
	if err := w.s.eng.session(ctx, conn); err != nil {
		w.drop()
		return fmt.Errorf("prepare a connection: %w", err)
	}
	return nil
}

// drop closes the connection for good, with a transaction that may still be open on it.
func (w *writer) drop() {
	if w.conn == nil {
		return
	}
	for _, st := range w.stmts {
		_ = st.Close()
	}
	_ = w.conn.Raw(func(any) error {
		for _, st := range w.inserts {
			_ = st.Close()
		}
		return driver.ErrBadConn
	})
	_ = w.conn.Close()
	w.conn, w.stmts, w.inserts = nil, nil, nil
}

// tx is one writing transaction. After an error of the database it refuses every further statement: SQLite ends some transactions by itself,
// and what follows would be committed on its own.
type tx struct {
	w      *writer
	ctx    context.Context
	now    time.Time
	rev    parry.Revision
	live   int64 // live blocks, with what this transaction did
	ended  int64
	again  bool // the second try: this may have been committed before
	wakes  wakes
	rules  map[ruleKey]*ruleDelta
	events []parry.Notification
	failed error

	by        *parry.Actor // of the operation
	at        time.Time    // when it was first tried
	timed     time.Time    // what time says, as an audit row does: most rows of a batch are of one moment
	timeText  string
	audits    []auditRow
	told      map[telling]bool
	auditSeq  int64 // the chain's head
	auditHash string
}

// stmtKey is a statement's text, and how many values its list holds.
type stmtKey struct {
	q string
	n int
}

func (t *tx) stmt(q string) (*sql.Stmt, error) {
	if st, ok := t.w.stmts[stmtKey{q, 0}]; ok && t.failed == nil {
		return st, nil
	}
	return t.prepare(stmtKey{q, 0}, q)
}

func (t *tx) prepare(k stmtKey, text string) (*sql.Stmt, error) {
	if t.failed != nil {
		return nil, t.failed
	}
	st, err := t.w.conn.PrepareContext(t.ctx, text)
	if err != nil {
		return nil, t.fail(text, err)
	}
	t.w.stmts[k] = st
	return st, nil
}

func (t *tx) fail(q string, err error) error {
	if len(q) > 60 {
		q = q[:60] + "…"
	}
	t.failed = fmt.Errorf("%s: %w", q, err)
	return t.failed
}

func (t *tx) exec(q string, args ...any) error {
	_, err := t.execN(q, args...)
	return err
}

// execN tells how many rows were touched.
func (t *tx) execN(q string, args ...any) (int64, error) {
	st, err := t.stmt(q)
	if err != nil {
		return 0, err
	}
	res, err := st.ExecContext(t.ctx, args...)
	if err != nil {
		return 0, t.fail(q, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, t.fail(q, err)
	}
	return n, nil
}

// query hands every row to scan.
func (t *tx) query(q string, args []any, scan func(*sql.Rows) error) error {
	st, err := t.stmt(q)
	if err != nil {
		return err
	}
	return t.read(st, q, args, scan)
}

func (t *tx) read(st *sql.Stmt, q string, args []any, scan func(*sql.Rows) error) error {
	rows, err := st.QueryContext(t.ctx, args...)
	if err != nil {
		return t.fail(q, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return t.fail(q, err)
		}
	}
	if err := rows.Err(); err != nil {
		return t.fail(q, err)
	}
	return nil
}

// row reads one row; none is [sql.ErrNoRows], after which the transaction goes on.
func (t *tx) row(q string, args []any, dest ...any) error {
	found := false
	err := t.query(q, args, func(r *sql.Rows) error { found = true; return r.Scan(dest...) })
	if err == nil && !found {
		return sql.ErrNoRows
	}
	return err
}

// queryIn asks q for many values of its one list, written %s, in as few statements as are quick.
func (t *tx) queryIn(q string, values []any, scan func(*sql.Rows) error) error {
	for _, part := range chunks(values, 64) {
		st, err := t.list(q, len(part), func() string { return fmt.Sprintf(q, t.w.s.eng.placeholders(1, len(part))) })
		if err != nil {
			return err
		}
		if err := t.read(st, q, part, scan); err != nil {
			return err
		}
	}
	return nil
}

// insert adds rows of so many columns; q ends where the list of rows begins, and tail follows it. It speaks to the driver itself, of whom the
// values must be types: the way through database/sql is a tenth of what an insertion costs.
func (t *tx) insert(q string, columns int, values []any, tail string) error {
	if t.failed != nil || len(values) == 0 {
		return t.failed
	}
	err := t.w.conn.Raw(func(conn any) error {
		var args []driver.NamedValue
		for part := range slices.Chunk(values, columns*t.w.s.eng.rowsPerInsert()) {
			st, ok := t.w.inserts[stmtKey{q, len(part)}]
			if !ok {
				var rows []string
				for i := 0; i < len(part); i += columns {
					rows = append(rows, "("+t.w.s.eng.placeholders(i+1, columns)+")")
				}
				made, err := conn.(driver.ConnPrepareContext).PrepareContext(t.ctx, q+strings.Join(rows, ", ")+tail)
				if err != nil {
					return err
				}
				st = made.(inserter)
				t.w.inserts[stmtKey{q, len(part)}] = st
			}
			args = args[:0]
			for i, v := range part {
				args = append(args, driver.NamedValue{Ordinal: i + 1, Value: v})
			}
			if _, err := st.ExecContext(t.ctx, args); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return t.fail(q, err)
	}
	return nil
}

// inserter is a statement of either driver.
type inserter interface {
	driver.Stmt
	driver.StmtExecContext
}

// list finds or prepares the form of q for n values.
func (t *tx) list(q string, n int, text func() string) (*sql.Stmt, error) {
	if st, ok := t.w.stmts[stmtKey{q, n}]; ok && t.failed == nil {
		return st, nil
	}
	return t.prepare(stmtKey{q, n}, text())
}

// chunks cuts values into parts of max and a rest. Each length is a statement of its own, so max bounds how many a connection keeps prepared.
func chunks(values []any, max int) [][]any { return slices.Collect(slices.Chunk(values, max)) }
