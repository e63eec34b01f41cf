package wazuh_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parry/parry/integrations/internal/siemtest"
	"github.com/parry/parry/internal/hooks"
)

// integratord runs an integration as Wazuh's does: the alert in a file that is gone as soon as the script has ended, and seven arguments.
func integratord(r *siemtest.Rig, document []byte, as *syscall.Credential) int {
	r.Helper()
	f, err := os.CreateTemp(r.Dir, "custom-parry-*.alert")
	if err != nil {
		r.Fatal(err)
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(document); err != nil {
		r.Fatal(err)
	}
	if as != nil {
		if err := f.Chown(int(as.Uid), int(as.Gid)); err != nil {
			r.Fatal(err)
		}
	}
	f.Close()
	cmd := exec.Command(r.Shell, r.Script, f.Name(), "", "", "", "", "10", "3")
	cmd.Dir = r.Dir
	cmd.Env = append([]string{"PARRY_CONF=" + r.Conf}, r.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	return r.Status(cmd.Run())
}

func document(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

func TestSuite_integratord(t *testing.T) {
	t.Parallel()
	siemtest.Suite(t, siemtest.Trigger{Script: "custom-parry", Origin: "wazuh", ID: alertID, Timed: true, Missing: none,
		Fire: func(r *siemtest.Rig, a siemtest.Alert) int { return integratord(r, document(sshd(a)), nil) }})
}

// integratord runs as user wazuh, who has the spool and may read the configuration and the token, and nothing more.
func TestIntegratord_runsAsAnotherUser(t *testing.T) {
	siemtest.InEachShell(t, "custom-parry", func(r *siemtest.Rig) {
		s := r.Service()
		nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
		r.Install(r.Dir + "/custom-parry")
		r.Script = r.Dir + "/custom-parry"
		for path, mode := range map[string]os.FileMode{"": 0o711, "conf": 0o640, "token": 0o640, "ca.pem": 0o644, "spool": 0o700, "log": 0o666} {
			path = r.Dir + "/" + path
			if path == r.Spool {
				if err := os.Mkdir(path, mode); err != nil {
					r.Fatal(err)
				}
			}
			owner := 0
			if path == r.Spool {
				owner = int(nobody.Uid)
			}
			if err := os.Chown(path, owner, int(nobody.Gid)); err != nil {
				r.Fatal(err)
			}
			if err := os.Chmod(path, mode); err != nil {
				r.Fatal(err)
			}
		}
		a := siemtest.Alert{N: 1, Source: r.Address(7), Time: time.Now()}
		if status := integratord(r, document(sshd(a)), nobody); status != 0 {
			r.Fatalf("status %d, log %q", status, r.Log())
		}
		r.Sent()
		s.Block(a.Source)
		r.WantLog("custom-parry[", "accepted "+a.Source)
	})
}

// Each kind of alert, with the block that it makes or the reason for none; and the trigger and POST /api/v1/hooks/wazuh agree about it.
func TestAlerts_everyKind(t *testing.T) {
	files, err := filepath.Glob("../../internal/hooks/testdata/*.json")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d alerts, %v", len(files), err)
	}
	siemtest.InEachShell(t, "parry-wazuh", func(r *siemtest.Rig) {
		s := r.Stub()
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if err != nil {
				r.Fatal(err)
			}
			if strings.Contains(file, "delete") { // which parry's webhook takes for no alert
				continue
			}
			alert, err := hooks.ReadWazuh(raw)
			if err != nil {
				r.Fatal(err)
			}
			// Private sources are the trigger's to send and parry's to refuse.
			verdict := (&hooks.Settings{}).Judge(alert)
			before := len(s.Accepted())
			if err := os.RemoveAll(r.Spool + "/seen"); err != nil { // two files hold the same alert
				r.Fatal(err)
			}
			status := integratord(r, raw, nil)
			r.Sent()
			calls := s.Accepted()[before:]
			switch {
			case verdict.Code != "" && (len(calls) != 0 || status != 2):
				r.Errorf("%s: status %d, asked for %v; the webhook refuses: %s", filepath.Base(file), status, calls, verdict.Detail)
			case verdict.Code == "" && len(calls) != 1:
				r.Errorf("%s: status %d, asked for %v; the webhook blocks %s; log %q", filepath.Base(file), status, calls, verdict.Source, r.Log())
			case verdict.Code == "":
				got, err := netip.ParseAddr(calls[0].Body.Source)
				if err != nil || got.Unmap() != verdict.Source {
					r.Errorf("%s: asked for %s, the webhook blocks %s", filepath.Base(file), calls[0].Body.Source, verdict.Source)
				}
				if c := calls[0].Body; (c.RuleID == "" || c.AlertID == "") && !strings.Contains(file, "wazuh5_active_response") {
					r.Errorf("%s: evidence %+v", filepath.Base(file), c)
				}
			}
		}
	})
}

// The agent's own address, and who began a flow, are told by what an address is, not by how it is written, wherever in a list it stands. The
// webhook agrees.
func TestAlert_anAddressIsItselfInEverySpelling(t *testing.T) {
	siemtest.InEachShell(t, "parry-wazuh", func(r *siemtest.Rig) {
		r.Stub()
		for n, c := range []struct {
			source, other string
			same          bool
		}{
			{"2001:db8::7", "2001:DB8:0:00::0007", true}, {"2001:db8::7", "2001:0db8:0000:0000:0000:0000:0000:0007", true},
			{"2001:DB8::7", "[2001:db8::0.0.0.7]:443", true}, {"2001:db8:1:2:3:4:5:0", "2001:db8:1:2:3:4:5::", true}, {"::7", "0::7", true},
			{"203.0.113.7", "::ffff:203.0.113.7", true}, {"203.0.113.7", "0:0:0:0:0:FFFF:cb00:7107", true}, {"::ffff:203.0.113.7", "203.0.113.7:22", true},
			{"2001:db8::7", "2001:db8::70", false}, {"2001:db8::7", "2001:db8:7::", false}, {"203.0.113.7", "::203.0.113.7", false},
			{"203.0.113.7", "203.0.113.8", false},
		} {
			for place, alert := range map[string]map[string]any{
				"agent.ip":            {"agent": map[string]any{"ip": c.other}},
				"wazuh.agent.host.ip": {"wazuh": map[string]any{"agent": map[string]any{"host": map[string]any{"ip": []any{"10.0.0.5", nil, "*", "fe80::1%eth0", c.other}}}}},
				"data.flow.src_ip":    {"data": map[string]any{"flow": map[string]any{"src_ip": c.other}, "srcip": c.source}},
			} {
				alert["id"] = fmt.Sprintf("1.%d-%s", n, place)
				if alert["data"] == nil {
					alert["data"] = map[string]any{"srcip": c.source}
				}
				raw := document(alert)
				read, err := hooks.ReadWazuh(raw)
				if err != nil {
					r.Fatal(err)
				}
				want := 0
				if c.same != (place == "data.flow.src_ip") {
					want = 2
				}
				if verdict := (&hooks.Settings{}).Judge(read); (verdict.Code == "") != (want == 0) {
					r.Errorf("%s and %s in %s: the webhook says %q", c.source, c.other, place, verdict.Detail)
				}
				if status := integratord(r, raw, nil); status != want {
					r.Errorf("%s and %s in %s: status %d, want %d", c.source, c.other, place, status, want)
				}
			}
		}
		// A flow that names no address tells nothing.
		raw := document(map[string]any{"data": map[string]any{"flow": map[string]any{"src_ip": "203.0.113.07"}, "srcip": "203.0.113.7"}})
		if status := integratord(r, raw, nil); status != 0 {
			r.Errorf("a flow without an address: status %d, want 0", status)
		}
		r.Sent()
	})
}

// The request names the agent, so that parry can block where the alert came from, and the time, so that nothing stands longer than meant.
func TestAlert_agentAndTime(t *testing.T) {
	siemtest.InEachShell(t, "parry-wazuh", func(r *siemtest.Rig) {
		s := r.Stub()
		var got, times []string
		at := time.Now().Add(-time.Hour).Truncate(time.Second)
		for n, c := range []struct {
			conf    string
			message map[string]any
		}{
			{"", sshd(siemtest.Alert{N: 1, Source: "203.0.113.7", Time: at.In(time.FixedZone("", 2*3600))})},
			{"agent=id\n", finding(siemtest.Alert{N: 2, Source: "203.0.113.7", Time: at})},
			{"agent=no\n", sshd(siemtest.Alert{N: 3, Source: "203.0.113.7", Time: at})},
			{"", map[string]any{"timestamp": "x; touch /tmp/pwned", "data": map[string]any{"srcip": "203.0.113.7"}, "agent": []string{"web01"}}},
		} {
			r.Configure(c.conf)
			if status := integratord(r, document(c.message), nil); status != 0 {
				r.Fatalf("status %d, log %q", status, r.Log())
			}
			r.Sent()
			body := s.Accepted()[n].Body
			got = append(got, body.Agent)
			times = append(times, body.EventTime)
		}
		if want := []string{"web01", "003", "", ""}; !slices.Equal(got, want) {
			r.Errorf("agents %q, want %q", got, want)
		}
		if want := at.UTC().Format(time.RFC3339); times[0] != want || times[1] != want || times[2] != want || times[3] <= want {
			r.Errorf("times %q, want three of %s and one of now", times, want)
		}
	})
}

// A clock that runs ahead of parry's, or an alert of long ago, must not cost the block.
func TestAlert_strangeTimes(t *testing.T) {
	siemtest.InEachShell(t, "custom-parry", func(r *siemtest.Rig) {
		s := r.Service()
		for i, at := range []time.Time{time.Now().Add(48 * time.Hour), time.Unix(0, 0), time.Now().Add(-100 * 24 * time.Hour)} {
			if status := integratord(r, document(sshd(siemtest.Alert{N: i, Source: r.Address(i), Time: at})), nil); status != 0 {
				r.Fatalf("status %d, log %q", status, r.Log())
			}
		}
		r.Sent()
		for i := range 3 {
			if left := time.Until(s.Block(r.Address(i)).ExpiresAt); left < siemtest.TTL-time.Minute || left > siemtest.TTL {
				r.Errorf("block %d stands for %v, want %v", i, left, siemtest.TTL)
			}
		}
	})
}
