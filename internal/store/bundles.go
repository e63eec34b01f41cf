package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/parry/parry/internal/parry"
)

// BundleStates lists what is known of bundles: of all those of which anything is known, or of the one that is named.
func (s *Store) BundleStates(ctx context.Context, name string) (map[string]parry.BundleState, error) {
	out := map[string]parry.BundleState{}
	_, err := collect(ctx, s.reads, `SELECT name, release, trial, problem FROM bundles WHERE $1 = '' OR name = $1`, []any{name},
		func(r *sql.Rows) (none struct{}, err error) {
			var b parry.BundleState
			var release, trial, problem string
			if err := r.Scan(&b.Name, &release, &trial, &problem); err != nil {
				return none, err
			}
			err = errors.Join(fromJSON(release, &b.Release), fromJSON(trial, &b.Trial), fromJSON(problem, &b.Problem))
			out[b.Name] = b
			return none, err
		})
	if err != nil {
		return nil, s.wrap(err, "read the bundles")
	}
	pins, err := collect(ctx, s.reads, `SELECT bundle, firewall, digest, version, set_by, set_at FROM pins WHERE $1 = '' OR bundle = $1 ORDER BY bundle, firewall`,
		[]any{name}, func(r *sql.Rows) (p parry.Pin, err error) {
			var at int64
			err = r.Scan(&p.Bundle, &p.Firewall, &p.Digest, &p.Version, &p.By, &at)
			p.At = fromMicros(at)
			return p, err
		})
	if err != nil {
		return nil, s.wrap(err, "read the pins")
	}
	for _, p := range pins {
		b := out[p.Bundle]
		b.Name, b.Pins = p.Bundle, append(b.Pins, p)
		out[p.Bundle] = b
	}
	return out, nil
}

// BundleState is that of one bundle.
func (s *Store) BundleState(ctx context.Context, name string) (parry.BundleState, error) {
	all, err := s.BundleStates(ctx, name)
	b := all[name]
	b.Name = name
	return b, err
}

// bundleWord is what the audit says of a copy.
type bundleWord struct {
	Firewall string      `json:"firewall"`
	Version  string      `json:"version,omitempty"`
	Digest   string      `json:"digest,omitempty"`
	Affects  int         `json:"affects,omitempty"`
	Run      parry.RunID `json:"run,omitempty"`
}

// SetPin has firewalls stay on a copy; a pin without a digest takes the word back. Affected are those that take up another copy now. A
// word for all firewalls of a bundle with a canary is the canaries' pass as well, and taken back it is a new trial.
func (s *Store) SetPin(ctx context.Context, p parry.Pin, affected []string) error {
	return s.write(ctx, "pin bundle "+p.Bundle, func(t *tx) error {
		t.wakes |= wakeDesired
		act, word := parry.ActBundleUse, bundleWord{Firewall: orAllName(p.Firewall), Version: p.Version, Digest: p.Digest, Affects: len(affected)}
		if p.Digest == "" {
			act = parry.ActBundleFollow
		}
		t.audit(act, p.Bundle, word)
		var err error
		if p.Digest == "" {
			err = t.exec(`DELETE FROM pins WHERE bundle = $1 AND firewall = $2`, p.Bundle, p.Firewall)
		} else {
			err = t.exec(`INSERT INTO pins (bundle, firewall, digest, version, set_by, set_at) VALUES ($1, $2, $3, $4, $5, $6)
				ON CONFLICT (bundle, firewall) DO UPDATE SET digest = excluded.digest, version = excluded.version, set_by = excluded.set_by,
					set_at = excluded.set_at`, p.Bundle, p.Firewall, p.Digest, p.Version, p.By, micros(p.At))
		}
		if err == nil && p.Firewall == "" {
			err = t.exec(`UPDATE bundles SET trial = '' WHERE name = $1`, p.Bundle)
			if err == nil && p.Digest != "" {
				err = t.exec(`UPDATE bundles SET release = $2 WHERE name = $1 AND release <> ''`, p.Bundle,
					toJSON(parry.Release{Digest: p.Digest, Version: p.Version, By: p.By, At: p.At}))
			}
		}
		if err != nil {
			return err
		}
		return t.dirty(affected)
	})
}

// dirty has firewalls converged again.
func (t *tx) dirty(names []string) error {
	for _, n := range names {
		if err := t.exec(`UPDATE firewalls SET dirty_rev = $2 WHERE name = $1`, n, int64(t.rev)); err != nil {
			return err
		}
	}
	return nil
}

// BeginRelease notes what the firewalls beside the canaries follow, unless that is known.
func (s *Store) BeginRelease(ctx context.Context, bundle string, r parry.Release) error {
	return s.write(ctx, "release bundle "+bundle, func(t *tx) error {
		return t.exec(`INSERT INTO bundles (name, release, trial, problem) VALUES ($1, $2, '', '')
			ON CONFLICT (name) DO UPDATE SET release = excluded.release WHERE bundles.release = ''`, bundle, toJSON(r))
	})
}

// EndReleases forgets releases and trials: the bundle has no canary any more.
func (s *Store) EndReleases(ctx context.Context, bundle string) error {
	return s.write(ctx, "forget the releases of bundle "+bundle, func(t *tx) error {
		return t.exec(`UPDATE bundles SET release = '', trial = '' WHERE name = $1`, bundle)
	})
}

// EndTrial forgets a refused version whose edit was taken back, and tells.
func (s *Store) EndTrial(ctx context.Context, bundle, digest string, ns []parry.Notification) error {
	return s.write(ctx, "end the trial of bundle "+bundle, func(t *tx) error {
		var text string
		err := t.row(`SELECT trial FROM bundles WHERE name = $1`, []any{bundle}, &text)
		var trial parry.Trial
		if err = errors.Join(err, fromJSON(text, &trial)); err != nil || trial.Digest != digest {
			return err
		}
		return errors.Join(t.enqueue(ns), t.exec(`UPDATE bundles SET trial = '' WHERE name = $1`, bundle))
	})
}

// tried takes over what a canary's run has shown. When the last of them has passed, the others follow.
func (t *tx) tried(r *parry.Run, x *parry.Tried) error {
	var text string
	err := t.row(`SELECT trial FROM bundles WHERE name = $1`, []any{x.Bundle.Name}, &text)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // the bundle has no canary any more
	}
	var trial parry.Trial
	if err = errors.Join(err, fromJSON(text, &trial)); err != nil {
		return err
	}
	if trial.Digest != x.Bundle.Digest {
		trial = parry.Trial{Digest: x.Bundle.Digest, Version: x.Bundle.Version, Told: trial.Told}
	}
	if trial.Refused {
		return nil
	}
	trial.At = r.EndedAt
	if x.Refused {
		t.auditBy(parry.Itself, parry.ActBundleRefuse, x.Bundle.Name, "done", bundleWord{Firewall: r.Firewall, Version: trial.Version, Digest: trial.Digest, Run: r.ID})
		trial.Refused, trial.Firewall, trial.Run, trial.Why, trial.Told = true, r.Firewall, r.ID, x.Why, x.Told
		if err := t.dirty(x.Canaries); err != nil { // they go back to the release
			return err
		}
	} else if !slices.Contains(trial.Passed, r.Firewall) {
		trial.Passed = append(trial.Passed, r.Firewall)
	}
	passed := !trial.Refused && !slices.ContainsFunc(x.Canaries, func(n string) bool { return !slices.Contains(trial.Passed, n) })
	if !passed {
		return t.exec(`UPDATE bundles SET trial = $2 WHERE name = $1`, x.Bundle.Name, toJSON(trial))
	}
	t.wakes |= wakeDesired
	t.auditBy(parry.Itself, parry.ActBundleRelease, x.Bundle.Name, "done", bundleWord{Firewall: r.Firewall, Version: trial.Version, Digest: trial.Digest, Run: r.ID})
	for i := range x.Over {
		if trial.Told == "" {
			break
		}
		x.Over[i].Incident = trial.Told
		if err := t.enqueue(x.Over[i : i+1]); err != nil {
			return err
		}
	}
	err = t.exec(`UPDATE bundles SET trial = '', release = $2 WHERE name = $1`, x.Bundle.Name,
		toJSON(parry.Release{Digest: trial.Digest, Version: trial.Version, By: r.Firewall, At: r.EndedAt}))
	if err != nil {
		return err
	}
	return t.dirty(x.Others)
}

// problemStands is how long a replica that told of a problem may be silent before another tells of its own.
const problemStands = 10 * time.Minute

// SetBundleProblem notes what a replica finds wrong with the newest edit of a bundle, nothing when text is empty. A problem is told once, by
// whoever finds it first, and is over when that replica finds nothing any more; tell makes the notification of either, told being the first
// one's id.
func (s *Store) SetBundleProblem(ctx context.Context, bundle string, p parry.BundleProblem, tell func(over bool, p parry.BundleProblem) []parry.Notification) error {
	var text string
	err := s.reads.QueryRowContext(ctx, `SELECT problem FROM bundles WHERE name = $1`, bundle).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) || err == nil && text == "" {
		if p.Text == "" {
			return nil // the usual, without a write
		}
	} else if err != nil {
		return s.wrap(err, "read the problem of bundle "+bundle)
	}
	return s.write(ctx, "note the problem of bundle "+bundle, func(t *tx) error {
		var text string
		err := t.row(`SELECT problem FROM bundles WHERE name = $1`, []any{bundle}, &text)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		var old parry.BundleProblem
		if err := fromJSON(text, &old); err != nil {
			return err
		}
		if old.Text != "" && old.Replica != p.Replica && p.Seen.Sub(old.Seen) < problemStands {
			return nil // another's to tell
		}
		text = ""
		switch {
		case p.Text == "" && old.Text == "":
			return nil
		case p.Text == "":
			err = t.enqueue(tell(true, old))
		case old.Text == "":
			p.Since = p.Seen
			told := tell(false, p)
			for _, n := range told {
				p.Told = n.ID
			}
			text, err = toJSON(p), t.enqueue(told)
		default:
			p.Since, p.Told = old.Since, old.Told
			text, err = toJSON(p), nil
		}
		if err != nil {
			return err
		}
		return t.exec(`INSERT INTO bundles (name, release, trial, problem) VALUES ($1, '', '', $2)
			ON CONFLICT (name) DO UPDATE SET problem = excluded.problem`, bundle, text)
	})
}

// BundleUses lists the copies of bundles that kept runs name, by firewall.
func (s *Store) BundleUses(ctx context.Context) ([]parry.BundleUse, error) {
	out, err := collect(ctx, s.reads, `SELECT firewall, bundle, max(id),
			coalesce(max(CASE WHEN kind = 'apply' AND state = 'succeeded' THEN id END), ''),
			coalesce(min(CASE WHEN kind = 'apply' AND state = 'succeeded' THEN id END), ''),
			coalesce(max(CASE WHEN kind = 'verify' AND state = 'succeeded' THEN id END), '')
		FROM runs GROUP BY firewall, bundle ORDER BY firewall, bundle`, nil, func(r *sql.Rows) (u parry.BundleUse, err error) {
		var text string
		var first, verified parry.RunID
		if err := r.Scan(&u.Firewall, &text, &u.Last, &u.Applied, &first, &verified); err != nil {
			return u, err
		}
		var b bundleRef
		if err := fromJSON(text, &b); err != nil {
			return u, fmt.Errorf("runs of %s: %w", u.Firewall, err)
		}
		u.Bundle, u.Proved = parry.BundleRef(b), first != "" && verified > first
		return u, nil
	})
	out = slices.DeleteFunc(out, func(u parry.BundleUse) bool { return u.Bundle.Digest == "" })
	return out, s.wrap(err, "list the bundles of the runs")
}

// AskCheck has a firewall's lane run a bundle in check mode.
func (s *Store) AskCheck(ctx context.Context, c parry.Check) error {
	return s.write(ctx, "ask for a check of "+c.Firewall, func(t *tx) error {
		var waiting int64
		if err := t.row(`SELECT count(*) FROM checks WHERE firewall = $1`, []any{c.Firewall}, &waiting); err != nil {
			return err
		}
		if waiting >= maxChecks {
			return &parry.Error{Kind: parry.KindUnavailable, Detail: fmt.Sprintf("%d checks wait for %s already", waiting, c.Firewall), RetryAfter: time.Minute}
		}
		t.wakes |= wakeDesired
		t.audit(parry.ActBundleCheck, c.Bundle, bundleWord{Firewall: c.Firewall, Digest: c.Digest, Run: c.RunID})
		return t.exec(`INSERT INTO checks (run_id, firewall, bundle, digest, asked_by, asked_at)
			SELECT $1, name, $3, $4, $5, $6 FROM firewalls WHERE name = $2`, string(c.RunID), c.Firewall, c.Bundle, c.Digest, c.By, micros(c.At))
	})
}

const maxChecks = 10 // that wait, of a firewall

// NextCheck is the firewall's oldest check that nobody has begun; one without RunID is none.
func (s *Store) NextCheck(ctx context.Context, firewall string) (c parry.Check, err error) {
	var at int64
	err = s.reads.QueryRowContext(ctx, `SELECT run_id, firewall, bundle, digest, asked_by, asked_at FROM checks WHERE firewall = $1 ORDER BY run_id LIMIT 1`,
		firewall).Scan(&c.RunID, &c.Firewall, &c.Bundle, &c.Digest, &c.By, &at)
	c.At = fromMicros(at)
	if errors.Is(err, sql.ErrNoRows) {
		return parry.Check{}, nil
	}
	return c, s.wrap(err, "read the checks of "+firewall)
}
