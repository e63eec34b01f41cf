package app_test

import (
	"net/http"
	"slices"
	"testing"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/testenv"
)

// TestReplicas_takeOverLanesAndShareExemptions runs two parries on one PostgreSQL and one firewall.
func TestReplicas_takeOverLanesAndShareExemptions(t *testing.T) {
	t.Parallel()
	dsn := testenv.Postgres(t, testenv.PostgresOptions{})
	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	more := "database: {driver: postgres, dsn: \"" + dsn + "\"}\n"
	a, b := newSite(t, more, lab), newSite(t, more, lab)
	first := a.start()
	ca := a.client()
	if got := block(t, ca, api.BlockRequest{Source: "203.0.113.1"}, "60s"); got.State != "enforced" {
		t.Fatalf("got %+v", got)
	}
	b.start()
	cb := b.client()
	if got := block(t, cb, api.BlockRequest{Source: "203.0.113.2"}, "60s"); got.State != "enforced" {
		t.Fatalf("asked at the replica without the lane: got %+v", got)
	}
	r, err := ca.CreateExemptionWithResponse(t.Context(), api.ExemptionRequest{Prefix: "203.0.113.9", Reason: "ours"})
	if err != nil || r.JSON201 == nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	eventually(t, "the other replica refuses what is exempt", func() bool {
		r, err := cb.CreateBlockWithResponse(t.Context(), &api.CreateBlockParams{IdempotencyKey: new(key())}, api.BlockRequest{Source: "203.0.113.9"})
		return err == nil && r.StatusCode() == http.StatusUnprocessableEntity
	})
	first.end()
	if got := block(t, cb, api.BlockRequest{Source: "203.0.113.3"}, "60s"); got.State != "enforced" {
		t.Errorf("after the keeper of the lane ended: got %+v", got)
	}
	for _, want := range []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"} {
		if got := sources(lab); !slices.Contains(got, want) {
			t.Errorf("pf holds %v, want %s", got, want)
		}
	}
}
