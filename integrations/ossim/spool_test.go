package ossim_test

import (
	"errors"
	"fmt"
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
		if took := time.Since(start); took > 5*time.Second {
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

// What cannot be set aside is not sent again and again: the round ends with a line that says why, and nothing is lost.
func TestRefused_thatCannotBeSetAsideEndsTheRound(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.MustRun("--replay") // makes the spool
		if err := os.Remove(r.Spool + "/refused"); err != nil {
			r.Fatal(err)
		}
		if err := os.Symlink("/proc", r.Spool+"/refused"); err != nil { // a directory in which root makes no file either
			r.Fatal(err)
		}
		var once sync.Once
		r.SetMood(func(w http.ResponseWriter, _ body) (refused bool) {
			once.Do(func() {
				problem(w, http.StatusUnprocessableEntity, "203.0.113.1 is exempt: our resolver")
				refused = true
			})
			return refused
		})
		if status, out := r.Run("--wait", "--src-ip=203.0.113.1"); status != 6 || r.Attempts() != 1 || len(r.Files("queue")) != 1 {
			r.Fatalf("status %d after %d requests, waiting %v, %q; want 6, one request, and that it waits", status, r.Attempts(), r.Files("queue"), out)
		}
		r.WantLog("refused 203.0.113.1", "is exempt", "; sending stops until "+r.Spool+"/refused is mended: mv: ")
		name := r.Files("queue")[0]
		old := r.waitsSince(name, time.Now().Add(-48*time.Hour))
		if status, out := r.Run("--replay"); status != 6 || r.Attempts() != 1 || len(r.Files("queue")) != 1 {
			r.Fatalf("status %d after %d requests, waiting %v, %q; want 6, no other request, and that it waits", status, r.Attempts(), r.Files("queue"), out)
		}
		r.WantLog("too old to send, 203.0.113.1", "; sending stops until "+r.Spool+"/refused is mended: mv: ")
		if err := errors.Join(os.Rename(r.Spool+"/queue/"+old, r.Spool+"/queue/"+name), os.Remove(r.Spool+"/refused")); err != nil {
			r.Fatal(err)
		}
		r.MustRun("--replay")
		r.untilAccepted(1)
	})
}

// What is beyond spool_max of what was refused goes, oldest first, and that is told.
func TestRefused_beyondTheBoundIsLoud(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.Configure("spool_max=2\n")
		r.Write("token", "parry_t01JOTHER_x\n")
		for i := range 4 {
			if status, out := r.Run("--wait", fmt.Sprintf("--src-ip=203.0.113.%d", i+1)); status != 4 {
				r.Fatalf("status %d, %q; want 4", status, out)
			}
		}
		if err := os.Remove(r.Spool + "/pruned"); err != nil { // five minutes later
			r.Fatal(err)
		}
		r.Log()
		status, out := r.Run("--replay")
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if status != 0 || len(lines) != 2 || !strings.Contains(lines[0], "LOST 203.0.113.1 (") || !strings.Contains(lines[1], "LOST 203.0.113.2 (") {
			r.Errorf("status %d, %q; want 0 and a line for each of the first two", status, lines)
		}
		r.WantLog("LOST 203.0.113.1 (", "/refused is full (2 requests)")
		refused := r.Files("refused")
		if len(refused) != 2 || !strings.Contains(refused[0], "_203.0.113.3_") || !strings.Contains(refused[1], "_203.0.113.4_") {
			r.Errorf("refused: %v, want the last two", refused)
		}
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

// waitsSince renames a request of the queue as if it had been taken then.
func (r *rig) waitsSince(name string, then time.Time) string {
	r.Helper()
	old := fmt.Sprint(then.UnixNano()) + name[strings.Index(name, "_"):]
	if err := os.Rename(r.Spool+"/queue/"+name, r.Spool+"/queue/"+old); err != nil {
		r.Fatal(err)
	}
	return old
}

func TestTooOld_isSetAside(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.Configure("spool_age=3600\n")
		r.Down()
		r.MustRun("--src-ip=203.0.113.1")
		r.MustRun("--src-ip=203.0.113.2")
		r.Idle()
		old := r.waitsSince(r.Files("queue")[0], time.Now().Add(-2*time.Hour))
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
