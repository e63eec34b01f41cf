package parry

import (
	"net/netip"
	"time"
)

// FeedOfBlocks names the feed of the live blocks; the others have the names of their lists.
const FeedOfBlocks = "blocks"

// FeedReaderKey is one who fetches a feed in a form.
type FeedReaderKey struct {
	TokenID TokenID
	Feed    string
	Query   string // the form: "format=plain", "format=geo&family=4"
	Remote  netip.Addr
}

// FeedReader is what is known of one who fetches a feed.
type FeedReader struct {
	FeedReaderKey
	TokenName string
	LastRead  time.Time
	Status    int      // 200, or 304 when it had that already
	ETag      string   // of what it has
	Revision  Revision // as of which it has the feed
	Reads     int64    // 200 and 304
}
