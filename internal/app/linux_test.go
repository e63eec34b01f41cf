package app_test

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/testenv"
)

const (
	attacker, other   = "203.0.113.7", "203.0.113.8"
	attacker6, other6 = "2001:db8:bad::7", "2001:db8:bad::8"
)

// ways are all by which packets of a source reach the server.
func ways(l *testenv.Linux, source string) map[string]func() error {
	server, to := "198.18.0.80", "198.18.0.80:7"
	if strings.Contains(source, ":") {
		server, to = "2001:db8:1::80", "[2001:db8:1::80]:7"
	}
	return map[string]func() error{
		"ping of " + source: func() error { return l.Ping(source, server) },
		"TCP of " + source:  func() error { return l.Say("tcp", source, to) },
		"UDP of " + source:  func() error { return l.Say("udp", source, to) },
	}
}

func passes(t *testing.T, l *testenv.Linux, sources ...string) {
	t.Helper()
	for _, source := range sources {
		for what, try := range ways(l, source) {
			eventually(t, what+" passes "+l.Name, func() bool { return try() == nil })
		}
	}
}

func fails(t *testing.T, l *testenv.Linux, sources ...string) {
	t.Helper()
	var wg sync.WaitGroup
	for _, source := range sources {
		for what, try := range ways(l, source) {
			wg.Go(func() {
				if try() == nil {
					t.Errorf("%s passes %s", what, l.Name)
				}
			})
		}
	}
	wg.Wait()
}

func open(t *testing.T, l *testenv.Linux, source string) net.Conn {
	t.Helper()
	c, err := l.Attacker.Dial("tcp", source, "198.18.0.80:7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := testenv.Said(c, "first"); err != nil {
		t.Fatal(err)
	}
	return c
}

// By real packets: what a request stops, on two firewalls of which one is dead; what it does not stop; and when it ends.
func TestLinux_aBlockStopsThePacketsOfItsSourceAndOfNobodyElse(t *testing.T) {
	t.Parallel()
	alive, dead := testenv.StartLinux(t, "fw-c"), testenv.StartLinux(t, "fw-d")
	s := newSite(t, "blocks: {expiry_slack: 1s}\nreconcile: {backoff_max: 5s}\n", alive.Lab, dead.Lab)
	alive.Echo(7)
	dead.Echo(7)
	passes(t, alive, attacker, other, attacker6, other6) // the control
	passes(t, dead, attacker)
	bad, good := open(t, alive, attacker), open(t, alive, other)
	dead.Stop()
	s.start()
	c := s.client()
	b := block(t, c, api.BlockRequest{Source: attacker, TTL: "1h"}, "60s")
	if b.InScope != 2 || b.Enforced != 1 {
		t.Fatalf("one firewall is dead, and the block is %+v", b)
	}
	block(t, c, api.BlockRequest{Source: attacker6 + "/128", TTL: "1h"}, "60s")
	fails(t, alive, attacker)
	if testenv.Said(bad, "again") == nil {
		t.Error("an open connection of the blocked source goes on")
	}
	if err := testenv.Said(good, "again"); err != nil {
		t.Errorf("another's open connection was cut: %v", err)
	}
	passes(t, alive, other, other6)

	dead.Start() // it has lost nothing but its time
	dead.Echo(7)
	passes(t, dead, other)
	eventually(t, "the block is in force on both", func() bool {
		r, err := c.GetBlockWithResponse(t.Context(), b.ID)
		return err == nil && r.JSON200.Enforced == 2
	})
	fails(t, dead, attacker)

	begin := time.Now()
	brief := block(t, c, api.BlockRequest{Source: other, TTL: "40s"}, "35s")
	if brief.Enforced != 2 {
		t.Fatalf("got %+v", brief)
	}
	fails(t, alive, other)
	fails(t, dead, other)
	passes(t, alive, other)
	if took := time.Since(begin); took < 39*time.Second {
		t.Errorf("it ended after %s, before its time", took)
	}
	passes(t, dead, other)
	eventually(t, "the block is lifted", func() bool {
		r, err := c.GetBlockWithResponse(t.Context(), brief.ID)
		return err == nil && r.JSON200.State == "lifted" && r.JSON200.EndReason == "expired"
	})
	fails(t, alive, attacker)
}

func TestLinux_aBlockEndsInTimeWithParryKilled(t *testing.T) {
	t.Parallel()
	l := testenv.StartLinux(t, "fw-c")
	s := newSite(t, "", l.Lab)
	l.Echo(7)
	passes(t, l, attacker)
	p := s.spawn()
	begin := time.Now()
	if b := block(t, s.client(), api.BlockRequest{Source: attacker, TTL: "45s"}, "40s"); b.State != "enforced" {
		t.Fatalf("got %+v", b)
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
	fails(t, l, attacker)
	if left := l.SSH("nft list table inet parry"); !strings.Contains(left, attacker) {
		t.Errorf("the entry went with parry:\n%s", left)
	}
	passes(t, l, attacker)
	if took := time.Since(begin); took < 44*time.Second {
		t.Errorf("it ended after %s, before its time", took)
	}
	if left := l.SSH("nft list table inet parry"); strings.Contains(left, attacker+" ") {
		t.Errorf("the entry is still there:\n%s", left)
	}
}
