package app_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/app"
	"github.com/parry/parry/internal/cli"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/testenv"
)

// TestMain lets a test start this binary as parry itself, to be killed.
func TestMain(m *testing.M) {
	if os.Getenv("PARRY_TEST_MAIN") != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		context.AfterFunc(ctx, stop)
		os.Exit(int(cli.Execute(ctx, &cli.Env{
			In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Environ: os.Environ(), Now: time.Now,
		}, os.Args[1:])))
	}
	goleak.VerifyTestMain(m)
}

func repo() string {
	_, here, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(here), "..", "..")
}

// site is a directory with a configuration and all that belongs to it.
type site struct {
	tb     testing.TB
	dir    string
	config string
	socket string
}

// newSite writes a configuration for the lab firewalls; more is appended to it.
func newSite(tb testing.TB, more string, labs ...*testenv.Lab) *site {
	tb.Helper()
	// The socket's path must be short, so that the test's own directory will not do.
	dir, err := os.MkdirTemp("", "parry")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &site{tb: tb, dir: dir, config: filepath.Join(dir, "parry.yaml"), socket: filepath.Join(dir, "parry.sock")}
	s.configure(more, labs...)
	return s
}

// configure writes the configuration anew.
func (s *site) configure(more string, labs ...*testenv.Lab) {
	s.tb.Helper()
	s.inventory(labs...)
	text := "socket: parry.sock\nstate_dir: state\nansible: {inventory: inventory.json, known_hosts: known_hosts}\nfirewalls:\n"
	var known strings.Builder
	for _, l := range labs {
		text += "- {name: " + l.Name + ", bundle: " + l.Bundle + ", groups: [edge]}\n"
		b, err := os.ReadFile(l.KnownHosts)
		if err != nil {
			s.tb.Fatal(err)
		}
		known.Write(b)
	}
	if len(labs) == 0 {
		text = strings.Replace(text, "firewalls:\n", "", 1)
	}
	if !strings.Contains(more, "listen:") {
		text += "listen: 127.0.0.1:0\n"
	}
	if !strings.Contains(more, "bundles:") {
		text += "bundles: " + testenv.Playbooks(s.tb) + "\n"
	}
	s.write("known_hosts", known.String())
	s.write("parry.yaml", text+more)
}

func (s *site) write(name, text string) {
	s.tb.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *site) read(name string) string {
	s.tb.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.tb.Fatal(err)
	}
	return string(b)
}

func (s *site) inventory(labs ...*testenv.Lab) {
	s.tb.Helper()
	hosts := map[string]any{}
	for _, l := range labs {
		hosts[l.Name] = map[string]any{
			"ansible_host": l.Addr.String(), "ansible_port": l.Port, "ansible_user": l.User, "ansible_ssh_private_key_file": l.KeyFile,
		}
	}
	b, err := json.Marshal(map[string]any{"all": map[string]any{"hosts": hosts}})
	if err != nil {
		s.tb.Fatal(err)
	}
	s.write("inventory.json", string(b))
}

// logBuffer gathers the log and lets a test wait for a line.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// running is an App at work.
type running struct {
	*app.App
	site *site
	log  *logBuffer
	stop context.CancelFunc
	done chan error
}

func (s *site) start() *running {
	s.tb.Helper()
	cfg, err := config.Load(s.config, nil)
	if err != nil {
		s.tb.Fatal(err)
	}
	r := &running{site: s, log: &logBuffer{}, done: make(chan error, 1)}
	level := new(slog.LevelVar)
	// What another test is just starting has this process's descriptors for a moment, the lock of the parry before among them.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		r.App, err = app.New(s.tb.Context(), app.Options{
			Config: cfg, Load: func() (*config.Config, error) { return config.Load(s.config, nil) },
			Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: level})), Level: level,
		})
		if !errors.Is(err, app.ErrRunning) || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		s.tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.done <- r.Run(ctx) }()
	s.tb.Cleanup(func() {
		r.end()
		if s.tb.Failed() {
			s.tb.Logf("parry's log:\n%s", r.log)
		}
	})
	return r
}

// end drains and closes; a second call does nothing.
func (r *running) end() {
	r.site.tb.Helper()
	r.stop()
	if err, ok := <-r.done; ok && err != nil {
		r.site.tb.Errorf("Run: %v", err)
	} else if ok {
		close(r.done)
	}
	if err := r.Close(); err != nil {
		r.site.tb.Errorf("Close: %v", err)
	}
}

// client speaks to the unix socket.
func (s *site) client() *api.ClientWithResponses {
	s.tb.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
	}}
	s.tb.Cleanup(transport.CloseIdleConnections)
	c, err := api.NewClientWithResponses("http://parry", api.WithHTTPClient(&http.Client{Transport: transport, Timeout: 3 * time.Minute}))
	if err != nil {
		s.tb.Fatal(err)
	}
	return c
}

var keys struct {
	sync.Mutex
	n int
}

func key() string {
	keys.Lock()
	defer keys.Unlock()
	keys.n++
	return fmt.Sprintf("key-%d", keys.n)
}

func block(tb testing.TB, c *api.ClientWithResponses, req api.BlockRequest, wait string) *api.Block {
	tb.Helper()
	r, err := c.CreateBlockWithResponse(tb.Context(), &api.CreateBlockParams{Wait: &wait, IdempotencyKey: new(key())}, req)
	if err != nil {
		tb.Fatal(err)
	}
	for _, b := range []*api.Block{r.JSON201, r.JSON200, r.JSON202} {
		if b != nil {
			return b
		}
	}
	tb.Fatalf("block %s: %s: %s", req.Source, r.Status(), r.Body)
	return nil
}

// eventually polls until ok, within a bound.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("not within a minute: %s", what)
		}
	}
}

// sources are what the lab's pf holds in parry's tables.
func sources(l *testenv.Lab) []string {
	var out []string
	for name, entries := range l.Tables() {
		if strings.HasPrefix(name, "parry_") && name != "parry_exempt" {
			out = append(out, entries...)
		}
	}
	slices.Sort(out)
	return out
}

func TestApp_blockIsProvedExpiresAndIsLifted(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	s := newSite(t, "blocks: {expiry_slack: 1s}\n", lab)
	s.start()
	c := s.client()
	b := block(t, c, api.BlockRequest{Source: "203.0.113.7", TTL: "1h", Reason: "{{ 7*7 }} $(reboot)"}, "30s")
	if b.State != "enforced" || b.Enforced != 1 {
		t.Fatalf("got %+v", b)
	}
	if got := sources(lab); !slices.Contains(got, "203.0.113.7") {
		t.Fatalf("pf holds %v", got)
	}
	shortened, err := c.UpdateBlockWithResponse(t.Context(), b.ID, api.BlockUpdate{TTL: "2s"})
	if err != nil || shortened.JSON200 == nil {
		t.Fatalf("%v %s", err, shortened.Body)
	}
	end := time.Now()
	eventually(t, "the block is lifted after its time", func() bool {
		r, err := c.GetBlockWithResponse(t.Context(), b.ID)
		if err != nil {
			t.Fatal(err)
		}
		return r.JSON200.State == "lifted" && r.JSON200.EndReason == "expired"
	})
	if shortened.JSON200.ExpiresAt.After(time.Now()) {
		t.Errorf("lifted early")
	}
	if got := sources(lab); slices.Contains(got, "203.0.113.7") {
		t.Errorf("pf still holds %v, %s after", got, time.Since(end))
	}
}

func TestApp_secondInstanceIsRefusedWithThePid(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.start()
	cfg, err := config.Load(s.config, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = app.New(t.Context(), app.Options{Config: cfg, Logger: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, app.ErrRunning) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("got %v", err)
	}
	cfg.StateDir, cfg.Database.Path = filepath.Join(s.dir, "other"), filepath.Join(s.dir, "other", "parry.db")
	if _, err = app.New(t.Context(), app.Options{Config: cfg, Logger: slog.New(slog.DiscardHandler)}); !errors.Is(err, app.ErrRunning) {
		t.Errorf("on the same socket: got %v", err)
	}
	if r, err := s.client().GetHealthWithResponse(t.Context()); err != nil || r.StatusCode() != 200 {
		t.Errorf("the first one does not answer any more: %v", err)
	}
}

func TestApp_stateAndSocketAreForTheirOwnerAlone(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	r := s.start()
	for path, want := range map[string]os.FileMode{"state": 0o700, "parry.sock": 0o600, "state/parry.db": 0o600, "state/tls/ca.key": 0o600} {
		st, err := os.Stat(filepath.Join(s.dir, path))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, st.Mode().Perm(), err, want)
		}
	}
	r.end()
	if _, err := os.Stat(s.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestApp_servesHTTPSUnderItsOwnCA(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	r := s.start()
	ca, print := r.CA()
	pem, err := os.ReadFile(ca)
	if err != nil || print == "" {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: v, MaxVersion: v}}
		resp, err := (&http.Client{Transport: tr}).Get("https://" + r.Addr().String() + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		tr.CloseIdleConnections()
		if resp.StatusCode != http.StatusOK || resp.TLS.Version != v {
			t.Errorf("%s in %x", resp.Status, resp.TLS.Version)
		}
	}
	resp, err := http.Get("http://" + r.Addr().String() + "/healthz")
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("plain HTTP: %s", resp.Status)
		}
	}
}

func TestReload_badConfigurationKeepsTheOldOne(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	s := newSite(t, "blocks: {max_ttl: 1h, default_ttl: 1h}\n", lab)
	r := s.start()
	good, c := s.read("parry.yaml"), s.client()
	refuses := func(source, ttl string) bool {
		resp, err := c.CreateBlockWithResponse(t.Context(), &api.CreateBlockParams{IdempotencyKey: new(key())}, api.BlockRequest{Source: source, TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode() == http.StatusUnprocessableEntity
	}
	for what, bad := range map[string]string{
		"a typo":            strings.Replace(good, "max_ttl", "mx_ttl", 1),
		"an unknown bundle": strings.Replace(good, "groups: [edge]", "groups: [edge], bundle: nowhere", 1),
		"a bad setting":     strings.Replace(good, "groups: [edge]", "groups: [edge], settings: {pfsense_role: king}", 1),
	} {
		s.write("parry.yaml", strings.Replace(bad, "max_ttl: 1h", "max_ttl: 9h", 1))
		if err := r.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "the old configuration stays") {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if !refuses("203.0.113.1", "2h") {
		t.Error("the old limit does not stand any more")
	}
	s.write("parry.yaml", strings.Replace(good, "max_ttl: 1h", "max_ttl: 9h", 1)+"exemptions: [{prefix: 203.0.113.0/28, reason: ours}]\nlimits: {queue: 5}\n")
	block(t, c, api.BlockRequest{Source: "203.0.113.2"}, "")
	if err := r.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if refuses("203.0.113.21", "2h") {
		t.Error("the new limit does not stand")
	}
	if !refuses("203.0.113.1", "1h") {
		t.Error("the new exemption does not stand")
	}
	list, err := c.ListBlocksWithResponse(t.Context(), &api.ListBlocksParams{Status: new(api.ListBlocksParamsStatusEnded), Limit: new(100)})
	if err != nil || len(list.JSON200.Items) != 1 || list.JSON200.Items[0].EndReason != "exempted" {
		t.Errorf("the live block of an address that is exempt now did not end: %s", list.Body)
	}
	if !strings.Contains(r.log.String(), "need a restart") || !strings.Contains(r.log.String(), "limits.queue") {
		t.Error("nothing says that limits.queue needs a restart")
	}
}

func TestReload_takesFirewallsInAndOut(t *testing.T) {
	t.Parallel()
	a, b := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"}), testenv.StartLab(t, testenv.LabOptions{Name: "fw-b"})
	s := newSite(t, "", a, b)
	both := s.read("parry.yaml")
	s.write("parry.yaml", strings.Replace(both, "- {name: fw-b, bundle: "+b.Bundle+", groups: [edge]}\n", "", 1))
	r := s.start()
	c := s.client()
	if got := block(t, c, api.BlockRequest{Source: "203.0.113.7"}, "60s"); got.InScope != 1 || got.State != "enforced" {
		t.Fatalf("got %+v", got)
	}
	s.write("parry.yaml", both)
	if err := r.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new firewall has the block", func() bool { return slices.Contains(sources(b), "203.0.113.7") })
	eventually(t, "it is proved on both", func() bool {
		l, err := c.ListBlocksWithResponse(t.Context(), &api.ListBlocksParams{Limit: new(100)})
		return err == nil && l.JSON200.Items[0].Enforced == 2
	})
}

func TestRun_drainsARunInProgressAndAnswersWhoWaits(t *testing.T) {
	t.Parallel()
	lab := testenv.StartLab(t, testenv.LabOptions{Name: "fw-a"})
	s := newSite(t, "", lab)
	r := s.start()
	c := s.client()
	block(t, c, api.BlockRequest{Source: "203.0.113.1"}, "60s")
	lab.Fault("slow", "3", "pf")
	answered := make(chan *api.Block, 1)
	go func() { answered <- block(t, c, api.BlockRequest{Source: "203.0.113.2"}, "60s") }()
	eventually(t, "a run is on", func() bool {
		l, err := c.ListRunsWithResponse(t.Context(), &api.ListRunsParams{State: new(api.RunStateRunning), Limit: new(100)})
		return err == nil && len(l.JSON200.Items) == 1
	})
	start := time.Now()
	r.end()
	if b := <-answered; b.State != "pending" && b.State != "enforced" {
		t.Errorf("who waited was told %s", b.State)
	}
	if got := sources(lab); !slices.Contains(got, "203.0.113.2") {
		t.Errorf("the run in progress was not finished: pf holds %v after %s", got, time.Since(start))
	}
	lab.Fault("off")
	s.start()
	l, err := s.client().ListRunsWithResponse(t.Context(), &api.ListRunsParams{Limit: new(1000)})
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range l.JSON200.Items {
		if run.State == "unknown" || run.State == "failed" {
			t.Errorf("run %s is %s: %s", run.ID, run.State, run.Failure)
		}
	}
}
