package cli

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/parry/parry/api"
)

// patientClient is a client for many requests, each of which may be sent again: it waits out a rate, a full queue and a service that is away
// for a moment. One that is not there to begin with is told at once.
func (s *shell) patientClient(ctx context.Context) (*api.ClientWithResponses, error) {
	now, err := s.client(0)
	if err != nil {
		return nil, err
	}
	if _, err := ask(now.GetVersionWithResponse(ctx)); err != nil {
		return nil, err
	}
	return s.clientOver(importWait, func(next http.RoundTripper) http.RoundTripper { return &patient{next: next, wait: time.Second} })
}

// patient repeats requests that got no answer, or were told to come back.
type patient struct {
	next http.RoundTripper
	wait time.Duration // the first, where the answer names none; doubled each time
}

const patientTries = 6 // without an answer, or unavailable; a rate is waited out as long as the client's time-out lets it

func (p *patient) RoundTrip(r *http.Request) (*http.Response, error) {
	wait := p.wait
	for try := 1; ; {
		res, err := p.next.RoundTrip(r)
		limited := err == nil && res.StatusCode == http.StatusTooManyRequests
		later := err != nil || limited || res.StatusCode == http.StatusServiceUnavailable
		if !later || !limited && try == patientTries || r.Context().Err() != nil || r.Body != nil && r.GetBody == nil {
			return res, err
		}
		after := wait
		if err == nil {
			if s, aerr := strconv.Atoi(res.Header.Get("Retry-After")); aerr == nil && s > 0 && s <= 300 {
				after = time.Duration(s) * time.Second
			}
			_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
			_ = res.Body.Close()
		}
		if !limited {
			try++
			wait *= 2
		}
		timer := time.NewTimer(after)
		select {
		case <-timer.C:
		case <-r.Context().Done():
			timer.Stop()
			return nil, r.Context().Err()
		}
		r = r.Clone(r.Context())
		if r.GetBody != nil {
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}
