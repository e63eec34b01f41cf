package hooks

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Bounds of an alert. Wazuh's own messages end at 64 KiB, but an alert holds its event twice, decoded and as it came.
const (
	MaxSize  = 256 << 10 // bytes
	maxDepth = 64
)

// Bounds of inert text, in bytes, as in a block request.
const (
	maxText   = 256
	maxReason = 1024
)

// Alert is an alert document with what every alert has. All of its text is inert and may be empty.
type Alert struct {
	Command     string // of an active-response message: "add", "enable", "delete", …; empty in a plain alert
	ID          string // unique per manager
	Manager     string // the manager's name, and its node's in a cluster
	RuleID      string
	Groups      []string // the rule's
	Description string   // the rule's
	Level       int      // the rule's; -1 when there is none
	Agent       string   // its name
	AgentID     string
	Time        time.Time // zero when there is none, or none that can be read

	doc  map[string]any
	root string // where the alert stands in the document: "" or "parameters.alert."
}

// ReadWazuh reads an alert of Wazuh 4 (alerts.json, integratord) or 5, alone, in an active response's message (parameters.alert), or as the
// indexer stores it (_source). The error says what is wrong with the document as such; what it lacks is for [Settings.Judge] to tell.
func ReadWazuh(document []byte) (*Alert, error) {
	doc, err := readObject(document)
	if err != nil {
		return nil, err
	}
	a := &Alert{doc: doc, Level: -1}
	if a.at("parameters") != nil || a.at("wazuh.active_response") != nil {
		a.Command = a.text("command")
	}
	for _, wrapper := range []string{"parameters.alert", "_source"} {
		if inner, ok := a.at(wrapper).(map[string]any); ok {
			a.ID = a.text("_id") // the indexer's, where the alert has none itself
			a.doc, a.root = inner, wrapper+"."
			break
		}
	}
	a.ID = cmp.Or(a.text("id", "wazuh.event.id", "event.id"), a.ID)
	a.Manager = strings.TrimSpace(a.text("manager.name", "wazuh.cluster.name") + " " + a.text("cluster.node", "wazuh.cluster.node"))
	a.RuleID = a.text("rule.id", "wazuh.rule.id")
	a.Description = cut(a.whole("rule.description", "wazuh.rule.title", "wazuh.rule.description", "rule.name"), maxReason)
	a.Groups = a.texts("rule.groups", "wazuh.rule.groups", "wazuh.rule.tags")
	a.Agent, a.AgentID = a.text("agent.name", "wazuh.agent.name"), a.text("agent.id", "wazuh.agent.id")
	if level := a.text("rule.level", "wazuh.rule.level"); level != "" {
		if n, err := strconv.Atoi(level); err == nil && n >= 0 {
			a.Level = n
		} else if n, ok := wazuh5Levels[strings.ToLower(level)]; ok {
			a.Level = n
		}
	}
	a.Time = readTime(a.text("timestamp", "@timestamp"))
	return a, nil
}

// Key tells one alert's block of a source from every other's, so that an alert that comes twice counts once. ok is false when the alert has no
// id. It is the same whatever wraps the alert.
func (a *Alert) Key(source netip.Addr) (key [sha256.Size]byte, ok bool) {
	return sha256.Sum256(fmt.Appendf(nil, "%q %q %q %s", a.Manager, a.ID, a.RuleID, source)), a.ID != ""
}

func readObject(document []byte) (map[string]any, error) {
	switch {
	case len(document) > MaxSize:
		return nil, fmt.Errorf("the alert may have %d bytes at most", MaxSize)
	case depth(document) > maxDepth:
		return nil, fmt.Errorf("the alert is nested deeper than %d", maxDepth)
	}
	dec := json.NewDecoder(bytes.NewReader(document))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("the body is not JSON: %w", err)
	}
	doc, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("the body is not a JSON object: send one alert")
	}
	if len(bytes.TrimLeft(document[dec.InputOffset():], " \t\r\n")) > 0 {
		return nil, fmt.Errorf("there is something after the alert, at byte %d: send one alert and nothing else", dec.InputOffset())
	}
	return doc, nil
}

// depth is how deep brackets nest, in text that need not be JSON.
func depth(document []byte) (deepest int) {
	open, quoted := 0, false
	for i := 0; i < len(document); i++ {
		switch b := document[i]; {
		case quoted && b == '\\':
			i++
		case b == '"':
			quoted = !quoted
		case quoted:
		case b == '{' || b == '[':
			open++
			deepest = max(deepest, open)
		case b == '}' || b == ']':
			open--
		}
	}
	return deepest
}

// at is what stands at a dotted place, or nil. Names may be nested or dotted themselves ("source.ip"), as some senders flatten them.
func (a *Alert) at(place string) any { return at(a.doc, place) }

func at(v any, place string) any {
	m, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	if got, ok := m[place]; ok {
		return got
	}
	for i := range len(place) {
		if place[i] == '.' {
			if inner, ok := m[place[:i]]; ok {
				if got := at(inner, place[i+1:]); got != nil {
					return got
				}
			}
		}
	}
	return nil
}

// text is the first place that holds a word: a string, or a number as it is written.
func (a *Alert) text(places ...string) string { return cut(a.whole(places...), maxText) }

// whole is text as long as it is.
func (a *Alert) whole(places ...string) string {
	for _, p := range places {
		if s := word(a.at(p)); s != "" {
			return s
		}
	}
	return ""
}

// texts is the first place that holds words.
func (a *Alert) texts(places ...string) []string {
	for _, p := range places {
		list, ok := a.at(p).([]any)
		if !ok {
			list = []any{a.at(p)}
		}
		var out []string
		for _, v := range list {
			if s := word(v); s != "" {
				out = append(out, s)
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

func word(v any) string {
	switch v := v.(type) {
	case string:
		return strings.TrimSpace(v)
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	default:
		return ""
	}
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-len("…")], "") + "…"
}

// readTime reads Wazuh 4's time, whose offset has no colon, and RFC 3339.
func readTime(s string) time.Time {
	for _, layout := range []string{"2006-01-02T15:04:05.999999999-0700", time.RFC3339Nano} {
		if t, err := time.Parse(layout, s); err == nil && t.Year() >= 2000 {
			return t.UTC().Truncate(time.Microsecond)
		}
	}
	return time.Time{}
}
