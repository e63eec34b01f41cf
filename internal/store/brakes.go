package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/parry"
)

// SetHold holds one firewall, or all of them under the name "". The zero Hold releases; a firewall's own hold outlives the release of all.
func (s *Store) SetHold(ctx context.Context, name string, h parry.Hold) error {
	return s.write(ctx, "hold "+name, func(t *tx) error {
		if name != "" {
			if err := t.known([]string{name}); err != nil {
				return err
			}
		}
		t.wakes |= wakeDesired
		if !h.Held() {
			t.audit(parry.ActRelease, orAllName(name), nil)
			return t.exec(`DELETE FROM holds WHERE name = $1`, name)
		}
		t.audit(parry.ActHold, orAllName(name), holdDetail{audit.Plain(h.Reason, 256), auditTime(h.Until)})
		return t.exec(`INSERT INTO holds (name, held_by, reason, since, until) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (name) DO UPDATE SET held_by = excluded.held_by, reason = excluded.reason, since = excluded.since, until = excluded.until`,
			name, h.By, []byte(h.Reason), micros(h.Since), micros(h.Until))
	})
}

// NextHoldEnd is when the first hold ends by itself; zero when none does.
func (s *Store) NextHoldEnd(ctx context.Context) (time.Time, error) {
	var at int64
	err := s.reads.QueryRowContext(ctx, `SELECT coalesce(min(until), 0) FROM holds WHERE until > 0`).Scan(&at)
	return fromMicros(at), s.wrap(err, "find the next hold that ends")
}

// EndHolds releases what is held until now at most, and names it; "" is the hold of all.
func (s *Store) EndHolds(ctx context.Context, now time.Time) (ended []string, err error) {
	err = s.write(ctx, "end the holds that are over", func(t *tx) error {
		ended = nil
		err := t.query(`DELETE FROM holds WHERE until > 0 AND until <= $1 RETURNING name`, []any{micros(now)}, func(r *sql.Rows) error {
			var name string
			err := r.Scan(&name)
			ended = append(ended, name)
			return err
		})
		for _, name := range ended {
			t.audit(parry.ActRelease, orAllName(name), map[string]string{"why": "its time was over"})
			t.wakes |= wakeDesired | wakeApplied
		}
		return err
	})
	return ended, err
}

// Panic has firewalls emptied, and kept empty until the panic is over; no name is all of them, and those that are listed later. Blocks stay as
// they are. It tells the channels, in the same transaction. Called again, it has the firewalls emptied and proved once more.
func (s *Store) Panic(ctx context.Context, names []string, h parry.Hold) error {
	err := s.write(ctx, "panic", func(t *tx) error {
		if err := t.known(names); err != nil {
			return err
		}
		t.audit(parry.ActPanic, told(names), holdDetail{Reason: audit.Plain(h.Reason, 256)})
		n := t.notice(names, h, time.Time{})
		for _, name := range orAll(names) {
			err := t.exec(`INSERT INTO panics (name, called_by, reason, since, rev, told) VALUES ($1, $2, $3, $4, $5, $6)
				ON CONFLICT (name) DO UPDATE SET called_by = excluded.called_by, reason = excluded.reason, rev = excluded.rev, told = excluded.told`,
				name, h.By, []byte(h.Reason), micros(h.Since), int64(t.rev), string(n.ID))
			if err != nil {
				return err
			}
		}
		return errors.Join(t.stir(names), t.enqueue([]parry.Notification{n}))
	})
	if err == nil {
		s.log.Warn("panic: firewalls are emptied and held", "firewalls", told(names), "by", h.By, "reason", h.Reason)
	}
	return err
}

// EndPanic lets the blocks that stand come back: on the firewalls named, or, without a name, on all that are in panic. When a panic of all is
// over for some, it goes on for each of the others. KindConflict when one of those named is in none.
func (s *Store) EndPanic(ctx context.Context, names []string, by string) error {
	err := s.write(ctx, "end the panic", func(t *tx) error {
		if err := t.known(names); err != nil {
			return err
		}
		type row struct {
			h    parry.Hold
			told parry.NotificationID
		}
		on := map[string]row{}
		err := t.query(`SELECT name, called_by, reason, since, told FROM panics`, nil, func(r *sql.Rows) error {
			var name string
			var h heldBy
			var told parry.NotificationID
			err := r.Scan(&name, &h.by, &h.reason, &h.since, &told)
			on[name] = row{h.hold(), told}
			return err
		})
		if err != nil {
			return err
		}
		all, ofAll := on[""]
		over := names
		if len(names) == 0 {
			if len(on) == 0 {
				return parry.Errorf(parry.KindConflict, "no firewall is in panic")
			}
			for name := range on {
				over = append(over, name)
			}
		}
		end := all
		for _, name := range over {
			r, own := on[name]
			if !own && !ofAll {
				return parry.Errorf(parry.KindConflict, "%s is not in panic", name)
			}
			if own {
				end = r
			}
		}
		if len(names) > 0 && ofAll {
			if err := t.exec(`INSERT INTO panics (name, called_by, reason, since, rev, told)
				SELECT f.name, p.called_by, p.reason, p.since, p.rev, p.told FROM firewalls f JOIN panics p ON p.name = '' WHERE true
				ON CONFLICT (name) DO NOTHING`); err != nil {
				return err
			}
			over = append(over[:len(over):len(over)], "")
		}
		for _, name := range over {
			if err := t.exec(`DELETE FROM panics WHERE name = $1`, name); err != nil {
				return err
			}
		}
		n := t.notice(names, parry.Hold{By: by, Reason: end.h.Reason, Since: end.h.Since}, t.now)
		n.Incident = end.told
		t.audit(parry.ActPanicEnd, told(names), nil)
		return errors.Join(t.stir(names), t.enqueue([]parry.Notification{n}))
	})
	if err == nil {
		s.log.Warn("the panic is over: firewalls are filled again", "firewalls", told(names), "by", by)
	}
	return err
}

type holdDetail struct {
	Reason string `json:"reason,omitempty"`
	Until  string `json:"until,omitempty"`
}

// orAllName is a hold's object in the audit.
func orAllName(name string) string { return cmp.Or(name, string(parry.SelectAll)) }

// orAll is the names, or the one that stands for all.
func orAll(names []string) []string {
	if len(names) == 0 {
		return []string{""}
	}
	return names
}

func told(names []string) string {
	if len(names) == 0 {
		return "all firewalls"
	}
	return strings.Join(names, ", ")
}

// known refuses a name that no firewall has.
func (t *tx) known(names []string) error {
	for _, name := range names {
		var one int64
		err := t.row(`SELECT 1 FROM firewalls WHERE name = $1`, []any{name}, &one)
		if errors.Is(err, sql.ErrNoRows) {
			return noFirewall(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// stir makes the firewalls, or all without a name, dirty: their lanes go on at once, whatever they wait for, and nothing counts as in force.
func (t *tx) stir(names []string) error {
	t.wakes |= wakeDesired | wakeApplied
	if len(names) == 0 {
		return t.exec(`UPDATE firewalls SET dirty_rev = $1`, int64(t.rev))
	}
	for _, name := range names {
		if err := t.exec(`UPDATE firewalls SET dirty_rev = $2 WHERE name = $1`, name, int64(t.rev)); err != nil {
			return err
		}
	}
	return nil
}

// notice tells of a panic that begins, or is over at until.
func (t *tx) notice(names []string, h parry.Hold, until time.Time) parry.Notification {
	id, sev := parry.NewNotificationID(t.now), parry.SeverityOf(parry.NotifyPanic)
	return parry.Notification{
		ID: id, Kind: parry.NotifyPanic, Severity: sev, Firewall: told(names), Incident: id, CreatedAt: t.now,
		Channels: t.w.s.channels.To(parry.NotifyPanic, sev),
		Report:   parry.Report{Firewall: told(names), Since: h.Since, Until: until, Message: h.Reason, By: h.By, Revision: t.rev},
	}
}
