package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"path"

	"github.com/pressly/goose/v3"
)

//go:embed migrations
var migrations embed.FS

// migrate brings the schema up to this program's version, and refuses a database of a later one without having written to it.
func (s *Store) migrate(ctx context.Context) error {
	conn, err := s.reads.Conn(ctx)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	defer conn.Close()
	unlock, err := s.eng.lockMigration(ctx, conn)
	if err != nil {
		return fmt.Errorf("lock the schema: %w", err)
	}
	defer unlock()
	steps, err := s.steps()
	if err != nil {
		return err
	}
	dialect := goose.DialectSQLite3
	if s.eng.dialect() == "postgres" {
		dialect = goose.DialectPostgres
	}
	p, err := goose.NewProvider(dialect, s.writes, nil, goose.WithGoMigrations(steps...), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if have > want {
		return fmt.Errorf("%w: its schema is version %d, this program knows %d; install the newer parry again, or restore the backup from before the upgrade",
			ErrNewer, have, want)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema from version %d to %d: %w", have, want, err)
	}
	s.schema = [2]int64{have, want}
	return nil
}

// steps are the files of migrations/, each as one call of the database in a transaction of its own. Given the files, goose would cut them into
// statements, which takes longer than to run them.
func (s *Store) steps() (steps []*goose.Migration, err error) {
	files, err := fs.Glob(migrations, "migrations/"+s.eng.dialect()+"/*.sql")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		version, err := goose.NumericComponent(path.Base(f))
		if err != nil {
			return nil, err
		}
		text, err := migrations.ReadFile(f)
		if err != nil {
			return nil, err
		}
		up := func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, string(text))
			return err
		}
		steps = append(steps, goose.NewGoMigration(version, &goose.GoFunc{RunTx: up}, nil))
	}
	return steps, nil
}
