// Package thehive opens alerts in TheHive 4 and 5: one for each block (its source as an observable, so that analysts see it beside their cases)
// and one for each incident of a firewall. An alert's type, source and sourceRef are unique there, and the reference is the block's or the
// incident's id; so a repeat is refused as a duplicate, and that refusal is success.
package thehive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/notify/post"
	"github.com/parry/parry/internal/parry"
)

// Version is the form of the API.
type Version string

const (
	V1 Version = "v1" // TheHive 5: POST /api/v1/alert, observables
	V0 Version = "v0" // TheHive 4 and 3: POST /api/alert, artifacts; the v1 of TheHive 4 passes over observables (its v1/AlertCtrl.scala)
)

// Kinds are those that make sense as an alert: what is over is for people to close.
var Kinds = []parry.NotificationKind{parry.NotifyFailed, parry.NotifyRejected, parry.NotifyBundleRefused, parry.NotifySuspended, parry.NotifyAdded}

// Options of a Channel. URL and Key are required.
type Options struct {
	Name         string
	URL          string // of TheHive itself, without /api
	Key          string
	Organisation string // X-Organisation; empty: the key's own
	Version      Version
	CAFile       string
	PlainHTTP    bool
	Now          func() time.Time
}

// Channel is a [notify.Channel]. Safe for concurrent use.
type Channel struct {
	o    Options
	post *post.Client
}

// New checks the options; it connects nowhere.
func New(o Options) (*Channel, error) {
	o.URL = strings.TrimRight(o.URL, "/")
	if err := post.CheckURL(o.URL, o.PlainHTTP); err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	switch o.Version {
	case "":
		o.Version = V1
	case V0, V1:
	default:
		return nil, fmt.Errorf("api: %q: write v1 (TheHive 5) or v0 (TheHive 4)", o.Version)
	}
	if o.Key == "" || strings.ContainsAny(o.Key, " \t\r\n") {
		return nil, errors.New("token: write the API key of a user that may create alerts")
	}
	if notify.Line(o.Organisation) != o.Organisation {
		return nil, errors.New("organisation: it is no organisation's name")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c, err := post.New(post.Options{CAFile: o.CAFile, PlainHTTP: o.PlainHTTP, Secrets: []string{o.Key}, Now: o.Now})
	return &Channel{o, c}, err
}

// What TheHive 5 takes at most, in characters.
const (
	maxTitle       = 512
	maxDescription = 1 << 20
	maxTag         = 128
)

// alert is TheHive's InputAlert.
type alert struct {
	Type        string       `json:"type"`
	Source      string       `json:"source"`
	SourceRef   string       `json:"sourceRef"`
	Title       string       `json:"title"`
	Description string       `json:"description"` // Markdown
	Severity    int          `json:"severity"`    // 1 low … 4 critical
	Date        int64        `json:"date"`        // Unix milliseconds
	Tags        []string     `json:"tags"`
	TLP         int          `json:"tlp"` // 2: amber
	PAP         int          `json:"pap"`
	Observables []observable `json:"observables,omitempty"` // v1
	Artifacts   []observable `json:"artifacts,omitempty"`   // v0
}

type observable struct {
	DataType string   `json:"dataType"`
	Data     string   `json:"data"`
	Message  string   `json:"message,omitempty"`
	Tags     []string `json:"tags"`
}

func (c *Channel) alert(d *parry.Delivery) alert {
	a := alert{
		Type: "parry", Source: "parry", SourceRef: string(d.Incident), Title: notify.Cut(notify.Title(d), maxTitle),
		Description: notify.Cut(description(d), maxDescription), Severity: 1, Date: d.CreatedAt.UnixMilli(), Tags: []string{"parry", string(d.Kind)}, TLP: 2, PAP: 2,
	}
	switch d.Severity {
	case parry.SeverityCritical:
		a.Severity = 3
	case parry.SeverityWarning:
		a.Severity = 2
	}
	var seen []observable
	if b := d.Block; b != nil {
		a.SourceRef = string(b.ID)
		seen = append(seen, observe(b.Source, "blocked"))
		if b.Destination != "" && b.Destination != b.Source { // one datum twice is refused
			seen = append(seen, observe(b.Destination, "attacked"))
		}
		if rule := notify.Line(b.RuleID); rule != "" {
			a.Tags = append(a.Tags, notify.Cut("rule:"+rule, maxTag))
		}
	}
	if d.Firewall != "" {
		a.Tags = append(a.Tags, notify.Cut("firewall:"+notify.Line(d.Firewall), maxTag))
	}
	if c.o.Version == V0 {
		a.Artifacts = seen
	} else {
		a.Observables = seen
	}
	return a
}

// observe makes an observable of an address; a prefix is "other", since "ip" takes addresses only.
func observe(data, how string) observable {
	o := observable{DataType: "ip", Data: data, Message: how + ", as parry was told", Tags: []string{how}}
	if _, err := netip.ParseAddr(data); err != nil {
		o.DataType = "other"
	}
	return o
}

// description is Markdown in which other people's words stand in a code block that they cannot end.
func description(d *parry.Delivery) string {
	text := notify.Text(d)
	fence := "```"
	for strings.Contains(text, fence) {
		fence += "`"
	}
	return fence + "\n" + text + "\n" + fence
}

// Notify opens one alert.
func (c *Channel) Notify(ctx context.Context, d parry.Delivery) (retryable bool, err error) {
	_, retryable, err = c.send(ctx, &d)
	return retryable, err
}

func (c *Channel) send(ctx context.Context, d *parry.Delivery) (answer string, retryable bool, err error) {
	body, err := json.Marshal(c.alert(d))
	if err != nil {
		return "", false, err
	}
	path := "/api/v1/alert"
	if c.o.Version == V0 {
		path = "/api/alert"
	}
	a, retryable, err := c.post.Do(ctx, http.MethodPost, c.o.URL+path, c.header(), body)
	if err != nil {
		return "", retryable, err
	}
	if duplicate(a) {
		return a.String() + " (that is well)", false, nil
	}
	retryable, err = a.Err()
	return a.String(), retryable, err
}

func (c *Channel) header() http.Header {
	h := http.Header{}
	h.Set("Authorization", "Bearer "+c.o.Key)
	if c.o.Organisation != "" {
		h.Set("X-Organisation", c.o.Organisation)
	}
	return h
}

// duplicate tells whether the alert was there before: 400 with "Alert … already exist in organisation …" from version 4 on (its AlertSrv.scala),
// "document already exists" in version 3, and 409 for good measure. TheHive 4 says "Observable already exists" when it takes nothing at all,
// which is no duplicate.
func duplicate(a *post.Answer) bool {
	var e struct {
		Message string `json:"message"`
	}
	if a.Status != http.StatusBadRequest && a.Status != http.StatusConflict || json.Unmarshal(a.Body, &e) != nil {
		return false
	}
	m := strings.ToLower(e.Message)
	return strings.Contains(m, "already exist") && !strings.HasPrefix(m, "observable")
}

// Test opens an alert that says that the channel works, and gives the answer.
func (c *Channel) Test(ctx context.Context) (answer string, err error) {
	d := notify.NewTest(c.o.Name, c.o.Now())
	answer, _, err = c.send(ctx, &d)
	return answer, err
}

// Probe asks TheHive whose the key is, and opens nothing.
func (c *Channel) Probe(ctx context.Context) (string, error) {
	path := "/api/v1/user/current"
	if c.o.Version == V0 {
		path = "/api/user/current"
	}
	a, _, err := c.post.Do(ctx, http.MethodGet, c.o.URL+path, c.header(), nil)
	if err != nil {
		return "", err
	}
	if _, err := a.Err(); err != nil {
		return "", err
	}
	var user struct {
		Login string `json:"login"`
		ID    string `json:"id"` // v0
	}
	if err := json.Unmarshal(a.Body, &user); err != nil || user.Login+user.ID == "" {
		return "", fmt.Errorf("the answer is not TheHive's: %s", a)
	}
	if user.Login == "" {
		user.Login = user.ID
	}
	return "the key is " + notify.Cut(notify.Line(user.Login), 100) + "'s", nil
}

// Close ends connections that idle.
func (c *Channel) Close() { c.post.Close() }
