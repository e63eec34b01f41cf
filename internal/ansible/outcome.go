package ansible

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/parry/parry/internal/parry"
)

const maxMessage = 2 << 10

// witness gathers from the events what happened to the one target.
type witness struct {
	host        string
	task        string // begun last
	reached     bool   // the target answered a task
	failed      *Event // the last failure that the play minds
	item        *Event // the last failed item of a loop: it bears the answer that the loop's own failure lacks
	unreachable *Event
	stats       *Stats
	finished    bool   // statistics came: Ansible went through the play
	answer      Answer // of the last task that gave one
	collected   Answer // by set_stats
}

func (w *witness) see(e *Event) {
	switch e.Event {
	case "task":
		w.task = e.Task
	case "stats":
		w.finished = true
		if s, ok := e.Hosts[w.host]; ok {
			w.stats = &s
		}
		w.collected = e.Answers["_run"]
		if a, ok := e.Answers[w.host]; ok {
			w.collected = a
		}
	case "result":
		if e.Host == w.host {
			w.result(e)
		}
	}
}

func (w *witness) result(e *Event) {
	switch e.Status {
	case "ok":
		w.reached = true
		if a := e.answer(); a.Parry != nil || a.TooLarge > 0 {
			w.answer = a
		}
	case "failed":
		w.reached = true
		if !e.Ignored {
			w.failed = e
		}
	case "item_failed":
		w.item = e
	case "unreachable":
		w.unreachable = e
	}
}

func (e *Event) answer() Answer {
	a := Answer{Parry: e.Result["parry"]}
	_ = json.Unmarshal(e.Result["parry_too_large"], &a.TooLarge)
	return a
}

// judge fills the outcome from what was seen, how the process ended and what it said on standard error.
func (w *witness) judge(o *Outcome, p *process, stderr string, lines int) {
	o.State, o.Task, o.RC = parry.RunUnknown, w.task, p.rc
	if w.stats != nil {
		o.Stats = *w.stats
		o.Changed = w.stats.Changed > 0
	}
	switch {
	case p.ended: // what happened meanwhile may be anything; Run names the reason
	case p.signal != 0:
		o.Failure, o.Message = parry.FailInternal, fmt.Sprintf("ansible-playbook was ended by a signal: %s", p.signal)
	case w.unreachable != nil && (w.stats == nil || w.stats.Unreachable > 0):
		w.judgeUnreachable(o)
	case w.failed != nil && (w.stats == nil || w.stats.Failures > 0):
		w.judgeFailed(o)
	case !w.finished, p.rc != 0:
		o.Failure, o.Message = parry.FailPlaybook, ansibleError(stderr, p.rc)
		if !w.reached {
			o.State = parry.RunFailed
		}
	case w.stats == nil:
		o.State, o.Failure, o.Message = parry.RunFailed, parry.FailPlaybook, "no task of the playbook was for the firewall: its plays must say hosts: all"
	default:
		w.judgeProof(o, lines)
	}
}

// Messages of ssh that tell why there is no connection; with the first three, and only with them, nothing was begun on the firewall.
var (
	hostKeyRE = regexp.MustCompile(`Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED|No \S+ host key is known`)
	authRE    = regexp.MustCompile(`Permission denied \(|Too many authentication failures|no mutual signature|UNPROTECTED PRIVATE KEY`)
	connectRE = regexp.MustCompile(`Connection refused|Connection timed out|No route to host|Network is unreachable|` +
		`Could not resolve hostname|kex_exchange_identification|Operation timed out|banner exchange`)
)

func (w *witness) judgeUnreachable(o *Outcome) {
	e := w.unreachable
	o.Task, o.Message = e.Task, clip(cmp.Or(e.text("msg"), "the firewall cannot be reached"), maxMessage)
	o.Failure = parry.FailUnreachable
	never := true
	switch {
	case hostKeyRE.MatchString(o.Message):
		o.Failure = parry.FailHostKey
	case authRE.MatchString(o.Message):
		o.Failure = parry.FailAuthentication
	default:
		never = connectRE.MatchString(o.Message)
	}
	if never && !w.reached {
		o.State = parry.RunFailed
	}
}

// failures maps contract 1's codes; bad_desired, unsupported_version and internal have no name of their own here.
var failures = map[string]parry.Failure{
	"busy":                parry.FailBusy,
	"stale_epoch":         parry.FailStaleEpoch,
	"stale_revision":      parry.FailStaleRevision,
	"foreign_controller":  parry.FailForeignController,
	"flushed":             parry.FailFlushed,
	"pf_refused":          parry.FailPFRefused,
	"config_changed":      parry.FailConfigChanged,
	"structure_missing":   parry.FailStructure,
	"capacity":            parry.FailCapacity,
	"bad_desired":         parry.FailInternal,
	"unsupported_version": parry.FailBundle,
	"internal":            parry.FailInternal,
}

func (w *witness) judgeFailed(o *Outcome) {
	e := w.failed
	a := e.answer()
	if a.Parry == nil && w.item != nil && w.item.Task == e.Task {
		e, a = w.item, w.item.answer()
	}
	o.State, o.Failure, o.Task, o.Message = parry.RunFailed, parry.FailTask, e.Task, failureText(e)
	if o.Details = decode(a.Parry); o.Details != nil {
		code, _ := o.Details["failure"].(string)
		o.Failure = cmp.Or(failures[code], parry.FailTask)
	}
}

func failureText(e *Event) string {
	parts := []string{e.text("msg")}
	for _, field := range []string{"reason", "stderr", "module_stderr", "stdout", "module_stdout"} {
		if s := strings.TrimSpace(e.text(field)); s != "" && !strings.Contains(parts[0], s) {
			parts = append(parts, s)
			break
		}
	}
	return clip(cmp.Or(strings.TrimSpace(strings.Join(parts, ": ")), "the task failed without a word"), maxMessage)
}

func (w *witness) judgeProof(o *Outcome, lines int) {
	o.Failure, o.Message = parry.FailNoProof, "the play ended well and gave no proof (set_stats parry)"
	for _, a := range []Answer{w.answer, w.collected} { // the task's own types first: templating can make strings of numbers
		if a.TooLarge > 0 {
			o.Message = fmt.Sprintf("the play's answer is too large: %d bytes", a.TooLarge)
		}
		if a.Parry == nil {
			continue
		}
		proof, rejected, err := parseProof(a.Parry, lines)
		if err != nil {
			o.Message = clip("the play's proof cannot be used: "+err.Error(), maxMessage)
			continue
		}
		o.State, o.Failure, o.Task, o.Message = parry.RunSucceeded, "", "", ""
		o.Proof, o.Rejected, o.Details = proof, rejected, decode(a.Parry)
		if o.Facts, err = parseFacts(a.Parry); err != nil {
			o.State, o.Failure, o.Proof = parry.RunFailed, parry.FailNoProof, nil
			o.Message = clip("the play's facts cannot be used: "+err.Error(), maxMessage)
		}
		if changed, ok := o.Details["changed"].(bool); ok {
			o.Changed = changed
		}
		return
	}
}

var (
	sha256RE = regexp.MustCompile(`^[0-9a-f]{64}$`)
	codeRE   = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
)

// parseProof reads an answer and holds it to contract 1; lines is how many were sent.
func parseProof(raw []byte, lines int) (*parry.Proof, []Rejection, error) {
	var a struct {
		SHA256, Controller           string
		Count, Added, Removed, Rules json.Number
		Capacity, Epoch              json.Number
		MachineID                    any         `json:"machine_id"`
		BootID                       any         `json:"boot_id"`
		RunID                        any         `json:"run_id"`
		ExemptSHA256                 string      `json:"exempt_sha256"`
		ExemptCount                  json.Number `json:"exempt_count"`
		Rejected                     []struct {
			Line json.Number
			Code string
		}
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, nil, err
	}
	var bad error
	number := func(name string, n json.Number) int64 {
		if n == "" {
			return 0
		}
		v, err := n.Int64()
		if err != nil || v < 0 {
			bad = errors.Join(bad, fmt.Errorf("%s is %q", name, n))
		}
		return v
	}
	word := func(v any) string {
		s, _ := v.(string)
		return clip(s, 128)
	}
	p := &parry.Proof{
		SHA256:     a.SHA256,
		Count:      int(number("count", a.Count)),
		Added:      int(number("added", a.Added)),
		Removed:    int(number("removed", a.Removed)),
		Rules:      int(number("rules", a.Rules)),
		Capacity:   int(number("capacity", a.Capacity)),
		Epoch:      number("epoch", a.Epoch),
		Controller: clip(a.Controller, 128),
		MachineID:  word(a.MachineID),
		BootID:     word(a.BootID),
		RunID:      word(a.RunID),

		ExemptSHA256: a.ExemptSHA256,
		ExemptCount:  int(number("exempt_count", a.ExemptCount)),
	}
	var rejected []Rejection
	for _, r := range a.Rejected {
		line := number("rejected.line", r.Line)
		if line < 1 || line > int64(lines) || !codeRE.MatchString(r.Code) {
			return nil, nil, fmt.Errorf("it rejects line %q with code %q, of %d lines", r.Line, clip(r.Code, 64), lines)
		}
		rejected = append(rejected, Rejection{Line: int(line), Code: r.Code})
	}
	switch {
	case !sha256RE.MatchString(p.SHA256):
		return nil, nil, fmt.Errorf("sha256 is %q", clip(p.SHA256, 80))
	case p.ExemptSHA256 != "" && !sha256RE.MatchString(p.ExemptSHA256):
		return nil, nil, fmt.Errorf("exempt_sha256 is %q", clip(p.ExemptSHA256, 80))
	case a.Count == "":
		return nil, nil, errors.New("count is missing")
	}
	return p, rejected, bad
}

const maxFacts = 1024 // of each kind

// parseFacts reads what a firewall says of itself; nil when it says nothing.
func parseFacts(raw []byte) (*parry.FirewallFacts, error) {
	var a struct {
		Facts *struct {
			Addresses, Gateways, Resolvers []string
			Forwards                       []struct {
				Destination, Protocol, To string
				Port                      uint16
				PortEnd                   uint16 `json:"port_end"`
				ToPort                    uint16 `json:"to_port"`
			}
		}
	}
	if err := json.Unmarshal(raw, &a); err != nil || a.Facts == nil {
		return nil, err
	}
	var bad error
	address := func(what, s string) netip.Addr {
		ip, err := netip.ParseAddr(s)
		if ip = ip.Unmap(); err != nil || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() {
			bad = errors.Join(bad, fmt.Errorf("%s: %q is no single address", what, clip(s, 64)))
		}
		return ip
	}
	addresses := func(what string, all []string) (out []netip.Addr) {
		if len(all) > maxFacts {
			bad = errors.Join(bad, fmt.Errorf("%s: %d of them, at most %d", what, len(all), maxFacts))
			return nil
		}
		for _, s := range all {
			out = append(out, address(what, s))
		}
		return out
	}
	f := &parry.FirewallFacts{
		Addresses: addresses("addresses", a.Facts.Addresses), Gateways: addresses("gateways", a.Facts.Gateways),
		Resolvers: addresses("resolvers", a.Facts.Resolvers),
	}
	if len(a.Facts.Forwards) > maxFacts {
		return nil, fmt.Errorf("forwards: %d of them, at most %d", len(a.Facts.Forwards), maxFacts)
	}
	for _, w := range a.Facts.Forwards {
		p := parry.PortForward{
			Destination: address("forwards.destination", w.Destination), To: address("forwards.to", w.To),
			Protocol: parry.Protocol(w.Protocol), Port: w.Port, PortEnd: cmp.Or(w.PortEnd, w.Port), ToPort: cmp.Or(w.ToPort, w.Port),
		}
		if p.Protocol == "-" {
			p.Protocol = parry.ProtoAny
		}
		switch {
		case p.Protocol != parry.ProtoAny && !slices.Contains(parry.Protocols, p.Protocol):
			bad = errors.Join(bad, fmt.Errorf("forwards.protocol: %q", clip(w.Protocol, 64)))
		case p.Port != 0 && !p.Protocol.HasPorts(), p.PortEnd < p.Port, int(p.ToPort)+int(p.PortEnd-p.Port) > 65535:
			bad = errors.Join(bad, fmt.Errorf("forwards: ports %d to %d of %q", p.Port, p.PortEnd, clip(w.Protocol, 64)))
		case p.Destination.Is4() != p.To.Is4():
			bad = errors.Join(bad, fmt.Errorf("forwards: %s to %s", p.Destination, p.To))
		}
		f.Forwards = append(f.Forwards, p)
	}
	if bad != nil {
		return nil, bad
	}
	return f, nil
}

// decode reads an answer as it came, without its rejects and facts; nil when it is none.
func decode(raw []byte) map[string]any {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var m map[string]any
	if d.Decode(&m) != nil {
		return nil
	}
	delete(m, "rejected")
	delete(m, "facts")
	return m
}

var errorRE = regexp.MustCompile(`(?m)^(ERROR! |\[ERROR\]: |fatal: )`)

// ansibleError picks Ansible's own words out of standard error.
func ansibleError(stderr string, rc int) string {
	if i := errorRE.FindStringIndex(stderr); i != nil {
		stderr = stderr[i[0]:]
	}
	return clip(cmp.Or(strings.TrimSpace(stderr), fmt.Sprintf("ansible-playbook ended with exit code %d and said nothing", rc)), maxMessage)
}

// clip makes valid UTF-8 of at most n bytes or so.
func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return strings.ToValidUTF8(s, "�")
}

// countLines counts the lines of a desired file.
func countLines(b []byte) int { return bytes.Count(b, []byte{'\n'}) }
