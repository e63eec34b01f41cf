package config

import (
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/syslog"
)

// List is one active list.
type List struct {
	Name       string     `yaml:"name"`
	Type       string     `yaml:"type"`
	TTL        Duration   `yaml:"ttl"`     // 0: without end
	MaxTTL     Duration   `yaml:"max_ttl"` // 0: any
	Refresh    string     `yaml:"refresh"`
	Capacity   int64      `yaml:"capacity"`
	Comment    string     `yaml:"comment"`
	Subdomains bool       `yaml:"subdomains"`
	OnHit      OnHit      `yaml:"on_hit"`
	Blocks     ListBlocks `yaml:"blocks"`
}

// OnHit is what a lookup that finds an entry causes.
type OnHit struct {
	Syslog bool     `yaml:"syslog"`
	Every  Duration `yaml:"every"`
}

// ListBlocks is what a list means for a block whose source is on it.
type ListBlocks struct {
	TTL     Duration `yaml:"ttl"`     // at least so long
	Instead string   `yaml:"instead"` // put it on this list, and block nothing
}

// UnmarshalYAML lays what the file says over the defaults of a list.
func (l *List) UnmarshalYAML(n *yaml.Node) error {
	type plain List
	p := plain{
		TTL: Duration(parry.DefaultListTTL), MaxTTL: Duration(parry.DefaultListMaxTTL), Refresh: string(parry.RefreshLastSeen),
		Capacity: parry.DefaultListCapacity, OnHit: OnHit{Every: Duration(parry.DefaultHitEvery)},
	}
	err := n.Decode(&p)
	*l = List(p)
	return err
}

func (l *List) list() parry.List {
	return parry.List{
		Name: l.Name, Type: parry.ListType(l.Type), TTL: l.TTL.D(), MaxTTL: l.MaxTTL.D(), Refresh: parry.Refresh(l.Refresh), Capacity: l.Capacity,
		Comment: l.Comment, Subdomains: l.Subdomains, OnHit: parry.OnHit{Syslog: l.OnHit.Syslog, Every: l.OnHit.Every.D()},
	}
}

// ActiveLists are the lists for package lists.
func (c *Config) ActiveLists() []lists.Configured {
	out := make([]lists.Configured, len(c.Lists))
	for i := range c.Lists {
		l := &c.Lists[i]
		out[i] = lists.Configured{List: l.list(), Blocks: lists.Policy{TTL: l.Blocks.TTL.D(), Instead: l.Blocks.Instead}}
	}
	return out
}

// Syslog is where the lines about list hits go. An empty Server sends none.
type Syslog struct {
	Server   string `yaml:"server"`  // host, host:port; of unix a path
	Network  string `yaml:"network"` // udp, tcp, tls, unix
	CAFile   string `yaml:"ca_file" path:"true"`
	Facility string `yaml:"facility"`
	AppName  string `yaml:"app_name"`
	Format   string `yaml:"format"` // rfc5424, rfc3164
}

// Options are those of a client.
func (s *Syslog) Options(now func() time.Time) syslog.Options {
	o := syslog.Options{
		Network: syslog.Network(s.Network), Address: s.Server, CAFile: s.CAFile, AppName: s.AppName, Facility: s.Facility,
		Format: syslog.Format(s.Format), Now: now,
	}
	if o.Network == syslog.Unix {
		o.Format = "" // its own
	}
	return o
}

// lists holds the active lists against each other.
func (v *validator) lists(c *Config) {
	types := map[string]parry.ListType{}
	for i := range c.Lists {
		types[c.Lists[i].Name] = parry.ListType(c.Lists[i].Type)
	}
	network := func(key, name string) {
		t, ok := types[name]
		v.require(ok, key, "%q is no list of this configuration; write one below lists", name)
		v.require(!ok || t.IsNetwork(), key, "%q is of the type %s; it must be of the type ip or cidr", name, t)
	}
	seen := map[string]bool{}
	for i := range c.Lists {
		l, key := &c.Lists[i], fmt.Sprintf("lists[%d]", i)
		switch {
		case l.Name == "":
			v.add(key, "write name: with the list's name")
		case !namePattern.MatchString(l.Name):
			v.add(key+".name", "%q is no list's name; use a-z, 0-9 and -, up to 63 characters", l.Name)
		case seen[l.Name]:
			v.add(key+".name", "%q is listed twice; keep one", l.Name)
		}
		seen[l.Name] = true
		list := l.list()
		for _, f := range list.Problems() {
			v.add(key+"."+strings.ReplaceAll(f.Pointer, "/", "."), "%s", f.Detail)
		}
		v.require(!l.OnHit.Syslog || c.Syslog.Server != "" || c.Syslog.Network == string(syslog.Unix), key+".on_hit.syslog", "there is nobody to tell; write syslog.server")
		v.require(len(l.Comment) <= 1024, key+".comment", "write 1024 bytes at most")
		b := l.Blocks
		if b == (ListBlocks{}) {
			continue
		}
		v.require(list.Type.IsNetwork(), key+".blocks", "this is for lists of the types ip and cidr")
		v.require(b.TTL == 0 || b.Instead == "", key+".blocks", "set ttl or instead, not both")
		if b.Instead != "" {
			network(key+".blocks.instead", b.Instead)
		} else {
			v.within(key+".blocks.ttl", b.TTL, time.Second, c.Blocks.MaxTTL.D())
		}
	}
	if c.Blocks.List != "" {
		network("blocks.list", c.Blocks.List)
	}

	s := c.Syslog
	v.oneOf("syslog.network", s.Network, "udp", "tcp", "tls", "unix")
	v.oneOf("syslog.format", s.Format, "rfc5424", "rfc3164")
	_, err := syslog.ParseFacility(s.Facility)
	v.require(err == nil, "syslog.facility", "%v", err)
	if s.Server != "" || s.Network == string(syslog.Unix) {
		s.CAFile = "" // read at the start
		_, err = syslog.New(s.Options(time.Now))
		v.require(err == nil, "syslog", "%v", err)
	}
}
