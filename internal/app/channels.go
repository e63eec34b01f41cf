package app

import (
	"github.com/parry/parry/internal/config"
	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/parry"
)

// mailChannel is the name of the channel that mail: configures.
const mailChannel = "mail"

// subscriptions tells which channels want to hear of what.
func subscriptions(cfg *config.Config) (out parry.Subscriptions) {
	if cfg.Mail.Server != "" {
		out = append(out, parry.Subscription{Channel: mailChannel, Kinds: []parry.NotificationKind{parry.NotifyFailed, parry.NotifyRecovered, parry.NotifyRejected}})
	}
	return out
}

func newNotifier(a *App, cfg *config.Config) (*notify.Worker, error) {
	var channels []notify.Entry
	for _, sub := range subscriptions(cfg) {
		m, err := newMailer(cfg, a.now)
		if err != nil {
			return nil, err
		}
		channels = append(channels, notify.Entry{Name: sub.Channel, Type: "mail", Channel: m, Subscription: sub, Timeout: cfg.Mail.Timeout.D()})
	}
	return notify.New(notify.Options{Store: a.store, Channels: channels, Now: a.o.Now, Logger: a.log, Registerer: a.registry})
}
