package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/parry/parry/internal/parry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const manifest = "name: fw\nversion: 1.0.0\ncontract: 1\nfamilies: [inet]\nprotocols: [any, tcp]\n"

// shop is a library over one source directory, and what its checks saw.
type shop struct {
	*Library
	src    string
	state  string
	mu     sync.Mutex
	checks int
	refuse error
}

func newShop(t *testing.T) *shop {
	t.Helper()
	root, state := openDir(t), t.TempDir()
	s := &shop{src: filepath.Join(root, "fw"), state: state}
	for name, text := range map[string]string{
		"bundle.yml": manifest, "apply.yml": "[]\n", "verify.yml": "[]\n", "flush.yml": "[]\n", "roles/fw/tasks/main.yml": "[]\n",
	} {
		s.write(t, name, text)
	}
	s.Library = s.open(t)
	return s
}

// openDir is a directory that everybody may look into, unlike a test's own.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (s *shop) open(t *testing.T) *Library {
	t.Helper()
	l, err := New(Options{Root: filepath.Dir(s.src), StateDir: s.state, Keep: 1, Check: func(_ context.Context, dir string) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.checks++
		if _, err := os.Stat(filepath.Join(dir, "apply.yml")); err != nil {
			return err
		}
		return s.refuse
	}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (s *shop) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(s.src, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s *shop) refresh(t *testing.T) Bundle {
	t.Helper()
	b, err := s.Refresh(t.Context(), "fw")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRefresh_copiesOnceAndOnlyWhenSomethingChanged(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	first := s.refresh(t)
	if first.Version != "1.0.0" || first.Dir != filepath.Join(s.state, "bundles/fw", first.Digest) {
		t.Errorf("got %+v", first)
	}
	if again := s.refresh(t); again.Digest != first.Digest || s.checks != 1 {
		t.Errorf("got %s after %d checks", again.Digest, s.checks)
	}
	later := time.Now().Add(time.Hour) // touched, not changed
	if err := os.Chtimes(filepath.Join(s.src, "apply.yml"), later, later); err != nil {
		t.Fatal(err)
	}
	s.write(t, "__pycache__/x.pyc", "left by python")
	if again := s.refresh(t); again.Digest != first.Digest || s.checks != 1 {
		t.Errorf("got %s after %d checks", again.Digest, s.checks)
	}
	for _, change := range []func(){
		func() { s.write(t, "apply.yml", "[ ]\n") },
		func() { _ = os.Chmod(filepath.Join(s.src, "apply.yml"), 0o755) },
		func() { _ = os.Rename(filepath.Join(s.src, "roles/fw"), filepath.Join(s.src, "roles/wf")) },
		func() { _ = os.Mkdir(filepath.Join(s.src, "files"), 0o755) },
	} {
		before := s.refresh(t)
		change()
		if after := s.refresh(t); after.Digest == before.Digest {
			t.Error("a change was not seen")
		}
	}
	info, err := os.Stat(filepath.Join(first.Dir, "apply.yml"))
	if err != nil || info.Mode() != 0o444 {
		t.Errorf("the copy is %v, %v", info.Mode(), err)
	}
	if got, err := s.Get("fw", first.Digest); err != nil || got.Dir != first.Dir {
		t.Errorf("pinned: got %+v, %v", got, err)
	}
}

func TestRefresh_badEditKeepsTheLastGoodCopy(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	good := s.refresh(t)
	for name, c := range map[string]struct {
		edit func()
		word string
	}{
		"typo":     {func() { s.write(t, "bundle.yml", manifest+"prefixs: true\n") }, "line 6"},
		"contract": {func() { s.write(t, "bundle.yml", strings.Replace(manifest, "contract: 1", "contract: 2", 1)) }, "contract 1"},
		"name":     {func() { s.write(t, "bundle.yml", strings.Replace(manifest, "name: fw", "name: wf", 1)) }, "directory named fw"},
		"missing":  {func() { _ = os.Remove(filepath.Join(s.src, "flush.yml")) }, "flush.yml is missing"},
		"link":     {func() { _ = os.Symlink("/etc/passwd", filepath.Join(s.src, "roles/passwd")) }, "roles/passwd"},
		"check":    {func() { s.write(t, "apply.yml", "["); s.refuse = errors.New("apply.yml: line 1") }, "apply.yml: line 1"},
	} {
		c.edit()
		checks := s.checks
		for range 2 {
			b, err := s.Refresh(t.Context(), "fw")
			if err == nil || !strings.Contains(err.Error(), c.word) || b.Digest != good.Digest {
				t.Errorf("%s: got %s, %v", name, b.Digest, err)
			}
		}
		if s.checks > checks+1 {
			t.Errorf("%s: checked again without a change", name)
		}
		// mended
		s.refuse = nil
		s.write(t, "bundle.yml", manifest)
		s.write(t, "flush.yml", "[]\n")
		s.write(t, "apply.yml", "[]\n")
		_ = os.Remove(filepath.Join(s.src, "roles/passwd"))
		if b := s.refresh(t); b.Digest != good.Digest {
			t.Errorf("%s: mended, got %s", name, b.Digest)
		}
	}
	s.write(t, "bundle.yml", "")
	restarted := s.open(t)
	if b, err := restarted.Refresh(t.Context(), "fw"); err == nil || b.Digest != good.Digest {
		t.Errorf("after a restart: got %s, %v", b.Digest, err)
	}
	if b, err := s.Refresh(t.Context(), "none"); err == nil || b.Dir != "" {
		t.Errorf("got %+v, %v", b, err)
	}
	if entries, _ := filepath.Glob(filepath.Join(s.state, "bundles/fw/.copy-*")); len(entries) != 0 {
		t.Errorf("left over: %v", entries)
	}
}

func TestRefresh_refusesWhatOthersCouldChange(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(s *shop) error
		word string // with SRC and ROOT for the directories
	}{
		"a file of the group's":     {func(s *shop) error { return os.Chmod(filepath.Join(s.src, "apply.yml"), 0o664) }, "apply.yml can be written by its group: chmod -R go-w SRC"},
		"a file of everybody's":     {func(s *shop) error { return os.Chmod(filepath.Join(s.src, "roles/fw/tasks/main.yml"), 0o646) }, "roles/fw/tasks/main.yml can be written by everybody: chmod -R go-w SRC"},
		"a directory in it":         {func(s *shop) error { return os.Chmod(filepath.Join(s.src, "roles"), 0o775) }, "roles can be written by its group: chmod -R go-w SRC"},
		"itself":                    {func(s *shop) error { return os.Chmod(s.src, 0o775) }, "SRC can be written by its group: chmod -R go-w SRC"},
		"itself, sticky":            {func(s *shop) error { return os.Chmod(s.src, 0o777|os.ModeSticky) }, "SRC can be written by everybody"},
		"the directory above":       {func(s *shop) error { return os.Chmod(filepath.Dir(s.src), 0o775) }, "ROOT can be written by its group: chmod go-w ROOT"},
		"a sticky one above":        {func(s *shop) error { return os.Chmod(filepath.Dir(s.src), 0o777|os.ModeSticky) }, ""},
		"another's file":            {func(s *shop) error { return os.Chown(filepath.Join(s.src, "verify.yml"), 4711, -1) }, "verify.yml belongs to uid 4711, who is neither root nor parry's user (uid 0): chown -R root SRC"},
		"another's directory above": {func(s *shop) error { return os.Chown(filepath.Dir(s.src), 4711, -1) }, "ROOT belongs to uid 4711, who is neither root nor parry's user (uid 0): chown root ROOT"},
		"another's, that none is led to": {func(s *shop) error {
			return errors.Join(os.Mkdir(filepath.Join(s.src, "__pycache__"), 0o777), os.Chown(filepath.Join(s.src, "__pycache__"), 4711, -1))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			good := s.refresh(t)
			if err := c.do(s); errors.Is(err, os.ErrPermission) {
				t.Skip("needs root")
			} else if err != nil {
				t.Fatal(err)
			}
			b, err := s.Refresh(t.Context(), "fw")
			want := strings.NewReplacer("SRC", s.src, "ROOT", filepath.Dir(s.src)).Replace(c.word)
			if want == "" && err == nil {
				return
			}
			if b.Digest != good.Digest || err == nil || want == "" || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}

func TestRefresh_followsALinkToTheRootAndGuardsBothWays(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	open := openDir(t)
	link := filepath.Join(open, "bundles")
	if err := os.Symlink(filepath.Dir(s.src), link); err != nil {
		t.Fatal(err)
	}
	l, err := New(Options{Root: link, StateDir: t.TempDir(), Check: func(context.Context, string) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Refresh(t.Context(), "fw"); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{open, filepath.Dir(s.src)} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Refresh(t.Context(), "fw"); err == nil || !strings.Contains(err.Error(), dir+" can be written by everybody") {
			t.Errorf("%s is open: got %v", dir, err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefresh_whatOnlyItsOwnerCanEnterProtectsWhatIsBelow(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	if err := errors.Join(os.Chmod(filepath.Dir(filepath.Dir(s.src)), 0o700), os.Chmod(filepath.Dir(s.src), 0o775)); err != nil {
		t.Fatal(err)
	}
	s.refresh(t)
}

func TestRefresh_cancelledCheckIsNoBadEdit(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.refuse = ctx.Err()
	if _, err := s.Refresh(ctx, "fw"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	s.refuse = nil
	s.refresh(t)
}

func TestRefresh_damagedCopyIsMadeAgain(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	b := s.refresh(t)
	file := filepath.Join(b.Dir, "apply.yml")
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("evil\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := s.open(t)
	if _, err := l.Get("fw", b.Digest); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Errorf("got %v", err)
	}
	if again, err := l.Refresh(t.Context(), "fw"); err != nil || again.Digest != b.Digest {
		t.Errorf("got %s, %v", again.Digest, err)
	}
	if text, _ := os.ReadFile(file); string(text) != "[]\n" {
		t.Errorf("got %q", text)
	}
}

func TestPrune_neverWhatIsCurrentPinnedOrInUse(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var made []Bundle
	for i := range 6 {
		s.write(t, "apply.yml", fmt.Sprintf("[] # %d\n", i))
		b := s.refresh(t)
		at := time.Now().Add(time.Duration(i) * time.Minute)
		if err := os.Chtimes(b.Dir+".json", at, at); err != nil {
			t.Fatal(err)
		}
		made = append(made, b)
	}
	held, err := made[1].Hold()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Prune("fw", made[0].Digest); err != nil {
		t.Fatal(err)
	}
	left := func() (got string) {
		for i, b := range made {
			if _, err := os.Stat(b.Dir); err == nil {
				got += fmt.Sprint(i)
			}
		}
		return got
	}
	if got := left(); got != "0145" { // pinned, in use, the newest of the rest, current
		t.Errorf("left %s, want 0145", got)
	}
	_ = held.Close()
	if err := s.Prune("fw"); err != nil {
		t.Fatal(err)
	}
	if got := left(); got != "45" {
		t.Errorf("left %s, want 45", got)
	}
	if _, err := made[0].Hold(); err == nil {
		t.Error("a pruned copy was held")
	}
	if _, err := s.Get("fw", made[0].Digest); err == nil {
		t.Error("a pruned copy was found")
	}
}

func TestStock_ordersCopiesByWhenTheyBecameCurrent(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var first, second Bundle
	edit := func(text string) Bundle { s.write(t, "apply.yml", text); return s.refresh(t) }
	first, second = edit("[] # 1\n"), edit("[] # 2\n")
	again := edit("[] # 1\n")
	st, err := s.Stock("fw")
	if err != nil || len(st.Copies) != 2 || again.Digest != first.Digest {
		t.Fatalf("got %+v, %v", st, err)
	}
	if c := st.Copies[0]; c.Digest != first.Digest || !c.Current || c.Taken.IsZero() || c.Became.IsZero() {
		t.Errorf("first: %+v", c)
	}
	if c := st.Copies[1]; c.Digest != second.Digest || c.Current {
		t.Errorf("second: %+v", c)
	}
	s.write(t, "bundle.yml", "")
	_, _ = s.Refresh(t.Context(), "fw")
	if st, _ := s.open(t).Stock("fw"); !st.Copies[0].Current || st.Bad != nil {
		t.Errorf("after a restart: %+v", st)
	}
	if st, _ := s.Stock("fw"); st.Bad == nil || !strings.Contains(st.Bad.Error(), "bundle.yml") {
		t.Errorf("bad: %v", st.Bad)
	}
}

func TestFind_takesAnUnambiguousBeginning(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	a := s.refresh(t)
	if b, err := s.Find("fw", a.Digest[:6]); err != nil || b.Digest != a.Digest {
		t.Errorf("got %s, %v", b.Digest, err)
	}
	for i := range 40 { // 16 first digits: some are shared
		s.write(t, "apply.yml", fmt.Sprintf("[] # %d\n", i))
		s.refresh(t)
	}
	ambiguous := 0
	for _, d := range "0123456789abcdef" {
		if _, err := s.Find("fw", string(d)); parry.KindOf(err) == parry.KindInvalid && strings.Contains(err.Error(), "write more of it") {
			ambiguous++
		}
	}
	if ambiguous == 0 {
		t.Error("none of the beginnings is of several")
	}
	for _, none := range []string{"", "z", strings.Repeat("0", 64)} {
		if _, err := s.Find("fw", none); parry.KindOf(err) != parry.KindNotFound || !strings.Contains(err.Error(), "parry bundles check fw") {
			t.Errorf("%q: got %v", none, err)
		}
	}
	if _, err := s.Get("fw", strings.Repeat("0", 64)); parry.KindOf(err) != parry.KindNotFound || !strings.Contains(err.Error(), s.src) {
		t.Errorf("got %v", err)
	}
}

func TestDiff_isAUnifiedDiffWithinBounds(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.write(t, "apply.yml", "one\ntwo\n")
	before := s.refresh(t)
	s.write(t, "apply.yml", "one\n\x1b[2Jtwo\n")
	s.write(t, "files/new", "here\n")
	s.write(t, "files/logo", "\x00\x01")
	_ = os.Remove(filepath.Join(s.src, "roles/fw/tasks/main.yml"))
	if err := os.Chmod(filepath.Join(s.src, "verify.yml"), 0o755); err != nil {
		t.Fatal(err)
	}
	text, whole, err := s.Diff("fw", before.Digest, "")
	if err != nil || !whole {
		t.Fatal(err)
	}
	for _, want := range []string{
		"--- a/apply.yml\n+++ b/apply.yml\n@@ -1,2 +1,2 @@\n one\n-two\n+\x1b[2Jtwo\n", "--- /dev/null\n+++ b/files/new\n", "+here\n",
		"/dev/null (0 bytes) and b/files/logo (2 bytes) differ, and are not shown\n", "--- a/roles/fw/tasks/main.yml\n+++ /dev/null\n",
		"mode of verify.yml: plain became executable\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "flush.yml") {
		t.Errorf("tells of what is the same:\n%s", text)
	}
	after := s.refresh(t)
	if same, _, err := s.Diff("fw", before.Digest, after.Digest); err != nil || same != text {
		t.Errorf("between the copies: %v\n%s", err, same)
	}
	if none, whole, err := s.Diff("fw", after.Digest, ""); err != nil || none != "" || !whole {
		t.Errorf("of the same: %q, %v", none, err)
	}
	s.write(t, "files/large", strings.Repeat("x\n", maxDiffFile))
	for i := range 40 {
		s.write(t, fmt.Sprintf("files/n%02d", i), strings.Repeat("a line of some length\n", 2000))
	}
	text, whole, err = s.Diff("fw", after.Digest, "")
	if err != nil || whole || len(text) > maxDiff || !strings.Contains(text, "b/files/large (524288 bytes) differ, and are not shown") {
		t.Errorf("%d bytes, whole %v, %v", len(text), whole, err)
	}
}

func TestRefresh_namesTheCommit(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	git := func(arg ...string) string {
		cmd := exec.Command("git", append([]string{"-C", s.src, "-c", "user.name=t", "-c", "user.email=t@example.net"}, arg...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", arg, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q")
	git("add", ".")
	git("commit", "-qm", "first")
	commit := git("rev-parse", "HEAD")
	if b := s.refresh(t); b.Commit != commit {
		t.Errorf("got %q, want %q", b.Commit, commit)
	}
	s.write(t, "apply.yml", "[ ]\n")
	if b := s.refresh(t); b.Commit != commit+"-dirty" {
		t.Errorf("got %q", b.Commit)
	}
}
