package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/parry"
)

func presentAudit(r *audit.Row) api.AuditRow {
	return api.AuditRow{
		Seq: r.Seq, Time: r.Time, Actor: r.Actor, TokenID: r.TokenID, Role: r.Role, Remote: r.Remote, Action: r.Action, Object: r.Object,
		Outcome: r.Outcome, Detail: r.Detail, RequestID: r.RequestID, Prev: r.Prev, Hash: r.Hash,
	}
}

func (s *Server) ListAudit(c *gin.Context, params api.ListAuditParams) {
	var wrong problems
	f := parry.AuditFilter{
		Actor: orZero(params.Actor), Action: orZero(params.Action), Object: orZero(params.Object), Since: orZero(params.Since), Until: orZero(params.Until),
		Cursor: orZero(params.Cursor), Limit: limit(params.Limit, &wrong),
	}
	if err := wrong.err(); err != nil {
		s.fail(c, err)
		return
	}
	page, err := s.o.Store.AuditRows(c.Request.Context(), f)
	if err != nil {
		s.fail(c, err)
		return
	}
	out := api.AuditPage{Items: make([]api.AuditRow, len(page.Items)), Next: page.Next}
	for i := range page.Items {
		out.Items[i] = presentAudit(&page.Items[i])
	}
	s.answer(c, http.StatusOK, out)
}

func (s *Server) GetAuditHead(c *gin.Context) {
	h, err := s.o.Store.AuditHead(c.Request.Context())
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, api.AuditHead{Seq: h.Seq, Hash: h.Hash, Base: h.Base, Whole: h.Tail})
}

// ExportAudit sends the chain page by page. When a page cannot be read it breaks the connection off, so that nobody takes a part for the whole.
func (s *Server) ExportAudit(c *gin.Context, params api.ExportAuditParams) {
	ctx := c.Request.Context()
	f := parry.AuditFilter{After: orZero(params.After), Oldest: true, Limit: 1000}
	page, err := s.o.Store.AuditRows(ctx, f)
	if err != nil {
		s.fail(c, err)
		return
	}
	h := c.Writer.Header()
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("Content-Disposition", `attachment; filename="audit.jsonl"`)
	c.Status(http.StatusOK)
	w := bufio.NewWriterSize(c.Writer, 64<<10)
	for {
		_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(time.Minute)) // of each page; where it cannot be set, the server's holds
		for i := range page.Items {
			line, err := json.Marshal(&page.Items[i])
			if err == nil {
				_, err = w.Write(append(line, '\n'))
			}
			if err != nil {
				panic(http.ErrAbortHandler)
			}
		}
		if f.Cursor = page.Next; f.Cursor == "" {
			break
		}
		if page, err = s.o.Store.AuditRows(ctx, f); err != nil {
			s.o.Logger.WarnContext(ctx, "the audit was not sent whole", "request_id", requestID(c), "err", err)
			panic(http.ErrAbortHandler)
		}
	}
	if err := w.Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// note writes to the audit what no transaction of its own causes. It is done already, so that only the log can tell when it is not noted.
func (s *Server) note(ctx context.Context, e parry.AuditEvent) {
	if err := s.o.Store.Audit(context.WithoutCancel(ctx), e); err != nil {
		s.o.Logger.ErrorContext(ctx, "write the audit", "action", string(e.Action), "object", e.Object, "err", err)
	}
}
