package ossim_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/integrations/internal/siemtest"
)

const token = siemtest.Token

type (
	body = siemtest.Body
	call = siemtest.Call
)

var problem, sources = siemtest.Problem, siemtest.Sources

// rig is an OSSIM server with the script, and a parry that can be up, down or in a mood.
type rig struct {
	*siemtest.Rig
	*siemtest.Stub
}

func inEachShell(t *testing.T, spec func(r *rig)) {
	t.Helper()
	siemtest.InEachShell(t, "parry-ossim", func(r *siemtest.Rig) { spec(&rig{r, r.Stub()}) })
}

func (r *rig) untilAccepted(n int) []call {
	r.Helper()
	r.Until(fmt.Sprintf("%d accepted", n), func() bool { return len(r.Accepted()) >= n })
	r.Sent()
	return r.Accepted()
}

const event = "0f3c1e52-7a1b-11e7-9a3b-000c29aabbcc"

func TestCall_asksForTheBlock(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.Configure("ttl=4h\nfirewalls=edge, fw-b\norigin=ossim-hq\n")
		before := time.Now().Truncate(time.Second)
		status, out := r.Run("--src-ip=203.0.113.7", "--dst-ip=198.51.100.10", "--dst-port=22", "--protocol=TCP", "--plugin-id=1505",
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
		r.WantLog("parry-ossim", "accepted 203.0.113.7 b-00000000000000000000000001")
	})
}

func TestCall_takesThePositionalFormOfTheOldScript(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.MustRun("203.0.113.7", "198.51.100.10", "22")
		r.MustRun("203.0.113.8", "0.0.0.0", "0")
		r.MustRun("203.0.113.9")
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
		r.MustRun("--src-ip=2001:DB8::7", "--dst-ip=", "--dst-port=0", "--protocol=host_event", "--plugin-id=", "--plugin-sid=", "--event-id=",
			"--backlog-id=", "--risk=", "--priority=", "--reliability=", "--sensor=", "--date=")
		r.MustRun("--src-ip=203.0.113.8", "--dst-ip=0.0.0.0", "--dst-port=8", "--protocol=icmp")
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
			if status, out := r.Run(args...); status != 2 || strings.Count(out, "\n") != 1 {
				r.Errorf("parry-ossim %.200q: status %d, said %q; want 2 and one line", args, status, out)
			}
		}
		if n, q := r.Attempts(), r.Files("queue"); n != 0 || len(q) != 0 {
			r.Errorf("%d requests sent, %v in the spool", n, q)
		}
		var lines []string
		r.Until("a line in syslog for each", func() bool { lines = append(lines, r.Log()...); return len(lines) >= len(bad) })
	})
}

func TestCall_takesEveryAddressThatIsOne(t *testing.T) {
	inEachShell(t, func(r *rig) {
		want := []string{"1.2.3.4", "255.255.255.255", "0.0.0.1", "::1", "1::", "1:2:3:4:5:6:7:8", "2001:db8::1:0:0:1", "::ffff:203.0.113.7",
			"64:ff9b::203.0.113.7", "1:2:3:4:5:6:203.0.113.7", "ABCD:EF01:2345:6789:abcd:ef01:2345:6789"}
		for _, a := range want {
			r.MustRun("--src-ip=" + a)
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
			n := len(r.Accepted())
			r.MustRun("--src-ip=203.0.113.7", "--event-id=a"+fmt.Sprint(n), "--sensor="+hostile)
			if got := r.untilAccepted(n + 1)[n].Body.Reason; got != "OSSIM event, sensor "+want {
				r.Errorf("sensor %q arrived as %q", hostile, got)
			}
		}
		r.MustRun("--src-ip=203.0.113.7", "--event-id=$(id)\n../../x", "--plugin-id="+strings.Repeat("é", 5000))
		last := r.untilAccepted(7)[6]
		if strings.Trim(last.Key, "sid-0123456789abcef") != "" {
			r.Errorf("Idempotency-Key = %q", last.Key)
		}
		if got := len([]rune(last.Body.RuleID)); got != 256 {
			r.Errorf("an endless text arrived with %d characters", got)
		}
	})
}

// OSSIM's frameworkd runs an action through /bin/sh as root with umask 0, and leaves its sockets open in it.
func TestFrameworkd_umaskZeroClosedStdioAndInheritedDescriptors(t *testing.T) {
	inEachShell(t, func(r *rig) {
		hang := make(chan struct{})
		release := sync.OnceFunc(func() { close(hang) })
		defer release()
		r.SetMood(func(http.ResponseWriter, body) bool { <-hang; return false })
		for _, stdio := range []string{"</dev/null >/dev/null 2>&1", "<&- >&- 2>&-"} {
			pr, pw, err := os.Pipe()
			if err != nil {
				r.Fatal(err)
			}
			cmd := r.Command()
			cmd.Args = []string{"bash", "-c", fmt.Sprintf("umask 0; exec 27>&3; exec %s %s --src-ip=203.0.113.7 --event-id=%d %s",
				r.Shell, r.Script, len(stdio), stdio)}
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
		r.Until("the request is on its way", func() bool { return r.Attempts() > 0 })
		if err := filepath.Walk(r.Spool, func(path string, info os.FileInfo, err error) error {
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
		r.Write(".curlrc", "proxy = \"http://127.0.0.1:1\"\n")
		r.Env = []string{"HOME=" + r.Dir, "CURL_HOME=" + r.Dir, "https_proxy=http://127.0.0.1:1", "ALL_PROXY=http://127.0.0.1:1", "PATH=" + r.Dir,
			"LC_ALL=tr_TR.UTF-8", "IFS=1", "CDPATH=/tmp"}
		r.MustRun("--wait", "--src-ip=203.0.113.1")
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
			r.Configure(more)
			if status, out := r.Run("--src-ip=203.0.113.1"); status != 1 || !strings.Contains(out, word) {
				r.Errorf("%q: status %d, %q; want 1 and %q", more, status, out, word)
			}
		}
		r.Configure("origin=$(touch " + r.Dir + "/pwned)`id`\n")
		r.MustRun("--src-ip=203.0.113.1")
		if got := r.untilAccepted(1)[0].Body.Origin; got != "$(touch "+r.Dir+"/pwned)`id`" {
			r.Errorf("origin = %q", got)
		}
		if _, err := os.Stat(r.Dir + "/pwned"); err == nil {
			r.Error("the configuration was executed")
		}
		if err := os.Remove(r.Conf); err != nil {
			r.Fatal(err)
		}
		if status, _ := r.Run("--src-ip=203.0.113.1"); status != 1 {
			r.Errorf("without a configuration: status %d, want 1", status)
		}
	})
}
