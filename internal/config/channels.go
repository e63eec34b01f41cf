package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parry/parry/internal/parry"
)

// Channel is a way to tell somebody, beside mail. Which of the settings a type has, [channelTypes] says.
type Channel struct {
	Name        string   `yaml:"name"`
	Type        string   `yaml:"type"` // webhook, telegram, thehive, syslog
	Events      []string `yaml:"events"`
	MinSeverity string   `yaml:"min_severity"` // info, warning, critical
	AtMost      Rate     `yaml:"at_most"`      // of block events
	Timeout     Duration `yaml:"timeout"`

	URL          string `yaml:"url"`
	CAFile       string `yaml:"ca_file" path:"true"`
	PlainHTTP    bool   `yaml:"plain_http"`
	Token        Secret `yaml:"token"`
	TokenFile    string `yaml:"token_file" path:"true"`
	Secret       Secret `yaml:"secret"`
	SecretFile   string `yaml:"secret_file" path:"true"`
	TemplateFile string `yaml:"template_file" path:"true"`
	Chat         string `yaml:"chat"`
	API          string `yaml:"api"`
	Organisation string `yaml:"organisation"`

	Network  string `yaml:"network"`
	Server   string `yaml:"server"`
	Facility string `yaml:"facility"`
	Format   string `yaml:"format"`
}

// channelTypes are the settings that a type has beside name, type, events, min_severity, at_most and timeout; those with a "!" must be set,
// where a secret may be set by its file.
var channelTypes = map[string][]string{
	"webhook":  {"url!", "ca_file", "plain_http", "token", "secret", "template_file"},
	"telegram": {"chat!", "token!", "url", "ca_file", "plain_http"},
	"thehive":  {"url!", "token!", "api", "organisation", "ca_file", "plain_http"},
	"syslog":   {"network!", "server", "ca_file", "facility", "format"},
}

// ChannelReports are the events that a channel hears of when it names none: what mail tells.
var ChannelReports = []parry.NotificationKind{parry.NotifyFailed, parry.NotifyRecovered, parry.NotifyRejected, parry.NotifyBundleRefused,
	parry.NotifyBundleRecovered, parry.NotifyPanic, parry.NotifySuspended}

// ticketKinds are those that TheHive takes: an alert begins something, and people end it.
var ticketKinds = []parry.NotificationKind{parry.NotifyFailed, parry.NotifyRejected, parry.NotifyBundleRefused, parry.NotifySuspended, parry.NotifyAdded}

// Kinds are the events as notifications have them.
func (c *Channel) Kinds() (out []parry.NotificationKind) {
	for _, e := range c.Events {
		out = append(out, parry.NotificationKind(e))
	}
	return out
}

// Subscription is what the channel wants to hear of.
func (c *Channel) Subscription() parry.Subscription {
	return parry.Subscription{Channel: c.Name, Kinds: c.Kinds(), Least: parry.Severity(c.MinSeverity)}
}

// complete fills in what its type usually has.
func (c *Channel) complete() {
	if len(c.Events) == 0 {
		kinds := ChannelReports
		if c.Type == "thehive" {
			kinds = ticketKinds
		}
		for _, k := range kinds {
			c.Events = append(c.Events, string(k))
		}
	}
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&c.MinSeverity, string(parry.SeverityInfo))
	if c.Timeout == 0 {
		c.Timeout = Duration(30 * time.Second)
	}
	switch c.Type {
	case "telegram":
		if !c.AtMost.Set {
			c.AtMost = Rate{N: 20, Per: Duration(time.Minute), Set: true} // what Telegram lets a bot send to a group
		}
	case "thehive":
		set(&c.API, "v1")
	case "syslog":
		set(&c.Facility, "local4")
		set(&c.Format, "rfc5424")
	}
}

// values are the type's own settings, by their keys; secrets as they are after their files were read.
func (c *Channel) values() map[string]bool {
	return map[string]bool{
		"url": c.URL != "", "ca_file": c.CAFile != "", "plain_http": c.PlainHTTP, "token": c.Token != "" || c.TokenFile != "",
		"secret": c.Secret != "" || c.SecretFile != "", "template_file": c.TemplateFile != "", "chat": c.Chat != "", "api": c.API != "",
		"organisation": c.Organisation != "", "network": c.Network != "", "server": c.Server != "", "facility": c.Facility != "", "format": c.Format != "",
	}
}

var channelPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func (v *validator) channels(c *Config) {
	names := map[string]bool{}
	for i := range c.Channels {
		ch, key := &c.Channels[i], fmt.Sprintf("channels[%d]", i)
		switch {
		case ch.Name == "":
			v.add(key, "write name: with a name of your own for it, such as soc-chat")
		case !channelPattern.MatchString(ch.Name) || ch.Name == "mail":
			v.add(key+".name", "%q is no channel's name; use a-z, 0-9 and -, but not \"mail\"", ch.Name)
		case names[ch.Name]:
			v.add(key+".name", "%q is listed twice; keep one", ch.Name)
		}
		names[ch.Name] = true
		has, ok := channelTypes[ch.Type]
		if !ok {
			v.add(key+".type", "%q is not known; write webhook, telegram, thehive or syslog", ch.Type)
			continue
		}
		values := ch.values()
		for _, setting := range slices.Sorted(maps.Keys(values)) {
			set := values[setting]
			must, may := slices.Contains(has, setting+"!"), slices.Contains(has, setting)
			switch {
			case must && !set:
				v.add(key, "a channel of type %s needs %s", ch.Type, setting)
			case set && !must && !may:
				v.add(key+"."+setting, "a channel of type %s has no %s; it has %s", ch.Type, setting, strings.ReplaceAll(strings.Join(has, ", "), "!", ""))
			}
		}
		kinds := parry.NotifyKinds
		if ch.Type == "thehive" {
			kinds = ticketKinds
		}
		for j, e := range ch.Events {
			v.require(slices.Contains(kinds, parry.NotificationKind(e)), fmt.Sprintf("%s.events[%d]", key, j), "%q is no event of a %s channel; there are %s",
				e, ch.Type, kindList(kinds))
		}
		v.oneOf(key+".min_severity", ch.MinSeverity, "info", "warning", "critical")
		v.within(key+".timeout", ch.Timeout, time.Second, time.Minute) // less than a delivery is a worker's own
		v.require(ch.Type != "thehive" || ch.AtMost.N == 0, key+".at_most", "TheHive gets an alert for each block, and no summary; leave it out")
		if ch.Type == "syslog" {
			v.oneOf(key+".network", ch.Network, "udp", "tcp", "tls", "unix")
			v.oneOf(key+".format", ch.Format, "rfc5424", "cef")
			v.require(ch.Server != "" || ch.Network == "unix", key, "over %s it needs server: host:port", ch.Network)
			v.require(ch.CAFile == "" || ch.Network == "tls", key+".ca_file", "only tls has one")
		}
	}
}

func kindList(kinds []parry.NotificationKind) string {
	words := make([]string, len(kinds))
	for i, k := range kinds {
		words[i] = string(k)
	}
	return strings.Join(words, ", ")
}

// Rate is how many of something there may be within a time: "20/1m". "none" sets no bound.
type Rate struct {
	N   int
	Per Duration
	Set bool
}

func (r Rate) String() string {
	switch {
	case !r.Set:
		return ""
	case r.N == 0:
		return "none"
	}
	return strconv.Itoa(r.N) + "/" + r.Per.String()
}

// UnmarshalText reads what String writes.
func (r *Rate) UnmarshalText(text []byte) error {
	switch string(text) {
	case "":
		*r = Rate{}
		return nil
	case "none":
		*r = Rate{Set: true}
		return nil
	}
	count, per, ok := strings.Cut(string(text), "/")
	n, err := strconv.Atoi(count)
	d, derr := ParseDuration(per)
	if !ok || err != nil || derr != nil || n < 1 || n > 1_000_000 || d < time.Second || d > 24*time.Hour {
		return fmt.Errorf("%q is no rate; write 20/1m, or none", text)
	}
	*r = Rate{N: n, Per: Duration(d), Set: true}
	return nil
}
