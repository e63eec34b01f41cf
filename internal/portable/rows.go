package portable

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Block is a live block. A row to be read needs its source only.
type Block struct {
	Source          string    `json:"source"`
	Destination     string    `json:"destination,omitempty"`
	DestinationPort int       `json:"destination_port,omitempty"`
	Protocol        string    `json:"protocol,omitempty"`
	Interface       string    `json:"interface,omitempty"`
	Firewalls       []string  `json:"firewalls,omitempty"`
	ExpiresAt       time.Time `json:"expires_at,omitzero"`
	TTL             string    `json:"ttl,omitempty"` // where there is no ExpiresAt: "none" for a block without end; empty is the default of the parry that reads it
	Reason          string    `json:"reason,omitempty"`
	Origin          string    `json:"origin,omitempty"`

	ID         string    `json:"id,omitempty"` // this and what follows is for people
	CreatedAt  time.Time `json:"created_at,omitzero"`
	CreatedBy  string    `json:"created_by,omitempty"`
	ExportedAt time.Time `json:"-"` // of the file; in CSV a column
}

// Blocks is the table of live blocks.
var Blocks = &Table[Block]{
	Kind:  "blocks",
	stamp: func(b *Block) *time.Time { return &b.ExportedAt },
	columns: []column[Block]{
		text("source", func(b *Block) *string { return &b.Source }),
		text("destination", func(b *Block) *string { return &b.Destination }),
		number("destination_port", func(b *Block) *int { return &b.DestinationPort }),
		text("protocol", func(b *Block) *string { return &b.Protocol }),
		text("interface", func(b *Block) *string { return &b.Interface }),
		words("firewalls", func(b *Block) *[]string { return &b.Firewalls }),
		moment("expires_at", func(b *Block) *time.Time { return &b.ExpiresAt }),
		text("ttl", func(b *Block) *string { return &b.TTL }),
		text("reason", func(b *Block) *string { return &b.Reason }),
		text("origin", func(b *Block) *string { return &b.Origin }),
		text("id", func(b *Block) *string { return &b.ID }),
		moment("created_at", func(b *Block) *time.Time { return &b.CreatedAt }),
		text("created_by", func(b *Block) *string { return &b.CreatedBy }),
		moment("exported_at", func(b *Block) *time.Time { return &b.ExportedAt }),
	},
}

// Exemption is an entry of the never-block list that was made by request. A row to be read needs its prefix and reason.
type Exemption struct {
	Prefix    string    `json:"prefix"`
	Reason    string    `json:"reason"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: without end

	ID         string    `json:"id,omitempty"` // this and what follows is for people
	CreatedAt  time.Time `json:"created_at,omitzero"`
	CreatedBy  string    `json:"created_by,omitempty"`
	ExportedAt time.Time `json:"-"`
}

// Exemptions is the table of exemptions.
var Exemptions = &Table[Exemption]{
	Kind:  "exemptions",
	stamp: func(x *Exemption) *time.Time { return &x.ExportedAt },
	columns: []column[Exemption]{
		text("prefix", func(x *Exemption) *string { return &x.Prefix }),
		text("reason", func(x *Exemption) *string { return &x.Reason }),
		moment("expires_at", func(x *Exemption) *time.Time { return &x.ExpiresAt }),
		text("id", func(x *Exemption) *string { return &x.ID }),
		moment("created_at", func(x *Exemption) *time.Time { return &x.CreatedAt }),
		text("created_by", func(x *Exemption) *string { return &x.CreatedBy }),
		moment("exported_at", func(x *Exemption) *time.Time { return &x.ExportedAt }),
	},
}

// Entry is one key of an active list, or, without a key, the list itself. A row to be read needs its list and key.
type Entry struct {
	List      string    `json:"list"`
	Type      string    `json:"type,omitempty"` // of the list
	Key       string    `json:"key,omitempty"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	TTL       string    `json:"ttl,omitempty"` // where there is no ExpiresAt: "none" for an entry without end; of the list, what an entry gets that names none
	LastSeen  time.Time `json:"last_seen,omitzero"`
	Comment   string    `json:"comment,omitempty"`
	AlertID   string    `json:"alert_id,omitempty"`
	RuleID    string    `json:"rule_id,omitempty"`
	Origin    string    `json:"origin,omitempty"` // its first

	MaxTTL     string `json:"max_ttl,omitempty"` // this and what follows is of the list
	Refresh    string `json:"refresh,omitempty"`
	Capacity   int    `json:"capacity,omitempty"`
	Subdomains bool   `json:"subdomains,omitempty"`
	HitSyslog  bool   `json:"hit_syslog,omitempty"`
	HitEvery   string `json:"hit_every,omitempty"`

	Count      int       `json:"count,omitempty"` // this and what follows is for people
	FirstSeen  time.Time `json:"first_seen,omitzero"`
	PutBy      string    `json:"put_by,omitempty"`
	ExportedAt time.Time `json:"-"`
}

// Entries is the table of active lists and what stands on them: each list before its entries.
var Entries = &Table[Entry]{
	Kind:  "lists",
	stamp: func(e *Entry) *time.Time { return &e.ExportedAt },
	columns: []column[Entry]{
		text("list", func(e *Entry) *string { return &e.List }),
		text("type", func(e *Entry) *string { return &e.Type }),
		text("key", func(e *Entry) *string { return &e.Key }),
		moment("expires_at", func(e *Entry) *time.Time { return &e.ExpiresAt }),
		text("ttl", func(e *Entry) *string { return &e.TTL }),
		moment("last_seen", func(e *Entry) *time.Time { return &e.LastSeen }),
		text("comment", func(e *Entry) *string { return &e.Comment }),
		text("alert_id", func(e *Entry) *string { return &e.AlertID }),
		text("rule_id", func(e *Entry) *string { return &e.RuleID }),
		text("origin", func(e *Entry) *string { return &e.Origin }),
		text("max_ttl", func(e *Entry) *string { return &e.MaxTTL }),
		text("refresh", func(e *Entry) *string { return &e.Refresh }),
		number("capacity", func(e *Entry) *int { return &e.Capacity }),
		truth("subdomains", func(e *Entry) *bool { return &e.Subdomains }),
		truth("hit_syslog", func(e *Entry) *bool { return &e.HitSyslog }),
		text("hit_every", func(e *Entry) *string { return &e.HitEvery }),
		number("count", func(e *Entry) *int { return &e.Count }),
		moment("first_seen", func(e *Entry) *time.Time { return &e.FirstSeen }),
		text("put_by", func(e *Entry) *string { return &e.PutBy }),
		moment("exported_at", func(e *Entry) *time.Time { return &e.ExportedAt }),
	},
}

// Table says how rows of a kind are written.
type Table[R any] struct {
	Kind    string
	stamp   func(*R) *time.Time // where a row keeps when it was exported
	columns []column[R]
}

// column is a field as a cell; both ways are exact.
type column[R any] struct {
	name string
	get  func(*R) string
	set  func(*R, string) error
}

func text[R any](name string, at func(*R) *string) column[R] {
	return column[R]{name, func(r *R) string { return *at(r) }, func(r *R, s string) error { *at(r) = s; return nil }}
}

func number[R any](name string, at func(*R) *int) column[R] {
	return column[R]{name,
		func(r *R) string {
			if *at(r) == 0 {
				return ""
			}
			return strconv.Itoa(*at(r))
		},
		func(r *R, s string) (err error) {
			if s == "" {
				return nil
			}
			if *at(r), err = strconv.Atoi(s); err != nil {
				err = fmt.Errorf("%q is no number", s)
			}
			return err
		},
	}
}

func truth[R any](name string, at func(*R) *bool) column[R] {
	return column[R]{name,
		func(r *R) string {
			if *at(r) {
				return "true"
			}
			return ""
		},
		func(r *R, s string) error {
			switch strings.ToLower(s) { // a spreadsheet shouts
			case "true", "1":
				*at(r) = true
			case "", "false", "0":
			default:
				return fmt.Errorf("%q is neither true nor false", s)
			}
			return nil
		},
	}
}

// words are joined by blanks; they have none.
func words[R any](name string, at func(*R) *[]string) column[R] {
	return column[R]{name, func(r *R) string { return strings.Join(*at(r), " ") },
		func(r *R, s string) error { *at(r) = strings.Fields(strings.ReplaceAll(s, ",", " ")); return nil }}
}

func moment[R any](name string, at func(*R) *time.Time) column[R] {
	return column[R]{name,
		func(r *R) string {
			if at(r).IsZero() {
				return ""
			}
			return at(r).UTC().Format(time.RFC3339Nano)
		},
		func(r *R, s string) (err error) {
			if s == "" {
				return nil
			}
			if *at(r), err = time.Parse(time.RFC3339, s); err != nil {
				err = fmt.Errorf("%q is no time such as 2006-01-02T15:04:05Z", s)
			}
			return err
		},
	}
}
