package reconcile

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// slots bound how many runs are on at once, first come first served. Lanes with an open incident queue apart, and a run that lasts longer
// than hold gives its slot back while it goes on: it waits for its firewall and costs this machine little, and firewalls that hang until
// their deadline must not take the slots of those that answer. Runs of a panic queue apart from both, and so behind none of them.
type slots struct {
	healthy, troubled, urgent *semaphore.Weighted
	hold                      time.Duration
}

func newSlots(n int, hold time.Duration) *slots {
	return &slots{semaphore.NewWeighted(int64(n)), semaphore.NewWeighted(int64(n)), semaphore.NewWeighted(int64(n)), hold}
}

// acquire waits for a slot; release gives it back, at once or after it was given back already.
func (s *slots) acquire(ctx context.Context, troubled, urgent bool) (release func(), err error) {
	sem := s.healthy
	switch {
	case urgent:
		sem = s.urgent
	case troubled:
		sem = s.troubled
	}
	if err := sem.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	once := sync.OnceFunc(func() { sem.Release(1) })
	if sem == s.troubled {
		return once, nil
	}
	t := time.AfterFunc(s.hold, once)
	return func() { t.Stop(); once() }, nil
}
