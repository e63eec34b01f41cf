package ansible

import (
	"fmt"
	"io"
	"sync"
)

const tailSize = 64 << 10

// cappedLog passes the beginning of what is written on to w and keeps the end, so that w holds at most limit bytes or so: what is told
// first and what is told last. Safe for concurrent use; a failing w never fails a Write.
type cappedLog struct {
	mu      sync.Mutex
	w       io.Writer
	head    int64  // bytes that may still go to w at once
	tail    []byte // the newest bytes, at most 2*tailSize
	pending int64  // bytes that did not go to w
	err     error
}

func newCappedLog(w io.Writer, limit int64) *cappedLog {
	return &cappedLog{w: w, head: max(limit-tailSize, 0)}
}

func (l *cappedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(b)
	now := b[:min(int64(n), l.head)]
	l.head -= int64(len(now))
	l.put(now)
	l.pending += int64(n - len(now))
	l.tail = append(l.tail, b[max(0, n-tailSize):]...)
	if len(l.tail) > 2*tailSize {
		l.tail = append(l.tail[:0], l.tail[len(l.tail)-tailSize:]...)
	}
	return n, nil
}

func (l *cappedLog) put(b []byte) {
	if l.err == nil && len(b) > 0 {
		_, l.err = l.w.Write(b)
	}
}

// finish writes what was held back and returns the first error of w.
func (l *cappedLog) finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending > 0 {
		end := l.last(int(min(l.pending, tailSize)))
		if left := l.pending - int64(len(end)); left > 0 {
			l.put(fmt.Appendf(nil, "\n[… %d bytes left out …]\n", left))
		}
		l.put(end)
	}
	return l.err
}

// last is the newest n bytes at most.
func (l *cappedLog) last(n int) []byte { return l.tail[max(0, len(l.tail)-n):] }
