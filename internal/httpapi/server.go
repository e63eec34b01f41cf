package httpapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-playground/validator/v10"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/hooks"
	"github.com/parry/parry/internal/lists"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
)

// Store is what the API needs of the store; internal/store documents each method.
type Store interface {
	Ping(ctx context.Context) error
	Put(ctx context.Context, a parry.Admission) (parry.Admitted, error)
	Block(ctx context.Context, id parry.BlockID) (parry.Block, error)
	Blocks(ctx context.Context, f parry.BlockFilter) (parry.Page[parry.Block], error)
	Requests(ctx context.Context, id parry.BlockID, cursor string, limit int) (parry.Page[parry.Request], error)
	SetExpiry(ctx context.Context, id parry.BlockID, expires time.Time, by string) (parry.Block, error)
	EndBlock(ctx context.Context, id parry.BlockID, l parry.Lift) (b parry.Block, covered []parry.Block, err error)
	EndBlocks(ctx context.Context, f parry.BlockFilter, ok func(*parry.Key) bool, l parry.Lift, dry bool) (parry.EndedBlocks, error)
	Offender(ctx context.Context, source netip.Prefix) (parry.Offender, error)
	Rejects(ctx context.Context, ids []parry.BlockID) ([]parry.Reject, error)
	FirewallRejects(ctx context.Context, firewall string) ([]parry.Reject, error)
	Loaded(ctx context.Context, firewall string) (parry.Loaded, error)
	Firewalls(ctx context.Context) ([]parry.FirewallState, error)
	Facts(ctx context.Context) (map[string]parry.FirewallFacts, error)
	FirewallState(ctx context.Context, name string) (parry.FirewallState, error)
	SetHold(ctx context.Context, name string, h parry.Hold) error
	Panic(ctx context.Context, names []string, h parry.Hold) error
	EndPanic(ctx context.Context, names []string, by string) error
	SetVerify(ctx context.Context, name string) error
	SetRetiring(ctx context.Context, name string) error
	SetAdopt(ctx context.Context, name string) error
	Approvals(ctx context.Context, f parry.ApprovalFilter) (parry.Page[parry.Approval], error)
	Approval(ctx context.Context, id parry.ApprovalID) (parry.Approval, error)
	ApprovalDiff(ctx context.Context, id parry.ApprovalID) (parry.Diff, error)
	Decide(ctx context.Context, id parry.ApprovalID, d parry.Decision) (parry.Approval, error)
	Runs(ctx context.Context, f parry.RunFilter) (parry.Page[parry.Run], error)
	Run(ctx context.Context, id parry.RunID) (parry.Run, error)
	AddExemption(ctx context.Context, x parry.Exemption) (ended []parry.BlockID, err error)
	Exemptions(ctx context.Context) ([]parry.Exemption, error)
	RemoveExemption(ctx context.Context, id parry.ExemptionID, by string) error
	CreateToken(ctx context.Context, t parry.Token) error
	Tokens(ctx context.Context) ([]parry.Token, error)
	RevokeToken(ctx context.Context, id parry.TokenID, by string) error
	SuspendToken(ctx context.Context, id parry.TokenID, until time.Time, why string) error
	ResumeToken(ctx context.Context, name, by string) (parry.TokenID, error)
	Applied(ctx context.Context) <-chan struct{}
	Audit(ctx context.Context, events ...parry.AuditEvent) error
	AuditRows(ctx context.Context, f parry.AuditFilter) (parry.Page[audit.Row], error)
	AuditHead(ctx context.Context) (parry.AuditHead, error)
}

// RunFiles opens what a run left behind; fs.ErrNotExist when it is gone.
type RunFiles interface {
	Log(r parry.Run) (io.ReadCloser, error)
	Events(r parry.Run) (io.ReadCloser, error)
	// Command tells how to run it again by hand, and in check mode; empty where that cannot be.
	Command(r parry.Run) (again, check string)
}

// Bundles are the playbooks. Errors bear their kinds.
type Bundles interface {
	List(ctx context.Context) ([]parry.BundleView, error)
	Get(ctx context.Context, name string) (parry.BundleView, error)
	Firewalls(ctx context.Context) (map[string]parry.BundleFirewall, error)
	Diff(ctx context.Context, name, from, to string) (text string, whole bool, err error)
	Check(ctx context.Context, name, firewall, by string) (parry.BundleChecked, error)
	Use(ctx context.Context, name, firewall, digest, by string) (parry.BundleChosen, error)
	Rollback(ctx context.Context, name, firewall, by string) (parry.BundleChosen, error)
}

// Channels are the ways to tell people.
type Channels interface {
	States(ctx context.Context) ([]parry.Channel, error)
	// Test sends a test through one. An error that is no [parry.Error] of KindNotFound or KindConflict is what came of it.
	Test(ctx context.Context, name string) (answer string, took time.Duration, err error)
}

// Settings may change while the service runs.
type Settings struct {
	Simulates      func(origin, ruleID string) bool // the rule's blocks are not applied; nil: none is
	MaxBlocks      int64                            // live blocks; 0 is no limit
	WidenBeyondMax bool                             // beyond a firewall's max_rules, block the source altogether instead of refusing
	Waiters        int                              // requests that may wait at once; 256
	Grace          time.Duration                    // of a source whose block an operator lifts, unless the word says otherwise
	Suspend        Suspend                          // of tokens that keep asking for what is never blocked
	HonourDelete   bool                             // a token without RightUnblock may end the blocks that it made
}

// Suspend is when a token is suspended: after so many refusals within a time, for how long.
type Suspend struct {
	After       int           // 0: never
	Within, For time.Duration // Within 0: an hour
}

// Check is one line of /readyz.
type Check struct {
	Name     string
	Advisory bool // told, but the service is ready all the same
	Func     func(ctx context.Context) error
}

// Options of [New]. Store, Auth, Policy, Lists, Fleet, Feeds and Registry are required.
type Options struct {
	Store    Store
	Auth     *auth.Auth
	Policy   *policy.Policy
	Lists    *lists.Lists
	Fleet    func() *parry.Fleet // a new pointer after each change
	Feeds    Feeds
	Registry *prometheus.Registry

	Settings func() Settings                               // nil: the zero Settings
	Express  func(fw *parry.Firewall, m parry.Match) error // why a firewall's bundle cannot express a match; nil: all can
	// Becomes is what stands for a match on a firewall that filters after port forwarding; nil, or a nil answer: the match itself.
	Becomes  func(fw *parry.Firewall, m parry.Match) []parry.Match
	Agent    func(name string) (parry.Selector, bool) // what a SIEM's agent, by its name or id, stands for; nil: none is listed
	Wazuh    func() hooks.Settings                    // which alerts become blocks, beside the policy; nil: all
	Phase    func(firewall string) string             // what the lane does on this replica; nil: not told
	Reading  time.Duration                            // for how long a reading tells what a firewall holds; 0: for ever
	Channels Channels                                 // nil: none
	Bundles  Bundles                                  // nil: none
	RunFiles RunFiles                                 // nil: none
	Checks   []Check                                  // beside the database's and the firewalls'
	Version  func() (version, commit, built string)   // nil: "dev"
	Proxies  []string                                 // addresses and prefixes whose X-Forwarded-For is believed
	Now      func() time.Time                         // time.Now
	Logger   *slog.Logger                             // slog.Default()
}

// Server is the HTTP interface. It is an [http.Handler].
type Server struct {
	o        Options
	engine   *gin.Engine
	doc      *document
	validate *validator.Validate
	metrics  *metrics
	insist   *insisting
	refusals refusals
	scopes   atomic.Pointer[scopes]
	recent   recent
	waiters  atomic.Int64
	draining chan struct{}
	drain    sync.Once

	lookAgain time.Duration // how late those who wait notice what no run tells: a hold, a changed configuration
}

// New makes the server's handler, whose refusals [Server.Run] writes down; the listeners, the time-outs of their http.Server and [auth.ConnContext] are the caller's.
func New(o Options) (*Server, error) {
	switch {
	case o.Store == nil:
		return nil, errors.New("httpapi: Options.Store is missing")
	case o.Auth == nil:
		return nil, errors.New("httpapi: Options.Auth is missing")
	case o.Policy == nil:
		return nil, errors.New("httpapi: Options.Policy is missing")
	case o.Lists == nil:
		return nil, errors.New("httpapi: Options.Lists is missing")
	case o.Fleet == nil:
		return nil, errors.New("httpapi: Options.Fleet is missing")
	case o.Feeds == nil:
		return nil, errors.New("httpapi: Options.Feeds is missing")
	case o.Registry == nil:
		return nil, errors.New("httpapi: Options.Registry is missing")
	}
	if o.Settings == nil {
		o.Settings = func() Settings { return Settings{} }
	}
	if o.Wazuh == nil {
		o.Wazuh = func() hooks.Settings { return hooks.Settings{} }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Version == nil {
		o.Version = func() (string, string, string) { return "dev", "", "" }
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())

	s := &Server{o: o, validate: newValidator(), refusals: refusals{sums: map[refusalKey]*refusalSum{}, poke: make(chan struct{}, 1)}, draining: make(chan struct{}), lookAgain: lookAgain}
	var err error
	if s.doc, err = readDocument(); err != nil {
		return nil, fmt.Errorf("read the OpenAPI document: %w", err)
	}
	if s.metrics, err = newMetrics(o.Registry, s); err != nil {
		return nil, fmt.Errorf("register the HTTP metrics: %w", err)
	}
	if s.insist, err = newInsisting(o.Registry, o.Now, func() time.Duration { return cmp.Or(o.Settings().Suspend.Within, insistWithin) }); err != nil {
		return nil, fmt.Errorf("register the metrics of refusals: %w", err)
	}

	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.HandleMethodNotAllowed = true
	e.RedirectTrailingSlash = false
	e.RedirectFixedPath = false
	e.RemoteIPHeaders = []string{"X-Forwarded-For"}
	if err := e.SetTrustedProxies(o.Proxies); err != nil {
		return nil, fmt.Errorf("trusted proxies: %w", err)
	}
	e.Use(s.observe, s.authorize)
	e.NoRoute(func(c *gin.Context) {
		s.fail(c, parry.Errorf(parry.KindNotFound, "there is nothing at this path; GET /api/v1/openapi.json lists what there is"))
	})
	e.NoMethod(func(c *gin.Context) {
		s.fail(c, parry.Errorf(kindMethod, "this path takes %s, not %s", c.Writer.Header().Get("Allow"), c.Request.Method))
	})
	RegisterHandlersWithOptions(e, s, GinServerOptions{ErrorHandler: s.badParameter})
	s.engine = e
	return s, s.doc.covers(e.Routes())
}

var _ ServerInterface = (*Server)(nil)

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.engine.ServeHTTP(w, r) }

// Drain lets everyone who waits be answered with what is known. It is for [http.Server.RegisterOnShutdown].
func (s *Server) Drain() { s.drain.Do(func() { close(s.draining) }) }
