package wazuh_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parry/parry/integrations/internal/siemtest"
)

func TestMain(m *testing.M) { siemtest.Main(m) }

// Names of the protocol's commands, which Wazuh 5 changed.
const (
	add4, delete4     = "add", "delete"
	enable5, disable5 = "enable", "disable"
)

// execd runs active responses as wazuh-execd does (execd.c: ExecdRun, ExecdTimeoutRun, ExecdShutdown): one at a time, with WAZUH_HOME as cwd
// and pipes as stdin and stdout, waiting for the end of each.
type execd struct {
	r       *siemtest.Rig
	home    string
	begin   string            // the command of a new response
	end     string            // and of its end
	timeout bool              // whether the response has a timeout, and so an end
	pending map[string]string // by key: the message that will end it
}

// newExecd installs the rig's script, by copying one file.
func newExecd(r *siemtest.Rig, begin, end string) *execd {
	r.Helper()
	e := &execd{r: r, home: r.Dir + "/ossec", begin: begin, end: end, pending: map[string]string{}}
	if err := os.MkdirAll(e.home+"/active-response/bin", 0o750); err != nil {
		r.Fatal(err)
	}
	r.Install(e.home + "/" + e.script())
	return e
}

// script is the name as execd uses it, relative to its home.
func (e *execd) script() string { return "active-response/bin/" + filepath.Base(e.r.Script) }

// process is a started script, with execd's ends of its pipes.
type process struct {
	*exec.Cmd
	in  *os.File
	out *bufio.Reader
	raw *os.File
}

func (e *execd) start() *process {
	e.r.Helper()
	stdin, in, err := os.Pipe()
	if err != nil {
		e.r.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		e.r.Fatal(err)
	}
	cmd := exec.Command(e.r.Shell, e.script())
	cmd.Dir, cmd.Stdin, cmd.Stdout = e.home, stdin, stdout
	cmd.Env = append([]string{"PARRY_CONF=" + e.r.Conf}, e.r.Env...)
	if err := cmd.Start(); err != nil {
		e.r.Fatal(err)
	}
	stdin.Close()
	stdout.Close()
	return &process{cmd, in, bufio.NewReaderSize(out, 8192), out}
}

func (p *process) write(e *execd, line string) {
	// A script that has refused the message need not read all of it.
	if _, err := io.WriteString(p.in, line+"\n"); err != nil && !isPipe(err) {
		e.r.Error(err)
	}
}

func isPipe(err error) bool { return strings.Contains(err.Error(), syscall.EPIPE.Error()) }

// wait is wpclose, but leaves stdin open until the script has ended by itself: it must not read to the end. After that nobody may hold
// stdout any more, or execd would wait for it in fgets.
func (p *process) wait(e *execd) int {
	e.r.Helper()
	err := p.Wait()
	if deadline := p.raw.SetReadDeadline(time.Now().Add(time.Second)); deadline != nil {
		e.r.Fatal(deadline)
	}
	if rest, err := io.ReadAll(p.out); err != nil || len(rest) > 0 {
		e.r.Errorf("after the script's end its stdout had %q, %v; want nothing more, and nobody who holds it", rest, err)
	}
	p.in.Close()
	p.raw.Close()
	return e.r.Status(err)
}

// run is ExecdRun: the message with begin as its command, the script's keys, and "continue", or "abort" where the key is pending. It returns
// the script's status and what it answered.
func (e *execd) run(message map[string]any) (status int, answer string) {
	e.r.Helper()
	p := e.start()
	p.write(e, with(message, e.begin))
	answer = p.answer(e)
	if answer == "" {
		return p.wait(e), ""
	}
	key := filepath.Base(e.script())
	for _, k := range keys(answer) {
		key += "-" + k
	}
	verdict := "continue"
	if _, there := e.pending[key]; there && e.timeout {
		verdict = "abort"
	} else if e.timeout {
		e.pending[key] = with(message, e.end)
	}
	p.write(e, with(message, verdict))
	return p.wait(e), answer
}

// answer is fgets(response, 8192): one line, or nothing when the script has closed its stdout.
func (p *process) answer(e *execd) string {
	e.r.Helper()
	if err := p.raw.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		e.r.Fatal(err)
	}
	line, err := p.out.ReadSlice('\n')
	if err != nil && (err != io.EOF || len(line) > 0) {
		e.r.Errorf("the script's answer %.200q: %v", line, err)
	}
	return string(line)
}

// keys are those of a check_keys message, as execd's get_keys_from_json finds them.
func keys(answer string) []string {
	var m struct {
		Version *float64
		Origin  *struct{ Name, Module string }
		Command string
		Params  *struct{ Keys []string } `json:"parameters"`
	}
	if err := json.Unmarshal([]byte(answer), &m); err != nil || m.Version == nil || m.Origin == nil || m.Params == nil || m.Command != "check_keys" {
		return nil
	}
	return m.Params.Keys
}

// finish is ExecdTimeoutRun after the timeouts, and ExecdShutdown: each pending response ends, in a process of its own and without keys.
func (e *execd) finish() (statuses []int) {
	e.r.Helper()
	for key, message := range e.pending {
		p := e.start()
		p.write(e, message)
		statuses = append(statuses, p.wait(e))
		delete(e.pending, key)
	}
	return statuses
}

// with is the message with another command, as cJSON prints it.
func with(message map[string]any, command string) string {
	m := map[string]any{}
	for k, v := range message {
		m[k] = v
	}
	m["command"] = command
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// wazuh4 wraps an alert for an active response of Wazuh 4.
func wazuh4(alert map[string]any) map[string]any {
	return map[string]any{"version": 1, "origin": map[string]any{"name": "node01", "module": "wazuh-execd"},
		"parameters": map[string]any{"extra_args": []string{}, "alert": alert, "program": "active-response/bin/parry-wazuh"}}
}

func alertID(a siemtest.Alert) string { return fmt.Sprintf("%d.%d", a.Time.Unix(), 1549653+a.N) }

// sshd is rule 5712's alert, as Wazuh 4 makes it.
func sshd(a siemtest.Alert) map[string]any {
	alert := map[string]any{"timestamp": a.Time.Format("2006-01-02T15:04:05.000-0700"), "id": alertID(a),
		"rule": map[string]any{"level": 10, "id": "5712", "description": "sshd: brute force trying to get access to the system. Non existent user.",
			"groups": []string{"syslog", "sshd", "authentication_failures"}, "firedtimes": 1},
		"agent": map[string]any{"id": "003", "name": "web01", "ip": "10.0.0.5"}, "manager": map[string]any{"name": "node01"},
		"full_log": `Oct 1 sshd[1]: Invalid user "srcip":"8.8.8.8"} from ` + a.Source, "decoder": map[string]any{"parent": "sshd", "name": "sshd"},
		"data": map[string]any{"srcuser": "admin"}, "location": "/var/log/auth.log"}
	if a.Source != "" {
		alert["data"] = map[string]any{"srcip": a.Source, "srcport": "40022", "srcuser": "admin"}
	}
	return alert
}

// finding is a message of Wazuh 5's execd: the alert itself, in its own schema.
func finding(a siemtest.Alert) map[string]any {
	message := map[string]any{"@timestamp": a.Time.UTC().Format("2006-01-02T15:04:05.000Z"),
		"event": map[string]any{"kind": "event", "original": "sshd[1]: Invalid user from " + a.Source},
		"wazuh": map[string]any{"agent": map[string]any{"id": "003", "name": "web01", "host": map[string]any{"ip": []string{"10.0.0.5"}}},
			"event": map[string]any{"id": alertID(a)}, "rule": map[string]any{"id": "b7a1f2de-8d5c", "title": "SSH login failure", "level": "high"},
			"active_response": map[string]any{"name": "parry", "executable": "parry-wazuh", "type": "stateful", "stateful_timeout": 60}},
		"process": map[string]any{"pid": 1, "name": "sshd"}}
	if a.Source != "" {
		message["source"] = map[string]any{"ip": a.Source, "port": 40022}
	}
	return message
}

// fire runs one alert and its end in an execd of its own.
func fire(begin, end string, message func(siemtest.Alert) map[string]any) func(*siemtest.Rig, siemtest.Alert) int {
	return func(r *siemtest.Rig, a siemtest.Alert) int {
		e := newExecd(r, begin, end)
		if a.Delete {
			e.pending["-"] = with(message(a), end)
			return e.finish()[0]
		}
		status, _ := e.run(message(a))
		return status
	}
}

var none = []string{"", "-", "0.0.0.0", "::"}

func TestSuite_execd4(t *testing.T) {
	t.Parallel()
	siemtest.Suite(t, siemtest.Trigger{Script: "parry-wazuh", Origin: "wazuh", ID: alertID, Deletes: true, Timed: true, Missing: none,
		Fire: fire(add4, delete4, func(a siemtest.Alert) map[string]any { return wazuh4(sshd(a)) })})
}

func TestSuite_execd5(t *testing.T) {
	t.Parallel()
	siemtest.Suite(t, siemtest.Trigger{Script: "parry-wazuh", Origin: "wazuh", ID: alertID, Deletes: true, Timed: true, Missing: none,
		Fire: fire(enable5, disable5, finding)})
}

// Nothing may come before the keys, which are one line: execd takes what it reads first for the keys, and aborts for every later attacker.
func TestExecd_oneLineOfKeysAndNothingElse(t *testing.T) {
	siemtest.InEachShell(t, "parry-wazuh", func(r *siemtest.Rig) {
		s := r.Stub()
		for _, protocol := range []struct {
			e       *execd
			message map[string]any
		}{
			{newExecd(r, add4, delete4), wazuh4(sshd(siemtest.Alert{N: 1, Source: "2001:DB8::7", Time: time.Now()}))},
			{newExecd(r, enable5, disable5), finding(siemtest.Alert{N: 2, Source: "2001:DB8::7", Time: time.Now()})},
		} {
			status, answer := protocol.e.run(protocol.message)
			want := `{"version":1,"origin":{"name":"parry-wazuh","module":"active-response"},"command":"check_keys","parameters":{"keys":["2001:DB8::7"]}}` + "\n"
			if status != 0 || answer != want {
				r.Errorf("status %d, answer %q; want 0 and %q", status, answer, want)
			}
		}
		r.Sent()
		if n := len(s.Accepted()); n != 2 {
			r.Errorf("%d accepted, want 2", n)
		}
	})
}

func TestExecd_abortSendsNothing(t *testing.T) {
	siemtest.InEachShell(t, "parry-wazuh", func(r *siemtest.Rig) {
		s := r.Service()
		e := newExecd(r, add4, delete4)
		e.timeout = true
		for n, source := range []string{r.Address(1), r.Address(1), r.Address(2)} {
			if status, _ := e.run(wazuh4(sshd(siemtest.Alert{N: n, Source: source, Time: time.Now()}))); status != 0 {
				r.Errorf("status %d, log %q", status, r.Log())
			}
		}
		r.Sent()
		r.WantLog("abort: execd holds " + r.Address(1))
		if one, two := s.Block(r.Address(1)), s.Block(r.Address(2)); one.Count != 1 || two.Count != 1 {
			r.Errorf("counted %d and %d requests, want 1 and 1", one.Count, two.Count)
		}
		// When execd stops it ends everything; parry goes on.
		for _, status := range e.finish() {
			if status != 0 {
				r.Errorf("delete: status %d", status)
			}
		}
		r.WantLog("delete of " + r.Address(1) + " ignored")
		r.Idle()
		if b := s.Block(r.Address(1)); !b.EndedAt.IsZero() {
			r.Errorf("the stop of execd ended %+v", b)
		}
	})
}

// What execd must never see as keys: the script says why in syslog, answers nothing, and execd goes on.
func TestExecd_whatIsNotUnderstoodIsAnsweredByNothing(t *testing.T) {
	good := with(wazuh4(sshd(siemtest.Alert{N: 1, Source: "203.0.113.7", Time: time.Now()})), add4)
	huge := sshd(siemtest.Alert{N: 2, Source: "203.0.113.7", Time: time.Now()})
	huge["full_log"] = strings.Repeat("x", 70000)
	cut := with(wazuh4(huge), add4)[:65536] // as execd's socket cuts it
	deep := strings.Replace(good, `"extra_args":[]`, `"extra_args":`+strings.Repeat("[", 30000)+strings.Repeat("]", 30000), 1)
	siemtest.InEachShell(t, "parry-wazuh", func(r *siemtest.Rig) {
		s := r.Stub()
		e := newExecd(r, add4, delete4)
		for what, line := range map[string]string{
			"nothing": "", "no JSON": "add 203.0.113.7", "cut": cut, "deep": deep, "endless": `{"a":"` + strings.Repeat("x", 200000),
			"two values":    strings.Replace(good, `"data":{`, `"data":{"srcip":"203.0.113.8"},"data":{`, 1),
			"more after it": good + "{}", "no command": strings.Replace(good, `"command":"add"`, `"command":null`, 1),
			"another command": strings.Replace(good, `"add"`, `"restart"`, 1), "control": strings.Replace(good, "203.0.113.7", "203.0.113.7\x01", 1),
			"address in text only": strings.Replace(good, `"srcip":"203.0.113.7"`, `"note":"\"srcip\":\"203.0.113.7\""`, 1),
			"name with a dot":      strings.Replace(good, `"data":{"srcip":"203.0.113.7"`, `"data.srcip":"203.0.113.7","data":{"x":""`, 1),
			"deeper":               strings.Replace(good, `"srcip":"203.0.113.7"`, `"x":{"srcip":"203.0.113.7"}`, 1),
			"list":                 strings.Replace(good, `"srcip":"203.0.113.7"`, `"srcip":["203.0.113.7"]`, 1),
			"only the agent's":     strings.Replace(good, "203.0.113.7", "", 1),
			"agent's own":          strings.Replace(good, "203.0.113.7", "10.0.0.5", 1),
		} {
			p := e.start()
			p.write(e, line)
			if answer := p.answer(e); answer != "" {
				r.Errorf("%s: answered %q", what, answer)
				p.in.Close()
			}
			if status := p.wait(e); status == 0 {
				r.Errorf("%s: status 0", what)
			}
		}
		r.Idle()
		if s.Attempts() != 0 || len(r.Files("queue")) != 0 {
			r.Errorf("%d requests, waiting %v", s.Attempts(), r.Files("queue"))
		}
	})
}

// execd that dies, or says what it never says, between the keys and its answer: no block, and a line in syslog.
func TestExecd_noContinueNoBlock(t *testing.T) {
	siemtest.InEachShell(t, "parry-wazuh", func(r *siemtest.Rig) {
		s := r.Stub()
		e := newExecd(r, add4, delete4)
		message := wazuh4(sshd(siemtest.Alert{N: 1, Source: "203.0.113.7", Time: time.Now()}))
		for _, reply := range []string{"", "garbage\n", with(message, "add") + "\n"} {
			p := e.start()
			p.write(e, with(message, add4))
			if p.answer(e) == "" {
				r.Fatalf("no keys; log %q", r.Log())
			}
			if _, err := io.WriteString(p.in, reply); err != nil {
				r.Fatal(err)
			}
			p.in.Close()
			if status := p.wait(e); status != 1 {
				r.Errorf("reply %.40q: status %d, want 1", reply, status)
			}
		}
		r.Idle()
		if s.Attempts() != 0 || len(r.Files("queue")) != 0 {
			r.Errorf("%d requests, waiting %v", s.Attempts(), r.Files("queue"))
		}
	})
}

// A message that is as large as execd's can be, full of what looks like an address to a search in its text.
func TestExecd_hugeAndMisleading(t *testing.T) {
	siemtest.InEachShell(t, "parry-wazuh", func(r *siemtest.Rig) {
		s := r.Service()
		a := siemtest.Alert{N: 1, Source: r.Address(7), Time: time.Now()}
		alert := sshd(a)
		alert["full_log"] = strings.Repeat(`"},"data":{"srcip":"8.8.8.8"}}\ é`, 1200)
		alert["previous_output"] = strings.Repeat("}]\u2028\n", 1000)
		alert["rule"].(map[string]any)["description"] = "it's \"q\" \\ $(id) `id` é 😀\n<b>" + strings.Repeat("é", 2000)
		alert["data"].(map[string]any)["extra"] = map[string]any{"srcip": "8.8.8.8", "data": []any{map[string]any{"srcip": "8.8.8.8"}}}
		start := time.Now()
		if status, _ := newExecd(r, add4, delete4).run(wazuh4(alert)); status != 0 {
			r.Fatalf("status %d, log %q", status, r.Log())
		}
		if took := time.Since(start); took > 5*time.Second {
			r.Errorf("execd waited %v", took)
		}
		r.Sent()
		b := s.Block(a.Source)
		want := "Wazuh rule 5712, level 10: it's \"q\" \\ $(id) `id` é 😀\n<b>ééé"
		if got := s.Evidence(b)[0]; !strings.HasPrefix(got.Reason, want) || len([]rune(got.Reason)) > 1024 {
			r.Errorf("reason = %q, want it to begin with %q", got.Reason, want)
		}
	})
}
