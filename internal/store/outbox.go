package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/parry/parry/internal/parry"
)

// deliveryLease is how long a worker has a delivery to itself; when it dies, the delivery is due again after that.
const deliveryLease = 2 * time.Minute

// Enqueue stores notifications for delivery. One whose id is known is passed over.
func (s *Store) Enqueue(ctx context.Context, ns []parry.Notification) error {
	return s.write(ctx, "enqueue notifications", func(t *tx) error { return t.enqueue(ns) })
}

// payload is what the outbox keeps as JSON: the report's own fields, and beside them what else there is.
type payload struct {
	*parry.Report
	Severity parry.Severity      `json:"severity,omitempty"`
	Block    *parry.BlockEvent   `json:"block,omitempty"`
	Summary  *parry.BlockSummary `json:"summary,omitempty"`
}

func (t *tx) enqueue(ns []parry.Notification) error {
	for i := range ns {
		n := &ns[i]
		what, err := json.Marshal(payload{&n.Report, n.Severity, n.Block, n.Summary})
		if err != nil {
			return fmt.Errorf("payload of notification %s: %w", n.ID, err)
		}
		added, err := t.execN(`INSERT INTO outbox (id, kind, firewall, incident, created_at, report) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (id) DO NOTHING`, string(n.ID), string(n.Kind), n.Firewall, string(n.Incident), micros(n.CreatedAt), what)
		if err != nil {
			return err
		}
		if added == 0 {
			continue
		}
		t.wakes |= wakeOutbox
		for _, c := range n.Channels {
			err := t.exec(`INSERT INTO deliveries (channel, outbox_id, attempts, next_at, leased_until, delivered_at, error, bulk)
				VALUES ($1, $2, 0, 0, 0, 0, $3, $4) ON CONFLICT (channel, outbox_id) DO NOTHING`, c, string(n.ID), []byte{}, flag(n.Kind.Bulk()))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// due is what can be handed out of channel $1 at time $2; bulk ones only when $3 is 1.
const due = `d.channel = $1 AND d.delivered_at = 0 AND d.next_at <= $2 AND d.leased_until <= $2 AND d.bulk <= $3`

// NextDeliveries hands out up to n deliveries of a channel that are due, those of bulk kinds last and only if asked for, else oldest first, for
// two minutes: a worker that neither reports [Store.Delivered] nor [Store.DeliveryFailed] by then has died, and they are handed out again.
func (s *Store) NextDeliveries(ctx context.Context, channel string, n int, bulk bool) (ds []parry.Delivery, err error) {
	var found int64
	err = s.reads.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM deliveries d WHERE `+due+` LIMIT 1) one`,
		channel, micros(s.now()), flag(bulk)).Scan(&found)
	if err != nil || found == 0 {
		return nil, s.wrap(err, "look for deliveries")
	}
	err = s.write(ctx, "take deliveries", func(t *tx) error {
		ds = nil
		err := t.query(`SELECT o.id, o.kind, o.firewall, o.incident, o.created_at, o.report, d.attempts
			FROM deliveries d JOIN outbox o ON o.id = d.outbox_id WHERE `+due+` ORDER BY d.bulk, d.outbox_id LIMIT $4`,
			[]any{channel, micros(t.now), flag(bulk), int64(n)}, func(r *sql.Rows) error {
				d := parry.Delivery{Channel: channel}
				var created int64
				var report []byte
				if err := r.Scan(&d.ID, &d.Kind, &d.Firewall, &d.Incident, &created, &report, &d.Attempts); err != nil {
					return err
				}
				var p payload
				err := json.Unmarshal(report, &p)
				d.CreatedAt, d.Channels = fromMicros(created), []string{channel}
				d.Severity, d.Block, d.Summary = p.Severity, p.Block, p.Summary
				if p.Report != nil {
					d.Report = *p.Report
				}
				ds = append(ds, d)
				return err
			})
		if err != nil {
			return err
		}
		for i := range ds {
			err := t.exec(`UPDATE deliveries SET leased_until = $3 WHERE channel = $1 AND outbox_id = $2`,
				channel, string(ds[i].ID), micros(t.now.Add(deliveryLease)))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ds, nil
}

// Delivered ends a delivery.
func (s *Store) Delivered(ctx context.Context, id parry.NotificationID, channel string) error {
	return s.delivery(ctx, id, channel, `UPDATE deliveries SET delivered_at = $3, error = $4, leased_until = 0 WHERE channel = $1 AND outbox_id = $2`,
		func(t *tx) []any { return []any{micros(t.now), []byte{}} }, "")
}

// DeliveryFailed puts a delivery off until next, and keeps why.
func (s *Store) DeliveryFailed(ctx context.Context, id parry.NotificationID, channel, text string, next time.Time) error {
	return s.delivery(ctx, id, channel,
		`UPDATE deliveries SET attempts = attempts + 1, next_at = $3, error = $4, leased_until = 0 WHERE channel = $1 AND outbox_id = $2`,
		func(*tx) []any { return []any{micros(next), []byte(text)} }, text)
}

// RetryDeliveries makes due what was put off for a channel.
func (s *Store) RetryDeliveries(ctx context.Context, channel string) error {
	return s.write(ctx, "retry the deliveries of "+channel, func(t *tx) error {
		n, err := t.execN(`UPDATE deliveries SET next_at = 0 WHERE channel = $1 AND delivered_at = 0 AND next_at > $2`, channel, micros(t.now))
		if n > 0 {
			t.wakes |= wakeOutbox
		}
		return err
	})
}

func (s *Store) delivery(ctx context.Context, id parry.NotificationID, channel, q string, more func(*tx) []any, failure string) error {
	return s.write(ctx, "note the delivery of "+string(id), func(t *tx) error {
		n, err := t.execN(q, append([]any{channel, string(id)}, more(t)...)...)
		if err == nil && n == 0 {
			return parry.Errorf(parry.KindNotFound, "there is no delivery of %s through %s", id, channel)
		}
		if err != nil {
			return err
		}
		if failure == "" {
			return t.exec(`INSERT INTO channels (name, delivered_at, failed_at, error) VALUES ($1, $2, 0, $3)
				ON CONFLICT (name) DO UPDATE SET delivered_at = excluded.delivered_at`, channel, micros(t.now), []byte{})
		}
		return t.exec(`INSERT INTO channels (name, delivered_at, failed_at, error) VALUES ($1, 0, $2, $3)
			ON CONFLICT (name) DO UPDATE SET failed_at = excluded.failed_at, error = excluded.error`, channel, micros(t.now), []byte(failure))
	})
}

// FoldDeliveries makes one notification of all bulk ones that wait for a channel and nobody has in hand, if there are several: a summary, which
// is delivered in their stead. It tells how many went into it.
func (s *Store) FoldDeliveries(ctx context.Context, channel string) (folded int64, err error) {
	const open = `channel = $1 AND delivered_at = 0 AND bulk = 1 AND leased_until <= $2`
	err = s.reads.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE `+open+` LIMIT 2) two`, channel, micros(s.now())).Scan(&folded)
	if err != nil || folded < 2 {
		return 0, s.wrap(err, "look for deliveries")
	}
	err = s.write(ctx, "sum up the deliveries of "+channel, func(t *tx) error {
		folded = 0
		sum := parry.BlockSummary{Sources: []string{}}
		var since, until int64
		err := t.row(`SELECT count(*), coalesce(sum(CASE WHEN o.kind = 'block.added' THEN 1 ELSE 0 END), 0), coalesce(min(o.created_at), 0),
			coalesce(max(o.created_at), 0) FROM outbox o WHERE o.id IN (SELECT outbox_id FROM deliveries WHERE `+open+`)`,
			[]any{channel, micros(t.now)}, &folded, &sum.Added, &since, &until)
		if err != nil || folded < 2 {
			folded = 0
			return err
		}
		sum.Ended, sum.Since, sum.Until = folded-sum.Added, fromMicros(since), fromMicros(until)
		err = t.query(`SELECT o.report FROM outbox o WHERE o.id IN (SELECT outbox_id FROM deliveries WHERE `+open+`) ORDER BY o.id LIMIT 10`,
			[]any{channel, micros(t.now)}, func(r *sql.Rows) error {
				var report []byte
				var p payload
				if err := r.Scan(&report); err != nil {
					return err
				}
				if err := json.Unmarshal(report, &p); err != nil {
					return err
				}
				if p.Block != nil && !slices.Contains(sum.Sources, p.Block.Source) {
					sum.Sources = append(sum.Sources, p.Block.Source)
				}
				return nil
			})
		if err != nil {
			return err
		}
		if err := t.exec(`UPDATE deliveries SET delivered_at = $2 WHERE `+open, channel, micros(t.now)); err != nil {
			return err
		}
		id := parry.NewNotificationID(t.now)
		return t.enqueue([]parry.Notification{{
			ID: id, Kind: parry.NotifySummary, Severity: parry.SeverityInfo, Incident: id, CreatedAt: t.now, Channels: []string{channel}, Summary: &sum,
		}})
	})
	return folded, err
}

// ChannelStates tells how each channel stands that has something waiting or ever had something delivered, by name.
func (s *Store) ChannelStates(ctx context.Context) ([]parry.ChannelState, error) {
	out, err := collect(ctx, s.reads, `
		SELECT n.name, coalesce(w.waiting, 0), coalesce(w.failing, 0), coalesce((SELECT o.created_at FROM outbox o WHERE o.id = w.oldest), 0), coalesce(c.delivered_at, 0), coalesce(c.failed_at, 0), c.error
		FROM (SELECT name FROM channels UNION SELECT DISTINCT channel FROM deliveries WHERE delivered_at = 0) n
		LEFT JOIN channels c ON c.name = n.name
		LEFT JOIN (SELECT d.channel, count(*) AS waiting, sum(CASE WHEN d.attempts > 0 THEN 1 ELSE 0 END) AS failing, min(d.outbox_id) AS oldest
			FROM deliveries d WHERE d.delivered_at = 0 GROUP BY d.channel) w ON w.channel = n.name
		ORDER BY n.name`,
		nil, func(r *sql.Rows) (o parry.ChannelState, err error) {
			var oldest, delivered, failed int64
			var last []byte
			err = r.Scan(&o.Channel, &o.Waiting, &o.Failing, &oldest, &delivered, &failed, &last)
			o.Oldest, o.DeliveredAt, o.FailedAt, o.LastError = fromMicros(oldest), fromMicros(delivered), fromMicros(failed), string(last)
			return o, err
		})
	return out, s.wrap(err, "read the channels")
}

// releaseDeliveries takes back what this file's dead writer had in hand.
func (s *Store) releaseDeliveries(ctx context.Context) error {
	if _, err := s.writes.ExecContext(ctx, `UPDATE deliveries SET leased_until = 0 WHERE leased_until > 0`); err != nil {
		return fmt.Errorf("take deliveries back: %w", err)
	}
	return nil
}
