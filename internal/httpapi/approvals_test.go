package httpapi

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

// asks has a run of the firewall ask for an approval.
func (b *bench) asks(firewall string, diff ...string) parry.ApprovalID {
	b.t.Helper()
	ctx, now := b.t.Context(), b.clock.now()
	l, err := b.store.AcquireLane(ctx, firewall)
	if err != nil {
		b.t.Fatal(err)
	}
	r := parry.Run{ID: parry.NewRunID(now), Firewall: firewall, Kind: parry.RunApply, State: parry.RunFailed, Failure: parry.FailApproval, StartedAt: now, EndedAt: now, Epoch: l.Epoch}
	a := parry.Approval{ID: parry.NewApprovalID(now), Firewall: firewall, State: parry.ApprovalWaiting, Why: "40 of 60 entries would be removed", CreatedAt: now,
		ExpiresAt: now.Add(time.Hour), Of: 60, Removed: 40, Added: 1, Known: true}
	err = b.store.FinishRun(ctx, parry.FinishRun{Run: r, Approval: &a, ApprovalDiff: diff, Incident: parry.Incident{Since: now, Failure: parry.FailApproval}})
	if err == nil {
		err = l.Release(ctx)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return a.ID
}

func TestApprovals_areLookedAtAndDecided(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id := string(b.asks("edge-a", "- 203.0.113.1 - - - wan", "+ 203.0.113.2 - - - wan"))
	page := into[api.ApprovalPage](t, b.do(parry.RoleReader, "GET", "/api/v1/approvals", ""), 200)
	if len(page.Items) != 1 || page.Items[0].ID != id || page.Items[0].State != "waiting" || page.Items[0].Removed != 40 || page.Items[0].First[0] != "- 203.0.113.1 - - - wan" {
		t.Errorf("got %+v", page)
	}
	for query, want := range map[string]string{"": "- 203.0.113.1 - - - wan\n+ 203.0.113.2 - - - wan\n", "?limit=1": "- 203.0.113.1 - - - wan\n"} {
		if r := b.do(parry.RoleReader, "GET", "/api/v1/approvals/"+id+"/diff"+query, ""); r.StatusCode != http.StatusOK || r.body != want {
			t.Errorf("diff%s: %d %q", query, r.StatusCode, r.body)
		}
	}
	if r := b.do(parry.RoleReader, "GET", "/readyz", ""); !strings.Contains(r.body, "edge-a waits for approval: parry approvals "+id) {
		t.Errorf("readyz: %s", r.body)
	}
	decide := func(word string) api.Approval {
		return into[api.Approval](t, b.do(parry.RoleApprover, "POST", "/api/v1/approvals/"+id+"/"+word, `{"reason":"{{ x }}"}`), 200)
	}
	if got := decide("deny"); got.State != "denied" || got.DecidedBy != "approver" || got.Reason != "{{ x }}" || !got.ExpiresAt.IsZero() {
		t.Errorf("got %+v", got)
	}
	if got := decide("approve"); got.State != "approved" || got.ExpiresAt.IsZero() {
		t.Errorf("got %+v", got)
	}
	b.asks("edge-a", "- 203.0.113.9 - - - wan")
	if r := b.do(parry.RoleApprover, "POST", "/api/v1/approvals/"+id+"/approve", ""); r.StatusCode != http.StatusConflict || !strings.Contains(r.body, "superseded") {
		t.Errorf("superseded: %d %s", r.StatusCode, r.body)
	}
	if all := into[api.ApprovalPage](t, b.do(parry.RoleReader, "GET", "/api/v1/approvals?status=all&limit=1", ""), 200); len(all.Items) != 1 || all.Next == "" {
		t.Errorf("got %+v", all)
	}
	for path, want := range map[string]int{"/api/v1/approvals/a-none": 404, "/api/v1/approvals/a-none/diff": 404, "/api/v1/approvals?status=some": 400} {
		if r := b.do(parry.RoleReader, "GET", path, ""); r.StatusCode != want {
			t.Errorf("%s: %d %s", path, r.StatusCode, r.body)
		}
	}
}
