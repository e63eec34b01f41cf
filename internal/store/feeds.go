package store

import (
	"context"
	"database/sql"
	"net/netip"
	"time"

	"github.com/parry/parry/internal/parry"
)

const feedReaderStays = 30 * 24 * time.Hour // after its last read

// SaveFeedReaders adds what was noted of readers since the last time: reads are added up, the rest is replaced unless it is older.
func (s *Store) SaveFeedReaders(ctx context.Context, rs []parry.FeedReader) error {
	return s.write(ctx, "record who reads the feeds", func(t *tx) error {
		for i := range rs {
			r := &rs[i]
			err := t.exec(`INSERT INTO feed_readers AS f (feed, token_id, query, remote, token_name, last_read, status, etag, rev, reads)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
				ON CONFLICT (feed, token_id, query, remote) DO UPDATE SET reads = f.reads + excluded.reads,
				token_name = CASE WHEN f.last_read <= excluded.last_read THEN excluded.token_name ELSE f.token_name END,
				status = CASE WHEN f.last_read <= excluded.last_read THEN excluded.status ELSE f.status END,
				etag = CASE WHEN f.last_read <= excluded.last_read THEN excluded.etag ELSE f.etag END,
				rev = CASE WHEN f.last_read <= excluded.last_read THEN excluded.rev ELSE f.rev END,
				last_read = CASE WHEN f.last_read <= excluded.last_read THEN excluded.last_read ELSE f.last_read END`,
				r.Feed, string(r.TokenID), r.Query, r.Remote.String(), r.TokenName, micros(r.LastRead), int64(r.Status), r.ETag, int64(r.Revision), r.Reads)
			if err != nil {
				return err
			}
		}
		return t.exec(`DELETE FROM feed_readers WHERE last_read < $1`, micros(t.now.Add(-feedReaderStays)))
	})
}

// FeedReaders lists who read feeds in the last 30 days and whose token is not revoked, in no order.
func (s *Store) FeedReaders(ctx context.Context) ([]parry.FeedReader, error) {
	rs, err := collect(ctx, s.reads, `SELECT feed, token_id, query, remote, token_name, last_read, status, etag, rev, reads FROM feed_readers
		WHERE last_read >= $1 AND NOT EXISTS (SELECT 1 FROM tokens k WHERE k.id = feed_readers.token_id AND k.revoked_at > 0)`, []any{micros(s.now().Add(-feedReaderStays))}, func(row *sql.Rows) (r parry.FeedReader, err error) {
		var remote string
		var read int64
		err = row.Scan(&r.Feed, &r.TokenID, &r.Query, &remote, &r.TokenName, &read, &r.Status, &r.ETag, &r.Revision, &r.Reads)
		if err != nil {
			return r, err
		}
		r.LastRead = fromMicros(read)
		r.Remote, err = netip.ParseAddr(remote)
		return r, err
	})
	return rs, s.wrap(err, "list who reads the feeds")
}
