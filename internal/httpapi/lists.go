package httpapi

import (
	"cmp"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/parry"
)

func presentList(l *lists.Info) api.ActiveList {
	out := api.ActiveList{
		Name: l.Name, Type: api.ListType(l.Type), TTL: presentTTL(l.TTL), MaxTTL: presentTTL(l.MaxTTL), Refresh: string(l.Refresh), Capacity: l.Capacity,
		Entries: l.Entries, Comment: l.Comment, Subdomains: l.Subdomains, Source: api.ActiveListSource(l.Source), CreatedBy: l.CreatedBy,
		CreatedAt: utc(l.CreatedAt), Blocks: api.ListPolicy{Instead: l.Policy.Instead},
	}
	if l.Policy.TTL > 0 {
		out.Blocks.TTL = parry.FormatTTL(l.Policy.TTL)
	}
	if l.OnHit.Syslog {
		out.OnHit = api.ListOnHit{Syslog: true, Every: parry.FormatTTL(l.OnHit.Every)}
	}
	return out
}

// presentTTL writes a lifetime, 0 being without end.
func presentTTL(d time.Duration) string {
	if d == 0 {
		return noEnd
	}
	return parry.FormatTTL(d)
}

func (s *Server) ListLists(c *gin.Context) {
	out := api.ActiveLists{Items: []api.ActiveList{}}
	for _, l := range s.o.Lists.All() {
		out.Items = append(out.Items, presentList(&l))
	}
	s.answer(c, http.StatusOK, out)
}

func (s *Server) GetList(c *gin.Context, name string) {
	l, err := s.o.Lists.Get(name)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, presentList(&l))
}

var onHitFields = []field[api.ListOnHit]{
	{"syslog", func(r *api.ListOnHit, v value) { r.Syslog = v.boolean() }},
	{"every", func(r *api.ListOnHit, v value) { r.Every = v.duration() }},
}

var listFields = []field[api.ActiveListRequest]{
	{"name", func(r *api.ActiveListRequest, v value) { r.Name = v.word() }},
	{"type", func(r *api.ActiveListRequest, v value) { r.Type = api.ListType(v.word()) }},
	{"ttl", func(r *api.ActiveListRequest, v value) { r.TTL = v.duration() }},
	{"max_ttl", func(r *api.ActiveListRequest, v value) { r.MaxTTL = v.duration() }},
	{"refresh", func(r *api.ActiveListRequest, v value) { r.Refresh = api.ActiveListRequestRefresh(v.word()) }},
	{"capacity", func(r *api.ActiveListRequest, v value) { r.Capacity = v.integer() }},
	{"comment", func(r *api.ActiveListRequest, v value) { r.Comment = v.str() }},
	{"subdomains", func(r *api.ActiveListRequest, v value) { r.Subdomains = v.boolean() }},
	{"on_hit", func(r *api.ActiveListRequest, v value) { object(v, &r.OnHit, onHitFields) }},
}

func (s *Server) CreateList(c *gin.Context) {
	var req api.ActiveListRequest
	if err := decode(s, c, &req, listFields, true); err != nil {
		s.fail(c, err)
		return
	}
	l := parry.List{
		Name: req.Name, Type: parry.ListType(req.Type), TTL: parry.DefaultListTTL, MaxTTL: parry.DefaultListMaxTTL, Comment: req.Comment,
		Refresh:  cmp.Or(parry.Refresh(req.Refresh), parry.RefreshLastSeen),
		Capacity: cmp.Or(int64(req.Capacity), parry.DefaultListCapacity), Subdomains: req.Subdomains,
		OnHit:     parry.OnHit{Syslog: req.OnHit.Syslog, Every: parry.DefaultHitEvery},
		CreatedBy: principal(c).Token.Name, CreatedAt: s.o.Now(),
	}
	var wrong problems
	if err := checkName(req.Name, false, "-"); err != nil {
		wrong.add("/name", "%s", err)
	}
	ttl := func(pointer, text string, to *time.Duration) {
		if text == "" {
			return
		}
		d, without, err := parseTTL(text)
		switch {
		case err != nil:
			wrong.add(pointer, "%s", err)
		case without:
			*to = 0
		default:
			*to = d
		}
	}
	ttl("/max_ttl", req.MaxTTL, &l.MaxTTL)
	if l.MaxTTL > 0 {
		l.TTL = min(l.TTL, l.MaxTTL)
	}
	ttl("/ttl", req.TTL, &l.TTL)
	if req.OnHit.Every != "" {
		d, err := parry.ParseTTL(req.OnHit.Every)
		if err != nil {
			wrong.add("/on_hit/every", "%s", err)
		}
		l.OnHit.Every = d
	}
	for _, f := range l.Problems() {
		if !wrong.at("/" + f.Pointer) {
			wrong.add("/"+f.Pointer, "%s", f.Detail)
		}
	}
	if err := wrong.err(); err != nil {
		s.fail(c, err)
		return
	}
	made, err := s.o.Lists.Create(c.Request.Context(), l)
	if err != nil {
		s.fail(c, err)
		return
	}
	c.Header("Location", "/api/v1/lists/"+made.Name)
	s.answer(c, http.StatusCreated, presentList(&made))
}

func (s *Server) DeleteList(c *gin.Context, name string) {
	if err := s.o.Lists.Delete(c.Request.Context(), name, principal(c).Token.Name); err != nil {
		s.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
	c.Writer.WriteHeaderNow()
}

func (s *Server) Lookup(c *gin.Context, params api.LookupParams) {
	if params.Key == "" || len(params.Key) > maxKey {
		s.fail(c, badKey())
		return
	}
	out := api.Lookup{Key: params.Key, Entries: []api.ListEntry{}}
	for _, m := range s.o.Lists.LookupAll(params.Key, principal(c).Token.Name) {
		out.Found = true
		out.Entries = append(out.Entries, presentEntry(m.Type, m.Entry))
	}
	s.answer(c, http.StatusOK, out)
}

func (s *Server) LookupOnList(c *gin.Context, name string, params api.LookupOnListParams) {
	if params.Key == "" || len(params.Key) > maxKey {
		s.fail(c, badKey())
		return
	}
	out, err := s.lookup(c, name, params.Key)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, out)
}

const maxKey = 1024

func badKey() error { return parry.Invalid("?key", "write a key of 1 to %d bytes", maxKey) }

func (s *Server) lookup(c *gin.Context, name, key string) (out api.ListLookup, err error) {
	canonical, m, found, err := s.o.Lists.Lookup(name, key, principal(c).Token.Name)
	if err != nil {
		return out, err
	}
	out.Key, out.Found = canonical, found
	if found {
		out.Entry = presentEntry(m.Type, m.Entry)
	}
	return out, nil
}

var keysFields = []field[api.ListKeys]{
	{"keys", func(r *api.ListKeys, v value) { r.Keys = v.strs() }},
}

func (s *Server) LookupManyOnList(c *gin.Context, name string) {
	body, err := readBodyUpTo(c, maxBatch)
	if err != nil {
		s.fail(c, err)
		return
	}
	var req api.ListKeys
	var wrong problems
	decodeObject(body, &req, keysFields, &wrong)
	if len(wrong) == 0 {
		s.check(&req, &wrong)
	}
	if err := wrong.err(); err != nil {
		s.fail(c, err)
		return
	}
	l, err := s.o.Lists.Definition(name)
	if err != nil {
		s.fail(c, err)
		return
	}
	for i, k := range req.Keys { // all or nothing, and no hit is told before all are known to be right
		if _, err := lists.Canonical(l.Type, k); err != nil {
			wrong.add(at("/keys", i), "%s", err)
		}
	}
	if err := wrong.err(); err != nil {
		s.fail(c, err)
		return
	}
	out := api.ListLookups{Items: make([]api.ListLookup, len(req.Keys))}
	for i, k := range req.Keys {
		if out.Items[i], err = s.lookup(c, name, k); err != nil {
			s.fail(c, err)
			return
		}
	}
	s.answer(c, http.StatusOK, out)
}
