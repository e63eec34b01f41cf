package notify

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/parry/parry/internal/parry"
)

// Document is a notification as JSON, for channels that hand it on whole. Everybody's words in it are clean lines. Version grows when a field changes its meaning; fields may be added.
type Document struct {
	Version  int                    `json:"version"` // 1
	ID       parry.NotificationID   `json:"id"`      // the same at a repeat
	Kind     parry.NotificationKind `json:"kind"`
	Severity parry.Severity         `json:"severity"`
	Time     time.Time              `json:"time"`     // when it happened
	Incident parry.NotificationID   `json:"incident"` // the same for a failure and its recovery
	Firewall string                 `json:"firewall,omitempty"`
	Title    string                 `json:"title"` // one line for people
	Text     string                 `json:"text"`  // several
	Report   *parry.Report          `json:"report,omitempty"`
	Block    *parry.BlockEvent      `json:"block,omitempty"`
	Summary  *parry.BlockSummary    `json:"summary,omitempty"`
}

// NewDocument makes one of a delivery.
func NewDocument(d *parry.Delivery) Document {
	doc := Document{
		Version: 1, ID: d.ID, Kind: d.Kind, Severity: severity(d), Time: d.CreatedAt.UTC(), Incident: d.Incident, Firewall: d.Firewall,
		Title: Title(d), Text: Text(d), Summary: d.Summary,
	}
	if d.Block != nil {
		b := *d.Block
		b.Reason, b.Origin, b.AlertID, b.RuleID, b.By = Line(b.Reason), Line(b.Origin), Line(b.AlertID), Line(b.RuleID), Line(b.By)
		doc.Block = &b
	}
	if d.Firewall != "" || d.Kind.OfBundle() || d.Kind == parry.NotifySuspended {
		r := d.Report
		r.Task, r.Message = Line(r.Task), Line(r.Message)
		r.Waiting, r.Lifting, r.Rejects, r.Drift = lines(r.Waiting), lines(r.Lifting), lines(r.Rejects), lines(r.Drift)
		r.LogTail = strings.Join(lines(strings.Split(r.LogTail, "\n")), "\n")
		doc.Report = &r
	}
	return doc
}

func lines(in []string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = Line(s)
	}
	return out
}

func severity(d *parry.Delivery) parry.Severity {
	if d.Severity == "" {
		return parry.SeverityOf(d.Kind) // written by an earlier version
	}
	return d.Severity
}

// NewTest is a delivery that says that a channel works.
func NewTest(channel string, now time.Time) parry.Delivery {
	id := parry.NewNotificationID(now)
	return parry.Delivery{Channel: channel, Notification: parry.Notification{
		ID: id, Kind: parry.NotifyTest, Severity: parry.SeverityInfo, Incident: id, CreatedAt: now, Channels: []string{channel},
	}}
}

// Title is one clean line.
func Title(d *parry.Delivery) string {
	r, b := &d.Report, d.Block
	fw := Line(d.Firewall)
	switch {
	case d.Kind == parry.NotifyPanic && !r.Until.IsZero():
		return fmt.Sprintf("parry: the panic on %s is over after %s, by %s", fw, r.Until.Sub(r.Since).Round(time.Second), Line(r.By))
	case d.Kind == parry.NotifyPanic:
		return fmt.Sprintf("parry: PANIC by %s: nothing is blocked on %s any more", Line(r.By), fw)
	case d.Kind == parry.NotifySuspended:
		return fmt.Sprintf("parry: token %s is suspended until %s: it keeps asking for blocks of what is never blocked", Line(r.By), r.Until.UTC().Format("15:04 UTC"))
	case d.Kind == parry.NotifyTest:
		return "parry: a test of channel " + Line(d.Channel)
	case d.Kind == parry.NotifySummary && d.Summary != nil:
		return fmt.Sprintf("parry: %d more block events", d.Summary.Added+d.Summary.Ended)
	case d.Kind == parry.NotifyAdded && b != nil:
		s := "parry: " + Match(b) + " blocked"
		if b.Offence > 1 {
			s += fmt.Sprintf(", offence %d", b.Offence)
		}
		return s
	case d.Kind == parry.NotifyEnded && b != nil:
		return "parry: " + Match(b) + " no longer blocked, " + ending(b)
	case d.Kind == parry.NotifyBundleRefused && fw != "":
		return fmt.Sprintf("parry: canary %s failed with %s (%s), the others stay as they are", fw, version(&r.Bundle), strings.ReplaceAll(string(r.Failure), "_", " "))
	case d.Kind == parry.NotifyBundleRefused:
		return fmt.Sprintf("parry: an edit of bundle %s cannot be used, %s goes on", Line(r.Bundle.Name), version(&r.Bundle))
	case d.Kind == parry.NotifyBundleRecovered && fw != "":
		return fmt.Sprintf("parry: %s has passed canary %s, the others follow", version(&r.Bundle), fw)
	case d.Kind == parry.NotifyBundleRecovered:
		return fmt.Sprintf("parry: bundle %s can be used again, %s is current", Line(r.Bundle.Name), version(&r.Bundle))
	case d.Kind == parry.NotifyRecovered && r.Failure == parry.FailProof:
		return "parry: " + fw + " had drifted and was repaired"
	case d.Kind == parry.NotifyRecovered:
		return fmt.Sprintf("parry: %s recovered after %s", fw, r.Until.Sub(r.Since).Round(time.Second))
	case d.Kind == parry.NotifyRejected:
		return fmt.Sprintf("parry: %s rejects %s", fw, count(r.RejectsN, "block", "blocks"))
	default:
		return fmt.Sprintf("parry: %s failing (%s), %s", fw, strings.ReplaceAll(string(r.Failure), "_", " "), Undone(r))
	}
}

// Undone says what a firewall should do and does not: "2 blocks not in force, 1 ended block not lifted".
func Undone(r *parry.Report) string {
	waiting := count(r.WaitingN, "block", "blocks") + " not in force"
	if r.LiftingN == 0 {
		return waiting
	}
	lifting := count(r.LiftingN, "ended block", "ended blocks") + " not lifted"
	if r.WaitingN == 0 {
		return lifting
	}
	return waiting + ", " + lifting
}

// version names a copy: "pfsense 1.2.0 (0123456789ab)".
func version(b *parry.BundleRef) string {
	s := Line(b.Name + " " + b.Version)
	if b.Digest != "" {
		s += fmt.Sprintf(" (%.12s)", Line(b.Digest))
	}
	return s
}

func ending(b *parry.BlockEvent) string {
	switch b.EndReason {
	case parry.EndExpired:
		return "its time is over"
	case parry.EndExempted:
		return "exempted"
	default:
		return "lifted by " + Line(b.By)
	}
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// Field is a named fact of a notification. Its value is clean, one line, and never empty.
type Field struct {
	Name  string // a-z and _
	Label string // for people
	Value string
	Words bool // somebody else's words
}

// Fields are the facts beside the title, in a fixed order.
func Fields(d *parry.Delivery) (out []Field) {
	add := func(name, label, value string) {
		if value = Line(value); value != "" {
			out = append(out, Field{Name: name, Label: label, Value: value})
		}
	}
	words := func(name, label, value string) {
		if value = Cut(Line(value), 1000); value != "" {
			out = append(out, Field{name, label, value, true})
		}
	}
	when := func(name, label string, t time.Time) {
		if !t.IsZero() {
			add(name, label, t.UTC().Format(time.RFC3339))
		}
	}
	if b := d.Block; b != nil {
		add("block", "Block", string(b.ID))
		add("source", "Source", b.Source)
		add("destination", "Destination", b.Destination)
		add("protocol", "Protocol", string(b.Protocol))
		if b.Port != 0 {
			add("port", "Port", strconv.Itoa(int(b.Port)))
		}
		add("interface", "Interface", b.Interface)
		add("firewalls", "Firewalls", b.Firewalls)
		when("expires", "Until", b.ExpiresAt)
		if b.ExpiresAt.IsZero() {
			add("expires", "Until", "never")
		}
		if b.Offence > 0 {
			add("offence", "Offence", strconv.Itoa(b.Offence))
		}
		add("by", "By", b.By)
		add("end_reason", "Ended", string(b.EndReason))
		words("reason", "Reason", b.Reason)
		words("origin", "Origin", b.Origin)
		words("alert_id", "Alert", b.AlertID)
		words("rule_id", "Rule", b.RuleID)
	}
	if s := d.Summary; s != nil {
		add("added", "Begun", strconv.FormatInt(s.Added, 10))
		add("ended", "Ended", strconv.FormatInt(s.Ended, 10))
		when("since", "Since", s.Since)
		when("until", "Until", s.Until)
		add("sources", "Sources", strings.Join(s.Sources, " "))
	}
	if r := &d.Report; d.Kind == parry.NotifyPanic {
		add("firewall", "Firewalls", d.Firewall)
		add("by", "By", r.By)
		when("since", "Since", r.Since)
		when("until", "Until", r.Until)
		words("reason", "Reason", r.Message)
	} else if d.Kind == parry.NotifySuspended {
		add("token", "Token", r.By)
		when("since", "Since", r.Since)
		when("until", "Until", r.Until)
		words("reason", "Why", r.Message)
		add("hint", "What to do", r.Hint)
	} else if d.Kind.OfBundle() {
		add("firewall", "Canary", d.Firewall)
		add("bundle", "Bundle", version(&r.Bundle))
		add("commit", "Commit", r.Bundle.Commit)
		when("since", "Since", r.Since)
		when("until", "Until", r.Until)
		if d.Kind == parry.NotifyBundleRefused {
			add("failure", "Failure", string(r.Failure))
			add("task", "Task", r.Task)
			words("message", "It said", r.Message)
			add("hint", "What to do", r.Hint)
		}
		add("run", "Run", string(r.RunID))
	} else if d.Firewall != "" {
		add("firewall", "Firewall", d.Firewall)
		add("host", "Host", r.Host)
		add("failure", "Failure", string(r.Failure))
		when("since", "Since", r.Since)
		when("until", "Until", r.Until)
		if d.Kind == parry.NotifyFailed {
			add("task", "Task", r.Task)
			words("message", "It said", r.Message)
			when("next_try", "Next try", r.NextTry)
			add("hint", "What to do", r.Hint)
		}
		add("approval", "Approval", string(r.Approval))
		add("enforced", "In force", strconv.Itoa(r.Enforced))
		add("waiting", "Not in force", strconv.Itoa(r.WaitingN))
		if r.LiftingN > 0 {
			add("lifting", "Ended, not lifted", strconv.Itoa(r.LiftingN))
		}
		if r.RejectsN > 0 {
			add("rejects", "Rejected", strconv.Itoa(r.RejectsN))
		}
		add("bundle", "Bundle", strings.TrimSpace(r.Bundle.Name+" "+r.Bundle.Version))
		add("run", "Run", string(r.RunID))
	}
	return out
}

// Text is the whole for people: the title, the fields, what is concerned, and the reference last.
func Text(d *parry.Delivery) string {
	var b strings.Builder
	b.WriteString(Title(d) + "\n")
	for _, f := range Fields(d) {
		fmt.Fprintf(&b, "%s: %s\n", f.Label, f.Value)
	}
	list := func(title string, lines []string, n int) {
		if n == 0 {
			return
		}
		b.WriteString(title + ":\n")
		for _, l := range lines[:min(len(lines), 10)] {
			b.WriteString("- " + Line(l) + "\n")
		}
		if more := n - min(len(lines), 10); more > 0 {
			fmt.Fprintf(&b, "- and %d more\n", more)
		}
	}
	list("Would change", d.Report.Change, d.Report.ChangeN)
	list("Not in force", d.Report.Waiting, d.Report.WaitingN)
	list("Ended, not lifted", d.Report.Lifting, d.Report.LiftingN)
	list("Differed", d.Report.Drift, len(d.Report.Drift))
	list("Rejected", d.Report.Rejects, d.Report.RejectsN)
	if d.Summary != nil {
		b.WriteString("`parry blocks` lists them.\n")
	}
	b.WriteString("Reference: " + Line(string(d.ID)))
	return b.String()
}

// Match writes what a block drops: "203.0.113.7 → 198.51.100.10:22/tcp on wan".
func Match(b *parry.BlockEvent) string {
	s := Line(b.Source)
	if b.Destination != "" || b.Port != 0 || b.Protocol != parry.ProtoAny {
		dst := "any"
		if b.Destination != "" {
			dst = Line(b.Destination)
		}
		if b.Port != 0 {
			dst = net.JoinHostPort(dst, strconv.Itoa(int(b.Port)))
		}
		if s += " → " + dst; b.Protocol != parry.ProtoAny {
			s += "/" + string(b.Protocol)
		}
	}
	if b.Interface != "" {
		s += " on " + Line(b.Interface)
	}
	return s
}

// Line makes hostile text one inert line: no control or direction-changing characters, valid UTF-8.
func Line(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\r', r == '\t', r == '\u2028', r == '\u2029', r == '\u0085':
			return ' '
		case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r):
			return utf8.RuneError
		}
		return r // strings.Map gives broken bytes as RuneError
	}, s))
}

// Cut shortens to n runes, the last being "…".
func Cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}
