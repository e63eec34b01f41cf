package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

// Kinds that only HTTP has.
const (
	kindMethod    parry.Kind = "method-not-allowed"
	kindTooLarge  parry.Kind = "too-large"
	kindMediaType parry.Kind = "unsupported-media-type"
)

const (
	jsonType    = "application/json"
	problemType = "application/problem+json"

	statusClientGone = 499 // nginx's; only ever in the log and the metrics
)

var kinds = map[parry.Kind]struct {
	status int
	title  string
}{
	parry.KindInvalid:         {http.StatusBadRequest, "The request is not valid"},
	parry.KindUnauthenticated: {http.StatusUnauthorized, "Not authenticated"},
	parry.KindForbidden:       {http.StatusForbidden, "Not allowed"},
	parry.KindNotFound:        {http.StatusNotFound, "Not found"},
	kindMethod:                {http.StatusMethodNotAllowed, "Method not allowed"},
	parry.KindConflict:        {http.StatusConflict, "Conflict"},
	kindTooLarge:              {http.StatusRequestEntityTooLarge, "The body is too large"},
	kindMediaType:             {http.StatusUnsupportedMediaType, "Unsupported media type"},
	parry.KindRefused:         {http.StatusUnprocessableEntity, "Refused by policy"},
	parry.KindRateLimited:     {http.StatusTooManyRequests, "Too many requests"},
	parry.KindInternal:        {http.StatusInternalServerError, "Internal error"},
	parry.KindUnavailable:     {http.StatusServiceUnavailable, "Not available now"},
}

// fail answers with a problem document and ends the chain. The cause of an internal error, and a cause that an error hides, is logged here
// and nowhere else.
func (s *Server) fail(c *gin.Context, err error) {
	ctx := c.Request.Context()
	var e *parry.Error
	switch {
	case errors.As(err, &e) && e.Kind != parry.KindInternal:
		switch {
		case errors.Is(e.Err, parry.ErrGrace):
			s.metrics.grace.Inc()
			s.o.Logger.InfoContext(ctx, "a request was refused: its source has been given grace", "request_id", requestID(c), "why", e.Detail)
		case e.Err != nil:
			s.o.Logger.WarnContext(ctx, "a request met an error", "request_id", requestID(c), "kind", string(e.Kind), "err", err)
		}
	case ctx.Err() != nil: // the caller went away: nobody reads the answer
		c.AbortWithStatus(statusClientGone)
		return
	case errors.Is(err, context.DeadlineExceeded):
		s.o.Logger.LogAttrs(ctx, slog.LevelError, "a request took too long", slog.String("request_id", requestID(c)), slog.Any("err", err))
		e = parry.Errorf(parry.KindUnavailable, "the service is too slow now; try again")
		e.RetryAfter = time.Second
	default:
		s.o.Logger.LogAttrs(ctx, slog.LevelError, "a request failed", slog.String("request_id", requestID(c)), slog.Any("err", err))
		e = parry.Errorf(parry.KindInternal, "the cause is in the service's log under this request_id")
	}
	s.refused(c, e, err)
	k, ok := kinds[e.Kind]
	if !ok {
		k = kinds[parry.KindInternal]
	}
	p := api.Problem{
		Type: "urn:parry:problem:" + string(e.Kind), Title: k.title, Status: k.status, Detail: e.Detail, RequestID: requestID(c),
	}
	for _, f := range e.Fields {
		p.Errors = append(p.Errors, api.FieldProblem{Pointer: f.Pointer, Detail: f.Detail})
	}
	h := c.Writer.Header()
	switch e.Kind {
	case parry.KindUnauthenticated:
		h.Set("WWW-Authenticate", `Bearer realm="parry"`)
		if s.operation(c).right == string(parry.RightFeed) {
			h.Add("WWW-Authenticate", `Basic realm="parry", charset="UTF-8"`)
		}
	case parry.KindRateLimited, parry.KindUnavailable:
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(max(e.RetryAfter, time.Second).Seconds()))))
	}
	c.Abort()
	s.write(c, k.status, problemType, p)
}

// answer writes JSON.
func (s *Server) answer(c *gin.Context, status int, v any) { s.write(c, status, jsonType, v) }

func (s *Server) write(c *gin.Context, status int, contentType string, v any) {
	b, err := json.Marshal(v) // escapes <, > and &, so that nothing in it can be taken for HTML
	if err != nil {
		s.o.Logger.ErrorContext(c.Request.Context(), "an answer could not be written as JSON", "request_id", requestID(c), "err", err)
		c.AbortWithStatus(http.StatusInternalServerError)
		return
	}
	c.Data(status, contentType, append(b, '\n'))
}

// badParameter answers when the generated router could not read a parameter.
func (s *Server) badParameter(c *gin.Context, err error, _ int) {
	name, what := "", err.Error()
	for _, lead := range []string{"Invalid format for parameter ", "Expected one value for ", "Query argument "} {
		if rest, ok := strings.CutPrefix(what, lead); ok {
			name = strings.TrimRight(rest[:strings.IndexAny(rest+" ", " :,")], ":,")
			break
		}
	}
	pointer := "?" + name
	if name == "Idempotency-Key" {
		pointer = name
	}
	detail := "this is not what the parameter takes"
	switch {
	case strings.HasPrefix(what, "Query argument "):
		detail = "this parameter is required"
	case strings.HasPrefix(what, "Expected one value"), strings.Contains(what, "multiple values"):
		detail = "give it once"
	}
	s.fail(c, parry.Invalid(pointer, "%s", detail))
}
