package httpapi

import (
	"fmt"
	"net/http"
	"net/netip"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/parry"
)

func presentToken(t *parry.Token) api.Token {
	out := api.Token{
		ID: string(t.ID), Name: t.Name, Role: api.Role(t.Role), CreatedBy: t.CreatedBy, CreatedAt: t.CreatedAt.UTC(), ExpiresAt: utc(t.ExpiresAt),
		RevokedAt: utc(t.RevokedAt), LastUsed: utc(t.LastUsed), Sources: prefixes(t.Sources), Firewalls: t.Firewalls, Rate: t.Rate,
	}
	if !t.SuspendedUntil.IsZero() {
		out.SuspendedAt, out.SuspendedUntil, out.SuspendedWhy = utc(t.SuspendedAt), utc(t.SuspendedUntil), t.SuspendedWhy
	}
	if t.MaxTTL > 0 {
		out.MaxTTL = parry.FormatTTL(t.MaxTTL)
	}
	return out
}

func prefixes(ps []netip.Prefix) []string {
	var out []string
	for _, p := range ps {
		out = append(out, parry.FormatPrefix(p))
	}
	return out
}

func (s *Server) ListTokens(c *gin.Context) {
	all, err := s.o.Store.Tokens(c.Request.Context())
	if err != nil {
		s.fail(c, err)
		return
	}
	out := api.TokenList{Items: make([]api.Token, len(all))}
	for i := range all {
		out.Items[i] = presentToken(&all[i])
	}
	s.answer(c, http.StatusOK, out)
}

var tokenFields = []field[api.TokenRequest]{
	{"name", func(r *api.TokenRequest, v value) { r.Name = v.word() }},
	{"role", func(r *api.TokenRequest, v value) { r.Role = api.Role(v.word()) }},
	{"ttl", func(r *api.TokenRequest, v value) { r.TTL = v.duration() }},
	{"sources", func(r *api.TokenRequest, v value) { r.Sources = v.strs() }},
	{"firewalls", func(r *api.TokenRequest, v value) { r.Firewalls = v.strs() }},
	{"max_ttl", func(r *api.TokenRequest, v value) { r.MaxTTL = v.duration() }},
	{"rate", func(r *api.TokenRequest, v value) { r.Rate = v.integer() }},
}

// CreateToken makes a token. Its secret is in this answer and nowhere else.
func (s *Server) CreateToken(c *gin.Context) {
	var req api.TokenRequest
	if err := decode(s, c, &req, tokenFields, true); err != nil {
		s.fail(c, err)
		return
	}
	now := s.o.Now()
	t := parry.Token{
		ID: parry.NewTokenID(now), Name: req.Name, Role: parry.Role(req.Role), CreatedBy: principal(c).Token.Name, CreatedAt: now,
		Firewalls: req.Firewalls, Rate: req.Rate,
	}
	var wrong problems
	var err error
	if t.Name == auth.LocalName || t.Name == parry.ActorName {
		wrong.add("/name", "this is the name of root at the local socket, or parry's own: take another")
	} else if err := checkName(t.Name, true, "_.@-"); err != nil {
		wrong.add("/name", "%s", err)
	}
	if t.ExpiresAt, err = lifetime(req.TTL, now); err != nil {
		wrong.add("/ttl", "%s", err)
	}
	if req.MaxTTL != "" {
		if t.MaxTTL, err = parry.ParseTTL(req.MaxTTL); err != nil {
			wrong.add("/max_ttl", "%s", err)
		}
	}
	for i, src := range req.Sources {
		p, err := parsePrefix(src)
		if err != nil {
			wrong.add(fmt.Sprintf("/sources/%d", i), "%s", err)
		}
		t.Sources = append(t.Sources, p)
	}
	for i, name := range req.Firewalls {
		err := checkName(name, false, "-")
		if err == nil {
			err = s.o.Fleet().Check(parry.Selector(name))
		}
		if err != nil {
			wrong.add(fmt.Sprintf("/firewalls/%d", i), "%s", err)
		}
	}
	if err := wrong.err(); err != nil {
		s.fail(c, err)
		return
	}
	secret, hash := auth.Mint(t.ID)
	t.Hash = hash
	if err := s.o.Store.CreateToken(c.Request.Context(), t); err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusCreated, api.CreatedToken{Token: presentToken(&t), Secret: secret})
}

// ResumeToken puts a suspended token back into use; here at once, on other replicas within seconds.
func (s *Server) ResumeToken(c *gin.Context, id string) {
	found, err := s.o.Store.ResumeToken(c.Request.Context(), id, principal(c).Token.Name)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.o.Auth.Forget(found)
	c.Status(http.StatusNoContent)
	c.Writer.WriteHeaderNow()
}

func (s *Server) RevokeToken(c *gin.Context, id string) {
	if err := s.o.Store.RevokeToken(c.Request.Context(), parry.TokenID(id), principal(c).Token.Name); err != nil {
		s.fail(c, err)
		return
	}
	s.o.Auth.Forget(parry.TokenID(id))
	c.Status(http.StatusNoContent)
	c.Writer.WriteHeaderNow()
}
