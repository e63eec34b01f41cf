package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/template"
	"text/template/parse"
	"time"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/parry"
)

const maxBody = 1 << 20 // bytes

// parseTemplate compiles a template of a JSON body and tries it on an example of each kind. Its data is the document as a map, by the document's
// own names, with report, block and summary always there, empty when there is none.
//
// Everything that it writes is escaped, so that nobody's words change the document's form: {{.title}} gives a JSON value, quotes included,
// and within quotes of the template's own {{text .title}} gives the text for there. There is no way around it.
func parseTemplate(text string) (func(*parry.Delivery) ([]byte, error), error) {
	t, err := template.New("body").Option("missingkey=zero").Funcs(template.FuncMap{"json": value, "text": inside}).Parse(text)
	if err != nil {
		return nil, err
	}
	for _, each := range t.Templates() {
		if each.Tree != nil && each.Root != nil {
			escape(each.Root)
		}
	}
	body := func(d *parry.Delivery) ([]byte, error) {
		b, err := json.Marshal(notify.NewDocument(d))
		if err != nil {
			return nil, err
		}
		data := map[string]any{"report": map[string]any{}, "block": map[string]any{}, "summary": map[string]any{}}
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		if err := dec.Decode(&data); err != nil {
			return nil, err
		}
		var out limited
		if err := t.Execute(&out, data); err != nil {
			return nil, err
		}
		if !json.Valid(out.Bytes()) {
			return nil, fmt.Errorf("it gives no JSON for %s: write values as {{.title}}, and within quotes as {{text .title}}", d.Kind)
		}
		return out.Bytes(), nil
	}
	for _, d := range examples() {
		if _, err := body(&d); err != nil {
			return nil, err
		}
	}
	return body, nil
}

// escape makes every value that is written pass through json or text.
func escape(n parse.Node) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n != nil {
			for _, each := range n.Nodes {
				escape(each)
			}
		}
	case *parse.ActionNode:
		if len(n.Pipe.Decl) > 0 {
			return // writes nothing
		}
		last := n.Pipe.Cmds[len(n.Pipe.Cmds)-1]
		if id, ok := last.Args[0].(*parse.IdentifierNode); ok && (id.Ident == "json" || id.Ident == "text") {
			return
		}
		n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{NodeType: parse.NodeCommand, Args: []parse.Node{parse.NewIdentifier("json").SetPos(n.Pos)}})
	case *parse.IfNode:
		escape(n.List)
		escape(n.ElseList)
	case *parse.RangeNode:
		escape(n.List)
		escape(n.ElseList)
	case *parse.WithNode:
		escape(n.List)
		escape(n.ElseList)
	}
}

// value is v as JSON.
func value(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// inside is v as it stands within the quotes of a JSON string.
func inside(v any) (string, error) {
	s, ok := v.(string)
	if v == nil {
		s, ok = "", true
	}
	if !ok {
		s = fmt.Sprint(v)
	}
	b, err := json.Marshal(s)
	return strings.TrimSuffix(strings.TrimPrefix(string(b), `"`), `"`), err
}

type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxBody {
		return 0, errors.New("the body is longer than 1 MiB")
	}
	return l.Buffer.Write(p)
}

// examples are notifications of every kind, with text that breaks what does not escape it.
func examples() (out []parry.Delivery) {
	const words = "\"quoted\" \\ </script> {{.}} \r\n ünï\x00"
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	for _, k := range append([]parry.NotificationKind{parry.NotifySummary, parry.NotifyTest}, parry.NotifyKinds...) {
		n := parry.Notification{ID: "n-0", Incident: "n-0", Kind: k, Severity: parry.SeverityOf(k), CreatedAt: now}
		switch {
		case k.Bulk():
			n.Block = &parry.BlockEvent{ID: "b-0", Source: "203.0.113.7", Firewalls: "default", Reason: words, Origin: words, AlertID: words, RuleID: words}
		case k == parry.NotifySummary:
			n.Summary = &parry.BlockSummary{Added: 2, Sources: []string{"203.0.113.7"}}
		case k.OfBundle():
			n.Report = parry.Report{Since: now, Failure: parry.FailBundle, Message: words, Bundle: parry.BundleRef{Name: "pfsense"}}
		case k != parry.NotifyTest:
			n.Firewall = "fw-a"
			n.Report = parry.Report{Firewall: "fw-a", Since: now, Failure: parry.FailTask, Message: words, Waiting: []string{words}, WaitingN: 1, Lifting: []string{words}, LiftingN: 1}
		}
		out = append(out, parry.Delivery{Notification: n, Channel: "hook"})
	}
	return out
}
