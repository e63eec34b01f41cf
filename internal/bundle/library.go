package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parry/parry/internal/parry"
)

// Options of a Library. Root, StateDir and Check are required.
type Options struct {
	Root     string // the directory that holds the bundles' source directories
	StateDir string // copies go to StateDir/bundles/NAME/DIGEST
	// Check looks a copy over before it becomes current: a syntax check by Ansible.
	Check  func(ctx context.Context, dir string) error
	Owner  int // uid that may own a source beside root's; 0 is this process's
	Keep   int // older copies that Prune leaves; 0 is 5
	Logger *slog.Logger
}

// Library keeps the copies of bundles. Safe for concurrent use; bundles do not wait for each other.
type Library struct {
	root, dir string
	check     func(ctx context.Context, dir string) error
	owner     int
	keep      int
	log       *slog.Logger

	mu      sync.Mutex
	shelves map[string]*shelf
}

// shelf is what is known of one bundle in this process.
type shelf struct {
	mu     sync.Mutex
	seen   string // the source's signature at the last refresh
	bad    error  // what that found wrong with the source
	last   error  // what the last refresh said
	now    *Bundle
	loaded map[string]*Bundle // by digest: read and verified
}

// New opens a library.
func New(o Options) (*Library, error) {
	if o.Root == "" || o.StateDir == "" || o.Check == nil {
		return nil, errors.New("bundle: Root, StateDir and Check are required")
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, fmt.Errorf("bundles: %w", err)
	}
	state, err := filepath.Abs(o.StateDir)
	if err != nil {
		return nil, fmt.Errorf("bundles: %w", err)
	}
	l := &Library{root: root, dir: filepath.Join(state, "bundles"), check: o.Check, owner: o.Owner, keep: o.Keep, log: o.Logger, shelves: map[string]*shelf{}}
	if l.owner == 0 {
		l.owner = os.Geteuid()
	}
	if l.keep <= 0 {
		l.keep = 5
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	return l, nil
}

func (l *Library) shelf(name string) *shelf {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.shelves[name]
	if s == nil {
		s = &shelf{loaded: map[string]*Bundle{}}
		l.shelves[name] = s
	}
	return s
}

// Refresh returns the current copy of a bundle, after taking over an edit of its source. It costs a stat per file when nothing changed.
// When the source is bad it returns the last good copy with the error; Bundle.Dir is empty when there is none. The error says what is
// wrong with which file, and is the same until the source is changed.
func (l *Library) Refresh(ctx context.Context, name string) (Bundle, error) {
	if !nameRE.MatchString(name) {
		return Bundle{}, fmt.Errorf("bundle %q: no bundle name", name)
	}
	s := l.shelf(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		l.restore(s, name)
	}
	err := l.refresh(ctx, s, name)
	if err != nil {
		err = fmt.Errorf("bundle %s: %w", name, err)
	}
	if ctx.Err() == nil {
		s.last = err
	}
	if s.now == nil {
		return Bundle{}, err
	}
	return *s.now, err
}

func (l *Library) refresh(ctx context.Context, s *shelf, name string) error {
	src := filepath.Join(l.root, name)
	for range 3 {
		sig, err := signature(src, l.owner)
		if err != nil {
			return err
		}
		if sig == s.seen {
			return s.bad
		}
		b, bad := l.take(ctx, s, name, src)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if after, err := signature(src, l.owner); err != nil || after != sig {
			continue // edited while it was read
		}
		s.seen, s.bad = sig, bad
		if bad != nil {
			return bad
		}
		if s.now == nil || s.now.Digest != b.Digest { // the order in which copies were current is the order of these
			at := time.Now()
			if err := os.Chtimes(b.Dir+".json", at, at); err != nil {
				l.log.Warn("cannot note when a bundle became current", "bundle", name, "digest", b.Digest, "err", err)
			}
		}
		s.now = b
		if err := replaceFile(filepath.Join(l.dir, name, "current"), []byte(b.Digest+"\n")); err != nil {
			s.seen = ""
			return err
		}
		return nil
	}
	return errors.New("its source is being edited; try again")
}

// take returns the copy of the source as it is now, made and checked if there is none yet.
func (l *Library) take(ctx context.Context, s *shelf, name, src string) (*Bundle, error) {
	d, err := digest(src)
	if err != nil {
		return nil, err
	}
	if b, err := l.load(s, name, d); err == nil {
		return b, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		l.log.Warn("a copy of a bundle is damaged and is made again", "bundle", name, "digest", d, "err", err)
		if err := os.RemoveAll(l.path(name, d)); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Join(l.dir, name), 0o755); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(filepath.Join(l.dir, name), ".copy-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := copyTree(src, tmp); err != nil {
		return nil, err
	}
	if got, err := digest(tmp); err != nil || got != d {
		return nil, errors.Join(errors.New("its source changed while it was copied"), err)
	}
	if _, err := readManifest(tmp, name); err != nil {
		return nil, err
	}
	if err := l.check(ctx, tmp); err != nil {
		return nil, err
	}
	if err := l.seal(ctx, tmp, src, name, d); err != nil {
		return nil, err
	}
	return l.load(s, name, d)
}

// seal notes where a checked copy comes from and gives it its name.
func (l *Library) seal(ctx context.Context, tmp, src, name, d string) error {
	note, err := json.Marshal(origin{Commit: gitCommit(ctx, src), Taken: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	if err := replaceFile(l.path(name, d)+".json", note); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, l.path(name, d))
}

// origin is what a copy's content does not tell, in DIGEST.json beside it.
type origin struct {
	Commit string    `json:"commit,omitempty"`
	Taken  time.Time `json:"taken,omitzero"`
}

func (l *Library) path(name, digest string) string { return filepath.Join(l.dir, name, digest) }

// restore makes current again what was current when parry ended.
func (l *Library) restore(s *shelf, name string) {
	b, err := os.ReadFile(filepath.Join(l.dir, name, "current"))
	if err != nil {
		return
	}
	if s.now, err = l.load(s, name, strings.TrimSpace(string(b))); err != nil {
		l.log.Warn("the bundle that was current cannot be used", "bundle", name, "err", err)
	}
}

var digestRE = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Get returns a copy by its digest: one that a firewall is pinned to.
func (l *Library) Get(name, digest string) (Bundle, error) {
	if !nameRE.MatchString(name) || !digestRE.MatchString(digest) {
		return Bundle{}, fmt.Errorf("bundle %q, digest %q: no such names", name, digest)
	}
	s := l.shelf(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := l.load(s, name, digest)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = parry.Errorf(parry.KindNotFound, "this host has no copy %.12s: put that version into %s and run `parry bundles check %s` here, or choose another "+
				"(`parry bundles use`)", digest, filepath.Join(l.root, name), name)
		}
		return Bundle{}, fmt.Errorf("bundle %s: %w", name, err)
	}
	return *b, nil
}

// load reads a copy; the first time in this process its content is held against its digest.
func (l *Library) load(s *shelf, name, d string) (*Bundle, error) {
	dir := l.path(name, d)
	if b := s.loaded[d]; b != nil {
		if _, err := os.Stat(dir); err != nil {
			delete(s.loaded, d)
			return nil, err
		}
		return b, nil
	}
	if !digestRE.MatchString(d) {
		return nil, fmt.Errorf("%q is no digest", d)
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	if got, err := digest(dir); err != nil || got != d {
		return nil, errors.Join(fmt.Errorf("the copy in %s was changed", dir), err)
	}
	m, err := readManifest(dir, name)
	if err != nil {
		return nil, err
	}
	o, _ := l.origin(name, d)
	b := &Bundle{BundleRef: parry.BundleRef{Name: name, Version: m.Version, Digest: d, Commit: o.Commit}, Dir: dir, Manifest: *m}
	s.loaded[d] = b
	return b, nil
}

// origin reads what is noted of a copy, and when it last became current.
func (l *Library) origin(name, d string) (o origin, current time.Time) {
	f, err := os.Open(l.path(name, d) + ".json")
	if err != nil {
		return o, current
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil {
		current = info.ModTime()
	}
	_ = json.NewDecoder(f).Decode(&o)
	return o, current
}

func readManifest(dir, name string) (*Manifest, error) {
	b, err := os.ReadFile(filepath.Join(dir, "bundle.yml"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("bundle.yml is missing")
	} else if err != nil {
		return nil, err
	}
	m, err := ParseManifest(b)
	if err != nil {
		return nil, err
	}
	if m.Name != name {
		return nil, fmt.Errorf("bundle.yml: name: it says %s in a directory named %s", m.Name, name)
	}
	for _, p := range Playbooks {
		if info, err := os.Stat(filepath.Join(dir, p)); err != nil || !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is missing", p)
		}
	}
	return m, nil
}

// gitCommit is the commit that the source is checked out at, with "-dirty" when the directory differs from it; empty without git.
func gitCommit(ctx context.Context, src string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	git := func(arg ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", append([]string{"-C", src, "-c", "safe.directory=*", "-c", "core.fsmonitor=false"}, arg...)...)
		cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_OPTIONAL_LOCKS=0"}
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	commit, err := git("rev-parse", "--verify", "HEAD")
	if err != nil {
		return ""
	}
	if changed, err := git("status", "--porcelain", "--", "."); err != nil || changed != "" {
		commit += "-dirty"
	}
	return commit
}

// Prune removes old copies of a bundle, newest last: neither the current one, nor those pinned, nor what a run holds, nor the newest
// Options.Keep of the rest.
func (l *Library) Prune(name string, pinned ...string) error {
	s := l.shelf(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		l.restore(s, name)
	}
	entries, err := os.ReadDir(filepath.Join(l.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("prune bundle %s: %w", name, err)
	}
	type copied struct {
		digest string
		at     time.Time // when it last became current
	}
	var old []copied
	for _, e := range entries {
		d := e.Name()
		if strings.HasPrefix(d, ".copy-") { // of a parry that was killed: ours would hold the shelf
			_ = os.RemoveAll(l.path(name, d))
		}
		if !e.IsDir() || !digestRE.MatchString(d) || slices.Contains(pinned, d) || s.now != nil && s.now.Digest == d {
			continue
		}
		if _, at := l.origin(name, d); !at.IsZero() {
			old = append(old, copied{d, at})
		}
	}
	slices.SortFunc(old, func(a, b copied) int { return b.at.Compare(a.at) })
	var errs []error
	for i, c := range old {
		if i >= l.keep {
			errs = append(errs, l.remove(s, name, c.digest))
		}
	}
	return errors.Join(errs...)
}

func (l *Library) remove(s *shelf, name, d string) error {
	f, err := os.Open(l.path(name, d))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil // a run, perhaps an orphan, still uses it
	}
	delete(s.loaded, d)
	return errors.Join(os.RemoveAll(l.path(name, d)), os.Remove(l.path(name, d)+".json"))
}
