package ossim_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const token = "parry_t01JTEST_s3cretS3cretS3cret"

// body is what parry takes; the decoder refuses anything else.
type body struct {
	Source          string   `json:"source"`
	Destination     string   `json:"destination"`
	DestinationPort int      `json:"destination_port"`
	Protocol        string   `json:"protocol"`
	Firewalls       []string `json:"firewalls"`
	TTL             string   `json:"ttl"`
	Reason          string   `json:"reason"`
	Origin          string   `json:"origin"`
	AlertID         string   `json:"alert_id"`
	RuleID          string   `json:"rule_id"`
	EventTime       string   `json:"event_time"`
}

// call is one request as parry received it.
type call struct {
	Body body
	Key  string
}

// rig is an OSSIM server with the script, and a parry that can be up, down or in a mood.
type rig struct {
	*testing.T
	shell, script, dir, spool, conf string
	env                             []string
	addr                            string
	cert                            tls.Certificate
	server                          *httptest.Server
	syslog                          *net.UnixConn

	mu     sync.Mutex
	mood   func(http.ResponseWriter, body) bool // true: it has answered
	calls  []call                               // that were accepted
	tried  int
	strays []string // what no client of parry may send
	lines  []string // of syslog
}

var address atomic.Int32

// inEachShell runs the specification under the shells that OSSIM hosts have as /bin/sh and bash.
func inEachShell(t *testing.T, spec func(r *rig)) {
	t.Helper()
	t.Parallel()
	for _, shell := range []string{"dash", "bash"} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			spec(newRig(t, shell))
		})
	}
}

func newRig(t *testing.T, shell string) *rig {
	t.Helper()
	script, err := filepath.Abs("parry-ossim")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "ossim") // a short path: a socket lies in it
	if err != nil {
		t.Fatal(err)
	}
	n := address.Add(1)
	r := &rig{T: t, shell: shell, script: script, dir: dir, spool: dir + "/spool", conf: dir + "/conf",
		addr: fmt.Sprintf("127.94.%d.%d:8443", os.Getpid()%250, n)}
	r.cert = r.selfSigned()
	r.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.cert.Certificate[0]})))
	r.write("token", token+"\n")
	r.configure("")
	r.syslog, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/log", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	go r.listen()
	r.up()
	t.Cleanup(func() {
		r.down()
		r.idle()
		r.syslog.Close()
		os.RemoveAll(dir)
		for _, s := range r.strays {
			t.Errorf("parry received %s", s)
		}
	})
	return r
}

func (r *rig) selfSigned() tls.Certificate {
	r.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.Fatal(err)
	}
	host, _, _ := net.SplitHostPort(r.addr)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "parry"}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.ParseIP(host)},
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		r.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (r *rig) write(name, content string) {
	r.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o600); err != nil {
		r.Fatal(err)
	}
}

// configure writes the configuration; what more says comes last and wins.
func (r *rig) configure(more string) {
	r.Helper()
	r.write("conf", fmt.Sprintf("# a comment\n\n\t url =\thttps://%s/ \t\ntoken_file=%s/token\nca_file=%[2]s/ca.pem\nspool=%s\nsyslog_socket=%[2]s/log\n%[4]s",
		r.addr, r.dir, r.spool, more))
}

func (r *rig) up() {
	r.Helper()
	ln, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.Fatal(err)
	}
	r.server = &httptest.Server{Listener: ln, TLS: &tls.Config{Certificates: []tls.Certificate{r.cert}, MinVersion: tls.VersionTLS12,
		MaxVersion: tls.VersionTLS12}, Config: &http.Server{Handler: http.HandlerFunc(r.serve), ErrorLog: log.New(io.Discard, "", 0)}}
	r.server.StartTLS()
}

func (r *rig) down() {
	if r.server != nil {
		r.server.CloseClientConnections()
		r.server.Close()
		r.server = nil
	}
}

// serve is POST /api/v1/blocks.
func (r *rig) serve(w http.ResponseWriter, req *http.Request) {
	raw, _ := io.ReadAll(req.Body)
	var b body
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	err := dec.Decode(&b)
	key := req.Header.Get("Idempotency-Key")
	r.mu.Lock()
	r.tried++
	mood := r.mood
	if err != nil || req.Method != http.MethodPost || req.URL.Path != "/api/v1/blocks" || key == "" ||
		req.Header.Get("Content-Type") != "application/json" {
		r.strays = append(r.strays, fmt.Sprintf("%s %s %v %q (%v)", req.Method, req.URL.Path, req.Header, raw, err))
	}
	r.mu.Unlock()
	if req.Header.Get("Authorization") != "Bearer "+token {
		problem(w, http.StatusUnauthorized, "the token is not known")
		return
	}
	if mood != nil && mood(w, b) {
		return
	}
	r.mu.Lock()
	r.calls = append(r.calls, call{b, key})
	id := fmt.Sprintf("b-%026d", len(r.calls))
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"id":%q,"source":%q}`, id, b.Source)
}

func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"type": "urn:parry:problem:test", "status": status, "detail": detail})
}

func (r *rig) setMood(mood func(http.ResponseWriter, body) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mood = mood
}

func (r *rig) accepted() []call {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

func (r *rig) attempts() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tried
}

// command is the script under the rig's shell, started as OSSIM does: cwd / and nothing on stdin.
func (r *rig) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), r.shell, append([]string{r.script}, args...)...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PARRY_CONF=" + r.conf}, r.env...)
	return cmd
}

// run calls the script and returns its exit status and what it said.
func (r *rig) run(args ...string) (int, string) {
	r.Helper()
	cmd := r.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return r.status(cmd.Run()), out.String()
}

func (r *rig) status(err error) int {
	r.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.Fatal(err)
	}
	if exit != nil {
		return exit.ExitCode()
	}
	return 0
}

func (r *rig) mustRun(args ...string) {
	r.Helper()
	if status, out := r.run(args...); status != 0 {
		r.Fatalf("parry-ossim %q: status %d, %s", args, status, out)
	}
}

// until polls for what a background sender does.
func (r *rig) until(what string, met func() bool) {
	r.Helper()
	for end := time.Now().Add(30 * time.Second); !met(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("not within 30 s: %s (accepted %d, waiting %v, refused %v, log %q)", what, len(r.accepted()), r.files("queue"),
				r.files("refused"), r.log())
		}
	}
}

// idle waits until no sender is at work.
func (r *rig) idle() {
	r.Helper()
	r.until("the sender ends", func() bool {
		f, err := os.Open(r.spool + "/sending.lock")
		if err != nil {
			return true
		}
		defer f.Close()
		return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
	})
}

func (r *rig) untilAccepted(n int) []call {
	r.Helper()
	r.until(fmt.Sprintf("%d accepted", n), func() bool { return len(r.accepted()) >= n && len(r.files("queue")) == 0 })
	r.idle()
	return r.accepted()
}

func (r *rig) files(dir string) []string {
	entries, _ := os.ReadDir(filepath.Join(r.spool, dir))
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// listen is syslog.
func (r *rig) listen() {
	buf := make([]byte, 4096)
	for {
		n, err := r.syslog.Read(buf)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.lines = append(r.lines, string(buf[:n]))
		r.mu.Unlock()
	}
}

// log takes every line that reached syslog since the last call.
func (r *rig) log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := r.lines
	r.lines = nil
	return lines
}

// wantLog wants exactly one line with all parts, of those that reached syslog since the last call.
func (r *rig) wantLog(parts ...string) {
	r.Helper()
	var lines []string
	matching := func() (n int) {
		lines = append(lines, r.log()...)
		for _, l := range lines {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(l, p) }) {
				n++
			}
		}
		return n
	}
	r.until(fmt.Sprintf("a line in syslog with %q", parts), func() bool { return matching() > 0 })
	if n := matching(); n != 1 {
		r.Errorf("want one line in syslog with %q, got %d in %q", parts, n, lines)
	}
}

func sources(calls []call) []string {
	out := make([]string, 0, len(calls))
	for _, c := range calls {
		out = append(out, c.Body.Source)
	}
	return out
}

const event = "0f3c1e52-7a1b-11e7-9a3b-000c29aabbcc"

func TestCall_asksForTheBlock(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.configure("ttl=4h\nfirewalls=edge, fw-b\norigin=ossim-hq\n")
		before := time.Now().Truncate(time.Second)
		status, out := r.run("--src-ip=203.0.113.7", "--dst-ip=198.51.100.10", "--dst-port=22", "--protocol=TCP", "--plugin-id=1505",
			"--plugin-sid=30001", "--event-id="+event, "--backlog-id=", "--risk=8", "--priority=4", "--reliability=10", "--sensor=192.0.2.5",
			"--date=2017-08-05", "10:11:12", "[UTC]")
		if status != 0 || out != "" {
			r.Fatalf("status %d, said %q", status, out)
		}
		calls := r.untilAccepted(1)
		when, err := time.Parse(time.RFC3339, calls[0].Body.EventTime)
		if err != nil || when.Before(before) || when.After(time.Now()) {
			r.Errorf("event_time = %q, want the time of the call", calls[0].Body.EventTime)
		}
		calls[0].Body.EventTime = ""
		want := body{Source: "203.0.113.7", Destination: "198.51.100.10", DestinationPort: 22, Protocol: "tcp",
			Firewalls: []string{"edge", "fw-b"}, TTL: "4h", Origin: "ossim-hq", AlertID: event, RuleID: "1505:30001",
			Reason: "OSSIM event 1505:30001, risk 8, priority 4, reliability 10, sensor 192.0.2.5, at 2017-08-05 10:11:12 [UTC]"}
		if diff := cmp.Diff(want, calls[0].Body); diff != "" {
			r.Errorf("body (-want +got):\n%s", diff)
		}
		if !strings.HasPrefix(calls[0].Key, event) {
			r.Errorf("Idempotency-Key = %q, want it from the event's id", calls[0].Key)
		}
		r.wantLog("parry-ossim", "accepted 203.0.113.7 b-00000000000000000000000001")
	})
}

func TestCall_takesThePositionalFormOfTheOldScript(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.mustRun("203.0.113.7", "198.51.100.10", "22")
		r.mustRun("203.0.113.8", "0.0.0.0", "0")
		r.mustRun("203.0.113.9")
		want := []body{{Source: "203.0.113.7", Destination: "198.51.100.10", DestinationPort: 22}, {Source: "203.0.113.8"},
			{Source: "203.0.113.9"}}
		for i, c := range r.untilAccepted(3) {
			got := body{Source: c.Body.Source, Destination: c.Body.Destination, DestinationPort: c.Body.DestinationPort}
			if diff := cmp.Diff(want[i], got); diff != "" {
				r.Errorf("body (-want +got):\n%s", diff)
			}
		}
	})
}

func TestCall_leavesOutWhatOSSIMDoesNotKnow(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.mustRun("--src-ip=2001:DB8::7", "--dst-ip=", "--dst-port=0", "--protocol=host_event", "--plugin-id=", "--plugin-sid=", "--event-id=",
			"--backlog-id=", "--risk=", "--priority=", "--reliability=", "--sensor=", "--date=")
		r.mustRun("--src-ip=203.0.113.8", "--dst-ip=0.0.0.0", "--dst-port=8", "--protocol=icmp")
		want := []body{{Source: "2001:DB8::7", Origin: "ossim", Reason: "OSSIM event"},
			{Source: "203.0.113.8", Protocol: "icmp", Origin: "ossim", Reason: "OSSIM event"}}
		for i, c := range r.untilAccepted(2) {
			c.Body.EventTime = ""
			if diff := cmp.Diff(want[i], c.Body); diff != "" {
				r.Errorf("body (-want +got):\n%s", diff)
			}
		}
	})
}

func TestCall_refusesArgumentsThatAreNoAddressOrPort(t *testing.T) {
	bad := [][]string{
		{}, {""}, {"--src-ip="}, {"--src-ip=0.0.0.0"}, {"--src-ip=::"}, {"0.0.0.0", "198.51.100.10", "22"},
		{"--src-ip=SRC_IP"}, {"--src-ip=host.example"}, {"--src-ip=203.0.113.7\n"}, {"--src-ip=203.0.113.7\n203.0.113.8"},
		{"--src-ip=203.0.113.7 "}, {"--src-ip=203.0.113.256"}, {"--src-ip=203.0.113.07"}, {"--src-ip=203.0.113"}, {"--src-ip=203.0.113.7.1"},
		{"--src-ip=203.0..7"}, {"--src-ip=3405803783"}, {"--src-ip=0x7f.1"}, {"--src-ip=203.0.113.0/24"}, {"--src-ip=;id"}, {"--src-ip=$(id)"},
		{"--src-ip=`id`"}, {"--src-ip=203.0.113.7|id"}, {"--src-ip=203.0.113.7;touch pwned"}, {"--src-ip=../../etc/passwd"}, {"--src-ip=*"},
		{"--src-ip=::::"}, {"--src-ip=1:2:3:4:5:6:7"}, {"--src-ip=1:2:3:4:5:6:7:8:9"}, {"--src-ip=1::2::3"}, {"--src-ip=12345::1"},
		{"--src-ip=fe80::1%eth0"}, {"--src-ip=:1"}, {"--src-ip=1:"}, {"--src-ip=::1.2.3"}, {"--src-ip=1:2:3:4:5:6:7::8"}, {"--src-ip=-"},
		{"--src-ip=" + strings.Repeat("1", 100000)},
		{"--src-ip=203.0.113.7", "--dst-ip=web.example"}, {"--src-ip=203.0.113.7", "--dst-ip=\n"},
		{"--src-ip=203.0.113.7", "--dst-port=65536"}, {"--src-ip=203.0.113.7", "--dst-port=-1"}, {"--src-ip=203.0.113.7", "--dst-port=ssh"},
		{"--src-ip=203.0.113.7", "--dst-port=022"}, {"--src-ip=203.0.113.7", "--dst-port=99999999999999999999"}, {"--src-ip=203.0.113.7", "--dst-port=22\n"},
		{"--src-ip=203.0.113.7", "--unknown=1"}, {"--src-ip=203.0.113.7", "--unknown"}, {"--src-ip=203.0.113.7", "203.0.113.8"},
		{"203.0.113.7", "198.51.100.10", "22", "tcp"}, {"198.51.100.10", "22"}, {"--replay", "--src-ip=203.0.113.7"},
	}
	inEachShell(t, func(r *rig) {
		for _, args := range bad {
			if status, out := r.run(args...); status != 2 || strings.Count(out, "\n") != 1 {
				r.Errorf("parry-ossim %.200q: status %d, said %q; want 2 and one line", args, status, out)
			}
		}
		if n, q := r.attempts(), r.files("queue"); n != 0 || len(q) != 0 {
			r.Errorf("%d requests sent, %v in the spool", n, q)
		}
		var lines []string
		r.until("a line in syslog for each", func() bool { lines = append(lines, r.log()...); return len(lines) >= len(bad) })
	})
}

func TestCall_takesEveryAddressThatIsOne(t *testing.T) {
	inEachShell(t, func(r *rig) {
		want := []string{"1.2.3.4", "255.255.255.255", "0.0.0.1", "::1", "1::", "1:2:3:4:5:6:7:8", "2001:db8::1:0:0:1", "::ffff:203.0.113.7",
			"64:ff9b::203.0.113.7", "1:2:3:4:5:6:203.0.113.7", "ABCD:EF01:2345:6789:abcd:ef01:2345:6789"}
		for _, a := range want {
			r.mustRun("--src-ip=" + a)
		}
		if diff := cmp.Diff(want, sources(r.untilAccepted(len(want)))); diff != "" {
			r.Errorf("sources (-want +got):\n%s", diff)
		}
	})
}

func TestCall_keepsHostileTextAsTextAndInert(t *testing.T) {
	inEachShell(t, func(r *rig) {
		for hostile, want := range map[string]string{
			`"},"source":"10.0.0.1"`:                   `"},"source":"10.0.0.1"`,
			"back\\slash \b\f\n\r\t\x01\x1f\x7f <&'>":  "back\\slash \b\f\n\r\t\x01\x1f\x7f <&'>",
			"$(touch /tmp/pwned) `id` %s %n {{ 7*7 }}": "$(touch /tmp/pwned) `id` %s %n {{ 7*7 }}",
			"é € 😀 \u2028":                             "é € 😀 \u2028",
			"bad \xff\xc0\xaf\xed\xa0\x80 \xe2\x82":    "bad \ufffd\ufffd\ufffd\ufffd\ufffd\ufffd \ufffd",
			"\xf0\x9f\x98x\xf4\x90\x80\x80":            "\ufffdx\ufffd\ufffd\ufffd\ufffd",
		} {
			n := len(r.accepted())
			r.mustRun("--src-ip=203.0.113.7", "--event-id=a"+fmt.Sprint(n), "--sensor="+hostile)
			if got := r.untilAccepted(n + 1)[n].Body.Reason; got != "OSSIM event, sensor "+want {
				r.Errorf("sensor %q arrived as %q", hostile, got)
			}
		}
		r.mustRun("--src-ip=203.0.113.7", "--event-id=$(id)\n../../x", "--plugin-id="+strings.Repeat("é", 5000))
		last := r.untilAccepted(7)[6]
		if strings.Trim(last.Key, "sid-0123456789abcef") != "" {
			r.Errorf("Idempotency-Key = %q", last.Key)
		}
		if got := len([]rune(last.Body.RuleID)); got != 256 {
			r.Errorf("an endless text arrived with %d characters", got)
		}
	})
}

func TestDownAndBack_losesNothingAndKeepsOrderAndTime(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.down()
		var want []string
		for i := range 6 {
			source := fmt.Sprintf("203.0.113.%d", 1+i%2)
			want = append(want, fmt.Sprintf("%s:%d", source, 1000+i))
			start := time.Now()
			r.mustRun("--src-ip="+source, fmt.Sprintf("--dst-port=%d", 1000+i))
			if took := time.Since(start); took > 5*time.Second {
				r.Errorf("a call took %v with parry down", took)
			}
			r.idle()
		}
		if status, out := r.run("--replay"); status != 6 || !strings.Contains(out, "parry not reached, 6 waiting, oldest 203.0.113.1") {
			r.Errorf("--replay with parry down: status %d, %q", status, out)
		}
		asked := time.Now()
		r.until("the clock's next second", func() bool { return time.Now().Unix() > asked.Unix() })
		r.up()
		if status, _ := r.run("--replay"); status != 0 {
			r.Errorf("--replay with parry back: status %d", status)
		}
		var got []string
		for _, c := range r.untilAccepted(6) {
			got = append(got, fmt.Sprintf("%s:%d", c.Body.Source, c.Body.DestinationPort))
			if when, err := time.Parse(time.RFC3339, c.Body.EventTime); err != nil || when.After(asked) {
				r.Errorf("event_time = %q, want the event's own time, before %v", c.Body.EventTime, asked)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			r.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

func TestDownAndBack_theNextCallBringsWhatWaits(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.down()
		r.mustRun("--src-ip=203.0.113.1")
		r.idle()
		r.up()
		r.mustRun("--src-ip=203.0.113.2")
		if diff := cmp.Diff([]string{"203.0.113.1", "203.0.113.2"}, sources(r.untilAccepted(2))); diff != "" {
			r.Errorf("sources (-want +got):\n%s", diff)
		}
	})
}

func TestSlow_theCallReturnsAtOnceAndTheRequestStays(t *testing.T) {
	inEachShell(t, func(r *rig) {
		hang := make(chan struct{})
		r.setMood(func(http.ResponseWriter, body) bool { <-hang; return true })
		start := time.Now()
		r.mustRun("--src-ip=203.0.113.1")
		if took := time.Since(start); took > 3*time.Second {
			r.Errorf("the call took %v", took)
		}
		r.until("the request is on its way", func() bool { return r.attempts() == 1 })
		args := processArguments(t)
		if strings.Contains(args, token) {
			r.Errorf("the token stands in an argument list")
		}
		if !strings.Contains(args, "https://"+r.addr+"/api/v1/blocks") {
			r.Errorf("no curl among the processes: the test looks at the wrong place")
		}
		r.idle()
		r.wantLog("parry not reached, 1 waiting")
		close(hang)
		r.setMood(nil)
		r.mustRun("--replay")
		r.untilAccepted(1)
	})
}

func processArguments(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		raw, _ := os.ReadFile(f)
		all.Write(raw)
	}
	return all.String()
}

func TestWrongCA_sendsNothingAndKeepsTheRequest(t *testing.T) {
	inEachShell(t, func(r *rig) {
		other := r.selfSigned()
		r.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate[0]})))
		if status, out := r.run("--wait", "--src-ip=203.0.113.1"); status != 6 || !strings.Contains(out, "certificate") {
			r.Errorf("status %d, %q; want 6 and the word certificate", status, out)
		}
		if r.attempts() != 0 || len(r.files("queue")) != 1 {
			r.Errorf("%d requests sent, %v in the spool", r.attempts(), r.files("queue"))
		}
	})
}

func TestWrongToken_isNotRetriedUntilRequeued(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.write("token", "parry_t01JOTHER_x\n")
		if status, out := r.run("--wait", "--src-ip=203.0.113.1"); status != 4 || !strings.Contains(out, "401 the token is not known") {
			r.Errorf("status %d, %q", status, out)
		}
		r.mustRun("--replay")
		if r.attempts() != 1 || len(r.files("refused")) != 1 {
			r.Errorf("%d requests sent, %v refused; want 1 and 1", r.attempts(), r.files("refused"))
		}
		r.wantLog("refused 203.0.113.1")
		r.write("token", token)
		r.mustRun("--requeue")
		r.untilAccepted(1)
	})
}

func TestNoToken_keepsTheRequest(t *testing.T) {
	inEachShell(t, func(r *rig) {
		for _, bad := range []string{"", "two words", "quote\"", "a\nb"} {
			r.write("token", bad)
			if status, out := r.run("--wait", "--src-ip=203.0.113.1", "--event-id=1"); bad == "" && status != 6 || !strings.Contains(out, "no token") && bad == "" {
				r.Errorf("token %q: status %d, %q", bad, status, out)
			}
		}
		if r.attempts() != 0 || len(r.files("queue")) != 1 {
			r.Errorf("%d requests sent, %v in the spool", r.attempts(), r.files("queue"))
		}
	})
}

func TestRefused_isSetAsideWithOneLine(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.setMood(func(w http.ResponseWriter, b body) bool {
			if b.Source == "203.0.113.1" {
				problem(w, http.StatusUnprocessableEntity, "203.0.113.1 is exempt: our resolver")
			}
			return b.Source == "203.0.113.1"
		})
		r.mustRun("--src-ip=203.0.113.1")
		r.idle()
		r.mustRun("--src-ip=203.0.113.2")
		r.untilAccepted(1)
		if refused := r.files("refused"); len(refused) != 1 || r.attempts() != 2 {
			r.Errorf("refused %v after %d requests", refused, r.attempts())
		}
		r.wantLog("refused 203.0.113.1", "422 203.0.113.1 is exempt: our resolver")
	})
}

func TestBusy_waitsAsLongAsRetryAfterSays(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusRequestTimeout} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			inEachShell(t, func(r *rig) {
				again := time.Now().Add(3 * time.Second).Truncate(time.Second)
				r.setMood(func(w http.ResponseWriter, _ body) bool {
					if status == http.StatusServiceUnavailable {
						w.Header().Set("Retry-After", again.UTC().Format(http.TimeFormat))
					} else {
						w.Header().Set("Retry-After", "2")
					}
					problem(w, status, "later")
					return true
				})
				r.mustRun("--src-ip=203.0.113.1")
				r.until("the first try", func() bool { return r.attempts() == 1 })
				r.idle()
				r.setMood(nil)
				first := time.Now()
				r.mustRun("--src-ip=203.0.113.2")
				r.until("parry is asked again", func() bool { r.run("--replay"); return r.attempts() > 1 })
				if gap := time.Since(first); gap < 500*time.Millisecond {
					r.Errorf("asked again after %v in spite of Retry-After", gap)
				}
				if diff := cmp.Diff([]string{"203.0.113.1", "203.0.113.2"}, sources(r.untilAccepted(2))); diff != "" {
					r.Errorf("sources (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestServerError_holdsUpOnlyItsOwnSource(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.down()
		for i, last := range []string{"1", "2", "1", "3"} {
			if status, out := r.run("--wait", "--src-ip=203.0.113."+last, fmt.Sprintf("--dst-port=%d", i+1)); status != 6 {
				r.Fatalf("status %d, %q; want 6", status, out)
			}
		}
		r.setMood(func(w http.ResponseWriter, b body) bool {
			if b.Source == "203.0.113.1" {
				problem(w, http.StatusInternalServerError, "an internal error")
			}
			return b.Source == "203.0.113.1"
		})
		r.up()
		if status, _ := r.run("--replay"); status != 6 {
			r.Errorf("status %d, want 6", status)
		}
		if r.attempts() != 3 {
			r.Errorf("%d requests, want 3: one of 203.0.113.1, and no later one before it", r.attempts())
		}
		r.setMood(nil)
		r.mustRun("--replay")
		want := []string{"203.0.113.2", "203.0.113.3", "203.0.113.1", "203.0.113.1"}
		calls := r.untilAccepted(4)
		if diff := cmp.Diff(want, sources(calls)); diff != "" {
			r.Errorf("sources (-want +got):\n%s", diff)
		}
		if calls[2].Body.DestinationPort != 1 || calls[3].Body.DestinationPort != 3 {
			r.Errorf("the order of 203.0.113.1's requests was lost")
		}
	})
}

func TestStorm_ofFiftyCallsAtOnce(t *testing.T) {
	inEachShell(t, func(r *rig) {
		var wg sync.WaitGroup
		want := make([]string, 50)
		for i := range want {
			want[i] = fmt.Sprintf("203.0.113.%d", 100+i)
			wg.Go(func() {
				start := time.Now()
				if status, out := r.run("--src-ip="+want[i], "--dst-ip=198.51.100.10"); status != 0 {
					r.Errorf("status %d, %q", status, out)
				}
				if took := time.Since(start); took > 5*time.Second {
					r.Errorf("a call took %v", took)
				}
			})
		}
		wg.Wait()
		got := sources(r.untilAccepted(50))
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			r.Errorf("sources (-want +got):\n%s", diff)
		}
	})
}

func TestSpoolFull_isLoud(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.configure("spool_max=2\n")
		r.down()
		r.mustRun("--src-ip=203.0.113.1")
		r.mustRun("--src-ip=203.0.113.2")
		r.idle()
		r.log()
		if status, _ := r.run("--src-ip=203.0.113.3"); status != 1 {
			r.Errorf("status %d, want 1", status)
		}
		r.wantLog("LOST 203.0.113.3", "is full (2 requests)")
		if tmp := r.files("tmp"); slices.ContainsFunc(tmp, func(f string) bool { return strings.HasSuffix(f, ".json") }) {
			r.Errorf("left behind: %v", tmp)
		}
		r.up()
		r.mustRun("--replay")
		r.untilAccepted(2)
	})
}

func TestTooOld_isSetAside(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.configure("spool_age=3600\n")
		r.down()
		r.mustRun("--src-ip=203.0.113.1")
		r.mustRun("--src-ip=203.0.113.2")
		r.idle()
		name := r.files("queue")[0]
		old := fmt.Sprint(time.Now().Add(-2*time.Hour).UnixNano()) + name[strings.Index(name, "_"):]
		if err := os.Rename(r.spool+"/queue/"+name, r.spool+"/queue/"+old); err != nil {
			r.Fatal(err)
		}
		r.up()
		r.log()
		r.mustRun("--replay")
		if diff := cmp.Diff([]string{"203.0.113.2"}, sources(r.untilAccepted(1))); diff != "" {
			r.Errorf("sources (-want +got):\n%s", diff)
		}
		r.wantLog("too old to send, 203.0.113.1")
		if diff := cmp.Diff([]string{old}, r.files("refused")); diff != "" {
			r.Errorf("set aside (-want +got):\n%s", diff)
		}
	})
}

func TestRepeat_ofAnEventIsOneRequest(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.mustRun("--src-ip=203.0.113.1", "--event-id="+event)
		r.mustRun("--src-ip=203.0.113.1", "--event-id="+event, "--risk=9")
		r.mustRun("--src-ip=198.51.100.10", "--event-id="+event) // the same event's other end
		calls := r.untilAccepted(2)
		if diff := cmp.Diff([]string{"203.0.113.1", "198.51.100.10"}, sources(calls)); diff != "" {
			r.Errorf("sources (-want +got):\n%s", diff)
		}
		if calls[0].Key == calls[1].Key {
			r.Errorf("two requests under the key %s", calls[0].Key)
		}
		r.wantLog("repeat 203.0.113.1")
	})
}

func TestResent_afterALostAnswerKeepsItsKeyAndBody(t *testing.T) {
	inEachShell(t, func(r *rig) {
		var seen []call
		r.setMood(func(w http.ResponseWriter, b body) bool {
			seen = append(seen, call{Body: b})
			panic(http.ErrAbortHandler)
		})
		r.mustRun("--src-ip=203.0.113.1")
		r.until("the first try", func() bool { return r.attempts() == 1 })
		r.idle()
		before := r.files("queue")
		r.setMood(nil)
		r.mustRun("--replay")
		got := r.untilAccepted(1)[0]
		if !strings.HasSuffix(before[0], "_"+got.Key+".json") {
			r.Errorf("key %s, the spool had %s", got.Key, before[0])
		}
		if diff := cmp.Diff(seen[0].Body, got.Body); diff != "" {
			r.Errorf("body (-first +second):\n%s", diff)
		}
	})
}

// OSSIM's frameworkd runs an action through /bin/sh as root with umask 0, and leaves its sockets open in it.
func TestFrameworkd_umaskZeroClosedStdioAndInheritedDescriptors(t *testing.T) {
	inEachShell(t, func(r *rig) {
		hang := make(chan struct{})
		release := sync.OnceFunc(func() { close(hang) })
		defer release()
		r.setMood(func(http.ResponseWriter, body) bool { <-hang; return false })
		for _, stdio := range []string{"</dev/null >/dev/null 2>&1", "<&- >&- 2>&-"} {
			pr, pw, err := os.Pipe()
			if err != nil {
				r.Fatal(err)
			}
			cmd := r.command()
			cmd.Args = []string{"bash", "-c", fmt.Sprintf("umask 0; exec 27>&3; exec %s %s --src-ip=203.0.113.7 --event-id=%d %s",
				r.shell, r.script, len(stdio), stdio)}
			cmd.Path = "/bin/bash"
			cmd.ExtraFiles = []*os.File{pw}
			if err := cmd.Run(); err != nil {
				r.Fatal(err)
			}
			pw.Close()
			if err := pr.SetReadDeadline(time.Now().Add(4 * time.Second)); err != nil {
				r.Fatal(err)
			}
			if _, err := pr.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				r.Errorf("an inherited descriptor is still open after the call: %v", err)
			}
			pr.Close()
		}
		r.until("the request is on its way", func() bool { return r.attempts() > 0 })
		if err := filepath.Walk(r.spool, func(path string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				r.Errorf("%s has mode %v", path, info.Mode())
			}
			return nil
		}); err != nil {
			r.Error(err)
		}
		release()
		r.untilAccepted(2)
	})
}

func TestEnvironment_doesNotLeadAstray(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.write(".curlrc", "proxy = \"http://127.0.0.1:1\"\n")
		r.env = []string{"HOME=" + r.dir, "CURL_HOME=" + r.dir, "https_proxy=http://127.0.0.1:1", "ALL_PROXY=http://127.0.0.1:1", "PATH=" + r.dir,
			"LC_ALL=tr_TR.UTF-8", "IFS=1", "CDPATH=/tmp"}
		r.shell = "/bin/" + r.shell
		r.mustRun("--wait", "--src-ip=203.0.113.1")
		r.untilAccepted(1)
	})
}

func TestConfiguration_isReadAndNeverExecuted(t *testing.T) {
	inEachShell(t, func(r *rig) {
		for more, word := range map[string]string{
			"colour=red\n":                "unknown key colour",
			"just words\n":                "not key=value",
			"spool_max=0\n":               "spool_max is not a number",
			"spool_age=1d\n":              "spool_age is not a number",
			"url=http://parry.example\n":  "must begin with https://",
			"origin=a\"b\n":               "must not hold a quote",
			"spool=here\n":                "absolute path",
			"mode=x; touch $HOME/pwned\n": "unknown key mode",
		} {
			r.configure(more)
			if status, out := r.run("--src-ip=203.0.113.1"); status != 1 || !strings.Contains(out, word) {
				r.Errorf("%q: status %d, %q; want 1 and %q", more, status, out, word)
			}
		}
		r.configure("origin=$(touch " + r.dir + "/pwned)`id`\n")
		r.mustRun("--src-ip=203.0.113.1")
		if got := r.untilAccepted(1)[0].Body.Origin; got != "$(touch "+r.dir+"/pwned)`id`" {
			r.Errorf("origin = %q", got)
		}
		if _, err := os.Stat(r.dir + "/pwned"); err == nil {
			r.Error("the configuration was executed")
		}
		if err := os.Remove(r.conf); err != nil {
			r.Fatal(err)
		}
		if status, _ := r.run("--src-ip=203.0.113.1"); status != 1 {
			r.Errorf("without a configuration: status %d, want 1", status)
		}
	})
}

func TestSyslogThatHangs_holdsUpNeitherCallsNorBlocks(t *testing.T) {
	inEachShell(t, func(r *rig) {
		stuck, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: r.dir + "/stuck", Net: "unixgram"})
		if err != nil {
			r.Fatal(err)
		}
		defer stuck.Close()
		r.configure("syslog_socket=" + r.dir + "/stuck\n")
		for i := 0; ; i++ { // until the socket's queue is full
			start := time.Now()
			if status, _ := r.run("--src-ip=none"); status != 2 {
				r.Fatalf("status %d", status)
			}
			if took := time.Since(start); took > 5*time.Second {
				r.Fatalf("a call took %v", took)
			} else if took > 900*time.Millisecond {
				break
			}
			if i > 2000 {
				r.Skip("this kernel's sockets do not fill up")
			}
		}
		r.mustRun("--src-ip=203.0.113.1")
		r.mustRun("--src-ip=203.0.113.2")
		r.untilAccepted(2)
	})
}

func TestUnwritableSpool_isLoud(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.mustRun("--src-ip=203.0.113.1")
		r.untilAccepted(1)
		if err := os.RemoveAll(r.spool + "/tmp"); err != nil {
			r.Fatal(err)
		}
		if err := os.Symlink("/proc/self/nowhere", r.spool+"/tmp"); err != nil {
			r.Fatal(err)
		}
		if status, out := r.run("--src-ip=203.0.113.2"); status != 1 {
			r.Errorf("status %d, %q; want 1", status, out)
		}
	})
}
