package httpapi

import (
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

// approvedFor is how long an approval counts that no run could use; one that is too old is asked for anew.
const approvedFor = 24 * time.Hour

func presentApproval(a *parry.Approval) api.Approval {
	out := api.Approval{
		ID: string(a.ID), Firewall: a.Firewall, State: api.ApprovalState(a.State), Why: a.Why, CreatedAt: a.CreatedAt.UTC(),
		Of: a.Of, Removed: a.Removed, Ended: a.Ended, Added: a.Added, First: a.First, DecidedBy: a.DecidedBy, DecidedAt: utc(a.DecidedAt), Reason: a.Reason,
	}
	if a.State == parry.ApprovalWaiting || a.State == parry.ApprovalApproved {
		out.ExpiresAt = utc(a.ExpiresAt)
	}
	if out.First == nil {
		out.First = []string{}
	}
	return out
}

func (s *Server) ListApprovals(c *gin.Context, params api.ListApprovalsParams) {
	var wrong problems
	f := parry.ApprovalFilter{Firewall: orZero(params.Firewall), Open: true, Cursor: orZero(params.Cursor), Limit: limit(params.Limit, &wrong)}
	switch orZero(params.Status) {
	case "", "open":
	case "all":
		f.Open = false
	default:
		wrong.add("?status", "write open or all")
	}
	err := wrong.err()
	var page parry.Page[parry.Approval]
	if err == nil {
		page, err = s.o.Store.Approvals(c.Request.Context(), f)
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	out := api.ApprovalPage{Items: make([]api.Approval, len(page.Items)), Next: page.Next}
	for i := range page.Items {
		out.Items[i] = presentApproval(&page.Items[i])
	}
	s.answer(c, http.StatusOK, out)
}

func (s *Server) GetApproval(c *gin.Context, id api.ApprovalID) {
	a, err := s.o.Store.Approval(c.Request.Context(), parry.ApprovalID(id))
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, presentApproval(&a))
}

func (s *Server) GetApprovalDiff(c *gin.Context, id api.ApprovalID, params api.GetApprovalDiffParams) {
	d, err := s.o.Store.ApprovalDiff(c.Request.Context(), parry.ApprovalID(id))
	if n := orZero(params.Limit); err == nil && params.Limit != nil {
		if n < 1 {
			err = parry.Invalid("?limit", "write 1 or more")
		}
		d = d[:min(len(d), max(n, 0))]
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	text := strings.Join(d, "\n")
	if text != "" {
		text += "\n"
	}
	c.Data(http.StatusOK, "text/plain; charset=utf-8", []byte(text))
}

var decisionFields = []field[api.DecisionRequest]{
	{"reason", func(r *api.DecisionRequest, v value) { r.Reason = v.str() }},
}

// decide passes a word on.
func (s *Server) decide(c *gin.Context, id parry.ApprovalID, approve bool, reason string) (a parry.Approval, err error) {
	d := parry.Decision{Approve: approve, By: principal(c).Token.Name, Reason: reason}
	if approve {
		d.Until = s.o.Now().Add(approvedFor)
	}
	return s.o.Store.Decide(c.Request.Context(), id, d)
}

func (s *Server) answerDecision(c *gin.Context, id parry.ApprovalID, approve bool) {
	var req api.DecisionRequest
	err := decode(s, c, &req, decisionFields, false)
	var a parry.Approval
	if err == nil {
		a, err = s.o.Store.Approval(c.Request.Context(), id)
	}
	if err == nil {
		err = s.mayTouch(c, a.Firewall)
	}
	if err == nil {
		a, err = s.decide(c, id, approve, req.Reason)
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answer(c, http.StatusOK, presentApproval(&a))
}

func (s *Server) Approve(c *gin.Context, id api.ApprovalID) {
	s.answerDecision(c, parry.ApprovalID(id), true)
}
func (s *Server) Deny(c *gin.Context, id api.ApprovalID) {
	s.answerDecision(c, parry.ApprovalID(id), false)
}
