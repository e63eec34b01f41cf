package reconcile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// world is a real store on SQLite, a reconciler and firewalls that hold what they are told, under a clock that only the test moves.
type world struct {
	t     testing.TB
	ctx   context.Context
	store *store.Store
	r     *Reconciler
	reg   *prometheus.Registry
	stop  func()

	mu      sync.Mutex
	fleet   *parry.Fleet
	fws     map[string]*firewall
	exempt  []netip.Prefix
	flags   func(*bundle.Manifest) // what the bundle can do beside what all can
	digest  string
	gone    map[string]bool // digests that this host has no copy of
	badlib  error
	orphans int // so many times LockLane finds an orphan
	dir     string
}

// firewall plays what a bundle and a firewall do together.
type firewall struct {
	mu         sync.Mutex
	held       []string         // keys that are loaded
	ends       map[string]int64 // where the bundle has timeouts: when the firewall lets go of a key
	ahead      time.Duration    // of its clock
	epoch      int64
	revision   int64
	controller string
	flushed    bool
	fail       parry.Failure // of every run from now on
	failures   []parry.Failure
	reject     map[string]string // key prefix → code
	echo       bool              // claims what it was sent, loads nothing
	takes      time.Duration     // a run's length
	hang       bool              // until the context ends
	noProof    bool
	lieCount   bool
	failsWith  map[string]parry.Failure // by the bundle's digest
	liesWith   string                   // echoes with this digest
	runs       []ansible.Spec
	at         []time.Time
	missing    bool // from the inventory
	facts      *parry.FirewallFacts
	exempt     string // ahead of the drops
	noExempt   bool   // does not tell
	machine    string // its id; empty: it tells none
	garble     func(loaded string) string
	during     func()
	active     int
	mostActive int
}

const controller = "c-test"

func pfx(s string) netip.Prefix {
	if strings.Contains(s, "/") {
		return netip.MustParsePrefix(s)
	}
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}

func (w *world) firewall(name string) *firewall {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fws[name]
}

// simulate runs f in a world of the named firewalls, whose reconciler runs unless Options say otherwise.
func simulate(t *testing.T, names []string, change func(*Options), f func(*world)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, names, change)
		w.start()
		f(w)
		w.stop()
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
}

func newWorld(t testing.TB, names []string, change func(*Options)) *world {
	w := &world{t: t, ctx: context.Background(), fws: map[string]*firewall{}, digest: strings.Repeat("a", 64), dir: t.TempDir()}
	w.fleet = &parry.Fleet{Default: parry.SelectAll}
	for _, n := range names {
		w.list(n)
	}
	var err error
	w.store, err = store.Open(w.ctx, store.Options{Driver: "sqlite", Path: filepath.Join(w.dir, "parry.db"), Now: time.Now})
	w.must(err)
	w.must(w.store.SyncFirewalls(w.ctx, w.fleet.Firewalls))
	w.reg = prometheus.NewRegistry()
	w.build(change)
	return w
}

func (w *world) build(change func(*Options)) {
	o := Options{
		Store: w.store, Runner: w, Library: w, Controller: controller, Channels: parry.Subscriptions{{Channel: "mail", Kinds: parry.NotifyKinds}}, StateDir: w.dir,
		Fleet: func() *parry.Fleet { w.mu.Lock(); defer w.mu.Unlock(); return w.fleet },
		Host: func(name string) ansible.Host {
			h := ansible.Host{Name: name, Addr: netip.MustParseAddr("127.0.0.1"), Port: 2201}
			missing := false
			w.firewall(name).set(func(f *firewall) { missing = f.missing })
			if missing {
				h.Err = errors.New("the inventory has no host " + name)
			}
			return h
		},
		Exempt: func(p netip.Prefix) (parry.Exemption, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, x := range w.exempt {
				if x.Overlaps(p) {
					return parry.Exemption{ID: parry.ExemptionID("cfg:" + x.String()), Prefix: x, Source: parry.ExemptConfig}, true
				}
			}
			return parry.Exemption{}, false
		},
		ExemptFile: func() parry.ExemptFile { w.mu.Lock(); defer w.mu.Unlock(); return parry.NewExemptFile(w.exempt) },
		Rand:       func() float64 { return 0.5 }, // no jitter
		Registerer: w.reg,
	}
	if change != nil {
		change(&o)
	}
	r, err := New(o)
	w.must(err)
	w.r = r
}

// list adds a firewall to the fleet.
func (w *world) list(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fleet := *w.fleet
	fleet.Firewalls = append(slices.Clone(fleet.Firewalls), parry.Firewall{Name: name, Bundle: "fake", Interface: "wan", Digest: name + "-1", MaxRules: 200})
	w.fleet = &fleet
	if w.fws[name] == nil {
		w.fws[name] = &firewall{reject: map[string]string{}}
	}
}

// start runs the reconciler; stop ends it and waits.
func (w *world) start() {
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.r.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	w.stop = func() { cancel(); <-done }
}

// restart is a new process on the same database.
func (w *world) restart(change func(*Options)) {
	w.stop()
	w.reg = prometheus.NewRegistry()
	w.build(change)
	w.start()
}

// backup copies the database as it is, while parry runs.
func (w *world) backup() (path string) {
	w.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(w.dir, "parry.db"))
	w.must(err)
	defer db.Close()
	path = filepath.Join(w.dir, "backup.db")
	_, err = db.Exec(`VACUUM INTO ?`, path)
	w.must(err)
	return path
}

// restore loses the database and puts the backup in its place. The reconciler is stopped and must be built and started again.
func (w *world) restore(backup string) {
	w.t.Helper()
	w.stop()
	w.must(w.store.Close())
	path := filepath.Join(w.dir, "parry.db")
	for _, end := range []string{"-wal", "-shm"} {
		w.must(os.RemoveAll(path + end))
	}
	w.must(os.Rename(backup, path))
	var err error
	w.store, err = store.Open(w.ctx, store.Options{Driver: "sqlite", Path: path, Now: time.Now})
	w.must(err)
	w.must(w.store.SyncFirewalls(w.ctx, w.fleet.Firewalls))
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(source string, change ...func(*parry.Admission)) parry.BlockID {
	w.t.Helper()
	now := time.Now()
	a := parry.Admission{
		BlockID: parry.NewBlockID(now), Request: parry.Request{ID: parry.NewRequestID(now), ReceivedAt: now, TTL: 24 * time.Hour},
		Key:        parry.Key{Match: parry.Match{Source: pfx(source)}, Selector: parry.SelectDefault},
		MaxExpires: now.Add(30 * 24 * time.Hour),
	}
	for _, c := range change {
		c(&a)
	}
	got, err := w.store.Put(w.ctx, a)
	w.must(err)
	return got.Block.ID
}

func ttl(d time.Duration) func(*parry.Admission) {
	return func(a *parry.Admission) { a.Request.TTL = d }
}

func on(names ...string) func(*parry.Admission) {
	return func(a *parry.Admission) { a.Key.Selector = parry.ParseSelector(names...) }
}

func (w *world) state(name string) parry.FirewallState {
	w.t.Helper()
	st, err := w.store.FirewallState(w.ctx, name)
	w.must(err)
	return st
}

// derived is a block's state on a firewall, as the API would tell.
func (w *world) derived(id parry.BlockID, name string) parry.State {
	w.t.Helper()
	b, err := w.store.Block(w.ctx, id)
	w.must(err)
	rs, err := w.store.Rejects(w.ctx, []parry.BlockID{id})
	w.must(err)
	st := w.state(name)
	return parry.Derive(&b, &st, slices.ContainsFunc(rs, func(r parry.Reject) bool { return r.Firewall == name }))
}

// within moves the clock until ok, at most for d.
func (w *world) within(d time.Duration, what string, ok func() bool) {
	w.t.Helper()
	began := time.Now()
	for end := began.Add(d); ; time.Sleep(max(20*time.Millisecond, time.Since(began)/200)) {
		synctest.Wait()
		if ok() {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("after %v still not: %s; %+v", d, what, w.r.Status())
		}
	}
}

func (w *world) becomes(id parry.BlockID, name string, want parry.State) {
	w.t.Helper()
	w.within(time.Minute, fmt.Sprintf("%s is %s on %s", id, want, name), func() bool { return w.derived(id, name) == want })
}

func (w *world) idle(name string) {
	w.t.Helper()
	w.within(5*time.Minute, name+" is idle", func() bool {
		s := w.status(name)
		return s.State == LaneIdle && s.Pending == 0
	})
}

func (w *world) status(name string) LaneStatus {
	for _, s := range w.r.Status() {
		if s.Firewall == name {
			return s
		}
	}
	return LaneStatus{}
}

func (w *world) runs(name string) []parry.Run {
	w.t.Helper()
	p, err := w.store.Runs(w.ctx, parry.RunFilter{Firewall: name, Limit: 1000})
	w.must(err)
	slices.Reverse(p.Items)
	return p.Items
}

// mails takes what the outbox has to deliver.
func (w *world) mails() (out []parry.Delivery) {
	w.t.Helper()
	for {
		ds, err := w.store.NextDeliveries(w.ctx, "mail", 10, true)
		w.must(err)
		if len(ds) == 0 {
			return out
		}
		for _, d := range ds {
			w.must(w.store.Delivered(w.ctx, d.ID, "mail"))
		}
		out = append(out, ds...)
	}
}

func kinds(ds []parry.Delivery) (out []parry.NotificationKind) {
	for _, d := range ds {
		out = append(out, d.Kind)
	}
	return out
}

func (f *firewall) set(change func(*firewall)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *firewall) holds() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.letGo()
	return slices.Clone(f.held)
}

// letGo ends what has timed out.
func (f *firewall) letGo() {
	f.held = slices.DeleteFunc(f.held, func(k string) bool {
		x := f.ends[k]
		return x != 0 && time.Now().Add(f.ahead).Unix() >= x
	})
}

func (f *firewall) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.runs)
}

// Refresh and Get make the world the Library.
func (w *world) Refresh(context.Context, string) (bundle.Bundle, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.badlib != nil {
		return bundle.Bundle{}, w.badlib
	}
	b := bundle.Bundle{
		BundleRef: parry.BundleRef{Name: "fake", Version: "1.0.0", Digest: w.digest}, Dir: "/bundles/fake",
		Manifest: bundle.Manifest{
			Name: "fake", Families: []string{"inet", "inet6"}, Prefixes: true, Ports: true, Interfaces: true,
			Protocols: []parry.Protocol{parry.ProtoAny, parry.ProtoTCP, parry.ProtoUDP, parry.ProtoTCPUDP},
		},
	}
	if w.flags != nil {
		w.flags(&b.Manifest)
	}
	return b, nil
}

func (w *world) Get(_, digest string) (bundle.Bundle, error) {
	b, err := w.Refresh(w.ctx, "")
	w.mu.Lock()
	defer w.mu.Unlock()
	if b.Digest = digest; w.gone[digest] {
		return bundle.Bundle{}, parry.Errorf(parry.KindNotFound, "this host has no copy %.12s", digest)
	}
	return b, err
}

// edit makes another copy current, and tells the canaries as a survey does.
func (w *world) edit(digest string) {
	w.mu.Lock()
	w.digest = digest
	w.mu.Unlock()
	w.r.Try("fake")
}

// LockLane and Run make the world the Runner.
func (w *world) LockLane(name string) (*os.File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.orphans > 0 {
		w.orphans--
		return nil, ansible.ErrOrphan
	}
	return os.Create(filepath.Join(w.dir, name+".lock"))
}

func sumOf(keys []string) string {
	h := sha256.New()
	for _, k := range keys {
		fmt.Fprintln(h, k)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (w *world) Run(ctx context.Context, s ansible.Spec) (*ansible.Outcome, error) {
	f := w.firewall(s.Host.Name)
	f.mu.Lock()
	f.runs, f.at = append(f.runs, s), append(f.at, time.Now())
	f.active++
	f.mostActive = max(f.mostActive, f.active)
	takes, hang, during := f.takes, f.hang, f.during
	f.mu.Unlock()
	defer f.set(func(f *firewall) { f.active-- })
	if during != nil {
		during()
	}
	ended := func(failure parry.Failure) *ansible.Outcome {
		return &ansible.Outcome{State: parry.RunUnknown, Failure: failure, Message: string(failure)}
	}
	if hang {
		select {
		case <-ctx.Done():
			return ended(parry.FailCancelled), nil
		case <-time.After(time.Minute):
			return ended(parry.FailTimeout), nil
		}
	}
	select {
	case <-ctx.Done():
		return ended(parry.FailCancelled), nil
	case <-time.After(max(takes, time.Millisecond)):
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	dir := filepath.Join(w.dir, "runs", string(s.RunID))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "desired.txt"), s.Desired, 0o600); err != nil {
		return nil, err
	}
	failed := func(c parry.Failure, details map[string]any) *ansible.Outcome {
		return &ansible.Outcome{
			State: parry.RunFailed, Failure: c, Message: "it said " + string(c), Task: "Apply", Details: details, Dir: dir, LogTail: "TASK [Apply]",
		}
	}
	next := f.fail
	if bad := f.failsWith[s.Bundle.Digest]; bad != "" {
		next = bad
	}
	if len(f.failures) > 0 {
		next, f.failures = f.failures[0], f.failures[1:]
	}
	if next != "" {
		return failed(next, nil), nil
	}
	adopt, _ := s.Vars["parry_adopt"].(bool)
	epoch := s.Vars["parry_epoch"].(int64)
	switch {
	case f.flushed && !adopt:
		return failed(parry.FailFlushed, nil), nil
	case f.controller != "" && f.controller != controller && !adopt:
		return failed(parry.FailForeignController, map[string]any{"controller": f.controller}), nil
	case f.epoch > epoch && !adopt:
		return failed(parry.FailStaleEpoch, map[string]any{"epoch": json.Number(fmt.Sprint(f.epoch))}), nil
	case f.revision > s.Vars["parry_sent_revision"].(int64) && !adopt && s.Kind != parry.RunVerify:
		return failed(parry.FailStaleRevision, nil), nil
	}
	out := &ansible.Outcome{
		State: parry.RunSucceeded, Dir: dir, Details: map[string]any{"revision": json.Number(fmt.Sprint(f.revision))},
	}
	f.letGo()
	claim := f.held
	if s.Kind != parry.RunVerify {
		var keep []string
		ends := map[string]int64{}
		for i, ln := range bytes.Split(bytes.TrimSuffix(s.Desired, []byte{'\n'}), []byte{'\n'}) {
			if len(s.Desired) == 0 {
				break
			}
			key := string(ln[:bytes.LastIndexByte(ln, ' ')])
			code := ""
			for p, c := range f.reject {
				if strings.HasPrefix(key, p) {
					code = c
				}
			}
			if x, err := strconv.ParseInt(string(ln[len(key)+1:]), 10, 64); err == nil {
				now := time.Now().Add(f.ahead).Unix()
				if x <= now {
					code = "expired"
				}
				ends[key] = max(x, now+10)
			}
			if code != "" {
				out.Rejected = append(out.Rejected, ansible.Rejection{Line: i + 1, Code: code})
				continue
			}
			keep = append(keep, key)
		}
		if claim = keep; s.Kind == parry.RunCheck {
			claim = f.held
			out.Proof = &parry.Proof{SHA256: sumOf(claim), Count: len(claim), RunID: s.Vars["parry_run_id"].(string)}
			for _, k := range keep {
				if !slices.Contains(claim, k) {
					out.Proof.Added++
				}
			}
			out.Proof.Removed = len(claim) + out.Proof.Added - len(keep)
			return out, nil
		}
		if !f.echo && f.liesWith != s.Bundle.Digest {
			f.held, f.ends = keep, ends
		}
		if s.Exempt != nil {
			f.exempt = string(s.Exempt)
		}
		f.epoch, f.controller, f.flushed, f.revision = epoch, controller, false, s.Vars["parry_revision"].(int64)
	}
	if f.noProof {
		return out, nil
	}
	out.Proof = &parry.Proof{
		SHA256: sumOf(claim), Count: len(claim), Epoch: f.epoch, Controller: f.controller, RunID: s.Vars["parry_run_id"].(string), MachineID: f.machine,
	}
	if s.Kind == parry.RunVerify {
		out.Facts = f.facts
		if s.Bundle.Manifest.Loaded {
			text := ""
			for i, k := range f.held {
				end := "-"
				if x := f.ends[k]; x != 0 {
					end = strconv.FormatInt(x, 10)
				}
				text += fmt.Sprintf("%s %s %d %d\n", k, end, i, 100*i)
			}
			if f.garble != nil {
				text = f.garble(text)
			}
			out.Loaded = []byte(text)
		}
	}
	if s.Bundle.Manifest.Exemptions && !f.noExempt {
		lines := strings.Split(strings.TrimSuffix(f.exempt, "\n"), "\n")
		if f.exempt == "" {
			lines = nil
		}
		out.Proof.ExemptSHA256, out.Proof.ExemptCount = sumOf(lines), len(lines)
	}
	if f.lieCount {
		out.Proof.Count++
	}
	return out, nil
}
