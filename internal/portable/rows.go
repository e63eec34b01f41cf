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
