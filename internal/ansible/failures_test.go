package ansible

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/testenv"
)

func (o *Outcome) want(tb testing.TB, state parry.RunState, failure parry.Failure, words ...string) {
	tb.Helper()
	if o.State != state || o.Failure != failure {
		tb.Errorf("got %s, %s; want %s, %s: %q\n%s", o.State, o.Failure, state, failure, o.Message, o.LogTail)
	}
	for _, w := range words {
		if !strings.Contains(o.Message, w) {
			tb.Errorf("message %q does not say %q", o.Message, w)
		}
	}
}

func TestRun_closedPortIsUnreachable(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.sshd.Stop()
	o := g.run(t, g.spec(t, ""))
	o.want(t, parry.RunFailed, parry.FailUnreachable, "Connection refused")
	if o.Stats.Unreachable != 1 {
		t.Errorf("got %+v", o.Stats)
	}
}

func TestRun_wrongHostKeyIsRefused(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	other := filepath.Join(t.TempDir(), "other")
	testenv.Keygen(t, other)
	pub, err := os.ReadFile(other + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	for name, pinned := range map[string]string{"another": fmt.Sprintf("[127.0.0.1]:%d %s", g.host.Port, pub), "none": ""} {
		if err := os.WriteFile(g.sshd.KnownHosts, []byte(pinned), 0o600); err != nil {
			t.Fatal(err)
		}
		o := g.run(t, g.spec(t, ""))
		o.want(t, parry.RunFailed, parry.FailHostKey)
		if got, _ := os.ReadFile(g.sshd.KnownHosts); string(got) != pinned {
			t.Errorf("%s: known_hosts was changed to %q", name, got)
		}
	}
}

func TestRun_refusedKeyIsAuthentication(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.host.KeyFile = filepath.Join(t.TempDir(), "other")
	testenv.Keygen(t, g.host.KeyFile)
	g.run(t, g.spec(t, "")).want(t, parry.RunFailed, parry.FailAuthentication, "Permission denied")
	g.host.KeyFile += ".missing"
	g.run(t, g.spec(t, "")).want(t, parry.RunFailed, parry.FailAuthentication, "Permission denied")
}

// TestRun_aRefusalIsHeardToTheEnd: an ssh that was refused closes its input some time before it ends. Why it was is told all the same.
func TestRun_aRefusalIsHeardToTheEnd(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	ssh := filepath.Join(t.TempDir(), "ssh")
	script := "#!/bin/sh\nexec <&-\nsleep 0.3\necho 'Host key verification failed.' >&2\nexit 255\n"
	if err := os.WriteFile(ssh, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s := g.spec(t, strings.Repeat("203.0.113.7 - - - wan -\n", 10_000)) // more than a pipe holds
	s.Bundle = testBundle(t, map[string]string{"apply.yml": "- hosts: all\n  gather_facts: false\n  vars: {ansible_ssh_executable: " + ssh + "}\n  tasks:\n    - test_firewall:\n"})
	g.run(t, s).want(t, parry.RunFailed, parry.FailHostKey, "Host key verification failed")
}

// late is how long after its deadline a run may return: on two busy cores.
const late = 2500 * time.Millisecond

func TestRun_silentListenerIsEndedAtTheDeadline(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	s := g.spec(t, "")
	s.Host.Port = ln.Addr().(*net.TCPAddr).Port
	s.Deadline = 8 * time.Second
	o := g.run(t, s)
	o.want(t, parry.RunUnknown, parry.FailTimeout, "deadline of 8s")
	if o.Wall < s.Deadline || o.Wall > s.Deadline+late {
		t.Errorf("it took %s", o.Wall)
	}
	if o.Task != "Converge" {
		t.Errorf("got task %q", o.Task)
	}
	if _, err := os.Stat(filepath.Join(o.Dir, "tmp")); err == nil {
		t.Error("temporary files are left")
	}
}

func TestRun_frozenRemoteIsEndedAtTheDeadline(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	s := g.spec(t, "")
	s.Vars = with(s.Vars, "test_sleep", 60)
	s.Deadline = 5 * time.Second
	go func() {
		for range 400 {
			if _, err := os.Stat(g.file + ".pid"); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		g.sshd.Freeze()
	}()
	o := g.run(t, s)
	o.want(t, parry.RunUnknown, parry.FailTimeout)
	if o.Wall > s.Deadline+late {
		t.Errorf("it took %s", o.Wall)
	}
}

func TestRun_connectionLostInTheMiddleIsUnknown(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	s := g.spec(t, "")
	s.Vars = with(s.Vars, "test_sleep", 60)
	go func() {
		for range 1000 {
			if _, err := os.Stat(g.file + ".pid"); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		g.sshd.Cut()
	}()
	g.run(t, s).want(t, parry.RunUnknown, parry.FailUnreachable)
}

func TestRun_cancelEndsIt(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	s := g.spec(t, "")
	s.Vars = with(s.Vars, "test_sleep", 60)
	ctx, cancel := context.WithCancel(context.Background())
	var cancelled time.Time
	go func() {
		for range 1000 {
			if _, err := os.Stat(g.file + ".pid"); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancelled = time.Now()
		cancel()
	}()
	o := g.runCtx(ctx, t, s)
	o.want(t, parry.RunUnknown, parry.FailCancelled)
	if took := time.Since(cancelled); took > late {
		t.Errorf("it took %s after the cancel", took)
	}
}

func TestRun_processesThatEscapeTheGroupAreEnded(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	pidfile := filepath.Join(t.TempDir(), "pid")
	s := g.play(t, `
    - name: Escape
      ansible.builtin.shell: setsid sh -c 'echo $$ > `+pidfile+`; exec sleep 300' > /dev/null 2>&1 & sleep 0.3
      delegate_to: localhost
      vars: {ansible_connection: local}
`)
	g.run(t, s).want(t, parry.RunUnknown, parry.FailNoProof) // g.run looks for what is left
	if b, err := os.ReadFile(pidfile); err != nil || len(b) == 0 {
		t.Fatal("nothing escaped", err)
	}
}

func TestRun_processesThatIgnoreTheirEndAreKilled(t *testing.T) {
	t.Parallel()
	g := newRig(t, func(o *Options) { o.Grace = 500 * time.Millisecond })
	s := g.play(t, "    - name: Converge\n      test_stubborn:\n")
	plugin := `
import signal, subprocess
from ansible.plugins.action import ActionBase
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        subprocess.run(['sh', '-c', 'trap "" INT TERM HUP; while :; do sleep 1; done'])
`
	if err := os.WriteFile(filepath.Join(s.Bundle.Dir, "action_plugins/test_stubborn.py"), []byte(plugin), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Deadline = 2 * time.Second
	o := g.run(t, s)
	o.want(t, parry.RunUnknown, parry.FailTimeout)
	if o.Wall > s.Deadline+late {
		t.Errorf("it took %s", o.Wall)
	}
}

func TestRun_brokenPlaybooks(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	for name, c := range map[string]struct{ book, word string }{
		"YAML":           {"- hosts: all\n  tasks:\n    - name: [\n", "line"},
		"missing module": {"- hosts: all\n  gather_facts: false\n  tasks:\n    - no.such.module:\n", "no.such.module"},
		"missing role":   {"- hosts: all\n  gather_facts: false\n  roles: [absent]\n", "absent"},
		"other hosts":    {"- hosts: others\n  gather_facts: false\n  tasks:\n    - ansible.builtin.raw: exit 0\n", "hosts: all"},
		"empty":          {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := g.spec(t, "")
			s.Bundle = testBundle(t, map[string]string{"apply.yml": c.book})
			g.run(t, s).want(t, parry.RunFailed, parry.FailPlaybook, c.word)
		})
	}
}

func TestRun_hostThatCannotBeUsedIsInventory(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	s := g.spec(t, "")
	s.Host = Host{Name: "fw9"}
	g.run(t, s).want(t, parry.RunFailed, parry.FailInventory, "fw9")
	s = g.spec(t, "")
	s.Host.Vars = map[string]any{"ansible_ssh_common_args": "-o ProxyCommand=id"}
	g.run(t, s).want(t, parry.RunFailed, parry.FailInventory, "ansible_ssh_common_args")
	s = g.spec(t, "")
	s.Host.Name = "fw1{{ 7*7 }}"
	g.run(t, s).want(t, parry.RunFailed, parry.FailInventory)
}

func TestRun_failingTasks(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	for name, c := range map[string]struct {
		tasks   string
		state   parry.RunState
		failure parry.Failure
		task    string
		words   []string
	}{
		"by exit code": {"    - name: Try\n      ansible.builtin.raw: echo oh; echo no >&2; exit 3\n",
			parry.RunFailed, parry.FailTask, "Try", []string{"non-zero return code", "no"}},
		"ignored, then no proof": {"    - name: Try\n      ansible.builtin.raw: exit 3\n      ignore_errors: true\n",
			parry.RunUnknown, parry.FailNoProof, "Try", []string{"set_stats"}},
		"rescued, then no proof": {"    - block:\n        - ansible.builtin.raw: exit 3\n      rescue:\n        - name: Mend\n          ansible.builtin.raw: exit 0\n",
			parry.RunUnknown, parry.FailNoProof, "Mend", nil},
		"by assertion": {"    - name: Refuse\n      ansible.builtin.fail: {msg: \"not {{ 'with' }} me\"}\n",
			parry.RunFailed, parry.FailTask, "Refuse", []string{"not with me"}},
		"bad proof": {"    - ansible.builtin.set_stats: {data: {parry: {sha256: nonsense, count: 1}}, per_host: true, aggregate: false}\n",
			parry.RunUnknown, parry.FailNoProof, "", []string{"sha256"}},
		"proof without count": {"    - ansible.builtin.set_stats: {data: {parry: {sha256: " + sum("") + "}}, per_host: true, aggregate: false}\n",
			parry.RunUnknown, parry.FailNoProof, "", []string{"count"}},
		"reject of a line that was not sent": {"    - ansible.builtin.set_stats: {data: {parry: {sha256: " + sum("") +
			", count: 0, rejected: [{line: 1, code: malformed}]}}, per_host: true, aggregate: false}\n",
			parry.RunUnknown, parry.FailNoProof, "", []string{"rejects line"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := g.run(t, g.play(t, c.tasks))
			o.want(t, c.state, c.failure, c.words...)
			if c.task != "" && o.Task != c.task {
				t.Errorf("got task %q, want %q", o.Task, c.task)
			}
		})
	}
}

func TestRun_failureCodesOfTheContract(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	s := g.play(t, "    - name: Converge\n      test_answer:\n")
	plugin := `
from ansible.plugins.action import ActionBase
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return dict(failed=True, msg='run parry firewalls approve', parry=dict(failure='stale_epoch', epoch=12))
`
	if err := os.WriteFile(filepath.Join(s.Bundle.Dir, "action_plugins/test_answer.py"), []byte(plugin), 0o644); err != nil {
		t.Fatal(err)
	}
	o := g.run(t, s)
	o.want(t, parry.RunFailed, parry.FailStaleEpoch, "run parry firewalls approve")
	if fmt.Sprint(o.Details["epoch"]) != "12" {
		t.Errorf("got details %v", o.Details)
	}
}

func TestRun_tenThousandRejectsArrive(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	s := g.play(t, "    - name: Converge\n      test_answer:\n")
	plugin := `
from ansible.plugins.action import ActionBase
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return dict(changed=True, parry=dict(sha256='` + sum("") + `', count=0,
            rejected=[dict(line=n + 1, code='destination_is_firewall') for n in range(10000)]))
`
	if err := os.WriteFile(filepath.Join(s.Bundle.Dir, "action_plugins/test_answer.py"), []byte(plugin), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Desired = bytes.Repeat([]byte("203.0.113.7 - - - wan -\n"), 10000)
	o := g.run(t, s)
	o.want(t, parry.RunSucceeded, "")
	if len(o.Rejected) != 10000 || o.Rejected[9999] != (Rejection{10000, "destination_is_firewall"}) {
		t.Errorf("got %d rejects", len(o.Rejected))
	}
}

func TestRun_outputIsCappedAndDrained(t *testing.T) {
	t.Parallel()
	g := newRig(t, func(o *Options) { o.OutputLimit = 1 << 20 })
	s := g.play(t, `
    - name: Chatter
      ansible.builtin.raw: yes 'a line of some length to fill the log' | head -c 10000000; head -c 1000000 /dev/zero | tr '\0' x; echo; echo the end; exit 4
`)
	o := g.run(t, s)
	o.want(t, parry.RunFailed, parry.FailTask)
	if len(o.Message) > maxMessage+8 || !strings.Contains(o.LogTail, "PLAY RECAP") {
		t.Errorf("got a message of %d bytes, tail %q", len(o.Message), o.LogTail)
	}
	f, err := g.Log(s.RunID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	info, _ := f.Stat()
	if info.Size() > 1<<20+1024 || info.Size() < 1<<19 {
		t.Errorf("the log is %d bytes", info.Size())
	}
	events, err := g.Events(s.RunID)
	if err != nil || len(events) < 3 || events[len(events)-1].Event != "stats" {
		t.Errorf("got %d events, %v", len(events), err)
	}
	for _, e := range events {
		if len(e.text("stdout")) > 9000 {
			t.Errorf("a field is %d bytes", len(e.text("stdout")))
		}
	}
}
