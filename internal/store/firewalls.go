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

// incident is parry.Incident as it is stored.
type incident struct {
	ID       parry.NotificationID `json:"id"`
	Since    time.Time            `json:"since"`
	Failure  parry.Failure        `json:"failure"`
	Began    time.Time            `json:"began,omitzero"`
	Message  string               `json:"message"`
	Attempts int                  `json:"attempts"`
	NextTry  time.Time            `json:"next_try"`
}

// bundleRef is parry.BundleRef as it is stored.
type bundleRef struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
	Commit  string `json:"commit"`
}

// toJSON writes a value that always can be; invalid UTF-8 in it is replaced and NUL escaped, so that a text column takes it.
func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: %T cannot be JSON: %v", v, err)) // a time beyond year 9999: a bug of the caller
	}
	return string(b)
}

func fromJSON(s string, v any) error {
	if s == "" {
		return nil
	}
	return json.Unmarshal([]byte(s), v)
}

func noFirewall(name string) error {
	return parry.Errorf(parry.KindNotFound, "there is no firewall %q", name)
}

// SyncFirewalls makes the known firewalls those of the configuration (Name and Digest count). A new one starts at 0; a changed digest makes
// dirty; one that is missing is no longer listed, and stays until it is retired; one that comes back is dirty and no longer retiring. A new
// one's epoch and sent revision start at the revision, above what epochs reach by themselves: the firewall may remember both from before it
// was retired.
func (s *Store) SyncFirewalls(ctx context.Context, fws []parry.Firewall) error {
	return s.write(ctx, "take over the configured firewalls", func(t *tx) error {
		t.wakes |= wakeDesired
		names := make([]any, 0, len(fws))
		for _, fw := range fws {
			names = append(names, fw.Name)
			err := t.exec(`INSERT INTO firewalls (name, listed, retiring, digest, applied_rev, dirty_rev, sent_rev, epoch, adopt, incident, proof,
					proved_at, last_run, simulate) VALUES ($1, 1, 0, $2, 0, $3, $3, $3, 0, '', '', 0, '', $4)
				ON CONFLICT (name) DO UPDATE SET listed = 1, digest = excluded.digest, simulate = excluded.simulate,
					dirty_rev = CASE WHEN firewalls.digest <> excluded.digest OR firewalls.listed = 0 THEN excluded.dirty_rev ELSE firewalls.dirty_rev END,
					retiring = CASE WHEN firewalls.listed = 1 THEN firewalls.retiring ELSE 0 END
				WHERE firewalls.digest <> excluded.digest OR firewalls.listed = 0 OR firewalls.simulate <> excluded.simulate`,
				fw.Name, fw.Digest, int64(t.rev), flag(fw.Simulate))
			if err != nil {
				return err
			}
		}
		if len(names) == 0 {
			return t.exec(`UPDATE firewalls SET listed = 0`)
		}
		return t.exec(`UPDATE firewalls SET listed = 0 WHERE listed = 1 AND name NOT IN (`+placeholders(1, len(names))+`)`, names...)
	})
}

const firewallQuery = `
	SELECT f.name, f.listed, f.retiring, f.digest, f.applied_rev, f.dirty_rev, f.sent_rev, f.verify_rev, f.facts_rev, f.epoch, f.adopt, f.incident, f.proof, f.proved_as, f.drift,
		f.proved_at, f.last_run, coalesce(h.held_by, ''), h.reason, coalesce(h.since, 0), coalesce(h.until, 0),
		coalesce(a.held_by, ''), a.reason, coalesce(a.since, 0), coalesce(a.until, 0), f.emptied_rev,
		coalesce(p.rev, 0), coalesce(p.called_by, ''), p.reason, coalesce(p.since, 0),
		coalesce(q.rev, 0), coalesce(q.called_by, ''), q.reason, coalesce(q.since, 0),
		coalesce((SELECT min(c.run_id) FROM checks c WHERE c.firewall = f.name), ''),
		coalesce(v.id, ''), coalesce(v.state, ''), coalesce(v.expires_at, 0), f.simulate, f.simulation
	FROM firewalls f LEFT JOIN holds h ON h.name = f.name LEFT JOIN holds a ON a.name = ''
		LEFT JOIN panics p ON p.name = f.name LEFT JOIN panics q ON q.name = ''
		LEFT JOIN approvals v ON v.firewall = f.name AND v.state IN ('waiting', 'approved', 'denied')`

// heldBy is a row of holds as it is read: nothing where there is none.
type heldBy struct {
	by           string
	reason       []byte
	since, until int64
}

func (h *heldBy) dest() []any { return []any{&h.by, &h.reason, &h.since, &h.until} }

func (h *heldBy) hold() parry.Hold {
	if h.since == 0 {
		return parry.Hold{}
	}
	return parry.Hold{Kind: parry.HoldWord, By: h.by, Reason: string(h.reason), Since: fromMicros(h.since), Until: fromMicros(h.until)}
}

// longer is the hold that lasts longer, the first one of equals.
func longer(a, b parry.Hold) parry.Hold {
	if !a.Held() || b.Held() && !a.Until.IsZero() && (b.Until.IsZero() || b.Until.After(a.Until)) {
		return b
	}
	return a
}

func scanFirewall(r *sql.Rows) (f parry.FirewallState, err error) {
	var listed, retiring, adopt, proved, decide, simulate int64
	var inc, proof, drift, simulation string
	var own, all, panic, panicAll heldBy
	var rev, revAll parry.Revision
	dest := []any{&f.Name, &listed, &retiring, &f.Digest, &f.AppliedRev, &f.DirtyRev, &f.SentRev, &f.VerifyRev, &f.FactsRev, &f.Epoch, &adopt, &inc, &proof, &f.ProvedAs, &drift,
		&proved, &f.LastRun}
	if err = r.Scan(slices.Concat(dest, own.dest(), all.dest(), []any{&f.EmptiedRev, &rev}, panic.dest()[:3], []any{&revAll}, panicAll.dest()[:3],
		[]any{&f.Check, &f.Approval.ID, &f.Approval.State, &decide, &simulate, &simulation})...); err != nil {
		return f, err
	}
	f.Simulate = simulate != 0
	if err := fromJSON(simulation, &f.Simulation); err != nil {
		return f, fmt.Errorf("simulation of %s: %w", f.Name, err)
	}
	f.Listed, f.Retiring, f.Adopt, f.Approval.ExpiresAt = listed != 0, retiring != 0, adopt != 0, fromMicros(decide)
	f.ProvedAt, f.Hold = fromMicros(proved), longer(own.hold(), all.hold())
	if f.PanicRev = max(rev, revAll); f.PanicRev > 0 {
		if f.Hold = panic.hold(); revAll > rev {
			f.Hold = panicAll.hold()
		}
		f.Hold.Kind = parry.HoldPanic
	}
	var i incident
	if err := fromJSON(inc, &i); err != nil {
		return f, fmt.Errorf("incident of %s: %w", f.Name, err)
	}
	f.Incident = parry.Incident(i)
	if err := fromJSON(proof, &f.Proof); err != nil {
		return f, fmt.Errorf("proof of %s: %w", f.Name, err)
	}
	if err := fromJSON(drift, &f.Drift); err != nil {
		return f, fmt.Errorf("drift of %s: %w", f.Name, err)
	}
	return f, nil
}

// Firewalls lists every firewall that is known, by name.
func (s *Store) Firewalls(ctx context.Context) ([]parry.FirewallState, error) {
	fs, err := collect(ctx, s.reads, firewallQuery+` ORDER BY f.name`, nil, scanFirewall)
	return fs, s.wrap(err, "list the firewalls")
}

// FirewallState finds one by name.
func (s *Store) FirewallState(ctx context.Context, name string) (parry.FirewallState, error) {
	fs, err := collect(ctx, s.firewall, "", []any{name}, scanFirewall)
	if err != nil {
		return parry.FirewallState{}, s.wrap(err, "read firewall "+name)
	}
	if len(fs) == 0 {
		return parry.FirewallState{}, noFirewall(name)
	}
	return fs[0], nil
}

// Facts is what each firewall says of itself; those that have said nothing yet are left out.
func (s *Store) Facts(ctx context.Context) (map[string]parry.FirewallFacts, error) {
	out := map[string]parry.FirewallFacts{}
	_, err := collect(ctx, s.reads, `SELECT name, facts FROM firewalls WHERE facts <> ''`, nil, func(r *sql.Rows) (string, error) {
		var name, facts string
		var f parry.FirewallFacts
		err := r.Scan(&name, &facts)
		if err == nil {
			err = fromJSON(facts, &f)
		}
		if err != nil {
			return name, fmt.Errorf("facts of %s: %w", name, err)
		}
		out[name] = f
		return name, nil
	})
	return out, s.wrap(err, "read what the firewalls say of themselves")
}

// onFirewall runs an UPDATE of the firewall whose name is $1, by somebody's word unless act is empty, and wakes the lanes.
func (s *Store) onFirewall(ctx context.Context, doing string, act parry.Action, name, q string, args ...any) error {
	return s.write(ctx, doing+" "+name, func(t *tx) error {
		args := append([]any{name}, args...)
		for i, a := range args {
			if a == revision {
				args[i] = int64(t.rev)
			}
		}
		n, err := t.execN(q, args...)
		if err == nil && n == 0 {
			return noFirewall(name)
		}
		if act != "" {
			t.audit(act, name, nil)
		}
		t.wakes |= wakeDesired
		return err
	})
}

// revision stands for the transaction's own among the arguments of onFirewall.
const revision = parry.Revision(-1)

// MarkDirty makes a firewall be converged again from scratch.
func (s *Store) MarkDirty(ctx context.Context, name string) error {
	return s.onFirewall(ctx, "mark dirty", "", name, `UPDATE firewalls SET dirty_rev = $2 WHERE name = $1`, revision)
}

// SetVerify has a firewall read back, whatever its lane waits for.
func (s *Store) SetVerify(ctx context.Context, name string) error {
	return s.onFirewall(ctx, "verify", parry.ActFirewallVerify, name, `UPDATE firewalls SET verify_rev = $2 WHERE name = $1`, revision)
}

// SetRetiring has a firewall emptied and then forgotten.
func (s *Store) SetRetiring(ctx context.Context, name string) error {
	return s.onFirewall(ctx, "retire", parry.ActFirewallRetire, name, `UPDATE firewalls SET retiring = 1, dirty_rev = $2 WHERE name = $1`, revision)
}

// SetAdopt lets the next run take the firewall over from another controller, a higher epoch or revision, or a flush.
func (s *Store) SetAdopt(ctx context.Context, name string) error {
	return s.onFirewall(ctx, "adopt", parry.ActFirewallAdopt, name, `UPDATE firewalls SET adopt = 1 WHERE name = $1`)
}

// Rejects lists what firewalls refused of the blocks.
func (s *Store) Rejects(ctx context.Context, ids []parry.BlockID) (out []parry.Reject, err error) {
	for len(ids) > 0 {
		part := ids[:min(len(ids), 500)]
		ids = ids[len(part):]
		var w where
		values := make([]any, len(part))
		for i, id := range part {
			values[i] = string(id)
		}
		w.in(`block_id`, values)
		rs, err := collect(ctx, s.reads, `SELECT firewall, block_id, code, run_id, at FROM rejects`+w.String()+` ORDER BY block_id, firewall`, w.args, scanReject)
		if err != nil {
			return nil, s.wrap(err, "list rejects")
		}
		out = append(out, rs...)
	}
	return out, nil
}

// FirewallRejects lists what one firewall refused.
func (s *Store) FirewallRejects(ctx context.Context, firewall string) ([]parry.Reject, error) {
	rs, err := collect(ctx, s.reads, `SELECT firewall, block_id, code, run_id, at FROM rejects WHERE firewall = $1 ORDER BY block_id`,
		[]any{firewall}, scanReject)
	return rs, s.wrap(err, "list the rejects of "+firewall)
}

func scanReject(r *sql.Rows) (j parry.Reject, err error) {
	var at int64
	err = r.Scan(&j.Firewall, &j.BlockID, &j.Code, &j.RunID, &at)
	j.At = fromMicros(at)
	return j, err
}
