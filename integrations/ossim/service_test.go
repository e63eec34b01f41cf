package ossim_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/integrations/internal/siemtest"
)

func TestMain(m *testing.M) { siemtest.Main(m) }

// frameworkd runs a policy's action as OSSIM's does: it puts the values into the command's text, quotes nothing, and has /bin/sh run that
// with umask 0, cwd / and stdio on /dev/null.
func frameworkd(r *siemtest.Rig, action string, keywords map[string]string) int {
	for name, value := range keywords {
		action = strings.ReplaceAll(action, name, value)
	}
	cmd := exec.Command("/bin/sh", "-c", "umask 0; "+strings.Replace(action, "/usr/local/bin/parry-ossim", r.Shell+" "+r.Script, 1))
	cmd.Dir = "/"
	cmd.Env = append([]string{"PARRY_CONF=" + r.Conf}, r.Env...)
	return r.Status(cmd.Run())
}

// action is the README's.
func action(t *testing.T) string {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(readme)) {
		if strings.HasPrefix(line, "    /usr/local/bin/parry-ossim --src-ip=SRC_IP ") {
			return strings.TrimSpace(line)
		}
	}
	t.Fatal("README.md names no action")
	return ""
}

func eventID(a siemtest.Alert) string { return fmt.Sprintf("0f3c1e52-7a1b-11e7-9a3b-%012x", a.N+1) }

func TestSuite(t *testing.T) {
	t.Parallel()
	siemtest.Suite(t, siemtest.Trigger{
		Script: "parry-ossim", Origin: "ossim", ID: eventID, Missing: []string{"", "0.0.0.0", "::"},
		Fire: func(r *siemtest.Rig, a siemtest.Alert) int {
			if strings.Trim(a.Source, "0123456789abcdef.:") != "" { // OSSIM never puts such a thing for SRC_IP; whoever runs the script by hand might
				status, _ := r.Run("--src-ip="+a.Source, "--event-id="+eventID(a))
				return status
			}
			return frameworkd(r, "/usr/local/bin/parry-ossim --src-ip=SRC_IP --plugin-id=PLUGIN_ID --plugin-sid=PLUGIN_SID --event-id=EVENT_ID",
				map[string]string{"SRC_IP": a.Source, "PLUGIN_ID": "1505", "PLUGIN_SID": "30001", "EVENT_ID": eventID(a)})
		},
	})
}

// The README's action for an event, and for an alarm of a directive, which comes again with each event that is correlated into it.
func TestService_aDirectivesAlarmRefreshesItsBlock(t *testing.T) {
	siemtest.InEachShell(t, "parry-ossim", func(r *siemtest.Rig) {
		s := r.Service()
		for n, risk := range []string{"3", "6", "8"} {
			if status := frameworkd(r, action(t), map[string]string{
				"SRC_IP": r.Address(7), "DST_IP": "198.51.100.10", "SRC_PORT": "40022", "DST_PORT": "22", "PROTOCOL": "TCP",
				"PLUGIN_ID": "1505", "PLUGIN_SID": "50001", "EVENT_ID": eventID(siemtest.Alert{N: n}), "BACKLOG_ID": "2c9d8e10-7a1b-11e7-9a3b-000c29aabbcc",
				"RISK": risk, "PRIORITY": "4", "RELIABILITY": "10", "SENSOR": "192.0.2.5",
			}); status != 0 {
				r.Fatalf("status %d, log %q", status, r.Log())
			}
			r.Sent()
		}
		b := s.Block(r.Address(7))
		if b.Destination != "198.51.100.10" || b.DestinationPort != 22 || b.Protocol != "tcp" || b.Count != 3 {
			r.Errorf("block: %+v", b)
		}
		want := "OSSIM event 1505:50001, risk 8, priority 4, reliability 10, from port 40022, sensor 192.0.2.5, backlog 2c9d8e10-7a1b-11e7-9a3b-000c29aabbcc"
		if got := s.Evidence(b)[0]; got.Reason != want || got.RuleID != "1505:50001" {
			r.Errorf("evidence: %+v", got)
		}
	})
}

func TestService_takesWhatTheScriptSends(t *testing.T) {
	siemtest.InEachShell(t, "parry-ossim", func(r *siemtest.Rig) {
		s := r.Service()
		hostile := "\"}<b>\r\n\x01\xff{{ 7*7 }}$(id)"
		asked := time.Now()
		r.MustRun("--wait", "--src-ip="+r.Address(7), "--dst-ip=198.51.100.10", "--dst-port=22", "--protocol=TCP", "--plugin-id=1505",
			"--plugin-sid=30001", "--event-id="+event, "--sensor="+hostile, "--date=2017-08-05", "10:11:12", "[UTC]")
		b := s.Block(r.Address(7))
		if b.Destination != "198.51.100.10" || b.DestinationPort != 22 || b.Protocol != "tcp" || b.CreatedBy != "siem" {
			r.Errorf("block: %+v", b)
		}
		if left := b.ExpiresAt.Sub(asked); left < siemtest.TTL-2*time.Second || left > siemtest.TTL+5*time.Second {
			r.Errorf("it stands for %v, want %v from the event", left, siemtest.TTL)
		}
		if want := strings.ToValidUTF8("OSSIM event 1505:30001, sensor "+hostile+", at 2017-08-05 10:11:12 [UTC]", "\ufffd"); b.Reason != want {
			r.Errorf("reason = %q, want %q", b.Reason, want)
		}
		if e := s.Evidence(b); len(e) != 1 || e[0].AlertID != event || e[0].RuleID != "1505:30001" || e[0].Origin != "ossim" {
			r.Errorf("evidence: %+v", e)
		}
	})
}

func TestService_waitTellsRefusals(t *testing.T) {
	siemtest.InEachShell(t, "parry-ossim", func(r *siemtest.Rig) {
		r.Service()
		if status, out := r.Run("--wait", "--src-ip="+siemtest.Resolver); status != 4 || !strings.Contains(out, "422") {
			r.Errorf("an exempt address: status %d, %q", status, out)
		}
		r.Write("token", token)
		if status, out := r.Run("--wait", "--src-ip="+r.Address(8)); status != 4 || !strings.Contains(out, "401") {
			r.Errorf("a wrong token: status %d, %q", status, out)
		}
	})
}

// What was sent but whose answer was lost is sent again: the service must take it for the same request.
func TestService_aResentRequestIsOne(t *testing.T) {
	siemtest.InEachShell(t, "parry-ossim", func(r *siemtest.Rig) {
		s := r.Service()
		s.Down()
		if status, out := r.Run("--wait", "--src-ip="+r.Address(7), "--event-id="+event); status != 6 {
			r.Fatalf("with parry down: status %d, %q", status, out)
		}
		s.Up()
		name := r.Spool + "/queue/" + r.Files("queue")[0]
		body, err := os.ReadFile(name)
		if err != nil {
			r.Fatal(err)
		}
		for range 3 {
			if err := os.WriteFile(name, body, 0o600); err != nil {
				r.Fatal(err)
			}
			r.MustRun("--replay")
		}
		if b := s.Block(r.Address(7)); b.Count != 1 {
			r.Errorf("counted %d requests, want 1: %+v", b.Count, b)
		}
	})
}
