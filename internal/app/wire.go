package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/feeds"
	"github.com/parry/parry/internal/hooks"
	"github.com/parry/parry/internal/httpapi"
	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/notify/mail"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/reconcile"
	"github.com/parry/parry/internal/syslog"
)

func newReconciler(a *App, cfg *config.Config, controller string) (*reconcile.Reconciler, error) {
	r := cfg.Reconcile
	return reconcile.New(reconcile.Options{
		Store: a.store, Runner: a.runner, Library: a.library, Fleet: a.fleet, Host: a.host, Exempt: a.exempt, ExemptFile: a.exemptFile, Controller: controller,
		Channels: subscriptions(cfg), StateDir: cfg.StateDir, Playbook: a.runner.Playbook(),
		Slack: cfg.Blocks.ExpirySlack.D(), RunDeadline: cfg.Ansible.Deadline.D(), Drain: min(drain, cfg.Ansible.Deadline.D()),
		VerifyEvery: r.VerifyEvery.D(), Backoff: reconcile.Backoff{Min: r.BackoffMin.D(), Max: r.BackoffMax.D(), SlowMin: r.AuthBackoff.D()},
		Bounds: reconcile.Bounds{
			Remove: cfg.Approvals.Remove, RemovePercent: cfg.Approvals.RemovePercent, Add: cfg.Approvals.Add, Expire: cfg.Approvals.Expire.D(),
		},
		Now: a.o.Now, Logger: a.log, Registerer: a.registry,
	})
}

func newMailer(cfg *config.Config, now func() time.Time, log *slog.Logger) (*mail.Mailer, error) {
	m := cfg.Mail
	return mail.New(mail.Options{
		Server: m.Server, Security: mail.Security(m.Security), Username: m.Username, Password: m.Password.Reveal(), From: m.From, To: m.To,
		Helo: m.Helo, Timeout: m.Timeout.D(), Now: now, Logger: log,
	})
}

func newAPI(a *App, cfg *config.Config) (*httpapi.Server, error) {
	proxies := make([]string, len(cfg.TrustedProxies))
	for i, p := range cfg.TrustedProxies {
		proxies[i] = p.String()
	}
	return httpapi.New(httpapi.Options{
		Store: a.store, Auth: a.auth, Policy: a.policy, Lists: a.lists, Fleet: a.fleet, Feeds: a.feeds, Registry: a.registry,
		Settings: func() httpapi.Settings {
			c := a.config()
			return httpapi.Settings{
				MaxBlocks: c.Blocks.MaxBlocks, WidenBeyondMax: c.Blocks.BeyondMaxRules == "widen", Waiters: c.Limits.Waiters,
				Suspend:      httpapi.Suspend{After: c.Limits.Suspend.After, Within: c.Limits.Suspend.Within.D(), For: c.Limits.Suspend.For.D()},
				HonourDelete: c.Hooks.HonourDelete, Simulates: c.Simulate.Rule, Grace: c.Escalation.Grace.D(),
			}
		},
		Express: func(fw *parry.Firewall, m parry.Match) error {
			if manifest, ok := a.state.Load().manifests[fw.Name]; ok {
				return manifest.Expresses(m)
			}
			return nil // not known yet: the firewall rejects what it cannot do
		},
		Becomes:  a.becomes,
		Agent:    func(name string) (parry.Selector, bool) { return a.config().Hooks.AgentSelector(name) },
		Wazuh:    func() hooks.Settings { return a.config().Hooks.Wazuh.Settings() },
		Reading:  parry.ReadingGood(cfg.Reconcile.VerifyEvery.D()),
		Phase:    func(name string) string { return string(a.reconciler.LaneState(name)) },
		Channels: a.notifier,
		RunFiles: runFiles{cfg.StateDir, a},
		Bundles:  bundles{a},
		Checks:   a.checks(),
		Version:  func() (string, string, string) { return a.o.Version, a.o.Commit, a.o.Built },
		Proxies:  proxies, Now: a.o.Now, Logger: a.log,
	})
}

// newLists makes the active lists, with those of the configuration and all that is on them.
func newLists(ctx context.Context, a *App, cfg *config.Config) (*lists.Lists, error) {
	o := lists.Options{Store: a.store, Now: a.o.Now, Logger: a.log, Registerer: a.registry}
	if s := cfg.Syslog; s.Server != "" || s.Network == string(syslog.Unix) {
		client, err := syslog.New(s.Options(a.o.Now))
		if err != nil {
			return nil, err
		}
		a.onClose("syslog", client.Close)
		o.Send = func(ctx context.Context, h lists.Hit) error {
			return client.Send(ctx, syslog.Message{Time: h.At, Severity: syslog.Notice, MsgID: lists.MsgID, Text: h.Text()})
		}
	}
	l, err := lists.New(o)
	if err != nil {
		return nil, err
	}
	if err := l.Configure(ctx, cfg.ActiveLists(), cfg.Blocks.List); err != nil {
		return nil, fmt.Errorf("set up the active lists: %w", err)
	}
	return l, nil
}

func newFeeds(a *App) (*feeds.Feeds, error) {
	return feeds.New(feeds.Options{
		Store: a.store,
		Lists: func() []feeds.List {
			var out []feeds.List
			for _, l := range a.lists.All() {
				if s, err := a.lists.Snapshot(l.Name); err == nil { // else it was deleted this moment
					out = append(out, feeds.List{List: s.List, Entries: s.Entries, Version: s.Version, At: s.At})
				}
			}
			return out
		},
		MaxAge:     func() time.Duration { return a.config().Feeds.MaxAge.D() },
		StaleAfter: func() time.Duration { return a.config().Feeds.StaleAfter.D() },
		Now:        a.o.Now, Logger: a.log, Registerer: a.registry,
	})
}

func (a *App) handler() http.Handler { return a.api }

// checks are parry's own lines of /readyz.
func (a *App) checks() []httpapi.Check {
	return []httpapi.Check{
		{Name: "inventory", Func: func(context.Context) error { return a.state.Load().inventory }},
		{Name: "bundles", Func: func(context.Context) error {
			var errs []error
			for name, err := range a.state.Load().bundles {
				errs = append(errs, fmt.Errorf("firewall %s: %w", name, err))
			}
			return errors.Join(errs...)
		}},
		{Name: "canaries", Advisory: true, Func: func(ctx context.Context) error {
			return bundles{a}.waiting(ctx)
		}},
		{Name: "clock", Func: func(context.Context) error { return a.reconciler.ClockHeld() }},
		{Name: "addresses", Advisory: true, Func: a.claims.check},
		{Name: "tokens", Advisory: true, Func: func(ctx context.Context) error {
			all, err := a.store.Tokens(ctx)
			if err != nil {
				return nil // the database has a line of its own
			}
			var errs []error
			for i := range all {
				if t := &all[i]; t.RevokedAt.IsZero() && t.Suspended(a.now()) {
					errs = append(errs, fmt.Errorf("token %s is suspended until %s: %s", t.Name, t.SuspendedUntil.UTC().Format(time.RFC3339), t.SuspendedWhy))
				}
			}
			return errors.Join(errs...)
		}},
		{Name: "audit", Advisory: true, Func: func(ctx context.Context) error {
			if h, err := a.store.AuditHead(ctx); err == nil && !h.Tail { // else the database has a line of its own
				return fmt.Errorf("the newest rows up to %d are missing: run parry audit verify", h.Seq)
			}
			return nil
		}},
		{Name: "channels", Advisory: true, Func: func(ctx context.Context) error {
			all, err := a.notifier.States(ctx)
			if err != nil {
				return nil // the database has a line of its own
			}
			var errs []error
			for _, c := range all {
				if late := a.now().Sub(c.Oldest); c.Waiting > 0 && late > 10*time.Minute {
					errs = append(errs, fmt.Errorf("channel %s: %d notifications wait, the oldest for %s", c.Channel, c.Waiting, late.Round(time.Minute)))
				}
			}
			return errors.Join(errs...)
		}},
		{Name: "certificate", Advisory: true, Func: func(context.Context) error {
			if a.cert == nil {
				return nil
			}
			if left := a.cert.Expires().Sub(a.now()); left < 14*24*time.Hour {
				return fmt.Errorf("the certificate of the API ends on %s", a.cert.Expires().UTC().Format(time.DateOnly))
			}
			return nil
		}},
	}
}

// newMetrics are the build and what the database counts. The others' metrics are their own.
func newMetrics(a *App) prometheus.Collector {
	return &metrics{
		app: a,
		build: prometheus.NewDesc("parry_build_info", "The running build.", nil,
			prometheus.Labels{"version": a.o.Version, "commit": a.o.Commit}),
		blocks:      prometheus.NewDesc("parry_blocks", "Blocks in the database.", []string{"state"}, nil),
		overdue:     prometheus.NewDesc("parry_blocks_overdue", "Live blocks whose time is over.", nil, nil),
		undelivered: prometheus.NewDesc("parry_notifications_undelivered", "Notifications that wait to be delivered.", nil, nil),
		panic:       prometheus.NewDesc("parry_firewalls_in_panic", "Firewalls in panic, by whether they have proved that they are empty.", []string{"empty"}, nil),
		suspended:   prometheus.NewDesc("parry_tokens_suspended", "Tokens that are suspended now.", nil, nil),
		exemptions:  prometheus.NewDesc("parry_exemptions", "Entries of the never-block list.", []string{"source"}, nil),
	}
}

type metrics struct {
	app                                                               *App
	build, blocks, overdue, undelivered, panic, exemptions, suspended *prometheus.Desc
}

func (m *metrics) Describe(c chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, c) }

func (m *metrics) Collect(c chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(m.build, 1)
	n := map[parry.ExemptionSource]int{parry.ExemptAPI: 0, parry.ExemptConfig: 0, parry.ExemptFound: 0}
	for _, x := range m.app.policy.All() {
		n[x.Source]++
	}
	for source, count := range n {
		gauge(m.exemptions, float64(count), string(source))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	counts, err := m.app.store.Counts(ctx)
	if err != nil {
		return // absent rather than wrong
	}
	states, err := m.app.store.Firewalls(ctx)
	if err != nil {
		return
	}
	in := map[bool]int{}
	for i := range states {
		if states[i].PanicRev > 0 {
			in[states[i].Emptied()]++
		}
	}
	gauge(m.panic, float64(in[true]), "true")
	gauge(m.panic, float64(in[false]), "false")
	gauge(m.blocks, float64(counts.LiveBlocks), "live")
	gauge(m.blocks, float64(counts.EndedBlocks), "ended")
	gauge(m.overdue, float64(counts.OverdueBlocks))
	gauge(m.undelivered, float64(counts.Undelivered))
	gauge(m.suspended, float64(counts.SuspendedTokens))
}
