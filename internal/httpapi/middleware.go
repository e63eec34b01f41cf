package httpapi

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/parry"
)

const (
	requestIDKey = "request_id"
	principalKey = "principal"
)

func requestID(c *gin.Context) string { return c.GetString(requestIDKey) }

// principal is who asks, or nil on a public route.
func principal(c *gin.Context) *parry.Principal {
	p, _ := c.Get(principalKey)
	pr, _ := p.(*parry.Principal)
	return pr
}

// observe gives each request an id, a line in the log and its metrics, and keeps a panic to the request that caused it.
func (s *Server) observe(c *gin.Context) {
	start := time.Now() // a duration, so never the injected clock
	id := c.GetHeader("X-Request-Id")
	if !saneID(id) {
		id = strings.TrimPrefix(string(parry.NewRequestID(s.o.Now())), "q-")
	}
	c.Set(requestIDKey, id)
	h := c.Writer.Header()
	h.Set("X-Request-Id", id)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")

	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			err := fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			if c.Writer.Written() {
				s.o.Logger.ErrorContext(c.Request.Context(), "a request failed", "request_id", id, "err", err)
			} else {
				s.fail(c, err)
			}
		}
		took := time.Since(start)
		route := c.FullPath()
		if route == "" {
			route = "unmatched"
		}
		status := c.Writer.Status()
		s.metrics.observe(c.Request.Method, route, status, took)
		attrs := [...]slog.Attr{
			slog.String("request_id", id), slog.String("method", c.Request.Method), slog.String("route", route), slog.Int("status", status),
			slog.Duration("took", took), slog.String("remote", c.ClientIP()), slog.String("token", "-"), slog.String("block_id", ""),
		}
		if pr := principal(c); pr != nil {
			attrs[6] = slog.String("token", pr.Token.Name)
		}
		n := len(attrs) - 1
		if b := c.GetString("block_id"); b != "" {
			attrs[n] = slog.String("block_id", b)
			n++
		}
		s.o.Logger.LogAttrs(c.Request.Context(), slog.LevelInfo, "request", attrs[:n]...)
	}()
	c.Next()
}

// saneID takes ids that are safe in a header, a log and a shell.
func saneID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		switch b := s[i]; {
		case b >= '0' && b <= '9', b >= 'A' && b <= 'Z', b >= 'a' && b <= 'z', b == '-', b == '_', b == '.':
		default:
			return false
		}
	}
	return true
}

// operation is what the document says of the request's route; zero when there is no such route.
func (s *Server) operation(c *gin.Context) operation {
	return s.doc.operations[c.Request.Method+" "+c.FullPath()]
}

// authorize finds out who asks and holds that against the right that the operation needs, then refuses unknown query parameters.
func (s *Server) authorize(c *gin.Context) {
	op := s.operation(c)
	if op.right == "" {
		return // no such route: answered by NoRoute or NoMethod
	}
	if op.right != rightNone {
		pr, err := s.authenticate(c, op)
		if err != nil {
			if k := parry.KindOf(err); k == parry.KindUnauthenticated || k == parry.KindForbidden {
				s.metrics.denied.WithLabelValues(string(k)).Inc()
			}
			s.fail(c, err)
			return
		}
		c.Set(principalKey, pr)
		c.Request = c.Request.WithContext(parry.WithActor(c.Request.Context(), &parry.Actor{
			Name: pr.Token.Name, Token: pr.Token.ID, Role: pr.Token.Role, Remote: s.remote(c), RequestID: requestID(c),
		}))
		if op.right != rightAny && !pr.Can(parry.Right(op.right)) {
			s.metrics.denied.WithLabelValues(string(parry.KindForbidden)).Inc()
			s.fail(c, parry.Errorf(parry.KindForbidden, "this needs the right %s, which the role %s has not", op.right, pr.Token.Role))
			return
		}
	}
	if pr := principal(c); pr != nil && !changesNothing(op.right) {
		if err := suspended(&pr.Token, s.o.Now()); err != nil {
			s.fail(c, err)
			return
		}
	}
	for _, p := range c.Params {
		if !isText(p.Value) {
			s.fail(c, parry.Invalid("{"+p.Key+"}", "this part of the path is no text: write UTF-8 without NUL bytes"))
			return
		}
	}
	if c.Request.URL.RawQuery != "" {
		if err := checkQuery(c.Request.URL.RawQuery, op.query); err != nil {
			s.fail(c, err)
		}
	}
}

// isText tells what every database takes as text; PostgreSQL knows no NUL.
func isText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

func (s *Server) authenticate(c *gin.Context, op operation) (*parry.Principal, error) {
	values := c.Request.Header.Values("Authorization")
	if len(values) == 0 {
		if pr := auth.Local(c.Request.Context()); pr != nil {
			return pr, nil
		}
		values = []string{""}
	}
	if len(values) > 1 {
		return nil, parry.Errorf(parry.KindUnauthenticated, "send one Authorization header")
	}
	if op.right == string(parry.RightFeed) {
		return s.o.Auth.AuthenticateReader(c.Request.Context(), values[0], s.remote(c))
	}
	return s.o.Auth.Authenticate(c.Request.Context(), values[0], s.remote(c))
}

// remote is the caller's address, invalid over the local socket. Only configured proxies are believed about it.
func (s *Server) remote(c *gin.Context) netip.Addr {
	a, _ := netip.ParseAddr(c.ClientIP())
	return a.Unmap().WithZone("")
}

func checkQuery(raw string, known []string) error {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return parry.Invalid("?", "the query is not well-formed: %v", err)
	}
	e := &parry.Error{Kind: parry.KindInvalid, Detail: "the request is not valid"}
	for name, values := range q {
		switch {
		case !slices.Contains(known, name) && len(known) == 0:
			e.Fields = append(e.Fields, parry.FieldError{Pointer: "?" + name, Detail: "unknown parameter; there are none here"})
		case !slices.Contains(known, name):
			e.Fields = append(e.Fields, parry.FieldError{Pointer: "?" + name, Detail: "unknown parameter; there are " + strings.Join(known, ", ")})
		case len(values) > 1:
			e.Fields = append(e.Fields, parry.FieldError{Pointer: "?" + name, Detail: "give it once"})
		case !isText(values[0]):
			e.Fields = append(e.Fields, parry.FieldError{Pointer: "?" + name, Detail: "this is no text: write UTF-8 without NUL bytes"})
		}
	}
	if len(e.Fields) == 0 {
		return nil
	}
	slices.SortFunc(e.Fields, func(a, b parry.FieldError) int { return strings.Compare(a.Pointer, b.Pointer) })
	return e
}

// metrics never have an address, a token or an id as a label.
type metrics struct {
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	denied    *prometheus.CounterVec
	alerts    *prometheus.CounterVec
	grace     prometheus.Counter
	unlisted  *prometheus.CounterVec
}

func newMetrics(r *prometheus.Registry, s *Server) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "parry_http_requests_total", Help: "Requests answered, by route template and status.",
		}, []string{"method", "route", "code"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "parry_http_request_duration_seconds", Help: "How long answering took, waiting included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120},
		}, []string{"method", "route"}),
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "parry_http_denied_total", Help: "Requests without a valid token, or without the right.",
		}, []string{"reason"}),
	}
	m.alerts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "parry_hook_alerts_total", Help: "Alerts that SIEMs sent by themselves, by whether they became a block or why not.",
	}, []string{"hook", "outcome"})
	m.grace = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "parry_blocks_refused_in_grace_total", Help: "Block requests refused because an operator gave their source grace.",
	})
	m.unlisted = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "parry_list_unlisted_total", Help: "Sources of block requests that did not go on their list, which was full or gone.",
	}, []string{"list"})
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "parry_http_waiting_requests", Help: "Requests that wait for a proof."},
		func() float64 { return float64(s.waiters.Load()) })
	for _, c := range []prometheus.Collector{m.requests, m.durations, m.denied, m.grace, m.alerts, m.unlisted, waiting} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) observe(method, route string, status int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodHead, http.MethodOptions:
	default:
		method = "other" // a caller cannot make labels
	}
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	m.durations.WithLabelValues(method, route).Observe(took.Seconds())
}
