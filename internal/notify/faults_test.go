package notify_test

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/notify/lines"
	"github.com/parry/parry/internal/syslog"
	"github.com/parry/parry/internal/testenv"
)

// Through the outbox, every channel gets over every fault: each notification arrives, and once more at most where its answer was lost.
func TestWorker_everyChannelGetsOverEveryFault(t *testing.T) {
	each(t, func(t *testing.T, i int, c poster, r *testenv.Receiver) {
		s := open(t)
		w, err := notify.New(notify.Options{Store: s, Channels: []notify.Entry{{Name: "c", Channel: c}}, Timeout: 300 * time.Millisecond,
			Min: 10 * time.Millisecond, Max: 50 * time.Millisecond, Hopeless: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		posts := 0
		for _, fault := range []string{posters[i].limit, "500", "503", "hang", "refuse", "401", "redirect", "taken"} {
			r.Fault(fault, 1)
			begin := time.Now()
			id := enqueue(t, s, "c")
			got := r.Wait(posts+1, 10*time.Second)
			if len(got) != posts+1 {
				t.Fatalf("%s: %d posts, want %d", fault, len(got), posts+1)
			}
			if wait := time.Since(begin); strings.HasPrefix(fault, "429") && wait < time.Second {
				t.Errorf("%s: tried again after %v, though asked to wait a second", fault, wait)
			}
			posts++
			if fault == "taken" && !strings.HasPrefix(posters[i].name, "thehive") { // which takes nothing twice
				if got = r.Wait(posts+1, 10*time.Second); len(got) != posts+1 || reference(t, got[posts]) != reference(t, got[posts-1]) {
					t.Errorf("%d posts, want a repeat with the same reference", len(got))
				}
			}
			if ref := reference(t, got[len(got)-1]); !strings.Contains(ref, string(id)) {
				t.Errorf("%s: reference %q, want %s", fault, ref, id)
			}
		}
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			st, err := s.ChannelStates(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(st) == 1 && st[0].Waiting == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%+v", st)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Whatever words come, a line of CEF reads back as what was written, and a line in words keeps its form.
func TestLines_anyWordsStayWords(t *testing.T) {
	t.Parallel()
	srv := testenv.StartSyslog(t, "unix", "")
	send := map[lines.Format]*lines.Channel{}
	for _, f := range []lines.Format{lines.CEF, lines.Words} {
		c, err := lines.New(lines.Options{Name: "c", Format: f, Syslog: syslog.Options{Network: syslog.Unix, Address: srv.Addr, MaxBytes: 32 << 10}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		send[f] = c
	}
	inWords := regexp.MustCompile(`^<\d+>\w+ +\d+ [0-9:]+ parry\[\d+\]: parry: block\.added( [a-z_]+="([^"\\]|\\["\\])*")+$`)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		words := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{hostile, `a\`, `\=`, `x" y="z`, "a|b", " src=6.6.6.6", "é\xff"}))
		d := added()
		d.Block.Reason, d.Block.Origin, d.Block.By = words.Draw(rt, "reason"), words.Draw(rt, "origin"), words.Draw(rt, "by")
		for _, f := range []lines.Format{lines.CEF, lines.Words} {
			if _, err := send[f].Notify(t.Context(), d); err != nil {
				rt.Fatal(err)
			}
		}
		n += 2
		got := srv.Wait(n, 10*time.Second)
		if len(got) != n {
			rt.Fatal("not arrived")
		}
		header, ext := readCEF(t, got[n-2])
		want := notify.Cut(notify.Line(d.Block.Reason), 1023)
		if len(header) != 7 || ext["reason"] != want || ext["src"] != "203.0.113.7" || ext["externalId"] != string(d.ID) {
			rt.Errorf("%q\ngives %v", got[n-2], ext)
		}
		if !inWords.MatchString(got[n-1]) {
			rt.Errorf("%q", got[n-1])
		}
	})
}
