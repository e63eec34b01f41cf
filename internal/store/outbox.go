package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/parry/parry/internal/parry"
)

// deliveryLease is how long a worker has a delivery to itself; when it dies, the delivery is due again after that.
const deliveryLease = 2 * time.Minute

// Enqueue stores notifications for delivery. One whose id is known is passed over.
func (s *Store) Enqueue(ctx context.Context, ns []parry.Notification) error {
	return s.write(ctx, "enqueue notifications", func(t *tx) error { return t.enqueue(ns) })
}

func (t *tx) enqueue(ns []parry.Notification) error {
	for _, n := range ns {
		report, err := json.Marshal(n.Report)
		if err != nil {
			return fmt.Errorf("report of notification %s: %w", n.ID, err)
		}
		added, err := t.execN(`INSERT INTO outbox (id, kind, firewall, incident, created_at, report) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (id) DO NOTHING`, string(n.ID), string(n.Kind), n.Firewall, string(n.Incident), micros(n.CreatedAt), report)
		if err != nil {
			return err
		}
		if added == 0 {
			continue
		}
		t.wakes |= wakeOutbox
		for _, c := range n.Channels {
			err := t.exec(`INSERT INTO deliveries (channel, outbox_id, attempts, next_at, leased_until, delivered_at, error)
				VALUES ($1, $2, 0, 0, 0, 0, $3) ON CONFLICT (channel, outbox_id) DO NOTHING`, c, string(n.ID), []byte{})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// NextDeliveries hands out up to n deliveries of a channel that are due, oldest first, for two minutes: a worker that neither reports
// [Store.Delivered] nor [Store.DeliveryFailed] by then has died, and they are handed out again.
func (s *Store) NextDeliveries(ctx context.Context, channel string, n int) (ds []parry.Delivery, err error) {
	const due = `d.channel = $1 AND d.delivered_at = 0 AND d.next_at <= $2 AND d.leased_until <= $2`
	var found int64
	err = s.reads.QueryRowContext(ctx, `SELECT count(*) FROM deliveries d WHERE `+due, channel, micros(s.now())).Scan(&found)
	if err != nil || found == 0 {
		return nil, s.wrap(err, "look for deliveries")
	}
	err = s.write(ctx, "take deliveries", func(t *tx) error {
		ds = nil
		err := t.query(`SELECT o.id, o.kind, o.firewall, o.incident, o.created_at, o.report, d.attempts
			FROM deliveries d JOIN outbox o ON o.id = d.outbox_id WHERE `+due+` ORDER BY o.id LIMIT $3`,
			[]any{channel, micros(t.now), int64(n)}, func(r *sql.Rows) error {
				d := parry.Delivery{Channel: channel}
				var created int64
				var report []byte
				if err := r.Scan(&d.ID, &d.Kind, &d.Firewall, &d.Incident, &created, &report, &d.Attempts); err != nil {
					return err
				}
				d.CreatedAt, d.Channels = fromMicros(created), []string{channel}
				ds = append(ds, d)
				return json.Unmarshal(report, &ds[len(ds)-1].Report)
			})
		if err != nil {
			return err
		}
		for _, d := range ds {
			err := t.exec(`UPDATE deliveries SET leased_until = $3 WHERE channel = $1 AND outbox_id = $2`,
				channel, string(d.ID), micros(t.now.Add(deliveryLease)))
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
	return s.delivery(ctx, id, channel, `UPDATE deliveries SET delivered_at = $3, error = $4, leased_until = $5 WHERE channel = $1 AND outbox_id = $2`,
		func(t *tx) []any { return []any{micros(t.now), []byte{}, int64(0)} })
}

// DeliveryFailed puts a delivery off until next, and keeps why.
func (s *Store) DeliveryFailed(ctx context.Context, id parry.NotificationID, channel, text string, next time.Time) error {
	return s.delivery(ctx, id, channel,
		`UPDATE deliveries SET attempts = attempts + 1, next_at = $3, error = $4, leased_until = 0 WHERE channel = $1 AND outbox_id = $2`,
		func(*tx) []any { return []any{micros(next), []byte(text)} })
}

func (s *Store) delivery(ctx context.Context, id parry.NotificationID, channel, q string, more func(*tx) []any) error {
	return s.write(ctx, "note the delivery of "+string(id), func(t *tx) error {
		n, err := t.execN(q, append([]any{channel, string(id)}, more(t)...)...)
		if err == nil && n == 0 {
			return parry.Errorf(parry.KindNotFound, "there is no delivery of %s through %s", id, channel)
		}
		return err
	})
}

// OutboxStats is a channel's share of the outbox.
type OutboxStats struct {
	Channel   string
	Waiting   int64     // not delivered
	Failing   int64     // of these, tried at least once
	Oldest    time.Time // of those waiting; zero for none
	LastError string    // of one that fails; hostile text
}

// OutboxStats tells, for each channel that has something waiting, how it stands.
func (s *Store) OutboxStats(ctx context.Context) ([]OutboxStats, error) {
	out, err := collect(ctx, s.reads, `
		SELECT d.channel, count(*), sum(CASE WHEN d.attempts > 0 THEN 1 ELSE 0 END), min(o.created_at),
			(SELECT x.error FROM deliveries x WHERE x.channel = d.channel AND x.delivered_at = 0 AND x.attempts > 0 ORDER BY x.outbox_id DESC LIMIT 1)
		FROM deliveries d JOIN outbox o ON o.id = d.outbox_id WHERE d.delivered_at = 0 GROUP BY d.channel ORDER BY d.channel`,
		nil, func(r *sql.Rows) (o OutboxStats, err error) {
			var oldest int64
			var last []byte
			err = r.Scan(&o.Channel, &o.Waiting, &o.Failing, &oldest, &last)
			o.Oldest, o.LastError = fromMicros(oldest), string(last)
			return o, err
		})
	return out, s.wrap(err, "read the outbox")
}

// releaseDeliveries takes back what this file's dead writer had in hand.
func (s *Store) releaseDeliveries(ctx context.Context) error {
	if _, err := s.writes.ExecContext(ctx, `UPDATE deliveries SET leased_until = 0 WHERE leased_until > 0`); err != nil {
		return fmt.Errorf("take deliveries back: %w", err)
	}
	return nil
}
