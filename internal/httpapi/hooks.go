package httpapi

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/hooks"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
)

const originWazuh = "wazuh"

// HookWazuh takes an alert as Wazuh sends it. Unlike other bodies it is decoded leniently, because its fields are not parry's.
func (s *Server) HookWazuh(c *gin.Context, params api.HookWazuhParams) {
	pr, now := principal(c), s.o.Now()
	if err := s.o.Auth.Allow(pr); err != nil {
		s.fail(c, err)
		return
	}
	body, err := readBodyUpTo(c, hooks.MaxSize)
	if err != nil {
		s.fail(c, err)
		return
	}
	alert, err := hooks.ReadWazuh(body)
	if err != nil {
		s.fail(c, parry.Invalid("", "%s", err))
		return
	}
	verdict := s.judge(alert, now)
	answer := api.HookDecision{Decision: api.HookDecisionDecisionBlock, Alert: presentAlert(alert, &verdict), DryRun: orZero(params.DryRun)}
	if verdict.Code != "" {
		ignored(&answer, string(verdict.Code), verdict.Detail)
		s.decided(c, http.StatusOK, &answer)
		return
	}
	ask := blockAsk{
		match: parry.Match{Source: netip.PrefixFrom(verdict.Source, verdict.Source.BitLen())}, selector: s.agentSelector(alert.Agent, alert.AgentID),
		ttl: verdict.TTL, alert: true, dry: answer.DryRun, reason: alert.Description, origin: originWazuh, alertID: alert.ID, ruleID: alert.RuleID,
	}
	if checkEventTime(alert.Time, now) == nil { // else the SIEM's clock is wrong, which is no reason to let an attacker in
		ask.eventTime = alert.Time
	}
	a, err := s.admission(c, &ask, now)
	if err != nil {
		if !answer.DryRun {
			err = s.listInstead(c, err)
		}
		s.fail(c, repoint(err, verdict.Place))
		return
	}
	if key, ok := alert.Key(verdict.Source); ok {
		a.Idempotency = &parry.Idempotency{Scope: scopeOf(c, pr), Key: hex.EncodeToString(key[:]), Hash: key}
	}
	answer.Firewalls = a.Key.Selector.Names()
	status := http.StatusOK
	if answer.DryRun {
		err = s.tryAlert(c.Request.Context(), &answer, &a, now)
	} else if answer.Block, status, err = s.put(c, nil, a); err == nil && !answer.Block.EndedAt.IsZero() {
		ignored(&answer, string(api.HookDecisionReasonEnded), "the event is from before its block ended, and counts as evidence only")
	}
	if err != nil {
		s.fail(c, repoint(err, verdict.Place))
		return
	}
	s.decided(c, status, &answer)
}

// tryAlert fills in the answer to a dry run.
func (s *Server) tryAlert(ctx context.Context, answer *api.HookDecision, a *parry.Admission, now time.Time) error {
	f, err := s.foresee(ctx, a, now)
	switch {
	case err != nil:
		return err
	case f.live != nil:
		answer.Block = *f.live
	case f.late:
		ignored(answer, string(api.HookDecisionReasonEnded), "the event is older than its block would last, and would count as evidence only")
	}
	answer.TTL = parry.FormatTTL(f.ttl) // an alert never asks for a block without end
	return nil
}

// judge holds an alert against the settings and the never-block list, which says what else is our own side.
func (s *Server) judge(alert *hooks.Alert, now time.Time) hooks.Verdict {
	set := s.o.Wazuh()
	configured := set.Internal
	set.Internal = func(a netip.Addr) string {
		if configured != nil {
			if why := configured(a); why != "" {
				return why
			}
		}
		p := netip.PrefixFrom(a, a.BitLen())
		if x, ok := s.o.Policy.Overlapping(p, now); ok {
			return policy.Describe(p, x)
		}
		return ""
	}
	return set.Judge(alert)
}

func ignored(answer *api.HookDecision, reason, detail string) {
	answer.Decision, answer.Reason, answer.Detail = api.HookDecisionDecisionIgnored, api.HookDecisionReason(reason), detail
}

// decided answers, and counts what was no dry run.
func (s *Server) decided(c *gin.Context, status int, answer *api.HookDecision) {
	if outcome := string(answer.Reason); !answer.DryRun {
		if outcome == "" {
			outcome = string(answer.Decision)
		}
		s.metrics.alerts.WithLabelValues(originWazuh, outcome).Inc()
		s.o.Logger.LogAttrs(c.Request.Context(), slog.LevelDebug, "an alert came", slog.String("request_id", requestID(c)), slog.String("outcome", outcome),
			slog.String("alert_id", answer.Alert.ID), slog.String("rule_id", answer.Alert.RuleID), slog.String("detail", answer.Detail))
	}
	s.answer(c, status, answer)
}

// repoint lets the fields of an error point at what an alert has in their place.
func repoint(err error, place string) error {
	var e *parry.Error
	if !errors.As(err, &e) {
		return err
	}
	to := map[string]string{"/source": "/" + strings.ReplaceAll(place, ".", "/"), "/firewalls": "/agent", "/ttl": "/rule"}
	for i, f := range e.Fields {
		if p, ok := to[f.Pointer]; ok {
			e.Fields[i].Pointer = p
		}
	}
	return err
}

func presentAlert(a *hooks.Alert, v *hooks.Verdict) api.HookAlert {
	return api.HookAlert{
		Source: addr(v.Source), FoundIn: v.Place, ID: a.ID, RuleID: a.RuleID, RuleLevel: max(a.Level, 0), Description: a.Description,
		Agent: a.Agent, AgentID: a.AgentID, EventTime: a.Time,
	}
}
