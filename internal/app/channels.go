package app

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/notify/lines"
	"github.com/parry/parry/internal/notify/mail"
	"github.com/parry/parry/internal/notify/telegram"
	"github.com/parry/parry/internal/notify/thehive"
	"github.com/parry/parry/internal/notify/webhook"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/syslog"
)

// mailChannel is the name of the channel that mail: configures.
const mailChannel = "mail"

// subscriptions tells which channels want to hear of what.
func subscriptions(cfg *config.Config) (out parry.Subscriptions) {
	if cfg.Mail.Server != "" {
		out = append(out, parry.Subscription{Channel: mailChannel, Kinds: config.ChannelReports})
	}
	for i := range cfg.Channels {
		out = append(out, cfg.Channels[i].Subscription())
	}
	return out
}

func newNotifier(a *App, cfg *config.Config) (*notify.Worker, error) {
	var entries []notify.Entry
	if cfg.Mail.Server != "" {
		m, err := newMailer(cfg, a.now, a.log.With("channel", mailChannel))
		if err != nil {
			return nil, err
		}
		entries = append(entries, notify.Entry{
			Name: mailChannel, Type: "mail", Channel: testableMail{m, cfg.Mail.To}, Subscription: subscriptions(cfg)[0], Timeout: cfg.Mail.Timeout.D(),
		})
	}
	for i := range cfg.Channels {
		c := &cfg.Channels[i]
		ch, err := newChannel(c, a.o.Version, a.now)
		if err != nil {
			return nil, fmt.Errorf("channels[%d] (%s): %w", i, c.Name, err)
		}
		a.onClose("channel "+c.Name, func() error { ch.Close(); return nil })
		entries = append(entries, notify.Entry{
			Name: c.Name, Type: c.Type, Channel: ch, Subscription: c.Subscription(), Timeout: c.Timeout.D(),
			AtMost: notify.Rate{N: c.AtMost.N, Per: c.AtMost.Per.D()},
		})
	}
	return notify.New(notify.Options{Store: a.store, Channels: entries, Now: a.o.Now, Logger: a.log, Registerer: a.registry})
}

// testableMail is a mailer whose test says to whom it went.
type testableMail struct {
	*mail.Mailer
	to []string
}

func (m testableMail) Test(ctx context.Context) (string, error) {
	return "the server took a mail to " + strings.Join(m.to, ", "), m.Mailer.Test(ctx)
}

// channel is what every type of channel can do.
type channel interface {
	notify.Channel
	notify.Tester
	Probe(ctx context.Context) (detail string, err error) // that it can be reached, and its key; sends nothing
	Close()
}

// newChannel makes one as configured; it connects nowhere.
func newChannel(c *config.Channel, version string, now func() time.Time) (channel, error) {
	switch c.Type {
	case "webhook":
		body := ""
		if c.TemplateFile != "" {
			b, err := os.ReadFile(c.TemplateFile)
			if err != nil {
				return nil, fmt.Errorf("template_file: %w", err)
			}
			body = string(b)
		}
		return webhook.New(webhook.Options{
			Name: c.Name, URL: c.URL, Secret: c.Secret.Reveal(), Token: c.Token.Reveal(), Template: body, CAFile: c.CAFile, PlainHTTP: c.PlainHTTP, Now: now,
		})
	case "telegram":
		return telegram.New(telegram.Options{
			Name: c.Name, API: c.URL, Token: c.Token.Reveal(), Chat: c.Chat, CAFile: c.CAFile, PlainHTTP: c.PlainHTTP, Now: now,
		})
	case "thehive":
		return thehive.New(thehive.Options{
			Name: c.Name, URL: c.URL, Key: c.Token.Reveal(), Organisation: c.Organisation, Version: thehive.Version(c.API), CAFile: c.CAFile,
			PlainHTTP: c.PlainHTTP, Now: now,
		})
	case "syslog":
		return lines.New(lines.Options{
			Name: c.Name, Format: lines.Format(c.Format), Version: version, Now: now, Syslog: syslog.Options{
				Network: syslog.Network(c.Network), Address: c.Server, CAFile: c.CAFile, Facility: c.Facility, Timeout: c.Timeout.D(),
			},
		})
	}
	return nil, fmt.Errorf("type %q is not known", c.Type)
}

// channelHost is the server that a channel tells, empty for the local socket.
func channelHost(c *config.Channel) string {
	switch {
	case c.Type == "syslog" && c.Network != string(syslog.Unix):
		if h, _, err := net.SplitHostPort(c.Server); err == nil {
			return h
		}
		return strings.Trim(c.Server, "[]")
	case c.Type == "telegram" && c.URL == "":
		c = &config.Channel{URL: telegram.PublicAPI}
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// channels tries each channel: whether it can be reached, and where the other side can tell, whether it knows the key.
func (c *checker) channels(ctx context.Context) {
	for i := range c.Config.Channels {
		conf := &c.Config.Channels[i]
		name := "channel " + conf.Name
		ch, err := newChannel(conf, "check", c.Now)
		if err != nil {
			c.add(Fail, name, fmt.Sprintf("correct channels[%d] in the configuration; parry does not start so", i), "%v", err)
			continue
		}
		func() {
			defer ch.Close()
			ctx, cancel := context.WithTimeout(ctx, conf.Timeout.D())
			defer cancel()
			if c.Offline {
				c.add(OK, name, "", "%s; not asked", conf.Type)
				return
			}
			detail, err := ch.Probe(ctx)
			if err != nil {
				c.add(Fail, name, "correct it in the configuration, or the server; `parry notify test "+conf.Name+"` tries it whole", "%s: %v", conf.Type, err)
				return
			}
			c.add(OK, name, "", "%s: %s", conf.Type, detail)
		}()
	}
}
