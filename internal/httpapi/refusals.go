package httpapi

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/parry"
)

// refusalsWithin is how long refusals of a token and kind are summed up.
const refusalsWithin = time.Minute

// refusals gathers what was refused, for the audit: of each token and kind the first is written at once, and what follows within a minute as one row,
// so that a flood neither fills the disk nor slows accepts. It knows only tokens that exist, so that their number bounds it. What has been gathered is
// lost when parry is killed.
type refusals struct {
	mu   sync.Mutex
	sums map[refusalKey]*refusalSum
	poke chan struct{} // buffered 1
}

type refusalKey struct {
	token parry.TokenID // empty: root at the socket
	kind  parry.Kind
}

// refusalSum is what has come since the last row; who and what are the last one's.
type refusalSum struct {
	by          *parry.Actor
	object      string
	detail      string
	count       int64
	first, last time.Time
	written     time.Time
}

// refused notes a refusal that an auditor wants to know of: by right, policy or rate, or with a token that parry knows and does not take.
func (s *Server) refused(c *gin.Context, e *parry.Error, err error) {
	key := refusalKey{kind: e.Kind}
	by := parry.ActorOf(c.Request.Context())
	switch e.Kind {
	case parry.KindForbidden, parry.KindRefused, parry.KindRateLimited, parry.KindUnauthenticated:
	default:
		return
	}
	detail := e.Detail
	for i := range e.Fields {
		detail += "; " + e.Fields[i].Pointer + ": " + e.Fields[i].Detail
	}
	var no *auth.NotTaken
	switch pr := principal(c); {
	case pr != nil:
		key.token = pr.Token.ID
	case errors.As(err, &no):
		key.token = no.Token.ID
		by = &parry.Actor{Name: no.Token.Name, Token: no.Token.ID, Role: no.Token.Role, Remote: s.remote(c), RequestID: requestID(c)}
		if !no.Proven { // whoever that was, it was not shown to be this token's holder
			by.Name, by.Token, by.Role = "-", "", ""
			detail = "of token " + no.Token.Name + ", " + string(no.Token.ID) + ": " + detail
		}
	default:
		return
	}
	r, now := &s.refusals, s.o.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := r.sums[key]
	if sum == nil {
		sum = &refusalSum{}
		r.sums[key] = sum
	}
	if sum.count++; sum.count == 1 {
		sum.first = now
	}
	sum.by, sum.object, sum.detail, sum.last = by, c.Request.Method+" "+c.FullPath(), detail, now
	if now.Sub(sum.written) >= refusalsWithin {
		select {
		case r.poke <- struct{}{}:
		default:
		}
	}
}

// due takes what is to be written; all of it at the end.
func (r *refusals) due(now time.Time, all bool) (events []parry.AuditEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, sum := range r.sums {
		if over := now.Sub(sum.written) >= refusalsWithin; !over && !all {
			continue
		} else if sum.count == 0 {
			if over {
				delete(r.sums, key)
			}
			continue
		}
		events = append(events, parry.AuditEvent{Actor: sum.by, Action: parry.ActRefusal, Object: sum.object, Outcome: string(key.kind), Detail: struct {
			Count int64  `json:"count"`
			Since string `json:"since,omitempty"`
			Until string `json:"until,omitempty"`
			Last  string `json:"last"` // what the last one was told
		}{sum.count, audit.FormatTime(sum.first), audit.FormatTime(sum.last), audit.Plain(sum.detail, 512)}})
		sum.count, sum.written = 0, now
	}
	return events
}

// Run writes refusals into the audit until ctx ends, and what is left then.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(refusalsWithin / 6)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		case <-s.refusals.poke:
		}
		if events := s.refusals.due(s.o.Now(), ended); len(events) > 0 {
			wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			if err := s.o.Store.Audit(wctx, events...); err != nil {
				s.o.Logger.ErrorContext(ctx, "write refusals into the audit", "rows", len(events), "err", err)
			}
			cancel()
		}
	}
	return nil
}
