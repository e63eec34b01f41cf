package httpapi

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

func presentRun(r *parry.Run) api.Run {
	out := api.Run{
		ID: string(r.ID), Firewall: r.Firewall, Kind: api.RunKind(r.Kind), State: api.RunState(r.State), Failure: string(r.Failure), Task: r.Task,
		Message: r.Message, Revision: int64(r.Revision), Epoch: r.Epoch, StartedAt: r.StartedAt.UTC(), EndedAt: utc(r.EndedAt),
		Bundle: presentBundle(r.Bundle),
		Sent:   r.Sent, Rejected: r.Rejected,
	}
	if r.Want.SHA256 != "" {
		out.Want = presentProof(r.Want)
	}
	if r.Got.SHA256 != "" {
		out.Got = presentProof(r.Got)
	}
	return out
}

func (s *Server) ListRuns(c *gin.Context, params api.ListRunsParams) {
	var wrong problems
	f := parry.RunFilter{
		Firewall: orZero(params.Firewall), State: parry.RunState(orZero(params.State)), Cursor: orZero(params.Cursor), Limit: limit(params.Limit, &wrong),
	}
	switch f.State {
	case "", parry.RunRunning, parry.RunSucceeded, parry.RunFailed, parry.RunUnknown:
	default:
		wrong.add("?state", "write running, succeeded, failed or unknown")
	}
	if err := wrong.err(); err != nil {
		s.fail(c, err)
		return
	}
	page, err := s.o.Store.Runs(c.Request.Context(), f)
	if err != nil {
		s.fail(c, err)
		return
	}
	out := api.RunPage{Items: make([]api.Run, len(page.Items)), Next: page.Next}
	for i := range page.Items {
		out.Items[i] = presentRun(&page.Items[i])
	}
	s.answer(c, http.StatusOK, out)
}

func (s *Server) GetRun(c *gin.Context, id api.RunID) {
	r, err := s.o.Store.Run(c.Request.Context(), parry.RunID(id))
	if err != nil {
		s.fail(c, err)
		return
	}
	out := presentRun(&r)
	if s.o.RunFiles != nil {
		out.Command, out.CheckCommand = s.o.RunFiles.Command(r)
	}
	s.answer(c, http.StatusOK, out)
}

func (s *Server) GetRunLog(c *gin.Context, id api.RunID) {
	s.runFile(c, id, "text/plain; charset=utf-8", RunFiles.Log)
}

func (s *Server) GetRunEvents(c *gin.Context, id api.RunID) {
	s.runFile(c, id, "application/x-ndjson", RunFiles.Events)
}

// runFile sends a file as it is now; a run that is on may write more.
func (s *Server) runFile(c *gin.Context, id, contentType string, open func(RunFiles, parry.Run) (io.ReadCloser, error)) {
	r, err := s.o.Store.Run(c.Request.Context(), parry.RunID(id))
	if err != nil {
		s.fail(c, err)
		return
	}
	gone := parry.Errorf(parry.KindNotFound, "the files of run %s are gone: they are kept for a while only", r.ID)
	if s.o.RunFiles == nil {
		s.fail(c, gone)
		return
	}
	f, err := open(s.o.RunFiles, r)
	if errors.Is(err, fs.ErrNotExist) {
		s.fail(c, gone)
		return
	} else if err != nil {
		s.fail(c, err)
		return
	}
	defer f.Close()
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(2 * time.Minute)) // where it cannot be set, the server's holds
	h := c.Writer.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Disposition", "attachment")
	c.Status(http.StatusOK)
	if _, err := io.Copy(c.Writer, f); err != nil && c.Request.Context().Err() == nil {
		s.o.Logger.WarnContext(c.Request.Context(), "a run's file was not sent whole", "request_id", requestID(c), "run_id", id, "err", err)
	}
}
