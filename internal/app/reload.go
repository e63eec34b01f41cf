package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/nat"
	"github.com/parry/parry/internal/parry"
)

const (
	surveyEvery = 30 * time.Second // bundles are looked at, and a lost inventory is asked for again
	findEvery   = 5 * time.Minute
	headEvery   = 10 * time.Minute // the head of the audit goes into the log, if it has moved
	pruneEvery  = time.Hour
	warmEvery   = time.Minute
	othersEvery = 2 * time.Second
)

// survey reads what lies outside the configuration: the inventory and the bundles. Nothing that is wrong there is fatal: firewalls of
// which nothing is wrong go on, and the others' lanes, /readyz and the log tell.
func (a *App) survey(ctx context.Context, cfg *config.Config) *state {
	st := &state{cfg: cfg}
	if len(cfg.Firewalls) > 0 {
		if st.hosts, st.inventory = a.runner.LoadInventory(ctx); st.inventory != nil {
			a.log.Error("read the inventory", "err", st.inventory)
		}
	}
	st.fleet = cfg.Fleet(func(name string) string {
		if h, ok := st.hosts[name]; ok && h.Addr.IsValid() {
			return netip.AddrPortFrom(h.Addr, uint16(h.Port)).String()
		}
		return ""
	})
	a.readBundles(ctx, st)
	return st
}

// readBundles refreshes every bundle that a firewall uses and holds the firewall's settings against the copy that it is to have.
func (a *App) readBundles(ctx context.Context, st *state) {
	st.manifests, st.bundles, st.digests = map[string]bundle.Manifest{}, map[string]error{}, map[string]string{}
	words, err := a.store.BundleStates(ctx, "")
	if err != nil && ctx.Err() == nil {
		a.log.Error("read which copies of bundles firewalls stay on", "err", err)
	}
	for i := range st.fleet.Firewalls {
		fw := &st.fleet.Firewalls[i]
		b, err := a.library.Refresh(ctx, fw.Bundle)
		st.digests[fw.Bundle] = b.Digest
		word := words[fw.Bundle]
		switch c := st.fleet.Choose(&word, fw, b.Digest); {
		case c.PinnedBy != "":
			b, err = a.library.Get(fw.Bundle, c.Digest)
		case c.Digest != b.Digest:
			var missing error
			b, missing = a.library.Get(fw.Bundle, c.Digest)
			err = errors.Join(err, missing)
		}
		if b.Dir != "" {
			st.manifests[fw.Name] = b.Manifest
			err = errors.Join(err, b.Manifest.CheckSettings(fw.Settings))
		}
		if err != nil {
			st.bundles[fw.Name] = err
		}
	}
}

// settle brings the never-block list and the database up to a new state, and makes it the one that counts. What takes its time comes first:
// the database wakes the lanes, and they are to find there and here the same firewalls.
func (a *App) settle(ctx context.Context, st *state) error {
	if err := a.replaceExemptions(ctx, parry.ExemptConfig, st.cfg.Exempt()); err != nil {
		return err
	}
	if err := a.refreshExemptions(ctx, st); err != nil {
		return err
	}
	if st.inventory == nil { // else the firewalls' digests are not known, and all would become dirty
		if err := a.store.SyncFirewalls(ctx, st.fleet.Firewalls); err != nil {
			return fmt.Errorf("list the firewalls in the database: %w", err)
		}
	}
	a.state.Store(st)
	return nil
}

// refreshExemptions finds the found ones anew.
func (a *App) refreshExemptions(ctx context.Context, st *state) error {
	tokens, err := a.store.Tokens(ctx)
	if err != nil {
		return fmt.Errorf("read the tokens: %w", err)
	}
	now, valid := a.now(), map[parry.TokenID]bool{}
	for _, t := range tokens {
		valid[t.ID] = t.RevokedAt.IsZero() && (t.ExpiresAt.IsZero() || now.Before(t.ExpiresAt))
	}
	callers, err := a.callers.list(func(id parry.TokenID) bool { return valid[id] })
	if err != nil {
		a.log.Warn("the callers' addresses are not kept for the next start", "err", err)
	}
	facts, err := a.store.Facts(ctx)
	if err != nil {
		return err
	}
	forwards := map[string]*nat.Table{}
	for i := range st.fleet.Firewalls {
		fw := &st.fleet.Firewalls[i]
		forwards[fw.Name] = nat.Of(fw.NAT, facts[fw.Name].Forwards, st.manifests[fw.Name].AfterNAT)
	}
	a.forwards.Store(&forwards)
	told, err := a.claims.judge(ctx, a.store, a.policy, facts, now, a.log)
	if err != nil {
		return err
	}
	hosts := st.hosts
	if st.inventory != nil {
		if old := a.state.Load(); old != nil {
			hosts = old.hosts
		}
	}
	return a.replaceExemptions(ctx, parry.ExemptFound, a.found.find(ctx, st.cfg, hosts, told, callers))
}

// readExemptions reads those of the API: at the start, and where other replicas may have changed them; what this one changes is in the
// never-block list already. One that was made here a moment ago may not be in the database yet.
func (a *App) readExemptions(ctx context.Context) error {
	api, err := a.store.Exemptions(ctx)
	if err != nil {
		return fmt.Errorf("read the exemptions: %w", err)
	}
	for _, x := range a.policy.All() {
		young := x.Source == parry.ExemptAPI && a.now().Sub(x.CreatedAt) < time.Minute
		if young && !slices.ContainsFunc(api, func(y parry.Exemption) bool { return y.ID == x.ID }) {
			api = append(api, x)
		}
	}
	return a.replaceExemptions(ctx, parry.ExemptAPI, api)
}

// replaceExemptions puts all of a source into the never-block list. Those that are new there end the live blocks that they overlap.
func (a *App) replaceExemptions(ctx context.Context, source parry.ExemptionSource, all []parry.Exemption) error {
	known := map[parry.ExemptionID]bool{}
	for _, x := range a.policy.All() {
		known[x.ID] = true
	}
	fresh := slices.DeleteFunc(slices.Clone(all), func(x parry.Exemption) bool { return known[x.ID] })
	a.policy.Replace(source, all)
	if len(fresh) == 0 {
		return nil
	}
	for _, x := range fresh {
		a.log.Debug("an exemption is new", "prefix", x.Prefix.String(), "source", string(source), "why", x.Reason)
	}
	ended, err := a.store.EndExempted(ctx, fresh)
	if err != nil {
		return fmt.Errorf("end exempted blocks: %w", err)
	}
	if len(ended) > 0 {
		a.log.Warn("live blocks were ended: new exemptions overlap them", "source", string(source), "blocks", len(ended), "first", string(ended[0]))
	}
	return nil
}

// Reload reads the configuration, the inventory and the bundles again. A configuration that cannot be used changes nothing. Either is audited.
func (a *App) Reload(ctx context.Context) error {
	err := a.reload(ctx)
	e := parry.AuditEvent{Action: parry.ActReload, Detail: map[string]string{"config_sha256": a.config().Digest}}
	if err != nil {
		e.Outcome, e.Detail = "refused", map[string]string{"config_sha256": a.config().Digest, "why": audit.Plain(err.Error(), 1024)}
	}
	a.note(ctx, e)
	return err
}

func (a *App) reload(ctx context.Context) error {
	if a.o.Load == nil {
		return errors.New("reload: there is no configuration file")
	}
	a.reloading.Lock()
	defer a.reloading.Unlock()
	notifySystemd(a.log, "RELOADING=1")
	defer notifySystemd(a.log, "READY=1")
	cfg, err := a.o.Load()
	if err != nil {
		return fmt.Errorf("the old configuration stays: %w", err)
	}
	old := a.state.Load()
	if keys := fixed(old.cfg, cfg); len(keys) > 0 {
		a.log.Warn("these settings need a restart; their old values stay", "settings", strings.Join(keys, " "))
	}
	st := a.survey(ctx, cfg)
	if st.inventory != nil {
		return fmt.Errorf("the old configuration stays: %w", st.inventory)
	}
	var wrong []error
	for _, name := range slices.Sorted(maps.Keys(st.bundles)) {
		wrong = append(wrong, fmt.Errorf("firewall %s: %w", name, st.bundles[name]))
	}
	if len(wrong) > 0 {
		return fmt.Errorf("the old configuration stays: %w", errors.Join(wrong...))
	}
	restore := a.restorer(ctx, old.cfg)
	if err := a.policy.SetLimits(limits(cfg)); err != nil {
		return fmt.Errorf("the old configuration stays: blocks: %w", err)
	}
	keep(old.cfg, cfg)
	if err = a.lists.Configure(ctx, cfg.ActiveLists(), cfg.Blocks.List); err != nil {
		err = fmt.Errorf("lists: %w", err)
	} else {
		err = a.settle(ctx, st)
	}
	if err != nil {
		if undone := restore(); undone != nil {
			return fmt.Errorf("the old configuration stays, but for the lists, which are the new ones until the next reload (%w): %w", undone, err)
		}
		return fmt.Errorf("the old configuration stays: %w", err)
	}
	if a.o.Level != nil {
		a.o.Level.Set(Level(cfg.Log.Level))
	}
	a.reconciler.Reload()
	a.pokeWarm()
	a.log.Info("configuration reloaded", "firewalls", len(st.fleet.Firewalls))
	return nil
}

// restorer remembers what a reload changes before it is known to go well, and returns what puts that back. Only the lists can fail at it, with
// the database. Blocks that a new exemption has ended meanwhile stay ended.
func (a *App) restorer(ctx context.Context, cfg *config.Config) func() error {
	exempt, forwards := a.policy.All(), a.forwards.Load()
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second) // the reload's may be what has ended
		defer cancel()
		a.forwards.Store(forwards)
		for _, source := range []parry.ExemptionSource{parry.ExemptConfig, parry.ExemptFound} {
			a.policy.Replace(source, slices.DeleteFunc(slices.Clone(exempt), func(x parry.Exemption) bool { return x.Source != source }))
		}
		return errors.Join(a.policy.SetLimits(limits(cfg)), a.lists.Configure(ctx, cfg.ActiveLists(), cfg.Blocks.List))
	}
}

// Level is a log level by its name in the configuration.
func Level(name string) slog.Level {
	var l slog.Level
	_ = l.UnmarshalText([]byte(name)) // validated; else info
	return l
}

// unchangeable are the settings that a running parry was built from.
func unchangeable(c *config.Config) map[string]any {
	return map[string]any{
		"listen": &c.Listen, "tls": &c.TLS, "socket": &c.Socket, "state_dir": &c.StateDir, "database": &c.Database, "bundles": &c.Bundles,
		"ansible": &c.Ansible, "limits.queue": &c.Limits.Queue, "reconcile": &c.Reconcile, "approvals": &c.Approvals,
		"blocks.expiry_slack": &c.Blocks.ExpirySlack, "mail": &c.Mail, "channels": &c.Channels, "syslog": &c.Syslog,
		"log.format": &c.Log.Format, "trusted_proxies": &c.TrustedProxies,
	}
}

// fixed lists the settings that changed and cannot change at run time.
func fixed(old, cfg *config.Config) []string {
	was, is := unchangeable(old), unchangeable(cfg)
	var out []string
	for _, k := range slices.Sorted(maps.Keys(was)) {
		if !reflect.DeepEqual(was[k], is[k]) {
			out = append(out, k)
		}
	}
	return out
}

// keep puts the old values of such settings into the new configuration, so that it says what is.
func keep(old, cfg *config.Config) {
	was, is := unchangeable(old), unchangeable(cfg)
	for k, v := range was {
		reflect.ValueOf(is[k]).Elem().Set(reflect.ValueOf(v).Elem())
	}
}

// upkeep does what has to be done now and then.
func (a *App) upkeep(ctx context.Context) error {
	survey, find, prune, head := time.NewTicker(surveyEvery), time.NewTicker(findEvery), time.NewTicker(pruneEvery), time.NewTicker(headEvery)
	defer head.Stop()
	defer survey.Stop()
	defer find.Stop()
	defer prune.Stop()
	soon := time.NewTimer(time.Minute) // not while everything starts
	defer soon.Stop()
	applied, heard := a.store.Applied(ctx), map[string]parry.Revision{}
	var others <-chan time.Time // other replicas' exemptions
	if a.config().Database.Driver == "postgres" {
		t := time.NewTicker(othersEvery)
		defer t.Stop()
		others = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-survey.C:
			a.resurvey(ctx)
		case <-a.callers.fresh:
			a.refind(ctx)
		case <-others:
			if err := a.readExemptions(ctx); err != nil && ctx.Err() == nil {
				a.log.Error("refresh the exemptions", "err", err)
			}
		case <-find.C:
			a.refind(ctx)
		case <-applied:
			heard = a.hear(ctx, heard)
		case <-head.C:
			a.anchor(ctx)
		case <-soon.C:
			a.prune(ctx)
		case <-prune.C:
			a.prune(ctx)
		}
	}
}

func (a *App) refind(ctx context.Context) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	if err := a.refreshExemptions(ctx, a.state.Load()); err != nil && ctx.Err() == nil {
		a.log.Error("refresh the exemptions", "err", err)
	}
}

// hear takes up what firewalls say of themselves, when it is not what was heard last.
func (a *App) hear(ctx context.Context, last map[string]parry.Revision) map[string]parry.Revision {
	all, err := a.store.Firewalls(ctx)
	if err != nil {
		return last // the runs' own writes tell of a database that is gone
	}
	now := make(map[string]parry.Revision, len(all))
	for i := range all {
		now[all[i].Name] = all[i].FactsRev
	}
	if !maps.Equal(now, last) {
		a.refind(ctx)
	}
	return now
}

// resurvey takes up edited bundles, and an inventory that could not be read before.
func (a *App) resurvey(ctx context.Context) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	old := a.state.Load()
	if old.inventory != nil {
		st := a.survey(ctx, old.cfg)
		if st.inventory != nil || ctx.Err() != nil {
			return
		}
		if err := a.settle(ctx, st); err != nil {
			a.log.Error("take up the inventory", "err", err)
			return
		}
		a.reconciler.Reload()
		a.pokeWarm()
		a.log.Info("the inventory can be read again")
		return
	}
	st := *old
	a.readBundles(ctx, &st)
	for name, err := range st.bundles {
		if was := old.bundles[name]; was == nil || was.Error() != err.Error() {
			a.log.Error("a firewall's bundle cannot be used", "firewall", name, "err", err)
		}
	}
	a.state.Store(&st)
	for name, digest := range st.digests {
		if digest != old.digests[name] {
			a.reconciler.Try(name)
		}
	}
	bundles{a}.tell(ctx)
}

func (a *App) prune(ctx context.Context) {
	st := a.state.Load()
	r := st.cfg.Retention
	p, err := a.store.Prune(ctx, parry.Retention{
		EndedBlocks: r.EndedBlocks.D(), Runs: r.Runs.D(), RunCount: r.RunCount, Idempotency: r.Idempotency.D(), Outbox: r.Outbox.D(),
		Offences: st.cfg.Escalation.Window.D(), Audit: r.Audit.D(),
	})
	if err != nil {
		if ctx.Err() == nil {
			a.log.Error("prune the database", "err", err)
		}
		return
	}
	if p != (parry.Pruned{}) {
		a.log.Info("pruned", "blocks", p.Blocks, "runs", p.Runs, "keys", p.Keys, "notifications", p.Notifications, "offenders", p.Offenders,
			"list_entries", p.ListEntries, "approvals", p.Approvals, "audit_rows", p.AuditRows)
	}
	if err := a.runner.Prune(r.Runs.D(), r.RunCount); err != nil {
		a.log.Error("prune the run directories", "err", err)
	}
	if err := a.pruneCopies(ctx, st.fleet); err != nil && ctx.Err() == nil {
		a.log.Error("prune the bundles' copies", "err", err)
	}
}

// pruneCopies removes old copies of bundles: none that a firewall is pinned to, that a trial or release is about, or that a kept run names.
func (a *App) pruneCopies(ctx context.Context, fleet *parry.Fleet) error {
	keep := map[string][]string{}
	for _, fw := range fleet.Firewalls {
		keep[fw.Bundle] = append(keep[fw.Bundle], fw.Pin)
	}
	uses, err := a.store.BundleUses(ctx)
	if err != nil {
		return err
	}
	for _, u := range uses {
		keep[u.Bundle.Name] = append(keep[u.Bundle.Name], u.Bundle.Digest)
	}
	states, err := a.store.BundleStates(ctx, "")
	if err != nil {
		return err
	}
	for name, s := range states {
		keep[name] = append(keep[name], s.Release.Digest, s.Trial.Digest)
		for _, p := range s.Pins {
			keep[name] = append(keep[name], p.Digest)
		}
	}
	var errs []error
	for name, digests := range keep {
		errs = append(errs, a.library.Prune(name, digests...))
	}
	return errors.Join(errs...)
}

func (a *App) pokeWarm() {
	select {
	case a.warm <- struct{}{}:
	default:
	}
}

// keepWarm keeps an ssh connection to every firewall. It saves runs a third of their time and is needed for nothing.
func (a *App) keepWarm(ctx context.Context) error {
	tick := time.NewTicker(warmEvery)
	defer tick.Stop()
	warm := map[string]bool{}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		st := a.state.Load()
		listed := map[string]bool{}
		for _, fw := range st.fleet.Firewalls {
			h := st.hosts[fw.Name]
			if h.Err != nil || h.Name == "" {
				continue
			}
			listed[fw.Name] = true
			warm[fw.Name] = true
			wg.Go(func() { a.warmOne(ctx, h) })
		}
		for name := range warm {
			if !listed[name] {
				delete(warm, name)
				a.runner.Cool(name)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-a.warm:
		}
	}
}

// warmOne returns when the connection stands or the first attempt failed; both are the runs' to tell.
func (a *App) warmOne(ctx context.Context, h ansible.Host) {
	ctx, cancel := context.WithTimeout(ctx, warmEvery)
	defer cancel()
	if err := a.runner.Warm(ctx, h); err != nil && ctx.Err() == nil && !errors.Is(err, os.ErrClosed) {
		a.log.Debug("no warm ssh connection", "firewall", h.Name, "err", err)
	}
}
