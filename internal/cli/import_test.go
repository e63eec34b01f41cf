package cli

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/portable"
)

// The service counts a lifetime of whole seconds from the event's time: what comes out must be the very end that the row has.
func TestBlockImport_keepsTheEndExactly(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 654321000, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		ago := time.Duration(rapid.Int64Range(-1e6, 1e12).Draw(t, "exported, microseconds ago")) * time.Microsecond
		left := time.Duration(rapid.Int64Range(-2e6, 1e13).Draw(t, "left, microseconds")) * time.Microsecond
		row := portable.Block{Source: "203.0.113.7", ExpiresAt: now.Add(left)}
		if rapid.Bool().Draw(t, "with a time of export") {
			row.ExportedAt = now.Add(-ago)
		}
		o := blockImport{again: rapid.Bool().Draw(t, "again")}
		req, over := o.request(&row, now)
		if over {
			if left >= time.Second {
				t.Fatalf("over, with %v left", left)
			}
			return
		}
		ttl, err := parry.ParseTTL(req.TTL)
		if err != nil || !req.EventTime.Add(ttl).Equal(row.ExpiresAt) {
			t.Fatalf("%s from %v ends at %v, want %v (%v)", req.TTL, req.EventTime, req.EventTime.Add(ttl), row.ExpiresAt, err)
		}
		old := !o.again && !row.ExportedAt.IsZero() && !row.ExportedAt.After(now)
		switch {
		case old && (req.EventTime.After(row.ExportedAt) || row.ExportedAt.Sub(req.EventTime) >= time.Second):
			t.Fatalf("exported at %v, and the event is of %v", row.ExportedAt, req.EventTime)
		case !old && (req.EventTime.Before(now) || req.EventTime.Sub(now) >= time.Second):
			t.Fatalf("it is %v, and the event is of %v", now, req.EventTime)
		}
		if again, _ := o.request(&row, now.Add(time.Millisecond)); old && (again.TTL != req.TTL || !again.EventTime.Equal(req.EventTime)) {
			t.Fatalf("the same row asked for %s from %v, then for %s from %v", req.TTL, req.EventTime, again.TTL, again.EventTime)
		}
	})
}

// Six answers without one in between that helps, and the body is whole each time; a rate is waited out for longer.
func TestPatient_triesAgainWithTheWholeBody(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answers []int
		want    int
		tries   int
	}{
		"unavailable for a moment": {[]int{503, 503, 201}, 201, 3},
		"unavailable for long":     {[]int{503, 503, 503, 503, 503, 503, 503, 201}, 503, patientTries},
		"a rate":                   {[]int{429, 429, 429, 429, 429, 429, 429, 429, 201}, 201, 9},
		"a refusal":                {[]int{422, 201}, 422, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tries := 0
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if body, err := io.ReadAll(r.Body); err != nil || string(body) != "body" {
					t.Errorf("try %d came with %q, %v", tries, body, err)
				}
				w.WriteHeader(c.answers[tries])
				tries++
			}))
			defer srv.Close()
			client := &http.Client{Transport: &patient{next: http.DefaultTransport, wait: time.Millisecond}}
			res, err := client.Post(srv.URL, "text/plain", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != c.want || tries != c.tries {
				t.Errorf("got %d after %d tries, want %d after %d", res.StatusCode, tries, c.want, c.tries)
			}
		})
	}
}
