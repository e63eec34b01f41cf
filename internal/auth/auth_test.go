package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parry/parry/internal/parry"
)

// memory is a store of tokens that counts how often it is asked.
type memory struct {
	mu      sync.Mutex
	tokens  map[parry.TokenID]parry.Token
	asked   int
	touched []parry.TokenID
	broken  error
}

func (m *memory) TokenByID(_ context.Context, id parry.TokenID) (parry.Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	if m.broken != nil {
		return parry.Token{}, m.broken
	}
	t, ok := m.tokens[id]
	if !ok {
		return t, parry.Errorf(parry.KindNotFound, "there is no token %s", id)
	}
	return t, nil
}

func (m *memory) TouchToken(_ context.Context, id parry.TokenID, _ time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.touched = append(m.touched, id)
	return nil
}

var home = netip.MustParseAddr("192.0.2.7")

func setup(t *testing.T, tok parry.Token, o Options) (*Auth, *memory, string, parry.TokenID) {
	t.Helper()
	tok.ID = parry.NewTokenID(time.Now())
	text, hash := Mint(tok.ID)
	tok.Hash = hash
	m := &memory{tokens: map[parry.TokenID]parry.Token{tok.ID: tok}}
	o.Store = m
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a, m, text, tok.ID
}

func TestMint_isSecretAndRecognisable(t *testing.T) {
	t.Parallel()
	id := parry.NewTokenID(time.Now())
	one, hash := Mint(id)
	two, other := Mint(id)
	if one == two || hash == other {
		t.Fatal("two tokens are the same")
	}
	if len(one) != 72 || !strings.HasPrefix(one, "parry_"+strings.TrimPrefix(string(id), "t-")+"_") {
		t.Fatalf("a token reads %q", one)
	}
	got, _, err := parse(one)
	if err != nil || got != id {
		t.Fatalf("got %q, %v", got, err)
	}
	for i := range one { // whatever single character is wrong, it is noticed
		wrong := []byte(one)
		wrong[i] = map[bool]byte{true: '1', false: '0'}[wrong[i] == '0']
		if _, _, err := parse(string(wrong)); err == nil {
			t.Errorf("%q was taken for %q", wrong, one)
		}
	}
}

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 2, 0, 0, 0, time.UTC)
	forged := func(text string) string { // another secret under the right id, check digits right
		id, _, _ := parse(text)
		other, _ := Mint(id)
		return other
	}
	resealed := func(text, id string) string { // with another id, check digits right
		body := tokenPrefix + id + text[len(tokenPrefix)+idLen:tokenLen-crcLen]
		return body + crc(body)
	}
	for name, c := range map[string]struct {
		tok    parry.Token
		header func(text string) string
		remote netip.Addr
		kind   parry.Kind
		says   string
	}{
		"good":                {},
		"scheme in any case":  {header: func(s string) string { return "bearer " + s }},
		"none":                {header: func(string) string { return "" }, kind: parry.KindUnauthenticated, says: "needs a token"},
		"Basic":               {header: func(s string) string { return "Basic " + s }, kind: parry.KindUnauthenticated, says: "Bearer"},
		"no scheme":           {header: func(s string) string { return s }, kind: parry.KindUnauthenticated, says: "Bearer"},
		"another's":           {header: func(string) string { return "Bearer ghp_0123" }, kind: parry.KindUnauthenticated, says: "no"},
		"typing error":        {header: func(s string) string { return "Bearer " + s[:70] + "!!" }, kind: parry.KindUnauthenticated, says: "typing error"},
		"an id that is none":  {header: func(s string) string { return "Bearer " + resealed(s, strings.Repeat("\xff", idLen)) }, kind: parry.KindUnauthenticated, says: "not a parry token"},
		"an id in lower case": {header: func(s string) string { return "Bearer " + resealed(s, strings.Repeat("a", idLen)) }, kind: parry.KindUnauthenticated, says: "not a parry token"},
		"forged":              {header: func(s string) string { return "Bearer " + forged(s) }, kind: parry.KindUnauthenticated, says: "not valid"},
		"unknown id":          {header: func(string) string { x, _ := Mint(parry.NewTokenID(now)); return "Bearer " + x }, kind: parry.KindUnauthenticated, says: "not valid"},
		"revoked":             {tok: parry.Token{RevokedAt: now}, kind: parry.KindUnauthenticated, says: "revoked"},
		"expired":             {tok: parry.Token{ExpiresAt: now}, kind: parry.KindUnauthenticated, says: "expired at 2026-11-21T02:00:00Z"},
		"not yet expired":     {tok: parry.Token{ExpiresAt: now.Add(1)}},
		"right source":        {tok: parry.Token{Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}},
		"wrong source":        {tok: parry.Token{Sources: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}, kind: parry.KindForbidden, says: "192.0.2.7"},
		"no source is told":   {tok: parry.Token{Sources: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, remote: netip.IPv6Unspecified(), kind: parry.KindForbidden},
		"forged and restrict": {tok: parry.Token{Sources: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}, header: func(s string) string { return "Bearer " + forged(s) }, kind: parry.KindUnauthenticated, says: "not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, _, text, id := setup(t, c.tok, Options{Now: func() time.Time { return now }})
			header := "Bearer " + text
			if c.header != nil {
				header = c.header(text)
			}
			remote := home
			if c.remote.IsValid() {
				remote = c.remote
			}
			pr, err := a.Authenticate(t.Context(), header, remote)
			if c.kind != "" {
				if parry.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
					t.Fatalf("got %v (%s), want %s with %q", err, parry.KindOf(err), c.kind, c.says)
				}
				if strings.Contains(err.Error(), text[33:]) {
					t.Fatal("the error holds the secret")
				}
				return
			}
			if err != nil || pr.Token.ID != id || pr.Remote != remote {
				t.Fatalf("got %+v, %v", pr, err)
			}
		})
	}
}

func TestAuthenticate_asksTheStoreOncePerPeriod(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, m, text, id := setup(t, parry.Token{LastUsed: time.Now()}, Options{CacheFor: 3 * time.Second})
		ask := func() error {
			_, err := a.Authenticate(t.Context(), "Bearer "+text, home)
			return err
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if err := ask(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if m.asked != 1 {
			t.Errorf("the store was asked %d times", m.asked)
		}

		m.mu.Lock()
		revoked := m.tokens[id]
		revoked.RevokedAt = time.Now()
		m.tokens[id] = revoked // on another replica
		m.mu.Unlock()
		time.Sleep(3 * time.Second)
		if err := ask(); parry.KindOf(err) != parry.KindUnauthenticated {
			t.Errorf("a token that was revoked elsewhere 3 s ago: %v", err)
		}
	})
}

func TestForget_takesEffectAtOnce(t *testing.T) {
	t.Parallel()
	a, m, text, id := setup(t, parry.Token{}, Options{CacheFor: time.Hour})
	if _, err := a.Authenticate(t.Context(), "Bearer "+text, home); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	delete(m.tokens, id)
	m.mu.Unlock()
	a.Forget(id)
	if _, err := a.Authenticate(t.Context(), "Bearer "+text, home); parry.KindOf(err) != parry.KindUnauthenticated {
		t.Errorf("got %v", err)
	}
}

func TestAuthenticate_aBrokenStoreIsNoDenial(t *testing.T) {
	t.Parallel()
	a, m, text, _ := setup(t, parry.Token{}, Options{})
	m.broken = errors.New("disk on fire")
	if _, err := a.Authenticate(t.Context(), "Bearer "+text, home); parry.KindOf(err) != parry.KindInternal {
		t.Errorf("got %v", err)
	}
}

func TestAuthenticateReader(t *testing.T) {
	t.Parallel()
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, c := range map[string]struct {
		header func(text string) string
		says   string // empty: good
	}{
		"token as the password": {header: func(s string) string { return basic("fw-b:" + s) }},
		"no user":               {header: func(s string) string { return basic(":" + s) }},
		"scheme in any case":    {header: func(s string) string { return "bASIC" + basic("x:" + s)[5:] }},
		"bearer":                {header: func(s string) string { return "Bearer " + s }},
		"none":                  {header: func(string) string { return "" }, says: "password"},
		"token as the user":     {header: func(s string) string { return basic(s + ":") }, says: "no"},
		"no colon":              {header: func(s string) string { return basic(s) }, says: "not well-formed"},
		"no base64":             {header: func(s string) string { return "Basic x:" + s }, says: "not well-formed"},
		"Digest":                {header: func(s string) string { return "Digest " + s }, says: "Basic and Bearer"},
		"another's":             {header: func(string) string { x, _ := Mint(parry.NewTokenID(time.Now())); return basic("x:" + x) }, says: "not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, _, text, id := setup(t, parry.Token{Role: parry.RoleFeed}, Options{})
			pr, err := a.AuthenticateReader(t.Context(), c.header(text), home)
			if c.says != "" {
				if parry.KindOf(err) != parry.KindUnauthenticated || !strings.Contains(err.Error(), c.says) {
					t.Fatalf("got %v, want %q", err, c.says)
				}
				return
			}
			if err != nil || pr.Token.ID != id {
				t.Fatalf("got %+v, %v", pr, err)
			}
		})
	}
}

func TestAuthenticateReader_believesWhatItKnewWhileTheStoreIsBroken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, m, text, _ := setup(t, parry.Token{Role: parry.RoleFeed, ExpiresAt: time.Now().Add(time.Hour)}, Options{CacheFor: time.Second})
		ask := func(by func(context.Context, string, netip.Addr) (*parry.Principal, error)) parry.Kind {
			_, err := by(t.Context(), "Bearer "+text, home)
			if err == nil {
				return ""
			}
			return parry.KindOf(err)
		}
		if got := ask(a.AuthenticateReader); got != "" {
			t.Fatal(got)
		}
		m.broken = errors.New("disk on fire")
		time.Sleep(time.Minute)
		for range 2 {
			if got := ask(a.AuthenticateReader); got != "" {
				t.Errorf("a reader that was known: %s", got)
			}
			if got := ask(a.Authenticate); got != parry.KindInternal {
				t.Errorf("anyone else: %q", got)
			}
		}
		time.Sleep(time.Hour)
		if got := ask(a.AuthenticateReader); got != parry.KindUnauthenticated {
			t.Errorf("past its time: %q", got)
		}
		m.broken = nil
		clear(m.tokens)
		if got := ask(a.AuthenticateReader); got != parry.KindUnauthenticated {
			t.Errorf("a token that is gone: %q", got)
		}
	})
}

func TestAllow_countsPerMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, _, text, _ := setup(t, parry.Token{Rate: 3}, Options{Rate: func() int { return 1000 }})
		for i := range 4 {
			pr, err := a.Authenticate(t.Context(), "Bearer "+text, home)
			if err != nil {
				t.Fatal(err)
			}
			err = a.Allow(pr)
			var e *parry.Error
			switch {
			case i < 3 && err != nil:
				t.Fatal(err)
			case i == 3 && (!errors.As(err, &e) || e.Kind != parry.KindRateLimited || e.RetryAfter != 20*time.Second):
				t.Fatalf("the fourth: %v, again in %v", err, e.RetryAfter)
			}
		}
		time.Sleep(20 * time.Second)
		pr, err := a.Authenticate(t.Context(), "Bearer "+text, home) // the cache has been renewed, the count has not
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Allow(pr); err != nil {
			t.Error(err)
		}
		if err := a.Allow(pr); parry.KindOf(err) != parry.KindRateLimited {
			t.Errorf("a renewed cache forgot the count: %v", err)
		}
	})
}

// What all may ask for together is used up by whoever asks, and a token that is beyond its own rate uses up nothing of it.
func TestAllow_countsAllTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		total := 5
		a, m, text, _ := setup(t, parry.Token{Name: "one", Rate: 3}, Options{Total: func() int { return total }})
		id := parry.NewTokenID(time.Now())
		other, hash := Mint(id)
		m.tokens[id] = parry.Token{ID: id, Name: "two", Hash: hash}
		ask := func(text string, n int) (taken int, last error) {
			pr, err := a.Authenticate(t.Context(), "Bearer "+text, home)
			if err != nil {
				t.Fatal(err)
			}
			for range n {
				if err := a.Allow(pr); err != nil {
					last = err
				} else {
					taken++
				}
			}
			return taken, last
		}
		if n, err := ask(text, 10); n != 3 || !strings.Contains(err.Error(), "the token one") {
			t.Errorf("one: %d taken, %v", n, err)
		}
		n, err := ask(other, 10)
		var e *parry.Error
		if n != 2 || !errors.As(err, &e) || e.Kind != parry.KindRateLimited || e.RetryAfter != 12*time.Second || !strings.Contains(e.Detail, "all tokens together") {
			t.Errorf("two: %d taken, %v", n, err)
		}
		if err := a.Allow(&parry.Principal{Token: parry.Token{Name: LocalName}}); err != nil {
			t.Errorf("root at the socket: %v", err)
		}
		total = 0 // the configuration was changed
		if n, err := ask(other, 10); n != 10 {
			t.Errorf("without a limit: %d taken, %v", n, err)
		}
	})
}

func TestRun_recordsUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, m, text, id := setup(t, parry.Token{}, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = a.Run(ctx) })
		if _, err := a.Authenticate(t.Context(), "Bearer "+text, home); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if len(m.touched) != 1 || m.touched[0] != id {
			t.Errorf("touched %v", m.touched)
		}
	})
}

func TestLocal_isTheSocketsOtherEnd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *parry.Principal, 1)
	srv := &http.Server{ConnContext: ConnContext, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- Local(r.Context()) })}
	for _, l := range []net.Listener{ln, tcp} {
		go func() { _ = srv.Serve(l) }()
	}
	defer srv.Close()
	unixClient := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	defer unixClient.CloseIdleConnections()
	get := func(c *http.Client, url string) *parry.Principal {
		t.Helper()
		res, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return <-got
	}
	if pr := get(unixClient, "http://parry/"); pr == nil || pr.Token.Role != parry.RoleAdmin || pr.Token.Name != LocalName {
		t.Errorf("root at the socket is %+v", pr) // tests run as root
	}
	if pr := get(http.DefaultClient, "http://"+tcp.Addr().String()); pr != nil {
		t.Errorf("a TCP client is %+v", pr)
	}
	other := context.WithValue(t.Context(), peerKey{}, uint32(1000))
	if pr := Local(other); pr != nil {
		t.Errorf("another user is %+v", pr)
	}
}

func TestUsed_isToldOfValidTokensOnly(t *testing.T) {
	t.Parallel()
	var told []netip.Addr
	a, _, text, id := setup(t, parry.Token{Sources: []netip.Prefix{netip.PrefixFrom(home, 32)}}, Options{Used: func(pr *parry.Principal) { told = append(told, pr.Remote) }})
	forged, _ := Mint(id)
	for _, c := range []struct {
		text string
		from netip.Addr
	}{{forged, home}, {text, netip.MustParseAddr("198.51.100.1")}, {text, home}} {
		_, _ = a.Authenticate(t.Context(), "Bearer "+c.text, c.from)
	}
	if len(told) != 1 || told[0] != home {
		t.Errorf("told of %v", told)
	}
}
