package parry

import (
	"slices"
	"time"
)

// NotificationKind is what a notification tells.
type NotificationKind string

const (
	NotifyFailed          NotificationKind = "firewall.failed"
	NotifyRecovered       NotificationKind = "firewall.recovered"
	NotifyRejected        NotificationKind = "block.rejected"
	NotifyBundleRefused   NotificationKind = "bundle.refused"   // a new version of a bundle; the last good one goes on
	NotifyBundleRecovered NotificationKind = "bundle.recovered" // the newest version is in use again
	NotifyPanic           NotificationKind = "panic"            // begun, or over
	NotifySuspended       NotificationKind = "token.suspended"
	NotifyAdded           NotificationKind = "block.added"
	NotifyEnded           NotificationKind = "block.ended"
	NotifySummary         NotificationKind = "blocks.summary" // stands for many of the two before, where a channel takes only so many
	NotifyTest            NotificationKind = "test"
)

// NotifyKinds lists what a channel can subscribe to.
var NotifyKinds = []NotificationKind{NotifyFailed, NotifyRecovered, NotifyRejected, NotifyBundleRefused, NotifyBundleRecovered, NotifyPanic, NotifySuspended, NotifyAdded, NotifyEnded}

// OfBundle tells whether it is about a bundle; it names a firewall only when a canary has to do with it.
func (k NotificationKind) OfBundle() bool {
	return k == NotifyBundleRefused || k == NotifyBundleRecovered
}

// Bulk tells whether a storm of requests brings as many of these. They wait behind all others, and a channel can limit their rate.
func (k NotificationKind) Bulk() bool { return k == NotifyAdded || k == NotifyEnded }

// Severity is how much a notification matters.
type Severity string

const (
	SeverityInfo     Severity = "info"
	SeverityWarning  Severity = "warning"
	SeverityCritical Severity = "critical"
)

// Severities lists them, least first.
var Severities = []Severity{SeverityInfo, SeverityWarning, SeverityCritical}

// AtLeast tells whether s matters as much as least. One that is not known counts as info.
func (s Severity) AtLeast(least Severity) bool {
	return slices.Index(Severities, s) >= slices.Index(Severities, least) || least == "" || least == SeverityInfo
}

// SeverityOf is how much a report matters. A recovery matters as much as the failure that it ends, so that nobody hears of one without
// the other.
func SeverityOf(k NotificationKind) Severity {
	switch k {
	case NotifyFailed, NotifyRecovered, NotifyPanic, NotifySuspended:
		return SeverityCritical
	case NotifyRejected, NotifyBundleRefused, NotifyBundleRecovered:
		return SeverityWarning
	default:
		return SeverityInfo
	}
}

// Notification is a row of the outbox: written in the transaction that causes it, delivered at least once.
type Notification struct {
	ID        NotificationID
	Kind      NotificationKind
	Severity  Severity
	Firewall  string         // of a report
	Incident  NotificationID // threads a recovery to its failure
	CreatedAt time.Time
	Channels  []string // by name
	Report    Report
	Block     *BlockEvent   // of block.added and block.ended
	Summary   *BlockSummary // of blocks.summary
}

// BlockEvent is a block as it was when it began or ended, complete so that a channel needs nothing else. Reason, Origin, AlertID and RuleID
// are a caller's words: inert text.
type BlockEvent struct {
	ID          BlockID   `json:"id"`
	Source      string    `json:"source"` // an address or prefix
	Destination string    `json:"destination,omitempty"`
	Protocol    Protocol  `json:"protocol,omitempty"`
	Port        uint16    `json:"port,omitempty"`
	Interface   string    `json:"interface,omitempty"`
	Firewalls   string    `json:"firewalls"` // the selector
	CreatedAt   time.Time `json:"created_at"`
	ExpiresAt   time.Time `json:"expires_at,omitzero"` // none: without end
	Reason      string    `json:"reason,omitempty"`
	Origin      string    `json:"origin,omitempty"`
	AlertID     string    `json:"alert_id,omitempty"` // of the request that began the block
	RuleID      string    `json:"rule_id,omitempty"`
	Offence     int       `json:"offence,omitempty"`       // 1: the first
	Promoted    int       `json:"promoted_from,omitempty"` // so many sources of the prefix made it
	By          string    `json:"by,omitempty"`            // token that asked, or who ended it
	EndReason   EndReason `json:"end_reason,omitempty"`
	EndedAt     time.Time `json:"ended_at,omitzero"`
	Count       int64     `json:"count"` // accepted requests
}

// Severity is a warning for a repeated offender, and when an exemption ended the block.
func (b *BlockEvent) Severity() Severity {
	if b.Offence > 1 || b.EndReason == EndExempted {
		return SeverityWarning
	}
	return SeverityInfo
}

// BlockSummary stands for block events that a channel did not get one by one.
type BlockSummary struct {
	Added   int64     `json:"added"`
	Ended   int64     `json:"ended"`
	Since   time.Time `json:"since"` // the first event's time
	Until   time.Time `json:"until"`
	Sources []string  `json:"sources"` // of the first
}

// Delivery is one notification on its way through one channel.
type Delivery struct {
	Notification
	Channel  string
	Attempts int
}

// Subscription is what a channel wants to be told.
type Subscription struct {
	Channel string
	Kinds   []NotificationKind
	Least   Severity // empty: all
}

// Subscriptions are those of every channel.
type Subscriptions []Subscription

// To names the channels that want a notification.
func (s Subscriptions) To(k NotificationKind, sev Severity) (channels []string) {
	for i := range s {
		if slices.Contains(s[i].Kinds, k) && sev.AtLeast(s[i].Least) {
			channels = append(channels, s[i].Channel)
		}
	}
	return channels
}

// ChannelState is how a channel stands.
type ChannelState struct {
	Channel     string
	Waiting     int64     // not delivered
	Failing     int64     // of these, tried at least once
	Oldest      time.Time // of those waiting; zero for none
	DeliveredAt time.Time // of the last delivery; zero for none
	FailedAt    time.Time // of the last failure; zero for none
	LastError   string    // of that; hostile text
}

// Channel is a configured one and how it stands.
type Channel struct {
	ChannelState
	Type         string
	Subscription Subscription
}
