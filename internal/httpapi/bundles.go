package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

func presentBundle(b parry.BundleRef) api.Bundle {
	return api.Bundle{Name: b.Name, Version: b.Version, Digest: b.Digest, Commit: b.Commit}
}

func presentBundleView(v *parry.BundleView) api.BundleDetail {
	out := api.BundleDetail{
		Name: v.Name, Source: v.Source, Problem: v.Bad, Waits: v.Waits, Copies: []api.BundleCopy{}, Firewalls: []api.BundleFirewall{},
		Current: presentBundle(v.Current),
	}
	if r := v.Release; r.Digest != "" {
		out.Release = api.BundleRelease{Digest: r.Digest, Version: r.Version, By: r.By, At: r.At.UTC()}
	}
	for _, p := range v.Pins {
		if p.Firewall == "" {
			out.Pin = api.BundlePin{Digest: p.Digest, Version: p.Version, By: p.By, At: p.At.UTC()}
		}
	}
	for _, c := range v.Copies {
		out.Copies = append(out.Copies, api.BundleCopy{
			Digest: c.Digest, Version: c.Version, Commit: c.Commit, TakenAt: utc(c.Taken), CurrentAt: utc(c.Became), Current: c.Current, Proved: c.Proved,
			UsedBy: append([]string{}, c.UsedBy...),
		})
	}
	for _, fw := range v.Firewalls {
		out.Firewalls = append(out.Firewalls, api.BundleFirewall{
			Name: fw.Name, Canary: fw.Canary, Used: presentBundle(fw.Used), Next: fw.Choice.Digest, PinnedBy: fw.Choice.PinnedBy,
		})
	}
	return out
}

// playbooks is what there is of bundles.
func (s *Server) playbooks(c *gin.Context) (Bundles, bool) {
	if s.o.Bundles == nil {
		s.fail(c, parry.Errorf(parry.KindNotFound, "this service has no bundles"))
		return nil, false
	}
	return s.o.Bundles, true
}

func (s *Server) ListBundles(c *gin.Context) {
	b, ok := s.playbooks(c)
	if !ok {
		return
	}
	views, err := b.List(c.Request.Context())
	if err != nil {
		s.fail(c, err)
		return
	}
	out := api.BundleList{Items: []api.BundleDetail{}}
	for i := range views {
		out.Items = append(out.Items, presentBundleView(&views[i]))
	}
	s.answer(c, http.StatusOK, out)
}

func (s *Server) GetBundle(c *gin.Context, name api.BundleName) {
	b, ok := s.playbooks(c)
	if !ok {
		return
	}
	v, err := b.Get(c.Request.Context(), name)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, presentBundleView(&v))
}

func (s *Server) DiffBundle(c *gin.Context, name api.BundleName, params api.DiffBundleParams) {
	b, ok := s.playbooks(c)
	if !ok {
		return
	}
	text, whole, err := b.Diff(c.Request.Context(), name, orZero(params.From), orZero(params.To))
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, api.BundleDiff{Diff: text, Whole: whole})
}

var bundleCheckFields = []field[api.BundleCheckRequest]{
	{"firewall", func(r *api.BundleCheckRequest, v value) { r.Firewall = v.str() }},
}

var bundleUseFields = []field[api.BundleUseRequest]{
	{"digest", func(r *api.BundleUseRequest, v value) { r.Digest = v.str() }},
	{"firewall", func(r *api.BundleUseRequest, v value) { r.Firewall = v.str() }},
}

func (s *Server) CheckBundle(c *gin.Context, name api.BundleName) {
	b, ok := s.playbooks(c)
	if !ok {
		return
	}
	var req api.BundleCheckRequest
	err := decode(s, c, &req, bundleCheckFields, false)
	if err == nil && req.Firewall != "" {
		err = s.mayTouch(c, req.Firewall)
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(5 * time.Minute)) // Ansible reads the playbooks; where it cannot be set, the server's holds
	got, err := b.Check(c.Request.Context(), name, req.Firewall, principal(c).Token.Name)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, api.BundleChecked{Bundle: presentBundle(got.Bundle), Problems: append([]string{}, got.Problems...), Run: string(got.Run)})
}

func (s *Server) UseBundle(c *gin.Context, name api.BundleName) {
	var req api.BundleUseRequest
	if err := decode(s, c, &req, bundleUseFields, true); err != nil {
		s.fail(c, err)
		return
	}
	s.choose(c, req.Firewall, func(ctx context.Context, b Bundles, by string) (parry.BundleChosen, error) {
		return b.Use(ctx, name, req.Firewall, req.Digest, by)
	})
}

func (s *Server) RollBackBundle(c *gin.Context, name api.BundleName) {
	var req api.BundleCheckRequest
	if err := decode(s, c, &req, bundleCheckFields, false); err != nil {
		s.fail(c, err)
		return
	}
	s.choose(c, req.Firewall, func(ctx context.Context, b Bundles, by string) (parry.BundleChosen, error) {
		return b.Rollback(ctx, name, req.Firewall, by)
	})
}

// choose passes a word about copies on.
func (s *Server) choose(c *gin.Context, firewall string, give func(ctx context.Context, b Bundles, by string) (parry.BundleChosen, error)) {
	b, ok := s.playbooks(c)
	if !ok {
		return
	}
	if err := s.mayTouch(c, firewall); err != nil {
		s.fail(c, err)
		return
	}
	got, err := give(c.Request.Context(), b, principal(c).Token.Name)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, api.BundleChosen{
		Bundle: presentBundle(got.Bundle), Proved: got.Proved, Affects: append([]string{}, got.Affects...), Stay: append([]string{}, got.Stay...),
	})
}
