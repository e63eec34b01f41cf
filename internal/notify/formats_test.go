package notify_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/notify/lines"
	"github.com/parry/parry/internal/notify/telegram"
	"github.com/parry/parry/internal/notify/thehive"
	"github.com/parry/parry/internal/notify/webhook"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/syslog"
	"github.com/parry/parry/internal/testenv"
)

func hook(t *testing.T, o webhook.Options) (*webhook.Channel, *testenv.Receiver) {
	t.Helper()
	r := testenv.StartWebhook(t)
	o.Name, o.URL, o.CAFile = "c", r.URL+"/hook", r.CAFile
	c, err := webhook.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, r
}

func TestWebhook_anyStandardLibraryVerifiesTheSignature(t *testing.T) {
	t.Parallel()
	c, r := hook(t, webhook.Options{Secret: secret, Token: bearer})
	if _, err := c.Notify(t.Context(), added()); err != nil {
		t.Fatal(err)
	}
	got := r.Posts()[0]
	check, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := check.Verify(got.Body, got.Header); err != nil {
		t.Error(err)
	}
	if err := check.Verify(append(got.Body, ' '), got.Header); err == nil {
		t.Error("a changed body is verified")
	}
	if a := got.Header.Get("Authorization"); a != "Bearer "+bearer {
		t.Errorf("Authorization %q", a)
	}
	var doc notify.Document
	if err := json.Unmarshal(got.Body, &doc); err != nil || doc.Version != 1 || doc.ID != "n-06DM1" || doc.Block.Source != "203.0.113.7" ||
		doc.Severity != parry.SeverityWarning || doc.Block.Offence != 3 {
		t.Errorf("%v: %+v", err, doc)
	}
}

// snippet is the documentation's code in a language that checks a signature.
func snippet(t *testing.T, lang string) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/CHANNELS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(b), "```"+lang+"\n")[1:] {
		if code, _, _ := strings.Cut(part, "```"); strings.Contains(code, "SIGNATURE") {
			return code
		}
	}
	t.Fatalf("docs/CHANNELS.md checks no signature in %s", lang)
	return ""
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What docs/CHANNELS.md shows verifies what the channel sends.
func TestWebhook_theSnippetsOfTheDocumentationVerify(t *testing.T) {
	t.Parallel()
	const plain = "a-key-of-at-least-sixteen-bytes"
	c, r := hook(t, webhook.Options{Secret: plain})
	if _, err := c.Notify(t.Context(), added()); err != nil {
		t.Fatal(err)
	}
	got := r.Posts()[0]
	for lang, cmd := range map[string][]string{"python": {"/usr/bin/python3", "-"}, "sh": {"dash", "-s"}} {
		script := snippet(t, lang)
		for body, want := range map[string]bool{string(got.Body): true, string(got.Body) + " ": false} {
			run := exec.Command(cmd[0], cmd[1:]...)
			file := t.TempDir() + "/body"
			write(t, file, body)
			run.Stdin = strings.NewReader(script)
			run.Env = []string{"PATH=/usr/bin:/bin", "SECRET=" + plain, "BODY=" + file}
			for name, h := range map[string]string{"ID": "webhook-id", "TIMESTAMP": "webhook-timestamp", "SIGNATURE": "webhook-signature"} {
				run.Env = append(run.Env, name+"="+got.Header.Get(h))
			}
			out, err := run.CombinedOutput()
			if (err == nil) != want {
				t.Errorf("%s: %v, want verified %v\n%s", lang, err, want, out)
			}
		}
	}
}

func TestWebhook_aTemplateCannotBeBrokenOutOf(t *testing.T) {
	t.Parallel()
	c, r := hook(t, webhook.Options{Template: `{"text": {{.title}}, "more": "why: {{text .block.reason}}", "sev": {{json .severity}},
		"firewall": {{.report.firewall}}{{if .block.source}}, "ip": {{.block.source}}{{end}},
		"waiting": [{{range $i, $w := .report.waiting}}{{if $i}}, {{end}}{{$w}}{{end}}]}`})
	d := added()
	d.Block.Reason = `x", "admin": true, "y": "`
	for _, d := range []parry.Delivery{d, failed()} {
		if _, err := c.Notify(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	var got struct {
		Text, More, Sev, IP string
		Admin               bool
		Waiting             []string
	}
	if err := json.Unmarshal(r.Posts()[0].Body, &got); err != nil || got.Admin || got.More != "why: "+d.Block.Reason || got.IP != "203.0.113.7" || got.Sev != "warning" {
		t.Errorf("%v: %s", err, r.Posts()[0].Body)
	}
	for _, bad := range []string{`{"a": "{{.title}}"}`, `{"a": {{text .title}}}`, `{{.nothing`, `{"a": {{.title}}`, `{{nofunc .title}}`, `{"a": {{.title.x}}}`} {
		if _, err := webhook.New(webhook.Options{Name: "c", URL: r.URL, Template: bad}); err == nil || !strings.Contains(err.Error(), "template_file") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestWebhook_aShortSecretIsRefused(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"short", "whsec_", "whsec_!!!", "whsec_c2hvcnQ="} {
		if _, err := webhook.New(webhook.Options{Name: "c", URL: "https://h.example/", Secret: s}); err == nil || strings.Contains(err.Error(), s+" ") {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestTelegram_cutsAtARuneAndKeepsTheReference(t *testing.T) {
	t.Parallel()
	r := testenv.StartTelegram(t)
	c, err := telegram.New(telegram.Options{Name: "c", API: r.URL, Token: testenv.TelegramToken, Chat: testenv.TelegramChat})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	for _, filler := range []string{"x", "é", "😀"} {
		d := failed()
		for i := range d.Report.Waiting {
			d.Report.Waiting[i] = strings.Repeat(filler, 900)
		}
		for range 9 {
			d.Report.Waiting = append(d.Report.Waiting, strings.Repeat(filler, 901))
		}
		d.Report.WaitingN = 10
		if _, err := c.Notify(t.Context(), d); err != nil {
			t.Errorf("%s: %v", filler, err)
		}
	}
	for _, p := range r.Posts() {
		var m struct{ Text string }
		if err := json.Unmarshal(p.Body, &m); err != nil || !strings.HasSuffix(m.Text, "…\nReference: n-06DM2") || strings.Contains(m.Text, "\ufffd\n") {
			t.Errorf("%v: …%s", err, m.Text[len(m.Text)-60:])
		}
		if n := len(utf16.Encode([]rune(m.Text))); n < 4000 {
			t.Errorf("cut to %d units, shorter than need be", n)
		}
	}
}

func TestTelegram_refusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	for _, bad := range []telegram.Options{
		{Token: "x", Chat: "1"}, {Token: testenv.TelegramToken, Chat: "soc chat"}, {Token: testenv.TelegramToken, Chat: "1", API: "ftp://x"},
		{Token: testenv.TelegramToken, Chat: "1", API: "http://192.0.2.7:8081"},
	} {
		if _, err := telegram.New(bad); err == nil || strings.Contains(err.Error(), testenv.TelegramToken) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestTheHive_aDuplicateIsSuccessAndAnObservableIsNone(t *testing.T) {
	t.Parallel()
	for _, v := range []thehive.Version{thehive.V0, thehive.V1} {
		r := testenv.StartTheHive(t)
		c, err := thehive.New(thehive.Options{Name: "c", URL: r.URL, Key: testenv.TheHiveKey, Version: v})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		for range 2 {
			if again, err := c.Notify(t.Context(), added()); err != nil {
				t.Errorf("%s: %v, %v", v, again, err)
			}
		}
		if len(r.Posts()) != 1 || len(r.Wrong()) != 1 || !strings.Contains(r.Wrong()[0], "already exist") {
			t.Errorf("%s: %d alerts; refused: %q", v, len(r.Posts()), r.Wrong())
		}
		d := added()
		d.Block.ID, d.Block.Destination = "b-2", d.Block.Source
		if _, err := c.Notify(t.Context(), d); err != nil {
			t.Errorf("%s: the same address twice: %v", v, err)
		}
		d.Block.ID, d.Block.Source, d.Block.Destination = "b-3", "2001:db8::/48", ""
		if _, err := c.Notify(t.Context(), d); err != nil {
			t.Errorf("%s: a prefix: %v", v, err)
		}
		var a struct {
			SourceRef, Description string
			Observables, Artifacts []struct{ DataType, Data string }
			Tags                   []string
		}
		if err := json.Unmarshal(r.Posts()[0].Body, &a); err != nil || a.SourceRef != "b-06DM0" {
			t.Errorf("%v: %+v", err, a)
		}
		if n := len(a.Observables); v == thehive.V1 && (n != 2 || len(a.Artifacts) != 0) || v == thehive.V0 && (n != 0 || len(a.Artifacts) != 2) {
			t.Errorf("%s: %s", v, r.Posts()[0].Body)
		}
		// Words stand in a fence that they cannot end.
		fence := regexp.MustCompile("^`+").FindString(a.Description)
		if len(fence) < 4 || strings.Count(a.Description, fence) != 2 || !strings.HasSuffix(a.Description, "\n"+fence) {
			t.Errorf("%s: %s", v, a.Description)
		}
	}
}

func TestLines_arriveOverEveryNetworkAndAreTriedAgain(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"udp", "tcp", "tls", "unix"} {
		for _, format := range []lines.Format{lines.Words, lines.CEF} {
			t.Run(network+","+string(format), func(t *testing.T) {
				t.Parallel()
				srv := testenv.StartSyslog(t, network, "")
				c, err := lines.New(lines.Options{Name: "c", Format: format, Syslog: syslog.Options{Network: syslog.Network(network), Address: srv.Addr,
					CAFile: srv.CAFile, Hostname: "h", Timeout: time.Second}})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(c.Close)
				if _, err := c.Probe(t.Context()); err != nil {
					t.Error(err)
				}
				for range 2 { // a repeat is the same line, for the receiver to drop
					if _, err := c.Notify(t.Context(), added()); err != nil {
						t.Fatal(err)
					}
				}
				if answer, err := c.Test(t.Context()); err != nil || answer == "" {
					t.Errorf("%q, %v", answer, err)
				}
				got := srv.Wait(3, 10*time.Second)
				if len(got) != 3 || got[0] != got[1] || len(srv.Faults()) > 0 {
					t.Errorf("got %q, faults %q", got, srv.Faults())
				}
				srv.Close()
				if network == "udp" {
					return // it has no answer
				}
				if again, err := c.Notify(t.Context(), added()); err == nil || !again {
					t.Errorf("nobody there: %v, %v", again, err)
				}
			})
		}
	}
}

// readCEF reads a line as a collector does: seven fields parted by bars that have no backslash before them, then key=value.
func readCEF(t *testing.T, line string) (header []string, ext map[string]string) {
	t.Helper()
	rest := line[strings.Index(line, "CEF:0|"):]
	if strings.ContainsAny(rest, "\r\n") {
		t.Errorf("several lines: %q", rest)
	}
	field := ""
	i := 0
	for ; i < len(rest) && len(header) < 7; i++ {
		switch {
		case rest[i] == '\\' && i+1 < len(rest):
			if rest[i+1] != '|' && rest[i+1] != '\\' {
				t.Errorf("header: \\%c", rest[i+1])
			}
			i++
			field += rest[i : i+1]
		case rest[i] == '|':
			header, field = append(header, field), ""
		default:
			field += rest[i : i+1]
		}
	}
	ext = map[string]string{}
	keys := regexp.MustCompile(`(?:^| )([A-Za-z0-9]+)=`).FindAllStringSubmatchIndex(rest[i:], -1)
	for n, k := range keys {
		end := len(rest[i:])
		if n+1 < len(keys) {
			end = keys[n+1][0]
		}
		value := rest[i:][k[1]:end]
		if regexp.MustCompile(`(^|[^\\])(\\\\)*=`).MatchString(value) {
			t.Errorf("a bare = in %q", value)
		}
		ext[rest[i:][k[2]:k[3]]] = strings.NewReplacer(`\\`, `\`, `\=`, `=`).Replace(value)
	}
	return header, ext
}

func TestCEF_escapesHeaderAndExtension(t *testing.T) {
	t.Parallel()
	srv := testenv.StartSyslog(t, "tcp", "")
	c, err := lines.New(lines.Options{Name: "c", Format: lines.CEF, Version: "1.0|x", Syslog: syslog.Options{Network: syslog.TCP, Address: srv.Addr, Hostname: "h"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	d := added()
	d.Block.Reason = `a=b src=6.6.6.6 c:\x | end\`
	v6 := added()
	v6.Block.Source = "2001:db8::7"
	fw := failed()
	fw.Firewall, fw.Report.LiftingN = `fw|a\b`, 2
	for _, d := range []parry.Delivery{d, v6, fw, of(parry.NotifyEnded), of(parry.NotifySummary)} {
		if _, err := c.Notify(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	got := srv.Wait(5, 10*time.Second)
	header, ext := readCEF(t, got[0])
	if want := []string{"CEF:0", "parry", "parry", "1.0|x", "block.added", "203.0.113.7 → 198.51.100.10:22/tcp blocked, offence 3", "5"}; fmt.Sprint(header) != fmt.Sprint(want) {
		t.Errorf("header %q, want %q", header, want)
	}
	for k, want := range map[string]string{"src": "203.0.113.7", "dst": "198.51.100.10", "dpt": "22", "proto": "tcp", "act": "blocked", "suser": "ossim",
		"reason": d.Block.Reason, "externalId": "n-06DM1", "cs1Label": "block", "cs1": "b-06DM0", "cn1Label": "offence", "cn1": "3",
		"rt": "1785592980000"} {
		if ext[k] != want {
			t.Errorf("%s=%q, want %q", k, ext[k], want)
		}
	}
	if _, ext := readCEF(t, got[1]); ext["c6a2"] != "2001:db8::7" || ext["c6a2Label"] == "" || ext["src"] != "" {
		t.Errorf("IPv6: %v", ext)
	}
	if _, ext := readCEF(t, got[2]); ext["cn1Label"] != "blocks not in force" || ext["cn1"] != "12" || ext["cn2Label"] != "ended blocks not lifted" || ext["cn2"] != "2" {
		t.Errorf("%v", ext)
	}
	if header, ext := readCEF(t, got[2]); ext["dvchost"] != `fw|a\b` || !strings.HasPrefix(header[5], `fw|a\b failing`) || header[6] != "8" {
		t.Errorf("%q %v", header, ext)
	}
	if _, ext := readCEF(t, got[3]); ext["act"] != "unblocked" {
		t.Errorf("%v", ext)
	}
	if _, ext := readCEF(t, got[4]); ext["cnt"] != "9981" {
		t.Errorf("%v", ext)
	}
}

func TestText_isCleanLinesForEveryKind(t *testing.T) {
	t.Parallel()
	for _, d := range kinds() {
		text := notify.Text(&d)
		if strings.ContainsAny(text, "\x00\x1b\r\u202e") || !strings.HasSuffix(text, "Reference: "+string(d.ID)) || strings.Contains(notify.Title(&d), "\n") {
			t.Errorf("%s: %q", d.Kind, text)
		}
	}
	if got, want := notify.Title(new(failed())), "parry: fw-a failing (task), 12 blocks not in force"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What has ended and still stands is blocked: nobody is to read that it is not in force.
func TestText_tellsWhatIsNotLiftedApartFromWhatIsNotInForce(t *testing.T) {
	t.Parallel()
	d := failed()
	d.Report.Lifting, d.Report.LiftingN = []string{"b-9 203.0.113.9\x1b"}, 2
	if got, want := notify.Title(&d), "parry: fw-a failing (task), 12 blocks not in force, 2 ended blocks not lifted"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := notify.NewDocument(&d).Report.Lifting; len(got) != 1 || strings.Contains(got[0], "\x1b") {
		t.Errorf("the document has %q", got)
	}
	d.Report.Waiting, d.Report.WaitingN, d.Report.LiftingN = nil, 0, 1
	if got, want := notify.Title(&d), "parry: fw-a failing (task), 1 ended block not lifted"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	text := notify.Text(&d)
	for _, want := range []string{"Not in force: 0\n", "Ended, not lifted: 1\n", "Ended, not lifted:\n- b-9 203.0.113.9"} {
		if !strings.Contains(text, want) {
			t.Errorf("the text lacks %q:\n%s", want, text)
		}
	}
}
