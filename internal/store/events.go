package store

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/parry/parry/internal/parry"
)

// event notes that a block began or ended, for the channels that want to hear of it; q is the request that began it, nil when it ended. What is
// noted is written at the transaction's end. Without such a channel it costs nothing.
func (t *tx) event(kind parry.NotificationKind, b *parry.Block, q *parry.Request) {
	subs := t.w.s.subscriptions
	if len(subs) == 0 {
		return
	}
	e := &parry.BlockEvent{
		ID: b.ID, Source: parry.FormatPrefix(b.Source), Protocol: b.Protocol, Port: b.Port, Interface: b.Interface, Firewalls: string(b.Selector),
		CreatedAt: b.CreatedAt, ExpiresAt: b.ExpiresAt, Reason: b.Reason, Origin: b.Origin, By: b.CreatedBy, Count: b.Count,
		Offence: b.Offence, Promoted: b.Promoted,
	}
	if b.Destination.IsValid() {
		e.Destination = parry.FormatPrefix(b.Destination)
	}
	if q != nil {
		e.AlertID, e.RuleID = q.AlertID, q.RuleID
	}
	if kind == parry.NotifyEnded {
		e.By, e.EndReason, e.EndedAt = b.EndedBy, b.EndReason, b.EndedAt
	}
	if to := subs.To(kind, e.Severity()); len(to) > 0 {
		t.events = append(t.events, parry.Notification{Kind: kind, Severity: e.Severity(), CreatedAt: t.now, Channels: to, Block: e})
	}
}

// writeEvents stores what was noted, many rows a statement.
func (t *tx) writeEvents() error {
	if len(t.events) == 0 {
		return nil
	}
	ids := make([]parry.NotificationID, len(t.events))
	for i := range ids {
		ids[i] = parry.NewNotificationID(t.now)
	}
	slices.Sort(ids) // the order of delivery is theirs, and is to be that of the events
	outbox, deliveries := make([]any, 0, 6*len(t.events)), make([]any, 0, 8*len(t.events))
	for i := range t.events {
		n := &t.events[i]
		n.ID, n.Incident = ids[i], ids[i]
		what, err := json.Marshal(payload{Severity: n.Severity, Block: n.Block})
		if err != nil {
			return fmt.Errorf("payload of notification %s: %w", n.ID, err)
		}
		outbox = append(outbox, string(n.ID), string(n.Kind), n.Firewall, string(n.Incident), micros(n.CreatedAt), what)
		for _, c := range n.Channels {
			deliveries = append(deliveries, c, string(n.ID), int64(0), int64(0), int64(0), int64(0), []byte{}, flag(n.Kind.Bulk()))
		}
	}
	t.events = nil
	t.wakes |= wakeOutbox
	if err := t.insert(`INSERT INTO outbox (id, kind, firewall, incident, created_at, report) VALUES `, 6, outbox, ``); err != nil {
		return err
	}
	return t.insert(`INSERT INTO deliveries (channel, outbox_id, attempts, next_at, leased_until, delivered_at, error, bulk) VALUES `, 8, deliveries, ``)
}
