package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/parry/parry/internal/parry"
)

const runColumns = `id, firewall, kind, state, failure, task, message, revision, epoch, started_at, ended_at, bundle, sent, rejected, want, got, dir`

func scanRun(r *sql.Rows) (run parry.Run, err error) {
	var task, message []byte
	var started, ended int64
	var bundle, want, got string
	err = r.Scan(&run.ID, &run.Firewall, &run.Kind, &run.State, &run.Failure, &task, &message, &run.Revision, &run.Epoch, &started, &ended,
		&bundle, &run.Sent, &run.Rejected, &want, &got, &run.Dir)
	if err != nil {
		return run, err
	}
	run.Task, run.Message, run.StartedAt, run.EndedAt = string(task), string(message), fromMicros(started), fromMicros(ended)
	var b bundleRef
	if err := errors.Join(fromJSON(bundle, &b), fromJSON(want, &run.Want), fromJSON(got, &run.Got)); err != nil {
		return run, fmt.Errorf("run %s: %w", run.ID, err)
	}
	run.Bundle = parry.BundleRef(b)
	return run, nil
}

func (t *tx) saveRun(r *parry.Run) error {
	return t.exec(`INSERT INTO runs (`+runColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, failure = excluded.failure, task = excluded.task, message = excluded.message,
			revision = excluded.revision, started_at = excluded.started_at, ended_at = excluded.ended_at, bundle = excluded.bundle,
			sent = excluded.sent, rejected = excluded.rejected, want = excluded.want, got = excluded.got, dir = excluded.dir`,
		string(r.ID), r.Firewall, string(r.Kind), string(r.State), string(r.Failure), []byte(r.Task), []byte(r.Message), int64(r.Revision), r.Epoch,
		micros(r.StartedAt), micros(r.EndedAt), toJSON(bundleRef(r.Bundle)), int64(r.Sent), int64(r.Rejected), toJSON(r.Want), toJSON(r.Got), r.Dir)
}

func laneLost(name string) error {
	return &parry.Error{Kind: parry.KindConflict, Detail: "the lane of " + name + " was taken over by another replica", Err: ErrLaneLost}
}

// BeginRun stores a run that is about to start. ErrLaneLost when its epoch is no longer the firewall's: then it must not start.
func (s *Store) BeginRun(ctx context.Context, r parry.Run) error {
	return s.write(ctx, "begin run "+string(r.ID), func(t *tx) error {
		var epoch int64
		err := t.row(`SELECT epoch FROM firewalls WHERE name = $1`, []any{r.Firewall}, &epoch)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return noFirewall(r.Firewall)
		case err != nil:
			return err
		case epoch != r.Epoch:
			return laneLost(r.Firewall)
		}
		if r.Kind == parry.RunCheck {
			if err := t.exec(`DELETE FROM checks WHERE run_id = $1`, string(r.ID)); err != nil {
				return err
			}
		}
		return t.saveRun(&r)
	})
}

// FinishRun stores all that ends a run in one transaction. If the lane was taken over meanwhile (the firewall's epoch is not the run's), only
// the run is stored, the firewall stays as its new keeper sees it, who also tells of it, and the error is ErrLaneLost. Finish a run before
// raising the lane's epoch. A run that counts leaves the firewall dirty when its Digest is no longer the firewall's.
func (s *Store) FinishRun(ctx context.Context, f parry.FinishRun) error {
	var late bool
	err := s.write(ctx, "finish run "+string(f.Run.ID), func(t *tx) error {
		late = false
		t.wakes |= wakeApplied
		if err := t.saveRun(&f.Run); err != nil {
			return err
		}
		t.auditRun(&f.Run)
		var epoch, applied, dirty, proved int64
		var digest, proof, provedAs, drift string
		err := t.row(`SELECT epoch, digest, applied_rev, dirty_rev, proof, proved_at, proved_as, drift FROM firewalls WHERE name = $1`, []any{f.Run.Firewall},
			&epoch, &digest, &applied, &dirty, &proof, &proved, &provedAs, &drift)
		if errors.Is(err, sql.ErrNoRows) { // retired meanwhile
			return t.enqueue(f.Notifications)
		}
		if err != nil {
			return err
		}
		if err := t.sent(&f.Run); err != nil {
			return err
		}
		if late = epoch != f.Run.Epoch; late {
			return nil
		}
		if err := t.enqueue(f.Notifications); err != nil {
			return err
		}
		if f.Retired {
			t.wakes |= wakeDesired
			return errors.Join(t.exec(`DELETE FROM holds WHERE name = $1`, f.Run.Firewall), t.exec(`DELETE FROM panics WHERE name = $1`, f.Run.Firewall),
				t.exec(`DELETE FROM pins WHERE firewall = $1`, f.Run.Firewall), t.exec(`DELETE FROM checks WHERE firewall = $1`, f.Run.Firewall),
				t.closeApproval(f.Run.Firewall, parry.ApprovalGone),
				t.exec(`DELETE FROM firewalls WHERE name = $1`, f.Run.Firewall))
		}
		if err := t.verification(&f); err != nil {
			return err
		}
		if f.Applied {
			drift, provedAs = "", f.Digest
			applied, proof, proved = max(applied, int64(f.Run.Revision)), toJSON(f.Run.Got), micros(f.Run.EndedAt)
		}
		var emptied int64
		if f.Emptied {
			drift, provedAs = "", f.Digest
			applied, proof, proved, emptied = max(applied, int64(f.Run.Revision)), toJSON(f.Run.Got), micros(f.Run.EndedAt), int64(t.rev)
		}
		// What was sent was for another configuration than the firewall has by now: that it is in force makes nothing of the new one so.
		other := f.Applied && f.Digest != "" && f.Digest != digest && dirty <= applied
		if f.Dirty || f.Emptied || other {
			dirty = int64(t.rev)
			t.wakes |= wakeDesired
		}
		if f.Drift != nil {
			d := *f.Drift
			if f.Dirty {
				d.Rev = t.rev
			}
			drift = toJSON(d)
		}
		if f.Facts != nil {
			if err := t.facts(f.Run.Firewall, *f.Facts); err != nil {
				return err
			}
		}
		inc := ""
		if f.Incident.Open() {
			inc = toJSON(incident(f.Incident))
		}
		err = t.exec(`UPDATE firewalls SET applied_rev = $2, dirty_rev = $3, proof = $4, proved_at = $5, incident = $6, last_run = $7,
				adopt = CASE WHEN $8 = 1 THEN 0 ELSE adopt END,
				verify_rev = CASE WHEN verify_rev <= $9 THEN 0 ELSE verify_rev END,
				emptied_rev = CASE WHEN emptied_rev < $10 THEN $10 ELSE emptied_rev END, proved_as = $11, drift = $12 WHERE name = $1`,
			f.Run.Firewall, applied, dirty, proof, proved, inc, string(f.Run.ID), flag(f.ClearWords), int64(f.VerifyUsed), emptied, provedAs, drift)
		if err == nil && f.Tried != nil {
			err = t.tried(&f.Run, f.Tried)
		}
		if err == nil && f.Simulation != nil {
			err = t.exec(`UPDATE firewalls SET simulation = $2 WHERE name = $1`, f.Run.Firewall, toJSON(f.Simulation))
		}
		if err == nil {
			err = t.approvals(&f)
		}
		if err != nil || !f.SetRejects {
			return err
		}
		return t.setRejects(f.Run.Firewall, f.Rejects)
	})
	if err == nil && late {
		err = laneLost(f.Run.Firewall)
	}
	return err
}

// sent keeps the highest revision that a run may have brought to its firewall.
func (t *tx) sent(r *parry.Run) error {
	rev := r.SentRevision()
	if rev == 0 {
		return nil
	}
	return t.exec(`UPDATE firewalls SET sent_rev = $2 WHERE name = $1 AND sent_rev < $2`, r.Firewall, int64(rev))
}

// facts keeps what a firewall says of itself, when that is something else than before.
func (t *tx) facts(firewall string, f parry.FirewallFacts) error {
	f.Canonical()
	return t.exec(`UPDATE firewalls SET facts = $2, facts_rev = $3 WHERE name = $1 AND facts <> $2`, firewall, toJSON(f), int64(t.rev))
}

// setRejects replaces what a firewall refuses. Rejects of blocks that were forgotten meanwhile are left out.
func (t *tx) setRejects(firewall string, rs []parry.Reject) error {
	if err := t.exec(`DELETE FROM rejects WHERE firewall = $1`, firewall); err != nil {
		return err
	}
	for _, r := range rs {
		err := t.exec(`INSERT INTO rejects (firewall, block_id, code, run_id, at) SELECT $1, b.id, $3, $4, $5 FROM blocks b WHERE b.id = $2
			ON CONFLICT (firewall, block_id) DO NOTHING`, firewall, string(r.BlockID), r.Code, string(r.RunID), micros(r.At))
		if err != nil {
			return err
		}
	}
	return nil
}

// AbandonRuns ends the runs of a firewall that a dead controller left running: what they did is unknown. Call it as the holder of the lane,
// once no such run can be on any more.
func (s *Store) AbandonRuns(ctx context.Context, firewall string) error {
	return s.write(ctx, "abandon the runs of "+firewall, func(t *tx) error {
		err := t.exec(`UPDATE firewalls SET sent_rev = (SELECT max(revision) FROM runs WHERE firewall = $1 AND state = 'running' AND kind <> 'check')
			WHERE name = $1 AND sent_rev < (SELECT max(revision) FROM runs WHERE firewall = $1 AND state = 'running' AND kind <> 'check')`, firewall)
		if err != nil {
			return err
		}
		n, err := t.execN(`UPDATE runs SET state = 'unknown', failure = $2, message = $3, ended_at = $4 WHERE firewall = $1 AND state = 'running'`,
			firewall, string(parry.FailCancelled), []byte("the controller ended while this run was on"), micros(t.now))
		if n > 0 {
			t.wakes |= wakeApplied
			t.auditBy(parry.Itself, parry.ActRunEnd, firewall, string(parry.RunUnknown),
				map[string]any{"runs": n, "failure": parry.FailCancelled, "message": "the controller ended while this run was on"})
		}
		return err
	})
}

// Runs lists runs, newest first.
func (s *Store) Runs(ctx context.Context, f parry.RunFilter) (parry.Page[parry.Run], error) {
	var w where
	if f.Firewall != "" {
		w.add(`firewall = %s`, f.Firewall)
	}
	if f.State != "" {
		w.add(`state = %s`, string(f.State))
	}
	return page(ctx, s, "runs", 'r', f.Limit, f.Cursor, `SELECT `+runColumns+` FROM runs`, w, scanRun,
		func(r *parry.Run) string { return string(r.ID) })
}

// Run finds one by id.
func (s *Store) Run(ctx context.Context, id parry.RunID) (parry.Run, error) {
	rs, err := collect(ctx, s.reads, `SELECT `+runColumns+` FROM runs WHERE id = $1`, []any{string(id)}, scanRun)
	if err != nil {
		return parry.Run{}, s.wrap(err, "read run "+string(id))
	}
	if len(rs) == 0 {
		return parry.Run{}, parry.Errorf(parry.KindNotFound, "there is no run %s; it may have been pruned", id)
	}
	return rs[0], nil
}
