package app

import (
	"context"
	"strings"
	"time"

	"github.com/parry/parry/internal/store"
)

func (c *checker) database(ctx context.Context) {
	const name = "database"
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // a large file is read whole
	defer cancel()
	d := c.Config.Database
	p, err := store.Probe(ctx, store.Options{Driver: d.Driver, Path: d.Path, DSN: d.DSN.Reveal()})
	switch {
	case err != nil:
		c.add(Fail, name, "see the message; parry does not start so, and firewalls stay as they are", "%v", err)
	case p.New:
		c.add(OK, name, "", "%s, empty: it is made at the first start", d.Driver)
	case p.Have < p.Want:
		c.add(Warn, name, "take a backup before the start", "%s, schema %d: the next start brings it to %d", d.Driver, p.Have, p.Want)
	default:
		c.add(OK, name, "", "%s, schema %d", d.Driver, p.Have)
	}
}

func (c *checker) mail(ctx context.Context) {
	const name = "mail"
	if c.Config.Mail.Server == "" {
		c.add(Warn, name, "set mail.server, mail.from and mail.to", "no server is set: nobody is told when a firewall fails")
		return
	}
	m, err := newMailer(c.Config, c.Now, nil)
	switch {
	case err != nil:
		c.add(Fail, name, "correct mail in the configuration", "%v", err)
	case c.Offline:
		c.add(OK, name, "", "%s; not asked", c.Config.Mail.Server)
	case c.SendMail:
		if err := m.Test(ctx); err != nil {
			c.add(Fail, name, "correct mail in the configuration, or the server", "%v", err)
		} else {
			c.add(OK, name, "", "a test mail is on its way to %s", strings.Join(c.Config.Mail.To, ", "))
		}
	default:
		if err := m.Probe(ctx); err != nil {
			c.add(Fail, name, "correct mail in the configuration, or the server", "%v", err)
		} else {
			c.add(OK, name, "", "%s takes mail for %s", c.Config.Mail.Server, strings.Join(c.Config.Mail.To, ", "))
		}
	}
}
