package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/parry/parry/internal/parry"
)

// The errors of Open. Each comes wrapped in words that say what to do.
var (
	ErrLocked  = errors.New("the database is in use by another parry")
	ErrNewer   = errors.New("the database is of a newer parry")
	ErrDamaged = errors.New("the database is damaged")
)

// Options say which database to open, and how.
type Options struct {
	Driver   string           // "sqlite" (the default) or "postgres"
	Path     string           // SQLite's file; its directory must exist
	DSN      string           // PostgreSQL's connection string; no pooler in transaction mode: it would break the lane locks
	Now      func() time.Time // time.Now if nil
	Logger   *slog.Logger     // slog.Default() if nil
	QueueLen int              // writing operations that may wait; 4096 if 0

	Subscriptions parry.Subscriptions // of all channels: what begins and ends here is told to those that want to hear of it
}

// Store is an open database. Its methods may be called from any goroutine. Errors bear a [parry.Kind] where their meaning is known; a
// database that cannot be reached or cannot write is KindUnavailable.
type Store struct {
	now     func() time.Time
	log     *slog.Logger
	eng     engine
	reads   *sql.DB
	writes  *sql.DB
	id      string // of this opening: tells its own wakes from other replicas'
	queue   chan *op
	written chan struct{} // closed when the writer has ended

	firewall prepared // FirewallState, which lanes ask at each step: to parse it takes longer than to run it

	mu     sync.RWMutex // guards closed, and sends on queue against its close
	closed bool
	stop   context.CancelFunc // ends the watchers
	bg     sync.WaitGroup

	desired, applied, outbox, lists wake

	channels      parry.Subscriptions // all
	subscriptions parry.Subscriptions // to block.added and block.ended
	schema        [2]int64            // versions before and after Open

	lanesMu sync.Mutex
	lanes   map[string]*Lane

	touchedMu sync.Mutex
	touched   map[parry.TokenID]int64 // minute of the last write
}

// engine is what SQLite and PostgreSQL do differently.
type engine interface {
	// open makes both pools. It refuses a database that another controller holds, or that is damaged.
	open(ctx context.Context) (reads, writes *sql.DB, err error)
	// lockMigration keeps other replicas out while the schema is brought up to date.
	lockMigration(ctx context.Context, c *sql.Conn) (unlock func(), err error)
	dialect() string
	// session prepares a new writing connection.
	session(ctx context.Context, c *sql.Conn) error
	begin() string
	// batchContext bounds a writing transaction where its connection can hang.
	batchContext() (context.Context, context.CancelFunc)
	// rowsPerInsert is how many rows best share a statement.
	rowsPerInsert() int
	// placeholders is a list for n arguments from the given one on, which come in this order and are the statement's only ones.
	placeholders(from, n int) string
	// notify tells other replicas, within the transaction, what will have changed.
	notify(t *tx, what wakes) error
	// watch fires the wakes of other replicas until ctx ends.
	watch(ctx context.Context, s *Store)
	// lockLane takes the lane's lock; lost is closed when the lock is gone with its connection, nil where that cannot be.
	lockLane(ctx context.Context, name string) (lost <-chan struct{}, unlock func(context.Context) error, err error)
	kind(err error) parry.Kind
	close() error
}

// Open opens the database, brings its schema up to date and starts the writer. Errors wrap ErrLocked, ErrNewer or ErrDamaged.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{
		now: o.Now, log: o.Logger, id: rand.Text(),
		queue: make(chan *op, cmp.Or(o.QueueLen, 4096)), written: make(chan struct{}),
		lanes: map[string]*Lane{}, touched: map[parry.TokenID]int64{},
	}
	s.channels = o.Subscriptions
	for _, sub := range o.Subscriptions {
		if slices.ContainsFunc(sub.Kinds, parry.NotificationKind.Bulk) {
			s.subscriptions = append(s.subscriptions, sub)
		}
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.log = cmp.Or(s.log, slog.Default())
	switch cmp.Or(o.Driver, "sqlite") {
	case "sqlite":
		s.eng = &sqlite{path: o.Path}
	case "postgres":
		s.eng = &postgres{dsn: o.DSN, id: s.id, log: s.log}
	default:
		return nil, fmt.Errorf("open store: driver %q is unknown: write sqlite or postgres", o.Driver)
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.closePools())
	}
	bg, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.bg.Go(func() { s.eng.watch(bg, s) })
	go s.writeLoop()
	if from, to := s.schema[0], s.schema[1]; from != to {
		if err := s.Audit(ctx, parry.AuditEvent{Action: parry.ActMigrate, Object: s.eng.dialect(), Detail: map[string]int64{"from": from, "to": to}}); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	if s.reads, s.writes, err = s.eng.open(ctx); err != nil {
		return err
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	if s.firewall.Stmt, err = s.reads.PrepareContext(ctx, firewallQuery+` WHERE f.name = $1`); err != nil {
		return fmt.Errorf("prepare to read firewalls: %w", err)
	}
	var id [16]byte
	_, _ = rand.Read(id[:])
	_, err = s.writes.ExecContext(ctx, `INSERT INTO state (one, rev, live, ended, desired, applied, outbox, controller)
		VALUES (1, 0, 0, 0, 0, 0, 0, $1) ON CONFLICT (one) DO NOTHING`,
		hex.EncodeToString(id[:]))
	if err != nil {
		return fmt.Errorf("make the controller's id: %w", err)
	}
	if _, alone := s.eng.(*sqlite); alone {
		return s.releaseDeliveries(ctx)
	}
	return nil
}

// Close lets the operations that are queued finish, then closes the database. Later calls answer KindUnavailable.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.queue)
	s.mu.Unlock()
	<-s.written
	s.lanesMu.Lock()
	for _, l := range s.lanes {
		l.lose()
	}
	s.lanesMu.Unlock()
	s.stop()
	s.bg.Wait()
	return s.closePools()
}

func (s *Store) closePools() error {
	var errs []error
	for _, c := range []io.Closer{s.reads, s.writes} {
		if db, _ := c.(*sql.DB); db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(append(errs, s.eng.close())...)
}

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.Revision(ctx)
	return err
}

// Revision is that of the last writing transaction.
func (s *Store) Revision(ctx context.Context) (rev parry.Revision, err error) {
	err = s.reads.QueryRowContext(ctx, `SELECT rev FROM state WHERE one = 1`).Scan(&rev)
	return rev, s.wrap(err, "read the revision")
}

// ControllerID is random, made with the database and kept in it: a restored copy has the same one.
func (s *Store) ControllerID(ctx context.Context) (id string, err error) {
	err = s.reads.QueryRowContext(ctx, `SELECT controller FROM state WHERE one = 1`).Scan(&id)
	return id, s.wrap(err, "read the controller's id")
}

// Counts is cheap enough to be asked at every scrape.
func (s *Store) Counts(ctx context.Context) (parry.Counts, error) {
	var c parry.Counts
	var oldest int64
	err := s.reads.QueryRowContext(ctx, `
		SELECT live, ended,
			(SELECT count(*) FROM deliveries WHERE delivered_at = 0),
			coalesce((SELECT created_at FROM outbox WHERE id = (SELECT min(outbox_id) FROM deliveries WHERE delivered_at = 0)), 0),
			(SELECT count(*) FROM blocks WHERE end_rev = 0 AND expires_at > 0 AND expires_at <= $1),
			(SELECT count(*) FROM tokens WHERE suspended_until > $1 AND revoked_at = 0)
		FROM state WHERE one = 1`, micros(s.now())).Scan(&c.LiveBlocks, &c.EndedBlocks, &c.Undelivered, &oldest, &c.OverdueBlocks, &c.SuspendedTokens)
	c.OldestUnsent = fromMicros(oldest)
	return c, s.wrap(err, "count")
}

// Desired wakes when the desired state may have changed: a block, a firewall's hold, dirtiness or words, an exemption; here or on another
// replica. Wakes coalesce. The subscription ends with ctx.
func (s *Store) Desired(ctx context.Context) <-chan struct{} { return s.desired.subscribe(ctx) }

// Applied wakes when a run was finished, here or on another replica.
func (s *Store) Applied(ctx context.Context) <-chan struct{} { return s.applied.subscribe(ctx) }

// Outbox wakes when a notification was written.
func (s *Store) Outbox(ctx context.Context) <-chan struct{} { return s.outbox.subscribe(ctx) }

// Lists wakes when an active list or what is on it has changed, here or on another replica.
func (s *Store) Lists(ctx context.Context) <-chan struct{} { return s.lists.subscribe(ctx) }

// wrap says what was being done, and gives the error the kind that the engine knows for it. Errors that bear a kind keep it.
func (s *Store) wrap(err error, doing string) error {
	if err == nil {
		return nil
	}
	if e := (*parry.Error)(nil); errors.As(err, &e) {
		return err
	}
	err = fmt.Errorf("%s: %w", doing, err)
	if errors.Is(err, context.Canceled) {
		return err
	}
	if k := s.eng.kind(err); k == parry.KindUnavailable {
		return &parry.Error{Kind: k, Detail: "the database does not take this now; nothing was accepted, try again", RetryAfter: 5 * time.Second, Err: err}
	}
	return err
}
