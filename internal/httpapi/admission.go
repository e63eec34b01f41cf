package httpapi

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
)

// admission holds an ask against the fleet and the policy, on behalf of whoever sends the request.
func (s *Server) admission(c *gin.Context, ask *blockAsk, now time.Time) (parry.Admission, error) {
	pr, fleet := principal(c), s.o.Fleet()
	scope := s.scope(fleet, ask.selector)
	switch {
	case scope.unknown != nil:
		return parry.Admission{}, parry.Invalid("/firewalls", "%s", scope.unknown)
	case len(scope.firewalls) == 0:
		e := parry.Errorf(parry.KindRefused, "no firewall would take this block")
		e.Fields = []parry.FieldError{{Pointer: "/firewalls", Detail: fmt.Sprintf("%q means no firewall today", ask.selector)}}
		return parry.Admission{}, e
	}
	listed := s.o.Lists.Judge(ask.match.Source)
	if !ask.dry {
		s.insist.asked(&pr.Token, now)
	}
	terms, err := s.o.Policy.Admit(pr, fleet, policy.Ask{
		Source: ask.match.Source, Selector: ask.selector, TTL: ask.ttl, NoEnd: ask.noEnd, Alert: ask.alert, Least: listed.TTL,
	}, now)
	if err != nil {
		if x, protected := s.o.Policy.Overlapping(ask.match.Source, now); protected && parry.KindOf(err) == parry.KindRefused && !ask.dry {
			s.insisted(c, policy.Describe(ask.match.Source, x), now)
		}
		return parry.Admission{}, err
	}
	if err := s.expressible(scope.firewalls, ask.match); err != nil {
		return parry.Admission{}, err
	}
	put := ask.entry(pr, now)
	if listed.Instead != "" {
		return parry.Admission{}, newListedInstead(&listed, ask.match.Source, put)
	}
	set := s.o.Settings()
	a := parry.Admission{
		BlockID: parry.NewBlockID(now),
		Request: parry.Request{
			ID: parry.NewRequestID(now), ReceivedAt: now, EventTime: ask.eventTime, TTL: terms.TTL, TokenID: pr.Token.ID, TokenName: pr.Token.Name,
			RemoteAddr: s.remote(c), Origin: ask.origin, AlertID: ask.alertID, RuleID: ask.ruleID, Reason: ask.reason,
		},
		Key: parry.Key{Match: ask.match, Selector: ask.selector}, NoEnd: terms.NoEnd, MaxExpires: terms.MaxExpires,
		MaxBlocks: set.MaxBlocks, MaxRules: scope.maxRules, RuleScope: scope.selectors, WidenBeyond: set.WidenBeyondMax,
		Ladder: terms.Ladder, LadderTTL: terms.LadderTTL, EndsGrace: terms.EndsGrace, Promote: terms.Promote,
		Lists: s.o.Lists.OfBlock(ask.match.Source, put),
	}
	if set.Simulates != nil && set.Simulates(ask.origin, ask.ruleID) { // an offence, a rule on a firewall and a list's entry are real things
		a.Simulate, a.Ladder, a.LadderTTL, a.Promote, a.MaxRules, a.Lists = true, nil, false, nil, 0, nil
	}
	return a, nil
}

// expressible refuses a match that no firewall in scope can express. One that only some can is rejected by the others in their runs.
func (s *Server) expressible(scope []*parry.Firewall, m parry.Match) error {
	if s.o.Express == nil {
		return nil
	}
	e := parry.Errorf(parry.KindRefused, "no firewall in scope can express this block")
	for _, fw := range scope {
		err := s.o.Express(fw, m)
		if err == nil {
			return nil
		}
		e.Fields = append(e.Fields, parry.FieldError{Pointer: "/firewalls", Detail: fw.Name + ": " + err.Error()})
	}
	return e
}

func idempotency(c *gin.Context, pr *parry.Principal, given *string, body []byte) (*parry.Idempotency, error) {
	if given == nil {
		return nil, nil
	}
	key := *given
	printable := func(r rune) bool { return r > ' ' && r < 0x7f }
	if key == "" || len(key) > 128 || strings.ContainsFunc(key, func(r rune) bool { return !printable(r) }) {
		return nil, parry.Invalid("Idempotency-Key", "write 1 to 128 printable ASCII characters without blanks")
	}
	return &parry.Idempotency{Scope: scopeOf(c, pr), Key: key, Hash: sha256.Sum256(body)}, nil
}

// scopeOf is within what idempotency keys are unique.
func scopeOf(c *gin.Context, pr *parry.Principal) string {
	who := string(pr.Token.ID)
	if who == "" {
		who = auth.LocalName
	}
	return who + " " + c.Request.Method + " " + c.FullPath()
}

// scopes remembers what selectors mean, for one fleet.
type scopes struct {
	fleet *parry.Fleet
	means map[parry.Selector]*scope
}

type scope struct {
	unknown   error // the selector holds a name that means nothing
	firewalls []*parry.Firewall
	maxRules  int              // the least of theirs; 0 is no limit
	selectors []parry.Selector // those that put rules on one of these firewalls too
}

const maxScopes = 256 // callers make selectors

// scope says what a selector means. The answer is shared: it must not be changed.
func (s *Server) scope(fleet *parry.Fleet, sel parry.Selector) *scope {
	known := s.scopes.Load()
	if known != nil && known.fleet == fleet {
		if sc := known.means[sel]; sc != nil {
			return sc
		}
	}
	sc := newScope(fleet, sel)
	next := &scopes{fleet: fleet, means: map[parry.Selector]*scope{sel: sc}}
	if known != nil && known.fleet == fleet && len(known.means) < maxScopes {
		for k, v := range known.means {
			next.means[k] = v
		}
	}
	s.scopes.Store(next) // a race forgets one, which is made again
	return sc
}

func newScope(fleet *parry.Fleet, sel parry.Selector) *scope {
	if err := fleet.Check(sel); err != nil {
		return &scope{unknown: err}
	}
	sc := &scope{firewalls: fleet.Scope(sel)}
	names := []string{string(parry.SelectAll)}
	for _, fw := range sc.firewalls {
		if fw.MaxRules > 0 && (sc.maxRules == 0 || fw.MaxRules < sc.maxRules) {
			sc.maxRules = fw.MaxRules
		}
		names = append(append(names, fw.Name), fw.Groups...)
		if fleet.Selects(parry.SelectDefault, fw) {
			names = append(names, string(parry.SelectDefault))
		}
	}
	slices.Sort(names)
	for _, n := range slices.Compact(names) {
		sc.selectors = append(sc.selectors, parry.Selector(n))
	}
	if !slices.Contains(sc.selectors, sel) {
		sc.selectors = append(sc.selectors, sel) // one of several names
	}
	return sc
}

// put takes what was admitted into the desired state and sets the answer's headers. status is that of the block's answer: 201 for a new
// block, 200 for a refreshed one, 202 when the wait was over too early.
func (s *Server) put(c *gin.Context, w *waiting, a parry.Admission) (shown api.Block, status int, err error) {
	ctx := c.Request.Context()
	done, err := s.o.Store.Put(ctx, a)
	if err != nil {
		return shown, 0, err
	}
	c.Set("block_id", string(done.Block.ID))
	for _, name := range done.Unlisted {
		s.metrics.unlisted.WithLabelValues(name).Inc()
		s.o.Logger.WarnContext(ctx, "a blocked source did not go on its list, which is full or gone", "list", name, "block_id", string(done.Block.ID))
	}
	shown, ok, err := s.showAdmitted(ctx, w, &done)
	switch {
	case err != nil && ctx.Err() != nil: // nobody is there any more
		return shown, 0, fmt.Errorf("show block %s, which was accepted: %w", done.Block.ID, err)
	case err != nil: // an error would say that it was not accepted
		s.o.Logger.WarnContext(ctx, "a block was accepted, and cannot be shown as it stands", "request_id", requestID(c), "block_id", string(done.Block.ID), "err", err)
		shown, ok = picture{fleet: s.o.Fleet(), becomes: s.o.Becomes}.present(&done.Block, nil), w == nil
	}
	shown.NotPromoted = done.NotPromoted
	status = http.StatusOK
	switch {
	case !ok:
		status = http.StatusAccepted
	case done.Created && done.Block.Live():
		status = http.StatusCreated
	}
	c.Header("Location", "/api/v1/blocks/"+shown.ID)
	if done.Replayed {
		c.Header("Idempotency-Replayed", "true")
	}
	return shown, status, nil
}

func (s *Server) showAdmitted(ctx context.Context, w *waiting, done *parry.Admitted) (b api.Block, ok bool, err error) {
	switch {
	case w != nil:
		return w.settle(ctx, done.Block.ID)
	case done.Created: // nothing can have been proved or rejected of it
		p, err := s.recentPicture(ctx)
		if err != nil {
			return b, false, fmt.Errorf("read the firewalls: %w", err)
		}
		return p.present(&done.Block, nil), true, nil
	default:
		shown, err := s.show(ctx, done.Block)
		if err != nil {
			return b, false, err
		}
		return shown[0], true, nil
	}
}
