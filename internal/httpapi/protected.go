package httpapi

import (
	"cmp"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/parry"
)

const (
	insistAfter  = 10 // refusals, and then again at each tenfold
	insistWithin = time.Hour
)

// insisting tells apart the tokens that keep asking for blocks of what is never blocked: a SIEM with a bad rule, or a stolen token. It knows
// only tokens that exist, so that their number bounds it. Each replica counts for itself.
//
// A token is suspended when its refusals are many and more than half of what it asks for. A SIEM whose bad rule is one of many goes on, for each
// real block that waits is an attacker let in; and since what a suspended token is answered has parry's triggers wait, nothing is lost.
type insisting struct {
	refusals prometheus.Counter
	within   func() time.Duration
	mu       sync.Mutex
	tokens   map[parry.TokenID]*insistence
}

type insistence struct {
	since                   time.Time
	asked, refusals, warnAt int
}

func newInsisting(r *prometheus.Registry, now func() time.Time, within func() time.Duration) (*insisting, error) {
	i := &insisting{tokens: map[parry.TokenID]*insistence{}, within: within}
	i.refusals = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "parry_http_never_block_refusals_total", Help: "Block requests refused because an exemption protects the source.",
	})
	tokens := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "parry_http_never_block_insisting_tokens", Help: "Tokens that met ten such refusals or more within limits.suspend.within; the log names them.",
	}, func() float64 { return i.count(now()) })
	for _, c := range []prometheus.Collector{i.refusals, tokens} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// asked counts a request, before it is known what comes of it.
func (i *insisting) asked(t *parry.Token, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	in := i.tokens[t.ID]
	if in == nil || now.Sub(in.since) >= i.within() {
		in = &insistence{since: now, warnAt: insistAfter}
		i.tokens[t.ID] = in
	}
	in.asked++
}

// refused counts one of them as refused. It tells when that is to be warned of, and whether the token is to be suspended after so many; then the
// count begins anew.
func (i *insisting) refused(t *parry.Token, after int) (sum insistence, warn, suspend bool) {
	i.refusals.Inc()
	i.mu.Lock()
	defer i.mu.Unlock()
	in := i.tokens[t.ID]
	if in == nil { // suspended at this moment
		return sum, false, false
	}
	if in.refusals++; in.refusals == in.warnAt {
		in.warnAt *= 10
		warn = true
	}
	if after > 0 && t.ID != "" && in.refusals >= after && 2*in.refusals > in.asked {
		delete(i.tokens, t.ID)
		suspend = true
	}
	return *in, warn, suspend
}

func (i *insisting) count(now time.Time) (n float64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for id, in := range i.tokens {
		switch {
		case now.Sub(in.since) >= i.within():
			delete(i.tokens, id)
		case in.refusals >= insistAfter:
			n++
		}
	}
	return n
}

// insisted notes that the caller asked for a block of what is never blocked; what says what that was.
func (s *Server) insisted(c *gin.Context, what string, now time.Time) {
	ctx, t, set := c.Request.Context(), &principal(c).Token, s.o.Settings().Suspend
	sum, warn, suspend := s.insist.refused(t, set.After)
	if warn {
		s.o.Logger.LogAttrs(ctx, slog.LevelWarn, "a token keeps asking for blocks of what is never blocked", slog.String("token", t.Name),
			slog.String("token_id", string(t.ID)), slog.Int("refusals", sum.refusals), slog.Int("requests", sum.asked), slog.Time("since", sum.since))
	}
	if !suspend {
		return
	}
	until := now.Add(set.For)
	why := fmt.Sprintf("%d of its %d block requests since %s were for what is never blocked, the last from %s: %s", sum.refusals, sum.asked,
		sum.since.UTC().Format(time.RFC3339), cmp.Or(addr(s.remote(c)), "the local socket"), what)
	if err := s.o.Store.SuspendToken(ctx, t.ID, until, why); err != nil { // the count begins anew, so the next ones do it
		s.o.Logger.LogAttrs(ctx, slog.LevelError, "suspend a token", slog.String("token", t.Name), slog.Any("err", err))
		return
	}
	s.o.Auth.Forget(t.ID)
	s.o.Logger.LogAttrs(ctx, slog.LevelError, "a token is suspended", slog.String("token", t.Name), slog.String("token_id", string(t.ID)),
		slog.Time("until", until), slog.String("why", why))
}

// retrySuspended is when a suspended caller is to come back at the latest: an operator may have put it back into use.
const retrySuspended = time.Minute

// suspended refuses a token that is. The kind has triggers keep what they have.
func suspended(t *parry.Token, now time.Time) error {
	if !t.Suspended(now) {
		return nil
	}
	e := parry.Errorf(parry.KindRateLimited, "the token %s is suspended until %s: %s. Nothing of this was taken; come back with it. An operator ends it with: parry token resume %s",
		t.Name, t.SuspendedUntil.UTC().Format(time.RFC3339), t.SuspendedWhy, t.Name)
	e.RetryAfter = min(t.SuspendedUntil.Sub(now), retrySuspended)
	return e
}

// changesNothing tells whether an operation's right lets nobody change anything.
func changesNothing(right string) bool { return right == rightAny || parry.Right(right).Reads() }
