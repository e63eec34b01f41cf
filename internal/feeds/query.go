package feeds

import (
	"regexp"
	"slices"
	"strings"

	"github.com/parry/parry/internal/parry"
)

// Format is how a feed is written.
type Format string

const (
	Plain    Format = "plain"     // an address or prefix a line; FortiGate, pfSense, pfBlockerNG, most others
	CIDR     Format = "cidr"      // a prefix a line, comments only behind an entry; Palo Alto
	CSV      Format = "csv"       // RFC 4180, safe to open in a spreadsheet
	JSON     Format = "json"      // one document
	CDBWazuh Format = "cdb-wazuh" // key:value, subnets as dotted prefixes, keys with a colon in quotes
	CDBOSSEC Format = "cdb-ossec" // the same without quotes, and so without IPv6
	IPRep    Format = "iprep"     // Suricata: address,category,score
	Geo      Format = "geo"       // nginx: prefix value;
	Map      Format = "map"       // HAProxy: key value
)

// Formats lists every format.
var Formats = []Format{Plain, CIDR, CSV, JSON, CDBWazuh, CDBOSSEC, IPRep, Geo, Map}

// keyFormats are those that make sense of keys which are no addresses.
var keyFormats = []Format{Plain, CSV, JSON, CDBWazuh, CDBOSSEC, Map}

// ContentType is the format's media type.
func (f Format) ContentType() string {
	switch f {
	case CSV:
		return "text/csv; charset=utf-8; header=present"
	case JSON:
		return "application/json"
	default:
		return "text/plain; charset=utf-8"
	}
}

func (f Format) cdb() bool { return f == CDBWazuh || f == CDBOSSEC }

// Blocks is the name of the feed of live blocks.
const Blocks = parry.FeedOfBlocks

// Scope says which blocks the feed of blocks holds.
type Scope string

const (
	// ScopeWhole is blocks that drop all that comes from their source. A consumer that reads addresses does just that.
	ScopeWhole Scope = "whole"
	// ScopeAll is every block, also those of one destination, protocol, port or interface: a consumer will drop more than was asked for.
	ScopeAll Scope = "all"
)

// Query is what a consumer asks for. Zero fields mean the default.
type Query struct {
	Name      string
	Format    Format // Plain
	Scope     Scope  // ScopeWhole; of the feed of blocks
	Family    int    // 4 or 6; 0 is both
	Aggregate bool   // the fewest prefixes that cover exactly the same addresses
	Limit     int    // the newest so many entries; 0 is all
	Category  int    // of IPRep, 1 to 59; 1
	Score     int    // of IPRep, 1 to 127; 100
	Value     string // of Geo, Map and the CDB formats; "1", or the feed's name
}

var valuePattern = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// normal fills in the defaults, so that what means the same is the same, and refuses what makes no sense for the type of keys.
func (q Query) normal(t parry.ListType) (Query, error) {
	e := &parry.Error{Kind: parry.KindInvalid, Detail: "the request is not valid"}
	wrong := func(param, detail string) {
		e.Fields = append(e.Fields, parry.FieldError{Pointer: "?" + param, Detail: detail})
	}
	if q.Format == "" {
		q.Format = Plain
	}
	known := Formats
	if !t.IsNetwork() {
		known = keyFormats
	}
	if !slices.Contains(known, q.Format) {
		wrong("format", "a feed of "+string(t)+" is written as "+join(known))
	}
	if q.Name == Blocks && q.Scope == "" {
		q.Scope = ScopeWhole
	}
	switch {
	case q.Name != Blocks && q.Scope != "":
		wrong("scope", "only the feed of blocks has it")
	case q.Name == Blocks && q.Scope != ScopeWhole && q.Scope != ScopeAll:
		wrong("scope", "this must be one of whole, all")
	}
	if q.Family != 0 && q.Family != 4 && q.Family != 6 {
		wrong("family", "this must be 4 or 6; left out is both")
	} else if q.Family != 0 && !t.IsNetwork() {
		wrong("family", "only feeds of addresses have it")
	}
	if q.Aggregate && !t.IsNetwork() {
		wrong("aggregate", "only addresses can be merged")
	}
	if q.Format.cdb() {
		q.Aggregate = t.IsNetwork() // a key may stand there once, and the shorter of two that match is never found
	}
	if q.Limit < 0 {
		wrong("limit", "this must be 1 at least; left out is all")
	}
	number := func(param string, n *int, most, otherwise int) {
		switch {
		case q.Format != IPRep && *n != 0:
			wrong(param, "only the format iprep has it")
		case *n < 0 || *n > most:
			wrong(param, "this is out of bounds")
		case q.Format == IPRep && *n == 0:
			*n = otherwise
		}
	}
	number("category", &q.Category, 59, 1) // SREP_MAX_CATS is 60
	number("score", &q.Score, 127, 100)
	switch takes := q.Format == Geo || q.Format == Map || q.Format.cdb(); {
	case q.Value == "" && q.Format.cdb():
		q.Value = q.Name
	case q.Value == "" && takes:
		q.Value = "1"
	case q.Value != "" && !takes:
		wrong("value", "only the formats geo, map, cdb-wazuh and cdb-ossec have it")
	case q.Value != "" && !valuePattern.MatchString(q.Value):
		wrong("value", "write 1 to 64 letters, digits, and _ . -")
	}
	if len(e.Fields) > 0 {
		return q, e
	}
	return q, nil
}

func join(fs []Format) string {
	s := make([]string, len(fs))
	for i, f := range fs {
		s[i] = string(f)
	}
	return strings.Join(s, ", ")
}
