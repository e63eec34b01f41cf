package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/parry/parry/internal/store"
)

func TestProbe_changesNothing(t *testing.T) {
	t.Parallel()
	ctx, o := t.Context(), store.Options{Driver: "sqlite", Path: filepath.Join(t.TempDir(), "parry.db")}
	if p, err := store.Probe(ctx, o); err != nil || !p.New {
		t.Fatalf("no file: got %+v, %v", p, err)
	}
	if _, err := os.Stat(o.Path); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("probing made a file")
	}
	s, err := store.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := store.Probe(ctx, o); err != nil || p.New || p.Have != p.Want || p.Want < 1 {
		t.Errorf("in use: got %+v, %v", p, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.Path, []byte("this is no database, and long enough to be looked at as one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Probe(ctx, o); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("damaged: got %v", err)
	}
}
