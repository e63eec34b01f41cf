package siemtest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Alert is what a SIEM fires about.
type Alert struct {
	N      int       // tells a rig's alerts apart
	Source string    // an address, or what stood in its place
	Delete bool      // the end of an active response
	Time   time.Time // when the SIEM saw it, to the second
}

// Trigger is a script and its SIEM.
type Trigger struct {
	Script  string                    // its path
	Origin  string                    // that it gives by itself
	ID      func(a Alert) string      // the alert's id, as the SIEM makes it
	Fire    func(r *Rig, a Alert) int // runs the script as the SIEM does, to its end, and returns its exit status
	Deletes bool                      // whether the SIEM has deletes
	Timed   bool                      // whether it tells the script when the alert was
	Missing []string                  // what stands in place of an address that is not known
}

// Suite holds what every trigger must do, each against the real parry and under each shell.
func Suite(t *testing.T, trigger Trigger) {
	t.Helper()
	for _, spec := range []struct {
		name string
		run  func(r *Rig, s *Service, t Trigger)
	}{
		{"add", add}, {"repeat", repeat}, {"delete", deletes}, {"refusedDelete", refusedDelete}, {"IPv6", ipv6}, {"missing", missing}, {"hostile", hostile},
		{"downAndBack", downAndBack}, {"slow", slow}, {"wrongCA", wrongCA}, {"wrongToken", wrongToken}, {"refused", refused},
		{"storm", storm}, {"spoolFull", spoolFull}, {"otherName", otherName}, {"example", example},
	} {
		t.Run(spec.name, func(t *testing.T) {
			InEachShell(t, trigger.Script, func(r *Rig) { spec.run(r, r.Service(), trigger) })
		})
	}
}

// ago is a time that is not now, so that a script which makes up its own is found out.
func ago(d time.Duration) time.Time { return time.Now().Add(-d).Truncate(time.Second) }

// fire wants the status 0, and as soon as no SIEM would notice.
func fire(r *Rig, t Trigger, a Alert) {
	r.Helper()
	start := time.Now()
	if status := t.Fire(r, a); status != 0 {
		r.Fatalf("alert of %s: status %d, log %q", a.Source, status, r.Log())
	}
	if took := time.Since(start); took > 5*time.Second {
		r.Errorf("the SIEM waited %v", took)
	}
}

// stands wants that the block ends TTL after the alert.
func stands(r *Rig, t Trigger, a Alert, expires time.Time) {
	r.Helper()
	first, last := a.Time, a.Time
	if !t.Timed {
		first, last = first.Add(-time.Second), time.Now()
	}
	if expires.Before(first.Add(TTL)) || expires.After(last.Add(TTL)) {
		r.Errorf("it stands until %v, want %v after the alert's %v", expires, TTL, a.Time)
	}
}

func add(r *Rig, s *Service, t Trigger) {
	a := Alert{N: 1, Source: r.Address(7), Time: ago(10 * time.Minute)}
	if !t.Timed {
		a.Time = ago(0)
	}
	fire(r, t, a)
	r.Sent()
	b := s.Block(a.Source)
	if b.CreatedBy != "siem" || b.Origin != t.Origin || b.Count != 1 || b.Destination != "" {
		r.Errorf("block: %+v", b)
	}
	stands(r, t, a, b.ExpiresAt)
	evidence := s.Evidence(b)
	if len(evidence) != 1 || evidence[0].AlertID != t.ID(a) || evidence[0].RuleID == "" || !strings.Contains(evidence[0].Reason, evidence[0].RuleID) {
		r.Errorf("evidence: %+v", evidence)
	}
	r.WantLog(filepath.Base(r.Script), "accepted "+a.Source+" "+b.ID)
	if refused := r.Files("refused"); len(refused) != 0 {
		r.Errorf("refused: %v", refused)
	}
}

func repeat(r *Rig, s *Service, t Trigger) {
	a := Alert{N: 1, Source: r.Address(7), Time: ago(time.Minute)}
	fire(r, t, a)
	fire(r, t, a)
	r.WantLog("repeat " + a.Source)
	a.N, a.Time = 2, a.Time.Add(5*time.Second)
	fire(r, t, a)
	r.Sent()
	b := s.Block(a.Source)
	if b.Count != 2 {
		r.Errorf("counted %d requests, want 2: one alert twice, and another", b.Count)
	}
}

func deletes(r *Rig, s *Service, t Trigger) {
	if !t.Deletes {
		r.Skip("its SIEM has no deletes")
	}
	a := Alert{N: 1, Source: r.Address(7), Time: ago(time.Minute)}
	ends := a
	ends.Delete = true
	fire(r, t, a)
	fire(r, t, ends)
	r.Sent()
	r.WantLog("delete of " + a.Source + " ignored")
	if b := s.Block(a.Source); !b.EndedAt.IsZero() || b.Count != 1 {
		r.Errorf("after a delete that is not to be honoured: %+v", b)
	}
	// The order of an address's requests outlives that parry is away.
	r.Configure("ttl=4h\ndelete=honour\n")
	s.Down()
	a.N, a.Source = 2, r.Address(8)
	ends = a
	ends.Delete = true
	fire(r, t, a)
	fire(r, t, ends)
	s.Up()
	r.MustRun("--replay")
	r.Sent()
	r.WantLog("ended " + a.Source)
	if b := s.Block(a.Source); b.EndedAt.IsZero() {
		r.Errorf("after a delete: %+v", b)
	}
}

// A delete that was refused does not come back to end what was blocked after it.
func refusedDelete(r *Rig, s *Service, t Trigger) {
	if !t.Deletes {
		r.Skip("its SIEM has no deletes")
	}
	secret, err := os.ReadFile(r.Dir + "/token")
	if err != nil {
		r.Fatal(err)
	}
	r.Configure("ttl=4h\ndelete=honour\n")
	r.Write("token", Token)
	a := Alert{N: 1, Source: r.Address(7), Time: ago(2 * time.Minute)}
	ends := a
	ends.Delete = true
	fire(r, t, a)
	fire(r, t, ends)
	r.Sent()
	r.Write("token", string(secret))
	a.N, a.Time = 2, ago(time.Minute)
	fire(r, t, a)
	r.Sent()
	r.Log()
	r.MustRun("--requeue")
	r.WantLog("1 refused deletes stay in " + r.Spool + "/refused")
	if b := s.Block(a.Source); !b.EndedAt.IsZero() || b.Count != 2 {
		r.Errorf("counted %d requests, want 2 and a live block: %+v", b.Count, b)
	}
	if refused := r.Files("refused"); len(refused) != 1 || !strings.HasSuffix(refused[0], ".delete.json") {
		r.Errorf("refused: %v, want the delete", refused)
	}
}

func ipv6(r *Rig, s *Service, t Trigger) {
	a := Alert{N: 1, Source: r.Address6(1), Time: ago(time.Minute)}
	mapped := Alert{N: 2, Source: "::ffff:" + r.Address(9), Time: a.Time}
	fire(r, t, a)
	fire(r, t, mapped)
	r.Sent()
	if b := s.Block(a.Source); b.Count != 1 {
		r.Errorf("block: %+v", b)
	}
	if b := s.Block(r.Address(9)); b.Count != 1 {
		r.Errorf("block: %+v", b)
	}
}

func missing(r *Rig, s *Service, t Trigger) {
	for i, source := range t.Missing {
		if status := t.Fire(r, Alert{N: i, Source: source, Time: ago(0)}); status != 2 {
			r.Errorf("source %q: status %d, want 2", source, status)
		}
	}
	var lines []string
	r.Until("a line in syslog for each", func() bool { lines = append(lines, r.Log()...); return len(lines) >= len(t.Missing) })
	if queue := r.Files("queue"); len(queue) != 0 || len(lines) != len(t.Missing) {
		r.Errorf("waiting: %v, log %q", queue, lines)
	}
}

func hostile(r *Rig, s *Service, t Trigger) {
	sources := []string{
		"SRC_IP", "host.example", "203.0.113.256", "203.0.113.07", "203.0.113", "3405803783", "0x7f.1", "203.0.113.0/24",
		"203.0.113.7;touch${IFS}" + r.Dir + "/pwned", "$(touch${IFS}" + r.Dir + "/pwned)", "`id`", "203.0.113.7|id", "../../etc/passwd", "*",
		"::::", "1::2::3", "12345::1", "fe80::1%eth0", "1:2:3:4:5:6:7", "203.0.113.7\n203.0.113.8", "203.0.113.7'", `203.0.113.7"`, "203.0.113.7\\",
		"-K/etc/passwd", "--replay", strings.Repeat("1", 60000), strings.Repeat("1.", 3000), "203.0.113.7\x01", "203.0.113.7\xff", "２０３.0.113.7", "[203.0.113.7:22]",
	}
	for i, source := range sources {
		if status := t.Fire(r, Alert{N: i, Source: source, Time: ago(0)}); status != 2 {
			r.Errorf("source %.80q: status %d, want 2", source, status)
		}
	}
	r.Idle()
	if queue, refused := r.Files("queue"), r.Files("refused"); len(queue)+len(refused) != 0 {
		r.Errorf("waiting %v, refused %v", queue, refused)
	}
	if _, err := os.Stat(r.Dir + "/pwned"); err == nil {
		r.Error("it was executed")
	}
	for _, line := range r.Log() {
		if strings.ContainsFunc(line, func(c rune) bool { return c < ' ' || c > '~' }) || len(line) > 500 {
			r.Errorf("a line of syslog is not inert: %q", line)
		}
	}
	if b := s.Blocks("203.0.113.7"); len(b) != 0 {
		r.Errorf("blocks: %+v", b)
	}
}

func downAndBack(r *Rig, s *Service, t Trigger) {
	s.Down()
	var alerts [2][]Alert
	for i := range 6 {
		a := Alert{N: i, Source: r.Address(i % 2), Time: ago(10*time.Minute - time.Duration(i)*time.Second)}
		if !t.Timed {
			a.Time = ago(0)
		}
		alerts[i%2] = append(alerts[i%2], a)
		fire(r, t, a)
	}
	r.Idle()
	if status, out := r.Run("--replay"); status != 6 || !strings.Contains(out, "parry not reached, 6 waiting, oldest "+r.Address(0)) {
		r.Errorf("--replay with parry down: status %d, %q", status, out)
	}
	// The next call brings what waits.
	s.Up()
	fire(r, t, Alert{N: 6, Source: r.Address(2), Time: ago(0)})
	r.Sent()
	s.Block(r.Address(2))
	for _, of := range alerts {
		b := s.Block(of[0].Source)
		stands(r, t, of[len(of)-1], b.ExpiresAt)
		var want, got []string
		for _, a := range of {
			want = append(want, t.ID(a))
		}
		for _, e := range s.Evidence(b) {
			got = append(got, e.AlertID)
		}
		slices.Reverse(got)
		if diff := cmp.Diff(want, got); diff != "" {
			r.Errorf("order of %s's requests (-want +got):\n%s", b.Source, diff)
		}
	}
}

func slow(r *Rig, s *Service, t Trigger) {
	s.Stuck()
	a := Alert{N: 1, Source: r.Address(7), Time: ago(time.Minute)}
	fire(r, t, a)
	r.Idle()
	r.WantLog("parry not reached, 1 waiting, oldest " + a.Source)
	s.Up()
	r.MustRun("--replay")
	if b := s.Block(a.Source); b.Count != 1 {
		r.Errorf("block: %+v", b)
	}
}

func wrongCA(r *Rig, s *Service, t Trigger) {
	host, _, err := net.SplitHostPort(s.gate.addr)
	if err != nil {
		r.Fatal(err)
	}
	r.Write("ca.pem", PEM(SelfSigned(r.T, host)))
	a := Alert{N: 1, Source: r.Address(7), Time: ago(time.Minute)}
	fire(r, t, a)
	r.Idle()
	r.WantLog("parry not reached, 1 waiting", "certificate")
	if blocks := s.Blocks(a.Source); len(blocks) != 0 || len(r.Files("queue")) != 1 {
		r.Errorf("blocks %+v, waiting %v", blocks, r.Files("queue"))
	}
}

func wrongToken(r *Rig, s *Service, t Trigger) {
	secret, err := os.ReadFile(r.Dir + "/token")
	if err != nil {
		r.Fatal(err)
	}
	r.Write("token", Token)
	a := Alert{N: 1, Source: r.Address(7), Time: ago(time.Minute)}
	fire(r, t, a)
	r.Sent()
	r.WantLog("refused "+a.Source, "401")
	r.MustRun("--replay")
	if blocks := s.Blocks(a.Source); len(blocks) != 0 || len(r.Files("refused")) != 1 {
		r.Errorf("blocks %+v, refused %v", blocks, r.Files("refused"))
	}
	r.Write("token", string(secret))
	r.MustRun("--requeue")
	s.Block(a.Source)
}

func refused(r *Rig, s *Service, t Trigger) {
	fire(r, t, Alert{N: 1, Source: Resolver, Time: ago(0)})
	fire(r, t, Alert{N: 2, Source: r.Address(7), Time: ago(0)})
	r.Sent()
	r.WantLog("refused "+Resolver, "422", "our resolver")
	s.Block(r.Address(7))
}

func storm(r *Rig, s *Service, t Trigger) {
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if status := t.Fire(r, Alert{N: i, Source: r.Address(i), Time: ago(time.Minute)}); status != 0 {
				r.Errorf("alert of %s: status %d", r.Address(i), status)
			}
		})
	}
	wg.Wait()
	r.Sent()
	for i := range 50 {
		if b := s.Block(r.Address(i)); b.Count != 1 {
			r.Errorf("block: %+v", b)
		}
	}
}

func spoolFull(r *Rig, s *Service, t Trigger) {
	r.Configure("ttl=4h\nspool_max=2\n")
	s.Down()
	for i := range 2 {
		fire(r, t, Alert{N: i, Source: r.Address(i), Time: ago(0)})
	}
	r.Idle()
	r.Log()
	if status := t.Fire(r, Alert{N: 2, Source: r.Address(2), Time: ago(0)}); status != 1 {
		r.Errorf("status %d, want 1", status)
	}
	r.WantLog("LOST "+r.Address(2), "is full (2 requests)")
	s.Up()
	r.MustRun("--replay")
	for i := range 2 {
		s.Block(r.Address(i))
	}
}

// Another name of the script is another configuration, so that a SIEM can have two.
func otherName(r *Rig, s *Service, t Trigger) {
	script := r.Dir + "/" + filepath.Base(r.Script) + "-ddos"
	r.Install(script)
	r.Script = script
	fire(r, t, Alert{N: 1, Source: r.Address(7), Time: ago(0)})
	r.Sent()
	s.Block(r.Address(7))
	r.WantLog(filepath.Base(script)+"[", "accepted")
	r.Conf = ""
	if status, out := r.Run("--replay"); status != 1 || !strings.Contains(out, fmt.Sprintf("/etc/%s.conf cannot be read", filepath.Base(script))) {
		r.Errorf("status %d, %q; want that name's configuration to be looked for", status, out)
	}
}

// The example beside the script is a configuration that it takes, with every key that it knows.
func example(r *Rig, s *Service, t Trigger) {
	script, err := filepath.EvalSymlinks(r.Script) // custom-parry has parry-wazuh's
	if err != nil {
		r.Fatal(err)
	}
	shipped, err := os.ReadFile(script + ".conf")
	if err != nil {
		r.Fatal(err)
	}
	ours, err := os.ReadFile(r.Conf)
	if err != nil {
		r.Fatal(err)
	}
	r.Write("conf", string(shipped)+string(ours))
	fire(r, t, Alert{N: 1, Source: r.Address(7), Time: ago(0)})
	r.Sent()
	if b := s.Block(r.Address(7)); b.Origin != t.Origin {
		r.Errorf("block: %+v", b)
	}
	text, err := os.ReadFile(script)
	if err != nil {
		r.Fatal(err)
	}
	for _, lead := range []string{`keys=" `, "\nbegin "} {
		_, rest, _ := strings.Cut(string(text), lead)
		known, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
		for key := range strings.FieldsSeq(known) {
			if strings.HasPrefix(key, "$") || key == "--" {
				break
			}
			if !strings.Contains("\n"+string(shipped), "\n"+key+"=") {
				r.Errorf("%s.conf does not explain %s", filepath.Base(script), key)
			}
		}
	}
}
