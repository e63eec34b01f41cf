package httpapi

import (
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

func (s *Server) ListChannels(c *gin.Context) {
	out := api.ChannelList{Items: []api.Channel{}}
	if s.o.Channels != nil {
		all, err := s.o.Channels.States(c.Request.Context())
		if err != nil {
			s.fail(c, err)
			return
		}
		for i := range all {
			out.Items = append(out.Items, presentChannel(&all[i]))
		}
	}
	s.answer(c, http.StatusOK, out)
}

func presentChannel(ch *parry.Channel) api.Channel {
	out := api.Channel{
		Name: ch.Channel, Type: ch.Type, Events: []string{}, MinSeverity: string(ch.Subscription.Least), Waiting: ch.Waiting, Failing: ch.Failing,
		Oldest: utc(ch.Oldest), DeliveredAt: utc(ch.DeliveredAt), FailedAt: utc(ch.FailedAt), LastError: ch.LastError,
	}
	if out.MinSeverity == "" {
		out.MinSeverity = string(parry.SeverityInfo)
	}
	for _, k := range ch.Subscription.Kinds {
		out.Events = append(out.Events, string(k))
	}
	return out
}

// TestChannel waits for the other side: its deadline is the channel's own, and the answer's goes beyond any of these.
func (s *Server) TestChannel(c *gin.Context, name string) {
	if s.o.Channels == nil {
		s.fail(c, parry.Errorf(parry.KindNotFound, "there is no channel %q", name))
		return
	}
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(3 * time.Minute)) // where it cannot be set, the server's holds
	answer, took, err := s.o.Channels.Test(c.Request.Context(), name)
	if k := parry.KindOf(err); err != nil && (k == parry.KindNotFound || k == parry.KindConflict) {
		s.fail(c, err)
		return
	}
	out := api.ChannelTest{Delivered: err == nil, Answer: answer, Milliseconds: took.Milliseconds()}
	if err != nil {
		out.Answer = err.Error()
	}
	outcome := "done"
	if !out.Delivered {
		outcome = "failed"
	}
	s.note(c.Request.Context(), parry.AuditEvent{Action: parry.ActNotifyTest, Object: name, Outcome: outcome})
	s.o.Logger.InfoContext(c.Request.Context(), "a channel was tested", "channel", name, "delivered", out.Delivered, "by", principal(c).Token.Name)
	s.answer(c, http.StatusOK, out)
}
