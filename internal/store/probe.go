package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// Probed is what Probe found.
type Probed struct {
	New        bool  // there is no database, or it is empty: Open makes one
	Have, Want int64 // the schema's version, and this program's; Open migrates when Have is less
}

// Probe looks at a database without changing it, also while a parry serves on it. Its errors are those of Open, but for ErrLocked.
func Probe(ctx context.Context, o Options) (p Probed, err error) {
	var db *sql.DB
	if o.Driver == "postgres" {
		cfg, err := pgx.ParseConfig(o.DSN)
		if err != nil {
			return p, fmt.Errorf("the PostgreSQL connection string: %w", err)
		}
		cfg.RuntimeParams["default_transaction_read_only"] = "on"
		db = stdlib.OpenDB(*cfg)
	} else {
		path, err := filepath.Abs(o.Path)
		if err != nil {
			return p, err
		}
		st, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0 {
			return Probed{New: true}, nil
		} else if err != nil {
			return p, err
		}
		dsn := url.URL{Scheme: "file", Path: path, RawQuery: url.Values{"mode": {"ro"}, "_pragma": {"busy_timeout(5000)", "query_only(1)"}}.Encode()}
		if db, err = sql.Open("sqlite", dsn.String()); err != nil {
			return p, err
		}
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.PingContext(ctx); err != nil && !isDamage(err) {
		return p, fmt.Errorf("connect to the database: %w", err)
	}
	if o.Driver != "postgres" {
		if err := (&sqlite{path: o.Path}).check(ctx, db); err != nil {
			return p, err
		}
	}
	files, err := fs.Glob(migrations, "migrations/sqlite/*.sql")
	if err != nil {
		return p, err
	}
	for _, f := range files {
		n, _, _ := strings.Cut(filepath.Base(f), "_")
		v, _ := strconv.ParseInt(n, 10, 64)
		p.Want = max(p.Want, v)
	}
	const table = "goose_db_version"
	find := `SELECT count(*) FROM sqlite_master WHERE name = $1`
	if o.Driver == "postgres" {
		find = `SELECT count(*) FROM pg_tables WHERE tablename = $1 AND schemaname = current_schema()`
	}
	var n int
	if err := db.QueryRowContext(ctx, find, table).Scan(&n); err != nil {
		return p, fmt.Errorf("read the database: %w", err)
	}
	if n == 0 {
		p.New = true
		return p, nil
	}
	if err := db.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version`).Scan(&p.Have); err != nil {
		return p, fmt.Errorf("read the schema's version: %w", err)
	}
	if p.Have > p.Want {
		return p, fmt.Errorf("%w: its schema is version %d, this program knows %d; install the newer parry again", ErrNewer, p.Have, p.Want)
	}
	return p, nil
}
