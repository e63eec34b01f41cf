package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/app"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/testenv"
)

// audience is one receiver of each kind, and the configuration that tells them.
type audience struct {
	hook, chat, hive *testenv.Receiver
	log              *testenv.Syslog
	config           string
}

func newAudience(t *testing.T) *audience {
	a := &audience{hook: testenv.StartWebhook(t), chat: testenv.StartTelegram(t), hive: testenv.StartTheHive(t), log: testenv.StartSyslog(t, "tls", "")}
	a.config = fmt.Sprintf(`
channels:
- {name: hook, type: webhook, url: %s/hook, ca_file: %s, secret: 0123456789abcdef, events: [block.added, block.ended, firewall.failed]}
- {name: chat, type: telegram, url: %s, token: "%s", chat: "%s", at_most: none, events: [block.added]}
- {name: hive, type: thehive, url: %s, token: %s, events: [block.added]}
- {name: siem, type: syslog, network: tls, server: %s, ca_file: %s, format: cef, events: [block.added]}
`, a.hook.URL, a.hook.CAFile, a.chat.URL, testenv.TelegramToken, testenv.TelegramChat, a.hive.URL, testenv.TheHiveKey, a.log.Addr, a.log.CAFile)
	return a
}

// told counts, for each channel, how often each reference arrived, and which blocks were told of.
func (a *audience) told(t *testing.T) (refs map[string]map[string]int, blocks map[string]map[string]bool) {
	t.Helper()
	refs, blocks = map[string]map[string]int{}, map[string]map[string]bool{}
	note := func(channel, ref, block string) {
		if refs[channel] == nil {
			refs[channel], blocks[channel] = map[string]int{}, map[string]bool{}
		}
		refs[channel][ref]++
		blocks[channel][block] = true
	}
	for _, p := range a.hook.Posts() {
		var doc struct {
			Kind  string
			Block struct{ ID string }
		}
		if err := json.Unmarshal(p.Body, &doc); err != nil {
			t.Fatal(err)
		}
		if doc.Kind == "block.added" {
			note("hook", p.Header.Get("webhook-id"), doc.Block.ID)
		}
	}
	find := func(text, pattern string) string {
		m := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("%s is not in %q", pattern, text)
		}
		return m[1]
	}
	for _, p := range a.chat.Posts() {
		var m struct{ Text string }
		if err := json.Unmarshal(p.Body, &m); err != nil {
			t.Fatal(err)
		}
		note("chat", find(m.Text, `Reference: (n-\S+)`), find(m.Text, `Block: (b-\S+)`))
	}
	for _, p := range a.hive.Posts() {
		var al struct{ SourceRef string }
		if err := json.Unmarshal(p.Body, &al); err != nil {
			t.Fatal(err)
		}
		note("hive", al.SourceRef, al.SourceRef)
	}
	for _, l := range a.log.Lines() {
		note("siem", find(l, `externalId=(n-\S+)`), find(l, `cs1=(b-\S+)`))
	}
	return refs, blocks
}

// nobody is a site whose one firewall cannot be reached, so that blocks are taken and wait.
func nobody(t *testing.T, more string) *site {
	t.Helper()
	s := newSite(t, "firewalls: [{name: fw-x}]\nlisten: \"\"\nlog: {level: warn}\n"+more)
	s.write("inventory.json", `{"all": {"hosts": {"fw-x": {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "root"}}}}`)
	return s
}

// TestKill_everyChannelIsToldOfEveryBlock kills parry while notifications are on their way. What was acknowledged is told by every channel; at
// most one delivery a channel and kill is repeated, under its own reference; TheHive opens nothing twice. More cycles by PARRY_KILL_CYCLES.
func TestKill_everyChannelIsToldOfEveryBlock(t *testing.T) {
	t.Parallel()
	cycles := 5
	if n, err := strconv.Atoi(os.Getenv("PARRY_KILL_CYCLES")); err == nil {
		cycles = n
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("%d cycles, seed %d", cycles, seed)
	a := newAudience(t)
	for _, r := range []*testenv.Receiver{a.hook, a.chat, a.hive} {
		r.Slow(20 * time.Millisecond) // so that a kill finds each of them at work
	}
	s := nobody(t, a.config)
	acknowledged, n := map[string]bool{}, 0
	var mu sync.Mutex
	for range cycles {
		p := s.spawn()
		c := s.client()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					mu.Lock()
					n++
					source := fmt.Sprintf("45.%d.%d.%d", n>>16&255, n>>8&255, n&255)
					mu.Unlock()
					r, err := c.CreateBlockWithResponse(ctx, &api.CreateBlockParams{}, api.BlockRequest{Source: source, TTL: "1h"})
					if err == nil && r.JSON201 != nil {
						mu.Lock()
						acknowledged[r.JSON201.ID] = true
						mu.Unlock()
					}
					select { // deliveries are to keep up, more or less
					case <-ctx.Done():
					case <-time.After(10 * time.Millisecond):
					}
				}
			})
		}
		before := len(a.hook.Posts())
		eventually(t, "something is told", func() bool { return len(a.hook.Posts()) > before })
		time.Sleep(time.Duration(random.Int64N(int64(700 * time.Millisecond)))) // the random moment
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = p.Wait()
		cancel()
		wg.Wait()
	}
	p := s.spawn()
	c := s.client()
	eventually(t, "everything is delivered", func() bool {
		r, err := c.ListChannelsWithResponse(t.Context())
		if err != nil || r.JSON200 == nil || len(r.JSON200.Items) != 4 {
			t.Fatalf("channels: %v, %s", err, r.Body)
		}
		waiting := int64(0)
		for _, ch := range r.JSON200.Items {
			if ch.LastError != "" {
				t.Logf("%s: %s", ch.Name, ch.LastError)
			}
			waiting += ch.Waiting
		}
		return waiting == 0
	})
	refs, blocks := a.told(t)
	for _, channel := range []string{"hook", "chat", "hive", "siem"} {
		repeats := 0
		for _, times := range refs[channel] {
			repeats += times - 1
		}
		if repeats > cycles || channel == "hive" && repeats > 0 {
			t.Errorf("%s: %d repeats after %d kills", channel, repeats, cycles)
		}
		if len(refs[channel]) != len(blocks[channel]) {
			t.Errorf("%s: %d references for %d blocks", channel, len(refs[channel]), len(blocks[channel]))
		}
		for id := range acknowledged {
			if !blocks[channel][id] {
				t.Errorf("%s: %s was acknowledged and is not told", channel, id)
			}
		}
		t.Logf("%s: %d told, %d repeats", channel, len(blocks[channel]), repeats)
	}
	if bad := append(append(a.hook.Wrong(), a.chat.Wrong()...), a.log.Faults()...); len(bad) > 0 {
		t.Errorf("refused: %q", bad)
	}
	for _, w := range a.hive.Wrong() {
		if !strings.Contains(w, "already exist") {
			t.Errorf("refused: %s", w)
		}
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("ended by SIGTERM: %v\n%s", err, p.log)
	}
	if log := p.log.String(); strings.Contains(log, testenv.TelegramToken) || strings.Contains(log, testenv.TheHiveKey) {
		t.Error("the log tells a key")
	}
}

func TestChannels_areTestedAndListed(t *testing.T) {
	t.Parallel()
	a := newAudience(t)
	s := nobody(t, a.config)
	run := s.start()
	c := s.client()
	for channel, answer := range map[string]string{"hook": "200 OK", "chat": "200 OK", "hive": "201 Created", "siem": "the receiver has read the line"} {
		r, err := c.TestChannelWithResponse(t.Context(), channel)
		if err != nil || r.JSON200 == nil || !r.JSON200.Delivered || !strings.HasPrefix(r.JSON200.Answer, answer) {
			t.Errorf("%s: %v %s", channel, err, r.Body)
		}
	}
	a.chat.Fault("401", 0)
	r, err := c.TestChannelWithResponse(t.Context(), "chat")
	if err != nil || r.JSON200 == nil || r.JSON200.Delivered || !strings.Contains(r.JSON200.Answer, "401 Unauthorized") ||
		strings.Contains(r.JSON200.Answer, testenv.TelegramToken) {
		t.Errorf("%v %s", err, r.Body)
	}
	if r, err := c.TestChannelWithResponse(t.Context(), "pager"); err != nil || r.StatusCode() != 404 {
		t.Errorf("an unknown channel: %v %s", err, r.Status())
	}
	if r, err := c.CreateBlockWithResponse(t.Context(), &api.CreateBlockParams{}, api.BlockRequest{Source: "203.0.113.7", TTL: "1h"}); err != nil || r.JSON201 == nil {
		t.Fatal(err)
	}
	eventually(t, "the chat's refusal is shown", func() bool {
		l, err := c.ListChannelsWithResponse(t.Context())
		if err != nil || l.JSON200 == nil {
			t.Fatal(err)
		}
		for _, ch := range l.JSON200.Items {
			if ch.Name == "chat" {
				return ch.Failing == 1 && ch.Type == "telegram" && strings.Contains(ch.LastError, "401") && !ch.FailedAt.IsZero()
			}
		}
		return false
	})
	// The firewall that cannot be reached is told, too, to who asked for it.
	eventually(t, "the failure is told", func() bool {
		for _, p := range a.hook.Posts() {
			if strings.Contains(string(p.Body), `"firewall.failed"`) {
				return true
			}
		}
		return false
	})
	run.stop()

	cfg, err := config.Load(filepath.Join(s.dir, "parry.yaml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	grades := map[string]app.Grade{}
	for _, f := range app.Check(t.Context(), app.CheckOptions{Config: cfg}) {
		grades[f.Check] = f.Level
	}
	for check, want := range map[string]app.Grade{"channel hook": app.OK, "channel chat": app.Fail, "channel hive": app.OK, "channel siem": app.OK} {
		if grades[check] != want {
			t.Errorf("%s: %q, want %q", check, grades[check], want)
		}
	}
}
