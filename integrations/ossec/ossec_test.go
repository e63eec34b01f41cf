package ossec_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/integrations/internal/siemtest"
)

func TestMain(m *testing.M) { siemtest.Main(m) }

// execd runs an active response as OSSEC's does (execd.c, exec.c): the message's words are the arguments, cut at every single blank, at most
// 30; cwd is / and stdio /dev/null. It does not wait; the test does, for the status.
func execd(r *siemtest.Rig, command, message string) int {
	r.Helper()
	words := strings.Split(message, " ")
	cmd := exec.Command(r.Shell, append([]string{r.Script, command}, words[:min(len(words), 30)]...)...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PARRY_CONF=" + r.Conf}, r.Env...)
	return r.Status(cmd.Run())
}

func alertID(a siemtest.Alert) string { return fmt.Sprintf("%d.%d", a.Time.Unix(), 77+a.N) }

// message is what analysisd hands to execd: user, address, id, rule, location, file.
func message(a siemtest.Alert) string {
	return "- " + a.Source + " " + alertID(a) + " 5712 (web01) 10.0.0.5->/var/log/auth.log -"
}

func TestSuite(t *testing.T) {
	t.Parallel()
	siemtest.Suite(t, siemtest.Trigger{Script: "parry-ossec", Origin: "ossec", ID: alertID, Deletes: true, Timed: true,
		Missing: []string{"", "-", "0.0.0.0", "::"},
		Fire: func(r *siemtest.Rig, a siemtest.Alert) int {
			if a.Delete {
				return execd(r, "delete", message(a))
			}
			return execd(r, "add", message(a))
		}})
}

func TestAdd_takesWhatLooksRight(t *testing.T) {
	siemtest.InEachShell(t, "parry-ossec", func(r *siemtest.Rig) {
		s := r.Stub()
		now := time.Now().Truncate(time.Second)
		id := fmt.Sprintf("%d.1549653", now.Unix())
		for n, c := range []struct {
			message string
			want    siemtest.Body
		}{
			{"- 203.0.113.1 " + id + " 5712 (web01) 10.0.0.5->/var/log/auth.log -",
				siemtest.Body{AlertID: id, RuleID: "5712", Agent: "web01", Reason: "OSSEC rule 5712; (web01) 10.0.0.5->/var/log/auth.log"}},
			{"- 203.0.113.2 " + id + " 5712 siem01->/var/log/auth.log -",
				siemtest.Body{AlertID: id, RuleID: "5712", Agent: "siem01", Reason: "OSSEC rule 5712; siem01->/var/log/auth.log"}},
			{"- 203.0.113.3 " + id + " 31151 (web 01) 10.0.0.5->C:\\Program Files\\x.log $(id)",
				siemtest.Body{AlertID: id, RuleID: "31151", Reason: "OSSEC rule 31151; (web 01) 10.0.0.5->C:\\Program Files\\x.log $(id)"}},
			{"admin 203.0.113.4 " + id + " 5712", siemtest.Body{AlertID: id, RuleID: "5712", Reason: "OSSEC rule 5712"}},
			{"- 203.0.113.5 - - -", siemtest.Body{Reason: "OSSEC rule -; -"}},
			{"- 203.0.113.6 x.y 57a12", siemtest.Body{Reason: "OSSEC rule -"}},
			{"- 203.0.113.7", siemtest.Body{Reason: "OSSEC rule -"}},
		} {
			if status := execd(r, "add", c.message); status != 0 {
				r.Fatalf("%q: status %d, log %q", c.message, status, r.Log())
			}
			r.Sent()
			got := s.Accepted()[n].Body
			c.want.Source, c.want.Origin, c.want.EventTime = fmt.Sprintf("203.0.113.%d", n+1), "ossec", got.EventTime
			if diff := cmp.Diff(c.want, got); diff != "" {
				r.Errorf("%q (-want +got):\n%s", c.message, diff)
			}
			if c.want.AlertID != "" && got.EventTime != now.UTC().Format(time.RFC3339) {
				r.Errorf("%q: event_time %s, want %s", c.message, got.EventTime, now)
			}
		}
	})
}

// Whoever chooses a user name with a blank in it moves the words: he must not choose whom to block.
func TestAdd_refusesWordsThatWereMoved(t *testing.T) {
	siemtest.InEachShell(t, "parry-ossec", func(r *siemtest.Rig) {
		s := r.Stub()
		id := fmt.Sprintf("%d.1549653", time.Now().Unix())
		for _, message := range []string{
			"x 198.51.100.1 203.0.113.7 " + id + " 5712 siem01->/var/log/auth.log -",
			"x 198.51.100.1 " + id + " 5712 203.0.113.7 " + id + " 5712 siem01->/var/log/auth.log -",
			"x y 203.0.113.7 " + id + " 5712", "", "-", "- 203.0.113.7;id", "- host.example " + id + " 5712", "- ::::", "- -",
		} {
			if status := execd(r, "add", message); status != 2 {
				r.Errorf("%q: status %d, want 2", message, status)
			}
		}
		for _, command := range []string{"", "restart", "add;id", "ADD"} {
			if status := execd(r, command, "- 203.0.113.7"); status != 2 {
				r.Errorf("%q: status %d, want 2", command, status)
			}
		}
		r.Idle()
		if s.Attempts() != 0 || len(r.Files("queue")) != 0 {
			r.Errorf("%d requests, waiting %v", s.Attempts(), r.Files("queue"))
		}
	})
}

// With alerts_json the reason is the alert's own, found by its id among the last lines.
func TestEvidence_isTheAlertsOwn(t *testing.T) {
	siemtest.InEachShell(t, "parry-ossec", func(r *siemtest.Rig) {
		s := r.Service()
		r.Configure("ttl=4h\nalerts_json=" + r.Dir + "/alerts.json\n")
		a := siemtest.Alert{N: 1, Source: r.Address(7), Time: time.Now()}
		alert := map[string]any{"rule": map[string]any{"level": 10, "comment": "SSHD brute force trying to get access to the \"system\".", "sidid": 5712, "group": "syslog,sshd,"},
			"id": alertID(a), "TimeStamp": a.Time.UnixMilli(), "decoder": "sshd", "srcip": a.Source, "dstuser": "$(id)'é", "program_name": "sshd", "hostname": "web01",
			"location": "(web01) 10.0.0.5->/var/log/auth.log", "full_log": `sshd[1]: "id":"` + alertID(a) + `","srcip":"8.8.8.8" from ` + a.Source}
		line, err := json.Marshal(alert)
		if err != nil {
			r.Fatal(err)
		}
		other := strings.ReplaceAll(string(line), alertID(a), alertID(siemtest.Alert{N: 2, Time: a.Time}))
		liar := fmt.Sprintf(`{"id":"0.0","full_log":"x","note":{"id":%q},"rule":{"comment":"a lie"},"srcip":"8.8.8.8"}`, alertID(a))
		r.Write("alerts.json", strings.Repeat(other+"\n", 5000)+string(line)+"\n"+other+"\n")
		if status := execd(r, "add", message(a)); status != 0 {
			r.Fatalf("status %d, log %q", status, r.Log())
		}
		r.Sent()
		want := `OSSEC rule 5712, level 10: SSHD brute force trying to get access to the "system".; decoder sshd; program sshd; host web01; user $(id)'é; ` +
			"(web01) 10.0.0.5->/var/log/auth.log"
		if got := s.Evidence(s.Block(a.Source))[0].Reason; got != want {
			r.Errorf("reason = %q\nwant     %q", got, want)
		}
		// An alert that is not there, one that only looks like it, a file that is not there: the block is made all the same.
		for i, content := range []string{other + "\n", liar + "\n", "\x00\xff" + string(line[:len(line)-5]) + "\n"} {
			r.Write("alerts.json", content)
			b := siemtest.Alert{N: 1, Source: r.Address(10 + i), Time: a.Time}
			if status := execd(r, "add", message(b)); status != 0 {
				r.Fatalf("status %d, log %q", status, r.Log())
			}
			r.Sent()
			if got := s.Evidence(s.Block(b.Source))[0].Reason; got != "OSSEC rule 5712; (web01) 10.0.0.5->/var/log/auth.log" {
				r.Errorf("with %.40q: reason %q", content, got)
			}
		}
		// The alert is about somebody else: the words were moved.
		r.Write("alerts.json", string(line)+"\n")
		if status := execd(r, "add", message(siemtest.Alert{N: 1, Source: r.Address(20), Time: a.Time})); status != 2 {
			r.Errorf("another's alert: status %d, want 2", status)
		}
		if err := os.Remove(r.Dir + "/alerts.json"); err != nil {
			r.Fatal(err)
		}
		if status := execd(r, "add", message(siemtest.Alert{N: 9, Source: r.Address(21), Time: a.Time})); status != 0 {
			r.Errorf("without the file: status %d, want 0", status)
		}
		r.Sent()
	})
}

// A FIFO, or a file on a file system that hangs, in the place of alerts.json costs a second and no block.
func TestEvidence_isBounded(t *testing.T) {
	siemtest.InEachShell(t, "parry-ossec", func(r *siemtest.Rig) {
		s := r.Stub()
		if err := exec.Command("mkfifo", r.Dir+"/alerts.json").Run(); err != nil {
			r.Fatal(err)
		}
		r.Configure("alerts_json=" + filepath.Join(r.Dir, "alerts.json") + "\n")
		start := time.Now()
		if status := execd(r, "add", message(siemtest.Alert{N: 1, Source: "203.0.113.7", Time: start})); status != 0 {
			r.Errorf("status %d, log %q", status, r.Log())
		}
		if took := time.Since(start); took > 4*time.Second {
			r.Errorf("the call took %v", took)
		}
		r.Sent()
		if len(s.Accepted()) != 1 {
			r.Errorf("accepted %v", s.Accepted())
		}
	})
}
