package httpapi

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parry/parry/internal/auth"
	"github.com/parry/parry/internal/parry"
)

// BenchmarkCreateBlock is the whole way of a request through a real listener: authentication, decoding, policy, and the SQLite store with
// synchronous=FULL. The clients are in this process and on the same cores.
func BenchmarkCreateBlock(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			be := newBench(b, func(o *Options) { o.Logger = slog.New(slog.NewJSONHandler(io.Discard, nil)) })
			exempt := make([]parry.Exemption, 10_000)
			for i := range exempt {
				exempt[i] = parry.Exemption{ID: "found:x", Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}
			}
			be.policy.Replace(parry.ExemptFound, exempt)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			srv := &http.Server{Handler: be.server, ConnContext: auth.ConnContext, ReadHeaderTimeout: 5 * time.Second}
			go func() { _ = srv.Serve(ln) }()
			defer srv.Close()
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
			url := "http://" + ln.Addr().String() + "/api/v1/blocks"

			var next atomic.Int64
			var wg sync.WaitGroup
			took := make([][]time.Duration, clients)
			b.ResetTimer()
			for c := range clients {
				wg.Go(func() {
					for {
						n := next.Add(1)
						if n > int64(b.N) {
							return
						}
						body := fmt.Sprintf(`{"source":"11.%d.%d.%d","destination_port":22,"protocol":"tcp","ttl":"4h","reason":"ssh brute force",`+
							`"origin":"ossim","alert_id":"%d","rule_id":"5712"}`, n>>16&255, n>>8&255, n&255, n)
						r, _ := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
						r.Header.Set("Authorization", "Bearer "+be.tokens[parry.RoleTrigger])
						r.Header.Set("Content-Type", jsonType)
						start := time.Now()
						res, err := client.Do(r)
						if err != nil {
							b.Error(err)
							return
						}
						_, _ = io.Copy(io.Discard, res.Body)
						res.Body.Close()
						if res.StatusCode != http.StatusCreated {
							b.Errorf("got %d", res.StatusCode)
							return
						}
						took[c] = append(took[c], time.Since(start))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			all := slices.Concat(took...)
			slices.Sort(all)
			b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "accepts/s")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
		})
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
