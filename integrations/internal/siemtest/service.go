package siemtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/app"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/testenv"
)

// TTL is for how long a [Rig.Service] configures blocks to stand: the first rung of the default ladder.
const TTL = 4 * time.Hour

// Resolver is exempt in the service.
const Resolver = "198.18.0.53"

// Service is a rig's way to the real parry of the tests' process, which has one firewall that nobody answers for: requests are accepted and
// nothing is enforced. The way can be shut, or stuck.
type Service struct {
	*api.ClientWithResponses
	r    *Rig
	gate *gate
}

// The parry of this process: made by the first test that wants it, ended by Main.
var shared struct {
	once   sync.Once
	err    error
	addr   string
	ca     string
	client *api.ClientWithResponses
	secret string
	stop   func() error
}

// Main is a package's TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if shared.stop != nil {
		if err := shared.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "parry:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Service configures the script for the real parry. Blocks of the rig's own addresses are its own.
func (r *Rig) Service() *Service {
	r.Helper()
	if os.Getuid() != 0 {
		r.Skip("the service's socket is for root")
	}
	shared.once.Do(func() { shared.err = serve() })
	if shared.err != nil {
		r.Fatal(shared.err)
	}
	g := newGate(r.T, shared.addr)
	r.url = "https://" + g.addr
	ca, err := os.ReadFile(shared.ca)
	if err != nil {
		r.Fatal(err)
	}
	r.Write("ca.pem", string(ca))
	r.Write("token", shared.secret)
	r.Configure("ttl=4h\n")
	return &Service{ClientWithResponses: shared.client, r: r, gate: g}
}

// ownHost is a loopback address of this process alone.
func ownHost() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 64+pid>>16, pid>>8&255, pid&255)
}

var ownPorts atomic.Int32

// ownAddr gives each caller a port of its own, beneath those that the kernel gives away: it stays the caller's while nobody listens.
func ownAddr() string { return fmt.Sprintf("%s:%d", ownHost(), 10_000+ownPorts.Add(1)) }

// Down refuses connections. Stuck takes them and never answers. Up is as at first.
func (s *Service) Down()  { s.gate.shut() }
func (s *Service) Stuck() { s.gate.open(s.r.T, true) }
func (s *Service) Up()    { s.gate.open(s.r.T, false) }

// Blocks lists the blocks of a source, live or ended.
func (s *Service) Blocks(source string) []api.Block {
	s.r.Helper()
	all := api.ListBlocksParamsStatus("all")
	limit := 10
	page, err := s.ListBlocksWithResponse(s.r.Context(), &api.ListBlocksParams{Source: &source, Status: &all, Limit: &limit})
	if err != nil || page.JSON200 == nil {
		s.r.Fatalf("blocks of %s: %v", source, err)
	}
	return page.JSON200.Items
}

// Block wants one block of the source.
func (s *Service) Block(source string) api.Block {
	s.r.Helper()
	blocks := s.Blocks(source)
	if len(blocks) != 1 {
		s.r.Fatalf("%d blocks of %s, want 1; log %q", len(blocks), source, s.r.Log())
	}
	return blocks[0]
}

// Evidence lists a block's requests, newest first.
func (s *Service) Evidence(b api.Block) []api.Evidence {
	s.r.Helper()
	page, err := s.ListBlockRequestsWithResponse(s.r.Context(), b.ID, &api.ListBlockRequestsParams{})
	if err != nil || page.JSON200 == nil {
		s.r.Fatalf("requests of %s: %v", b.ID, err)
	}
	return page.JSON200.Items
}

func serve() (err error) {
	dir, err := os.MkdirTemp("", "parry")
	if err != nil {
		return err
	}
	if err := testenv.CopyPlaybooks("", filepath.Join(dir, "playbooks")); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"inventory.yml": "all: {hosts: {fw-a: {ansible_host: 192.0.2.1, ansible_user: admin}}}\n",
		"known_hosts":   "",
		"parry.yaml": fmt.Sprintf(`
listen: %s:0
socket: %s/s
state_dir: %[2]s/state
bundles: %[2]s/playbooks
ansible: {inventory: %[2]s/inventory.yml, known_hosts: %[2]s/known_hosts}
firewalls: [{name: fw-a, bundle: pfsense, interface: wan}]
exemptions: [{prefix: %[3]s/32, reason: our resolver}]
hooks: {honour_delete: true}
`, ownHost(), dir, Resolver),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	cfg, err := config.Load(dir+"/parry.yaml", []string{"PATH=" + os.Getenv("PATH")})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	a, err := app.New(ctx, app.Options{Config: cfg, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		cancel()
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	shared.stop = func() error {
		cancel()
		return errors.Join(<-ended, a.Close(), os.RemoveAll(dir))
	}
	shared.client, err = api.NewClientWithResponses("http://parry", api.WithHTTPClient(&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", dir+"/s")
		}}}))
	if err != nil {
		return err
	}
	made, err := shared.client.CreateTokenWithResponse(ctx, api.TokenRequest{Name: "siem", Role: "trigger", Rate: 100000})
	if err != nil || made.JSON201 == nil {
		return fmt.Errorf("no token: %w", err)
	}
	shared.addr, shared.secret = a.Addr().String(), made.JSON201.Secret
	shared.ca, _ = a.CA()
	return nil
}

// gate passes connections on to parry, at an address of its own.
type gate struct {
	addr, to string

	mu    sync.Mutex
	ln    net.Listener
	conns []net.Conn
	wg    sync.WaitGroup
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	g := &gate{to: to, addr: ownAddr()}
	g.open(t, false)
	t.Cleanup(g.shut)
	return g
}

// shut ends what is on, too.
func (g *gate) shut() {
	g.mu.Lock()
	if g.ln != nil {
		g.ln.Close()
		g.ln = nil
	}
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
	g.mu.Unlock()
	g.wg.Wait()
}

func (g *gate) open(t *testing.T, stuck bool) {
	t.Helper()
	g.shut()
	ln, err := testenv.Listen(g.addr)
	if err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.ln = ln
	g.mu.Unlock()
	g.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if !g.keep(ln, c) || stuck {
				continue
			}
			g.wg.Go(func() { g.pass(ln, c) })
		}
	})
}

// keep remembers a connection, to be closed by shut; false when that has been.
func (g *gate) keep(ln net.Listener, c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ln != ln {
		c.Close()
		return false
	}
	g.conns = append(g.conns, c)
	return true
}

func (g *gate) pass(ln net.Listener, c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", g.to)
	if err != nil || !g.keep(ln, up) {
		return
	}
	defer up.Close()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{up, c}, {c, up}} {
		g.wg.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			done <- struct{}{}
		})
	}
	<-done
}
