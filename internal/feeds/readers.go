package feeds

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parry/parry/internal/parry"
)

const maxReaders = 4096 // remembered here; the store forgets those that are silent for long

// readers are those who fetched a feed since the last save, on this replica.
type readers struct {
	mu    sync.Mutex
	fresh map[parry.FeedReaderKey]parry.FeedReader
}

// Read notes that a caller was answered with a rendering, or told that it has it. Root at the local socket only looks.
func (f *Feeds) Read(pr *parry.Principal, q Query, r *Rendering, status int, etag string) {
	if !pr.Remote.IsValid() {
		return
	}
	k := parry.FeedReaderKey{TokenID: pr.Token.ID, Feed: q.Name, Query: q.form(), Remote: pr.Remote}
	f.readers.mu.Lock()
	defer f.readers.mu.Unlock()
	got, known := f.readers.fresh[k]
	if f.readers.fresh == nil {
		f.readers.fresh = map[parry.FeedReaderKey]parry.FeedReader{}
	}
	if !known && len(f.readers.fresh) >= maxReaders {
		return
	}
	f.readers.fresh[k] = parry.FeedReader{
		FeedReaderKey: k, TokenName: pr.Token.Name, LastRead: f.o.Now(), Status: status, ETag: etag, Revision: r.Revision, Reads: got.Reads + 1,
	}
}

// form is what tells one reader of a caller from another. It leaves out what a caller could vary without end.
func (q Query) form() string {
	s := "format=" + string(q.Format)
	if q.Scope == ScopeAll {
		s += "&scope=all"
	}
	switch q.Family {
	case 4:
		s += "&family=4"
	case 6:
		s += "&family=6"
	}
	if q.Aggregate && !q.Format.cdb() {
		s += "&aggregate=true"
	}
	return s
}

// save moves what was noted into the store. What cannot be written is kept for the next time.
func (f *Feeds) save(ctx context.Context) {
	f.readers.mu.Lock()
	fresh := f.readers.fresh
	f.readers.fresh = nil
	f.readers.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	if err := f.o.Store.SaveFeedReaders(ctx, sorted(fresh)); err != nil {
		if ctx.Err() == nil {
			f.o.Logger.WarnContext(ctx, "who reads the feeds was not recorded", "err", err)
		}
		f.readers.mu.Lock()
		defer f.readers.mu.Unlock()
		f.readers.fresh = merge(fresh, sorted(f.readers.fresh))
	}
}

func sorted(m map[parry.FeedReaderKey]parry.FeedReader) []parry.FeedReader {
	out := make([]parry.FeedReader, 0, len(m))
	for _, r := range m {
		out = append(out, r)
	}
	slices.SortFunc(out, byName)
	return out
}

func byName(a, b parry.FeedReader) int {
	for _, c := range []int{
		strings.Compare(a.Feed, b.Feed), strings.Compare(a.TokenName, b.TokenName), a.Remote.Compare(b.Remote), strings.Compare(a.Query, b.Query),
	} {
		if c != 0 {
			return c
		}
	}
	return strings.Compare(string(a.TokenID), string(b.TokenID))
}

// merge adds later readings to known ones.
func merge(known map[parry.FeedReaderKey]parry.FeedReader, later []parry.FeedReader) map[parry.FeedReaderKey]parry.FeedReader {
	for _, r := range later {
		if k, ok := known[r.FeedReaderKey]; ok {
			reads := k.Reads + r.Reads
			if k.LastRead.After(r.LastRead) {
				r = k
			}
			r.Reads = reads
		}
		known[r.FeedReaderKey] = r
	}
	return known
}

// Reader is one who fetches a feed, and how far behind it is.
type Reader struct {
	parry.FeedReader
	Behind time.Time // since when the feed has had keys that it has not, or lacks keys that it has; zero when it is up to date
}

// Readers lists who read the feeds in the last 30 days, here and on other replicas, by feed and token.
func (f *Feeds) Readers(ctx context.Context) ([]Reader, error) {
	saved, err := f.o.Store.FeedReaders(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[parry.FeedReaderKey]parry.FeedReader, len(saved))
	for _, r := range saved {
		all[r.FeedReaderKey] = r
	}
	f.readers.mu.Lock()
	all = merge(all, sorted(f.readers.fresh))
	f.readers.mu.Unlock()
	out := make([]Reader, 0, len(all))
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, r := range sorted(all) {
		rd := Reader{FeedReader: r}
		if s := f.feeds[r.Feed]; s != nil {
			rd.Behind = s.behind(r.Revision, r.LastRead)
		}
		out = append(out, rd)
	}
	return out, nil
}
