package mail

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"mime"
	"net/textproto"
	"strings"
	texttemplate "text/template"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jordan-wright/email"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/parry"
)

const maxSubject = 200 // runes; jordan-wright/email does not fold headers

//go:embed mail.html.tmpl
var htmlText string

//go:embed mail.txt.tmpl
var plainText string

var (
	htmlMail  = template.Must(template.New("html").Parse(htmlText))
	plainMail = texttemplate.Must(texttemplate.New("text").Parse(plainText))
)

// phrases say what a failure is, after "fw-a ".
var phrases = map[parry.Failure]string{
	parry.FailUnreachable:       "unreachable",
	parry.FailAuthentication:    "refuses parry's ssh key",
	parry.FailHostKey:           "shows a wrong host key",
	parry.FailTimeout:           "timed out",
	parry.FailPlaybook:          "not converged, the playbook is broken,",
	parry.FailInventory:         "missing from the inventory",
	parry.FailTask:              "failing",
	parry.FailProof:             "holds something else than parry sent",
	parry.FailNoProof:           "gave no proof",
	parry.FailStaleEpoch:        "knows a newer parry database",
	parry.FailStaleRevision:     "holds more than this database knows",
	parry.FailForeignController: "belongs to another parry",
	parry.FailFlushed:           "was flushed by hand",
	parry.FailBusy:              "busy",
	parry.FailPFRefused:         "refused the rules",
	parry.FailConfigChanged:     "keeps being changed meanwhile",
	parry.FailStructure:         "lacks the primary's structure",
	parry.FailCapacity:          "is full",
	parry.FailBundle:            "not converged, the bundle cannot be used,",
	parry.FailApproval:          "waits for approval",
	parry.FailOrphan:            "blocked by a run of a killed parry",
	parry.FailInternal:          "not converged, parry has a problem,",
}

func phrase(f parry.Failure) string {
	if p, ok := phrases[f]; ok {
		return p
	}
	return "failing"
}

// page is what the templates show: every text cleaned, every time in UTC.
type page struct {
	Title     string
	Lead      string // one sentence
	Facts     []fact
	Hint      string
	Lists     []list
	Command   string
	Log       []string
	Footer    string
	Recovered bool
}

type fact struct{ Name, Value string }

type list struct {
	Title string
	Lines []string
	More  int
}

// Compose makes the whole message. It is the same for every attempt, but for the boundaries of its parts.
func (m *Mailer) Compose(d parry.Delivery) ([]byte, error) {
	p := newPage(&d)
	h := textproto.MIMEHeader{}
	h.Set("Message-Id", m.messageID(d.ID))
	if d.Incident != "" && d.Incident != d.ID {
		h.Set("In-Reply-To", m.messageID(d.Incident))
		h.Set("References", m.messageID(d.Incident))
	}
	h.Set("X-Parry-Kind", line(string(d.Kind)))
	h.Set("X-Parry-Firewall", line(d.Firewall))
	h.Set("X-Parry-Notification", line(string(d.ID)))
	if d.Report.Failure != "" {
		h.Set("X-Parry-Failure", line(string(d.Report.Failure)))
	}
	return m.compose(p, h, d.CreatedAt)
}

func (m *Mailer) composeTest() ([]byte, error) {
	now := m.o.Now()
	h := textproto.MIMEHeader{}
	h.Set("Message-Id", m.messageID(parry.NewNotificationID(now)))
	h.Set("X-Parry-Kind", "test")
	return m.compose(&page{
		Title: "parry: test mail",
		Lead:  "Mail from parry arrives. It will come here when a firewall fails, and when it has recovered.",
		Facts: []fact{{"Sent by", clean(m.o.Helo, false)}, {"At", stamp(now)}}, Footer: footer, Recovered: true,
	}, h, now)
}

func (m *Mailer) compose(p *page, h textproto.MIMEHeader, date time.Time) ([]byte, error) {
	h.Set("Date", date.UTC().Format(time.RFC1123Z))
	h.Set("Auto-Submitted", "auto-generated")
	h.Set("X-Auto-Response-Suppress", "All")
	e := &email.Email{From: m.from.String(), Subject: subject(p.Title), Headers: h}
	for _, a := range m.to {
		e.To = append(e.To, a.String())
	}
	var text, html bytes.Buffer
	if err := plainMail.Execute(&text, p); err != nil {
		return nil, err
	}
	if err := htmlMail.Execute(&html, p); err != nil {
		return nil, err
	}
	e.Text, e.HTML = text.Bytes(), html.Bytes()
	return e.Bytes()
}

// subject is one clean line, short enough for a header that is not folded when it is encoded too.
func subject(title string) string {
	s := cut(line(title), maxSubject)
	for len(mime.QEncoding.Encode("UTF-8", s)) > 900 {
		s = cut(s, utf8.RuneCountInString(s)*3/4)
	}
	return s
}

// messageID is stable, so that a repeat shows as the same mail and a recovery under its failure.
func (m *Mailer) messageID(id parry.NotificationID) string {
	_, domain, _ := strings.Cut(m.from.Address, "@")
	return "<" + line(string(id)) + "@" + domain + ">"
}

const footer = "Sent by parry, which keeps trying. One mail for each incident, one when it is over."

func newPage(d *parry.Delivery) *page {
	r := &d.Report
	fw := line(r.Firewall)
	p := &page{Footer: footer}
	since := clock(r.Since, d.CreatedAt)
	if d.Kind == parry.NotifyPanic {
		return panicPage(p, d)
	}
	if d.Kind == parry.NotifySuspended {
		p.Title = notify.Title(d)
		p.Lead = fmt.Sprintf("What the token %s asks for is not taken until %s: requests are answered with 429, and parry's triggers keep them. Reading goes on.",
			line(r.By), stamp(r.Until))
		p.Facts = []fact{{"Token", line(r.By)}, {"Since", stamp(r.Since)}, {"Until", stamp(r.Until)}, {"Why", cut(line(r.Message), 1000)}}
		p.Hint = clean(r.Hint, false)
		p.Footer = "Sent by parry. One mail for each suspension."
		return p
	}
	switch d.Kind {
	case parry.NotifyRecovered:
		p.Recovered = true
		took := r.Until.Sub(r.Since).Round(time.Second)
		if r.Failure == parry.FailProof {
			p.Title = fmt.Sprintf("parry: %s had drifted, repaired at %s", fw, clock(r.Until, d.CreatedAt))
			p.Lead = fmt.Sprintf("%s held something else than parry had proved. It was put right within %s and has proved what it holds.", fw, took)
			break
		}
		p.Title = fmt.Sprintf("parry: %s recovered at %s, after %s", fw, clock(r.Until, d.CreatedAt), took)
		p.Lead = fmt.Sprintf("%s is well again: it has proved what it holds. It was %s from %s to %s.", fw,
			strings.TrimSuffix(phrase(r.Failure), ","), stamp(r.Since), stamp(r.Until))
	case parry.NotifyBundleRefused, parry.NotifyBundleRecovered:
		return bundlePage(d)
	case parry.NotifyRejected:
		p.Title = fmt.Sprintf("parry: %s rejects %s", fw, blocks(r.RejectsN))
		p.Lead = fmt.Sprintf("%s cannot take %s. All others are in force; these are not.", fw, blocks(r.RejectsN))
	default:
		p.Title = fmt.Sprintf("parry: %s %s since %s, %s", fw, phrase(r.Failure), since, notify.Undone(r))
		p.Lead = fmt.Sprintf("%s: %s since %s. %s.", fw, strings.TrimSuffix(phrase(r.Failure), ","), stamp(r.Since), inForce(r))
	}
	add := func(name, value string) {
		if value = line(value); value != "" {
			p.Facts = append(p.Facts, fact{name, value})
		}
	}
	add("Firewall", strings.TrimSpace(fw+" "+r.Host))
	if d.Kind == parry.NotifyFailed {
		add("What failed", string(r.Failure))
		add("Task", r.Task)
		add("It said", cut(clean(r.Message, false), 1000))
		if !r.NextTry.IsZero() {
			add("Next try", fmt.Sprintf("%s (tried %d so far)", clock(r.NextTry, d.CreatedAt), r.Attempts))
		}
		p.Hint = clean(r.Hint, false)
	}
	if d.Kind == parry.NotifyRecovered && r.Attempts > 0 {
		add("Attempts", fmt.Sprint(r.Attempts))
	}
	add("In force", fmt.Sprint(r.Enforced))
	if r.ChangeN > 0 {
		p.Lists = append(p.Lists, newList("Would change", r.Change, r.ChangeN))
	}
	if r.WaitingN > 0 {
		p.Lists = append(p.Lists, newList("Not in force", r.Waiting, r.WaitingN))
	}
	if r.LiftingN > 0 {
		p.Lists = append(p.Lists, newList("Ended, not lifted yet", r.Lifting, r.LiftingN))
	}
	if len(r.Drift) > 0 {
		p.Lists = append(p.Lists, newList("What differed (- was missing, + should not have been there)", r.Drift, len(r.Drift)))
	}
	if r.RejectsN > 0 {
		p.Lists = append(p.Lists, newList("Rejected", r.Rejects, r.RejectsN))
	}
	add("Bundle", version(&r.Bundle))
	add("Run", string(r.RunID))
	p.Command = clean(r.Command, false)
	if tail := strings.TrimRight(clean(r.LogTail, true), "\n"); tail != "" {
		p.Log = strings.Split(tail, "\n")
	}
	return p
}

// panicPage tells that a panic began, or is over.
func panicPage(p *page, d *parry.Delivery) *page {
	r := &d.Report
	fw, by := line(r.Firewall), line(r.By)
	p.Title = fmt.Sprintf("parry: PANIC by %s: nothing is blocked on %s any more", by, fw)
	p.Lead = fmt.Sprintf("%s has called a panic at %s: %s: parry lifts everything there and applies nothing until it is over. Requests are accepted and wait.",
		by, stamp(r.Since), fw)
	p.Hint = "parry firewalls shows which have proved that they are empty. Blocks that were not ended come back with: parry panic --off"
	p.Footer = "Sent by parry. One mail when a panic begins, one when it is over."
	p.Facts = []fact{{"Firewalls", fw}, {"By", by}}
	if !r.Until.IsZero() {
		p.Recovered = true
		p.Title = fmt.Sprintf("parry: the panic on %s is over at %s, by %s", fw, clock(r.Until, d.CreatedAt), by)
		p.Lead = fmt.Sprintf("The panic that began at %s is over for %s, by %s. What stands is being applied again.", stamp(r.Since), fw, by)
		p.Hint = ""
	}
	if reason := cut(line(r.Message), 1000); reason != "" {
		p.Facts = append(p.Facts, fact{"Reason", reason})
	}
	return p
}

// bundlePage tells of a bundle: an edit that cannot be used, a new version that a canary failed with, or that this is over.
func bundlePage(d *parry.Delivery) *page {
	r := &d.Report
	p := &page{
		Title: line(notify.Title(d)), Footer: "Sent by parry. One mail when a version is refused, one when it is over.", Hint: clean(r.Hint, false),
		Recovered: d.Kind == parry.NotifyBundleRecovered, Command: clean(r.Command, false),
	}
	fw := line(r.Firewall)
	switch {
	case p.Recovered && fw != "":
		p.Lead = fmt.Sprintf("%s has applied this version and proved it by reading it back. The other firewalls of the bundle take it up now.", fw)
	case p.Recovered:
		p.Lead = "What was wrong is mended. The copy below is current."
	case fw != "":
		p.Lead = fmt.Sprintf("%s is a canary: it was given the new version first and failed with it. No other firewall has got it.", fw)
	default:
		p.Lead = "What is wrong is said below. Firewalls go on with the last good copy; nothing is lost, and blocks are taken and lifted as before."
	}
	add := func(name, value string) {
		if value = line(value); value != "" {
			p.Facts = append(p.Facts, fact{name, value})
		}
	}
	add("Canary", strings.TrimSpace(fw+" "+r.Host))
	add("Bundle", version(&r.Bundle))
	if !p.Recovered {
		add("What failed", string(r.Failure))
		add("Task", r.Task)
		add("It said", cut(clean(r.Message, false), 1000))
	}
	add("Since", stamp(r.Since))
	if !r.Until.IsZero() && r.Until != r.Since {
		add("Until", stamp(r.Until))
	}
	add("Run", string(r.RunID))
	if tail := strings.TrimRight(clean(r.LogTail, true), "\n"); tail != "" {
		p.Log = strings.Split(tail, "\n")
	}
	return p
}

// version names a copy of a bundle, empty for none.
func version(b *parry.BundleRef) string {
	if b.Name == "" {
		return ""
	}
	v := strings.TrimSpace(b.Name + " " + b.Version)
	if b.Digest != "" {
		v += ", digest " + cut(b.Digest, 12)
	}
	if b.Commit != "" {
		v += ", commit " + cut(b.Commit, 12)
	}
	return v
}

func inForce(r *parry.Report) string {
	var out []string
	add := func(n int, one, many string) {
		switch {
		case n == 1:
			out = append(out, blocks(n)+" "+one)
		case n > 1:
			out = append(out, blocks(n)+" "+many)
		}
	}
	add(r.WaitingN, "is not in force there", "are not in force there")
	add(r.LiftingN, "has ended and still stands there as far as parry knows", "have ended and still stand there as far as parry knows")
	if out == nil {
		return "Nothing is waiting; what it has proved stays in force as far as parry knows"
	}
	return strings.Join(out, ". ")
}

func newList(title string, lines []string, n int) list {
	l := list{Title: fmt.Sprintf("%s (%d)", title, n), More: n - len(lines)}
	for _, s := range lines {
		l.Lines = append(l.Lines, line(s))
	}
	return l
}

func blocks(n int) string {
	if n == 1 {
		return "1 block"
	}
	return fmt.Sprintf("%d blocks", n)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// clock is short where the day is the mail's.
func clock(t, mail time.Time) string {
	if t.UTC().Format(time.DateOnly) == mail.UTC().Format(time.DateOnly) {
		return t.UTC().Format("15:04 UTC")
	}
	return t.UTC().Format("2006-01-02 15:04 UTC")
}

// line is one line of clean text.
func line(s string) string { return strings.TrimSpace(clean(s, false)) }

// clean makes hostile text inert where it is shown as it is: no control or direction-changing characters, no line ends but where they are
// meant, valid UTF-8.
func clean(s string, lines bool) string {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' && lines:
			return r
		case r == '\n', r == '\t', r == '\u2028', r == '\u2029':
			return ' '
		case r == utf8.RuneError:
			return '\uFFFD'
		case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r):
			return '\uFFFD'
		}
		return r
	}, s)
}

// cut shortens to n runes.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}
