package parry

import (
	"fmt"
	"slices"
	"time"
)

// ListType is what the keys of a list are. Package lists reads and canonicalises them.
type ListType string

const (
	ListIP     ListType = "ip"     // single addresses
	ListCIDR   ListType = "cidr"   // prefixes and addresses; a lookup finds the longest that covers what is asked
	ListUser   ListType = "user"   // account names, in lower case
	ListDomain ListType = "domain" // DNS names, in lower case and ASCII
	ListASN    ListType = "asn"    // autonomous systems, "AS64500"
)

// ListTypes lists every type.
var ListTypes = []ListType{ListIP, ListCIDR, ListUser, ListDomain, ListASN}

// IsNetwork tells whether keys are addresses or prefixes, as [FormatPrefix] writes them.
func (t ListType) IsNetwork() bool { return t == ListIP || t == ListCIDR }

// Refresh is what a repeat does to an entry's end. Count, last seen and the evidence follow each repeat in every mode.
type Refresh string

const (
	RefreshLastSeen     Refresh = "last-seen"     // counts anew from the newest sight: later, or earlier when the TTL asked for is shorter
	RefreshFirstSeen    Refresh = "first-seen"    // stays as the first sight set it
	RefreshNeverShorten Refresh = "never-shorten" // moves out, never in
)

// Refreshes lists every mode.
var Refreshes = []Refresh{RefreshLastSeen, RefreshFirstSeen, RefreshNeverShorten}

// ListSource is where a list comes from. One of the configuration can be changed there only.
type ListSource string

const (
	ListConfigured ListSource = "config"
	ListAPI        ListSource = "api"
)

// List is a set of typed keys that run out. It never drops an entry to make room for another: when it is full, it says so.
type List struct {
	ID         int64 // the store's; another one under the same name is another list
	Name       string
	Type       ListType
	TTL        time.Duration // of an entry that names none; 0: without end
	MaxTTL     time.Duration // the longest; 0: any, and entries without end
	Refresh    Refresh
	Capacity   int64 // entries that have not run out
	Comment    string
	Subdomains bool // of type domain: an entry stands for every name below it too
	OnHit      OnHit
	Source     ListSource
	CreatedBy  string // token name; empty for a configured one
	CreatedAt  time.Time
}

// What a list is when nothing else is said, and bounds.
const (
	DefaultListTTL      = 24 * time.Hour
	DefaultListMaxTTL   = 30 * 24 * time.Hour
	DefaultListCapacity = 100_000
	MaxListCapacity     = 1_000_000
	DefaultHitEvery     = time.Minute
)

// Problems tells what is wrong with a list's settings; pointers are their names, as the API and the configuration write them.
func (l *List) Problems() (wrong []FieldError) {
	add := func(name, format string, args ...any) {
		wrong = append(wrong, FieldError{name, fmt.Sprintf(format, args...)})
	}
	if l.Name == FeedOfBlocks {
		add("name", "%q is the feed of the live blocks; take another", l.Name)
	}
	if !slices.Contains(ListTypes, l.Type) {
		add("type", "%q is not known; write ip, cidr, user, domain or asn", l.Type)
	}
	if !slices.Contains(Refreshes, l.Refresh) {
		add("refresh", "%q is not known; write last-seen, first-seen or never-shorten", l.Refresh)
	}
	switch {
	case l.TTL < 0 || l.TTL > maxTTL:
		add("ttl", "write a duration of up to 100 years")
	case l.MaxTTL < 0 || l.MaxTTL > maxTTL:
		add("max_ttl", "write a duration of up to 100 years")
	case l.MaxTTL > 0 && l.TTL == 0:
		add("ttl", "without end is beyond max_ttl (%s)", FormatTTL(l.MaxTTL))
	case l.MaxTTL > 0 && l.TTL > l.MaxTTL:
		add("ttl", "%s is longer than max_ttl (%s)", FormatTTL(l.TTL), FormatTTL(l.MaxTTL))
	}
	if l.Capacity < 1 || l.Capacity > MaxListCapacity {
		add("capacity", "%d is out of bounds; write 1 to %d", l.Capacity, MaxListCapacity)
	}
	if l.Subdomains && l.Type != ListDomain {
		add("subdomains", "this is for lists of the type domain")
	}
	if l.OnHit.Every < 0 || l.OnHit.Every > maxTTL {
		add("on_hit/every", "write a duration, such as 1m")
	}
	return wrong
}

// OnHit is what a lookup that finds an entry causes.
type OnHit struct {
	Syslog bool
	Every  time.Duration // per entry, not more often; 0: each time
}

// ListPut asks for an entry: made, or refreshed as the list's mode says.
type ListPut struct {
	Key     string // canonical
	TTL     time.Duration
	NoEnd   bool      // else TTL; neither: the list's
	SeenAt  time.Time // the TTL counts from it
	Comment string    // inert text, as written, as are the next three
	AlertID string
	RuleID  string
	Origin  string
	By      string // token name
}

// ListAsk is a put with its list.
type ListAsk struct {
	List string
	ListPut
}

// ListEntry is one key of a list with its evidence.
type ListEntry struct {
	List      string
	Key       string // canonical
	Rev       Revision
	Count     int64
	FirstSeen time.Time
	LastSeen  time.Time
	ExpiresAt time.Time // zero: without end
	Sources   []string  // distinct origins, the first [MaxListSources]
	Comment   string    // of the newest put that had one, as are the next two
	AlertID   string
	RuleID    string
	By        string // token name of the newest put
}

// MaxListSources bounds ListEntry.Sources.
const MaxListSources = 8

// Live tells whether the entry still stands. One that has run out never matches, swept or not.
func (e *ListEntry) Live(now time.Time) bool { return e.ExpiresAt.IsZero() || now.Before(e.ExpiresAt) }

// ListDone counts what became of a batch of puts.
type ListDone struct {
	Revision  Revision
	Added     int
	Refreshed int
	Late      int // seen so long ago that its time was over: counted on a live entry, and nothing else
}

// ListChanges is what happened to the lists after a revision.
type ListChanges struct {
	Revision Revision    // read in the same snapshot
	Lists    []List      // all there are
	Entries  []ListEntry // each whose row changed after the revision asked for, removed ones as run out; all live ones when that was 0
}
