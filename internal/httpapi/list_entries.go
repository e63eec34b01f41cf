package httpapi

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/parry"
)

const (
	maxBatch   = 8 << 20 // bytes of a body with many entries or keys
	maxEntries = 10_000
)

func at(pointer string, i int) string { return pointer + "/" + strconv.Itoa(i) }

func presentEntry(t parry.ListType, e *parry.ListEntry) api.ListEntry {
	return api.ListEntry{
		List: e.List, Type: api.ListType(t), Key: e.Key, Count: e.Count, FirstSeen: e.FirstSeen, LastSeen: e.LastSeen, ExpiresAt: e.ExpiresAt,
		Sources: e.Sources, Comment: e.Comment, AlertID: e.AlertID, RuleID: e.RuleID, PutBy: e.By,
	}
}

// ListEntries reads a page from the snapshot in memory. The cursor is the last key of the page before, so that a page goes on behind it whatever
// came or went.
func (s *Server) ListEntries(c *gin.Context, name string, params api.ListEntriesParams) {
	snap, err := s.o.Lists.Snapshot(name)
	if err != nil {
		s.fail(c, err)
		return
	}
	var wrong problems
	keep := s.entryFilter(&params, snap, &wrong)
	most := limit(params.Limit, &wrong)
	after := ""
	if cur := orZero(params.Cursor); cur != "" {
		b, err := base64.RawURLEncoding.Strict().DecodeString(cur)
		after = string(b)
		if key, cerr := lists.Canonical(snap.List.Type, after); err != nil || cerr != nil || key != after {
			wrong.add("?cursor", "this is no cursor of this listing; take it as the page before gave it, or leave it out to start anew")
		}
	}
	if err := wrong.err(); err != nil {
		s.fail(c, err)
		return
	}
	out := api.ListEntryPage{Items: []api.ListEntry{}}
	for _, e := range snap.After(after) {
		if !keep(e) {
			continue
		}
		if len(out.Items) == most {
			out.Next = base64.RawURLEncoding.EncodeToString([]byte(out.Items[most-1].Key))
			break
		}
		out.Items = append(out.Items, presentEntry(snap.List.Type, e))
	}
	s.answer(c, http.StatusOK, out)
}

// entryFilter reads the filters of a listing.
func (s *Server) entryFilter(params *api.ListEntriesParams, snap *lists.Snapshot, wrong *problems) func(*parry.ListEntry) bool {
	var within netip.Prefix
	if text := orZero(params.Within); text != "" {
		var err error
		switch within, err = parsePrefix(text); {
		case err != nil:
			wrong.add("?within", "%s", err)
		case !snap.List.Type.IsNetwork():
			wrong.add("?within", "this is for lists of addresses and prefixes")
		}
	}
	period := func(name string, text *string) (d time.Duration) {
		if orZero(text) == "" {
			return 0
		}
		d, err := parry.ParseTTL(*text)
		if err != nil {
			wrong.add(name, "%s", err)
		}
		return d
	}
	seen, expires := period("?seen_within", params.SeenWithin), period("?expires_within", params.ExpiresWithin)
	now, origin, rule := s.o.Now(), orZero(params.Origin), orZero(params.RuleID)
	return func(e *parry.ListEntry) bool {
		if within.IsValid() {
			p, err := parsePrefix(e.Key)
			if err != nil || p.Bits() < within.Bits() || !within.Contains(p.Addr()) {
				return false
			}
		}
		return e.Live(now) &&
			(origin == "" || slices.Contains(e.Sources, origin)) &&
			(rule == "" || e.RuleID == rule) &&
			(seen == 0 || !e.LastSeen.Before(now.Add(-seen))) &&
			(expires == 0 || !e.ExpiresAt.IsZero() && !e.ExpiresAt.After(now.Add(expires)))
	}
}

var entryFields = []field[api.ListEntryPut]{
	{"key", func(r *api.ListEntryPut, v value) { r.Key = v.word() }},
	{"ttl", func(r *api.ListEntryPut, v value) { r.TTL = v.duration() }},
	{"seen_at", func(r *api.ListEntryPut, v value) { r.SeenAt = v.time() }},
	{"comment", func(r *api.ListEntryPut, v value) { r.Comment = v.str() }},
	{"alert_id", func(r *api.ListEntryPut, v value) { r.AlertID = v.str() }},
	{"rule_id", func(r *api.ListEntryPut, v value) { r.RuleID = v.str() }},
	{"origin", func(r *api.ListEntryPut, v value) { r.Origin = v.str() }},
}

var batchFields = []field[api.ListEntryBatch]{
	{"entries", func(r *api.ListEntryBatch, v value) { r.Entries = objects(v, maxEntries, entryFields) }},
}

func (s *Server) PutEntries(c *gin.Context, name string) {
	if err := s.o.Auth.Allow(principal(c)); err != nil {
		s.fail(c, err)
		return
	}
	body, err := readBodyUpTo(c, maxBatch)
	if err != nil {
		s.fail(c, err)
		return
	}
	var req api.ListEntryBatch
	var wrong problems
	decodeObject(body, &req, batchFields, &wrong)
	if len(body) > 0 {
		s.check(&req, &wrong)
	}
	done, _, _, err := s.putEntries(c, name, req.Entries, func(i int) string { return at("/entries", i) }, wrong)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, done)
}

func (s *Server) PutEntry(c *gin.Context, name string) {
	if err := s.o.Auth.Allow(principal(c)); err != nil {
		s.fail(c, err)
		return
	}
	var req api.ListEntryPut
	if err := decode(s, c, &req, entryFields, true); err != nil {
		s.fail(c, err)
		return
	}
	done, t, puts, err := s.putEntries(c, name, []api.ListEntryPut{req}, func(int) string { return "" }, nil)
	if err != nil {
		s.fail(c, err)
		return
	}
	if e, err := s.o.Lists.Entry(name, puts[0].Key); err == nil {
		done.Entry = presentEntry(t, &e)
	}
	status := http.StatusOK
	if done.Added > 0 {
		status = http.StatusCreated
	}
	s.answer(c, status, done)
}

// putEntries holds entries against their list and puts them. pointer gives the place of one in the body; wrong is what is known to be wrong.
func (s *Server) putEntries(c *gin.Context, name string, entries []api.ListEntryPut, pointer func(i int) string, wrong problems) (
	out api.ListPutResult, t parry.ListType, puts []parry.ListPut, err error) {
	l, err := s.o.Lists.Definition(name)
	if err != nil {
		return out, "", nil, err
	}
	now, by := s.o.Now(), principal(c).Token.Name
	puts = make([]parry.ListPut, len(entries))
	var refused []parry.FieldError
	for i := range entries {
		e, p := &entries[i], &puts[i]
		*p = parry.ListPut{SeenAt: e.SeenAt, Comment: e.Comment, AlertID: e.AlertID, RuleID: e.RuleID, Origin: e.Origin, By: by}
		if len(wrong) == 0 || !wrong.at(pointer(i)) {
			if p.Key, err = lists.Canonical(l.Type, e.Key); err != nil {
				wrong.add(pointer(i)+"/key", "%s", err)
			}
		}
		if e.TTL != "" {
			at := pointer(i) + "/ttl"
			if p.TTL, p.NoEnd, err = parseTTL(e.TTL); err != nil && !wrong.at(at) {
				wrong.add(at, "%s", err)
			} else if why := beyond(&l, p); why != "" && len(refused) < maxProblems {
				refused = append(refused, parry.FieldError{Pointer: at, Detail: why})
			}
		}
		if e.SeenAt.IsZero() {
			p.SeenAt = now
		} else if err := checkEventTime(e.SeenAt, now); err != nil {
			wrong.add(pointer(i)+"/seen_at", "%s", err)
		}
	}
	if err := wrong.err(); err != nil {
		return out, "", nil, err
	}
	if len(refused) > 0 {
		return out, "", nil, &parry.Error{Kind: parry.KindRefused, Detail: fmt.Sprintf("the list %q does not take this", name), Fields: refused}
	}
	done, err := s.o.Lists.Put(c.Request.Context(), name, puts)
	return api.ListPutResult{List: name, Added: done.Added, Refreshed: done.Refreshed, Late: done.Late}, l.Type, puts, err
}

// beyond says why a put asks for longer than its list allows.
func beyond(l *parry.List, p *parry.ListPut) string {
	switch {
	case l.MaxTTL == 0:
		return ""
	case p.NoEnd:
		return fmt.Sprintf("without end is beyond %s, the longest that the list allows", parry.FormatTTL(l.MaxTTL))
	case p.TTL > l.MaxTTL:
		return fmt.Sprintf("%s is beyond %s, the longest that the list allows", parry.FormatTTL(p.TTL), parry.FormatTTL(l.MaxTTL))
	}
	return ""
}

// entry is what an ask puts on a list, but for its key.
func (ask *blockAsk) entry(pr *parry.Principal, now time.Time) parry.ListPut {
	p := parry.ListPut{SeenAt: ask.eventTime, Comment: ask.reason, AlertID: ask.alertID, RuleID: ask.ruleID, Origin: ask.origin, By: pr.Token.Name}
	if p.SeenAt.IsZero() {
		p.SeenAt = now
	}
	return p
}

// listedInstead refuses a block whose source goes on a list instead.
type listedInstead struct {
	refusal *parry.Error
	list    string
	source  netip.Prefix
	put     parry.ListPut
}

func newListedInstead(v *lists.Verdict, source netip.Prefix, put parry.ListPut) error {
	e := parry.Errorf(parry.KindRefused, "the source is on the active list %q, and is put on the list %q instead of being blocked", v.List, v.Instead)
	e.Fields = []parry.FieldError{{Pointer: "/source", Detail: fmt.Sprintf("%s is on the list %q as %s; take it off there to have it blocked",
		parry.FormatPrefix(source), v.List, v.Entry.Key)}}
	return &listedInstead{e, v.Instead, source, put}
}

func (e *listedInstead) Error() string { return e.refusal.Error() }
func (e *listedInstead) Unwrap() error { return e.refusal }

// listInstead does what such a refusal says. Other errors are passed through.
func (s *Server) listInstead(c *gin.Context, err error) error {
	var e *listedInstead
	if !errors.As(err, &e) {
		return err
	}
	if perr := s.o.Lists.PutSource(c.Request.Context(), e.list, e.source, e.put); perr != nil {
		if k := parry.KindOf(perr); k != parry.KindRefused && k != parry.KindNotFound {
			return perr // nothing was done: the caller tries again
		}
		s.metrics.unlisted.WithLabelValues(e.list).Inc()
		s.o.Logger.WarnContext(c.Request.Context(), "a source did not go on the list that it is put on instead of a block", "list", e.list, "err", perr)
		e.refusal.Detail = fmt.Sprintf("the source is not blocked, because an active list says so, and could not be put on the list %q: %v", e.list, perr)
	}
	return e
}

func (s *Server) DeleteEntry(c *gin.Context, name string, params api.DeleteEntryParams) {
	if params.Key == "" || len(params.Key) > maxKey {
		s.fail(c, badKey())
		return
	}
	l, err := s.o.Lists.Definition(name)
	if err != nil {
		s.fail(c, err)
		return
	}
	key, err := lists.Canonical(l.Type, params.Key)
	if err != nil {
		s.fail(c, parry.Invalid("?key", "%s", err))
		return
	}
	if err := s.o.Lists.Remove(c.Request.Context(), name, key, principal(c).Token.Name); err != nil {
		s.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
	c.Writer.WriteHeaderNow()
}
