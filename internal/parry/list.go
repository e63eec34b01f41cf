package parry

import "time"

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
