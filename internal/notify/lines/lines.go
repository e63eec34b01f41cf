// Package lines sends notifications as lines of syslog, in words or as CEF (ArcSight's Common Event Format). Over TCP and TLS a line counts as
// delivered when the receiver has read it; UDP and the local socket know no such thing.
package lines

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/syslog"
)

// Format is what the text of a line is.
type Format string

const (
	Words Format = "rfc5424" // parry: block.added block="b-…" source="203.0.113.7" …
	CEF   Format = "cef"
)

// Options of a Channel. Syslog is required; its Confirm is set here.
type Options struct {
	Name    string
	Syslog  syslog.Options
	Format  Format // empty: Words
	Version string // parry's, for CEF; empty: dev
	Now     func() time.Time
}

// Channel is a [notify.Channel]. Safe for concurrent use.
type Channel struct {
	o      Options
	client *syslog.Client
}

// New checks the options; it connects nowhere.
func New(o Options) (*Channel, error) {
	switch o.Format {
	case "":
		o.Format = Words
	case Words, CEF:
	default:
		return nil, fmt.Errorf("format: %q: write rfc5424 or cef", o.Format)
	}
	if o.Version == "" {
		o.Version = "dev"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Syslog.Confirm, o.Syslog.Now = true, o.Now
	c, err := syslog.New(o.Syslog)
	return &Channel{o, c}, err
}

// Notify sends one line. A repeat is the same line.
func (c *Channel) Notify(ctx context.Context, d parry.Delivery) (retryable bool, err error) {
	return true, c.client.Send(ctx, c.message(&d))
}

func (c *Channel) message(d *parry.Delivery) syslog.Message {
	m := syslog.Message{Time: d.CreatedAt, Severity: level(d), MsgID: string(d.Kind), Data: []syslog.Param{{Name: "id", Value: string(d.ID)}}}
	if c.o.Format == CEF {
		m.Text = cef(d, c.o.Version)
	} else {
		m.Text = words(d)
	}
	return m
}

func level(d *parry.Delivery) syslog.Severity {
	switch {
	case d.Kind == parry.NotifyRecovered, d.Kind == parry.NotifyBundleRecovered, d.Kind == parry.NotifyPanic && !d.Report.Until.IsZero():
		return syslog.Notice
	case d.Severity == parry.SeverityCritical:
		return syslog.Critical
	case d.Severity == parry.SeverityWarning:
		return syslog.Warning
	}
	return syslog.Info
}

// words is "parry: KIND name="value" …"; a quote or backslash within a value has a backslash before it.
func words(d *parry.Delivery) string {
	var b strings.Builder
	b.WriteString("parry: " + string(d.Kind))
	for _, f := range notify.Fields(d) {
		fmt.Fprintf(&b, ` %s="%s"`, f.Name, inQuotes.Replace(f.Value))
	}
	fmt.Fprintf(&b, ` severity="%s" id="%s"`, d.Severity, d.ID)
	return b.String()
}

var inQuotes = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// cef writes CEF:0|vendor|product|version|kind|title|severity|extension. In the header, "|" and "\" are escaped, in the extension "=" and "\";
// there are no line ends in either.
func cef(d *parry.Delivery, version string) string {
	var b strings.Builder
	b.WriteString("CEF:0")
	name := strings.TrimPrefix(notify.Title(d), "parry: ")
	for _, f := range []string{"parry", "parry", version, string(d.Kind), notify.Cut(name, 512), strconv.Itoa(cefSeverity(d))} {
		b.WriteString("|" + inHeader.Replace(notify.Line(f)))
	}
	b.WriteByte('|')
	n := 0
	add := func(key, value string, most int) {
		if value = notify.Cut(notify.Line(value), most); value == "" {
			return
		}
		if n++; n > 1 {
			b.WriteByte(' ')
		}
		b.WriteString(key + "=" + inExtension.Replace(value))
	}
	custom := 0
	label := func(name, value string) { // the device custom strings, of which there are six
		if value != "" && custom < 6 {
			custom++
			cs := "cs" + strconv.Itoa(custom)
			add(cs+"Label", name, 1023)
			add(cs, value, 4000)
		}
	}
	add("rt", strconv.FormatInt(d.CreatedAt.UnixMilli(), 10), 20)
	add("externalId", string(d.ID), 40)
	switch e := d.Block; {
	case e != nil:
		act := "blocked"
		if d.Kind == parry.NotifyEnded {
			act = "unblocked"
		}
		add("act", act, 63)
		address(add, label, "src", "c6a2", "Source", e.Source)
		address(add, label, "dst", "c6a3", "Destination", e.Destination)
		if e.Port != 0 {
			add("dpt", strconv.Itoa(int(e.Port)), 5)
		}
		add("proto", string(e.Protocol), 31)
		if !e.ExpiresAt.IsZero() {
			add("end", strconv.FormatInt(e.ExpiresAt.UnixMilli(), 10), 20)
		}
		add("suser", e.By, 1023)
		add("reason", e.Reason, 1023)
		label("block", string(e.ID))
		label("firewalls", e.Firewalls)
		label("rule", e.RuleID)
		label("alert", e.AlertID)
		label("origin", e.Origin)
		if e.Offence > 0 {
			add("cn1Label", "offence", 1023)
			add("cn1", strconv.Itoa(e.Offence), 20)
		}
		add("cnt", strconv.FormatInt(e.Count, 10), 20)
	case d.Summary != nil:
		add("cnt", strconv.FormatInt(d.Summary.Added+d.Summary.Ended, 10), 20)
	case d.Kind == parry.NotifyPanic:
		act := "panic"
		if !d.Report.Until.IsZero() {
			act = "panic over"
		}
		add("act", act, 63)
		label("firewalls", d.Firewall)
		label("incident", string(d.Incident))
		add("suser", d.Report.By, 1023)
		add("reason", d.Report.Message, 1023)
	case d.Kind == parry.NotifySuspended:
		add("act", "suspended", 63)
		add("suser", d.Report.By, 1023)
		add("end", strconv.FormatInt(d.Report.Until.UnixMilli(), 10), 20)
		add("reason", d.Report.Message, 1023)
	case d.Kind.OfBundle():
		add("dvchost", d.Firewall, 100)
		add("outcome", string(d.Report.Failure), 63)
		label("incident", string(d.Incident))
		label("run", string(d.Report.RunID))
		label("bundle", d.Report.Bundle.Name)
		label("version", d.Report.Bundle.Version)
		label("digest", d.Report.Bundle.Digest)
		add("reason", d.Report.Message, 1023)
	case d.Firewall != "":
		add("dvchost", d.Firewall, 100)
		add("outcome", string(d.Report.Failure), 63)
		label("incident", string(d.Incident))
		label("run", string(d.Report.RunID))
		add("cn1Label", "blocks not in force", 1023)
		add("cn1", strconv.Itoa(d.Report.WaitingN), 20)
		if n := d.Report.LiftingN; n > 0 {
			add("cn2Label", "ended blocks not lifted", 1023)
			add("cn2", strconv.Itoa(n), 20)
		}
		if d.Kind == parry.NotifyFailed {
			add("reason", d.Report.Message, 1023)
		}
	}
	add("msg", notify.Title(d), 1023)
	return b.String()
}

// address writes an IPv4 address under its own key, an IPv6 address as a custom one, and a prefix, which neither takes, as a labelled string.
func address(add func(key, value string, most int), label func(name, value string), v4, v6, name, value string) {
	switch {
	case strings.Contains(value, "/"):
		label(strings.ToLower(name)+" prefix", value)
	case strings.Contains(value, ":"):
		add(v6+"Label", name+" IPv6 Address", 1023)
		add(v6, value, 45)
	default:
		add(v4, value, 16)
	}
}

var (
	inHeader    = strings.NewReplacer(`\`, `\\`, `|`, `\|`)
	inExtension = strings.NewReplacer(`\`, `\\`, `=`, `\=`)
)

func cefSeverity(d *parry.Delivery) int {
	switch {
	case d.Kind == parry.NotifyRecovered, d.Kind == parry.NotifyBundleRecovered:
		return 3
	case d.Severity == parry.SeverityCritical:
		return 8
	case d.Severity == parry.SeverityWarning:
		return 5
	}
	return 3
}

// Test sends a line that says that the channel works.
func (c *Channel) Test(ctx context.Context) (answer string, err error) {
	d := notify.NewTest(c.o.Name, c.o.Now())
	if err := c.client.Send(ctx, c.message(&d)); err != nil {
		return "", err
	}
	switch c.o.Syslog.Network {
	case syslog.TCP, syslog.TLS:
		return "the receiver has read the line", nil
	}
	return "the line is sent; " + string(c.o.Syslog.Network) + " has no answer", nil
}

// Probe connects and sends nothing.
func (c *Channel) Probe(ctx context.Context) (string, error) {
	switch c.o.Syslog.Network {
	case syslog.UDP:
		return "not asked: udp has no answer", nil
	default:
		return "can be reached", c.client.Probe(ctx)
	}
}

// Close ends the connection.
func (c *Channel) Close() { _ = c.client.Close() }
