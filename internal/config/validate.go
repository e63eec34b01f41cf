package config

import (
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parry/parry/internal/parry"
)

var (
	namePattern   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	ifacePattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$`)
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	dnsPattern    = regexp.MustCompile(`^(?i:[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.(?i:[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?))*$`)
)

type validator struct{ problems []Problem }

func (v *validator) add(key, format string, args ...any) {
	v.problems = append(v.problems, Problem{Key: key, Text: fmt.Sprintf(format, args...)})
}

func (v *validator) require(ok bool, key, format string, args ...any) {
	if !ok {
		v.add(key, format, args...)
	}
}

func (v *validator) oneOf(key, got string, want ...string) {
	v.require(slices.Contains(want, got), key, "%q is not known; write %s", got, strings.Join(want, " or "))
}

func (v *validator) within(key string, d Duration, low, high time.Duration) {
	v.require(d.D() >= low && d.D() <= high, key, "%s is out of bounds; write %s to %s", d, Duration(low), Duration(high))
}

func (v *validator) count(key string, n, low, high int64) {
	v.require(n >= low && n <= high, key, "%d is out of bounds; write %d to %d", n, low, high)
}

const year = 365 * 24 * time.Hour

// Validate tells everything that is wrong with a completed configuration by itself; what lies outside (files, hosts, bundles) is for
// `parry check` and the start.
func (c *Config) Validate() []Problem {
	v := &validator{}
	if c.Listen != "" {
		v.listen("listen", c.Listen)
	}
	v.require((c.TLS.CertFile == "") == (c.TLS.KeyFile == ""), "tls", "set cert_file and key_file both, or neither to let parry make its own")
	v.oneOf("tls.min_version", c.TLS.MinVersion, "1.2", "1.3")
	for i, n := range c.TLS.Names {
		_, err := netip.ParseAddr(n)
		v.require(err == nil || dnsPattern.MatchString(n), fmt.Sprintf("tls.names[%d]", i), "%q is neither a DNS name nor an address", n)
	}
	v.require(c.Socket != "", "socket", "the command line needs it; write a path such as %s", DefaultSocket)
	v.require(len(c.Socket) < 104, "socket", "the path is longer than a unix socket's may be (103 bytes); write a shorter one")
	v.require(c.StateDir != "" && c.StateDir != "/", "state_dir", "write a directory that parry has for itself, such as /var/lib/parry")
	v.require(c.Bundles != "", "bundles", "write the directory that holds the playbook bundles")

	v.oneOf("database.driver", c.Database.Driver, "sqlite", "postgres")
	if c.Database.Driver == "postgres" {
		v.require(c.Database.DSN != "", "database", "postgres needs dsn or dsn_file: postgres://user:password@host/database")
	} else {
		v.require(c.Database.DSN == "", "database", "sqlite takes no dsn; set driver to postgres or take it out")
	}

	v.require(c.Ansible.Inventory != "", "ansible.inventory", "write the inventory file or directory that lists the firewalls")
	v.require(c.Ansible.KnownHosts != "", "ansible.known_hosts", "host keys are always checked; write the file that pins them")
	v.require(c.Ansible.PlaybookBin != "" && !strings.HasPrefix(c.Ansible.PlaybookBin, "-"), "ansible.playbook_bin", "write ansible-playbook or its path")
	v.within("ansible.deadline", c.Ansible.Deadline, time.Second, time.Hour)
	v.within("ansible.grace", c.Ansible.Grace, time.Second, 5*time.Minute)

	v.firewalls(c)

	b := c.Blocks
	v.within("blocks.default_ttl", b.DefaultTTL, time.Second, 10*year)
	v.within("blocks.max_ttl", b.MaxTTL, time.Second, 10*year)
	v.require(b.DefaultTTL <= b.MaxTTL, "blocks.default_ttl", "%s is longer than max_ttl (%s)", b.DefaultTTL, b.MaxTTL)
	v.count("blocks.max_blocks", b.MaxBlocks, 1, 10_000_000)
	v.oneOf("blocks.beyond_max_rules", b.BeyondMaxRules, "refuse", "widen")
	v.within("blocks.expiry_slack", b.ExpirySlack, 0, time.Hour)
	v.count("blocks.min_prefix_v4", int64(b.MinPrefixV4), 8, 32)
	v.count("blocks.min_prefix_v6", int64(b.MinPrefixV6), 16, 128)
	v.escalation(&c.Escalation, &b)

	for i, e := range c.Exemptions {
		key := fmt.Sprintf("exemptions[%d]", i)
		v.require(e.Prefix.IsValid(), key, "write prefix: with an address or prefix that is never to be blocked")
		v.require(!e.Prefix.IsValid() || e.Prefix.Bits() > 0, key+".prefix", "%s would exempt everything; use `parry hold --all` to stop applying", e.Prefix)
	}
	v.count("limits.rate_per_minute", int64(c.Limits.RatePerMinute), 1, 10_000_000)
	v.count("limits.total_per_minute", int64(c.Limits.TotalPerMinute), 0, 100_000_000)
	v.require(c.Limits.TotalPerMinute == 0 || c.Limits.TotalPerMinute >= c.Limits.RatePerMinute, "limits.total_per_minute",
		"%d is less than one token may ask for (rate_per_minute, %d)", c.Limits.TotalPerMinute, c.Limits.RatePerMinute)
	v.count("limits.suspend.after", int64(c.Limits.Suspend.After), 0, 1_000_000)
	v.within("limits.suspend.within", c.Limits.Suspend.Within, time.Second, 24*time.Hour)
	v.within("limits.suspend.for", c.Limits.Suspend.For, time.Second, 30*24*time.Hour)
	v.count("limits.queue", int64(c.Limits.Queue), 1, 1_000_000)
	v.count("limits.waiters", int64(c.Limits.Waiters), 1, 100_000)

	r := c.Reconcile
	v.within("reconcile.verify_every", r.VerifyEvery, 10*time.Second, year)
	v.within("reconcile.backoff_min", r.BackoffMin, 100*time.Millisecond, time.Hour)
	v.within("reconcile.backoff_max", r.BackoffMax, 100*time.Millisecond, 24*time.Hour)
	v.require(r.BackoffMin <= r.BackoffMax, "reconcile.backoff_min", "%s is longer than backoff_max (%s)", r.BackoffMin, r.BackoffMax)
	v.within("reconcile.auth_backoff", r.AuthBackoff, time.Second, 24*time.Hour)

	a := c.Approvals
	v.count("approvals.remove", int64(a.Remove), 1, 10_000_000)
	v.count("approvals.remove_percent", int64(a.RemovePercent), 1, 100)
	v.count("approvals.add", int64(a.Add), 0, 10_000_000)
	v.within("approvals.expire", a.Expire, time.Hour, year)

	for i, r := range c.Simulate.Rules {
		v.require(r != "" && r != "*" && r != "/*", fmt.Sprintf("simulate.rules[%d]", i), "write a rule's id, origin/id or origin/*; simulate.all is for everything")
	}

	v.within("feeds.max_age", c.Feeds.MaxAge, time.Second, time.Hour)
	v.within("feeds.stale_after", c.Feeds.StaleAfter, time.Minute, year)

	t := c.Retention
	v.within("retention.ended_blocks", t.EndedBlocks, time.Hour, 100*year)
	v.within("retention.runs", t.Runs, time.Hour, 100*year)
	v.count("retention.run_count", int64(t.RunCount), 1, 1_000_000)
	v.within("retention.idempotency", t.Idempotency, time.Hour, year)
	v.within("retention.outbox", t.Outbox, time.Hour, 100*year)
	if t.Audit != 0 {
		v.within("retention.audit", t.Audit, 24*time.Hour, 100*year)
	}

	v.lists(c)
	v.mail(&c.Mail)
	v.channels(c)
	v.oneOf("log.format", c.Log.Format, "text", "json")
	v.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	return v.problems
}

func (v *validator) listen(key, s string) {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	v.require(err == nil, key, "%q is no address:port; write \":8443\", \"192.0.2.1:8443\" or \"[2001:db8::1]:8443\"", s)
}

func (v *validator) firewalls(c *Config) {
	names, groups := map[string]bool{}, map[string]string{}
	for i, f := range c.Firewalls {
		key := fmt.Sprintf("firewalls[%d]", i)
		reserved := f.Name == string(parry.SelectDefault) || f.Name == string(parry.SelectAll)
		switch {
		case f.Name == "":
			v.add(key, "write name: with the firewall's name in the inventory")
		case !namePattern.MatchString(f.Name) || reserved:
			v.add(key+".name", "%q is no firewall's name; use a-z, 0-9 and -, as in the inventory, but not \"default\" or \"all\"", f.Name)
		case names[f.Name]:
			v.add(key+".name", "%q is listed twice; keep one", f.Name)
		}
		names[f.Name] = true
		for j, g := range f.Groups {
			k := fmt.Sprintf("%s.groups[%d]", key, j)
			v.require(namePattern.MatchString(g) && g != string(parry.SelectDefault) && g != string(parry.SelectAll), k,
				"%q is no group's name; use a-z, 0-9 and -, but not \"default\" or \"all\"", g)
			groups[g] = k
		}
		v.require(namePattern.MatchString(f.Bundle), key+".bundle", "%q is no bundle's name; write the directory's name below bundles", f.Bundle)
		v.require(f.Pin == "" || digestPattern.MatchString(f.Pin), key+".pin", "a digest is 64 hexadecimal digits, as `parry firewalls %s` shows it", f.Name)
		v.require(ifacePattern.MatchString(f.Interface), key+".interface", "%q is no interface's name; write wan, lan, opt1", f.Interface)
		for from, to := range f.Interfaces {
			v.require(ifacePattern.MatchString(from) && ifacePattern.MatchString(to), key+".interfaces."+from, "%q: %q is no pair of names; write dmz: opt1", from, to)
		}
		v.count(key+".max_rules", int64(f.MaxRules), 1, 100_000)
		v.nat(key+".nat", &f.NAT)
	}
	for g, key := range groups {
		v.require(!names[g], key, "%q is a firewall's name too; give the group another", g)
	}
	fleet := parry.Fleet{}
	for _, f := range c.Firewalls {
		fleet.Firewalls = append(fleet.Firewalls, parry.Firewall{Name: f.Name, Groups: f.Groups})
	}
	if slices.Contains(c.DefaultFirewalls, string(parry.SelectDefault)) || len(c.DefaultFirewalls) == 0 {
		v.add("default_firewalls", "write all, groups or firewalls: what a block without a selector is for")
	} else if err := fleet.Check(parry.ParseSelector(c.DefaultFirewalls...)); err != nil {
		v.add("default_firewalls", "%v", err)
	}
	v.hooks(&c.Hooks, &fleet)
}

func (v *validator) mail(m *Mail) {
	v.oneOf("mail.security", m.Security, "starttls", "tls", "plain")
	v.within("mail.timeout", m.Timeout, time.Second, 5*time.Minute)
	if m.Server == "" {
		v.require(len(m.To) == 0, "mail.server", "mail.to names readers; write the server as host:port")
		return
	}
	host, port, err := net.SplitHostPort(m.Server)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	v.require(err == nil && host != "", "mail.server", "%q is no host:port; write mail.example.net:587", m.Server)
	v.address("mail.from", m.From)
	v.require(len(m.To) > 0, "mail.to", "write who is to read the failure reports")
	for i, to := range m.To {
		v.address(fmt.Sprintf("mail.to[%d]", i), to)
	}
	v.require((m.Username == "") == (m.Password == ""), "mail.username", "set username and password_file both, or neither")
	v.require(m.Username == "" || m.Security != "plain" || isLoopback(host), "mail.security", "a password is not sent in the clear; use starttls or tls")
	v.require(m.Helo == "" || dnsPattern.MatchString(m.Helo), "mail.helo", "%q is no host's name", m.Helo)
}

func (v *validator) address(key, s string) {
	_, err := mail.ParseAddress(s)
	v.require(err == nil, key, "%q is no mail address; write parry@example.net or Parry <parry@example.net>", s)
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}
