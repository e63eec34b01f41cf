package store_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
	"github.com/parry/parry/internal/testenv"
)

func TestMain(m *testing.M) {
	if dsn := os.Getenv("PARRY_TEST_WRITER"); dsn != "" {
		os.Exit(writeUntilKilled(dsn))
	}
	goleak.VerifyTestMain(m)
}

// clock is set by the test; it never runs by itself.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	return c.now
}

// env is a store on a fresh database, with a clock of its own.
type env struct {
	*store.Store
	*testing.T
	clock *clock
	opts  store.Options
	made  int
}

// suite is what every engine must do. Each case is a method on env, named as a specification.
var suite = []func(*env){
	offencesClimbTheLadder, offencesDecay, offencesDecayFromTheTrueEnd, refreshesAreNoOffences, offencesLastAsLongAsABlockStands,
	offencesOfIPv6CountByNetwork, offencesHoldToCapsAndExplicitTTLs, oneOffenceOfManyAtOnce, offencesAreNotCountedTwice,
	refusedRequestsAreNoOffences, unblockGivesGrace, graceEndsByItselfOrByAnOperator, promotionAtTheFifthSource,
	promotionKnowsWhatSpeaksAgainstIt, promotionOfManyAtOnce, offencesDecayFromAnEndNoticedLate, pruneForgetsOffenders,
	putStoresEverything, putRefreshesTheLiveBlock, putNeverShortens, putHoldsToTheCap, putCountsTTLFromTheEvent, putWithoutEndStaysWithoutEnd,
	putPastItsTimeIsEvidenceOnly, putOlderThanADeleteIsEvidenceOnly, putMeetsADueBlock, putKeepsFirstAndLastRequests, putTellsKeysApart,
	putRepeatsAnAnswer, putRefusesAKeyWithAnotherBody, putForgetsNothingTwice, putIsolatesABadRow, putHoldsToMaxBlocks, putHoldsToMaxRules,
	putHoldsToMaxRulesOfSeveralNames, putWidensBeyondMaxRules, putAnswersBusyWhenTheQueueIsFull, putOutlivesItsCaller,
	setExpiryMovesTheEnd, endBlockTellsWhatStillCovers, endBlocksEndsWhatMatches, endDueEndsWhatIsDue, exemptionEndsOverlappingBlocks,
	blocksFilterAndPage, changesGiveWhatWasWritten, requestsPage,
	firewallsComeAndGo, holdsOfOneAndAll, holdsEndByThemselves, panicEmptiesAndHolds, panicOfAllEndsForSome, approvalsAreAskedDecidedAndUsed, simulatedBlocksAreEvidenceUntilARealOneIsAskedFor, wordsAreUsedUp, rejectsAreReplaced, runsBeginAndFinish, runsOfADeadControllerAreAbandoned, sentIsWhatARunMayHaveBrought,
	lanesExclude, laneEpochsFence, outboxDeliversAtLeastOnce, tokensComeAndGo, pruneKeepsWhatIsNeeded, wakesCoalesce, appliedAdvancesWithoutARun,
	runsCountForWhatTheyWereSentFor,
	revisionsGrow, controllerIDStays, closedStoreIsUnavailable, replicasPutAtOnce, replicasShareTheLimits, cancelledWritesAreDoneOrNot,
	blockEventsAreWrittenForWhoWantsThem, bulkDeliveriesWaitAndFold, pruneForgetsWhatNobodyDelivers,
	feedReadersAddUp,
	factsAreKeptWhenTheyChange,
	pinsAreWords, trialsReleaseOrAreRefused, bundleProblemsAreToldOnce, checksWaitForTheirRun, usesAreThoseOfKeptRuns,
}

func TestStore(t *testing.T) {
	t.Parallel()
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			for _, c := range slices.Concat(suite, listSuite, auditSuite) {
				name := runtime.FuncForPC(reflect.ValueOf(c).Pointer()).Name()
				t.Run(name[strings.LastIndex(name, ".")+1:], func(t *testing.T) {
					t.Parallel()
					c(newEnv(t, e.open(t)))
				})
			}
		})
	}
}

var engines = []struct {
	name string
	open func(testing.TB) store.Options
}{
	{"sqlite", func(tb testing.TB) store.Options { return store.Options{Path: filepath.Join(tb.TempDir(), "parry.db")} }},
	{"postgres", func(tb testing.TB) store.Options {
		return store.Options{Driver: "postgres", DSN: testenv.Postgres(tb, testenv.PostgresOptions{})}
	}},
}

func newEnv(t *testing.T, o store.Options) *env {
	t.Helper()
	e := &env{T: t, clock: &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}, opts: o}
	e.opts.Now, e.opts.Logger = e.clock.Now, slog.New(slog.DiscardHandler)
	e.open()
	return e
}

func (e *env) open() {
	e.Helper()
	s, err := store.Open(e.Context(), e.opts)
	e.ok(err)
	e.Store = s
	e.Cleanup(func() { _ = s.Close() })
}

// replica opens the same database once more; PostgreSQL only.
func (e *env) replica() *store.Store {
	e.Helper()
	s, err := store.Open(e.Context(), e.opts)
	e.ok(err)
	e.Cleanup(func() { _ = s.Close() })
	return s
}

func (e *env) postgres() bool { return e.opts.Driver == "postgres" }

// raw is a connection of the test's own to the database.
func (e *env) raw() *sql.DB {
	e.Helper()
	driver, dsn := "sqlite", "file:"+e.opts.Path+"?_pragma=busy_timeout(5000)"
	if e.postgres() {
		driver, dsn = "pgx", e.opts.DSN
	}
	db, err := sql.Open(driver, dsn)
	e.ok(err)
	e.Cleanup(func() { _ = db.Close() })
	return db
}

// blockWriter keeps the writer waiting in its next transaction, until the returned function is called.
func (e *env) blockWriter() (release func()) {
	e.Helper()
	c, err := e.raw().Conn(e.Context())
	e.ok(err)
	begin := []string{"BEGIN IMMEDIATE"}
	if e.postgres() {
		begin = []string{"BEGIN", "SELECT rev FROM state FOR UPDATE"}
	}
	for _, q := range begin {
		_, err := c.ExecContext(e.Context(), q)
		e.ok(err)
	}
	return func() {
		_, err := c.ExecContext(context.Background(), "ROLLBACK")
		e.ok(err)
		e.ok(c.Close())
	}
}

func (e *env) ok(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *env) wantKind(err error, want parry.Kind) {
	e.Helper()
	if err == nil || parry.KindOf(err) != want {
		e.Fatalf("got error %v of kind %s, want kind %s", err, parry.KindOf(err), want)
	}
}

// eventually waits for what another goroutine or replica brings about.
func (e *env) eventually(what string, cond func() bool) {
	e.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			e.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (e *env) woken(c <-chan struct{}, what string) {
	e.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		e.Fatalf("not woken within 20 s: %s", what)
	}
}

func same[T comparable](e *env, what string, got, want T) {
	e.Helper()
	if got != want {
		e.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func at(s string) parry.Key {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a := netip.MustParseAddr(s)
		p = netip.PrefixFrom(a, a.BitLen())
	}
	return parry.Key{Match: parry.Match{Source: p}, Selector: parry.SelectDefault}
}

// ask makes an admission of an hour for a source.
func (e *env) ask(source string) parry.Admission { return e.askFor(at(source), time.Hour) }

func (e *env) askFor(k parry.Key, ttl time.Duration) parry.Admission {
	now := e.clock.Now()
	e.made++
	return parry.Admission{
		BlockID: parry.NewBlockID(now), Key: k, MaxExpires: now.Add(30 * 24 * time.Hour),
		Request: parry.Request{ID: parry.NewRequestID(now), ReceivedAt: now, TTL: ttl, TokenID: "t-1", TokenName: "ossim",
			RemoteAddr: netip.MustParseAddr("192.0.2.9"), Reason: fmt.Sprint("reason ", e.made), Origin: "siem"},
	}
}

func (e *env) put(a parry.Admission) parry.Admitted {
	e.Helper()
	r, err := e.Put(e.Context(), a)
	e.ok(err)
	return r
}

func (e *env) block(id parry.BlockID) parry.Block {
	e.Helper()
	b, err := e.Block(e.Context(), id)
	e.ok(err)
	return b
}

func (e *env) sync(names ...string) {
	e.Helper()
	var fws []parry.Firewall
	for _, n := range names {
		name, digest, _ := strings.Cut(n, "@")
		digest, simulate := strings.CutSuffix(digest, "~")
		fws = append(fws, parry.Firewall{Name: name, Digest: digest, Simulate: simulate})
	}
	e.ok(e.SyncFirewalls(e.Context(), fws))
}

func (e *env) firewall(name string) parry.FirewallState {
	e.Helper()
	f, err := e.FirewallState(e.Context(), name)
	e.ok(err)
	return f
}

func (e *env) lane(name string) *store.Lane {
	e.Helper()
	l, err := e.AcquireLane(e.Context(), name)
	e.ok(err)
	return l
}

// run makes a run of the lane at the revision of now.
func (e *env) run(l *store.Lane) parry.Run {
	e.Helper()
	rev, err := e.Revision(e.Context())
	e.ok(err)
	now := e.clock.Now()
	return parry.Run{ID: parry.NewRunID(now), Firewall: l.Name, Kind: parry.RunApply, State: parry.RunRunning, Revision: rev, Epoch: l.Epoch,
		StartedAt: now, Bundle: parry.BundleRef{Name: "pfsense", Version: "1.0.0", Digest: "abc"}, Dir: "runs/x"}
}

// lifted is a plain word that ends a block and says nothing of offences and grace.
func lifted(by string) parry.Lift { return parry.Lift{By: by, Grace: parry.KeepGrace} }
