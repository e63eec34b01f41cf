// Package config reads parry's configuration: one strict YAML file, secrets from files beside it, and overrides from the environment.
//
// [Default] holds every default; configs/parry.yaml shows each of them, and a test keeps the two together. [Load] does everything in one
// order: defaults, file, environment, relative paths, secret files, [Config.Validate]. Any fault names its line where there is one, its key,
// and the mend, and all faults are told at once.
package config

import (
	"slices"
	"time"
)

// Config is the whole configuration. Fields tagged `path` are absolute after Load.
type Config struct {
	Digest string // SHA-256 of the file, in hexadecimal; empty without one

	Listen           string      `yaml:"listen"` // address:port of the HTTPS API; empty: only the unix socket
	TLS              TLS         `yaml:"tls"`
	Socket           string      `yaml:"socket" path:"true"` // unix socket of the local command line
	StateDir         string      `yaml:"state_dir" path:"true"`
	Database         Database    `yaml:"database"`
	Bundles          string      `yaml:"bundles" path:"true"` // the directory that holds the bundles
	Ansible          Ansible     `yaml:"ansible"`
	Firewalls        []Firewall  `yaml:"firewalls"`
	DefaultFirewalls []string    `yaml:"default_firewalls"`
	Blocks           Blocks      `yaml:"blocks"`
	Escalation       Escalation  `yaml:"escalation"`
	Exemptions       []Exemption `yaml:"exemptions"`
	Limits           Limits      `yaml:"limits"`
	Reconcile        Reconcile   `yaml:"reconcile"`
	Approvals        Approvals   `yaml:"approvals"`
	Simulate         Simulate    `yaml:"simulate"`
	Retention        Retention   `yaml:"retention"`
	Feeds            Feeds       `yaml:"feeds"`
	Lists            []List      `yaml:"lists"`
	Syslog           Syslog      `yaml:"syslog"`
	Mail             Mail        `yaml:"mail"`
	Channels         []Channel   `yaml:"channels"`
	Log              Log         `yaml:"log"`
	TrustedProxies   []Prefix    `yaml:"trusted_proxies"`
	Hooks            Hooks       `yaml:"hooks"`
}

// TLS is how the API is served. Without a certificate parry makes its own.
type TLS struct {
	CertFile   string   `yaml:"cert_file" path:"true"`
	KeyFile    string   `yaml:"key_file" path:"true"`
	Names      []string `yaml:"names"` // further DNS names and addresses of parry's own certificate
	MinVersion string   `yaml:"min_version"`
}

// Database is where the desired state is kept.
type Database struct {
	Driver  string `yaml:"driver"`           // sqlite, postgres
	Path    string `yaml:"path" path:"true"` // of sqlite; empty: parry.db in the state directory
	DSN     Secret `yaml:"dsn"`
	DSNFile string `yaml:"dsn_file" path:"true"`
}

// Ansible is how playbooks are run.
type Ansible struct {
	Inventory      string   `yaml:"inventory" path:"true"`
	KnownHosts     string   `yaml:"known_hosts" path:"true"`
	PrivateKeyFile string   `yaml:"private_key_file" path:"true"`
	PlaybookBin    string   `yaml:"playbook_bin"` // looked up in PATH unless it holds a slash
	Deadline       Duration `yaml:"deadline"`
	Grace          Duration `yaml:"grace"`
}

// Firewall is one inventory host that parry converges.
type Firewall struct {
	Name       string            `yaml:"name"`
	Groups     []string          `yaml:"groups"`
	Bundle     string            `yaml:"bundle"`
	Pin        string            `yaml:"pin"`
	Canary     bool              `yaml:"canary"`
	Interface  string            `yaml:"interface"`
	Interfaces map[string]string `yaml:"interfaces"`
	MaxRules   int               `yaml:"max_rules"`
	Simulate   bool              `yaml:"simulate"`
	NAT        NAT               `yaml:"nat"`
	Settings   map[string]any    `yaml:"settings"`
}

// Blocks bounds what a request may ask for.
type Blocks struct {
	DefaultTTL     Duration `yaml:"default_ttl"`
	MaxTTL         Duration `yaml:"max_ttl"`
	MaxBlocks      int64    `yaml:"max_blocks"`
	BeyondMaxRules string   `yaml:"beyond_max_rules"` // refuse, widen
	ExpirySlack    Duration `yaml:"expiry_slack"`
	MinPrefixV4    int      `yaml:"min_prefix_v4"`
	MinPrefixV6    int      `yaml:"min_prefix_v6"`
	List           string   `yaml:"list"` // active list that each accepted block's source is put on; empty: none
}

// Exemption is an entry of the never-block list.
type Exemption struct {
	Prefix Prefix `yaml:"prefix"`
	Reason string `yaml:"reason"`
}

// Limits protect parry itself.
type Limits struct {
	RatePerMinute  int     `yaml:"rate_per_minute"`  // block requests of one token
	TotalPerMinute int     `yaml:"total_per_minute"` // of all together; 0: four times rate_per_minute
	Suspend        Suspend `yaml:"suspend"`
	Queue          int     `yaml:"queue"`   // requests that wait for their commit
	Waiters        int     `yaml:"waiters"` // ?wait= at once
}

// Suspend is when a token that keeps asking for blocks of what is never blocked is suspended.
type Suspend struct {
	After  int      `yaml:"after"` // refusals; 0: never
	Within Duration `yaml:"within"`
	For    Duration `yaml:"for"`
}

// Total is what all tokens together may ask for in a minute.
func (l *Limits) Total() int {
	if l.TotalPerMinute > 0 {
		return l.TotalPerMinute
	}
	return 4 * l.RatePerMinute
}

// Reconcile is the lanes' timing.
type Reconcile struct {
	VerifyEvery Duration `yaml:"verify_every"`
	BackoffMin  Duration `yaml:"backoff_min"`
	BackoffMax  Duration `yaml:"backoff_max"`
	AuthBackoff Duration `yaml:"auth_backoff"`
}

// Approvals is how much a run may change without somebody's word.
type Approvals struct {
	Remove        int      `yaml:"remove"`         // entries for no known reason
	RemovePercent int      `yaml:"remove_percent"` // of those that stand, where that is more
	Add           int      `yaml:"add"`            // entries in one run; 0: any number
	Expire        Duration `yaml:"expire"`         // nobody decides: asked anew
}

// Simulate is what is shown and not done.
type Simulate struct {
	All   bool     `yaml:"all"`   // no firewall is written to
	Rules []string `yaml:"rules"` // RULE, ORIGIN/RULE or ORIGIN/*: their blocks are never applied
}

// Rule tells whether requests of a rule are simulated.
func (s *Simulate) Rule(origin, id string) bool {
	return slices.ContainsFunc(s.Rules, func(r string) bool {
		return id != "" && (r == id || r == origin+"/"+id) || origin != "" && r == origin+"/*"
	})
}

// Feeds is what is published for those who fetch lists.
type Feeds struct {
	MaxAge     Duration `yaml:"max_age"`
	StaleAfter Duration `yaml:"stale_after"`
}

// Retention is how long the past is kept.
type Retention struct {
	EndedBlocks Duration `yaml:"ended_blocks"`
	Runs        Duration `yaml:"runs"`
	RunCount    int      `yaml:"run_count"`
	Idempotency Duration `yaml:"idempotency"`
	Outbox      Duration `yaml:"outbox"`
	Audit       Duration `yaml:"audit"` // 0: for ever
}

// Mail is where failure reports go. An empty Server sends none.
type Mail struct {
	Server       string   `yaml:"server"`   // host:port
	Security     string   `yaml:"security"` // starttls, tls, plain
	Username     string   `yaml:"username"`
	Password     Secret   `yaml:"password"`
	PasswordFile string   `yaml:"password_file" path:"true"`
	From         string   `yaml:"from"`
	To           []string `yaml:"to"`
	Helo         string   `yaml:"helo"`
	Timeout      Duration `yaml:"timeout"`
}

// Log is the form of the log on standard error.
type Log struct {
	Format string `yaml:"format"` // text, json
	Level  string `yaml:"level"`  // debug, info, warn, error
}

// Defaults of a firewall, and of the command line's lookups.
const (
	DefaultPath      = "/etc/parry/parry.yaml"
	DefaultSocket    = "/run/parry/parry.sock"
	defaultBundle    = "pfsense"
	defaultInterface = "wan"
	defaultMaxRules  = 200
)

// Default is the configuration of an empty file.
func Default() *Config {
	return &Config{
		Listen:   ":8443",
		TLS:      TLS{MinVersion: "1.2"},
		Socket:   DefaultSocket,
		StateDir: "/var/lib/parry",
		Database: Database{Driver: "sqlite"},
		Bundles:  "/usr/share/parry/playbooks",
		Ansible: Ansible{
			Inventory:   "/etc/parry/inventory",
			KnownHosts:  "/etc/parry/known_hosts",
			PlaybookBin: "ansible-playbook",
			Deadline:    Duration(3 * time.Minute),
			Grace:       Duration(10 * time.Second),
		},
		DefaultFirewalls: []string{"all"},
		Blocks: Blocks{
			DefaultTTL:     Duration(4 * time.Hour),
			MaxTTL:         Duration(30 * 24 * time.Hour),
			MaxBlocks:      150_000,
			BeyondMaxRules: "widen",
			ExpirySlack:    Duration(10 * time.Second),
			MinPrefixV4:    24,
			MinPrefixV6:    48,
		},
		Escalation: defaultEscalation(),
		Exemptions: privateRanges(),
		Limits: Limits{
			RatePerMinute: 30_000, Queue: 4096, Waiters: 256,
			Suspend: Suspend{After: 100, Within: Duration(10 * time.Minute), For: Duration(15 * time.Minute)},
		},
		Reconcile: Reconcile{
			VerifyEvery: Duration(15 * time.Minute),
			BackoffMin:  Duration(2 * time.Second),
			BackoffMax:  Duration(5 * time.Minute),
			AuthBackoff: Duration(10 * time.Minute),
		},
		Approvals: Approvals{Remove: 20, RemovePercent: 30, Expire: Duration(7 * 24 * time.Hour)},
		Syslog:    Syslog{Network: "udp", Facility: "local4", AppName: "parry", Format: "rfc5424"},
		Feeds:     Feeds{MaxAge: Duration(5 * time.Second), StaleAfter: Duration(24 * time.Hour)},
		Retention: Retention{
			EndedBlocks: Duration(90 * 24 * time.Hour),
			Runs:        Duration(30 * 24 * time.Hour),
			RunCount:    500,
			Idempotency: Duration(30 * 24 * time.Hour),
			Outbox:      Duration(30 * 24 * time.Hour),
			Audit:       Duration(2 * year),
		},
		Mail: Mail{Security: "starttls", Timeout: Duration(30 * time.Second)},
		Log:  Log{Format: "text", Level: "info"},
	}
}

// privateRanges protects what a SIEM inside sees as its own side. The file lists them, so that an operator can take one out.
func privateRanges() []Exemption {
	var out []Exemption
	for _, r := range [][2]string{
		{"10.0.0.0/8", "private network (RFC 1918)"},
		{"172.16.0.0/12", "private network (RFC 1918)"},
		{"192.168.0.0/16", "private network (RFC 1918)"},
		{"100.64.0.0/10", "carrier-grade NAT (RFC 6598)"},
		{"127.0.0.0/8", "loopback"},
		{"169.254.0.0/16", "link-local"},
		{"::1", "loopback"},
		{"fe80::/10", "link-local"},
		{"fc00::/7", "unique local addresses (RFC 4193)"},
	} {
		p, err := parsePrefix(r[0])
		if err != nil {
			panic(err) // a literal above is wrong
		}
		out = append(out, Exemption{Prefix: Prefix{p}, Reason: r[1]})
	}
	return out
}
