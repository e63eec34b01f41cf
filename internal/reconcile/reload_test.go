package reconcile

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

// reloads is a world whose firewalls can move to another address, and whose library can do something before it answers.
type reloads struct {
	*world
	mu     sync.Mutex
	port   int
	lookup func()
}

func reloading(t *testing.T, names []string, slots int, f func(*reloads)) {
	r := &reloads{port: 2201}
	simulate(t, names, func(o *Options) {
		host := o.Host
		o.MaxRuns, o.Library = slots, r
		o.Host = func(name string) ansible.Host {
			h := host(name)
			r.mu.Lock()
			defer r.mu.Unlock()
			h.Port = r.port
			return h
		}
	}, func(w *world) {
		r.mu.Lock()
		r.world = w
		r.mu.Unlock()
		f(r)
	})
}

func (r *reloads) Refresh(ctx context.Context, name string) (bundle.Bundle, error) {
	r.mu.Lock()
	w, lookup := r.world, r.lookup
	r.lookup = nil
	r.mu.Unlock()
	if lookup != nil {
		lookup()
	}
	if w == nil {
		return bundle.Bundle{}, parry.Errorf(parry.KindUnavailable, "not yet")
	}
	return w.Refresh(ctx, name)
}

func (r *reloads) Get(name, digest string) (bundle.Bundle, error) { return r.world.Get(name, digest) }

// edited is the fleet whose fw-a has come into a group.
func (r *reloads) edited() *parry.Fleet {
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	fleet := *r.fleet
	fleet.Firewalls = slices.Clone(fleet.Firewalls)
	fleet.Firewalls[0].Groups, fleet.Firewalls[0].Digest = []string{"edge"}, "fw-a-2"
	return &fleet
}

// told brings a fleet into the database; taken makes it the one that this parry goes by, with fw-a at another address.
func (r *reloads) told(fleet *parry.Fleet) { r.must(r.store.SyncFirewalls(r.ctx, fleet.Firewalls)) }

func (r *reloads) taken(fleet *parry.Fleet) {
	r.world.mu.Lock()
	r.fleet = fleet
	r.world.mu.Unlock()
	r.mu.Lock()
	r.port = 2202
	r.mu.Unlock()
	r.r.Reload()
}

// readFirst fails unless the first run at the new address was one that only reads.
func (r *reloads) readFirst() {
	r.t.Helper()
	r.firewall("fw-a").set(func(f *firewall) {
		i := slices.IndexFunc(f.runs, func(s ansible.Spec) bool { return s.Host.Port == 2202 })
		if i < 0 || f.runs[i].Kind != parry.RunVerify {
			r.t.Errorf("the first run at the new address is %d of %d: it was not read before it was written", i, len(f.runs))
		}
	})
}

func TestReconcile_whatOnlyTheDatabaseKnowsOfIsNotDoneByTheOldConfiguration(t *testing.T) {
	reloading(t, []string{"fw-a"}, 0, func(r *reloads) {
		fw := r.firewall("fw-a")
		plain, edge := r.put("10.0.0.1"), r.put("10.0.0.2", on("edge"))
		r.becomes(plain, "fw-a", parry.StateEnforced)
		r.idle("fw-a")
		n, fleet := fw.count(), r.edited()
		r.told(fleet)
		time.Sleep(5 * time.Minute)
		if got := fw.count() - n; got > 1 {
			t.Errorf("%d runs over what they cannot make so", got)
		}
		later := r.put("10.0.0.3") // blocking goes on meanwhile, and so does its repair
		r.within(time.Minute, "a new block is sent", func() bool { return len(fw.holds()) == 2 })
		fw.set(func(f *firewall) { f.held = nil })
		r.within(20*time.Minute, "drift is repaired", func() bool { return len(fw.holds()) == 2 })
		r.within(time.Minute, "its incident is over", func() bool { return !r.state("fw-a").Incident.Open() })
		n = fw.count()
		time.Sleep(time.Hour)
		if got := fw.count() - n; got > 5 {
			t.Errorf("%d runs in an hour in which nothing happens", got)
		}
		for _, id := range []parry.BlockID{plain, edge, later} {
			if got := r.derived(id, "fw-a"); got == parry.StateEnforced {
				t.Errorf("block %s is called enforced by a configuration that was never sent", id)
			}
		}
		r.taken(fleet)
		r.becomes(edge, "fw-a", parry.StateEnforced)
		if got := fw.holds(); len(got) != 3 {
			t.Errorf("enforced, and the firewall holds %q", got)
		}
		r.readFirst()
	})
}

func TestReconcile_aRunThatAReloadOvertakesLeavesTheFirewallDirty(t *testing.T) {
	reloading(t, []string{"fw-a"}, 0, func(r *reloads) {
		fw := r.firewall("fw-a")
		edge := r.put("10.0.0.2", on("edge"))
		r.becomes(r.put("10.0.0.1"), "fw-a", parry.StateEnforced)
		r.idle("fw-a")
		fleet := r.edited()
		r.mu.Lock()
		r.lookup = func() { r.told(fleet); r.taken(fleet) } // between what the lane decides and what it renders
		r.mu.Unlock()
		r.put("10.0.0.3")
		r.within(time.Minute, "the run is over", func() bool { return len(fw.holds()) >= 2 })
		r.within(time.Minute, "the group's block is sent, or not called enforced", func() bool {
			sent := len(fw.holds()) == 3
			if got := r.derived(edge, "fw-a"); got == parry.StateEnforced && !sent {
				t.Fatal("the group's block is called enforced and was never sent")
			}
			return sent
		})
		r.becomes(edge, "fw-a", parry.StateEnforced)
		r.readFirst()
	})
}

func TestReconcile_aReloadWhileARunQueuesIsDecidedAnew(t *testing.T) {
	reloading(t, []string{"fw-a", "fw-b"}, 1, func(r *reloads) {
		r.becomes(r.put("10.0.0.1"), "fw-a", parry.StateEnforced)
		r.idle("fw-a")
		r.idle("fw-b")
		edge := r.put("10.0.0.2", on("edge"))
		r.firewall("fw-b").set(func(f *firewall) { f.takes = 10 * time.Second })
		r.put("10.0.0.3", on("fw-b"))
		r.within(time.Minute, "the only slot is taken", func() bool { return r.status("fw-b").State == LaneRunning })
		r.put("10.0.0.4", on("fw-a"))
		r.within(5*time.Second, "the run waits for it", func() bool { return r.status("fw-a").State == LaneQueued })
		fleet := r.edited()
		r.told(fleet)
		r.taken(fleet)
		r.becomes(edge, "fw-a", parry.StateEnforced)
		r.readFirst()
	})
}
