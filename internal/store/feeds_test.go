package store_test

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/parry/parry/internal/parry"
)

func feedReadersAddUp(e *env) {
	now := e.clock.Now()
	fw := parry.FeedReader{
		FeedReaderKey: parry.FeedReaderKey{TokenID: "t-1", Feed: "blocks", Query: "format=plain", Remote: netip.MustParseAddr("192.0.2.7")},
		TokenName:     "fw-b", LastRead: now, Status: 200, ETag: `"a"`, Revision: 7, Reads: 3,
	}
	proxy := parry.FeedReader{FeedReaderKey: parry.FeedReaderKey{TokenID: "t-3", Feed: "blocks", Query: "format=json", Remote: netip.IPv6Loopback()}, TokenName: "proxy", LastRead: now, Status: 200, ETag: `"j"`, Reads: 1}
	list := func() []parry.FeedReader {
		e.Helper()
		got, err := e.FeedReaders(e.Context())
		e.ok(err)
		slices.SortFunc(got, func(a, b parry.FeedReader) int { return strings.Compare(a.TokenName, b.TokenName) })
		return got
	}
	check := func(what string, want ...parry.FeedReader) {
		e.Helper()
		if d := cmp.Diff(want, list(), cmpopts.EquateComparable(netip.Addr{})); d != "" {
			e.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	check("none yet")
	e.ok(e.SaveFeedReaders(e.Context(), []parry.FeedReader{fw, proxy}))
	check("first", fw, proxy)

	later := fw
	later.LastRead, later.Status, later.ETag, later.Revision, later.Reads = e.clock.Advance(time.Minute), 304, `"b"`, 9, 2
	older := fw
	older.LastRead, older.ETag, older.Reads = now.Add(-time.Hour), `"0"`, 1 // of another replica, saved late
	e.ok(e.SaveFeedReaders(e.Context(), []parry.FeedReader{later, older}))
	later.Reads = 6
	check("the latest read, all counted", later, proxy)

	e.ok(e.CreateToken(e.Context(), parry.Token{ID: "t-1", Name: "fw-b", Role: parry.RoleFeed}))
	check("a token that stands", later, proxy)
	e.ok(e.RevokeToken(e.Context(), "t-1", "anna"))
	check("one that was revoked", proxy)
	later.TokenID = "t-2"
	e.ok(e.SaveFeedReaders(e.Context(), []parry.FeedReader{later}))

	e.clock.Advance(30*24*time.Hour - time.Second)
	check("silent ones are no longer told", later)
	e.clock.Advance(time.Minute)
	e.ok(e.SaveFeedReaders(e.Context(), nil))
	check("and go")
}
