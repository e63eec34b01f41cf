package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

// current is the word that has firewalls follow a bundle again.
const current = "current"

// bundles is what the API asks and says of playbooks, on this replica.
type bundles struct{ a *App }

// names are the bundles that firewalls use, sorted.
func (b bundles) names() []string {
	used := map[string]bool{}
	for _, fw := range b.a.fleet().Firewalls {
		used[fw.Bundle] = true
	}
	return slices.Sorted(maps.Keys(used))
}

func (b bundles) known(name string) error {
	if names := b.names(); !slices.Contains(names, name) {
		return parry.Errorf(parry.KindNotFound, "no firewall uses a bundle %q; there are %s", name, cmp.Or(strings.Join(names, ", "), "none"))
	}
	return nil
}

// List tells of every bundle that a firewall uses.
func (b bundles) List(ctx context.Context) ([]parry.BundleView, error) {
	states, err := b.a.store.BundleStates(ctx, "")
	if err != nil {
		return nil, err
	}
	uses, err := b.a.store.BundleUses(ctx)
	if err != nil {
		return nil, err
	}
	out := []parry.BundleView{}
	for _, name := range b.names() {
		v, err := b.view(ctx, name, states[name], uses)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// Get tells of one.
func (b bundles) Get(ctx context.Context, name string) (parry.BundleView, error) {
	if err := b.known(name); err != nil {
		return parry.BundleView{}, err
	}
	st, err := b.a.store.BundleState(ctx, name)
	if err != nil {
		return parry.BundleView{}, err
	}
	uses, err := b.a.store.BundleUses(ctx)
	if err != nil {
		return parry.BundleView{}, err
	}
	return b.view(ctx, name, st, uses)
}

func (b bundles) view(ctx context.Context, name string, st parry.BundleState, uses []parry.BundleUse) (parry.BundleView, error) {
	st.Name = name
	v := parry.BundleView{BundleState: st}
	stock, err := b.a.library.Stock(name)
	if err != nil {
		return v, err
	}
	v.Source = stock.Source
	if stock.Bad != nil {
		v.Bad = stock.Bad.Error()
	}
	for _, c := range stock.Copies {
		if c.Current {
			v.Current = c.BundleRef
		}
	}
	fleet := b.a.fleet()
	for i := range fleet.Firewalls {
		fw := &fleet.Firewalls[i]
		if fw.Bundle != name {
			continue
		}
		v.Firewalls = append(v.Firewalls, parry.BundleFirewall{
			Name: fw.Name, Canary: fw.Canary, Used: lastUsed(uses, fw), Choice: fleet.Choose(&st, fw, v.Current.Digest),
		})
	}
	for _, c := range stock.Copies {
		row := parry.BundleCopy{BundleRef: c.BundleRef, Taken: c.Taken, Became: c.Became, Current: c.Current, Proved: proved(uses, c.BundleRef)}
		for _, fw := range v.Firewalls {
			if fw.Used.Digest == c.Digest {
				row.UsedBy = append(row.UsedBy, fw.Name)
			}
		}
		v.Copies = append(v.Copies, row)
	}
	v.Waits, err = b.waits(ctx, &v)
	return v, err
}

// lastUsed is what a firewall was converged with last.
func lastUsed(uses []parry.BundleUse, fw *parry.Firewall) (ref parry.BundleRef) {
	var last parry.RunID
	for _, u := range uses {
		if u.Firewall == fw.Name && u.Bundle.Name == fw.Bundle && u.Applied > last {
			ref, last = u.Bundle, u.Applied
		}
	}
	return ref
}

func proved(uses []parry.BundleUse, ref parry.BundleRef) bool {
	return slices.ContainsFunc(uses, func(u parry.BundleUse) bool {
		return u.Proved && u.Bundle.Name == ref.Name && u.Bundle.Digest == ref.Digest
	})
}

// waits says why firewalls of a bundle with a canary do not follow the current copy.
func (b bundles) waits(ctx context.Context, v *parry.BundleView) (out []string, err error) {
	fleet, st := b.a.fleet(), &v.BundleState
	if !fleet.HasCanary(v.Name) || st.Release.Digest == "" || v.Current.Digest == "" || v.Current.Digest == st.Release.Digest {
		return nil, nil
	}
	t := st.Trial
	if t.Digest != v.Current.Digest {
		t = parry.Trial{}
	}
	if t.Refused {
		return []string{fmt.Sprintf("canary %s failed with it (%s): %s", t.Firewall, t.Run, t.Why)}, nil
	}
	canaries, _ := fleet.Canaries(st)
	if len(canaries) == 0 {
		return []string{"every canary is pinned, so that nobody tries it"}, nil
	}
	for _, name := range canaries {
		if slices.Contains(t.Passed, name) {
			continue
		}
		fw, err := b.a.store.FirewallState(ctx, name)
		switch {
		case parry.KindOf(err) == parry.KindNotFound:
			out = append(out, "canary "+name+" is retired")
		case err != nil:
			return nil, err
		case fw.Brake().Held():
			out = append(out, "canary "+name+" is "+fw.Brake().String())
		case fw.Incident.Open():
			out = append(out, fmt.Sprintf("canary %s is failing: %s", name, fw.Incident.Failure))
		default:
			out = append(out, "canary "+name+" is to prove it")
		}
	}
	return out, nil
}

// waiting is a line of /readyz: new versions that their canaries keep from the other firewalls.
func (b bundles) waiting(ctx context.Context) error {
	var errs []error
	for _, name := range b.names() {
		if !b.a.fleet().HasCanary(name) {
			continue
		}
		st, err := b.a.store.BundleState(ctx, name)
		if err != nil {
			return nil // the database has a line of its own
		}
		c, err := b.a.library.Get(name, b.a.state.Load().digests[name])
		if err != nil {
			continue // the bundles have, too
		}
		why, _ := b.waits(ctx, &parry.BundleView{BundleState: st, Current: c.BundleRef})
		for _, w := range why {
			errs = append(errs, fmt.Errorf("%s %s (%.12s) is not for all yet: %s", name, c.Version, c.Digest, w))
		}
	}
	return errors.Join(errs...)
}

// Firewalls tells what each firewall has, and whether it is pinned.
func (b bundles) Firewalls(ctx context.Context) (map[string]parry.BundleFirewall, error) {
	views, err := b.List(ctx)
	out := map[string]parry.BundleFirewall{}
	for _, v := range views {
		for _, fw := range v.Firewalls {
			out[fw.Name] = fw
		}
	}
	return out, err
}

// Diff compares two copies, or a copy with the source when to is empty; an empty from is the current copy.
func (b bundles) Diff(ctx context.Context, name, from, to string) (text string, whole bool, err error) {
	if err := b.known(name); err != nil {
		return "", false, err
	}
	digests := [2]string{from, to}
	for i, d := range digests {
		switch {
		case d == "" && i == 1:
		case d == "" || d == current:
			v, err := b.Get(ctx, name)
			if err != nil {
				return "", false, err
			}
			if digests[i] = v.Current.Digest; v.Current.Digest == "" {
				return "", false, parry.Errorf(parry.KindConflict, "bundle %s has no copy on this host: %s", name, v.Bad)
			}
		default:
			c, err := b.a.library.Find(name, d)
			if err != nil {
				return "", false, err
			}
			digests[i] = c.Digest
		}
	}
	return b.a.library.Diff(name, digests[0], digests[1])
}

// Check takes the source over now and says what is wrong with it; with a firewall, it also has the current copy run there in check mode.
func (b bundles) Check(ctx context.Context, name, firewall, by string) (out parry.BundleChecked, err error) {
	if err := b.known(name); err != nil {
		return out, err
	}
	fleet := b.a.fleet()
	if firewall != "" {
		if _, err := b.firewall(name, firewall); err != nil {
			return out, err
		}
	}
	c, err := b.a.library.Refresh(ctx, name)
	if ctx.Err() != nil {
		return out, &parry.Error{Kind: parry.KindUnavailable, Detail: "the check was cut off", Err: ctx.Err()}
	}
	out.Bundle = c.BundleRef
	if err != nil {
		out.Problems = append(out.Problems, err.Error())
	}
	for i := range fleet.Firewalls {
		if fw := &fleet.Firewalls[i]; c.Dir != "" && fw.Bundle == name {
			if err := c.Manifest.CheckSettings(fw.Settings); err != nil {
				out.Problems = append(out.Problems, "firewall "+fw.Name+": "+err.Error())
			}
		}
	}
	b.a.resurvey(context.WithoutCancel(ctx))
	if firewall == "" || len(out.Problems) > 0 {
		return out, nil
	}
	k := parry.Check{RunID: parry.NewRunID(b.a.now()), Firewall: firewall, Bundle: name, Digest: c.Digest, By: by, At: b.a.now()}
	if err := b.a.store.AskCheck(ctx, k); err != nil {
		return out, err
	}
	out.Run = k.RunID
	return out, nil
}

func (b bundles) firewall(name, firewall string) (*parry.Firewall, error) {
	fw, ok := b.a.fleet().Firewall(firewall)
	if !ok || fw.Bundle != name {
		var have []string
		for _, f := range b.a.fleet().Firewalls {
			if f.Bundle == name {
				have = append(have, f.Name)
			}
		}
		return nil, parry.Invalid("/firewall", "%q is no firewall of bundle %s; there are %s", firewall, name, strings.Join(have, ", "))
	}
	return fw, nil
}

// Use has a firewall, or every one of the bundle, stay on a copy whose digest begins so; "current" takes the word back.
func (b bundles) Use(ctx context.Context, name, firewall, digest, by string) (out parry.BundleChosen, err error) {
	if err := b.known(name); err != nil {
		return out, err
	}
	pin := parry.Pin{Bundle: name, Firewall: firewall, By: by, At: b.a.now()}
	var chosen bundle.Bundle
	if digest != current {
		if chosen, err = b.a.library.Find(name, digest); err != nil {
			return out, err
		}
		pin.Digest, pin.Version, out.Bundle = chosen.Digest, chosen.Version, chosen.BundleRef
	}
	st, err := b.a.store.BundleState(ctx, name)
	if err != nil {
		return out, err
	}
	uses, err := b.a.store.BundleUses(ctx)
	if err != nil {
		return out, err
	}
	out.Proved = proved(uses, out.Bundle)
	fleet := b.a.fleet()
	for i := range fleet.Firewalls {
		fw := &fleet.Firewalls[i]
		own := slices.ContainsFunc(st.Pins, func(p parry.Pin) bool { return p.Firewall == fw.Name })
		switch {
		case fw.Bundle != name, firewall != "" && fw.Name != firewall:
			continue
		case fw.Pin != "":
			out.Stay = append(out.Stay, fmt.Sprintf("%s: the configuration pins it to %.12s, and that wins: take pin out of firewalls: and reload", fw.Name, fw.Pin))
			continue
		case firewall == "" && own:
			p, _ := st.Pin(fw.Name)
			out.Stay = append(out.Stay, fmt.Sprintf("%s: %s pinned it to %.12s: parry bundles use current --firewall %s", fw.Name, p.By, p.Digest, fw.Name))
			continue
		}
		if chosen.Dir != "" {
			if err := chosen.Manifest.CheckSettings(fw.Settings); err != nil {
				return out, parry.Errorf(parry.KindConflict, "%s %s does not take the settings of firewall %s: %s", name, chosen.Version, fw.Name, err)
			}
		}
		out.Affects = append(out.Affects, fw.Name)
	}
	if firewall != "" {
		if _, err := b.firewall(name, firewall); err != nil {
			return out, err
		}
		if len(out.Affects) == 0 {
			return out, parry.Errorf(parry.KindConflict, "%s", out.Stay[0])
		}
	}
	if err := b.a.store.SetPin(ctx, pin, out.Affects); err != nil {
		return out, err
	}
	b.a.log.Info("bundle chosen", "bundle", name, "digest", cmp.Or(pin.Digest, current), "firewall", cmp.Or(firewall, "all"), "by", by)
	b.a.resurvey(context.WithoutCancel(ctx))
	return out, nil
}

// Rollback has a firewall, or every one of the bundle, go back to the version before the one that it has: the newest older copy that a firewall
// has proved, or, when none is known to be proved, the newest older one.
func (b bundles) Rollback(ctx context.Context, name, firewall, by string) (out parry.BundleChosen, err error) {
	v, err := b.Get(ctx, name)
	if err != nil {
		return out, err
	}
	from := v.Current.Digest
	if firewall == "" {
		if v.Release.Digest != "" {
			from = v.Release.Digest
		}
		if i := slices.IndexFunc(v.Pins, func(p parry.Pin) bool { return p.Firewall == "" }); i >= 0 {
			from = v.Pins[i].Digest
		}
	} else {
		if _, err := b.firewall(name, firewall); err != nil {
			return out, err
		}
		for _, fw := range v.Firewalls {
			if fw.Name == firewall {
				from = fw.Choice.Digest
			}
		}
	}
	older := v.Copies
	if i := slices.IndexFunc(older, func(c parry.BundleCopy) bool { return c.Digest == from }); i >= 0 {
		older = older[i+1:]
	}
	if len(older) == 0 {
		return out, parry.Errorf(parry.KindConflict, "this host keeps no copy of bundle %s that is older than %.12s: put the version that you want into %s", name, from, v.Source)
	}
	to := older[0]
	if i := slices.IndexFunc(older, func(c parry.BundleCopy) bool { return c.Proved }); i >= 0 {
		to = older[i]
	}
	return b.Use(ctx, name, firewall, to.Digest, by)
}

// tell notes in the database what is wrong with the bundles' newest edits, and is over; that is told once, whatever number of replicas find it.
func (b bundles) tell(ctx context.Context) {
	host, _ := os.Hostname()
	states, err := b.a.store.BundleStates(ctx, "")
	if err != nil {
		return // the next survey tells
	}
	for _, name := range b.names() {
		c, bad := b.a.library.Refresh(ctx, name)
		if ctx.Err() != nil {
			return
		}
		p := parry.BundleProblem{Replica: host + ":" + b.a.config().StateDir, Seen: b.a.now()}
		if bad != nil {
			if c.Dir == "" {
				continue // no last good copy goes on: the firewalls' own failures tell
			}
			p.Text = bad.Error()
		}
		err := b.a.store.SetBundleProblem(ctx, name, p, func(over bool, p parry.BundleProblem) []parry.Notification {
			r := parry.Report{Since: p.Since, Failure: parry.FailBundle, Message: p.Text, Bundle: c.BundleRef, Hint: hintBadEdit}
			if over {
				r.Until = b.a.now()
			}
			return b.notification(over, p.Told, r)
		})
		if st := states[name]; err == nil && st.Trial.Refused && c.Digest != "" && c.Digest == st.Release.Digest {
			r := parry.Report{Since: st.Trial.At, Until: b.a.now(), Bundle: c.BundleRef}
			err = b.a.store.EndTrial(ctx, name, st.Trial.Digest, b.notification(true, st.Trial.Told, r))
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			b.a.log.Error("note what is wrong with a bundle", "bundle", name, "err", err)
		}
	}
}

const hintBadEdit = "Correct the file that the message names; parry takes an edit over by itself, `parry bundles check` at once. `parry bundles diff` shows what was changed " +
	"since the copy that goes on."

// notification tells of a bundle's trouble, or that the one that was told is over.
func (b bundles) notification(over bool, told parry.NotificationID, r parry.Report) []parry.Notification {
	kind := parry.NotifyBundleRefused
	if over {
		kind = parry.NotifyBundleRecovered
	}
	to := subscriptions(b.a.config()).To(kind, parry.SeverityOf(kind))
	if len(to) == 0 || over && told == "" {
		return nil
	}
	id := parry.NewNotificationID(b.a.now())
	return []parry.Notification{{
		ID: id, Kind: kind, Severity: parry.SeverityOf(kind), Incident: cmp.Or(told, id), CreatedAt: b.a.now(), Channels: to, Report: r,
	}}
}
