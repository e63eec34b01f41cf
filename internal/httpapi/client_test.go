package httpapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

// The generated client and the server are made from one document; this is that they meet.
func TestClient_understandsTheServer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	srv := httptest.NewServer(b.server)
	defer srv.Close()
	client, err := api.NewClientWithResponses(srv.URL, api.WithHTTPClient(srv.Client()),
		api.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+b.tokens[parry.RoleOperator])
			return nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	made, err := client.CreateBlockWithResponse(ctx, &api.CreateBlockParams{IdempotencyKey: new("k1")}, api.BlockRequest{
		Source: "203.0.113.7", DestinationPort: 22, Protocol: api.BlockRequestProtocolTCP, TTL: "4h", Firewalls: []string{"edge"},
	})
	if err != nil || made.JSON201 == nil || made.JSON201.DestinationPort != 22 || made.JSON201.Protocol != "tcp" {
		t.Fatalf("got %+v, %v", made, err)
	}
	list, err := client.ListBlocksWithResponse(ctx, &api.ListBlocksParams{Covering: new("203.0.113.7"), Limit: new(5), Status: new(api.ListBlocksParamsStatusLive)})
	if err != nil || list.JSON200 == nil || len(list.JSON200.Items) != 1 || list.JSON200.Items[0].ID != made.JSON201.ID {
		t.Fatalf("got %+v, %v", list, err)
	}
	all, err := client.ListBlocksWithResponse(ctx, nil)
	if err != nil || all.JSON200 == nil {
		t.Fatalf("without parameters: %+v, %v", all, err)
	}
	runs, err := client.ListRunsWithResponse(ctx, &api.ListRunsParams{})
	if err != nil || runs.JSON200 == nil {
		t.Fatalf("with no parameter set: %+v, %v", runs, err)
	}
	again, err := client.CreateBlockWithResponse(ctx, &api.CreateBlockParams{Wait: new("0")}, api.BlockRequest{Source: "203.0.113.7"})
	if err != nil || again.ApplicationProblemJSONDefault == nil || again.ApplicationProblemJSONDefault.Errors[0].Pointer != "?wait" {
		t.Fatalf("with a wait of nothing: %+v, %v", again, err)
	}
	plain, err := client.CreateBlockWithResponse(ctx, &api.CreateBlockParams{}, api.BlockRequest{Source: "203.0.113.8"})
	if err != nil || plain.JSON201 == nil {
		t.Fatalf("a block without an idempotency key: %+v, %v", plain, err)
	}
	refused, err := client.CreateBlockWithResponse(ctx, nil, api.BlockRequest{Source: "8.8.8.8"})
	if err != nil || refused.ApplicationProblemJSONDefault == nil || refused.ApplicationProblemJSONDefault.Errors[0].Pointer != "/source" {
		t.Fatalf("got %+v, %v", refused, err)
	}
	held, err := client.HoldFirewallWithResponse(ctx, "edge-a", api.HoldRequest{})
	if err != nil || held.JSON200 == nil || held.JSON200.State != api.FirewallConditionHeld {
		t.Fatalf("got %+v, %v", held, err)
	}
	ended, err := client.DeleteBlockWithResponse(ctx, made.JSON201.ID, nil)
	if err != nil || ended.JSON200 == nil || ended.JSON200.Block.EndReason != api.BlockEndReasonDeleted {
		t.Fatalf("got %+v, %v", ended, err)
	}
}
