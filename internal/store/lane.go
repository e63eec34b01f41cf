package store

import (
	"context"
	"database/sql"
	"errors"
	"sync"

	"github.com/parry/parry/internal/parry"
)

// ErrLaneTaken says that another replica, or another part of this one, holds the lane.
var ErrLaneTaken = errors.New("the lane is held elsewhere")

// ErrLaneLost says that someone took the lane over: its epoch has been raised since.
var ErrLaneLost = errors.New("the lane was taken over")

// Lane is the right to run playbooks against one firewall. Its methods and fields are for one goroutine, Lost for any.
type Lane struct {
	Name  string
	Epoch int64 // raised by each taking; the firewall refuses older ones

	s      *Store
	once   sync.Once
	lost   chan struct{}
	unlock func(context.Context) error
}

// AcquireLane takes the lane of a firewall and raises its epoch; ErrLaneTaken if someone holds it.
func (s *Store) AcquireLane(ctx context.Context, name string) (*Lane, error) {
	l := &Lane{Name: name, s: s, lost: make(chan struct{})}
	s.lanesMu.Lock()
	if s.lanes[name] != nil {
		s.lanesMu.Unlock()
		return nil, ErrLaneTaken
	}
	s.lanes[name] = l // before the lock is asked for, so that this process asks once
	s.lanesMu.Unlock()

	gone, unlock, err := s.eng.lockLane(ctx, name)
	if err != nil {
		l.forget()
		return nil, s.wrap(err, "lock lane "+name)
	}
	l.unlock = unlock
	if err := l.raise(ctx, 0); err != nil {
		return nil, errors.Join(err, l.Release(context.WithoutCancel(ctx)))
	}
	if gone != nil {
		s.bg.Go(func() {
			select {
			case <-gone:
				l.lose()
				l.forget()
			case <-l.lost:
			}
		})
	}
	return l, nil
}

// Lost is closed when the lane is no longer held: its lock went with the database connection, or it was released.
func (l *Lane) Lost() <-chan struct{} { return l.lost }

// Release gives the lane back. It is no error to release one that was lost.
func (l *Lane) Release(ctx context.Context) error {
	l.lose()
	err := l.unlock(ctx)
	l.forget()
	return l.s.wrap(err, "release lane "+l.Name)
}

// RaiseEpoch makes the lane's epoch greater than above: for a firewall that has seen a higher one, because the database was restored.
func (l *Lane) RaiseEpoch(ctx context.Context, above int64) error { return l.raise(ctx, above) }

func (l *Lane) raise(ctx context.Context, above int64) error {
	return l.s.write(ctx, "raise the epoch of lane "+l.Name, func(t *tx) error {
		err := t.row(`UPDATE firewalls SET epoch = CASE WHEN epoch < $2 THEN $2 ELSE epoch END + 1 WHERE name = $1 AND (epoch = $3 OR $3 = 0)
			RETURNING epoch`, []any{l.Name, above, l.Epoch}, &l.Epoch)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if l.Epoch != 0 {
			return &parry.Error{Kind: parry.KindConflict, Detail: "another replica took lane " + l.Name + " over", Err: ErrLaneLost}
		}
		return noFirewall(l.Name)
	})
}

func (l *Lane) lose() { l.once.Do(func() { close(l.lost) }) }

func (l *Lane) forget() {
	l.s.lanesMu.Lock()
	defer l.s.lanesMu.Unlock()
	if l.s.lanes[l.Name] == l {
		delete(l.s.lanes, l.Name)
	}
}
