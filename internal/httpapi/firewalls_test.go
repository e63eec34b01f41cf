package httpapi

import (
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

func TestFirewalls_holdAndRelease(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := into[api.Firewall](t, b.do(parry.RoleOperator, "PUT", "/api/v1/firewalls/edge-a/hold", `{"reason":"upgrade {{ x }}"}`), 200)
	if held.State != "held" || held.Hold.By != "operator" || held.Hold.Reason != "upgrade {{ x }}" || held.Groups[0] != "edge" || held.Bundle != "pfsense" {
		t.Errorf("got %+v", held)
	}
	if got := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201); got.State != "held" || got.Status[0].Reason != "held by operator: upgrade {{ x }}" {
		t.Errorf("a block on a held firewall: %+v", got)
	}
	if got := into[api.Firewall](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/firewalls/edge-a/hold", ""), 200); got.State != "pending" || got.Hold.By != "" {
		t.Errorf("released: %+v", got)
	}
	for _, fw := range into[api.FirewallList](t, b.do(parry.RoleOperator, "PUT", "/api/v1/hold", ""), 200).Items {
		if fw.State != "held" {
			t.Errorf("%s is %s after a hold of all", fw.Name, fw.State)
		}
	}
	into[api.FirewallList](t, b.do(parry.RoleOperator, "DELETE", "/api/v1/hold", ""), 200)
	if got := into[api.Firewall](t, b.do(parry.RoleReader, "GET", "/api/v1/firewalls/core", ""), 200); got.State != "pending" {
		t.Errorf("after the release of all: %+v", got)
	}
}

func TestFirewalls_aHoldMayEndByItself(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := into[api.Firewall](t, b.do(parry.RoleOperator, "PUT", "/api/v1/firewalls/edge-a/hold", `{"reason":"upgrade","for":"2h"}`), 200)
	if got := held.Hold.Until.Sub(held.Hold.Since); got != 2*time.Hour || held.Hold.Kind != "hold" {
		t.Errorf("got %+v", held.Hold)
	}
	at := held.Hold.Since.Add(time.Hour).Format(time.RFC3339)
	held = into[api.Firewall](t, b.do(parry.RoleOperator, "PUT", "/api/v1/firewalls/edge-a/hold", `{"until":"`+at+`"}`), 200)
	if got := held.Hold.Until.Format(time.RFC3339); got != at {
		t.Errorf("until %s, want %s", got, at)
	}
	got := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201)
	if want := "held by operator until " + at; got.Status[0].Reason != want {
		t.Errorf("the block says %q, want %q", got.Status[0].Reason, want)
	}
	if r := b.do(parry.RoleReader, "GET", "/readyz", ""); !strings.Contains(r.body, "edge-a is held by operator until "+at) {
		t.Errorf("readyz: %s", r.body)
	}
	for body, pointer := range map[string]string{
		`{"for":"2h","until":"` + at + `"}`:          `""`,
		`{"for":"soon"}`:                             "/for",
		`{"until":"2020-01-01T00:00:00Z"}`:           "/until",
		`{"until":"tomorrow"}`:                       "/until",
		`{"for":"` + strings.Repeat("1", 40) + `h"}`: "/for",
	} {
		if r := b.do(parry.RoleOperator, "PUT", "/api/v1/firewalls/edge-a/hold", body); r.StatusCode != http.StatusBadRequest || !strings.Contains(r.body, pointer) {
			t.Errorf("%s: %d %s", body, r.StatusCode, r.body)
		}
	}
}

func TestFirewalls_words(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Phase = func(string) string { return "idle" } })
	order := func(what string) api.Firewall {
		return into[api.Firewall](t, b.do(parry.RoleApprover, "POST", "/api/v1/firewalls/edge-a/"+what, ""), 202)
	}
	if got := order("adopt"); !got.Adopt || got.Phase != "idle" {
		t.Errorf("got %+v", got)
	}
	if r := b.do(parry.RoleApprover, "POST", "/api/v1/firewalls/edge-a/approve", ""); r.StatusCode != http.StatusConflict {
		t.Errorf("nothing waits: %d %s", r.StatusCode, r.body)
	}
	b.asks("edge-a", "- 203.0.113.1 - - - wan")
	if got := order("approve"); !got.Approved || got.Approval == "" {
		t.Errorf("got %+v", got)
	}
	before := order("verify")
	if st, err := b.store.FirewallState(t.Context(), "edge-a"); err != nil || st.VerifyRev == 0 || int64(st.DirtyRev) != before.DirtyRevision {
		t.Errorf("a read-back is asked for, and nothing is to be written: %+v, %v", st, err)
	}
	if got := order("retire"); !got.Retiring {
		t.Errorf("got %+v", got)
	}
}

func TestFirewalls_tellWhatAFirewallSaysOfItself(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	get := func(name string) api.Firewall {
		return into[api.Firewall](t, b.do(parry.RoleReader, "GET", "/api/v1/firewalls/"+name, ""), 200)
	}
	lane, err := b.store.AcquireLane(t.Context(), "edge-a")
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr
	if err := b.store.FinishRun(t.Context(), parry.FinishRun{
		Run: parry.Run{ID: "r-1", Firewall: "edge-a", Epoch: lane.Epoch}, Facts: &parry.FirewallFacts{
			Addresses: []netip.Addr{a("198.51.100.1"), a("2001:db8::1")}, Gateways: []netip.Addr{a("198.51.100.254")},
			Forwards: []parry.PortForward{{Destination: a("198.51.100.1"), Protocol: parry.ProtoTCP, Port: 443, PortEnd: 443, To: a("10.0.0.5"), ToPort: 8443},
				{Destination: a("198.51.100.2"), To: a("10.0.0.6")}},
		},
	}); err != nil {
		t.Fatal(err)
	}
	want := api.FirewallFacts{
		Addresses: []string{"198.51.100.1", "2001:db8::1"}, Gateways: []string{"198.51.100.254"}, Resolvers: []string{},
		Forwards: []api.PortForward{{Destination: "198.51.100.1", Protocol: "tcp", Port: 443, PortEnd: 443, To: "10.0.0.5", ToPort: 8443},
			{Destination: "198.51.100.2", To: "10.0.0.6"}},
	}
	if diff := cmp.Diff(want, get("edge-a").Facts); diff != "" {
		t.Error(diff)
	}
	if got := get("edge-b").Facts; got.Addresses != nil {
		t.Errorf("a firewall that has told nothing has %+v", got)
	}
}

func TestFirewalls_whatIsNoLongerListedMustBeListedAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("edge-a", "")
	rest := slices.DeleteFunc(slices.Clone(testFleet.Firewalls), func(fw parry.Firewall) bool { return fw.Name == "edge-a" })
	if err := b.store.SyncFirewalls(t.Context(), rest); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"retire", "adopt", "approve", "verify"} {
		r := b.do(parry.RoleApprover, "POST", "/api/v1/firewalls/edge-a/"+word, "")
		if r.StatusCode != http.StatusConflict || !strings.Contains(r.body, "list it again") {
			t.Errorf("%s: %d %s", word, r.StatusCode, r.body)
		}
	}
	if r := b.do(parry.RoleReader, "GET", "/readyz", ""); !strings.Contains(r.body, "edge-a is gone from the configuration") || !strings.Contains(r.body, "list it again") {
		t.Errorf("readyz: %s", r.body)
	}
	if err := b.store.SyncFirewalls(t.Context(), testFleet.Firewalls); err != nil {
		t.Fatal(err)
	}
	into[api.Firewall](t, b.do(parry.RoleApprover, "POST", "/api/v1/firewalls/edge-a/retire", ""), 202)
}

func TestFirewalls_showIncidentsRejectsAndProofs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201).ID
	b.run("edge-a", "", parry.Reject{Firewall: "edge-a", BlockID: parry.BlockID(id), Code: "source_protected", At: time.Now()})
	b.run("edge-b", parry.FailHostKey)
	a := into[api.Firewall](t, b.do(parry.RoleReader, "GET", "/api/v1/firewalls/edge-a", ""), 200)
	if a.State != "proved" || a.Proof.Count != 1 || len(a.Rejects) != 1 || a.Rejects[0].BlockID != id || a.ProvedAt.IsZero() {
		t.Errorf("got %+v", a)
	}
	z := into[api.Firewall](t, b.do(parry.RoleReader, "GET", "/api/v1/firewalls/edge-b", ""), 200)
	if z.State != "failing" || z.Incident.Failure != "host_key" || z.Incident.Attempts != 1 {
		t.Errorf("got %+v", z)
	}
}

// files are a run's, in memory.
type files map[parry.RunID]string

func (f files) Log(r parry.Run) (io.ReadCloser, error) {
	text, ok := f[r.ID]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(strings.NewReader(text)), nil
}

func (f files) Events(r parry.Run) (io.ReadCloser, error) { return f.Log(r) }

func (f files) Command(r parry.Run) (again, check string) {
	if _, ok := f[r.ID]; !ok {
		return "", ""
	}
	return "ansible-playbook apply.yml", "ansible-playbook --check apply.yml"
}

func TestRuns_listFilesAndState(t *testing.T) {
	t.Parallel()
	kept := files{}
	b := newBench(t, func(o *Options) { o.RunFiles = kept })
	b.run("edge-a", "")
	b.run("edge-b", parry.FailUnreachable)
	failed := into[api.RunPage](t, b.do(parry.RoleReader, "GET", "/api/v1/runs?state=failed", ""), 200).Items
	if len(failed) != 1 || failed[0].Firewall != "edge-b" || failed[0].Failure != "unreachable" {
		t.Fatalf("got %+v", failed)
	}
	if got := into[api.RunPage](t, b.do(parry.RoleReader, "GET", "/api/v1/runs?firewall=edge-a", ""), 200).Items; len(got) != 1 || got[0].State != "succeeded" {
		t.Errorf("got %+v", got)
	}
	path := "/api/v1/runs/" + failed[0].ID
	if r := b.do(parry.RoleReader, "GET", path+"/log", ""); r.StatusCode != http.StatusNotFound || !strings.Contains(r.body, "gone") {
		t.Errorf("files that are gone: %s", r.body)
	}
	kept[parry.RunID(failed[0].ID)] = "<script>hostile</script>\n"
	for _, what := range []string{"/log", "/events"} {
		r := b.do(parry.RoleReader, "GET", path+what, "")
		if r.StatusCode != http.StatusOK || r.body != kept[parry.RunID(failed[0].ID)] || r.Header.Get("X-Content-Type-Options") != "nosniff" ||
			strings.Contains(r.Header.Get("Content-Type"), "html") || r.Header.Get("Content-Disposition") != "attachment" {
			t.Errorf("%s: %d %v %s", what, r.StatusCode, r.Header, r.body)
		}
	}
	into[api.Run](t, b.do(parry.RoleReader, "GET", path, ""), 200)
}

func TestExemptions_endBlocksAndRefuseNewOnes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	id := into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201).ID
	made := into[api.CreatedExemption](t, b.do(parry.RoleApprover, "POST", "/api/v1/exemptions", `{"prefix":"203.0.113.0/24","reason":"our partner","ttl":"1d"}`), 201)
	if len(made.EndedBlocks) != 1 || made.EndedBlocks[0] != id || made.Exemption.CreatedBy != "approver" || made.Exemption.ExpiresAt.IsZero() {
		t.Fatalf("got %+v", made)
	}
	if got := into[api.Block](t, b.do(parry.RoleTrigger, "GET", "/api/v1/blocks/"+id, ""), 200); got.EndReason != "exempted" {
		t.Errorf("got %+v", got)
	}
	r := b.do(parry.RoleAdmin, "POST", "/api/v1/blocks", goodBlock)
	if p := r.problem(t); p.Status != 422 || !strings.Contains(p.Errors[0].Detail, made.Exemption.ID) || !strings.Contains(p.Errors[0].Detail, "our partner") {
		t.Errorf("the refusal does not name the exemption: %s", r.body)
	}
	list := into[api.ExemptionList](t, b.do(parry.RoleReader, "GET", "/api/v1/exemptions", ""), 200).Items
	if len(list) != 2 {
		t.Errorf("the list holds %+v", list)
	}
	if r := b.do(parry.RoleApprover, "DELETE", "/api/v1/exemptions/"+made.Exemption.ID, ""); r.StatusCode != http.StatusNoContent {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201)
}

func TestExemptions_endAtATime(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	at := b.clock.now().Add(36 * time.Hour).UTC().Truncate(time.Microsecond)
	post := func(more string) response {
		return b.do(parry.RoleApprover, "POST", "/api/v1/exemptions", `{"prefix":"203.0.113.7","reason":"x",`+more+`}`)
	}
	if got := into[api.CreatedExemption](t, post(`"expires_at":"`+at.Format(time.RFC3339Nano)+`"`), 201); !got.Exemption.ExpiresAt.Equal(at) {
		t.Errorf("ends at %v, want %v", got.Exemption.ExpiresAt, at)
	}
	for _, more := range []string{`"ttl":"1h","expires_at":"` + at.Format(time.RFC3339) + `"`, `"expires_at":"2020-01-01T00:00:00Z"`} {
		if p := post(more).problem(t); p.Status != 400 || p.Errors[0].Pointer != "/expires_at" {
			t.Errorf("%s: %+v", more, p)
		}
	}
}

func TestExemptions_endByThemselves(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	into[api.CreatedExemption](t, b.do(parry.RoleApprover, "POST", "/api/v1/exemptions", `{"prefix":"203.0.113.7","reason":"x","ttl":"1h"}`), 201)
	if r := b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock); r.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	b.clock.advance(time.Hour)
	into[api.Block](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", goodBlock), 201)
}
