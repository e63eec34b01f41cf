package ossim_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
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

func TestDownAndBack_losesNothingAndKeepsOrderAndTime(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.Down()
		var want []string
		for i := range 6 {
			source := fmt.Sprintf("203.0.113.%d", 1+i%2)
			want = append(want, fmt.Sprintf("%s:%d", source, 1000+i))
			start := time.Now()
			r.MustRun("--src-ip="+source, fmt.Sprintf("--dst-port=%d", 1000+i))
			if took := time.Since(start); took > 5*time.Second {
				r.Errorf("a call took %v with parry down", took)
			}
			r.Idle()
		}
		if status, out := r.Run("--replay"); status != 6 || !strings.Contains(out, "parry not reached, 6 waiting, oldest 203.0.113.1") {
			r.Errorf("--replay with parry down: status %d, %q", status, out)
		}
		asked := time.Now()
		r.Until("the clock's next second", func() bool { return time.Now().Unix() > asked.Unix() })
		r.Up()
		if status, _ := r.Run("--replay"); status != 0 {
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
		r.Down()
		r.MustRun("--src-ip=203.0.113.1")
		r.Idle()
		r.Up()
		r.MustRun("--src-ip=203.0.113.2")
		if diff := cmp.Diff([]string{"203.0.113.1", "203.0.113.2"}, sources(r.untilAccepted(2))); diff != "" {
			r.Errorf("sources (-want +got):\n%s", diff)
		}
	})
}

func TestSlow_theCallReturnsAtOnceAndTheRequestStays(t *testing.T) {
	inEachShell(t, func(r *rig) {
		hang := make(chan struct{})
		r.SetMood(func(http.ResponseWriter, body) bool { <-hang; return true })
		start := time.Now()
		r.MustRun("--src-ip=203.0.113.1")
		if took := time.Since(start); took > 3*time.Second {
			r.Errorf("the call took %v", took)
		}
		r.Until("the request is on its way", func() bool { return r.Attempts() == 1 })
		args := processArguments(t)
		if strings.Contains(args, token) {
			r.Errorf("the token stands in an argument list")
		}
		if !strings.Contains(args, "https://"+r.Addr+"/api/v1/blocks") {
			r.Errorf("no curl among the processes: the test looks at the wrong place")
		}
		r.Idle()
		r.WantLog("parry not reached, 1 waiting")
		close(hang)
		r.SetMood(nil)
		r.MustRun("--replay")
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
		host, _, _ := net.SplitHostPort(r.Addr)
		r.Write("ca.pem", siemtest.PEM(siemtest.SelfSigned(r.T, host)))
		if status, out := r.Run("--wait", "--src-ip=203.0.113.1"); status != 6 || !strings.Contains(out, "certificate") {
			r.Errorf("status %d, %q; want 6 and the word certificate", status, out)
		}
		if r.Attempts() != 0 || len(r.Files("queue")) != 1 {
			r.Errorf("%d requests sent, %v in the spool", r.Attempts(), r.Files("queue"))
		}
	})
}

func TestWrongToken_isNotRetriedUntilRequeued(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.Write("token", "parry_t01JOTHER_x\n")
		if status, out := r.Run("--wait", "--src-ip=203.0.113.1"); status != 4 || !strings.Contains(out, "401 the token is not known") {
			r.Errorf("status %d, %q", status, out)
		}
		r.MustRun("--replay")
		if r.Attempts() != 1 || len(r.Files("refused")) != 1 {
			r.Errorf("%d requests sent, %v refused; want 1 and 1", r.Attempts(), r.Files("refused"))
		}
		r.WantLog("refused 203.0.113.1")
		r.Write("token", token)
		r.MustRun("--requeue")
		r.untilAccepted(1)
	})
}

func TestNoToken_keepsTheRequest(t *testing.T) {
	inEachShell(t, func(r *rig) {
		for _, bad := range []string{"", "two words", "quote\"", "a\nb"} {
			r.Write("token", bad)
			if status, out := r.Run("--wait", "--src-ip=203.0.113.1", "--event-id=1"); bad == "" && status != 6 || !strings.Contains(out, "no token") && bad == "" {
				r.Errorf("token %q: status %d, %q", bad, status, out)
			}
		}
		if r.Attempts() != 0 || len(r.Files("queue")) != 1 {
			r.Errorf("%d requests sent, %v in the spool", r.Attempts(), r.Files("queue"))
		}
	})
}

func TestRefused_isSetAsideWithOneLine(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.SetMood(func(w http.ResponseWriter, b body) bool {
			if b.Source == "203.0.113.1" {
				problem(w, http.StatusUnprocessableEntity, "203.0.113.1 is exempt: our resolver")
			}
			return b.Source == "203.0.113.1"
		})
		r.MustRun("--src-ip=203.0.113.1")
		r.Idle()
		r.MustRun("--src-ip=203.0.113.2")
		r.untilAccepted(1)
		if refused := r.Files("refused"); len(refused) != 1 || r.Attempts() != 2 {
			r.Errorf("refused %v after %d requests", refused, r.Attempts())
		}
		r.WantLog("refused 203.0.113.1", "422 203.0.113.1 is exempt: our resolver")
	})
}

func TestBusy_waitsAsLongAsRetryAfterSays(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusRequestTimeout} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			inEachShell(t, func(r *rig) {
				again := time.Now().Add(3 * time.Second).Truncate(time.Second)
				r.SetMood(func(w http.ResponseWriter, _ body) bool {
					if status == http.StatusServiceUnavailable {
						w.Header().Set("Retry-After", again.UTC().Format(http.TimeFormat))
					} else {
						w.Header().Set("Retry-After", "2")
					}
					problem(w, status, "later")
					return true
				})
				r.MustRun("--src-ip=203.0.113.1")
				r.Until("the first try", func() bool { return r.Attempts() == 1 })
				r.Idle()
				r.SetMood(nil)
				first := time.Now()
				r.MustRun("--src-ip=203.0.113.2")
				r.Until("parry is asked again", func() bool { r.Run("--replay"); return r.Attempts() > 1 })
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
		r.Down()
		for i, last := range []string{"1", "2", "1", "3"} {
			if status, out := r.Run("--wait", "--src-ip=203.0.113."+last, fmt.Sprintf("--dst-port=%d", i+1)); status != 6 {
				r.Fatalf("status %d, %q; want 6", status, out)
			}
		}
		r.SetMood(func(w http.ResponseWriter, b body) bool {
			if b.Source == "203.0.113.1" {
				problem(w, http.StatusInternalServerError, "an internal error")
			}
			return b.Source == "203.0.113.1"
		})
		r.Up()
		if status, _ := r.Run("--replay"); status != 6 {
			r.Errorf("status %d, want 6", status)
		}
		if r.Attempts() != 3 {
			r.Errorf("%d requests, want 3: one of 203.0.113.1, and no later one before it", r.Attempts())
		}
		r.SetMood(nil)
		r.MustRun("--replay")
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
				if status, out := r.Run("--src-ip="+want[i], "--dst-ip=198.51.100.10"); status != 0 {
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
		r.Configure("spool_max=2\n")
		r.Down()
		r.MustRun("--src-ip=203.0.113.1")
		r.MustRun("--src-ip=203.0.113.2")
		r.Idle()
		r.Log()
		if status, _ := r.Run("--src-ip=203.0.113.3"); status != 1 {
			r.Errorf("status %d, want 1", status)
		}
		r.WantLog("LOST 203.0.113.3", "is full (2 requests)")
		if tmp := r.Files("tmp"); slices.ContainsFunc(tmp, func(f string) bool { return strings.HasSuffix(f, ".json") }) {
			r.Errorf("left behind: %v", tmp)
		}
		r.Up()
		r.MustRun("--replay")
		r.untilAccepted(2)
	})
}

func TestTooOld_isSetAside(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.Configure("spool_age=3600\n")
		r.Down()
		r.MustRun("--src-ip=203.0.113.1")
		r.MustRun("--src-ip=203.0.113.2")
		r.Idle()
		name := r.Files("queue")[0]
		old := fmt.Sprint(time.Now().Add(-2*time.Hour).UnixNano()) + name[strings.Index(name, "_"):]
		if err := os.Rename(r.Spool+"/queue/"+name, r.Spool+"/queue/"+old); err != nil {
			r.Fatal(err)
		}
		r.Up()
		r.Log()
		r.MustRun("--replay")
		if diff := cmp.Diff([]string{"203.0.113.2"}, sources(r.untilAccepted(1))); diff != "" {
			r.Errorf("sources (-want +got):\n%s", diff)
		}
		r.WantLog("too old to send, 203.0.113.1")
		if diff := cmp.Diff([]string{old}, r.Files("refused")); diff != "" {
			r.Errorf("set aside (-want +got):\n%s", diff)
		}
	})
}

func TestRepeat_ofAnEventIsOneRequest(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.MustRun("--src-ip=203.0.113.1", "--event-id="+event)
		r.MustRun("--src-ip=203.0.113.1", "--event-id="+event, "--risk=9")
		r.MustRun("--src-ip=198.51.100.10", "--event-id="+event) // the same event's other end
		calls := r.untilAccepted(2)
		if diff := cmp.Diff([]string{"203.0.113.1", "198.51.100.10"}, sources(calls)); diff != "" {
			r.Errorf("sources (-want +got):\n%s", diff)
		}
		if calls[0].Key == calls[1].Key {
			r.Errorf("two requests under the key %s", calls[0].Key)
		}
		r.WantLog("repeat 203.0.113.1")
	})
}

func TestResent_afterALostAnswerKeepsItsKeyAndBody(t *testing.T) {
	inEachShell(t, func(r *rig) {
		var seen []call
		r.SetMood(func(w http.ResponseWriter, b body) bool {
			seen = append(seen, call{Body: b})
			panic(http.ErrAbortHandler)
		})
		r.MustRun("--src-ip=203.0.113.1")
		r.Until("the first try", func() bool { return r.Attempts() == 1 })
		r.Idle()
		before := r.Files("queue")
		r.SetMood(nil)
		r.MustRun("--replay")
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

func TestSyslogThatHangs_holdsUpNeitherCallsNorBlocks(t *testing.T) {
	inEachShell(t, func(r *rig) {
		stuck, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: r.Dir + "/stuck", Net: "unixgram"})
		if err != nil {
			r.Fatal(err)
		}
		defer stuck.Close()
		r.Configure("syslog_socket=" + r.Dir + "/stuck\n")
		for i := 0; ; i++ { // until the socket's queue is full
			start := time.Now()
			if status, _ := r.Run("--src-ip=none"); status != 2 {
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
		r.MustRun("--src-ip=203.0.113.1")
		r.MustRun("--src-ip=203.0.113.2")
		r.untilAccepted(2)
	})
}

func TestUnwritableSpool_isLoud(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.MustRun("--src-ip=203.0.113.1")
		r.untilAccepted(1)
		if err := os.RemoveAll(r.Spool + "/tmp"); err != nil {
			r.Fatal(err)
		}
		if err := os.Symlink("/proc/self/nowhere", r.Spool+"/tmp"); err != nil {
			r.Fatal(err)
		}
		if status, out := r.Run("--src-ip=203.0.113.2"); status != 1 {
			r.Errorf("status %d, %q; want 1", status, out)
		}
	})
}
