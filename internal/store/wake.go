package store

import (
	"context"
	"sync"
)

// wakes is a set of what changed.
type wakes uint8

const (
	wakeDesired wakes = 1 << iota
	wakeApplied
	wakeOutbox
	wakeLists
)

// wake tells subscribers that something happened; several happenings become one. The zero value is ready.
type wake struct {
	mu   sync.Mutex
	subs map[chan struct{}]struct{}
}

func (w *wake) subscribe(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs == nil {
		w.subs = map[chan struct{}]struct{}{}
	}
	w.subs[c] = struct{}{}
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.subs, c)
	})
	return c
}

func (w *wake) fire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (s *Store) wake(what wakes) {
	if what&wakeDesired != 0 {
		s.desired.fire()
	}
	if what&wakeApplied != 0 {
		s.applied.fire()
	}
	if what&wakeOutbox != 0 {
		s.outbox.fire()
	}
	if what&wakeLists != 0 {
		s.lists.fire()
	}
}
