package httpapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

const (
	maxWait        = 2 * time.Minute
	defaultWaiters = 256
	answerWithin   = 15 * time.Second // for writing an answer after a wait
	lookAgain      = time.Second      // Server.lookAgain
)

// waiting is one request's place among those that wait. The nil waiting does not wait.
type waiting struct {
	s       *Server
	applied <-chan struct{}
	until   time.Time
	leave   context.CancelFunc
}

// beginWait takes a place, before anything is changed. There is a bounded number of them: whoever comes when all are taken looks once. The
// caller must call end.
func (s *Server) beginWait(c *gin.Context, param string) (*waiting, error) {
	if param == "" {
		return nil, nil
	}
	d, err := parry.ParseTTL(param)
	if err != nil || d > maxWait {
		return nil, parry.Invalid("?wait", "write a duration up to %s, such as 30s", parry.FormatTTL(maxWait))
	}
	places := int64(s.o.Settings().Waiters)
	if places <= 0 {
		places = defaultWaiters
	}
	if s.waiters.Add(1) > places {
		d = 0
	}
	ctx, cancel := context.WithDeadline(c.Request.Context(), time.Now().Add(d))
	rc := http.NewResponseController(c.Writer)
	if err := rc.SetWriteDeadline(time.Now().Add(d + answerWithin)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		cancel()
		s.waiters.Add(-1)
		return nil, err
	}
	return &waiting{s: s, applied: s.o.Store.Applied(ctx), until: time.Now().Add(d), leave: cancel}, nil
}

func (w *waiting) end() {
	if w != nil {
		w.leave()
		w.s.waiters.Add(-1)
	}
}

// settle looks at a block until every firewall in scope has proved it, rejects it, is held or is failing, the wait is over, or the server
// drains. ok is false when a firewall was still at work on it.
func (w *waiting) settle(ctx context.Context, id parry.BlockID) (b api.Block, ok bool, err error) {
	over := time.NewTimer(time.Until(w.until))
	defer over.Stop()
	again := time.NewTicker(w.s.lookAgain)
	defer again.Stop()
	for last := false; ; {
		block, err := w.s.o.Store.Block(ctx, id)
		if err != nil {
			return b, false, err
		}
		shown, err := w.s.show(ctx, block)
		if err != nil {
			return b, false, err
		}
		if ok = settled(&shown[0]); ok || last {
			return shown[0], ok, nil
		}
		select {
		case <-w.applied:
		case <-again.C:
		case <-over.C:
			last = true
		case <-w.s.draining:
			last = true
		case <-ctx.Done():
			return b, false, ctx.Err()
		}
	}
}
