package ansible

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxEvent is the longest event that is looked at: a play's answer of 2 MiB, sent twice, and what surrounds it.
const maxEvent = 5 << 20

// Event is one line of a run's events. Its texts are hostile: they come from the firewall.
type Event struct {
	Event   string                     `json:"event"` // play, task, result, no_hosts, stats
	Time    float64                    `json:"time"`  // Unix seconds
	Play    string                     `json:"play,omitempty"`
	Task    string                     `json:"task,omitempty"`
	Action  string                     `json:"action,omitempty"`
	Status  string                     `json:"status,omitempty"` // of a result: ok, failed, unreachable, skipped, item_failed, retry
	Host    string                     `json:"host,omitempty"`
	Changed bool                       `json:"changed,omitempty"`
	Ignored bool                       `json:"ignored,omitempty"` // failed, and the play says not to mind
	Result  map[string]json.RawMessage `json:"result,omitempty"`  // msg, rc, stdout, stderr … and parry, the play's answer
	Hosts   map[string]Stats           `json:"hosts,omitempty"`   // of stats
	Answers map[string]Answer          `json:"answers,omitempty"` // of stats: what set_stats collected, by host or "_run"
}

// Answer is what a play answers under the key parry.
type Answer struct {
	Parry    json.RawMessage `json:"parry,omitempty"`
	TooLarge int64           `json:"parry_too_large,omitempty"` // its size, when it was too large to be passed
}

// text is the field as people should read it, empty when there is none.
func (e *Event) text(field string) string {
	raw := e.Result[field]
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}

// readEvents calls each for every event until r ends. Lines that are too long or no events are passed over.
func readEvents(r io.Reader, each func(*Event, []byte)) {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := readLine(br)
		var e Event
		if len(line) > 0 && json.Unmarshal(line, &e) == nil && e.Event != "" {
			each(&e, line)
		}
		if err != nil {
			return
		}
	}
}

// readLine returns the next line with its end, nil when it is longer than maxEvent.
func readLine(br *bufio.Reader) ([]byte, error) {
	var line []byte
	for long := false; ; {
		part, err := br.ReadSlice('\n')
		if long = long || len(line)+len(part) > maxEvent; long {
			line = nil
		} else {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// eventLog keeps events up to a size; what comes later is counted only.
type eventLog struct {
	w    io.Writer
	left int64
	lost int
	err  error
}

func (l *eventLog) put(line []byte) {
	if l.left -= int64(len(line)); l.left < 0 || l.err != nil {
		l.lost++
		return
	}
	_, l.err = l.w.Write(line)
}

func (l *eventLog) finish() error {
	if l.lost > 0 && l.err == nil {
		_, l.err = fmt.Fprintf(l.w, `{"event":"lost","task":"%d events were too many to be kept"}`+"\n", l.lost)
	}
	return l.err
}
