package httpapi

import (
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
)

// CreateBlock takes a block request into the desired state.
func (s *Server) CreateBlock(c *gin.Context, params api.CreateBlockParams) {
	pr := principal(c)
	if err := s.o.Auth.Allow(pr); err != nil {
		s.fail(c, err)
		return
	}
	body, err := readBody(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	now := s.o.Now()
	ask, err := s.decodeBlockRequest(body, now)
	if err != nil {
		s.fail(c, err)
		return
	}
	ask.dry = orZero(params.DryRun)
	key, err := idempotency(c, pr, params.IdempotencyKey, body)
	if err != nil {
		s.fail(c, err)
		return
	}
	a, err := s.admission(c, &ask, now)
	if err != nil {
		if !orZero(params.DryRun) {
			err = s.listInstead(c, err)
		}
		s.fail(c, err)
		return
	}
	a.Idempotency = key
	if orZero(params.DryRun) {
		s.tryBlock(c, &a, now)
		return
	}
	w, err := s.beginWait(c, orZero(params.Wait))
	if err != nil {
		s.fail(c, err)
		return
	}
	defer w.end()
	shown, status, err := s.put(c, w, a)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, status, shown)
}

// tryBlock answers a dry run that passed every check.
func (s *Server) tryBlock(c *gin.Context, a *parry.Admission, now time.Time) {
	switch f, err := s.foresee(c.Request.Context(), a, now); {
	case err != nil:
		s.fail(c, err)
	case f.live == nil:
		c.Status(http.StatusNoContent)
	default:
		s.answer(c, http.StatusOK, f.live)
	}
}

// ownBlock reads a block for whoever asks: without the right read, another's block is not there.
func (s *Server) ownBlock(c *gin.Context, id string) (parry.Block, error) {
	c.Set("block_id", cut(id, 64))
	b, err := s.o.Store.Block(c.Request.Context(), parry.BlockID(id))
	if err != nil {
		return b, err
	}
	if pr := principal(c); !pr.Can(parry.RightRead) && b.CreatedBy != pr.Token.Name {
		return b, parry.Errorf(parry.KindNotFound, "there is no block %s; it may have ended and been forgotten", id)
	}
	return b, nil
}

// blockToChange reads a block that the caller's token may change.
func (s *Server) blockToChange(c *gin.Context, id string) (parry.Block, error) {
	b, err := s.ownBlock(c, id)
	if err != nil {
		return b, err
	}
	if err := policy.MayName(principal(c), s.o.Fleet(), b.Selector); err != nil {
		return b, parry.Errorf(parry.KindForbidden, "the block is for %s, and %s", b.Selector, err)
	}
	return b, nil
}

func (s *Server) GetBlock(c *gin.Context, id api.BlockID) {
	b, err := s.ownBlock(c, id)
	if err != nil {
		s.fail(c, err)
		return
	}
	shown, err := s.show(c.Request.Context(), b)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, shown[0])
}

func (s *Server) ListBlocks(c *gin.Context, params api.ListBlocksParams) {
	var wrong problems
	f := parry.BlockFilter{
		Origin: orZero(params.Origin), CreatedBy: orZero(params.CreatedBy), Cursor: orZero(params.Cursor), Limit: limit(params.Limit, &wrong),
	}
	for name, to := range map[string]struct {
		text string
		p    *netip.Prefix
	}{"?source": {orZero(params.Source), &f.Source}, "?covering": {orZero(params.Covering), &f.Covering}, "?within": {orZero(params.Within), &f.Within}} {
		if to.text == "" {
			continue
		}
		var err error
		if *to.p, err = parsePrefix(to.text); err != nil {
			wrong.add(name, "%s", err)
		}
	}
	live := true
	switch orZero(params.Status) {
	case "", api.ListBlocksParamsStatusLive:
		f.Live = &live
	case api.ListBlocksParamsStatusEnded:
		live = false
		f.Live = &live
	case api.ListBlocksParamsStatusAll:
	default:
		wrong.add("?status", "write live, ended or all")
	}
	if names := orZero(params.Firewalls); names != "" {
		f.Selector = parry.ParseSelector(names)
	}
	if within := orZero(params.ExpiresWithin); within != "" {
		d, err := parry.ParseTTL(within)
		if err != nil {
			wrong.add("?expires_within", "%s", err)
		}
		f.ExpiresBy = s.o.Now().Add(d)
	}
	if err := wrong.err(); err != nil {
		s.fail(c, err)
		return
	}
	if pr := principal(c); !pr.Can(parry.RightRead) {
		if f.CreatedBy != "" && f.CreatedBy != pr.Token.Name {
			s.answer(c, http.StatusOK, api.BlockPage{Items: []api.Block{}})
			return
		}
		f.CreatedBy = pr.Token.Name
	}
	page, err := s.o.Store.Blocks(c.Request.Context(), f)
	if err != nil {
		s.fail(c, err)
		return
	}
	shown, err := s.show(c.Request.Context(), page.Items...)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, api.BlockPage{Items: shown, Next: page.Next})
}

// limit is a page's size.
func limit(n *int, wrong *problems) int {
	switch {
	case n == nil:
		return 100
	case *n < 1 || *n > 1000:
		wrong.add("?limit", "write 1 to 1000")
	}
	return *n
}

// orZero is what an optional parameter holds, the zero value when it was not given.
func orZero[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func (s *Server) ListBlockRequests(c *gin.Context, id api.BlockID, params api.ListBlockRequestsParams) {
	var wrong problems
	n := limit(params.Limit, &wrong)
	if err := wrong.err(); err != nil {
		s.fail(c, err)
		return
	}
	b, err := s.ownBlock(c, id)
	if err != nil {
		s.fail(c, err)
		return
	}
	page, err := s.o.Store.Requests(c.Request.Context(), b.ID, orZero(params.Cursor), n)
	if err != nil {
		s.fail(c, err)
		return
	}
	out := api.EvidencePage{Items: make([]api.Evidence, len(page.Items)), Next: page.Next}
	for i := range page.Items {
		out.Items[i] = presentRequest(&page.Items[i])
	}
	s.answer(c, http.StatusOK, out)
}

var blockUpdateFields = []field[api.BlockUpdate]{
	{"ttl", func(r *api.BlockUpdate, v value) { r.TTL = v.duration() }},
	{"expires_at", func(r *api.BlockUpdate, v value) { r.ExpiresAt = v.time() }},
}

// UpdateBlock extends or shortens a block.
func (s *Server) UpdateBlock(c *gin.Context, id api.BlockID) {
	var req api.BlockUpdate
	if err := decode(s, c, &req, blockUpdateFields, true); err != nil {
		s.fail(c, err)
		return
	}
	now := s.o.Now()
	expires, without, pointer, err := newEnd(&req, now)
	if err != nil {
		s.fail(c, err)
		return
	}
	b, err := s.blockToChange(c, id)
	if err != nil {
		s.fail(c, err)
		return
	}
	if err := s.o.Policy.Extend(principal(c), expires.Sub(now), without, pointer, now); err != nil {
		s.fail(c, err)
		return
	}
	if without {
		expires = time.Time{}
	}
	if b, err = s.o.Store.SetExpiry(c.Request.Context(), b.ID, expires, principal(c).Token.Name); err != nil {
		s.fail(c, err)
		return
	}
	shown, err := s.show(c.Request.Context(), b)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, shown[0])
}

func newEnd(req *api.BlockUpdate, now time.Time) (expires time.Time, without bool, pointer string, err error) {
	switch {
	case (req.TTL == "") == req.ExpiresAt.IsZero():
		return expires, false, "", parry.Invalid("", "give either ttl or expires_at")
	case req.TTL != "":
		ttl, without, err := parseTTL(req.TTL)
		if err != nil {
			return expires, false, "", parry.Invalid("/ttl", "%s", err)
		}
		return now.Add(ttl), without, "/ttl", nil
	case !req.ExpiresAt.After(now):
		return expires, false, "", parry.Invalid("/expires_at", "%s is not in the future; to end the block now, delete it",
			req.ExpiresAt.Format(time.RFC3339))
	}
	return req.ExpiresAt, false, "/expires_at", nil
}

// DeleteBlock ends a block.
func (s *Server) DeleteBlock(c *gin.Context, id api.BlockID, params api.DeleteBlockParams) {
	ctx := c.Request.Context()
	b, err := s.blockToChange(c, id)
	if err != nil {
		s.fail(c, err)
		return
	}
	w, err := s.beginWait(c, orZero(params.Wait))
	if err != nil {
		s.fail(c, err)
		return
	}
	defer w.end()
	word, err := s.lift(principal(c), &b, &params)
	if err != nil {
		s.fail(c, err)
		return
	}
	b, covering, err := s.o.Store.EndBlock(ctx, b.ID, word)
	if err != nil {
		s.fail(c, err)
		return
	}
	status := http.StatusOK
	shown, err := s.show(ctx, append([]parry.Block{b}, covering...)...)
	if err == nil && w != nil {
		var ok bool
		if shown[0], ok, err = w.settle(ctx, b.ID); !ok {
			status = http.StatusAccepted
		}
	}
	var offender api.Offender
	if err == nil {
		offender, err = s.offender(ctx, b.Source)
	}
	if err != nil {
		s.fail(c, fmt.Errorf("show block %s, which was ended: %w", b.ID, err))
		return
	}
	s.answer(c, status, api.EndedBlock{Block: shown[0], StillCoveredBy: shown[1:], Offender: offender})
}

// Explain tells what stands for or against an address.
func (s *Server) Explain(c *gin.Context, params api.ExplainParams) {
	ctx, now := c.Request.Context(), s.o.Now()
	p, err := parsePrefix(params.Address)
	if err != nil {
		s.fail(c, parry.Invalid("?address", "%s", err))
		return
	}
	live, ended := true, false
	out := api.Explanation{Address: parry.FormatPrefix(p), Exemptions: []api.Exemption{}, Lists: []api.ListEntry{}, Requests: []api.Evidence{}}
	for _, m := range s.o.Lists.On(p) {
		out.Lists = append(out.Lists, presentEntry(m.Type, m.Entry))
	}
	for _, x := range s.o.Policy.AllOverlapping(p, now) {
		if policy.IsSpecial(x) {
			out.Special = x.Prefix.String() + ": " + x.Reason
			continue
		}
		out.Exemptions = append(out.Exemptions, presentExemption(&x))
	}
	standing, err := s.o.Store.Blocks(ctx, parry.BlockFilter{Covering: p, Live: &live, Limit: 100})
	if err != nil {
		s.fail(c, err)
		return
	}
	gone, err := s.o.Store.Blocks(ctx, parry.BlockFilter{Covering: p, Live: &ended, Limit: 10})
	if err != nil {
		s.fail(c, err)
		return
	}
	pic, err := s.picture(ctx)
	if err != nil {
		s.fail(c, err)
		return
	}
	if out.Blocks, err = s.showIn(ctx, pic, standing.Items); err == nil {
		out.Ended, err = s.showIn(ctx, pic, gone.Items)
	}
	if err == nil {
		out.Offender, err = s.offender(ctx, p)
	}
	if err == nil {
		out.Loaded, err = s.loadedFor(ctx, p)
	}
	for i := 0; err == nil && i < min(len(standing.Items), 10); i++ {
		var page parry.Page[parry.Request]
		page, err = s.o.Store.Requests(ctx, standing.Items[i].ID, "", 10)
		for j := range page.Items {
			out.Requests = append(out.Requests, presentRequest(&page.Items[j]))
		}
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, out)
}
