package httpapi

import (
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

// An exemption wider than this would end nearly everything that stands, and is more likely a slip.
const (
	minExemptV4 = 8
	minExemptV6 = 7 // fc00::/7 is one
)

func presentExemption(x *parry.Exemption) api.Exemption {
	return api.Exemption{
		ID: string(x.ID), Prefix: parry.FormatPrefix(x.Prefix), Reason: x.Reason, Source: api.ExemptionSource(x.Source), CreatedBy: x.CreatedBy,
		CreatedAt: utc(x.CreatedAt), ExpiresAt: utc(x.ExpiresAt),
	}
}

func (s *Server) ListExemptions(c *gin.Context) {
	now := s.o.Now()
	all, err := s.o.Store.Exemptions(c.Request.Context()) // those made by request, whichever replica took them
	if err != nil {
		s.fail(c, err)
		return
	}
	for _, x := range s.o.Policy.All() {
		if x.Source != parry.ExemptAPI {
			all = append(all, x)
		}
	}
	out := api.ExemptionList{Items: []api.Exemption{}}
	for i := range all {
		if all[i].ExpiresAt.IsZero() || now.Before(all[i].ExpiresAt) {
			out.Items = append(out.Items, presentExemption(&all[i]))
		}
	}
	s.answer(c, http.StatusOK, out)
}

var exemptionFields = []field[api.ExemptionRequest]{
	{"prefix", func(r *api.ExemptionRequest, v value) { r.Prefix = v.word() }},
	{"reason", func(r *api.ExemptionRequest, v value) { r.Reason = v.word() }},
	{"ttl", func(r *api.ExemptionRequest, v value) { r.TTL = v.duration() }},
	{"expires_at", func(r *api.ExemptionRequest, v value) { r.ExpiresAt = v.time() }},
}

// CreateExemption adds to the never-block list: first here, so that nothing more is admitted against it, then in the store, which ends
// what overlaps it in the same transaction.
func (s *Server) CreateExemption(c *gin.Context) {
	var req api.ExemptionRequest
	if err := decode(s, c, &req, exemptionFields, true); err != nil {
		s.fail(c, err)
		return
	}
	now := s.o.Now()
	x := parry.Exemption{
		ID: parry.NewExemptionID(now), Reason: req.Reason, Source: parry.ExemptAPI, CreatedBy: principal(c).Token.Name, CreatedAt: now,
	}
	var wrong problems
	var err error
	if x.Prefix, err = parsePrefix(req.Prefix); err != nil {
		wrong.add("/prefix", "%s", err)
	} else if least := minExempt(x); x.Prefix.Bits() < least {
		wrong.add("/prefix", "%s is wider than /%d: give narrower prefixes, one by one", x.Prefix, least)
	}
	if x.ExpiresAt, err = lifetime(req.TTL, now); err != nil {
		wrong.add("/ttl", "%s", err)
	}
	switch at := req.ExpiresAt; {
	case at.IsZero():
	case req.TTL != "":
		wrong.add("/expires_at", "give either ttl or expires_at")
	case !at.After(now):
		wrong.add("/expires_at", "%s is not in the future", at.Format(time.RFC3339))
	default:
		x.ExpiresAt = at
	}
	if err := wrong.err(); err != nil {
		s.fail(c, err)
		return
	}
	s.o.Policy.Add(x)
	ended, err := s.o.Store.AddExemption(c.Request.Context(), x)
	if err != nil {
		s.o.Policy.Remove(x.ID)
		s.fail(c, err)
		return
	}
	out := api.CreatedExemption{Exemption: presentExemption(&x), EndedBlocks: make([]string, len(ended))}
	for i, id := range ended {
		out.EndedBlocks[i] = string(id)
	}
	s.answer(c, http.StatusCreated, out)
}

func minExempt(x parry.Exemption) int {
	if x.Prefix.Addr().Is4() {
		return minExemptV4
	}
	return minExemptV6
}

func (s *Server) DeleteExemption(c *gin.Context, id string) {
	if kind, _, ok := strings.Cut(id, ":"); ok {
		where := map[string]string{
			"cfg": "it comes from the configuration: take it out there", "special": "special ranges are never blocked",
			"found": "it was found, and goes when what it was found on goes",
		}[kind]
		if where != "" {
			s.fail(c, parry.Errorf(parry.KindConflict, "the exemption %s cannot be taken out by request: %s", cut(id, 128), where))
			return
		}
	}
	if err := s.o.Store.RemoveExemption(c.Request.Context(), parry.ExemptionID(id), principal(c).Token.Name); err != nil {
		s.fail(c, err)
		return
	}
	s.o.Policy.Remove(parry.ExemptionID(id))
	c.Status(http.StatusNoContent)
	c.Writer.WriteHeaderNow()
}

// lifetime reads the optional ttl of something that may last for ever: the zero time.
func lifetime(ttl string, now time.Time) (time.Time, error) {
	if ttl == "" {
		return time.Time{}, nil
	}
	d, without, err := parseTTL(ttl)
	if err != nil || without {
		return time.Time{}, err
	}
	return now.Add(d), nil
}
