package lists

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/parry/parry/internal/parry"
)

const (
	hitQueue = 1024
	hitTries = 3
	hitPause = time.Second // between tries
)

// Hit is a lookup that found an entry.
type Hit struct {
	Key   string // that was asked for, canonical
	Type  parry.ListType
	Entry parry.ListEntry
	By    string // token name
	At    time.Time
}

// MsgID is the syslog message id of hits.
const MsgID = "list-hit"

// Text is the line's text. Its form is a promise: decoders read it (integrations/ossec, integrations/wazuh), so that fields may be added at its
// end only. Quotes and backslashes within values are replaced, so that no text can pass for another field, and long ones cut, so that the whole fits
// the 1024 bytes that OSSEC reads of a datagram.
func (h *Hit) Text() string {
	e := &h.Entry
	return fmt.Sprintf(`parry: list-hit list="%s" key="%s" type="%s" count=%d first="%s" last="%s" comment="%s" asked_by="%s" entry="%s" rule="%s"`,
		tame(e.List, 63), tame(h.Key, 160), h.Type, e.Count, e.FirstSeen.UTC().Format(time.RFC3339), e.LastSeen.UTC().Format(time.RFC3339),
		tame(e.Comment, 160), tame(h.By, 64), tame(e.Key, 160), tame(e.RuleID, 32))
}

// tame makes text fit to stand between quotes on a line, at most n bytes of it.
func tame(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r == '\\':
			return '/'
		case unicode.IsControl(r), unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co):
			return ' '
		}
		return r
	}, s)
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// tell queues a hit, if the list wants it told and the entry was not told of within the list's interval.
func (l *Lists) tell(x *index, e *entry, key, by string, now time.Time) {
	list := x.definition()
	if !list.OnHit.Syslog || l.o.Send == nil {
		return
	}
	last, at := e.hit.Load(), now.UnixMicro()
	if last != 0 && at-last < list.OnHit.Every.Microseconds() || !e.hit.CompareAndSwap(last, at) {
		return
	}
	select {
	case l.hits <- Hit{Key: key, Type: list.Type, Entry: e.ListEntry, By: by, At: now}:
	default:
		l.metrics.dropped.Inc()
	}
}

// sendHits sends what is queued until ctx ends. A receiver that does not answer is tried again for a while, then the hit is dropped: later
// ones are worth more.
func (l *Lists) sendHits(ctx context.Context) {
	failing := false
	for {
		var h Hit
		select {
		case <-ctx.Done():
			return
		case h = <-l.hits:
		}
		var err error
		for try := range hitTries {
			if try > 0 && !sleep(ctx, hitPause) {
				return
			}
			if err = l.o.Send(ctx, h); err == nil || ctx.Err() != nil {
				break
			}
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			l.metrics.sent.Inc()
			if failing {
				l.log.Info("list hits reach the syslog server again")
			}
		default:
			l.metrics.failed.Inc()
			if !failing {
				l.log.Error("list hits do not reach the syslog server", "err", err)
			}
		}
		failing = err != nil
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
