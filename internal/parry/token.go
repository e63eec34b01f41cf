package parry

import (
	"net/netip"
	"slices"
	"time"
)

// Role is a set of rights. Each includes those before it, except that a trigger may read only what it made, and no feeds, and that only auditor
// and admin read the audit.
type Role string

const (
	RoleFeed     Role = "feed"     // read feeds
	RoleTrigger  Role = "trigger"  // POST blocks, read the blocks that it made, end them where that is honoured
	RoleReader   Role = "reader"   // read everything but tokens and the audit
	RoleAuditor  Role = "auditor"  // read everything but tokens
	RoleOperator Role = "operator" // lift, shorten and extend blocks, prefixes, holds
	RoleApprover Role = "approver" // exemptions, adopt, approve, retire, which copy of a bundle is used
	RoleAdmin    Role = "admin"    // tokens, blocks without end
)

// Right is one thing that can be allowed.
type Right string

const (
	RightBlock      Right = "block"       // ask for a block of an address
	RightReadOwn    Right = "read-own"    // read blocks that the token made
	RightRead       Right = "read"        // read everything but tokens
	RightFeed       Right = "feed"        // read feeds; its operations take HTTP basic authentication, too
	RightPrefix     Right = "prefix"      // ask for a block of a prefix
	RightUnblock    Right = "unblock"     // end, extend, shorten
	RightUnblockOwn Right = "unblock-own" // end blocks that the token made; without RightUnblock, only where the configuration honours it
	RightHold       Right = "hold"        // hold and release firewalls
	RightNotify     Right = "notify"      // send a test through a channel
	RightExempt     Right = "exempt"      // add and remove exemptions
	RightTakeOver   Right = "take-over"   // adopt, approve, retire, use and roll back copies of bundles
	RightWithoutEnd Right = "without-end" // a block without end
	RightTokens     Right = "tokens"
	RightAudit      Right = "audit"      // read the audit
	RightResume     Right = "resume"     // put a suspended token back into use
	RightList       Right = "list"       // put entries on active lists
	RightEditLists  Right = "edit-lists" // make and delete active lists, take entries off
)

var rights = map[Role][]Right{
	RoleFeed:    {RightFeed},
	RoleTrigger: {RightBlock, RightReadOwn, RightUnblockOwn, RightList},
	RoleReader:  {RightReadOwn, RightRead, RightFeed},
	RoleAuditor: {RightReadOwn, RightRead, RightFeed, RightAudit},
	RoleOperator: {RightBlock, RightReadOwn, RightRead, RightFeed, RightPrefix, RightUnblock, RightUnblockOwn, RightHold, RightResume, RightNotify, RightList,
		RightEditLists},
	RoleApprover: {RightBlock, RightReadOwn, RightRead, RightFeed, RightPrefix, RightUnblock, RightUnblockOwn, RightHold, RightResume, RightNotify, RightList,
		RightEditLists, RightExempt, RightTakeOver},
	RoleAdmin: {RightBlock, RightReadOwn, RightRead, RightFeed, RightPrefix, RightUnblock, RightUnblockOwn, RightHold, RightResume, RightNotify, RightList,
		RightEditLists, RightExempt, RightTakeOver, RightWithoutEnd, RightTokens, RightAudit},
}

// Roles lists every role, least first.
var Roles = []Role{RoleFeed, RoleTrigger, RoleReader, RoleAuditor, RoleOperator, RoleApprover, RoleAdmin}

// Rights lists what the role may do.
func (r Role) Rights() []Right { return slices.Clone(rights[r]) }

// Can tells whether the role has the right.
func (r Role) Can(what Right) bool { return slices.Contains(rights[r], what) }

// Token is a credential as it is stored: its secret only as a hash.
type Token struct {
	ID        TokenID
	Name      string
	Role      Role
	Hash      [32]byte // SHA-256 of the secret part
	CreatedBy string
	CreatedAt time.Time
	ExpiresAt time.Time      // zero: without end
	RevokedAt time.Time      // zero: not revoked
	LastUsed  time.Time      // to the minute
	Sources   []netip.Prefix // callers' addresses; empty is any
	Firewalls []string       // selectors that it may name; empty is any
	MaxTTL    time.Duration  // 0: the configuration's
	Rate      int            // block requests a minute; 0: the configuration's

	SuspendedAt    time.Time // zero: not suspended
	SuspendedUntil time.Time // it may change nothing until then
	SuspendedWhy   string
}

// Suspended tells whether the token is out of use for changes.
func (t *Token) Suspended(now time.Time) bool { return now.Before(t.SuspendedUntil) }

// Reads tells whether a right lets nobody change anything. What a suspended token may do goes by it.
func (r Right) Reads() bool {
	return r == RightReadOwn || r == RightRead || r == RightFeed || r == RightAudit
}

// Principal is who asks.
type Principal struct {
	Token  Token
	Remote netip.Addr // invalid over the unix socket
}

// Can tells whether the principal's role has the right.
func (p *Principal) Can(r Right) bool { return p.Token.Role.Can(r) }
