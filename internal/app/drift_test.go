package app_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/testenv"
)

// What people and accidents do to a firewall behind parry's back, on each kind: found within the interval, without a word of anybody, put
// right, and told once, by a mail that names the entries.
func TestDrift_isFoundWithinTheIntervalRepairedAndToldOnce(t *testing.T) {
	t.Parallel()
	tables := func(do string) string { return "for t in $(pfctl -sT | grep 'parry_[0-9a-f]*$'); do " + do + "; done" }
	for kind, start := range map[string]func(*testing.T) (*testenv.Lab, map[string]func()){
		"pfsense": func(t *testing.T) (*testenv.Lab, map[string]func()) {
			l := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
			return l, map[string]func(){
				"an entry taken out":    func() { l.SSH(tables("pfctl -q -t $t -T delete 203.0.113.7")) },
				"the tables flushed":    func() { l.SSH(tables("pfctl -q -t $t -T flush")) },
				"a foreign rule above":  func() { l.GUISave("floating=Admin") },
				"a reboot with nothing": func() { l.Reboot(true) },
			}
		},
		"nftables": func(t *testing.T) (*testenv.Lab, map[string]func()) {
			l := testenv.StartLinux(t, "fw-a")
			return l.Lab, map[string]func(){
				"an entry taken out":   func() { l.SSH("nft delete element inet parry ip4_32_if_wan '{ 203.0.113.7 }'") },
				"the table flushed":    func() { l.SSH("nft flush table inet parry") },
				"a foreign rule above": func() { l.SSH("nft insert rule inet parry prerouting ip saddr 203.0.113.0/24 accept") },
				"a reboot with nothing": func() {
					l.SSH("rm -f /var/lib/parry-nftables/entries*")
					l.Reboot()
				},
			}
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			lab, damage := start(t)
			mail := testenv.StartMail(t, testenv.MailOptions{})
			s := newSite(t, "listen: \"\"\nreconcile: {verify_every: 10s}\nmail: {server: \""+mail.Addr+
				"\", security: plain, from: parry@example.net, to: [noc@example.net]}\n", lab)
			r := s.start()
			c := s.client()
			b := block(t, c, api.BlockRequest{Source: "203.0.113.7", TTL: "1h"}, "60s")
			if other := block(t, c, api.BlockRequest{Source: "2001:db8:bad::7", TTL: "1h"}, "60s"); b.State != "enforced" || other.State != "enforced" {
				t.Fatalf("got %+v, %+v", b, other)
			}
			told := 0
			for _, what := range slices.Sorted(maps.Keys(damage)) {
				before := firewall(t, c, "fw-a").ProvedAt
				damage[what]()
				done := time.Now()
				eventually(t, what+": it is told, hence repaired", func() bool { return len(mail.Letters()) > told })
				t.Logf("%s: told %v after", what, time.Since(done).Round(time.Second))
				text := string(mail.Letters()[told].Data)
				if !strings.Contains(text, "- 203.0.113.7 -") {
					t.Errorf("%s: the mail does not name the entry:\n%s", what, text)
				}
				fw := firewall(t, c, "fw-a")
				if fw.Reality != api.RealityOk || fw.Drift.MissingN != 0 || !fw.ProvedAt.After(before) || stateOf(t, c, b.ID) != "enforced" {
					t.Errorf("%s: afterwards %+v, the block is %s", what, fw, stateOf(t, c, b.ID))
				}
				told++
			}
			last := firewall(t, c, "fw-a").ProvedAt
			eventually(t, "the next verify finds nothing", func() bool { return firewall(t, c, "fw-a").ProvedAt.After(last) })
			if n := len(mail.Letters()); n != told {
				t.Errorf("%d letters tell of %d drifts", n, told)
			}
			if log := r.log.String(); !strings.Contains(log, "has rebooted") {
				t.Errorf("the log does not tell of the reboot:\n%s", log)
			}
		})
	}
}

// A firewall that cannot be read is unknown, and so it stays in what is told until it has been read.
func TestReality_isUnknownWhileTheFirewallIsAway(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	s := newSite(t, "listen: \"\"\nreconcile: {verify_every: 10s}\n", lab)
	s.start()
	c := s.client()
	b := block(t, c, api.BlockRequest{Source: "203.0.113.7", TTL: "1h"}, "60s")
	if got := firewall(t, c, "fw-a").Reality; got != api.RealityOk {
		t.Errorf("it is %s", got)
	}
	lab.Stop()
	eventually(t, "it is unknown", func() bool { return firewall(t, c, "fw-a").Reality == api.RealityUnknown })
	if got := stateOf(t, c, b.ID); got != "enforced" {
		t.Errorf("what was last proved is %s", got)
	}
	lab.Start()
	eventually(t, "it is known again", func() bool { return firewall(t, c, "fw-a").Reality == api.RealityOk })
}
