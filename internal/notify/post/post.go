// Package post makes the HTTP requests of channels: one try within the context, no redirects, answers read to a bound, and errors that say
// whether to try again and never what is secret. Trying again is the outbox's.
package post

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/parry"
)

const maxAnswer = 64 << 10 // bytes that are read of an answer

// Options of a Client.
type Options struct {
	CAFile    string   // trust these certificates and no others; empty: the system's
	PlainHTTP bool     // http:// to any host; else only to loopback
	Secrets   []string // never told in an error or an answer
	Now       func() time.Time
}

// Client makes requests. Safe for concurrent use.
type Client struct {
	o    Options
	http *http.Client
}

// New reads the CA; it connects nowhere.
func New(o Options) (*Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		if conf.RootCAs = x509.NewCertPool(); !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", o.CAFile)
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Client{o, &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: 30 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close ends connections that idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// CheckURL tells what is wrong with a URL to post to.
func CheckURL(s string, plain bool) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		return errors.New("write https://host/path")
	case u.User != nil:
		return errors.New("leave the user and password out")
	case u.Fragment != "":
		return errors.New("leave the fragment out")
	case u.Scheme == "http" && !plain && !loopback(u.Hostname()):
		return errors.New("what is sent, keys too, would travel in the clear: write https, or set plain_http: true where you trust the network")
	}
	return nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// Answer is what the other side said.
type Answer struct {
	Status     int
	Body       []byte        // at most 64 KiB of it
	RetryAfter time.Duration // 0: not said
	hide       func(string) string
}

// String is the status and the beginning of the body, one inert line without secrets.
func (a *Answer) String() string {
	s := strconv.Itoa(a.Status) + " " + http.StatusText(a.Status)
	if text := notify.Line(a.hide(string(a.Body))); text != "" {
		s += ": " + notify.Cut(text, 300)
	}
	return s
}

// OK tells whether what was sent is taken.
func (a *Answer) OK() bool { return a.Status >= 200 && a.Status < 300 }

// Err is nil for a 2xx. Else it tells whether trying again may help: after 408, 425, 429 and 5xx, not after any other answer.
func (a *Answer) Err() (retryable bool, err error) {
	if a.OK() {
		return false, nil
	}
	kind := parry.KindRefused
	switch {
	case a.Status == http.StatusTooManyRequests:
		kind, retryable = parry.KindRateLimited, true
	case a.Status == http.StatusRequestTimeout, a.Status == http.StatusTooEarly, a.Status >= 500:
		kind, retryable = parry.KindUnavailable, true
	}
	e := &parry.Error{Kind: kind, Detail: "answered " + a.String()}
	if retryable {
		e.RetryAfter = a.RetryAfter
	}
	if a.Status >= 300 && a.Status < 400 {
		e.Detail += " (a redirect is not followed: write the address that it leads to)"
	}
	return retryable, e
}

// Do makes one request and reads its answer. An error is one of the way there or back: what was sent may have arrived.
func (c *Client) Do(ctx context.Context, method, to string, header http.Header, body []byte) (a *Answer, retryable bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return nil, false, errors.New("the url cannot be used") // the error would tell it
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", "parry")
	req.Header.Set("Accept", "application/json, */*;q=0.1")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, !untrusted(err), c.tell(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	a = &Answer{Status: resp.StatusCode, RetryAfter: c.retryAfter(resp.Header.Get("Retry-After")), hide: c.hide}
	if a.Body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer)); err != nil && !a.OK() {
		return nil, true, c.tell(err)
	}
	return a, false, nil // the status is the answer, even where its body was cut off
}

// tell says what went wrong without the URL, which may hold a secret.
func (c *Client) tell(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if text := err.Error(); c.hide(text) != text {
		return errors.New(c.hide(text))
	}
	return err
}

func (c *Client) hide(s string) string {
	for _, secret := range c.o.Secrets {
		if secret != "" {
			s = strings.ReplaceAll(s, secret, "[redacted]")
		}
	}
	return s
}

// untrusted tells whether the other side's certificate is what is wrong.
func untrusted(err error) bool {
	var v *tls.CertificateVerificationError
	var h x509.HostnameError
	var u x509.UnknownAuthorityError
	return errors.As(err, &v) || errors.As(err, &h) || errors.As(err, &u)
}

func (c *Client) retryAfter(s string) time.Duration {
	if n, err := strconv.ParseInt(s, 10, 32); err == nil && n >= 0 {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(t.Sub(c.o.Now()), 0)
	}
	return 0
}

// Reach connects to a URL's host, with TLS where it says so, and asks nothing.
func (c *Client) Reach(ctx context.Context, to string) error {
	u, err := url.Parse(to)
	if err != nil {
		return errors.New("the url cannot be used")
	}
	host, port := u.Hostname(), u.Port()
	if u.Scheme == "http" {
		if port == "" {
			port = "80"
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
		if err != nil {
			return err
		}
		return conn.Close()
	}
	if port == "" {
		port = "443"
	}
	conf := c.http.Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.ServerName = host
	conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	return conn.Close()
}
