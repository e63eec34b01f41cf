package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/parry/parry/internal/parry"
)

const (
	pgChannel      = "parry"          // of LISTEN and NOTIFY
	pgPoll         = 2 * time.Second  // the guarantee behind them
	pgLanePing     = time.Second      // how often the connection that holds the lanes is tried
	pgPingDeadline = 5 * time.Second  // without an answer for so long, the lanes count as lost
	pgBatch        = 30 * time.Second // the longest that a writing transaction may take
)

// postgres is the engine for several replicas on one database.
type postgres struct {
	dsn   string
	id    string
	log   *slog.Logger
	cfg   *pgx.ConnConfig
	lanes pgLanes
}

func (e *postgres) open(ctx context.Context) (reads, writes *sql.DB, err error) {
	if e.cfg, err = pgx.ParseConfig(e.dsn); err != nil {
		return nil, nil, fmt.Errorf("open store: the PostgreSQL connection string: %w", err)
	}
	if e.cfg.ConnectTimeout == 0 {
		e.cfg.ConnectTimeout = 10 * time.Second
	}
	if e.cfg.RuntimeParams["application_name"] == "" {
		e.cfg.RuntimeParams["application_name"] = "parry"
	}
	e.lanes.cfg = e.cfg
	reads, writes = stdlib.OpenDB(*e.cfg), stdlib.OpenDB(*e.cfg)
	reads.SetMaxOpenConns(8)
	reads.SetMaxIdleConns(4)
	reads.SetConnMaxIdleTime(5 * time.Minute)
	writes.SetMaxOpenConns(2)
	if err := reads.PingContext(ctx); err != nil {
		return reads, writes, fmt.Errorf("open store: connect to PostgreSQL at %s: %w", e.cfg.Host, err)
	}
	return reads, writes, nil
}

// lockMigration waits for another replica that migrates.
func (e *postgres) lockMigration(ctx context.Context, c *sql.Conn) (func(), error) {
	key := lockKey("migration")
	if _, err := c.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, key); err != nil {
		return nil, err
	}
	return func() {
		if _, err := c.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, key); err != nil {
			_ = c.Raw(func(any) error { return driver.ErrBadConn }) // the lock goes with its connection
		}
	}, nil
}

// lockKey is the advisory lock's number of a name.
func lockKey(name string) int64 {
	h := sha256.Sum256([]byte("parry " + name))
	return int64(binary.BigEndian.Uint64(h[:]))
}

func (e *postgres) dialect() string { return "postgres" }
func (e *postgres) begin() string   { return `BEGIN` }

// session sees to it that a commit means fsynced, whatever the server's default. The writer's few statements are all found by index: it
// neither plans them anew each time nor falls for a plan that was made while the tables were empty. What cannot but scan a table counts as very
// expensive then, and would be compiled (JIT), which takes 70 ms.
func (e *postgres) session(ctx context.Context, c *sql.Conn) error {
	if _, err := c.ExecContext(ctx, `SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off`); err != nil {
		return err
	}
	var mode string
	if err := c.QueryRowContext(ctx, `SHOW synchronous_commit`).Scan(&mode); err != nil {
		return err
	}
	if mode != "off" {
		return nil
	}
	_, err := c.ExecContext(ctx, `SET synchronous_commit = on`)
	return err
}

func (e *postgres) batchContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), pgBatch)
}

func (e *postgres) rowsPerInsert() int { return 64 }

func (e *postgres) placeholders(from, n int) string { return placeholders(from, n) }

func (e *postgres) notify(t *tx, what wakes) error {
	return t.query(`SELECT pg_notify('`+pgChannel+`', $1)`, []any{fmt.Sprintf("%d %s", what, e.id)}, func(*sql.Rows) error { return nil })
}

// watch hears the other replicas, and looks every two seconds in case it did not.
func (e *postgres) watch(ctx context.Context, s *Store) {
	var wg sync.WaitGroup
	wg.Go(func() { e.listen(ctx, s) })
	wg.Go(func() { e.lanes.watch(ctx, e.log) })
	var seen [4]parry.Revision
	for sleep(ctx, pgPoll) {
		qctx, cancel := context.WithTimeout(ctx, pgPingDeadline)
		var now [4]parry.Revision
		err := s.reads.QueryRowContext(qctx, `SELECT desired, applied, outbox, lists FROM state WHERE one = 1`).Scan(&now[0], &now[1], &now[2], &now[3])
		cancel()
		if err != nil {
			continue
		}
		for i, what := range []wakes{wakeDesired, wakeApplied, wakeOutbox, wakeLists} {
			if now[i] != seen[i] {
				s.wake(what)
			}
		}
		seen = now
	}
	wg.Wait()
}

func (e *postgres) listen(ctx context.Context, s *Store) {
	for {
		err := e.listenOnce(ctx, s)
		if ctx.Err() != nil {
			return
		}
		e.log.Warn("listening to the database's notifications was interrupted, the poll goes on", "err", err)
		if !sleep(ctx, pgPoll) {
			return
		}
	}
}

func (e *postgres) listenOnce(ctx context.Context, s *Store) error {
	c, err := pgx.ConnectConfig(ctx, e.cfg.Copy())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	if _, err := c.Exec(ctx, `LISTEN `+pgChannel); err != nil {
		return err
	}
	s.wake(wakeDesired | wakeApplied | wakeOutbox | wakeLists) // for what was missed before
	for {
		n, err := c.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		var what wakes
		var from string
		if _, err := fmt.Sscanf(n.Payload, "%d %s", &what, &from); err == nil && from != s.id {
			s.wake(what)
		}
	}
}

// sleep waits, and tells whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (e *postgres) lockLane(ctx context.Context, name string) (<-chan struct{}, func(context.Context) error, error) {
	return e.lanes.lock(ctx, name)
}

// pgLanes holds session advisory locks on one connection: all lanes of this replica live and die with it.
type pgLanes struct {
	cfg *pgx.ConnConfig

	mu   sync.Mutex // held over each use of conn
	conn *pgx.Conn
	lost chan struct{} // closed when conn is given up
}

func (l *pgLanes) lock(ctx context.Context, name string) (<-chan struct{}, func(context.Context) error, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		c, err := pgx.ConnectConfig(ctx, l.cfg.Copy())
		if err != nil {
			return nil, nil, err
		}
		l.conn, l.lost = c, make(chan struct{})
	}
	var ok bool
	if err := l.do(ctx, &ok, `SELECT pg_try_advisory_lock($1)`, lockKey("lane "+name)); err != nil {
		return nil, nil, err
	}
	if !ok {
		return nil, nil, ErrLaneTaken
	}
	lost := l.lost
	return lost, func(ctx context.Context) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.lost != lost || l.conn == nil {
			return nil // gone with its connection
		}
		return l.do(ctx, &ok, `SELECT pg_advisory_unlock($1)`, lockKey("lane "+name))
	}, nil
}

// do asks on the connection, within a deadline, and gives the connection up when that fails. The caller holds mu.
func (l *pgLanes) do(ctx context.Context, dest *bool, q string, args ...any) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pgPingDeadline) // a caller that gives up must not cost all lanes
	defer cancel()
	err := l.conn.QueryRow(ctx, q, args...).Scan(dest)
	if err != nil {
		l.drop()
	}
	return err
}

// drop gives the connection up. The caller holds mu.
func (l *pgLanes) drop() {
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), pgPingDeadline)
	defer cancel()
	_ = l.conn.Close(ctx)
	l.conn = nil
	close(l.lost)
}

func (l *pgLanes) watch(ctx context.Context, log *slog.Logger) {
	for sleep(ctx, pgLanePing) {
		l.mu.Lock()
		if l.conn != nil {
			var ok bool
			if err := l.do(ctx, &ok, `SELECT true`); err != nil {
				log.Error("the connection that holds the lanes is lost, their runs end", "err", err)
			}
		}
		l.mu.Unlock()
	}
}

func (e *postgres) kind(err error) parry.Kind {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		switch pe.Code[:2] {
		case "08", "53", "55", "57", "58", "40", "25": // connection, resources, not now, shutdown, disk, conflict, read-only
			return parry.KindUnavailable
		}
		return parry.KindOf(err)
	}
	var ne net.Error
	var ce *pgconn.ConnectError
	switch {
	case errors.As(err, &ne), errors.As(err, &ce), errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, context.DeadlineExceeded),
		err != nil && (strings.Contains(err.Error(), "sql: database is closed") || strings.Contains(err.Error(), "conn closed")):
		return parry.KindUnavailable
	}
	return parry.KindOf(err)
}

func (e *postgres) close() error {
	e.lanes.mu.Lock()
	defer e.lanes.mu.Unlock()
	e.lanes.drop()
	return nil
}
