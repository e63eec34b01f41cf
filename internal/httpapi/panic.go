package httpapi

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

var panicFields = []field[api.PanicRequest]{
	{"reason", func(r *api.PanicRequest, v value) { r.Reason = v.str() }},
	{"firewalls", func(r *api.PanicRequest, v value) { r.Firewalls = v.strs() }},
	{"end", func(r *api.PanicRequest, v value) { r.End = v.boolean() }},
}

// firewallsNamed are the firewalls that the names of firewalls and groups mean, none for all. The caller may touch each.
func (s *Server) firewallsNamed(c *gin.Context, pointer string, names []string) (out []string, err error) {
	if len(names) == 0 || slices.Contains(names, string(parry.SelectAll)) {
		return nil, s.mayTouch(c, "")
	}
	fleet := s.o.Fleet()
	for _, name := range names {
		means := []string{name}
		if _, one := fleet.Firewall(name); !one && fleet.Check(parry.Selector(name)) == nil {
			means = means[:0]
			for _, fw := range fleet.Scope(parry.Selector(name)) {
				means = append(means, fw.Name)
			}
			if len(means) == 0 {
				return nil, parry.Invalid(pointer, "%q means no firewall today", name)
			}
		}
		for _, name := range means {
			if err := s.mayTouch(c, name); err != nil {
				return nil, err
			}
		}
		out = append(out, means...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Panic has firewalls emptied and held.
func (s *Server) Panic(c *gin.Context) {
	var req api.PanicRequest
	err := decode(s, c, &req, panicFields, false)
	var names []string
	if err == nil {
		names, err = s.firewallsNamed(c, "/firewalls", req.Firewalls)
	}
	pr := principal(c)
	if err == nil && req.End && !pr.Can(parry.RightUnblock) {
		err = parry.Errorf(parry.KindForbidden, "ending blocks needs the right %s; without end they stay, and come back when the panic is over", parry.RightUnblock)
	}
	ctx := c.Request.Context()
	if err == nil {
		err = s.o.Store.Panic(ctx, names, parry.Hold{Kind: parry.HoldPanic, By: pr.Token.Name, Reason: req.Reason, Since: s.o.Now()})
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	out := api.Panic{}
	if req.End {
		fleet := s.o.Fleet()
		ended, err := s.o.Store.EndBlocks(ctx, parry.BlockFilter{}, func(k *parry.Key) bool {
			return len(names) == 0 || !slices.ContainsFunc(fleet.Scope(k.Selector), func(fw *parry.Firewall) bool { return !slices.Contains(names, fw.Name) })
		}, parry.Lift{By: pr.Token.Name, Grace: parry.KeepGrace}, false)
		if err != nil {
			s.fail(c, fmt.Errorf("the panic is on, but not all blocks were ended: %w", err))
			return
		}
		out.EndedBlocks = ended.Ended
	}
	s.answerPanic(c, names, out)
}

// EndPanic lets the blocks that stand come back.
func (s *Server) EndPanic(c *gin.Context, params api.EndPanicParams) {
	var asked []string
	if given := orZero(params.Firewalls); given != "" {
		asked = parry.ParseSelector(given).Names()
	}
	names, err := s.firewallsNamed(c, "?firewalls", asked)
	if err == nil {
		err = s.o.Store.EndPanic(c.Request.Context(), names, principal(c).Token.Name)
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answerPanic(c, names, api.Panic{})
}

func (s *Server) answerPanic(c *gin.Context, names []string, out api.Panic) {
	states, err := s.o.Store.Firewalls(c.Request.Context())
	if err != nil {
		s.fail(c, fmt.Errorf("read the firewalls, after it was done: %w", err))
		return
	}
	out.Firewalls = []api.Firewall{}
	for i := range states {
		if len(names) == 0 || slices.Contains(names, states[i].Name) {
			out.Firewalls = append(out.Firewalls, s.presentFirewall(&states[i], parry.BundleFirewall{}))
		}
	}
	s.answer(c, http.StatusAccepted, out)
}
