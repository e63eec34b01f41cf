package parry

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Revision counts writing transactions; a block or firewall is compared by it. Zero is "never".
type Revision int64

// Protocol is what a block matches, as the playbook contract writes it; empty is any.
type Protocol string

const (
	ProtoAny    Protocol = ""
	ProtoTCP    Protocol = "tcp"
	ProtoUDP    Protocol = "udp"
	ProtoTCPUDP Protocol = "tcp/udp"
	ProtoICMP   Protocol = "icmp" // ICMPv6 where the source is IPv6
	ProtoSCTP   Protocol = "sctp"
	ProtoESP    Protocol = "esp"
	ProtoAH     Protocol = "ah"
	ProtoGRE    Protocol = "gre"
)

// Protocols lists every protocol that a request may name.
var Protocols = []Protocol{ProtoTCP, ProtoUDP, ProtoTCPUDP, ProtoICMP, ProtoSCTP, ProtoESP, ProtoAH, ProtoGRE}

// HasPorts tells whether a port can go with the protocol.
func (p Protocol) HasPorts() bool {
	return p == ProtoTCP || p == ProtoUDP || p == ProtoTCPUDP || p == ProtoSCTP
}

// Match is what a block drops. Source and Destination are masked, unmapped and without zone; the zero Destination is any.
type Match struct {
	Source      netip.Prefix
	Destination netip.Prefix
	Protocol    Protocol
	Port        uint16 // 0 is any; else Protocol.HasPorts
	Interface   string // empty is the firewall's default
}

// FormatPrefix writes an address for a single-address prefix, else the prefix; "-" for the zero prefix.
func FormatPrefix(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return "-"
	case p.IsSingleIP():
		return p.Addr().String()
	default:
		return p.String()
	}
}

// Selector names the firewalls that a block is for: "default", "all", a group, or firewall names; canonical is sorted, unique, joined by
// commas. It is stored as given, and resolved anew by [Fleet.Resolve] each time, so that it follows the configuration.
type Selector string

const (
	SelectDefault Selector = "default"
	SelectAll     Selector = "all"
)

// ParseSelector canonicalises names; none means the default.
func ParseSelector(names ...string) Selector {
	var all []string
	for _, n := range names {
		for _, s := range strings.Split(n, ",") {
			if s = strings.TrimSpace(s); s != "" {
				all = append(all, s)
			}
		}
	}
	if len(all) == 0 {
		return SelectDefault
	}
	slices.Sort(all)
	return Selector(strings.Join(slices.Compact(all), ","))
}

// Names are the selector's parts.
func (s Selector) Names() []string { return strings.Split(string(s), ",") }

// Key is the natural key of a live block: at most one live block has it, and a repeat refreshes that.
type Key struct {
	Match
	Selector Selector
}

// EndReason says why a block ended; empty while it lives.
type EndReason string

const (
	EndExpired   EndReason = "expired"
	EndDeleted   EndReason = "deleted"   // an operator's word: a request for it that had come up before is evidence only
	EndWithdrawn EndReason = "withdrawn" // the word of the SIEM that had asked for it, which may come late: each of its requests counts
	EndExempted  EndReason = "exempted"  // an exemption that overlaps it
)

// Block is what is to be dropped, where, until when and why.
type Block struct {
	ID BlockID
	Key
	Rev       Revision // when its content last changed
	EndRev    Revision // when it ended; 0 while it lives
	EndReason EndReason
	EndedBy   string // token name, exemption id; for people
	EndedAt   time.Time
	CreatedAt time.Time
	ExpiresAt time.Time // zero: without end
	Count     int64     // accepted requests
	LastAt    time.Time // when the newest request was accepted
	Reason    string    // of the newest request, as written by the caller: inert text
	Origin    string    // of the newest request: inert text
	CreatedBy string    // token name of the first request
	Widened   string    // what admission dropped to stay within max_rules ("destination 198.51.100.7 port 22/tcp"), else empty
	Offence   int       // which offence of its source it is, from 1; 0: not counted
	Promoted  int       // so many sources of the prefix made it; 0: asked for as it is
	Simulated bool      // only simulated rules have asked for it: evidence is kept, nothing is applied
}

// Live tells whether the block still stands.
func (b *Block) Live() bool { return b.EndRev == 0 }

// Request is one accepted POST: the evidence of a block.
type Request struct {
	ID         RequestID
	BlockID    BlockID
	N          int64 // its ordinal among the block's requests, from 1
	ReceivedAt time.Time
	EventTime  time.Time // zero when the caller gave none
	TTL        time.Duration
	TokenID    TokenID
	TokenName  string
	RemoteAddr netip.Addr
	Origin     string
	AlertID    string
	RuleID     string
	Reason     string
	Source     netip.Prefix // the address that was asked for, where the block is of a prefix that it was promoted to; else zero
}

// Admission is a request that passed authentication, validation and policy, with what the store must still hold it to in its transaction.
type Admission struct {
	BlockID     BlockID    // made beforehand, so that an ambiguous commit can be retried without counting twice
	Request     Request    // its ID likewise; BlockID and N are the store's to set
	Key         Key        // as admitted
	NoEnd       bool       // a block without end; else Request.TTL counts from the event's time (ReceivedAt without one)
	MaxExpires  time.Time  // the cap: no refresh goes beyond it; zero when NoEnd
	MaxBlocks   int64      // refuse a new block beyond so many live ones; 0 is no limit
	MaxRules    int        // distinct (family, destination, protocol, port, interface) among RuleScope; 0 is no limit
	RuleScope   []Selector // each name of one of several is looked for in those of several, too
	WidenBeyond bool       // beyond MaxRules, widen to source-only instead of refusing
	Idempotency *Idempotency
	Lists       []ListAsk // entries to be put in the same transaction, if the block is accepted

	Ladder    *Ladder    // counts the source's offences; nil: it is off
	LadderTTL bool       // the rung is the least lifetime; else the request's own TTL stands
	EndsGrace bool       // an operator's word, which ends a grace of the source; anyone else's is refused meanwhile
	Simulate  bool       // by a simulated rule: no block of it is applied, and none that stands is refreshed
	Promote   *Promotion // nil: the request is for its source, come what may
}

// Idempotency is the key of a repeatable request. Scope is token, method and path; a hit with another Hash is refused.
type Idempotency struct {
	Scope string
	Key   string
	Hash  [32]byte // SHA-256 of the body
}

// Admitted is the answer to an Admission.
type Admitted struct {
	Block    Block
	Request  RequestID
	Created  bool     // a new block rather than a refresh; false for a repeat by Idempotency-Key of a create too
	Replayed bool     // the idempotency key had been seen: nothing was changed
	Unlisted []string // of Admission.Lists, those that took nothing, because they are full or gone: the block stands all the same

	NotPromoted string // why the block is of the address alone although so many of its prefix were asked for; else empty
}

// BlockFilter narrows a listing; zero fields do not.
type BlockFilter struct {
	Source    netip.Prefix // exactly this source
	Covering  netip.Prefix // sources that cover this prefix, itself included
	Within    netip.Prefix // sources inside this prefix, itself included
	Selector  Selector
	Selectors []Selector // any of these
	Live      *bool
	Origin    string
	CreatedBy string
	ExpiresBy time.Time // live ones that expire until then
	Limit     int       // 1…1000
	Cursor    string    // opaque, from the page before
}

// EndedBlocks is what a filter ended, or would end.
type EndedBlocks struct {
	Matched int       // live blocks that it found
	Ended   int       // of those, ended now
	First   []BlockID // the first 1000 that matched, oldest first
}

// Page is one page of a listing, newest first. Next is empty on the last one.
type Page[T any] struct {
	Items []T
	Next  string
}

// Entry is one line of what a firewall should hold: a Match with its interface resolved for that firewall.
type Entry struct {
	Match
	Expires int64 // Unix seconds, 0 for none; outside the hash
}

// AppendKey writes the entry's hashed part: source destination protocol port interface, "-" for any, without line end.
func (e Entry) AppendKey(b []byte) []byte {
	b = appendPrefix(b, e.Source)
	b = append(b, ' ')
	b = appendPrefix(b, e.Destination)
	b = append(b, ' ')
	b = appendOr(b, string(e.Protocol))
	b = append(b, ' ')
	if e.Port == 0 {
		b = append(b, '-')
	} else {
		b = strconv.AppendInt(b, int64(e.Port), 10)
	}
	b = append(b, ' ')
	return appendOr(b, e.Interface)
}

// AppendLine writes the whole line of the desired file, with its line end.
func (e Entry) AppendLine(b []byte) []byte {
	b = append(e.AppendKey(b), ' ')
	if e.Expires == 0 {
		b = append(b, '-')
	} else {
		b = strconv.AppendInt(b, e.Expires, 10)
	}
	return append(b, '\n')
}

func appendPrefix(b []byte, p netip.Prefix) []byte {
	switch {
	case !p.IsValid():
		return append(b, '-')
	case p.IsSingleIP():
		return p.Addr().AppendTo(b)
	default:
		return p.AppendTo(b)
	}
}

func appendOr(b []byte, s string) []byte { return append(b, cmp.Or(s, "-")...) }
