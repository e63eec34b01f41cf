package ansible

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

// hostile lists texts that some layer between a request and the firewall would act on. %s is a canary file.
var hostile = []string{
	"{{ lookup('pipe', 'touch %s') }}",
	"{%% set x = lookup('pipe', 'touch %s') %%}{{ x }}",
	"$(touch %s)", "`touch %s`", "; touch %s #", "| touch %s", "'; touch %s; '", "\"; touch %s; \"",
	"\ufeff{{ lookup('pipe', 'touch %s') }}",
	"\u0000{{ lookup('pipe', 'touch %s') }}\u0000",
	"!unsafe {{ lookup('pipe', 'touch %s') }}",
	"!vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  %s",
	"{\"__ansible_vault\": \"%s\"}",
	"[1, {{ lookup('pipe', 'touch %s') }}, ",
	"@%s", "a\r\nb: %s", "-oProxyCommand=touch %s", "\xff\xfe%s",
}

func TestRun_hostileStringsStayInert(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	dir := t.TempDir()
	var texts []any
	for i, h := range hostile {
		texts = append(texts, fmt.Sprintf(h, filepath.Join(dir, fmt.Sprint("canary", i))))
	}
	got := filepath.Join(t.TempDir(), "got.json")
	s := g.play(t, `
    - name: Use each
      ansible.builtin.debug: {msg: "{{ parry_texts }} {{ parry_map }} {{ test_text }}"}
    - name: Keep
      ansible.builtin.copy: {content: "{{ parry_texts | to_json }}", dest: "`+got+`"}
      delegate_to: localhost
      vars: {ansible_connection: local}
`)
	s.Vars = with(s.Vars, "parry_texts", texts)
	s.Vars = with(s.Vars, "parry_map", map[string]any{"a": map[string]any{"b": texts}})
	s.Vars = with(s.Vars, "test_text", texts[0])
	s.Vars = with(s.Vars, "parry_controller", texts[2])
	g.run(t, s).want(t, parry.RunUnknown, parry.FailNoProof)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("canaries: %v %v", entries, err)
	}
	b, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	var arrived []string
	if err := json.Unmarshal(b, &arrived); err != nil {
		t.Fatal(err)
	}
	for i := range texts {
		if want := strings.ToValidUTF8(texts[i].(string), "��"); i != len(texts)-1 && arrived[i] != want {
			t.Errorf("text %d arrived as %q, want %q", i, arrived[i], want)
		}
	}
}

func TestRun_variablesThatAreNotTheBundlesAreRefused(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	for _, name := range []string{
		"ansible_host", "ansible_connection", "ansible_ssh_common_args", "ansible_python_interpreter", "hostvars", "environment",
		"pfsense_role", "Parry_x", "parry_x{{", "parry-x", "",
	} {
		s := g.spec(t, "")
		s.Vars = with(s.Vars, name, "x")
		if o, err := g.Run(t.Context(), s); err == nil {
			t.Errorf("%q was taken: %+v", name, o)
		}
	}
	for name, v := range map[string]any{
		"marked": map[string]any{"__ansible_unsafe": "x"}, "vault": map[string]any{"__ansible_vault": "x"}, "type": struct{}{},
		"depth": []any{[]any{[]any{[]any{[]any{[]any{[]any{[]any{[]any{}}}}}}}}},
	} {
		s := g.spec(t, "")
		s.Vars = with(s.Vars, "parry_x", v)
		if o, err := g.Run(t.Context(), s); err == nil {
			t.Errorf("%s was taken: %+v", name, o)
		}
	}
}

func TestRun_inheritsNothing(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	env, fds := filepath.Join(t.TempDir(), "env"), filepath.Join(t.TempDir(), "fds")
	s := g.play(t, `
    - ansible.builtin.raw: tr '\0' '\n' < /proc/self/environ > `+env+`; ls -l /proc/self/fd > `+fds+`; cat
      delegate_to: localhost
      vars: {ansible_connection: local}
`)
	g.run(t, s)
	b, err := os.ReadFile(env)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		k, _, _ := strings.Cut(line, "=")
		names = append(names, k)
	}
	known := []string{"PATH", "LANG", "LC_ALL", "LC_CTYPE", "HOME", "ANSIBLE_HOME", "ANSIBLE_CONFIG", "ANSIBLE_LOCAL_TEMP", "PARRY_RUN", "PARRY_EVENT_FD", "PWD", "SHLVL", "_", "OLDPWD"}
	for _, n := range names {
		if !slices.Contains(known, n) {
			t.Errorf("inherited: %s", n)
		}
	}
	list, err := os.ReadFile(fds)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(list), "sshd") || strings.Contains(string(list), ".lock") {
		t.Errorf("descriptors: %s", list)
	}
	for _, f := range []string{"vars.json", "inventory.json", "desired.txt", "events.jsonl", "log.txt", "result.json"} {
		info, err := os.Stat(filepath.Join(g.runDir(s.RunID), f))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
}

func TestRun_twoAtOnce(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	var wg sync.WaitGroup
	for i := range 2 {
		s := g.spec(t, fmt.Sprintf("203.0.113.%d - - - wan -\n", i))
		s.Host.Name = fmt.Sprintf("fw%d", i)
		s.Vars = with(s.Vars, "test_file", fmt.Sprint(g.file, i))
		wg.Go(func() {
			o := g.run(t, s)
			o.want(t, parry.RunSucceeded, "")
			if o.Proof == nil || o.Proof.SHA256 != sum(fmt.Sprintf("203.0.113.%d - - - wan\n", i)) {
				t.Errorf("run %d: proof %+v", i, o.Proof)
			}
		})
	}
	wg.Wait()
}

func TestRun_leaksNoDescriptor(t *testing.T) { // alone: it counts the process's own
	g := newRig(t)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	g.run(t, g.spec(t, "")).want(t, parry.RunSucceeded, "")
	before := count()
	for range 3 {
		g.run(t, g.spec(t, "")).want(t, parry.RunSucceeded, "")
	}
	s := g.spec(t, "")
	s.Deadline = 300 * time.Millisecond
	g.run(t, s).want(t, parry.RunUnknown, parry.FailTimeout)
	s = g.spec(t, "")
	s.Vars = with(s.Vars, "bad name", 1)
	if _, err := g.Run(t.Context(), s); err == nil {
		t.Error("a bad variable was taken")
	}
	g.sshd.Stop()
	g.run(t, g.spec(t, "")).want(t, parry.RunFailed, parry.FailUnreachable)
	if after := count(); after > before {
		t.Errorf("%d descriptors, then %d", before, after)
	}
	var ws syscall.WaitStatus
	if pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil); pid > 0 {
		t.Errorf("zombie %d, %v", pid, err)
	}
}

// TestOrphanHelper is no test: TestLockLane_orphanKeepsIt runs it as another process, and kills that.
func TestOrphanHelper(t *testing.T) {
	args := os.Getenv("PARRY_TEST_ORPHAN")
	if args == "" {
		t.Skip("runs as the child of another test")
	}
	var in struct {
		State, KnownHosts string
		Spec              Spec
	}
	if err := json.Unmarshal([]byte(args), &in); err != nil {
		t.Fatal(err)
	}
	r, err := New(Options{StateDir: in.State, KnownHosts: in.KnownHosts})
	if err != nil {
		t.Fatal(err)
	}
	if in.Spec.Lock, err = r.LockLane("fw1"); err != nil {
		t.Fatal(err)
	}
	_, _ = r.Run(t.Context(), in.Spec)
}

func TestLockLane_orphanKeepsIt(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	s := g.spec(t, "")
	s.Vars = with(s.Vars, "test_sleep", 300)
	args, err := json.Marshal(map[string]any{"State": g.stateDir, "KnownHosts": g.knownHosts, "Spec": s})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestOrphanHelper$")
	cmd.Env = append(os.Environ(), "PARRY_TEST_ORPHAN="+string(args))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	until(t, 20*time.Second, "the run reached the host", func() bool {
		_, err := os.Stat(g.file + ".pid")
		return err == nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	if f, err := g.LockLane("fw1"); !errors.Is(err, ErrOrphan) {
		t.Fatalf("got %v, %v; want ErrOrphan", f, err)
	}
	orphans := marked("PARRY_RUN=" + string(s.RunID))
	for _, pid := range orphans {
		if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); !strings.HasPrefix(string(cmdline), "ssh\x00") {
			continue
		}
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, l := range links {
			if to, _ := os.Readlink(l); strings.HasSuffix(to, ".lock") {
				t.Error("ssh holds the lane's lock: it would outlive the run with it")
			}
		}
	}
	if len(orphans) == 0 {
		t.Fatal("no orphan is left")
	}
	g.sshd.Kill() // the remote program ends, and with it the orphan
	until(t, 20*time.Second, "the orphan is gone", func() bool {
		f, err := g.LockLane("fw1")
		if err != nil {
			return false
		}
		return f.Close() == nil
	})
}

// until waits for an event that nothing announces.
func until(tb testing.TB, within time.Duration, what string, done func() bool) {
	tb.Helper()
	for end := time.Now().Add(within); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("not within %s: %s", within, what)
		}
	}
}

func TestLockLane_oneAtATime(t *testing.T) {
	t.Parallel()
	r, err := New(Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	f, err := r.LockLane("fw1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.LockLane("fw1"); !errors.Is(err, ErrOrphan) {
		t.Errorf("got %v", err)
	}
	other, err := r.LockLane("fw2")
	if err != nil {
		t.Fatal(err)
	}
	_ = other.Close()
	_ = f.Close()
	if f, err = r.LockLane("fw1"); err != nil {
		t.Error(err)
	}
	_ = f.Close()
	if _, err := r.LockLane("../fw1"); err == nil {
		t.Error("a path was taken")
	}
}

func TestPrune_byAgeAndCount(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	r, err := New(Options{StateDir: t.TempDir(), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	dir := func(age time.Duration, ended bool) string {
		id := parry.NewRunID(now.Add(-age))
		d := r.runDir(id)
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if ended {
			if err := os.WriteFile(filepath.Join(d, "result.json"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chtimes(d, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
		return string(id)
	}
	newest, second, third := dir(time.Minute, true), dir(time.Hour, true), dir(2*time.Hour, true)
	old, orphan, forgotten := dir(50*time.Hour, true), dir(3*time.Hour, false), dir(49*time.Hour, false)
	left := func() []string {
		entries, _ := os.ReadDir(r.runsDir())
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	check := func(want ...string) {
		t.Helper()
		slices.Sort(want)
		if got := left(); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if err := r.Prune(0, 0); err != nil {
		t.Fatal(err)
	}
	check(newest, second, third, old, orphan, forgotten)
	if err := r.Prune(48*time.Hour, 0); err != nil {
		t.Fatal(err)
	}
	check(newest, second, third, orphan)
	if err := r.Prune(48*time.Hour, 2); err != nil {
		t.Fatal(err)
	}
	check(newest, second, orphan)
	r.setActive(parry.RunID(newest), true)
	now = now.Add(1000 * time.Hour)
	if err := r.Prune(48*time.Hour, 2); err != nil {
		t.Fatal(err)
	}
	check(newest)
}

func TestPrune_countsEachFirewallForItself(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	r, err := New(Options{StateDir: t.TempDir(), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	run := func(firewall string, age time.Duration) string {
		s := Spec{RunID: parry.NewRunID(now.Add(-age)), Kind: parry.RunVerify, Host: Host{Name: firewall}}
		if err := os.Mkdir(r.runDir(s.RunID), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := r.writeResult(r.runDir(s.RunID), &s, &Outcome{}, now.Add(-age)); err != nil {
			t.Fatal(err)
		}
		return string(s.RunID)
	}
	quiet := run("fw-quiet", 24*time.Hour)
	var failing []string // newest first
	for i := range 9 {
		failing = append(failing, run("fw-failing", time.Duration(i+1)*time.Minute))
	}
	if err := r.Prune(48*time.Hour, 2); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(r.runsDir())
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries { // by name, which is by time
		left = append(left, e.Name())
	}
	if want := []string{quiet, failing[1], failing[0]}; !slices.Equal(left, want) {
		t.Errorf("got %q, want %q", left, want)
	}
}

func TestSyntax_findsWhatIsWrong(t *testing.T) {
	t.Parallel()
	r, err := New(Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	good := testBundle(t, nil)
	if err := r.Syntax(t.Context(), good.Dir); err != nil {
		t.Error(err)
	}
	for _, book := range bundle.Playbooks {
		bad := testBundle(t, map[string]string{book: "- hosts: all\n  tasks:\n    - no.such.module:\n"})
		if err := r.Syntax(t.Context(), bad.Dir); err == nil || !strings.Contains(err.Error(), "no.such.module") || strings.Contains(err.Error(), bad.Dir) {
			t.Errorf("%s: got %v", book, err)
		}
	}
}
