package httpapi

import (
	"context"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

func (s *Server) WhoAmI(c *gin.Context) {
	pr := principal(c)
	t := presentToken(&pr.Token)
	out := api.Caller{
		ID: t.ID, Name: t.Name, Role: t.Role, Rights: []string{}, RemoteAddr: addr(pr.Remote), ExpiresAt: t.ExpiresAt, Sources: t.Sources,
		Firewalls: t.Firewalls, MaxTTL: t.MaxTTL, Rate: t.Rate,
		SuspendedUntil: t.SuspendedUntil, SuspendedWhy: t.SuspendedWhy,
	}
	for _, r := range pr.Token.Role.Rights() {
		out.Rights = append(out.Rights, string(r))
	}
	s.answer(c, http.StatusOK, out)
}

func (s *Server) GetVersion(c *gin.Context) {
	version, commit, built := s.o.Version()
	s.answer(c, http.StatusOK, api.Version{Version: version, Commit: commit, Built: built, Go: runtime.Version()})
}

func (s *Server) GetHealth(c *gin.Context) {
	s.answer(c, http.StatusOK, api.Health{Status: api.HealthStatusOk})
}

func (s *Server) GetMetrics(c *gin.Context) {
	promhttp.HandlerFor(s.o.Registry, promhttp.HandlerOpts{}).ServeHTTP(c.Writer, c.Request)
}

const checkWithin = 5 * time.Second

// GetReadiness runs all checks at once. The names of those that fail are for everyone, what is wrong is for readers: it names firewalls.
func (s *Server) GetReadiness(c *gin.Context) {
	ctx, cancel := context.WithTimeout(c.Request.Context(), checkWithin)
	defer cancel()
	checks := append([]Check{{Name: "database", Func: s.o.Store.Ping}}, s.o.Checks...)
	errs := make([]error, len(checks))
	var wg sync.WaitGroup
	for i := range checks {
		wg.Go(func() { errs[i] = checks[i].Func(ctx) })
	}
	firewalls := s.firewallsCheck(ctx)
	wg.Wait()

	pr, err := s.authenticate(c, operation{})
	details := err == nil && pr.Can(parry.RightRead)
	out := api.Readiness{Ready: true, Problems: []api.ReadyProblem{}}
	tell := func(name, detail string) {
		p := api.ReadyProblem{Check: name}
		if details {
			p.Detail = detail
		}
		out.Problems = append(out.Problems, p)
	}
	for i, err := range errs {
		if err != nil {
			tell(checks[i].Name, err.Error())
			out.Ready = out.Ready && checks[i].Advisory
		}
	}
	for _, detail := range firewalls {
		tell("firewalls", detail)
		if !details {
			break
		}
	}
	status := http.StatusOK
	if !out.Ready {
		status = http.StatusServiceUnavailable
	}
	s.answer(c, status, out)
}
