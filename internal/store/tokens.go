package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/parry"
)

const tokenColumns = `id, name, role, hash, created_by, created_at, expires_at, revoked_at, last_used, sources, firewalls, max_ttl, rate,
	suspended_at, suspended_until, suspended_why`

func scanToken(r *sql.Rows) (k parry.Token, err error) {
	var hash []byte
	var created, expires, revoked, used, ttl, suspended, until int64
	var sources, firewalls string
	err = r.Scan(&k.ID, &k.Name, &k.Role, &hash, &k.CreatedBy, &created, &expires, &revoked, &used, &sources, &firewalls, &ttl, &k.Rate,
		&suspended, &until, &k.SuspendedWhy)
	if err != nil {
		return k, err
	}
	if copy(k.Hash[:], hash) != len(k.Hash) {
		return k, fmt.Errorf("token %s: its hash is cut short", k.ID)
	}
	k.CreatedAt, k.ExpiresAt, k.RevokedAt, k.LastUsed = fromMicros(created), fromMicros(expires), fromMicros(revoked), fromMicros(used)
	k.SuspendedAt, k.SuspendedUntil = fromMicros(suspended), fromMicros(until)
	k.MaxTTL = time.Duration(ttl) * time.Microsecond
	for _, s := range strings.Fields(strings.ReplaceAll(sources, ",", " ")) {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return k, fmt.Errorf("token %s: %w", k.ID, err)
		}
		k.Sources = append(k.Sources, p)
	}
	k.Firewalls = strings.Fields(firewalls)
	if len(k.Firewalls) == 0 {
		k.Firewalls = nil
	}
	return k, nil
}

// CreateToken stores a token. KindConflict when one of its name is in use.
func (s *Store) CreateToken(ctx context.Context, k parry.Token) error {
	return s.write(ctx, "create token "+k.Name, func(t *tx) error {
		var id parry.TokenID
		err := t.row(`SELECT id FROM tokens WHERE name = $1 AND revoked_at = 0`, []any{k.Name}, &id)
		switch {
		case err == nil && id == k.ID && t.again:
			return nil
		case err == nil:
			return parry.Errorf(parry.KindConflict, "there is a token %q already (%s); revoke it or take another name", k.Name, id)
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		sources := make([]string, len(k.Sources))
		for i, p := range k.Sources {
			sources[i] = p.String()
		}
		t.audit(parry.ActTokenCreate, string(k.ID), struct {
			Name      string     `json:"name"`
			Role      parry.Role `json:"role"`
			Expires   string     `json:"expires,omitempty"`
			Sources   []string   `json:"sources,omitempty"`
			Firewalls []string   `json:"firewalls,omitempty"`
			MaxTTL    string     `json:"max_ttl,omitempty"`
			Rate      int        `json:"rate,omitempty"`
		}{k.Name, k.Role, auditTime(k.ExpiresAt), sources, k.Firewalls, maxTTL(k.MaxTTL), k.Rate})
		return t.exec(`INSERT INTO tokens (`+tokenColumns+`, revoked_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, '')`,
			string(k.ID), k.Name, string(k.Role), k.Hash[:], k.CreatedBy, micros(k.CreatedAt), micros(k.ExpiresAt), micros(k.RevokedAt),
			micros(k.LastUsed), strings.Join(sources, ","), strings.Join(k.Firewalls, " "), k.MaxTTL.Microseconds(), int64(k.Rate),
			micros(k.SuspendedAt), micros(k.SuspendedUntil), k.SuspendedWhy)
	})
}

func maxTTL(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return parry.FormatTTL(d)
}

// Tokens lists every token, revoked ones too, oldest first.
func (s *Store) Tokens(ctx context.Context) ([]parry.Token, error) {
	ks, err := collect(ctx, s.reads, `SELECT `+tokenColumns+` FROM tokens ORDER BY id`, nil, scanToken)
	return ks, s.wrap(err, "list the tokens")
}

// TokenByID finds one, revoked or not.
func (s *Store) TokenByID(ctx context.Context, id parry.TokenID) (parry.Token, error) {
	ks, err := collect(ctx, s.reads, `SELECT `+tokenColumns+` FROM tokens WHERE id = $1`, []any{string(id)}, scanToken)
	if err != nil {
		return parry.Token{}, s.wrap(err, "read token "+string(id))
	}
	if len(ks) == 0 {
		return parry.Token{}, parry.Errorf(parry.KindNotFound, "there is no token %s", id)
	}
	return ks[0], nil
}

// RevokeToken ends a token for good; its row stays. Revoking twice is no error.
func (s *Store) RevokeToken(ctx context.Context, id parry.TokenID, by string) error {
	return s.write(ctx, "revoke token "+string(id), func(t *tx) error {
		name := ""
		err := t.row(`UPDATE tokens SET revoked_at = CASE WHEN revoked_at = 0 THEN $2 ELSE revoked_at END,
			revoked_by = CASE WHEN revoked_at = 0 THEN $3 ELSE revoked_by END WHERE id = $1 RETURNING name`,
			[]any{string(id), micros(t.now), by}, &name)
		if errors.Is(err, sql.ErrNoRows) {
			return parry.Errorf(parry.KindNotFound, "there is no token %s", id)
		}
		t.audit(parry.ActTokenRevoke, string(id), map[string]string{"name": name})
		return err
	})
}

// SuspendToken takes a token out of use until then, and tells the channels. One that is suspended already, or revoked, stays as it is.
func (s *Store) SuspendToken(ctx context.Context, id parry.TokenID, until time.Time, why string) error {
	why = audit.Plain(why, maxWhy)
	return s.write(ctx, "suspend token "+string(id), func(t *tx) error {
		var name string
		var role parry.Role
		err := t.row(`UPDATE tokens SET suspended_at = $2, suspended_until = $3, suspended_why = $4
			WHERE id = $1 AND revoked_at = 0 AND suspended_until <= $2 RETURNING name, role`,
			[]any{string(id), micros(t.now), micros(until), why}, &name, &role)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		t.auditBy(parry.Itself, parry.ActTokenSuspend, string(id), "done", map[string]any{"name": name, "role": role, "until": auditTime(until), "why": why})
		n, sev := parry.NewNotificationID(t.now), parry.SeverityOf(parry.NotifySuspended)
		return t.enqueue([]parry.Notification{{
			ID: n, Kind: parry.NotifySuspended, Severity: sev, Incident: n, CreatedAt: t.now, Channels: s.channels.To(parry.NotifySuspended, sev),
			Report: parry.Report{By: name, Since: t.now, Until: until, Message: why, Hint: "Find out what made the token ask: a rule of the SIEM, or " +
				"somebody who stole it (then: parry token revoke " + name + "). What a trigger of parry's asked meanwhile waits in its spool. To let it go on now: parry token resume " + name},
		}})
	})
}

const maxWhy = 1024

// ResumeToken puts a suspended token back into use, by its id or name, and gives its id. KindConflict when it is not suspended.
func (s *Store) ResumeToken(ctx context.Context, name, by string) (id parry.TokenID, err error) {
	err = s.write(ctx, "resume token "+name, func(t *tx) error {
		var until int64
		err := t.row(`SELECT id, suspended_until FROM tokens WHERE (id = $1 OR name = $1) AND revoked_at = 0 ORDER BY id = $1 DESC`, []any{name}, &id, &until)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return parry.Errorf(parry.KindNotFound, "there is no valid token %s", name)
		case err != nil:
			return err
		case until <= micros(t.now) && !t.again:
			return parry.Errorf(parry.KindConflict, "the token %s is not suspended", name)
		}
		t.audit(parry.ActTokenResume, string(id), map[string]string{"until": auditTime(fromMicros(until))})
		return t.exec(`UPDATE tokens SET suspended_at = 0, suspended_until = 0, suspended_why = '' WHERE id = $1`, string(id))
	})
	if err == nil {
		s.log.Info("a token was resumed", "token_id", string(id), "by", by)
	}
	return id, err
}

// TouchToken notes that a token was used, to the minute: it writes once in a minute and token, however often it is called.
func (s *Store) TouchToken(ctx context.Context, id parry.TokenID, at time.Time) error {
	minute := at.Truncate(time.Minute)
	s.touchedMu.Lock()
	known := s.touched[id] >= minute.UnixMicro()
	if !known {
		s.touched[id] = minute.UnixMicro()
	}
	s.touchedMu.Unlock()
	if known {
		return nil
	}
	return s.write(ctx, "touch token "+string(id), func(t *tx) error {
		return t.exec(`UPDATE tokens SET last_used = $2 WHERE id = $1 AND last_used < $2`, string(id), micros(minute))
	})
}
