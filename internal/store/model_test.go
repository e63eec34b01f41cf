package store_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// world is a few sources and firewalls of their own in a store that many worlds share one after the other, and a model of what must come out.
// The model knows no revisions: it remembers what each good run had seen.
type world struct {
	*env
	n       int
	sources []string
	blocks  map[parry.BlockID]*modelBlock
	ledger  map[string]modelOffender
	fws     map[string]*modelFirewall
}

type modelBlock struct {
	source  string
	live    bool
	shadow  bool // only simulated rules have asked for it
	expires time.Time
	ended   time.Time
	offence int
}

func (b *modelBlock) end(at time.Time) {
	if b.live {
		b.live, b.ended = false, at
	}
}

// modelLadder loses a rung each hour and forgets after four.
var modelLadder = parry.Ladder{Rungs: []time.Duration{time.Minute, time.Minute, time.Minute}, Decay: time.Hour, Window: 4 * time.Hour}

// modelOffender is what the model remembers of a source: its offences by number, and the rung that the last one reached.
type modelOffender struct{ number, rung int }

// seen is what a run found when it read the desired state.
type seen struct {
	run   parry.Run
	ids   map[parry.BlockID]bool // known then, and whether live
	dirty int
}

type modelFirewall struct {
	digest         int
	lane           *store.Lane
	proved         seen // the last good run's
	dirty          int  // how often it was made dirty; proved.dirty is what the last good run had seen
	held, incident bool
	simulate       bool
	panic, emptied bool // as called, and as proved since
	rejected       map[parry.BlockID]bool
	drift          map[parry.BlockID]bool // the blocks that a verify found missing; nil: none is told
	driftDirty     int                    // dirty when that made it so; 0: it was dirty already
	running        *seen
	gone           bool
}

func newWorld(e *env, n int) *world {
	w := &world{env: e, n: n, blocks: map[parry.BlockID]*modelBlock{}, ledger: map[string]modelOffender{}, fws: map[string]*modelFirewall{}}
	w.sources = []string{fmt.Sprintf("10.%d.%d.1", n/256%256, n%256), fmt.Sprintf("10.%d.%d.2", n/256%256, n%256)}
	w.addFirewall()
	return w
}

func (w *world) addFirewall() {
	w.fws[fmt.Sprintf("w%d-fw%d", w.n, len(w.fws))] = &modelFirewall{dirty: 1, rejected: map[parry.BlockID]bool{}}
	w.configure()
}

func (w *world) configure() {
	var names []string
	for name, f := range w.fws {
		if !f.gone {
			name := fmt.Sprintf("%s@%d", name, f.digest)
			if f.simulate {
				name += "~"
			}
			names = append(names, name)
		}
	}
	w.sync(names...)
}

// liveBlock is the source's live block in the model.
func (w *world) liveBlock(source string) (parry.BlockID, *modelBlock) {
	for id, b := range w.blocks {
		if b.source == source && b.live {
			return id, b
		}
	}
	return "", nil
}

// due ends, in the model, what a write at this time ends of a source.
func (w *world) put(source string, ttl time.Duration) {
	now := w.clock.Advance(time.Second)
	a := w.askFor(at(source), ttl)
	a.Ladder = &modelLadder
	r := w.env.put(a)
	id, b := w.liveBlock(source)
	if b != nil && !b.expires.After(now) {
		b.end(b.expires)
		b = nil
	}
	if b == nil {
		same(w.env, "created", r.Created, true)
		w.blocks[r.Block.ID] = &modelBlock{source: source, live: true, expires: now.Add(ttl), offence: w.offend(source, now)}
		return
	}
	same(w.env, "refreshed", r.Block.ID, id)
	if b.shadow {
		b.shadow, b.expires, b.offence = false, now.Add(ttl), w.offend(source, now)
		return
	}
	if e := now.Add(ttl); e.After(b.expires) {
		b.expires = e
	}
}

// shadow is a request of a simulated rule.
func (w *world) shadow(source string, ttl time.Duration) {
	now := w.clock.Advance(time.Second)
	a := w.askFor(at(source), ttl)
	a.Simulate = true
	r := w.env.put(a)
	_, b := w.liveBlock(source)
	if b != nil && !b.expires.After(now) {
		b.end(b.expires)
		b = nil
	}
	switch {
	case b == nil:
		w.blocks[r.Block.ID] = &modelBlock{source: source, live: true, shadow: true, expires: now.Add(ttl)}
	case b.shadow && now.Add(ttl).After(b.expires):
		b.expires = now.Add(ttl)
	}
}

// offend counts an offence that begins now, and gives its number.
func (w *world) offend(source string, now time.Time) int {
	var last time.Time
	for _, b := range w.blocks {
		if b.source == source && !b.shadow && b.ended.After(last) {
			last = b.ended
		}
	}
	o := w.ledger[source]
	calm := now.Sub(last)
	for range int(min(calm, 9*time.Hour) / modelLadder.Decay) {
		o.rung = max(0, o.rung-1)
	}
	if o.rung == 0 || calm >= modelLadder.Window {
		o = modelOffender{}
	}
	o.number, o.rung = o.number+1, min(o.rung+1, len(modelLadder.Rungs))
	w.ledger[source] = o
	return o.number
}

func (w *world) setExpiry(source string, d time.Duration) {
	now := w.clock.Advance(time.Second)
	id, b := w.liveBlock(source)
	if b == nil {
		return
	}
	_, err := w.SetExpiry(w.Context(), id, now.Add(d), "anna")
	if !b.expires.After(now) {
		w.wantKind(err, parry.KindConflict)
		return
	}
	w.ok(err)
	b.expires = now.Add(d)
}

// firewall names one that is not gone: the first by name.
func (w *world) first() (string, *modelFirewall) {
	for _, name := range slices.Sorted(maps.Keys(w.fws)) {
		if f := w.fws[name]; !f.gone {
			return name, f
		}
	}
	return "", nil
}

func (w *world) begin() {
	name, f := w.first()
	if f == nil || f.running != nil {
		return
	}
	if f.lane == nil {
		f.lane = w.lane(name)
	}
	c, err := w.Changes(w.Context(), 0)
	w.ok(err)
	s := &seen{run: w.run(f.lane), ids: map[parry.BlockID]bool{}, dirty: f.dirty}
	s.run.Revision = c.Revision
	for id, b := range w.blocks {
		if !b.shadow {
			s.ids[id] = b.live
		}
	}
	w.ok(w.BeginRun(w.Context(), s.run))
	f.running = s
}

// finish ends the run that is on; with rejects, every live block of the first source that it saw is refused.
func (w *world) finish(ok, reject, late bool) {
	name, f := w.first()
	if f == nil || f.running == nil {
		return
	}
	s := f.running
	f.running = nil
	fin := parry.FinishRun{Run: s.run, Applied: ok, SetRejects: ok}
	fin.Run.State = parry.RunSucceeded
	if !ok {
		fin.Run.State, fin.Incident = parry.RunFailed, parry.Incident{Since: w.clock.Now(), Failure: parry.FailUnreachable}
	}
	rejected := map[parry.BlockID]bool{}
	for id, live := range s.ids {
		if reject && live && w.blocks[id].source == w.sources[0] {
			rejected[id] = true
			fin.Rejects = append(fin.Rejects, parry.Reject{Firewall: name, BlockID: id, Code: "capacity", RunID: s.run.ID, At: w.clock.Now()})
		}
	}
	if late { // another keeper has taken the lane meanwhile
		w.ok(f.lane.Release(w.Context()))
		f.lane = w.lane(name)
		if err := w.FinishRun(w.Context(), fin); !errors.Is(err, store.ErrLaneLost) {
			w.Fatalf("a late run: got %v, want ErrLaneLost", err)
		}
		return
	}
	w.ok(w.FinishRun(w.Context(), fin))
	f.incident = !ok
	if ok {
		f.proved, f.rejected, f.drift = *s, rejected, nil
	}
}

// drifts has a verify find that the first source's blocks are not loaded.
func (w *world) drifts() {
	name, f := w.first()
	if f == nil || f.proved.ids == nil {
		return
	}
	w.begin()
	s := f.running
	f.running = nil
	d := parry.Drift{Since: w.clock.Now(), RunID: s.run.ID, Listed: true, MissingN: 1}
	missing, clean := map[parry.BlockID]bool{}, f.proved.dirty == f.dirty
	for id, b := range w.blocks {
		if f.proved.ids[id] && b.source == w.sources[0] && !f.rejected[id] {
			missing[id] = true
			d.Blocks = append(d.Blocks, id)
		}
	}
	slices.Sort(d.Blocks)
	st := w.firewall(name)
	d.Rev = st.Drift.Rev
	fin := parry.FinishRun{Run: s.run, Drift: &d, Dirty: clean, Incident: parry.Incident{Since: w.clock.Now(), Failure: parry.FailProof}}
	fin.Run.Kind, fin.Run.State, fin.Run.Failure = parry.RunVerify, parry.RunFailed, parry.FailProof
	w.ok(w.FinishRun(w.Context(), fin))
	if f.incident = true; f.drift == nil {
		f.driftDirty = 0
	}
	if f.drift = missing; clean {
		f.dirty++
		f.driftDirty = f.dirty
	}
}

// end ends the run that is on, well, and tells the model.
func (w *world) end(fin parry.FinishRun, then func(*modelFirewall, *seen)) {
	if _, f := w.first(); f != nil && f.running != nil {
		s := f.running
		f.running = nil
		fin.Run = s.run
		fin.Run.State = parry.RunSucceeded
		w.ok(w.FinishRun(w.Context(), fin))
		then(f, s)
	}
}

// events are what can happen; the second source of a world only ever gets "other".
var events = map[string]func(*world){
	"create":  func(w *world) { w.put(w.sources[0], time.Hour) },
	"refresh": func(w *world) { w.put(w.sources[0], 2*time.Hour); w.put(w.sources[0], time.Minute) },
	"other":   func(w *world) { w.put(w.sources[1], 3*time.Hour) },
	"extend":  func(w *world) { w.setExpiry(w.sources[0], 5*time.Hour) },
	"shorten": func(w *world) { w.setExpiry(w.sources[0], time.Minute) },
	"delete": func(w *world) {
		if id, b := w.liveBlock(w.sources[0]); b != nil {
			now := w.clock.Advance(time.Second)
			_, _, err := w.EndBlock(w.Context(), id, lifted("anna"))
			w.ok(err)
			b.end(now)
		}
	},
	"expire": func(w *world) {
		now := w.clock.Advance(90 * time.Minute)
		_, err := w.EndDue(w.Context(), now)
		w.ok(err)
		for _, b := range w.blocks {
			if !b.expires.After(now) {
				b.end(b.expires)
			}
		}
	},
	"a quiet night": func(w *world) { w.clock.Advance(9 * time.Hour) },
	"exempt": func(w *world) {
		p := netip.MustParsePrefix(w.sources[0] + "/32")
		_, err := w.EndExempted(w.Context(), []parry.Exemption{{ID: "cfg:x", Prefix: p}})
		w.ok(err)
		if _, b := w.liveBlock(w.sources[0]); b != nil {
			b.end(w.clock.Now())
		}
	},
	"firewall added": func(w *world) { w.addFirewall() },
	"retired": func(w *world) {
		name, f := w.first()
		if f == nil {
			return
		}
		f.running = nil
		w.ok(w.SetRetiring(w.Context(), name))
		f.dirty++
		w.begin()
		w.ok(w.FinishRun(w.Context(), parry.FinishRun{Run: f.running.run, Applied: true, Retired: true}))
		f.gone = true
	},
	"held":     func(w *world) { w.hold(parry.Hold{By: "anna", Since: w.clock.Now()}) },
	"released": func(w *world) { w.hold(parry.Hold{}) },
	"shadow":   func(w *world) { w.shadow(w.sources[0], 4*time.Hour) },
	"simulation switched": func(w *world) {
		if _, f := w.first(); f != nil {
			f.simulate = !f.simulate
			w.configure()
		}
	},
	"panic": func(w *world) {
		if name, f := w.first(); f != nil {
			w.ok(w.Panic(w.Context(), []string{name}, parry.Hold{By: "anna", Since: w.clock.Now()}))
			f.panic, f.emptied = true, false
			f.dirty++
		}
	},
	"panic over": func(w *world) {
		if name, f := w.first(); f != nil && f.panic {
			w.ok(w.EndPanic(w.Context(), []string{name}, "anna"))
			f.panic = false
			f.dirty++
		}
	},
	"emptied": func(w *world) {
		w.begin()
		w.end(parry.FinishRun{Emptied: true, SetRejects: true}, func(f *modelFirewall, s *seen) {
			f.proved, f.rejected, f.incident, f.emptied, f.drift = *s, nil, false, true, nil
			f.dirty++
		})
	},
	"a short hold is over": func(w *world) {
		now := w.clock.Now()
		w.hold(parry.Hold{By: "anna", Since: now, Until: now.Add(time.Minute)})
		ended, err := w.EndHolds(w.Context(), w.clock.Advance(time.Minute))
		w.ok(err)
		if name, f := w.first(); f != nil {
			same(w.env, "ended", slices.Contains(ended, name), true)
			f.held = false
		}
	},
	"bundle changed": func(w *world) {
		if _, f := w.first(); f != nil {
			f.digest++
			f.dirty++
			w.configure()
		}
	},
	"marked dirty": func(w *world) {
		if name, f := w.first(); f != nil {
			w.ok(w.MarkDirty(w.Context(), name))
			f.dirty++
		}
	},
	"run begins":  func(w *world) { w.begin() },
	"run applies": func(w *world) { w.begin(); w.finish(true, false, false) },
	"rejected":    func(w *world) { w.begin(); w.finish(true, true, false) },
	"run fails":   func(w *world) { w.begin(); w.finish(false, false, false) },
	"drifts":      func(w *world) { w.drifts() },
	"run late":    func(w *world) { w.begin(); w.finish(true, false, true) },
}

func (w *world) hold(h parry.Hold) {
	if name, f := w.first(); f != nil {
		w.ok(w.SetHold(w.Context(), name, h))
		f.held = h.Held()
	}
}

// want is the model's word on a block on a firewall.
func (f *modelFirewall) want(id parry.BlockID, b *modelBlock) parry.State {
	wasLive, known := f.proved.ids[id]
	switch {
	case b.shadow && b.live:
		return parry.StateSimulated
	case b.shadow:
		return parry.StateLifted
	case !b.live && (known && !wasLive || f.rejected[id] || f.panic && f.emptied):
		return parry.StateLifted
	case !b.live:
		return parry.StateLifting
	case f.rejected[id]:
		return parry.StateRejected
	case known && !f.panic && f.drift[id]:
		return parry.StateDrifted
	case known && (f.proved.dirty == f.dirty || !f.panic && f.drift != nil && f.driftDirty == f.dirty):
		return parry.StateEnforced
	case f.panic && !f.emptied && known:
		return parry.StateLifting
	case f.simulate:
		return parry.StateSimulated
	case f.held || f.panic:
		return parry.StateHeld
	case f.incident:
		return parry.StateDegraded
	}
	return parry.StatePending
}

// check compares every block on every firewall with the model.
func (w *world) check(history []string) {
	w.Helper()
	for name, f := range w.fws {
		if f.gone {
			_, err := w.FirewallState(w.Context(), name)
			w.wantKind(err, parry.KindNotFound)
			continue
		}
		fw := w.firewall(name)
		rejects, err := w.FirewallRejects(w.Context(), name)
		w.ok(err)
		for id, mb := range w.blocks {
			b := w.block(id)
			rejected := slices.ContainsFunc(rejects, func(r parry.Reject) bool { return r.BlockID == id })
			if got, want := parry.Derive(&b, &fw, rejected), f.want(id, mb); got != want {
				w.Fatalf("after %v: block of %s on %s is %s, want %s", history, mb.source, name, got, want)
			}
			same(w.env, fmt.Sprint("expiry after ", history), b.ExpiresAt, mb.expires)
			same(w.env, fmt.Sprint("offence after ", history), b.Offence, mb.offence)
		}
	}
}

func (w *world) leave() {
	for _, f := range w.fws {
		if f.lane != nil {
			w.ok(f.lane.Release(w.Context()))
		}
	}
}

// Every event after every other: on a firewall that has a block in force; on SQLite, which is quick, also on a new one, and while a run is on that
// will not know of them.
func TestDerivedStates_everyPair(t *testing.T) {
	t.Parallel()
	for _, eng := range engines {
		t.Run(eng.name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, eng.open(t))
			n := 0
			names := slices.Sorted(maps.Keys(events))
			starts := [][]string{{"create", "run applies"}}
			if eng.name == "sqlite" {
				starts = append(starts, []string{}, []string{"create", "run applies", "run begins"})
			}
			for _, start := range starts {
				for _, a := range names {
					for _, b := range names {
						w := newWorld(e, n)
						n++
						var history []string
						for _, ev := range append(slices.Clone(start), a, b) {
							history = append(history, ev)
							events[ev](w)
							w.check(history)
						}
						w.leave()
					}
				}
			}
		})
	}
}

// Longer sequences of events, drawn at random. PARRY_SEQUENCES sets how many hundreds of them on SQLite.
func TestDerivedStates_anySequence(t *testing.T) {
	t.Parallel()
	names := slices.Sorted(maps.Keys(events))
	for _, eng := range engines {
		hundreds := 1 // rapid's measure
		if n, err := strconv.Atoi(os.Getenv("PARRY_SEQUENCES")); err == nil && eng.name == "sqlite" {
			hundreds = n
		}
		for i := range hundreds {
			t.Run(fmt.Sprintf("%s/%d", eng.name, i+1), func(t *testing.T) {
				t.Parallel()
				e := newEnv(t, eng.open(t))
				n := 0
				rapid.Check(t, func(rt *rapid.T) {
					w := newWorld(e, n)
					n++
					var history []string
					for _, ev := range rapid.SliceOfN(rapid.SampledFrom(names), 1, 15).Draw(rt, "events") {
						history = append(history, ev)
						events[ev](w)
						w.check(history)
					}
					w.leave()
				})
			})
		}
	}
}
