package httpapi

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
)

func (b *bench) refreshFeeds() {
	b.t.Helper()
	if err := b.feeds.Refresh(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// curl is the real one, against a real listener; the arguments are its own. It gives the status, the headers' text and the body.
func (b *bench) curl(url string, args ...string) (status, head string, body []byte) {
	b.t.Helper()
	dir := b.t.TempDir()
	args = append([]string{"-q", "-sS", "-D", filepath.Join(dir, "head"), "-o", filepath.Join(dir, "body"), "-w", "%{http_code}", url}, args...)
	out, err := exec.Command("curl", args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("curl: %v: %s", err, out)
	}
	h, err := os.ReadFile(filepath.Join(dir, "head"))
	if err != nil {
		b.t.Fatal(err)
	}
	body, err = os.ReadFile(filepath.Join(dir, "body"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Fatal(err)
	}
	return string(out), string(h), body
}

func header(head, name string) string {
	for line := range strings.Lines(head) {
		if k, v, _ := strings.Cut(line, ":"); strings.EqualFold(k, name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func TestFeed_asFirewallsFetchIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	srv := httptest.NewServer(b.server)
	defer srv.Close()
	url := srv.URL + "/api/v1/feeds/blocks"
	user := "fw-b:" + b.tokens[parry.RoleFeed]
	b.refreshFeeds()

	// Nothing is blocked: 200 and a comment, never an empty body.
	status, head, body := b.curl(url, "-u", user)
	if status != "200" || string(body) != "# parry feed blocks, 0 entries\n" || header(head, "Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("empty: %s %q\n%s", status, body, head)
	}

	for i := range 300 {
		into[map[string]any](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", fmt.Sprintf(`{"source":"203.0.%d.%d"}`, 100+i>>8, i&255)), 201)
	}
	b.refreshFeeds()
	_, head, plain := b.curl(url, "-H", "Authorization: Bearer "+b.tokens[parry.RoleFeed])
	etag, modified := header(head, "ETag"), header(head, "Last-Modified")
	if !bytes.HasPrefix(plain, []byte("# parry feed blocks, 300 entries\n203.0.100.0\n")) || header(head, "Content-Length") != fmt.Sprint(len(plain)) {
		t.Errorf("plain: %.60q\n%s", plain, head)
	}
	if header(head, "Cache-Control") != "private, max-age=5" || header(head, "Vary") != "Accept-Encoding" || header(head, "X-Parry-Entries") != "300" ||
		header(head, "X-Parry-Truncated") != "" || etag == "" || modified == "" {
		t.Errorf("headers:\n%s", head)
	}

	// gzip to those who take it, under another tag.
	_, head, small := b.curl(url, "-u", user, "--compressed")
	gzipTag := header(head, "ETag")
	if !bytes.Equal(small, plain) || header(head, "Content-Encoding") != "gzip" || gzipTag == etag || header(head, "Vary") != "Accept-Encoding" {
		t.Errorf("compressed: %.60q\n%s", small, head)
	}
	_, head, small = b.curl(url, "-u", user, "-H", "Accept-Encoding: gzip")
	if z, err := gzip.NewReader(bytes.NewReader(small)); err != nil || header(head, "Content-Length") != fmt.Sprint(len(small)) || len(small) > len(plain)/2 {
		t.Errorf("gzip: %v, %d bytes", err, len(small))
	} else if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("gzip holds %.60q, %v", got, err)
	}

	// Who has it is told so; tags win over times; other bytes are other tags.
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"its tag":                      {[]string{"-H", "If-None-Match: " + etag}, "304"},
		"its tag, weakened by a proxy": {[]string{"-H", "If-None-Match: W/" + etag}, "304"},
		"one of several tags":          {[]string{"-H", `If-None-Match: "x", ` + etag}, "304"},
		"any tag":                      {[]string{"-H", "If-None-Match: *"}, "304"},
		"another tag":                  {[]string{"-H", `If-None-Match: "x"`}, "200"},
		"the tag of gzip":              {[]string{"-H", "If-None-Match: " + gzipTag}, "200"},
		"the tag of gzip, for gzip":    {[]string{"-H", "If-None-Match: " + gzipTag, "--compressed"}, "304"},
		"the tag of plain, for gzip":   {[]string{"-H", "If-None-Match: " + etag, "--compressed"}, "200"},
		"its time":                     {[]string{"-H", "If-Modified-Since: " + modified}, "304"},
		"an older time":                {[]string{"-H", "If-Modified-Since: Mon, 02 Jan 2006 15:04:05 GMT"}, "200"},
		"its time, another tag":        {[]string{"-H", "If-Modified-Since: " + modified, "-H", `If-None-Match: "x"`}, "200"},
		"a part of it":                 {[]string{"-r", "0-9"}, "200"},
		"if it is another":             {[]string{"-H", `If-Match: "x"`}, "200"},
	} {
		status, head, body := b.curl(url, append(c.args, "-u", user)...)
		if status != c.want || (status == "304") != (len(body) == 0) || header(head, "ETag") == "" || header(head, "Cache-Control") != "private, max-age=5" {
			t.Errorf("%s: %s with %d bytes, want %s\n%s", name, status, len(body), c.want, head)
		}
	}
	into[map[string]any](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.99.1"}`), 201)
	b.clock.advance(2 * time.Second)
	b.refreshFeeds()
	for _, args := range [][]string{{"-H", "If-None-Match: " + etag}, {"-H", "If-Modified-Since: " + modified}} {
		if status, head, _ := b.curl(url, append(args, "-u", user)...); status != "200" || header(head, "ETag") == etag {
			t.Errorf("after a change, %v: %s\n%s", args, status, head)
		}
	}

	// HEAD is GET without the body.
	if status, head, _ := b.curl(url, "-u", user, "--head"); status != "200" || header(head, "X-Parry-Entries") != "301" || header(head, "Content-Length") == "0" || header(head, "ETag") == "" {
		t.Errorf("HEAD: %s\n%s", status, head)
	}

	// A limit is seen in the last line and in the headers.
	_, head, body = b.curl(url+"?limit=10", "-u", user)
	if !bytes.HasSuffix(body, []byte("\n# truncated: 10 of 301 entries\n")) || header(head, "X-Parry-Truncated") != "10 of 301" || header(head, "X-Parry-Entries") != "10" {
		t.Errorf("limit: %s\n%s", body, head)
	}
	_, head, body = b.curl(url+"?limit=10&format=csv", "-u", user)
	if bytes.Count(body, []byte("\r\n")) != 11 || header(head, "X-Parry-Truncated") != "10 of 301" || header(head, "Content-Type") != "text/csv; charset=utf-8; header=present" {
		t.Errorf("csv with a limit: %s\n%s", body, head)
	}
}

func TestFeed_whoMayReadIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	srv := httptest.NewServer(b.server)
	defer srv.Close()
	b.refreshFeeds()
	feed := srv.URL + "/api/v1/feeds/blocks"
	for name, c := range map[string]struct {
		url  string
		args []string
		want string
	}{
		"any user, the token as the password": {feed, []string{"-u", "anyone:" + b.tokens[parry.RoleFeed]}, "200"},
		"no user":                             {feed, []string{"-u", ":" + b.tokens[parry.RoleFeed]}, "200"},
		"a reader":                            {feed, []string{"-u", "x:" + b.tokens[parry.RoleReader]}, "200"},
		"a trigger":                           {feed, []string{"-u", "x:" + b.tokens[parry.RoleTrigger]}, "403"},
		"nobody":                              {feed, nil, "401"},
		"a wrong password":                    {feed, []string{"-u", "fw-b:parry"}, "401"},
		"basic elsewhere":                     {srv.URL + "/api/v1/blocks", []string{"-u", "x:" + b.tokens[parry.RoleAdmin]}, "401"},
		"who reads them, as a feed":           {srv.URL + "/api/v1/feeds", []string{"-H", "Authorization: Bearer " + b.tokens[parry.RoleFeed]}, "403"},
		"no such feed":                        {srv.URL + "/api/v1/feeds/nonsense", []string{"-u", "x:" + b.tokens[parry.RoleFeed]}, "404"},
		"a format that is none":               {feed + "?format=xml", []string{"-u", "x:" + b.tokens[parry.RoleFeed]}, "400"},
		"an unknown parameter":                {feed + "?colour=red", []string{"-u", "x:" + b.tokens[parry.RoleFeed]}, "400"},
		"a limit of 0":                        {feed + "?limit=0", []string{"-u", "x:" + b.tokens[parry.RoleFeed]}, "400"},
	} {
		status, head, body := b.curl(c.url, c.args...)
		if status != c.want || status != "200" && (header(head, "Content-Type") != problemType || !bytes.HasPrefix(body, []byte("{"))) {
			t.Errorf("%s: %s, want %s\n%s%s", name, status, c.want, head, body)
		}
		offers := strings.Contains(head, `Www-Authenticate: Bearer realm="parry"`) && strings.Contains(head, `Www-Authenticate: Basic realm="parry", charset="UTF-8"`)
		if c.url == feed && status == "401" && !offers {
			t.Errorf("%s: it does not say how:\n%s", name, head)
		}
		if c.url != feed && strings.Contains(head, "Basic") {
			t.Errorf("%s: it offers what it does not take:\n%s", name, head)
		}
	}
}

func TestFeed_outlivesTheDatabaseForAWhile(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Logger = slog.New(slog.DiscardHandler) })
	into[map[string]any](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7"}`), 201)
	b.refreshFeeds()
	if r := b.do(parry.RoleFeed, "GET", "/api/v1/feeds/blocks", ""); r.StatusCode != http.StatusOK {
		t.Fatal(r.body)
	}
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	b.clock.advance(time.Hour)
	if err := b.feeds.Refresh(t.Context()); err == nil {
		t.Fatal("a closed database can be read")
	}
	if r := b.do(parry.RoleFeed, "GET", "/api/v1/feeds/blocks", ""); r.StatusCode != http.StatusOK || !strings.Contains(r.body, "203.0.113.7") {
		t.Errorf("an hour later: %d %s", r.StatusCode, r.body)
	}
	if r := b.do(parry.RoleReader, "GET", "/api/v1/blocks", ""); r.StatusCode < 500 {
		t.Errorf("anything else: %d %s", r.StatusCode, r.body)
	}
	b.clock.advance(24 * time.Hour)
	r := b.do(parry.RoleFeed, "GET", "/api/v1/feeds/blocks", "")
	if p := r.problem(t); p.Status != 503 || r.Header.Get("Retry-After") == "" || !strings.Contains(p.Detail, "keep the list") {
		t.Errorf("a day later: %s", r.body)
	}
}

func TestListFeeds_tellsWhoReadsWhat(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.refreshFeeds()
	b.do(parry.RoleFeed, "GET", "/api/v1/feeds/blocks?format=geo&family=4", "")
	b.do(parry.RoleFeed, "HEAD", "/api/v1/feeds/blocks?format=csv", "") // tells it nothing of the list
	b.do(parry.RoleFeed, "GET", "/api/v1/feeds/nonsense", "")
	type list struct {
		Feeds []struct {
			Name, Type string
			Entries    int
		}
		Readers []struct {
			Feed, Token, Form, RemoteAddr string
			Reads, Status                 int
			BehindSince                   string `json:"behind_since"`
		}
	}
	got := into[list](t, b.do(parry.RoleReader, "GET", "/api/v1/feeds", ""), 200)
	if len(got.Feeds) != 1 || got.Feeds[0].Name != "blocks" || got.Feeds[0].Type != "cidr" || len(got.Readers) != 1 || got.Readers[0].Form != "format=geo&family=4" ||
		got.Readers[0].Token != "feed" || got.Readers[0].Status != 200 || got.Readers[0].BehindSince != "" {
		t.Fatalf("got %+v", got)
	}
	into[map[string]any](t, b.do(parry.RoleTrigger, "POST", "/api/v1/blocks", `{"source":"203.0.113.7"}`), 201)
	b.refreshFeeds()
	got = into[list](t, b.do(parry.RoleReader, "GET", "/api/v1/feeds", ""), 200)
	if got.Feeds[0].Entries != 1 || got.Readers[0].BehindSince == "" {
		t.Errorf("got %+v", got)
	}
	metrics := b.do(parry.RoleReader, "GET", "/metrics", "").body
	for _, want := range []string{`parry_feed_requests_total{code="200",feed="blocks"} 2`, `parry_feed_requests_total{code="404",feed="unknown"} 1`, `parry_feed_entries{feed="blocks"} 1`,
		`parry_feed_readers{feed="blocks"} 1`, `parry_feed_age_seconds `} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

func TestTakesGzip(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]bool{
		"": false, "gzip": true, "deflate, gzip, br": true, "GZIP": true, "x-gzip": true, "gzip;q=0": false, "gzip; q=0.0": false, "gzip;q=0.5": true, "*": true,
		"*;q=0": false, "gzip;q=0, *": false, "identity": false, "br, *;q=0.1": true, "gzip;q=x": false, "gzipped": false,
	} {
		if got := takesGzip([]string{header}); got != want {
			t.Errorf("%q: %t", header, got)
		}
	}
}

// BenchmarkFeed is 100,000 addresses over a real listener: whole, compressed, and to who has them already. The client is in this process.
func BenchmarkFeed(b *testing.B) {
	be := newBench(b, func(o *Options) { o.Logger = slog.New(slog.DiscardHandler) })
	now := time.Now()
	key := func(i int) parry.Key {
		return parry.Key{Match: parry.Match{Source: netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i * 7 >> 16), byte(i * 7 >> 8), byte(i * 7)}), 32)}, Selector: parry.SelectDefault}
	}
	const n = 100_000
	done := make(chan error, 512)
	for i := range n {
		if i >= cap(done) {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
		go func() {
			_, err := be.store.Put(b.Context(), parry.Admission{
				BlockID: parry.NewBlockID(now), Request: parry.Request{ID: parry.NewRequestID(now), ReceivedAt: now, TTL: time.Hour, TokenName: "bench", Reason: "ssh brute force"},
				Key: key(i), MaxExpires: now.Add(time.Hour),
			})
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	be.refreshFeeds()
	srv := httptest.NewServer(be.server)
	defer srv.Close()
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	etag := ""
	fetch := func(b *testing.B, query string, want int, headers ...string) {
		r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, srv.URL+"/api/v1/feeds/blocks"+query, nil)
		if err != nil {
			b.Fatal(err)
		}
		r.SetBasicAuth("fw", be.tokens[parry.RoleFeed])
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		res, err := client.Do(r)
		if err != nil {
			b.Fatal(err)
		}
		defer res.Body.Close()
		size, err := io.Copy(io.Discard, res.Body)
		if err != nil || res.StatusCode != want {
			b.Fatalf("%d, %v", res.StatusCode, err)
		}
		etag = res.Header.Get("ETag")
		b.ReportMetric(float64(size), "bytes")
	}
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			fetch(b, "", 200)
		}
	})
	b.Run("gzip", func(b *testing.B) {
		for b.Loop() {
			fetch(b, "", 200, "Accept-Encoding", "gzip")
		}
	})
	b.Run("304", func(b *testing.B) {
		fetch(b, "", 200)
		have := etag
		for b.Loop() {
			fetch(b, "", 304, "If-None-Match", have)
		}
	})
}
