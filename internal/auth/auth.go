package auth

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/parry/parry/internal/parry"
)

// Store is where tokens are.
type Store interface {
	TokenByID(ctx context.Context, id parry.TokenID) (parry.Token, error) // KindNotFound
	TouchToken(ctx context.Context, id parry.TokenID, at time.Time) error
}

// Options of [New]. Store is required.
type Options struct {
	Store    Store
	Rate     func() int             // block requests a minute of a token that has no rate of its own; nil or 0 is no limit
	Total    func() int             // those of all tokens together; nil or 0 is no limit
	CacheFor time.Duration          // how long a token is trusted without a look into the store, and so how late a revocation elsewhere is noticed; 3 s
	Used     func(*parry.Principal) // told of each caller whose token is valid; must be quick. nil: nobody
	Now      func() time.Time       // time.Now
	Logger   *slog.Logger           // slog.Default()
}

// Auth authenticates callers. Safe for concurrent use.
type Auth struct {
	o      Options
	load   singleflight.Group
	touch  chan parry.TokenID
	mu     sync.Mutex
	tokens map[parry.TokenID]*entry // only tokens that exist: its size is bounded by theirs
	total  *rate.Limiter
}

// entry is a token as it was loaded. All but the limiter is never changed.
type entry struct {
	token   parry.Token
	until   time.Time // trusted so long
	limiter *rate.Limiter
}

// New makes an Auth. Run must run for the tokens' last use to be recorded.
func New(o Options) (*Auth, error) {
	if o.Store == nil {
		return nil, errors.New("auth: Options.Store is missing")
	}
	o.CacheFor = cmp.Or(o.CacheFor, 3*time.Second)
	if o.Rate == nil {
		o.Rate = func() int { return 0 }
	}
	if o.Total == nil {
		o.Total = func() int { return 0 }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	return &Auth{o: o, touch: make(chan parry.TokenID, 64), tokens: make(map[parry.TokenID]*entry)}, nil
}

// Run records when tokens were used, to the minute, until ctx ends. A write that fails is logged and left.
func (a *Auth) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case id := <-a.touch:
			if err := a.o.Store.TouchToken(ctx, id, a.o.Now()); err != nil && ctx.Err() == nil {
				a.o.Logger.WarnContext(ctx, "the use of a token was not recorded", "token_id", string(id), "err", err)
			}
		}
	}
}

// NotTaken is the refusal of a token that parry knows.
type NotTaken struct {
	Token  *parry.Token
	Proven bool // the caller holds its secret
	Err    *parry.Error
}

func (e *NotTaken) Error() string { return e.Err.Error() }
func (e *NotTaken) Unwrap() error { return e.Err }

func unauthenticated(format string, args ...any) error {
	return parry.Errorf(parry.KindUnauthenticated, format, args...)
}

// Authenticate reads an Authorization header's value. Whoever does not hold the secret learns only that the token is not valid.
func (a *Auth) Authenticate(ctx context.Context, header string, remote netip.Addr) (*parry.Principal, error) {
	if header == "" {
		return nil, unauthenticated("this needs a token: send the header Authorization: Bearer parry_…")
	}
	scheme, text, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return nil, unauthenticated("only the scheme Bearer is known: send the header Authorization: Bearer parry_…")
	}
	return a.authenticate(ctx, text, remote, a.entry)
}

// AuthenticateReader is Authenticate for firewalls that fetch a list. It takes HTTP basic authentication too, which is all that many of them
// know: the password is the token, the user anything. While the store cannot be asked it believes what it was told last, because some
// firewalls stop blocking altogether when they are refused.
func (a *Auth) AuthenticateReader(ctx context.Context, header string, remote netip.Addr) (*parry.Principal, error) {
	if header == "" {
		return nil, unauthenticated("this needs a token: as the password of HTTP basic authentication, or in the header Authorization: Bearer parry_…")
	}
	scheme, text, _ := strings.Cut(header, " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
	case strings.EqualFold(scheme, "Basic"):
		b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
		_, password, ok := strings.Cut(string(b), ":")
		if err != nil || !ok {
			return nil, unauthenticated("the basic authentication is not well-formed: give any user, and the token as the password")
		}
		text = password
	default:
		return nil, unauthenticated("only the schemes Basic and Bearer are known here")
	}
	return a.authenticate(ctx, text, remote, func(ctx context.Context, id parry.TokenID) (*entry, error) {
		a.mu.Lock()
		last := a.tokens[id]
		a.mu.Unlock()
		e, err := a.entry(ctx, id)
		if err != nil && last != nil && ctx.Err() == nil && parry.KindOf(err) != parry.KindNotFound {
			return last, nil
		}
		return e, err
	})
}

// authenticate holds a token's text against the entry that find gives.
func (a *Auth) authenticate(ctx context.Context, text string, remote netip.Addr, find func(context.Context, parry.TokenID) (*entry, error)) (*parry.Principal, error) {
	id, secret, err := parse(strings.TrimSpace(text))
	if err != nil {
		return nil, unauthenticated("%s", err)
	}
	e, err := find(ctx, id)
	if parry.KindOf(err) == parry.KindNotFound {
		return nil, unauthenticated("the token is not valid")
	} else if err != nil {
		return nil, fmt.Errorf("look up token %s: %w", id, err)
	}
	hash := sha256.Sum256([]byte(secret))
	t := &e.token
	no := func(proven bool, k parry.Kind, format string, args ...any) (*parry.Principal, error) {
		return nil, &NotTaken{t, proven, parry.Errorf(k, format, args...)}
	}
	switch now := a.o.Now(); {
	case subtle.ConstantTimeCompare(hash[:], t.Hash[:]) != 1:
		return no(false, parry.KindUnauthenticated, "the token is not valid")
	case !t.RevokedAt.IsZero():
		return no(true, parry.KindUnauthenticated, "the token was revoked")
	case !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt):
		return no(true, parry.KindUnauthenticated, "the token expired at %s", t.ExpiresAt.UTC().Format(time.RFC3339))
	case len(t.Sources) > 0 && !slices.ContainsFunc(t.Sources, func(p netip.Prefix) bool { return p.Contains(remote) }):
		return no(true, parry.KindForbidden, "the token may not be used from %s", remote)
	}
	pr := &parry.Principal{Token: *t, Remote: remote}
	if a.o.Used != nil {
		a.o.Used(pr)
	}
	return pr, nil
}

// entry gives a token from the cache, or loads it once for all who wait for it.
func (a *Auth) entry(ctx context.Context, id parry.TokenID) (*entry, error) {
	a.mu.Lock()
	e := a.tokens[id]
	a.mu.Unlock()
	if e != nil && a.o.Now().Before(e.until) {
		return e, nil
	}
	got := a.load.DoChan(string(id), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return a.reload(ctx, id)
	})
	select {
	case r := <-got:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*entry), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *Auth) reload(ctx context.Context, id parry.TokenID) (*entry, error) {
	now := a.o.Now()
	t, err := a.o.Store.TokenByID(ctx, id)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case parry.KindOf(err) == parry.KindNotFound:
		delete(a.tokens, id)
		return nil, err
	case err != nil:
		return nil, err
	}
	e := &entry{token: t, until: now.Add(a.o.CacheFor)}
	if perMinute := cmp.Or(t.Rate, a.o.Rate()); perMinute > 0 {
		limit := rate.Limit(float64(perMinute) / 60)
		if old := a.tokens[id]; old != nil && old.limiter != nil && old.limiter.Limit() == limit {
			e.limiter = old.limiter
		} else {
			e.limiter = rate.NewLimiter(limit, perMinute)
		}
	}
	a.tokens[id] = e
	if now.Sub(t.LastUsed) >= time.Minute {
		select {
		case a.touch <- id:
		default: // next time
		}
	}
	return e, nil
}

// Allow counts one block request against the principal's rate, then against that of all; a refusal is rate-limited and says when to come back.
// Root at the local socket has no rate.
func (a *Auth) Allow(pr *parry.Principal) error {
	if pr.Token.ID == "" {
		return nil
	}
	a.mu.Lock()
	e, total := a.tokens[pr.Token.ID], a.totalLimiter()
	a.mu.Unlock()
	now := a.o.Now()
	var own *rate.Reservation
	if e != nil && e.limiter != nil {
		own = e.limiter.ReserveN(now, 1)
		if wait := own.DelayFrom(now); wait > 0 {
			own.CancelAt(now)
			return tooMany(wait, "the token %s may ask for %d blocks a minute", pr.Token.Name, e.limiter.Burst())
		}
	}
	if total == nil {
		return nil
	}
	all := total.ReserveN(now, 1)
	if wait := all.DelayFrom(now); wait > 0 {
		all.CancelAt(now)
		if own != nil {
			own.CancelAt(now)
		}
		return tooMany(wait, "all tokens together may ask for %d blocks a minute", total.Burst())
	}
	return nil
}

func tooMany(wait time.Duration, format string, args ...any) error {
	err := parry.Errorf(parry.KindRateLimited, format, args...)
	err.RetryAfter = wait
	return err
}

// totalLimiter follows the configuration. The caller holds mu.
func (a *Auth) totalLimiter() *rate.Limiter {
	perMinute := a.o.Total()
	switch limit := rate.Limit(float64(perMinute) / 60); {
	case perMinute <= 0:
		a.total = nil
	case a.total == nil || a.total.Limit() != limit:
		a.total = rate.NewLimiter(limit, perMinute)
	}
	return a.total
}

// Forget drops a token from the cache, so that its revocation takes effect at once.
func (a *Auth) Forget(id parry.TokenID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tokens, id)
	a.load.Forget(string(id))
}
