package notify_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/notify/telegram"
	"github.com/parry/parry/internal/notify/thehive"
	"github.com/parry/parry/internal/notify/webhook"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/testenv"
)

const (
	secret  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	bearer  = "tok-3f1c0a"
	hostile = "</code> ``` **bold** [x](http://evil.example/) @admin \"q\" \\ | = \r\n<0>CEF:0|forged|\x00\x1b[31m\u202e {{.}} $(id)"
)

var at = time.Date(2026, 8, 1, 14, 3, 0, 0, time.UTC)

func added() parry.Delivery {
	return parry.Delivery{Channel: "c", Notification: parry.Notification{
		ID: "n-06DM1", Incident: "n-06DM1", Kind: parry.NotifyAdded, Severity: parry.SeverityWarning, CreatedAt: at,
		Block: &parry.BlockEvent{ID: "b-06DM0", Source: "203.0.113.7", Destination: "198.51.100.10", Protocol: parry.ProtoTCP, Port: 22,
			Firewalls: "default", CreatedAt: at, ExpiresAt: at.Add(4 * time.Hour), Reason: hostile, Origin: hostile, AlertID: hostile, RuleID: hostile,
			Offence: 3, By: "ossim", Count: 1},
	}}
}

func failed() parry.Delivery {
	return parry.Delivery{Channel: "c", Notification: parry.Notification{
		ID: "n-06DM2", Incident: "n-06DM2", Kind: parry.NotifyFailed, Severity: parry.SeverityCritical, Firewall: "fw-a", CreatedAt: at,
		Report: parry.Report{Firewall: "fw-a", Host: "192.0.2.1:22", Since: at, Failure: parry.FailTask, Task: hostile, Message: hostile,
			Hint: "Look.", Waiting: []string{hostile}, WaitingN: 12, LogTail: hostile},
	}}
}

func of(kind parry.NotificationKind) parry.Delivery {
	d := failed()
	d.ID, d.Kind, d.Severity = "n-06DM3", kind, parry.SeverityOf(kind)
	d.Report.Until, d.Report.Rejects, d.Report.RejectsN = at.Add(time.Minute), []string{hostile}, 1
	switch kind {
	case parry.NotifyAdded, parry.NotifyEnded:
		d = added()
		d.ID, d.Kind = "n-06DM4", kind
		d.Block.EndReason, d.Block.EndedAt = parry.EndExpired, at.Add(4*time.Hour)
	case parry.NotifySummary:
		d.Firewall, d.Report = "", parry.Report{}
		d.Summary = &parry.BlockSummary{Added: 9980, Ended: 1, Since: at, Until: at.Add(time.Minute), Sources: []string{"203.0.113.7", "203.0.113.8"}}
	}
	return d
}

// kinds are one of each.
func kinds() (out []parry.Delivery) {
	for _, k := range append([]parry.NotificationKind{parry.NotifySummary, parry.NotifyTest}, parry.NotifyKinds...) {
		out = append(out, of(k))
	}
	return out
}

type poster interface {
	notify.Channel
	notify.Tester
	Probe(ctx context.Context) (string, error)
	Close()
}

// posters are the channels that post, each with a server that speaks its wire format.
var posters = []struct {
	name  string
	limit string // the fault that says how long to wait
	keys  []string
	start func(t *testing.T) (poster, *testenv.Receiver)
}{
	{"webhook", "429", []string{secret, bearer}, func(t *testing.T) (poster, *testenv.Receiver) {
		r := testenv.StartWebhook(t)
		c, err := webhook.New(webhook.Options{Name: "c", URL: r.URL + "/hook", Secret: secret, Token: bearer, CAFile: r.CAFile})
		return ready(t, c, err), r
	}},
	{"telegram", "429-body", []string{testenv.TelegramToken, "AAbbCCddEEff"}, func(t *testing.T) (poster, *testenv.Receiver) {
		r := testenv.StartTelegram(t)
		c, err := telegram.New(telegram.Options{Name: "c", API: r.URL, Token: testenv.TelegramToken, Chat: testenv.TelegramChat})
		return ready(t, c, err), r
	}},
	{"thehive5", "429", []string{testenv.TheHiveKey}, func(t *testing.T) (poster, *testenv.Receiver) {
		r := testenv.StartTheHive(t)
		c, err := thehive.New(thehive.Options{Name: "c", URL: r.URL, Key: testenv.TheHiveKey, Organisation: "soc"})
		return ready(t, c, err), r
	}},
	{"thehive4", "429", []string{testenv.TheHiveKey}, func(t *testing.T) (poster, *testenv.Receiver) {
		r := testenv.StartTheHive(t)
		c, err := thehive.New(thehive.Options{Name: "c", URL: r.URL, Key: testenv.TheHiveKey, Version: thehive.V0})
		return ready(t, c, err), r
	}},
}

func ready[C poster](t *testing.T, c C, err error) poster {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// each runs f for every channel that posts.
func each(t *testing.T, f func(t *testing.T, i int, c poster, r *testenv.Receiver)) {
	t.Parallel()
	for i, p := range posters {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			c, r := p.start(t)
			f(t, i, c, r)
		})
	}
}

func TestChannels_whatTheServerRefusesIsNeverSent(t *testing.T) {
	each(t, func(t *testing.T, _ int, c poster, r *testenv.Receiver) {
		n := 0
		for _, d := range kinds() {
			d.ID, d.Incident = d.ID+parry.NotificationID(d.Kind), d.ID+parry.NotificationID(d.Kind)
			if d.Block != nil {
				d.Block.ID += parry.BlockID(d.Kind)
			}
			if _, err := c.Notify(t.Context(), d); err != nil {
				t.Errorf("%s: %v", d.Kind, err)
			}
			n++
		}
		if got := len(r.Posts()); got != n || len(r.Wrong()) > 0 {
			t.Errorf("%d of %d taken, refused: %q", got, n, r.Wrong())
		}
		for _, p := range r.Posts() {
			if strings.ContainsAny(string(p.Body), "\x00\x1b\u202e") {
				t.Errorf("control characters: %q", p.Body)
			}
		}
	})
}

func TestChannels_faultsSayWhetherToTryAgain(t *testing.T) {
	each(t, func(t *testing.T, i int, c poster, r *testenv.Receiver) {
		for _, tc := range []struct {
			fault string
			again bool
			after time.Duration
		}{
			{posters[i].limit, true, time.Second}, {"500", true, 0}, {"503", true, 0}, {"refuse", true, 0}, {"hang", true, 0},
			{"401", false, 0}, {"400", false, 0}, {"redirect", false, 0},
		} {
			times := 1
			if tc.fault == "refuse" {
				times = 0 // a connection that idled is tried anew by the HTTP client itself
			}
			r.Fault(tc.fault, times)
			before := r.Tries()
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			again, err := c.Notify(ctx, added())
			cancel()
			r.Fault("off", 0)
			if err == nil || again != tc.again {
				t.Errorf("%s: retryable %v, %v", tc.fault, again, err)
				continue
			}
			var e *parry.Error
			if errors.As(err, &e); tc.after > 0 && (e == nil || e.RetryAfter != tc.after) {
				t.Errorf("%s: %v says to wait %v, want %v", tc.fault, err, e, tc.after)
			}
			if n := r.Tries() - before; n != 1 && tc.fault != "refuse" {
				t.Errorf("%s: %d requests", tc.fault, n)
			}
			for _, key := range posters[i].keys {
				if strings.Contains(err.Error(), key) {
					t.Errorf("%s: the error tells a secret: %v", tc.fault, err)
				}
			}
		}
		if len(r.Posts()) != 0 {
			t.Errorf("taken: %d", len(r.Posts()))
		}
		if _, err := c.Notify(t.Context(), added()); err != nil {
			t.Errorf("after all faults: %v", err)
		}
	})
}

func TestChannels_anAnswerThatWasLostRepeatsWithTheSameReference(t *testing.T) {
	each(t, func(t *testing.T, _ int, c poster, r *testenv.Receiver) {
		r.Fault("taken", 1)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if again, err := c.Notify(ctx, added()); err == nil || !again {
			t.Fatalf("a lost answer: %v, %v", again, err)
		}
		if _, err := c.Notify(t.Context(), added()); err != nil {
			t.Fatalf("the repeat: %v", err)
		}
		refs := map[string]bool{}
		for _, p := range r.Posts() {
			refs[reference(t, p)] = true
		}
		if len(refs) != 1 {
			t.Errorf("references %v of %d posts", refs, len(r.Posts()))
		}
	})
}

// reference is what tells a receiver that it has seen a notification before.
func reference(t *testing.T, p testenv.Posted) string {
	t.Helper()
	if id := p.Header.Get("webhook-id"); id != "" {
		return id
	}
	var m map[string]any
	if err := json.Unmarshal(p.Body, &m); err != nil {
		t.Fatal(err)
	}
	if text, ok := m["text"].(string); ok {
		return text[strings.LastIndex(text, "Reference: "):]
	}
	return fmt.Sprint(m["type"], m["source"], m["sourceRef"])
}

func TestChannels_anAnswerWithoutEndIsCutOff(t *testing.T) {
	each(t, func(t *testing.T, i int, c poster, r *testenv.Receiver) {
		r.Fault("endless", 1)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := c.Notify(ctx, added())
		if posters[i].name == "telegram" { // where only "ok": true is a yes
			if err == nil {
				t.Error("taken for a yes")
			}
		} else if err != nil {
			t.Error(err)
		}
		if ctx.Err() != nil || len(r.Posts()) != 1 {
			t.Errorf("%v, %d posts", ctx.Err(), len(r.Posts()))
		}
	})
}

func TestChannels_testAndProbeTellWhatTheServerSaid(t *testing.T) {
	each(t, func(t *testing.T, i int, c poster, r *testenv.Receiver) {
		if detail, err := c.Probe(t.Context()); err != nil || detail == "" || len(r.Posts()) != 0 {
			t.Errorf("probe: %q, %v, %d posts", detail, err, len(r.Posts()))
		}
		answer, err := c.Test(t.Context())
		if err != nil || !strings.HasPrefix(answer, "20") || len(r.Posts()) != 1 {
			t.Errorf("test: %q, %v, %d posts", answer, err, len(r.Posts()))
		}
		r.Fault("401", 0)
		if _, err := c.Test(t.Context()); err == nil || !strings.Contains(err.Error(), "401 Unauthorized") {
			t.Errorf("test of a wrong key: %v", err)
		}
		if _, err := c.Probe(t.Context()); err == nil && posters[i].name != "webhook" {
			t.Error("probe of a wrong key says nothing")
		}
	})
}

func TestWebhook_trustsItsOwnCAOnly(t *testing.T) {
	t.Parallel()
	r := testenv.StartWebhook(t)
	c, err := webhook.New(webhook.Options{Name: "c", URL: r.URL + "/hook"})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Notify(t.Context(), added()); err == nil || again || r.Tries() != 0 {
		t.Errorf("retryable %v, %v", again, err)
	}
	plain := strings.Replace(r.URL, "https://127.0.0.1", "http://192.0.2.7", 1)
	if _, err := webhook.New(webhook.Options{Name: "c", URL: plain}); err == nil || !strings.Contains(err.Error(), "plain_http") {
		t.Errorf("http to another host: %v", err)
	}
	if _, err := webhook.New(webhook.Options{Name: "c", URL: plain, PlainHTTP: true}); err != nil {
		t.Error(err)
	}
}
