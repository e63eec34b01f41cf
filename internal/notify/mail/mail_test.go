package mail_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/net/html"

	"github.com/parry/parry/internal/notify/mail"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/testenv"
)

var at = time.Date(2026, 3, 1, 2, 14, 0, 0, time.UTC)

func failure() parry.Delivery {
	return parry.Delivery{Channel: "mail", Notification: parry.Notification{
		ID: "n-1", Incident: "n-1", Kind: parry.NotifyFailed, Firewall: "fw-a", CreatedAt: at,
		Report: parry.Report{
			Firewall: "fw-a", Host: "192.0.2.1:22", Since: at, Failure: parry.FailUnreachable, Task: "Apply blocks on pfSense",
			Message: "ssh: connect to host 192.0.2.1 port 22: Connection refused", Hint: parry.Hint(parry.FailUnreachable), Attempts: 1,
			NextTry: at.Add(2 * time.Second), Waiting: []string{"b-1 203.0.113.7", "b-2 203.0.113.8 → 198.51.100.10:22/tcp"}, WaitingN: 3,
			Enforced: 17, RunID: "r-1", Bundle: parry.BundleRef{Name: "pfsense", Version: "1.0.0", Digest: strings.Repeat("ab", 32)},
			LogTail: "TASK [Apply]\nfatal: [fw-a]: UNREACHABLE!", Command: "ANSIBLE_CONFIG=/s/r-1/ansible.cfg ansible-playbook -i /s/r-1/inventory.json",
		},
	}}
}

func recovery() parry.Delivery {
	d := failure()
	d.ID, d.Kind, d.CreatedAt = "n-2", parry.NotifyRecovered, at.Add(6*time.Minute)
	d.Report = parry.Report{Firewall: "fw-a", Since: at, Until: at.Add(6 * time.Minute), Failure: parry.FailUnreachable, Enforced: 20}
	return d
}

func mailer(t *testing.T, m *testenv.Mail, change func(*mail.Options)) *mail.Mailer {
	t.Helper()
	o := mail.Options{
		Server: m.Addr, Security: mail.Plain, From: "parry <parry@example.org>", To: []string{"Anna <anna@example.org>", "ops@example.org"},
		Timeout: 5 * time.Second, Helo: "host.example.org",
	}
	if m.Roots != nil {
		o.TLS = &tls.Config{RootCAs: m.Roots}
	}
	if change != nil {
		change(&o)
	}
	got, err := mail.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// read takes a message apart: decoded subject, plain and HTML part.
func read(t *testing.T, raw []byte) (msg *netmail.Message, subject, plain, htm string) {
	t.Helper()
	msg, err := netmail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v in\n%s", err, raw)
	}
	if subject, err = new(mime.WordDecoder).DecodeHeader(msg.Header.Get("Subject")); err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	r := multipart.NewReader(msg.Body, params["boundary"])
	for {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return msg, subject, plain, htm
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(quotedprintable.NewReader(p))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(p.Header.Get("Content-Type"), "text/plain") {
			plain = string(b)
		} else {
			htm = string(b)
		}
	}
}

func TestNotify_tellsWhichFirewallSinceWhenWhatAndWhatToType(t *testing.T) {
	t.Parallel()
	srv := testenv.StartMail(t, testenv.MailOptions{})
	if _, err := mailer(t, srv, nil).Notify(t.Context(), failure()); err != nil {
		t.Fatal(err)
	}
	l := srv.Letters()[0]
	msg, subject, plain, htm := read(t, l.Data)
	if got, want := subject, "parry: fw-a unreachable since 02:14 UTC, 3 blocks not in force"; got != want {
		t.Errorf("subject %q, want %q", got, want)
	}
	for _, part := range []string{plain, htm} {
		for _, want := range []string{"fw-a", "192.0.2.1:22", "2026-03-01 02:14:00 UTC", "Connection refused", "Check that the firewall is up",
			"b-1 203.0.113.7", "and 1 more", "pfsense 1.0.0", "ansible-playbook -i", "UNREACHABLE!", "r-1"} {
			if !strings.Contains(html.UnescapeString(part), want) {
				t.Errorf("a part lacks %q:\n%s", want, part)
			}
		}
	}
	for name, want := range map[string]string{
		"Message-Id": "<n-1@example.org>", "Auto-Submitted": "auto-generated", "X-Parry-Kind": "firewall.failed", "X-Parry-Firewall": "fw-a",
		"X-Parry-Failure": "unreachable", "Date": "Sun, 01 Mar 2026 02:14:00 +0000", "In-Reply-To": "",
	} {
		if got := msg.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := strings.Join(l.To, " "); l.From != "parry@example.org" || got != "anna@example.org ops@example.org" {
		t.Errorf("envelope from %s to %s", l.From, got)
	}
}

// An address whose block has ended and could not be lifted is still blocked: the mail must not call that "not in force".
func TestNotify_tellsWhatIsNotLiftedApartFromWhatIsNotInForce(t *testing.T) {
	t.Parallel()
	srv := testenv.StartMail(t, testenv.MailOptions{})
	d := failure()
	d.Report.Waiting, d.Report.WaitingN, d.Report.Lifting, d.Report.LiftingN = nil, 0, []string{"b-9 203.0.113.9"}, 1
	if _, err := mailer(t, srv, nil).Notify(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	_, subject, plain, htm := read(t, srv.Letters()[0].Data)
	if got, want := subject, "parry: fw-a unreachable since 02:14 UTC, 1 ended block not lifted"; got != want {
		t.Errorf("subject %q, want %q", got, want)
	}
	for _, part := range []string{plain, htm} {
		part = html.UnescapeString(part)
		for _, want := range []string{"1 block has ended and still stands there", "Ended, not lifted yet (1)", "b-9 203.0.113.9"} {
			if !strings.Contains(part, want) {
				t.Errorf("a part lacks %q:\n%s", want, part)
			}
		}
		if strings.Contains(part, "ot in force") {
			t.Errorf("a part says that it is not in force:\n%s", part)
		}
	}
}

func TestNotify_aRecoveryAnswersItsFailure(t *testing.T) {
	t.Parallel()
	srv := testenv.StartMail(t, testenv.MailOptions{})
	if _, err := mailer(t, srv, nil).Notify(t.Context(), recovery()); err != nil {
		t.Fatal(err)
	}
	msg, subject, _, _ := read(t, srv.Letters()[0].Data)
	if got, want := subject, "parry: fw-a recovered at 02:20 UTC, after 6m0s"; got != want {
		t.Errorf("subject %q, want %q", got, want)
	}
	for name, want := range map[string]string{"Message-Id": "<n-2@example.org>", "In-Reply-To": "<n-1@example.org>", "References": "<n-1@example.org>"} {
		if got := msg.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestNotify_securityAndLogin(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, server, mechanism string
		client                  mail.Security
	}{
		{"starttls PLAIN", "starttls", "PLAIN", mail.StartTLS},
		{"starttls LOGIN", "starttls", "LOGIN", mail.StartTLS},
		{"tls CRAM-MD5", "tls", "CRAM-MD5", mail.TLS},
		{"plain on loopback", "plain", "PLAIN", mail.Plain},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			srv := testenv.StartMail(t, testenv.MailOptions{Security: c.server, User: "u", Password: "p", Mechanism: c.mechanism})
			login := func(o *mail.Options) { o.Security, o.Username, o.Password = c.client, "u", "p" }
			if _, err := mailer(t, srv, login).Notify(t.Context(), failure()); err != nil {
				t.Fatal(err)
			}
			l := srv.Letters()[0]
			if got, want := l.TLS, c.client != mail.Plain; got != want || l.User != "u" {
				t.Errorf("arrived over TLS %v, want %v; from user %q", got, want, l.User)
			}
			wrong := func(o *mail.Options) { login(o); o.Password = "q" }
			if retryable, err := mailer(t, srv, wrong).Notify(t.Context(), failure()); err == nil || retryable {
				t.Errorf("wrong password: retryable %v, err %v", retryable, err)
			}
		})
	}
}

func TestNotify_strippedSTARTTLSSendsNothing(t *testing.T) {
	t.Parallel()
	srv := testenv.StartMail(t, testenv.MailOptions{Security: "plain"}) // what a client sees when somebody strips the offer
	m := mailer(t, srv, func(o *mail.Options) { o.Security, o.Username, o.Password = mail.StartTLS, "u", "p" })
	retryable, err := m.Notify(t.Context(), failure())
	if err == nil || retryable || !strings.Contains(err.Error(), "STARTTLS") {
		t.Errorf("retryable %v, err %v", retryable, err)
	}
	if n := len(srv.Letters()); n != 0 {
		t.Errorf("%d mails went out in the clear", n)
	}
}

func TestNotify_untrustedCertificateSendsNothing(t *testing.T) {
	t.Parallel()
	for _, sec := range []mail.Security{mail.StartTLS, mail.TLS} {
		srv := testenv.StartMail(t, testenv.MailOptions{Security: string(sec)})
		m := mailer(t, srv, func(o *mail.Options) { o.Security, o.TLS = sec, &tls.Config{RootCAs: x509.NewCertPool()} })
		if retryable, err := m.Notify(t.Context(), failure()); err == nil || retryable || len(srv.Letters()) != 0 {
			t.Errorf("%s: retryable %v, err %v, %d mails", sec, retryable, err, len(srv.Letters()))
		}
	}
}

func TestNotify_faultsOfTheServer(t *testing.T) {
	t.Parallel()
	for fault, wantRetry := range map[string]bool{"refuse": true, "tempfail": true, "permfail": false, "hang": true, "hang-data": true} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			srv := testenv.StartMail(t, testenv.MailOptions{})
			srv.Fault(fault, 0)
			m := mailer(t, srv, func(o *mail.Options) { o.Timeout = 300 * time.Millisecond })
			began := time.Now()
			retryable, err := m.Notify(t.Context(), failure())
			if err == nil || retryable != wantRetry {
				t.Errorf("retryable %v, want %v; err %v", retryable, wantRetry, err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("took %v", took)
			}
			srv.Fault("off", 0)
			if _, err := mailer(t, srv, nil).Notify(t.Context(), failure()); err != nil {
				t.Errorf("after the fault: %v", err)
			}
		})
	}
}

func TestNotify_tellsWhomTheServerRefusesWhileOthersHaveTheMail(t *testing.T) {
	t.Parallel()
	srv := testenv.StartMail(t, testenv.MailOptions{})
	var log bytes.Buffer
	m := mailer(t, srv, func(o *mail.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	const answer = "5.1.1 No such user"
	refuseOne := func() { srv.Fault("permfail", 1) } // the first recipient
	refuseOne()
	if _, err := m.Notify(t.Context(), failure()); err != nil {
		t.Fatalf("it would be sent again to those who have it: %v", err)
	}
	for _, want := range []string{"level=WARN", "notification_id=n-1", "recipient=anna@example.org", answer} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}
	refuseOne()
	if err := m.Test(t.Context()); err == nil || !strings.Contains(err.Error(), "recipient anna@example.org: 550") || !strings.Contains(err.Error(), answer) {
		t.Errorf("a test calls well what one of two gets: %v", err)
	}
	for _, l := range srv.Letters() {
		if !slices.Equal(l.To, []string{"ops@example.org"}) {
			t.Errorf("delivered to %q", l.To)
		}
	}
	if n := len(srv.Letters()); n != 2 {
		t.Errorf("%d mails, want one for each", n)
	}
	srv.Fault("permfail", 0)
	if err := m.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "anna@example.org: 550") || !strings.Contains(err.Error(), "ops@example.org: 550") {
		t.Errorf("a trial does not name each that is refused: %v", err)
	}
}

func TestNotify_endsWithItsContext(t *testing.T) {
	t.Parallel()
	srv := testenv.StartMail(t, testenv.MailOptions{})
	srv.Fault("hang", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if retryable, err := mailer(t, srv, nil).Notify(ctx, failure()); err == nil || !retryable {
		t.Errorf("retryable %v, err %v", retryable, err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

// Every free text is hostile at once: headers, markup, control and direction-changing characters, dots alone on a line, bad UTF-8.
func TestNotify_aSuspendedToken(t *testing.T) {
	t.Parallel()
	srv := testenv.StartMail(t, testenv.MailOptions{})
	d := parry.Delivery{Channel: "mail", Notification: parry.Notification{
		ID: "n-9", Incident: "n-9", Kind: parry.NotifySuspended, Severity: parry.SeverityCritical, CreatedAt: at,
		Report: parry.Report{By: "ossim", Since: at, Until: at.Add(15 * time.Minute), Message: "100 of its 120 block requests", Hint: "parry token resume ossim"},
	}}
	if _, err := mailer(t, srv, nil).Notify(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	_, subject, plain, _ := read(t, srv.Letters()[0].Data)
	if want := "parry: token ossim is suspended until 02:29 UTC: it keeps asking for blocks of what is never blocked"; subject != want {
		t.Errorf("subject %q", subject)
	}
	for _, want := range []string{"100 of its 120 block requests", "parry token resume ossim", "2026-03-01 02:29:00 UTC", "429"} {
		if !strings.Contains(plain, want) {
			t.Errorf("no %q in %q", want, plain)
		}
	}
}

func TestNotify_hostileTextsAreInert(t *testing.T) {
	t.Parallel()
	const evil = "x\r\nBcc: victim@example.org\r\n\r\n<script>alert(1)</script><img src=http://evil>{{7*7}}\x00\x1b[31m\u202e\u2028\xff\r\n.\r\nQUIT\r\n" +
		"$(touch /tmp/canary) '; DROP TABLE x; -- \u009b"
	srv := testenv.StartMail(t, testenv.MailOptions{})
	d := failure()
	r := &d.Report
	r.Firewall, r.Host, r.Task, r.Message, r.Hint, r.LogTail, r.Command, r.By = evil, evil, evil, evil, evil, evil+"\n"+evil, evil, evil
	r.Waiting, r.Rejects, r.RejectsN = []string{evil}, []string{evil}, 1
	r.Bundle = parry.BundleRef{Name: evil, Version: evil, Digest: evil, Commit: evil}
	r.RunID, r.Failure, d.Firewall = evil, evil, evil
	for _, kind := range []parry.NotificationKind{parry.NotifyFailed, parry.NotifyRecovered, parry.NotifyRejected, parry.NotifySuspended, parry.NotifyBundleRefused,
		parry.NotifyBundleRecovered} {
		d.Kind = kind
		if _, err := mailer(t, srv, nil).Notify(t.Context(), d); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	letters := srv.Letters()
	if len(letters) != 6 {
		t.Fatalf("%d mails, want 6", len(letters))
	}
	for _, l := range letters {
		msg, subject, plain, htm := read(t, l.Data)
		for name := range msg.Header {
			switch name {
			case "Bcc", "Cc":
				t.Errorf("a header was injected: %s", name)
			}
		}
		if strings.ContainsAny(subject, "\r\n") || len([]rune(subject)) > 200 {
			t.Errorf("subject %q", subject)
		}
		for _, c := range plain + htm + subject {
			if c != '\n' && c != '\r' && (unicode.Is(unicode.Cc, c) || unicode.Is(unicode.Cf, c)) {
				t.Errorf("control character %U", c)
				break
			}
		}
		for i, ln := range strings.Split(plain, "\n") {
			if strings.TrimRight(ln, "\r") == "." || strings.HasPrefix(ln, "Bcc") {
				t.Errorf("line %d of the plain part: %q", i, ln)
			}
		}
		doc, err := html.Parse(strings.NewReader(htm))
		if err != nil {
			t.Fatal(err)
		}
		for n := range doc.Descendants() {
			if n.Type == html.ElementNode && (n.Data == "script" || n.Data == "img") {
				t.Errorf("the HTML part has a <%s>", n.Data)
			}
		}
		if strings.Contains(plain, "49") && !strings.Contains(plain, "{{7*7}}") {
			t.Error("a template was evaluated")
		}
	}
}

func TestCompose_headersAreShortAndInASCII(t *testing.T) {
	t.Parallel()
	srv := testenv.StartMail(t, testenv.MailOptions{})
	d := failure()
	d.Report.Firewall = strings.Repeat("ü", 500)
	raw, err := mailer(t, srv, nil).Compose(d)
	if err != nil {
		t.Fatal(err)
	}
	for i, ln := range strings.Split(string(raw), "\r\n") {
		if len(ln) > 998 {
			t.Errorf("line %d has %d bytes", i, len(ln))
		}
		for _, c := range []byte(ln) {
			if c > 126 {
				t.Fatalf("line %d is not ASCII: %q", i, ln)
			}
		}
	}
	_, subject, _, _ := read(t, raw)
	if got := len([]rune(subject)); got < 80 || got > 200 {
		t.Errorf("subject has %d runes, want it cut, to at most 200", got)
	}
}

func TestNew_refusesWhatWouldLeakOrBreak(t *testing.T) {
	t.Parallel()
	good := mail.Options{Server: "mail.example.org:587", Security: mail.StartTLS, From: "parry@example.org", To: []string{"a@example.org"}}
	if _, err := mail.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*mail.Options){
		"password in the clear": func(o *mail.Options) { o.Security, o.Username = mail.Plain, "u" },
		"no port":               func(o *mail.Options) { o.Server = "mail.example.org" },
		"unknown security":      func(o *mail.Options) { o.Security = "ssl" },
		"no recipient":          func(o *mail.Options) { o.To = nil },
		"line end in from":      func(o *mail.Options) { o.From = "a\r\nBcc: v@example.org <parry@example.org>" },
		"line end in to":        func(o *mail.Options) { o.To = []string{"a@example.org\r\nBcc: v@example.org"} },
		"no address":            func(o *mail.Options) { o.To = []string{"anna"} },
		"line end in the helo":  func(o *mail.Options) { o.Helo = "x\r\nMAIL FROM:<a@b>" },
	} {
		o := good
		change(&o)
		if _, err := mail.New(o); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestTest_sendsAMail(t *testing.T) {
	t.Parallel()
	srv := testenv.StartMail(t, testenv.MailOptions{})
	if err := mailer(t, srv, nil).Test(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, subject, _, _ := read(t, srv.Letters()[0].Data); subject != "parry: test mail" {
		t.Errorf("subject %q", subject)
	}
}
