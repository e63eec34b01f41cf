package app_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/testenv"
)

// TestRestore_aBackupRemovesNothingThatItDoesNotKnowWithoutAWord follows docs/OPERATIONS.md: a backup while parry runs, a loss without a
// restart in between, and the restored file.
func TestRestore_aBackupRemovesNothingThatItDoesNotKnowWithoutAWord(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	s := newSite(t, "listen: \"\"\n", lab)
	r := s.start()
	c := s.client()
	block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "60s")
	path, backup := filepath.Join(s.dir, "state", "parry.db"), filepath.Join(s.dir, "backup.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`VACUUM INTO ?`, backup); err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
	if got := block(t, c, api.BlockRequest{Source: "203.0.113.2"}, "60s"); got.State != "enforced" {
		t.Fatalf("got %+v", got)
	}
	r.end()

	for _, file := range []string{path, path + "-wal", path + "-shm"} {
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(backup, path); err != nil {
		t.Fatal(err)
	}
	r = s.start()
	fresh := block(t, c, api.BlockRequest{Source: "203.0.113.3"}, "60s")
	if fresh.State != "degraded" || !strings.Contains(fresh.Status[0].Reason, "stale_revision") {
		t.Errorf("a new block: %+v", fresh)
	}
	if got, want := sources(lab), []string{"203.0.113.1", "203.0.113.2"}; !slices.Equal(got, want) {
		t.Errorf("without the word the firewall holds %v, want %v", got, want)
	}
	if a, err := c.AdoptFirewallWithResponse(t.Context(), "fw-a"); err != nil || a.StatusCode() >= 300 {
		t.Fatalf("adopt: %v %s", err, a.Body)
	}
	eventually(t, "the firewall holds what the restored database says", func() bool {
		return slices.Equal(sources(lab), []string{"203.0.113.1", "203.0.113.3"})
	})
	r.end()
}
