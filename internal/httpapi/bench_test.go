package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/cert"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
	"github.com/parry/parry/internal/testenv"
)

// BenchmarkCreateBlock is the whole way of a request as parry serves it: TLS 1.3 on a real listener, authentication, decoding, validation,
// policy with 10,000 exemptions and the ladder, and a durable commit, on SQLite with synchronous=FULL and on PostgreSQL with fsync. Every request is a source
// of its own. The clients are in this process and on the same cores, each on a connection that it keeps: over HTTP/1.1 lean ones, which write
// bytes and read a status; in the rows named h2 net/http's, which shares one connection. nothing/ is the same against a handler that only
// answers: what the clients, TLS and net/http cost by themselves.
func BenchmarkCreateBlock(b *testing.B) {
	for _, e := range []struct {
		name string
		open func() store.Options
	}{
		{"sqlite", func() store.Options {
			return store.Options{Driver: "sqlite", Path: filepath.Join(b.TempDir(), "parry.db")}
		}},
		{"postgres", func() store.Options {
			return store.Options{Driver: "postgres", DSN: testenv.Postgres(b, testenv.PostgresOptions{Durable: true})}
		}},
	} {
		run := func(name string, clients int, connect func(*benchListener) benchClient) {
			b.Run(e.name+"/"+name+"clients="+strconv.Itoa(clients), func(b *testing.B) {
				be := newBenchOn(b, e.open(), func(o *Options) { o.Logger = slog.New(slog.NewJSONHandler(io.Discard, nil)) })
				exempt := make([]parry.Exemption, 10_000)
				for i := range exempt {
					exempt[i] = parry.Exemption{ID: "found:x", Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}
				}
				be.policy.Replace(parry.ExemptFound, exempt)
				be.escalate(0)
				storm(b, listen(b, be.server, be.tokens[parry.RoleTrigger]), clients, connect)
			})
		}
		for _, clients := range []int{1, 16, 64} {
			run("", clients, (*benchListener).lean)
		}
		run("h2/", 64, (*benchListener).http2)
	}
	b.Run("nothing/clients=64", func(b *testing.B) {
		answer := bytes.Repeat([]byte{' '}, 600)
		storm(b, listen(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write(answer)
		}), "x"), 64, (*benchListener).lean)
	})
}

// storm sends b.N requests from so many clients.
func storm(b *testing.B, l *benchListener, clients int, connect func(*benchListener) benchClient) {
	var next atomic.Int64
	var wg sync.WaitGroup
	took := make([][]time.Duration, clients)
	posts := make([]benchClient, clients)
	for c := range clients {
		posts[c] = connect(l)
	}
	cpu := testenv.MeasureCPU(b)
	b.ResetTimer()
	for c := range clients {
		wg.Go(func() {
			var body []byte
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				body = fmt.Appendf(body[:0], `{"source":"11.%d.%d.%d","destination_port":22,"protocol":"tcp","ttl":"4h","reason":"ssh brute force",`+
					`"origin":"ossim","alert_id":"%d","rule_id":"5712"}`, n>>16&255, n>>8&255, n&255, n)
				start := time.Now()
				if status, err := posts[c](body); err != nil || status != http.StatusCreated {
					b.Errorf("got %d, %v", status, err)
					return
				}
				took[c] = append(took[c], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	cpu()
	all := slices.Concat(took...)
	slices.Sort(all)
	if len(all) == 0 {
		return
	}
	b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "accepts/s")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
}

// benchListener serves over TLS as package app does.
type benchListener struct {
	b      testing.TB
	addr   string
	token  string
	tls    *tls.Config // a client's
	client *http.Client
}

func listen(b testing.TB, h http.Handler, token string) *benchListener {
	b.Helper()
	dir := b.TempDir()
	own, err := cert.Own(dir, []string{"localhost"}, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{
		Handler: h, ConnContext: auth.ConnContext, TLSConfig: own.Config("1.2"), MaxHeaderBytes: 16 << 10, ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(ln, "", "") }()
	b.Cleanup(func() {
		_ = srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			b.Error(err)
		}
	})
	return &benchListener{b: b, addr: ln.Addr().String(), token: token, tls: &tls.Config{ServerName: "localhost", RootCAs: roots, MinVersion: tls.VersionTLS13}}
}

// benchClient posts one body and tells the status.
type benchClient func(body []byte) (status int, err error)

// lean is a client with a kept connection that spends as little as can be beside the server.
func (l *benchListener) lean() benchClient {
	conn, err := tls.Dial("tcp", l.addr, l.tls)
	if err != nil {
		l.b.Fatal(err)
	}
	l.b.Cleanup(func() { conn.Close() })
	head := "POST /api/v1/blocks HTTP/1.1\r\nHost: " + l.addr + "\r\nAuthorization: Bearer " + l.token + "\r\nContent-Type: " + jsonType + "\r\nContent-Length: "
	var out []byte
	in := bufio.NewReader(conn)
	return func(body []byte) (status int, err error) {
		out = append(append(strconv.AppendInt(append(out[:0], head...), int64(len(body)), 10), "\r\n\r\n"...), body...)
		if _, err := conn.Write(out); err != nil {
			return 0, err
		}
		return readStatus(in)
	}
}

// readStatus reads one answer and drops its body.
func readStatus(in *bufio.Reader) (status int, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil || len(line) < len("HTTP/1.1 201") {
		return 0, fmt.Errorf("status line %q: %w", line, err)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, err
	}
	length := -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return status, err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(v)); err != nil {
				return status, err
			}
		}
	}
	if length < 0 {
		return status, errors.New("the answer has no Content-Length")
	}
	_, err = in.Discard(length)
	return status, err
}

// http2 is a client that shares the listener's one connection.
func (l *benchListener) http2() benchClient {
	if l.client == nil {
		tr := &http.Transport{TLSClientConfig: l.tls, ForceAttemptHTTP2: true}
		l.b.Cleanup(tr.CloseIdleConnections)
		l.client = &http.Client{Transport: tr}
	}
	return func(body []byte) (int, error) {
		r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "https://"+l.addr+"/api/v1/blocks", bytes.NewReader(body))
		if err != nil {
			return 0, err
		}
		r.Header.Set("Authorization", "Bearer "+l.token)
		r.Header.Set("Content-Type", jsonType)
		res, err := l.client.Do(r)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		if res.ProtoMajor != 2 {
			return 0, errors.New("this is " + res.Proto)
		}
		_, err = io.Copy(io.Discard, res.Body)
		return res.StatusCode, err
	}
}

// BenchmarkDecodeBlockRequest is decoding and validating alone.
func BenchmarkDecodeBlockRequest(b *testing.B) {
	s := &Server{validate: newValidator()}
	body := []byte(`{"source":"11.1.2.3","destination_port":22,"protocol":"tcp","ttl":"4h","reason":"ssh brute force","origin":"ossim","alert_id":"17","rule_id":"5712"}`)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.decodeBlockRequest(body, now); err != nil {
			b.Fatal(err)
		}
	}
}
