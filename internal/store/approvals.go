package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/parry"
)

// approvalHead is how many lines of a diff can be read without unpacking it.
const approvalHead = 50

// maxDiff bounds a diff when it is unpacked: what parry packs itself is smaller.
const maxDiff = 64 << 20

const approvalColumns = `id, firewall, state, why, rev, created_at, expires_at, total, removed, ended, added, known, head, decided_by, decided_at, decision`

func scanApproval(r *sql.Rows) (a parry.Approval, err error) {
	var created, expires, decided, known int64
	var head, reason []byte
	err = r.Scan(&a.ID, &a.Firewall, &a.State, &a.Why, &a.Revision, &created, &expires, &a.Of, &a.Removed, &a.Ended, &a.Added, &known, &head,
		&a.DecidedBy, &decided, &reason)
	a.CreatedAt, a.ExpiresAt, a.DecidedAt, a.Known, a.Reason = fromMicros(created), fromMicros(expires), fromMicros(decided), known != 0, string(reason)
	if len(head) > 0 {
		a.First = strings.Split(string(head), "\n")
	}
	return a, err
}

func noApproval(id parry.ApprovalID) error {
	return parry.Errorf(parry.KindNotFound, "there is no approval %s; it may have been pruned", id)
}

// Approvals lists them, newest first.
func (s *Store) Approvals(ctx context.Context, f parry.ApprovalFilter) (parry.Page[parry.Approval], error) {
	var w where
	if f.Firewall != "" {
		w.add(`firewall = %s`, f.Firewall)
	}
	if f.Open {
		w.in(`state`, []any{string(parry.ApprovalWaiting), string(parry.ApprovalApproved), string(parry.ApprovalDenied)})
	}
	return page(ctx, s, "approvals", 'a', f.Limit, f.Cursor, `SELECT `+approvalColumns+` FROM approvals`, w, scanApproval,
		func(a *parry.Approval) string { return string(a.ID) })
}

// Approval finds one by id.
func (s *Store) Approval(ctx context.Context, id parry.ApprovalID) (parry.Approval, error) {
	as, err := collect(ctx, s.reads, `SELECT `+approvalColumns+` FROM approvals WHERE id = $1`, []any{string(id)}, scanApproval)
	if err != nil {
		return parry.Approval{}, s.wrap(err, "read approval "+string(id))
	}
	if len(as) == 0 {
		return parry.Approval{}, noApproval(id)
	}
	return as[0], nil
}

// ApprovalDiff is the whole of what an approval is for.
func (s *Store) ApprovalDiff(ctx context.Context, id parry.ApprovalID) (d parry.Diff, err error) {
	var packed []byte
	err = s.reads.QueryRowContext(ctx, `SELECT diff FROM approvals WHERE id = $1`, string(id)).Scan(&packed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noApproval(id)
	}
	if err != nil {
		return nil, s.wrap(err, "read the diff of approval "+string(id))
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err == nil {
		packed, err = io.ReadAll(io.LimitReader(z, maxDiff))
	}
	if err != nil {
		return nil, fmt.Errorf("unpack the diff of approval %s: %w", id, err)
	}
	if len(packed) == 0 {
		return nil, nil
	}
	return strings.Split(strings.TrimSuffix(string(packed), "\n"), "\n"), nil
}

// Decide says an operator's word on an open approval; until is how long it counts. One that was approved may be denied as long as it is not
// made, and the other way round. KindConflict when it is open no more.
func (s *Store) Decide(ctx context.Context, id parry.ApprovalID, d parry.Decision) (a parry.Approval, err error) {
	err = s.write(ctx, "decide approval "+string(id), func(t *tx) error {
		found := false
		if err := t.query(`SELECT `+approvalColumns+` FROM approvals WHERE id = $1`, []any{string(id)}, func(r *sql.Rows) (err error) {
			found = true
			a, err = scanApproval(r)
			return err
		}); err != nil {
			return err
		}
		switch {
		case !found:
			return noApproval(id)
		case !a.State.Open():
			return parry.Errorf(parry.KindConflict, "approval %s is %s, and open no more; parry approvals lists those that wait", id, a.State)
		}
		did := parry.ActDeny
		if d.Approve {
			did = parry.ActApprove
		}
		t.audit(did, string(id), struct {
			Firewall string `json:"firewall"`
			Why      string `json:"change"`
			Removed  int    `json:"removed"`
			Added    int    `json:"added"`
			Reason   string `json:"reason,omitempty"`
		}{a.Firewall, a.Why, a.Removed, a.Added, audit.Plain(d.Reason, 256)})
		a.State, a.DecidedBy, a.DecidedAt, a.Reason, a.ExpiresAt = parry.ApprovalDenied, d.By, round(t.now), d.Reason, round(d.Until)
		if d.Approve {
			a.State = parry.ApprovalApproved
		}
		t.wakes |= wakeDesired
		return t.exec(`UPDATE approvals SET state = $2, decided_by = $3, decided_at = $4, decision = $5, expires_at = $6 WHERE id = $1`,
			string(id), string(a.State), d.By, micros(t.now), []byte(d.Reason), micros(d.Until))
	})
	if err == nil {
		s.log.Info("an approval was decided", "approval_id", id, "firewall", a.Firewall, "state", a.State, "by", d.By)
	}
	return a, err
}

// closeApproval ends a firewall's open approval.
func (t *tx) closeApproval(firewall string, as parry.ApprovalState) error {
	return t.exec(`UPDATE approvals SET state = $2 WHERE firewall = $1 AND state IN ('waiting', 'approved', 'denied')`, firewall, string(as))
}

// approvals carries out what a finished run says of approvals.
func (t *tx) approvals(f *parry.FinishRun) error {
	name := f.Run.Firewall
	switch a := f.Approval; {
	case a != nil:
		was := parry.ApprovalSuperseded
		var at int64
		err := t.row(`SELECT expires_at FROM approvals WHERE firewall = $1 AND state IN ('waiting', 'approved')`, []any{name}, &at)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if at > 0 && at <= micros(t.now) {
			was = parry.ApprovalExpired
		}
		if err := t.closeApproval(name, was); err != nil {
			return err
		}
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		for _, l := range f.ApprovalDiff {
			_, _ = io.WriteString(z, l+"\n")
		}
		if err := z.Close(); err != nil {
			return err
		}
		head := strings.Join(f.ApprovalDiff[:min(len(f.ApprovalDiff), approvalHead)], "\n")
		return t.exec(`INSERT INTO approvals (`+approvalColumns+`, diff) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, '', 0, $14, $15)`,
			string(a.ID), name, string(parry.ApprovalWaiting), a.Why, int64(a.Revision), micros(a.CreatedAt), micros(a.ExpiresAt), int64(a.Of), int64(a.Removed),
			int64(a.Ended), int64(a.Added), flag(a.Known), []byte(head), []byte{}, packed.Bytes())
	case f.ApprovalUsed != "":
		if err := t.exec(`UPDATE approvals SET state = 'applied' WHERE id = $1 AND firewall = $2 AND state IN ('waiting', 'approved', 'denied')`,
			string(f.ApprovalUsed), name); err != nil {
			return err
		}
		return t.closeApproval(name, parry.ApprovalGone)
	case f.ApprovalGone:
		return t.closeApproval(name, parry.ApprovalGone)
	}
	return nil
}
