package ossim_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/app"
	"github.com/parry/parry/internal/config"
)

// service is the real parry, with one firewall that nobody answers for: requests are accepted, and nothing is enforced.
func (r *rig) service() *api.ClientWithResponses {
	r.Helper()
	if os.Getuid() != 0 {
		r.Skip("the service's socket is for root")
	}
	r.down()
	dir := r.dir + "/parry"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.Fatal(err)
	}
	bundles := strings.TrimSuffix(r.script, "integrations/ossim/parry-ossim") + "playbooks"
	r.write("parry/inventory.yml", "all: {hosts: {fw-a: {ansible_host: 192.0.2.1, ansible_user: admin}}}\n")
	r.write("parry/known_hosts", "")
	r.write("parry/parry.yaml", fmt.Sprintf(`
listen: %s
socket: %s/s
state_dir: %[2]s/state
bundles: %[3]s
ansible: {inventory: %[2]s/inventory.yml, known_hosts: %[2]s/known_hosts}
firewalls: [{name: fw-a, bundle: pfsense, interface: wan}]
exemptions: [{prefix: 198.18.0.53/32, reason: our resolver}]
`, r.addr, dir, bundles))
	cfg, err := config.Load(dir+"/parry.yaml", []string{"PATH=" + os.Getenv("PATH")})
	if err != nil {
		r.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	a, err := app.New(ctx, app.Options{Config: cfg, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		r.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	r.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			r.Error(err)
		}
		if err := a.Close(); err != nil {
			r.Error(err)
		}
	})
	client, err := api.NewClientWithResponses("http://parry", api.WithHTTPClient(&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", dir+"/s")
		}}}))
	if err != nil {
		r.Fatal(err)
	}
	made, err := client.CreateTokenWithResponse(ctx, api.TokenRequest{Name: "ossim", Role: "trigger", Rate: 1000})
	if err != nil || made.JSON201 == nil {
		r.Fatalf("no token: %v %s", err, made.Body)
	}
	r.write("token", made.JSON201.Secret)
	ca, _ := a.CA()
	r.configure("ca_file=" + ca + "\nfirewalls=fw-a\nttl=2h\n")
	return client
}

func TestService_takesWhatTheScriptSends(t *testing.T) {
	inEachShell(t, func(r *rig) {
		client := r.service()
		hostile := "\"}<b>\r\n\x01\xff{{ 7*7 }}$(id)"
		args := []string{"--wait", "--src-ip=203.0.113.7", "--dst-ip=198.51.100.10", "--dst-port=22", "--protocol=TCP", "--plugin-id=1505",
			"--plugin-sid=30001", "--event-id=" + event, "--sensor=" + hostile, "--date=2017-08-05", "10:11:12", "[UTC]"}
		asked := time.Now()
		r.mustRun(args...)
		page, err := client.ListBlocksWithResponse(r.Context(), &api.ListBlocksParams{Source: new("203.0.113.7"), Limit: new(10)})
		if err != nil || page.JSON200 == nil || len(page.JSON200.Items) != 1 {
			r.Fatalf("blocks: %v %s", err, page.Body)
		}
		b := page.JSON200.Items[0]
		if b.Destination != "198.51.100.10" || b.DestinationPort != 22 || b.Protocol != "tcp" || b.CreatedBy != "ossim" {
			r.Errorf("block: %s", page.Body)
		}
		if left := b.ExpiresAt.Sub(asked); left < 2*time.Hour-2*time.Second || left > 2*time.Hour+5*time.Second {
			r.Errorf("it stands for %v, want 2 h from the event", left)
		}
		if want := strings.ToValidUTF8("OSSIM event 1505:30001, sensor "+hostile+", at 2017-08-05 10:11:12 [UTC]", "\ufffd"); b.Reason != want {
			r.Errorf("reason = %q, want %q", b.Reason, want)
		}
		evidence, err := client.ListBlockRequestsWithResponse(r.Context(), b.ID, &api.ListBlockRequestsParams{Limit: new(10)})
		if err != nil || evidence.JSON200 == nil || len(evidence.JSON200.Items) != 1 {
			r.Fatalf("requests: %v %s", err, evidence.Body)
		}
		if e := evidence.JSON200.Items[0]; e.AlertID != event || e.RuleID != "1505:30001" || e.Origin != "ossim" {
			r.Errorf("evidence: %s", evidence.Body)
		}
	})
}

func TestService_refusalsAreToldAndSetAside(t *testing.T) {
	inEachShell(t, func(r *rig) {
		r.service()
		if status, out := r.run("--wait", "--src-ip=198.18.0.53"); status != 4 || !strings.Contains(out, "422") {
			r.Errorf("an exempt address: status %d, %q", status, out)
		}
		r.write("token", token)
		if status, out := r.run("--wait", "--src-ip=203.0.113.8"); status != 4 || !strings.Contains(out, "401") {
			r.Errorf("a wrong token: status %d, %q", status, out)
		}
		if got := len(r.files("refused")); got != 2 {
			r.Errorf("%d set aside, want 2", got)
		}
	})
}

// What was sent but whose answer was lost is sent again: the service must take it for the same request.
func TestService_aResentRequestIsOne(t *testing.T) {
	inEachShell(t, func(r *rig) {
		client := r.service()
		secret, err := os.ReadFile(r.dir + "/token")
		if err != nil {
			r.Fatal(err)
		}
		r.write("token", "")
		if status, out := r.run("--wait", "--src-ip=203.0.113.7", "--event-id="+event); status != 6 {
			r.Fatalf("without a token: status %d, %q", status, out)
		}
		r.write("token", string(secret))
		name := r.spool + "/queue/" + r.files("queue")[0]
		body, err := os.ReadFile(name)
		if err != nil {
			r.Fatal(err)
		}
		for range 3 {
			if err := os.WriteFile(name, body, 0o600); err != nil {
				r.Fatal(err)
			}
			r.mustRun("--replay")
		}
		page, err := client.ListBlocksWithResponse(r.Context(), &api.ListBlocksParams{Source: new("203.0.113.7"), Limit: new(10)})
		if err != nil || page.JSON200 == nil || len(page.JSON200.Items) != 1 {
			r.Fatalf("blocks: %v %s", err, page.Body)
		}
		if n := page.JSON200.Items[0].Count; n != 1 {
			r.Errorf("counted %d requests, want 1: %s", n, page.Body)
		}
	})
}
