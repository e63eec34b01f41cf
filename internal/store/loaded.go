package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"

	"github.com/parry/parry/internal/parry"
)

// verification keeps what a run has read. A machine that another listed firewall has already is refused, so that of two names of one
// machine only one wins, whichever replicas they are on.
func (t *tx) verification(f *parry.FinishRun) error {
	if f.MachineID != "" {
		var other string
		err := t.row(`SELECT name FROM firewalls WHERE machine_id = $1 AND name <> $2 AND listed = 1`, []any{f.MachineID, f.Run.Firewall}, &other)
		switch {
		case err == nil:
			return parry.Errorf(parry.KindConflict, "it is the machine that %s is already (machine id %s)", other, f.MachineID)
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		if err := t.exec(`UPDATE firewalls SET machine_id = $2 WHERE name = $1 AND machine_id <> $2`, f.Run.Firewall, f.MachineID); err != nil {
			return err
		}
	}
	l := f.Loaded
	if l == nil {
		return nil
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		_, err = z.Write(l.Text)
	}
	if err := errors.Join(err, z.Close()); err != nil {
		return err
	}
	return t.exec(`INSERT INTO loaded (firewall, at, run_id, entries, content) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (firewall) DO UPDATE
		SET at = excluded.at, run_id = excluded.run_id, entries = excluded.entries, content = excluded.content`,
		f.Run.Firewall, micros(l.At), string(l.RunID), int64(l.Count), b.Bytes())
}

// Loaded is what a firewall held when it was last read; the zero Loaded when nothing was handed over yet.
func (s *Store) Loaded(ctx context.Context, firewall string) (l parry.Loaded, err error) {
	var at, count int64
	var text []byte
	err = s.reads.QueryRowContext(ctx, `SELECT at, run_id, entries, content FROM loaded WHERE firewall = $1`, firewall).Scan(&at, &l.RunID, &count, &text)
	if errors.Is(err, sql.ErrNoRows) {
		return l, nil
	}
	if err != nil {
		return l, s.wrap(err, "read what "+firewall+" holds")
	}
	l.At, l.Count = fromMicros(at), int(count)
	z, err := gzip.NewReader(bytes.NewReader(text))
	if err == nil {
		l.Text, err = io.ReadAll(z)
	}
	if err != nil {
		return l, fmt.Errorf("what %s holds is damaged: %w", firewall, err)
	}
	return l, nil
}
