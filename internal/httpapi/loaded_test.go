package httpapi

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

// verified is a verify's end, as a lane would store it: what was read, and what differed.
func (b *bench) verified(text string, count int, drift *parry.Drift) {
	b.t.Helper()
	ctx := b.t.Context()
	lane, err := b.store.AcquireLane(ctx, "edge-a")
	if err != nil {
		b.t.Fatal(err)
	}
	now := time.Now()
	run := parry.Run{ID: parry.NewRunID(now), Firewall: "edge-a", Kind: parry.RunVerify, State: parry.RunRunning, Epoch: lane.Epoch, StartedAt: now}
	if err := b.store.BeginRun(ctx, run); err != nil {
		b.t.Fatal(err)
	}
	run.State, run.EndedAt = parry.RunSucceeded, now
	f := parry.FinishRun{Run: run, Applied: drift == nil, Drift: drift, Loaded: &parry.Loaded{At: now, RunID: run.ID, Count: count, Text: []byte(text)}}
	if err := b.store.FinishRun(ctx, f); err != nil {
		b.t.Fatal(err)
	}
	if err := lane.Release(ctx); err != nil {
		b.t.Fatal(err)
	}
}

const twoLoaded = "203.0.113.0/24 - - - wan 1790000000 12 900\n203.0.113.7 198.51.100.10 tcp 22 wan - - -\n"

func TestFirewallEntries_areWhatWasReadLast(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	get := func(query string) api.LoadedList {
		t.Helper()
		return into[api.LoadedList](t, b.do(parry.RoleReader, "GET", "/api/v1/firewalls/edge-a/entries"+query, ""), http.StatusOK)
	}
	if l := get(""); !l.At.IsZero() || len(l.Items) != 0 {
		t.Errorf("before any verify: %+v", l)
	}
	b.verified(twoLoaded, 2, nil)
	l := get("?limit=1")
	if l.Total != 2 || len(l.Items) != 1 || l.Next == "" || *l.Items[0].Packets != 12 || *l.Items[0].Bytes != 900 || l.Items[0].ExpiresAt.Unix() != 1790000000 {
		t.Errorf("the first page: %+v", l)
	}
	l = get("?limit=1&cursor=" + l.Next)
	if len(l.Items) != 1 || l.Next != "" || l.Items[0].Packets != nil || l.Items[0].Port != 22 {
		t.Errorf("the second page: %+v", l)
	}
	if l := get("?address=203.0.113.9"); len(l.Items) != 1 || l.Items[0].Source != "203.0.113.0/24" {
		t.Errorf("of an address: %+v", l)
	}
}

func TestExplain_tellsWhatFirewallsDropped(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.verified(twoLoaded, 2, nil)
	e := into[api.Explanation](t, b.do(parry.RoleReader, "GET", "/api/v1/explain?address=203.0.113.7", ""), http.StatusOK)
	if len(e.Loaded) != 2 || e.Loaded[0].Firewall != "edge-a" || *e.Loaded[0].Packets != 12 || e.Loaded[0].At.IsZero() {
		t.Errorf("got %+v", e.Loaded)
	}
}

func TestFirewall_driftIsShownEntryByEntry(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.verified("", 0, nil)
	b.verified("", 0, &parry.Drift{Since: time.Now(), RunID: "r-1", Listed: true, Missing: []string{"203.0.113.7 - - - wan"}, MissingN: 1})
	fw := into[api.Firewall](t, b.do(parry.RoleReader, "GET", "/api/v1/firewalls/edge-a", ""), http.StatusOK)
	if fw.Reality != api.RealityDrifted || fw.Drift.MissingN != 1 || fw.Drift.Missing[0] != "203.0.113.7 - - - wan" || fw.Drift.Unlisted {
		t.Errorf("got %+v", fw)
	}
}

func TestReadyz_tellsWhatIsUnknown(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Reading = time.Hour })
	b.verified("", 0, nil)
	ready := func() string { return b.do(parry.RoleReader, "GET", "/readyz", "").body }
	if got := ready(); strings.Contains(got, "edge-a") || !strings.Contains(got, "core was never read") {
		t.Errorf("just read: %s", got)
	}
	b.clock.advance(2 * time.Hour)
	if got := ready(); !strings.Contains(got, "edge-a was read last at") {
		t.Errorf("two hours later: %s", got)
	}
}
