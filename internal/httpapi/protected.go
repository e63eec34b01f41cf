package httpapi

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/parry"
)

const (
	insistAfter  = 10 // refusals within insistWithin, and then again at each tenfold
	insistWithin = time.Hour
)

// insisting tells apart the tokens that keep asking for blocks of what is never blocked: a SIEM with a bad rule, or a stolen token. It knows
// only tokens that exist, so that their number bounds it.
type insisting struct {
	refusals prometheus.Counter
	mu       sync.Mutex
	tokens   map[parry.TokenID]*insistence
}

type insistence struct {
	since            time.Time
	refusals, warnAt int
}

func newInsisting(r *prometheus.Registry, now func() time.Time) (*insisting, error) {
	i := &insisting{tokens: map[parry.TokenID]*insistence{}}
	i.refusals = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "parry_http_never_block_refusals_total", Help: "Block requests refused because an exemption protects the source.",
	})
	tokens := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "parry_http_never_block_insisting_tokens", Help: "Tokens that met ten such refusals or more within the hour; the log names them.",
	}, func() float64 { return i.count(now()) })
	for _, c := range []prometheus.Collector{i.refusals, tokens} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// refused counts one refusal, and warns when they become many.
func (i *insisting) refused(ctx context.Context, log *slog.Logger, t *parry.Token, now time.Time) {
	i.refusals.Inc()
	i.mu.Lock()
	defer i.mu.Unlock()
	in := i.tokens[t.ID]
	if in == nil || now.Sub(in.since) >= insistWithin {
		in = &insistence{since: now, warnAt: insistAfter}
		i.tokens[t.ID] = in
	}
	if in.refusals++; in.refusals == in.warnAt {
		in.warnAt *= 10
		log.LogAttrs(ctx, slog.LevelWarn, "a token keeps asking for blocks of what is never blocked", slog.String("token", t.Name),
			slog.String("token_id", string(t.ID)), slog.Int("refusals", in.refusals), slog.Time("since", in.since))
	}
}

func (i *insisting) count(now time.Time) (n float64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for id, in := range i.tokens {
		switch {
		case now.Sub(in.since) >= insistWithin:
			delete(i.tokens, id)
		case in.refusals >= insistAfter:
			n++
		}
	}
	return n
}
