package httpapi

import (
	"bytes"
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/feeds"
	"github.com/parry/parry/internal/parry"
)

// Feeds is what the API needs of the feeds; [feeds.Feeds] documents each method.
type Feeds interface {
	Get(q feeds.Query) (feeds.Query, *feeds.Rendering, error)
	Read(pr *parry.Principal, q feeds.Query, r *feeds.Rendering, status int, etag string)
	Count(name string, status int)
	Status() (all []feeds.Status, fresh time.Time)
	Readers(ctx context.Context) ([]feeds.Reader, error)
	MaxAge() time.Duration
}

// GetFeed serves a feed from its rendered bytes, or tells the caller that it has them.
func (s *Server) GetFeed(c *gin.Context, name string, params api.GetFeedParams) {
	defer func() { s.o.Feeds.Count(name, c.Writer.Status()) }()
	q, r, err := s.o.Feeds.Get(feedQuery(name, &params))
	if err != nil {
		s.fail(c, err)
		return
	}
	h := c.Writer.Header()
	h.Set("Cache-Control", "private, max-age="+strconv.Itoa(int(s.o.Feeds.MaxAge().Seconds())))
	h.Set("Vary", "Accept-Encoding")
	h.Set("Content-Type", r.ContentType)
	h.Set("X-Parry-Entries", strconv.Itoa(r.Entries))
	h.Set("X-Parry-Revision", strconv.FormatInt(int64(r.Revision), 10))
	if r.Entries < r.Total {
		h.Set("X-Parry-Truncated", strconv.Itoa(r.Entries)+" of "+strconv.Itoa(r.Total))
	}
	if r.LeftOut > 0 {
		h.Set("X-Parry-Left-Out", strconv.Itoa(r.LeftOut))
	}
	body, etag := r.Body, r.ETag
	if takesGzip(c.Request.Header.Values("Accept-Encoding")) {
		body, etag = r.Gzip()
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("ETag", etag)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	for _, part := range []string{"Range", "If-Range", "If-Match", "If-Unmodified-Since"} {
		c.Request.Header.Del(part) // a list is read whole, and 412 would have no body
	}
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(2 * time.Minute)) // where it cannot be set, the server's holds
	http.ServeContent(c.Writer, c.Request, "", r.Modified, bytes.NewReader(body))
	if c.Request.Method == http.MethodGet {
		s.o.Feeds.Read(principal(c), q, r, c.Writer.Status(), etag)
	}
}

// HeadFeed is GetFeed without the body.
func (s *Server) HeadFeed(c *gin.Context, name string, params api.HeadFeedParams) {
	s.GetFeed(c, name, api.GetFeedParams(params))
}

func feedQuery(name string, p *api.GetFeedParams) feeds.Query {
	q := feeds.Query{Name: name, Limit: number(p.Limit), Family: number(p.Family), Category: number(p.Category), Score: number(p.Score)}
	if p.Format != nil {
		q.Format = feeds.Format(*p.Format)
	}
	if p.Scope != nil {
		q.Scope = feeds.Scope(*p.Scope)
	}
	if p.Aggregate != nil {
		q.Aggregate = *p.Aggregate
	}
	if p.Value != nil {
		q.Value = *p.Value
	}
	return q
}

// number is 0 when none was given; a 0 that was given is out of bounds.
func number(p *int) int {
	switch {
	case p == nil:
		return 0
	case *p == 0:
		return -1
	default:
		return *p
	}
}

// takesGzip reads Accept-Encoding (RFC 9110, 12.5.3): gzip is taken when it, or else "*", is named with another weight than 0.
func takesGzip(headers []string) bool {
	star := false
	for part := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		coding, params, _ := strings.Cut(part, ";")
		name, value, _ := strings.Cut(params, "=")
		weight, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		takes := !strings.EqualFold(strings.TrimSpace(name), "q") || err == nil && weight > 0
		switch coding = strings.TrimSpace(coding); {
		case strings.EqualFold(coding, "gzip"), strings.EqualFold(coding, "x-gzip"):
			return takes
		case coding == "*":
			star = takes
		}
	}
	return star
}

// ListFeeds tells of the feeds and of who reads them.
func (s *Server) ListFeeds(c *gin.Context) {
	readers, err := s.o.Feeds.Readers(c.Request.Context())
	if err != nil {
		s.fail(c, err)
		return
	}
	all, fresh := s.o.Feeds.Status()
	out := api.FeedList{AsOf: utc(fresh), Feeds: []api.Feed{}, Readers: []api.FeedReader{}}
	for _, f := range all {
		p := api.Feed{
			Name: f.Name, Type: api.FeedType(f.Type), Entries: f.Entries, Formats: []api.FeedFormat{}, Revision: int64(f.Revision), ChangedAt: utc(f.Changed),
		}
		for _, format := range f.Formats {
			p.Formats = append(p.Formats, api.FeedFormat(format))
		}
		out.Feeds = append(out.Feeds, p)
	}
	for _, r := range readers {
		out.Readers = append(out.Readers, api.FeedReader{
			Feed: r.Feed, Token: r.TokenName, TokenID: string(r.TokenID), Form: r.Query, RemoteAddr: addr(r.Remote), LastRead: r.LastRead.UTC(),
			Status: r.Status, Etag: r.ETag, Revision: int64(r.Revision), Reads: r.Reads, BehindSince: utc(r.Behind),
		})
	}
	s.answer(c, http.StatusOK, out)
}
