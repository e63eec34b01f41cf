package parry

import (
	"context"
	"net/netip"
	"time"
)

// Action is what an audit row says was done: a noun and a verb.
type Action string

const (
	ActBlockAdd      Action = "block.add"
	ActBlockRefresh  Action = "block.refresh"
	ActBlockEvidence Action = "block.evidence" // a request past its time: counted, nothing blocked
	ActBlockExpiry   Action = "block.expiry"   // extended or shortened
	ActBlockEnd      Action = "block.end"
	ActBlocksEnd     Action = "blocks.end" // by a filter
	ActBlocksExpired Action = "blocks.expired"
	ActBlocksExempt  Action = "blocks.exempted"

	ActExemptionAdd    Action = "exemption.add"
	ActExemptionRemove Action = "exemption.remove"

	ActTokenCreate  Action = "token.create"
	ActTokenRevoke  Action = "token.revoke"
	ActTokenSuspend Action = "token.suspend"
	ActTokenResume  Action = "token.resume"

	ActListCreate Action = "list.create"
	ActListDelete Action = "list.delete"
	ActListPut    Action = "list.put"
	ActListRemove Action = "list.remove"

	ActHold           Action = "firewall.hold"
	ActRelease        Action = "firewall.release"
	ActPanic          Action = "firewall.panic"
	ActPanicEnd       Action = "firewall.panic-end"
	ActFirewallVerify Action = "firewall.verify"
	ActFirewallRetire Action = "firewall.retire"
	ActFirewallAdopt  Action = "firewall.adopt"
	ActApprove        Action = "approval.approve"
	ActDeny           Action = "approval.deny"
	ActRunEnd         Action = "run.end"

	ActBundleUse     Action = "bundle.use"     // firewalls stay on a copy
	ActBundleFollow  Action = "bundle.follow"  // that word is taken back
	ActBundleCheck   Action = "bundle.check"   // a run in check mode is asked for
	ActBundleRelease Action = "bundle.release" // the canaries have passed a version
	ActBundleRefuse  Action = "bundle.refuse"  // one has failed with it

	ActNotifyTest Action = "notify.test"
	ActRefusal    Action = "request.refused"

	ActStart   Action = "service.start"
	ActStop    Action = "service.stop"
	ActReload  Action = "service.reload"
	ActMigrate Action = "database.migrate"
	ActPrune   Action = "audit.prune" // its detail anchors what is left of the chain
)

// Actor is who has a change made, and by which request.
type Actor struct {
	Name      string // a token's, or "local"; empty: parry itself
	Token     TokenID
	Role      Role
	Remote    netip.Addr // invalid over the local socket
	RequestID string
}

// ActorName is parry's own name in the audit; no token can have it.
const ActorName = "parry"

type actorKey struct{}

// WithActor says on whose behalf what is done under the context is done. The store writes it into the audit.
func WithActor(ctx context.Context, a *Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorOf is who stands behind a context; parry itself when it is nobody's request. It is not to be changed.
func ActorOf(ctx context.Context) *Actor {
	if a, ok := ctx.Value(actorKey{}).(*Actor); ok {
		return a
	}
	return Itself
}

// Itself is parry, where nobody asked.
var Itself = &Actor{Name: ActorName}

// AuditEvent is something for the audit that no writing transaction of its own causes.
type AuditEvent struct {
	Actor   *Actor // nil: the context's
	Action  Action
	Object  string
	Outcome string // empty: "done"
	Detail  any    // becomes a JSON object; nil: none
}

// AuditFilter narrows a listing of the audit; zero fields do not.
type AuditFilter struct {
	Actor  string // a name, or a token's id
	Action string // an action, or what stands before its dot
	Object string
	Since  time.Time
	Until  time.Time // not included
	After  int64     // sequence: only later rows
	Oldest bool      // oldest first; else newest first
	Limit  int       // 1…1000
	Cursor string
}

// AuditHead is the end of the chain, and where what is kept of it begins.
type AuditHead struct {
	Seq  int64  // of the newest row; 0: there is none
	Hash string // its, in hexadecimal
	Base int64  // of the last row that was pruned; 0: none was
	Tail bool   // the newest row that is stored is the head; else rows were cut off
}
