package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/parry/parry/internal/parry"
)

const tokenColumns = `id, name, role, hash, created_by, created_at, expires_at, revoked_at, last_used, sources, firewalls, max_ttl, rate`

func scanToken(r *sql.Rows) (k parry.Token, err error) {
	var hash []byte
	var created, expires, revoked, used, ttl int64
	var sources, firewalls string
	err = r.Scan(&k.ID, &k.Name, &k.Role, &hash, &k.CreatedBy, &created, &expires, &revoked, &used, &sources, &firewalls, &ttl, &k.Rate)
	if err != nil {
		return k, err
	}
	if copy(k.Hash[:], hash) != len(k.Hash) {
		return k, fmt.Errorf("token %s: its hash is cut short", k.ID)
	}
	k.CreatedAt, k.ExpiresAt, k.RevokedAt, k.LastUsed = fromMicros(created), fromMicros(expires), fromMicros(revoked), fromMicros(used)
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
		return t.exec(`INSERT INTO tokens (`+tokenColumns+`, revoked_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, '')`,
			string(k.ID), k.Name, string(k.Role), k.Hash[:], k.CreatedBy, micros(k.CreatedAt), micros(k.ExpiresAt), micros(k.RevokedAt),
			micros(k.LastUsed), strings.Join(sources, ","), strings.Join(k.Firewalls, " "), k.MaxTTL.Microseconds(), int64(k.Rate))
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
