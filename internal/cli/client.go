package cli

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/config"
)

// connectFlags say where the service is. What a flag leaves open the environment says, then the client's file, then the unix socket.
type connectFlags struct {
	socket, server, tokenFile, ca string
	timeout                       time.Duration
}

func (c *connectFlags) register(f *pflag.FlagSet) {
	f.StringVar(&c.socket, "socket", "", "unix `socket` of the service (PARRY_SOCKET, "+config.DefaultSocket+")")
	f.StringVar(&c.server, "server", "", "`https://…` instead of the socket (PARRY_SERVER)")
	f.StringVar(&c.tokenFile, "token-file", "", "`file` that holds the token for --server (PARRY_TOKEN_FILE)")
	f.StringVar(&c.ca, "ca", "", "`file` of the CA that --server is trusted by, PEM (PARRY_CA)")
	f.DurationVar(&c.timeout, "timeout", 30*time.Second, "how long to wait for an answer, besides --wait")
}

// clientFile is ~/.config/parry/client.yaml: the flags of the same names.
type clientFile struct {
	Socket    string `yaml:"socket"`
	Server    string `yaml:"server"`
	TokenFile string `yaml:"token_file"`
	CA        string `yaml:"ca"`
}

func (s *shell) clientFile() (clientFile, error) {
	var c clientFile
	path := s.get("PARRY_CLIENT_CONFIG")
	if path == "" {
		dir := s.get("XDG_CONFIG_HOME")
		if dir == "" && s.get("HOME") != "" {
			dir = filepath.Join(s.get("HOME"), ".config")
		}
		if dir == "" {
			return c, nil
		}
		if path = filepath.Join(dir, "parry", "client.yaml"); !isFile(path) {
			return c, nil
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer f.Close() //nolint:errcheck // read only
	dec := yaml.NewDecoder(f)
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil {
		return c, fmt.Errorf("%s: %w; it takes socket, server, token_file, ca", path, err)
	}
	return c, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// client connects to the service; wait is added to its patience.
func (s *shell) client(wait time.Duration) (*api.ClientWithResponses, error) {
	return s.clientOver(wait, func(t http.RoundTripper) http.RoundTripper { return t })
}

// clientOver is client with something of its own around the connections.
func (s *shell) clientOver(wait time.Duration, around func(http.RoundTripper) http.RoundTripper) (*api.ClientWithResponses, error) {
	file, err := s.clientFile()
	if err != nil {
		return nil, fail(ExitUsage, "read the client's configuration: %v", err)
	}
	server := first(s.connect.server, s.get("PARRY_SERVER"), file.Server)
	if s.connect.socket != "" && s.connect.server == "" {
		server = ""
	}
	transport := &http.Transport{TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: importers}
	hc := &http.Client{Transport: around(transport), Timeout: s.connect.timeout + wait}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	if server == "" {
		socket := first(s.connect.socket, s.get("PARRY_SOCKET"), file.Socket, config.Socket(s.configPath()), config.DefaultSocket)
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
		return api.NewClientWithResponses("http://parry", api.WithHTTPClient(hc))
	}
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fail(ExitUsage, "--server %q: write https://HOST:8443", server)
	}
	transport.DialContext = dialer.DialContext
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if ca := first(s.connect.ca, s.get("PARRY_CA"), file.CA); ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fail(ExitUsage, "read the CA: %v", err)
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fail(ExitUsage, "%s holds no certificate in PEM", ca)
		}
	}
	secret := s.get("PARRY_TOKEN")
	if path := first(s.connect.tokenFile, s.get("PARRY_TOKEN_FILE"), file.TokenFile); path != "" && (secret == "" || s.connect.tokenFile != "") {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fail(ExitUsage, "read the token: %v", err)
		}
		secret = strings.TrimSpace(string(b))
	}
	if secret == "" {
		return nil, fail(ExitUsage, "--server needs a token: give --token-file, or set PARRY_TOKEN_FILE; `parry token create` on the service's host makes one")
	}
	return api.NewClientWithResponses(strings.TrimRight(server, "/"), api.WithHTTPClient(hc), api.WithRequestEditorFn(
		func(_ context.Context, r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+secret)
			return nil
		}))
}

// optional is a flag whose text stays nil until it is given, as the client's optional parameters want it.
type optional struct{ to **string }

func (o optional) Set(s string) error { *o.to = &s; return nil }
func (o optional) Type() string       { return "string" }
func (o optional) String() string {
	if o.to == nil || *o.to == nil {
		return ""
	}
	return **o.to
}

// reply is what every generated result has.
type reply interface {
	StatusCode() int
	GetBody() []byte
	GetApplicationProblemJSONDefault() *api.Problem
}

// ask turns a failed call or a problem document into an error with its exit code.
func ask[R reply](r R, err error) (R, error) {
	if err != nil {
		return r, unreachable(err)
	}
	if code := r.StatusCode(); code >= 300 {
		return r, refused(code, r.GetApplicationProblemJSONDefault())
	}
	return r, nil
}

// download prints an answer that is text, inert.
func (s *shell) download(r *http.Response, err error) error {
	if err != nil {
		return unreachable(err)
	}
	defer r.Body.Close() //nolint:errcheck // read only
	if err := downloadable(r); err != nil {
		return err
	}
	lines := bufio.NewReader(r.Body)
	for {
		line, err := lines.ReadString('\n')
		if _, werr := io.WriteString(s.Out, inertLines(line)); werr != nil {
			return werr
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return unreachable(err)
		}
	}
}

// downloadable turns an answer that is a problem into an error.
func downloadable(r *http.Response) error {
	if r.StatusCode == http.StatusOK {
		return nil
	}
	p := new(api.Problem)
	if json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(p) != nil {
		p = nil
	}
	return refused(r.StatusCode, p)
}

func unreachable(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var unknownCA x509.UnknownAuthorityError
	switch {
	case errors.Is(err, context.Canceled):
		return fail(ExitError, "interrupted; what was asked may have been done")
	case errors.Is(err, fs.ErrPermission):
		return fail(ExitUnreachable, "%v: the socket is for root; use sudo, or --server with a token", err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fail(ExitUnreachable, "the service does not answer: %v; is `parry serve` running here? (--socket, --server)", err)
	case errors.As(err, &unknownCA):
		return fail(ExitUnreachable, "the server's certificate is not trusted: %v; give its CA by --ca", err)
	case os.IsTimeout(err):
		return fail(ExitUnreachable, "no answer in time: %v; what was asked may have been done", err)
	}
	return fail(ExitUnreachable, "the service does not answer: %v", err)
}

func refused(status int, p *api.Problem) error {
	if p == nil {
		return fail(ExitUnreachable, "the answer is not parry's (HTTP %d); is there a proxy in between?", status)
	}
	code := ExitError
	switch status {
	case http.StatusBadRequest:
		code = ExitUsage
	case http.StatusNotFound:
		code = ExitNotFound
	case http.StatusUnprocessableEntity:
		code = ExitRefused
	}
	text := first(p.Detail, p.Title)
	for _, f := range p.Errors {
		text += "\n" + f.Pointer + ": " + f.Detail
	}
	if status >= 500 && p.RequestID != "" {
		text += "\nrequest " + p.RequestID + " in the service's log"
	}
	return fail(code, "%s", text)
}
