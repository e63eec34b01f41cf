package httpapi

import (
	"net/http"
	"net/netip"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
)

// DeleteBlocks ends the live blocks that match a filter. An empty parameter is refused rather than left out: it is a template's gap, and
// without it the filter would match more than was meant.
func (s *Server) DeleteBlocks(c *gin.Context, params api.DeleteBlocksParams) {
	pr := principal(c)
	if !pr.Can(parry.RightUnblock) && !s.o.Settings().HonourDelete {
		s.fail(c, parry.Errorf(parry.KindForbidden,
			"the role %s may end no blocks: parry ends them in time, and a SIEM's delete counts only where the configuration says hooks.honour_delete: true", pr.Token.Role))
		return
	}
	f, match, err := endFilter(&params)
	if err != nil {
		s.fail(c, err)
		return
	}
	if !pr.Can(parry.RightUnblock) {
		if f.CreatedBy != "" && f.CreatedBy != pr.Token.Name {
			s.answer(c, http.StatusOK, presentEnded(&parry.EndedBlocks{}, orZero(params.DryRun)))
			return
		}
		f.CreatedBy = pr.Token.Name
	}
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(2 * time.Minute)) // 100,000 take a while; where it cannot be set, the server's holds
	fleet := s.o.Fleet()
	ended, err := s.o.Store.EndBlocks(c.Request.Context(), f, func(k *parry.Key) bool {
		return match(k) && policy.MayName(pr, fleet, k.Selector) == nil
	}, s.plainLift(pr), orZero(params.DryRun))
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, presentEnded(&ended, orZero(params.DryRun)))
}

// endFilter reads which blocks are to be ended; match is what no column of the store tells.
func endFilter(params *api.DeleteBlocksParams) (f parry.BlockFilter, match func(*parry.Key) bool, err error) {
	var wrong problems
	filters := 0
	given := func(name string, text *string) bool {
		if text == nil {
			return false
		}
		if filters++; *text == "" {
			wrong.add(name, "this is empty: leave it out, or fill it")
		}
		return *text != ""
	}
	prefix := func(name string, text *string, to *netip.Prefix) {
		if given(name, text) {
			var err error
			if *to, err = parsePrefix(*text); err != nil {
				wrong.add(name, "%s", err)
			}
		}
	}
	var destination netip.Prefix
	prefix("?source", params.Source, &f.Source)
	prefix("?covering", params.Covering, &f.Covering)
	prefix("?within", params.Within, &f.Within)
	prefix("?destination", params.Destination, &destination)
	if given("?firewalls", params.Firewalls) {
		f.Selector = parry.ParseSelector(*params.Firewalls)
	}
	if given("?origin", params.Origin) {
		f.Origin = *params.Origin
	}
	if given("?created_by", params.CreatedBy) {
		f.CreatedBy = *params.CreatedBy
	}
	port := orZero(params.DestinationPort)
	if params.DestinationPort != nil {
		if filters++; port < 1 || port > 65535 {
			wrong.add("?destination_port", "write 1 to 65535")
		}
	}
	if params.ExpiresBy != nil {
		f.ExpiresBy = *params.ExpiresBy
		if filters++; f.ExpiresBy.IsZero() {
			wrong.add("?expires_by", "this is empty: leave it out, or write a time such as 2006-01-02T15:04:05Z")
		}
	}
	if filters == 0 {
		wrong.add("?", "say which blocks: source, covering, within, destination, destination_port, firewalls, origin, created_by or expires_by")
	}
	return f, func(k *parry.Key) bool {
		return (!destination.IsValid() || k.Destination == destination) && (port == 0 || int(k.Port) == port)
	}, wrong.err()
}

func presentEnded(e *parry.EndedBlocks, dry bool) api.EndedBlocks {
	out := api.EndedBlocks{Matched: int64(e.Matched), Ended: int64(e.Ended), Blocks: make([]string, len(e.First)), DryRun: dry}
	for i, id := range e.First {
		out.Blocks[i] = string(id)
	}
	return out
}
