package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/parry/parry/internal/parry"
)

// sqlite is the embedded engine: one file, one process. One connection writes; readers have their own, and never wait for it (WAL).
type sqlite struct {
	path string
	lock *os.File
}

// A commit is as durable with fdatasync, which leaves out the file's times; where that is not to be had, it is fsync.
func init() { _, _ = driver.Fdatasync(true) }

func (e *sqlite) open(ctx context.Context) (reads, writes *sql.DB, err error) {
	if e.path == "" {
		return nil, nil, errors.New("open store: the database's path is not set")
	}
	path, err := filepath.Abs(e.path)
	if err != nil {
		return nil, nil, fmt.Errorf("open store: %w", err)
	}
	if e.lock, err = lockFile(path + ".lock"); err != nil {
		return nil, nil, err
	}
	// The file is made here, so that nobody else can read it; SQLite gives its journals the same mode.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open store: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, nil, fmt.Errorf("open store: %w", err)
	}
	dsn := func(pragmas ...string) string {
		v := url.Values{"_pragma": append([]string{"busy_timeout(5000)", "foreign_keys(1)"}, pragmas...)}
		return (&url.URL{Scheme: "file", Path: path, RawQuery: v.Encode()}).String()
	}
	// 32 MiB hold the indices of 100,000 blocks. No more: balancing a tree, SQLite gives a page a far number for a moment, and then looks for
	// such pages in its whole cache at the transaction's end.
	if writes, err = sql.Open("sqlite", dsn("journal_mode(WAL)", "synchronous(FULL)", "cache_size(-32768)", "wal_autocheckpoint(4000)")); err != nil {
		return nil, nil, fmt.Errorf("open store: %w", err)
	}
	writes.SetMaxOpenConns(1)
	if reads, err = sql.Open("sqlite", dsn("query_only(1)", "cache_size(-16384)", "mmap_size(268435456)")); err != nil {
		return nil, writes, fmt.Errorf("open store: %w", err)
	}
	reads.SetMaxOpenConns(4)
	reads.SetMaxIdleConns(4)
	return reads, writes, e.check(ctx, writes)
}

// lockFile takes the lock that keeps a second process out; the system lets go of it however this one ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is locked; stop the other one (fuser -v %s names it), or give this one its own database", ErrLocked, path, path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func (e *sqlite) check(ctx context.Context, db *sql.DB) error {
	var verdict string
	err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict)
	if err == nil && verdict != "ok" {
		err = errors.New(verdict)
	} else if err != nil && !isDamage(err) {
		return fmt.Errorf("open store %s: %w", e.path, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w; the firewalls are left as they are; restore the file (with -wal and -shm removed) from a backup, "+
			"or save what can be read with: sqlite3 %s .recover", ErrDamaged, e.path, err, e.path)
	}
	return nil
}

func isDamage(err error) bool {
	var e *driver.Error
	return errors.As(err, &e) && (e.Code()&0xff == lib.SQLITE_CORRUPT || e.Code()&0xff == lib.SQLITE_NOTADB)
}

func (e *sqlite) lockMigration(context.Context, *sql.Conn) (func(), error) { return func() {}, nil }

func (e *sqlite) dialect() string                          { return "sqlite" }
func (e *sqlite) session(context.Context, *sql.Conn) error { return nil }
func (e *sqlite) begin() string                            { return `BEGIN IMMEDIATE` }

// batchContext has no end: SQLite waits for nothing but the disk, and a context that can end costs a goroutine for each statement.
func (e *sqlite) batchContext() (context.Context, context.CancelFunc) {
	return context.Background(), func() {}
}

// rowsPerInsert is 1: there is no round trip to save, and several rows make a longer program.
func (e *sqlite) rowsPerInsert() int { return 1 }

// placeholders have no numbers: to this driver $1 is a name, to be looked for.
func (e *sqlite) placeholders(_, n int) string { return strings.Repeat("?, ", n-1) + "?" }

func (e *sqlite) notify(*tx, wakes) error             { return nil }
func (e *sqlite) watch(ctx context.Context, _ *Store) { <-ctx.Done() }

// lockLane needs no lock: whoever opened the file is the only controller.
func (e *sqlite) lockLane(context.Context, string) (<-chan struct{}, func(context.Context) error, error) {
	return nil, func(context.Context) error { return nil }, nil
}

func (e *sqlite) kind(err error) parry.Kind {
	var se *driver.Error
	if errors.As(err, &se) {
		switch se.Code() & 0xff {
		case lib.SQLITE_FULL, lib.SQLITE_IOERR, lib.SQLITE_BUSY, lib.SQLITE_LOCKED, lib.SQLITE_READONLY, lib.SQLITE_CANTOPEN, lib.SQLITE_NOMEM:
			return parry.KindUnavailable
		}
	}
	if errors.Is(err, sql.ErrConnDone) || err != nil && strings.Contains(err.Error(), "sql: database is closed") {
		return parry.KindUnavailable
	}
	return parry.KindOf(err)
}

func (e *sqlite) close() error {
	if e.lock == nil {
		return nil
	}
	// A child that is being forked just now has the file open, too, until it becomes another program.
	return errors.Join(syscall.Flock(int(e.lock.Fd()), syscall.LOCK_UN), e.lock.Close())
}
