// Package app wires parry together: New sets everything up in one straight line, Run works until its context ends and drains, Close undoes
// New last to first. What may change while parry runs (firewalls, exemptions, limits) lies behind one atomic pointer that Reload replaces.
package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/cert"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/feeds"
	"github.com/parry/parry/internal/httpapi"
	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/nat"
	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
	"github.com/parry/parry/internal/reconcile"
	"github.com/parry/parry/internal/store"
)

// drain is how long a run in progress is given at the end; with ansible.grace it must fit into the service manager's patience.
const drain = 30 * time.Second

// Options of an App. Config and Logger are required.
type Options struct {
	Config *config.Config
	Load   func() (*config.Config, error) // for Reload; nil: there is none
	Logger *slog.Logger
	Level  *slog.LevelVar // set by Reload; may be nil

	Version, Commit, Built string
	Now                    func() time.Time // time.Now
}

// App is one parry. It is made by New, works in Run, and is let go by Close.
type App struct {
	o   Options
	log *slog.Logger
	now func() time.Time

	state      atomic.Pointer[state]
	reloading  sync.Mutex
	store      *store.Store
	runner     *ansible.Runner
	library    *bundle.Library
	policy     *policy.Policy
	auth       *auth.Auth
	reconciler *reconcile.Reconciler
	notifier   *notify.Worker
	feeds      *feeds.Feeds
	lists      *lists.Lists
	api        *httpapi.Server
	registry   *prometheus.Registry
	cert       *cert.Source
	callers    *callers
	found      finder
	claims     claimJudge
	forwards   atomic.Pointer[map[string]*nat.Table] // of each firewall, by the configuration and its own word
	tcp, unix  net.Listener
	warm       chan struct{}
	anchored   int64 // the head of the audit that was logged last; upkeep's while that runs

	cleanups []cleanup
	closing  sync.Once
	closeErr error
}

// state is everything that a reload replaces; it is never changed.
type state struct {
	cfg       *config.Config
	fleet     *parry.Fleet
	hosts     map[string]ansible.Host
	inventory error // why there are no hosts
	manifests map[string]bundle.Manifest
	digests   map[string]string // of the current copies, by bundle
	bundles   map[string]error  // what is wrong with a bundle or a firewall's settings, by firewall
}

type cleanup struct {
	name string
	do   func() error
}

func (a *App) onClose(name string, do func() error) {
	a.cleanups = append(a.cleanups, cleanup{name, do})
}

// New sets parry up: nothing is served and no firewall is touched before Run. What it began is undone when it fails.
func New(ctx context.Context, o Options) (_ *App, err error) {
	if o.Config == nil || o.Logger == nil {
		return nil, errors.New("app: Config and Logger are required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &App{o: o, log: o.Logger, now: o.Now, warm: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	cfg := o.Config

	unlock, err := lockStateDir(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	a.onClose("state directory", unlock)

	if a.store, err = openStore(ctx, cfg, a.now, o.Logger); err != nil {
		return nil, err
	}
	a.onClose("database", a.store.Close)
	controller, err := a.store.ControllerID(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the controller's id: %w", err)
	}

	if a.runner, err = newRunner(cfg, cfg.StateDir, a.now, o.Logger); err != nil {
		return nil, err
	}
	a.onClose("ssh connections", a.runner.Close)
	a.library, err = bundle.New(bundle.Options{Root: cfg.Bundles, StateDir: cfg.StateDir, Check: a.runner.Syntax, Logger: o.Logger})
	if err != nil {
		return nil, err
	}

	if a.policy, err = policy.New(limits(cfg)); err != nil {
		return nil, fmt.Errorf("blocks: %w", err)
	}
	if a.callers, err = openCallers(cfg.StateDir, a.now); err != nil {
		return nil, err
	}
	if err := a.readExemptions(ctx); err != nil {
		return nil, err
	}
	st := a.survey(ctx, cfg)
	for name, err := range st.bundles {
		a.log.Error("a firewall's bundle cannot be used", "firewall", name, "err", err)
	}
	if err := a.settle(ctx, st); err != nil {
		return nil, err
	}

	a.registry = prometheus.NewRegistry()
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newMetrics(a))
	if a.auth, err = auth.New(auth.Options{
		Store: a.store, Rate: func() int { return a.config().Limits.RatePerMinute },
		Total: func() int { l := &a.config().Limits; return l.Total() }, Used: a.callers.note, Now: a.now, Logger: o.Logger,
	}); err != nil {
		return nil, err
	}
	if a.notifier, err = newNotifier(a, cfg); err != nil {
		return nil, err
	}
	if a.reconciler, err = newReconciler(a, cfg, controller); err != nil {
		return nil, err
	}
	if a.lists, err = newLists(ctx, a, cfg); err != nil {
		return nil, err
	}
	if a.feeds, err = newFeeds(a); err != nil {
		return nil, err
	}
	if a.api, err = newAPI(a, cfg); err != nil {
		return nil, err
	}

	if cfg.Listen != "" {
		if a.cert, err = openCert(cfg, a.now, o.Logger); err != nil {
			return nil, err
		}
		if a.tcp, err = (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", cfg.Listen, err)
		}
		a.onClose("listener", func() error { return ignoreClosed(a.tcp.Close()) })
	}
	if a.unix, err = listenUnix(cfg.Socket); err != nil {
		return nil, err
	}
	a.onClose("socket", func() error { return ignoreClosed(a.unix.Close()) })
	return a, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Close undoes New, last to first. It must not be called before Run has returned.
func (a *App) Close() error {
	a.closing.Do(func() {
		for i := len(a.cleanups) - 1; i >= 0; i-- {
			c := a.cleanups[i]
			if err := c.do(); err != nil {
				a.closeErr = errors.Join(a.closeErr, fmt.Errorf("close %s: %w", c.name, err))
			}
		}
	})
	return a.closeErr
}

// Addr is where the HTTPS API listens, nil when it does not.
func (a *App) Addr() net.Addr {
	if a.tcp == nil {
		return nil
	}
	return a.tcp.Addr()
}

// CA is the path and the SHA-256 fingerprint of parry's own CA, empty when the operator gave a certificate.
func (a *App) CA() (path, fingerprint string) {
	if a.cert == nil {
		return "", ""
	}
	return a.cert.CA()
}

func (a *App) config() *config.Config { return a.state.Load().cfg }
func (a *App) fleet() *parry.Fleet    { return a.state.Load().fleet }

func (a *App) host(name string) ansible.Host {
	st := a.state.Load()
	if h, ok := st.hosts[name]; ok {
		return h
	}
	err := fmt.Errorf("host %s is not in the inventory %s", name, st.cfg.Ansible.Inventory)
	if st.inventory != nil {
		err = st.inventory
	}
	return ansible.Host{Name: name, Err: err}
}

func (a *App) exempt(p netip.Prefix) (parry.Exemption, bool) { return a.policy.Overlapping(p, a.now()) }

// becomes is what stands for a match on a firewall, nil where it is taken as it is.
func (a *App) becomes(fw *parry.Firewall, m parry.Match) []parry.Match {
	all, err := (*a.forwards.Load())[fw.Name].Translate(m)
	if err != nil || len(all) == 1 && all[0] == m {
		return nil
	}
	return all
}

func (a *App) exemptFile() parry.ExemptFile { return a.policy.File(a.now()) }

// Run serves until ctx ends, then drains: it stops accepting, answers who waits, gives runs in progress their time, and ends the notifier
// last. Everything that was accepted is stored, so that what is left undone is done by the next start.
func (a *App) Run(ctx context.Context) error {
	st := a.state.Load()
	a.log.Info("parry starts", "version", a.o.Version, "state_dir", st.cfg.StateDir, "database", st.cfg.Database.Driver,
		"firewalls", len(st.fleet.Firewalls), "socket", st.cfg.Socket)
	if len(st.fleet.Firewalls) == 0 {
		a.log.Warn("no firewall is configured: every block is refused")
	}
	defer a.log.Info("parry has ended")

	a.started(ctx)

	// The stages end one after the other: servers, then lanes, then the notifier. A failure of any ends all.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var bg errgroup.Group
	stage := func(parent context.Context, name string, run func(context.Context) error) (done <-chan struct{}) {
		ended := make(chan struct{})
		bg.Go(func() error {
			defer close(ended)
			if err := run(parent); err != nil && !errors.Is(err, context.Canceled) {
				err = fmt.Errorf("%s: %w", name, err)
				cancel(err)
				return err
			}
			return nil
		})
		return ended
	}
	lanesCtx, stopLanes := context.WithCancel(context.WithoutCancel(ctx))
	restCtx, stopRest := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLanes()
	defer stopRest()

	stage(restCtx, "notifier", a.notifier.Run)
	stage(restCtx, "token use", a.auth.Run)
	stage(restCtx, "feeds", a.feeds.Run)
	stage(restCtx, "active lists", a.lists.Run)
	stage(restCtx, "upkeep", a.upkeep)
	stage(restCtx, "refusals", a.api.Run)
	stage(lanesCtx, "warm ssh", a.keepWarm)
	lanes := stage(lanesCtx, "reconciler", a.reconciler.Run)
	servers := a.serve(stage, ctx)

	if a.tcp != nil {
		a.log.Info("serving", "listen", a.tcp.Addr().String(), "certificate_until", a.cert.Expires())
		if path, print := a.cert.CA(); path != "" {
			a.log.Info("own CA: give this file to every client", "ca", path, "sha256", print)
		}
	}
	notifySystemd(a.log, "READY=1")
	<-ctx.Done()
	notifySystemd(a.log, "STOPPING=1")
	a.log.Info("draining", "cause", context.Cause(ctx))
	stopLanes()
	servers.shutdown(a.log)
	<-lanes
	stopRest()
	err := bg.Wait()
	a.stopped(ctx, err)
	return err
}

// servers are the HTTP servers on TCP and on the unix socket.
type servers []*http.Server

func (a *App) serve(stage func(context.Context, string, func(context.Context) error) <-chan struct{}, ctx context.Context) servers {
	var out servers
	run := func(name string, ln net.Listener, tlsConfig *tls.Config) {
		srv := &http.Server{
			Handler:           a.handler(),
			ConnContext:       auth.ConnContext,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       15 * time.Second,
			WriteTimeout:      30 * time.Second, // ?wait= sets its own
			IdleTimeout:       60 * time.Second,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(a.log.With("server", name).Handler(), slog.LevelDebug),
			TLSConfig:         tlsConfig,
		}
		srv.RegisterOnShutdown(a.api.Drain)
		out = append(out, srv)
		stage(ctx, name, func(context.Context) (err error) {
			if tlsConfig != nil {
				err = srv.ServeTLS(ln, "", "")
			} else {
				err = srv.Serve(ln)
			}
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return err
		})
	}
	if a.tcp != nil {
		run("https", a.tcp, a.cert.Config(a.config().TLS.MinVersion))
	}
	run("unix", a.unix, nil)
	return out
}

// shutdown stops accepting and waits for the requests in progress, not for longer than they may take to be read and answered.
func (s servers) shutdown(log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, srv := range s {
		wg.Go(func() {
			if err := srv.Shutdown(ctx); err != nil {
				log.Warn("requests were cut off", "err", err)
				_ = srv.Close()
			}
		})
	}
	wg.Wait()
}

// notifySystemd tells the service manager, if there is one that wants to know (sd_notify(3)).
func notifySystemd(log *slog.Logger, message string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_, err = c.Write([]byte(message))
		_ = c.Close()
	}
	if err != nil {
		log.Warn("tell the service manager", "message", message, "err", err)
	}
}
