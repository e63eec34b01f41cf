package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

var decodeNow = time.Date(2026, 11, 21, 2, 0, 0, 0, time.UTC)

// TestDecodeBlockRequest_refuses holds every class of malformed request: each must be refused, at the right place, with a mend.
func TestDecodeBlockRequest_refuses(t *testing.T) {
	t.Parallel()
	s := &Server{validate: newValidator()}
	with := func(members string) string { return `{"source":"203.0.113.7",` + members + `}` }
	for body, want := range map[string]string{ // pointer, then a part of what is said
		// No JSON, not one JSON, not an object.
		``: " the body is empty", ` `: " the body is not JSON", `{`: " unexpected end", `[]`: " an array", `"x"`: " a string", `null`: " null",
		`17`: " a number", `true`: " a boolean", `[{"source":"203.0.113.7"}]`: " an array", `{"source":"203.0.113.7"`: " unexpected end",
		`{"source":"203.0.113.7"} `[:24] + `x`: " after", `{"source":"203.0.113.7"}{}`: " something after", `{"source":"203.0.113.7"}{"source":"203.0.113.8"}`: " something after",
		`{"source":"203.0.113.7"}]`: " something after", "{\"source\":\"203.0.113.7\"}\x00": " something after", `{"source":"203.0.113.7",}`: " not JSON",
		`{'source':'203.0.113.7'}`: " not JSON", `{source:"203.0.113.7"}`: " not JSON", `{"source":"203.0.113.7" // x` + "\n}": " not JSON",
		"\xef\xbb\xbf" + `{"source":"203.0.113.7"}`: " not JSON", "{\"source\":\"203.0.113.7\",\"reason\":\"\xff\"}": " UTF-8",
		"{\"source\":\"203.0.113.7\",\"reason\":\"\xed\xa0\x80\"}": " UTF-8", with(`"reason":"` + "\n" + `"`): " not JSON", `{"source":NaN}`: " not JSON",
		`{"source":"203.0.113.7","destination_port":0x16}`: " not JSON", `{"source":"203.0.113.7","destination_port":022}`: " not JSON",
		// Members.
		`{}`: "/source required", `{"source":""}`: "/source empty", `{"source":null}`: "/source null", `{"source":7}`: "/source a number", `{"source":["203.0.113.7"]}`: "/source an array",
		`{"source":{"ip":"203.0.113.7"}}`: "/source an object", `{"source":true}`: "/source a boolean",
		with(`"src":"1"`): "/src unknown field; there are source", with(`"":1`): "/ unknown", with(`"a/b~":1`): "/a~1b~0 unknown",
		`{"Source":"203.0.113.7"}`: `/Source write "source"`, `{"ſource":"203.0.113.7"}`: `/ſource write "source"`, `{"SOURCE":"203.0.113.7"}`: `/SOURCE write "source"`,
		with(`"Source":"203.0.113.8"`): `/Source write "source"`, with(`"source":"203.0.113.7"`): "/source twice", with(`"source":null`): "/source twice",
		with(`"\u0073ource":"203.0.113.8"`): "/source twice", with(`"reason":null`): "/reason null", with(`"\ud800":1`): "/ unknown",
		with(`"reason":7`): "/reason a number", with(`"reason":"\ud800"`): "/reason surrogate", with(`"reason":"\udc00\ud800"`): "/reason surrogate",
		with(`"reason":"\ud800\u0041"`): "/reason surrogate", with(`"reason":"` + strings.Repeat("é", 1025) + `"`): "/reason 1024 characters",
		with(`"origin":"` + strings.Repeat("x", 257) + `"`): "/origin 256", with(`"alert_id":17`): "/alert_id a number", with(`"rule_id":["x"]`): "/rule_id an array",
		// Addresses.
		`{"source":"example.org"}`: "/source no IP address", `{"source":"203.0.113.256"}`: "/source no IP address", `{"source":"203.0.113"}`: "/source no IP address",
		`{"source":"3405803783"}`: "/source no IP address", `{"source":"0xcb.0.113.7"}`: "/source no IP address", `{"source":"010.0.0.1"}`: "/source octal",
		`{"source":"203.0.113.07"}`: "/source octal", `{"source":" 203.0.113.7"}`: "/source no IP address", `{"source":"203.0.113.7 "}`: "/source no IP address",
		`{"source":"203.0.113.7\n"}`: "/source no IP address", `{"source":"203.0.113.7\u0000"}`: "/source no IP address", `{"source":"[2001:db8::1]"}`: "/source no IP address",
		`{"source":"203.0.113.7:22"}`: "/source no IP address", `{"source":"fe80::1%eth0"}`: "/source zone", `{"source":"fe80::1%e;rm -rf"}`: "/source zone",
		`{"source":"::ffff:203.0.113.7%x"}`: "/source zone", `{"source":"fe80::%1/64"}`: "/source zone", `{"source":"203.0.113.7/24"}`: "/source write 203.0.113.0/24",
		`{"source":"2001:db8::1/48"}`: "/source write 2001:db8::/48", `{"source":"203.0.113.0/33"}`: "/source no prefix length", `{"source":"203.0.113.0/08"}`: "/source no prefix length",
		`{"source":"203.0.113.0/"}`: "/source no prefix length", `{"source":"203.0.113.0/-1"}`: "/source no prefix length", `{"source":"203.0.113.0/+8"}`: "/source no prefix length",
		`{"source":"203.0.113.0/24/8"}`: "/source no prefix length", `{"source":"203.0.113.0/255.255.255.0"}`: "/source no prefix length",
		`{"source":"::ffff:0.0.0.0/95"}`: "/source wider", `{"source":"::ffff:203.0.113.7/120"}`: "/source write 203.0.113.0/24", `{"source":"` + strings.Repeat("1", 65) + `"}`: "/source 64 characters",
		`{"source":"203.0.113.7,203.0.113.8"}`: "/source no IP address", `{"source":"203.0.113.7-9"}`: "/source no IP address", `{"source":"{{ 7*7 }}"}`: "/source no IP address",
		with(`"destination":"2001:db8::1"`): "/destination family", with(`"destination":""`): "/destination empty", with(`"destination":"any"`): "/destination no IP address",
		`{"source":"2001:db8::1","destination":"203.0.113.7"}`: "/destination family", with(`"destination":"198.51.100.1/24"`): "/destination write 198.51.100.0/24",
		// Ports and protocols.
		with(`"destination_port":"22"`): "/destination_port without quotes", with(`"destination_port":65536`): "/destination_port 65535", with(`"destination_port":-1`): "/destination_port plain digits",
		with(`"destination_port":-0`): "/destination_port plain digits", with(`"destination_port":22.0`): "/destination_port plain digits", with(`"destination_port":2.2e1`): "/destination_port plain digits",
		with(`"destination_port":99999999999999999999`): "/destination_port plain digits", with(`"destination_port":null`): "/destination_port null",
		with(`"destination_port":[22]`): "/destination_port an array", with(`"destination_port":22,"protocol":"icmp"`): "/destination_port icmp has no ports",
		with(`"destination_port":22,"protocol":"gre"`): "/destination_port gre has no ports", with(`"protocol":"esp","destination_port":1`): "/destination_port esp has no ports",
		with(`"protocol":"TCP"`): "/protocol one of any, tcp", with(`"protocol":"6"`): "/protocol one of", with(`"protocol":6`): "/protocol a number", with(`"protocol":""`): "/protocol empty",
		with(`"protocol":"tcp udp"`): "/protocol one of", with(`"protocol":"tcp "`): "/protocol one of",
		// Names.
		with(`"interface":"wan;reboot"`): "/interface letter", with(`"interface":"-wan"`): "/interface begins", with(`"interface":""`): "/interface empty", with(`"interface":"wän"`): "/interface letter",
		with(`"firewalls":"edge"`): "/firewalls array", with(`"firewalls":["edge",7]`): "/firewalls/1 a number", with(`"firewalls":[null]`): "/firewalls/0 null",
		with(`"firewalls":[""]`): "/firewalls/0 required", with(`"firewalls":["Edge"]`): "/firewalls/0 lower-case", with(`"firewalls":["a,b"]`): "/firewalls/0 lower-case",
		with(`"firewalls":[["a"]]`): "/firewalls/0 an array", with(`"firewalls":["a",{"b":["}"]}]`): "/firewalls/1 an object",
		with(`"firewalls":["` + strings.Repeat("x", 64) + `"]`): "/firewalls/0 63", with(`"firewalls":[` + strings.Repeat(`"a",`, 64) + `"a"]`): "/firewalls 64 items",
		// Times.
		with(`"ttl":14400`): "/ttl string", with(`"ttl":"0"`): "/ttl write a duration", with(`"ttl":"-4h"`): "/ttl write a duration", with(`"ttl":"4 h"`): "/ttl write a duration", with(`"ttl":""`): "/ttl empty",
		with(`"ttl":"forever"`): "/ttl none for without end", with(`"ttl":"1.5h"`): "/ttl write a duration", with(`"ttl":"99999w"`): "/ttl 100 years", with(`"ttl":true`): "/ttl a boolean",
		with(`"event_time":"yesterday"`): "/event_time RFC 3339", with(`"event_time":1763690400`): "/event_time a number", with(`"event_time":"2026-11-21"`): "/event_time RFC 3339",
		with(`"event_time":"2026-11-21 02:00:00Z"`): "/event_time RFC 3339", with(`"event_time":"2026-11-21T02:00:00"`): "/event_time RFC 3339", with(`"event_time":"2026-11-21T2:00:00Z"`): "/event_time RFC 3339",
		with(`"event_time":"2026-11-21T01:00:00,5Z"`): "/event_time RFC 3339", with(`"event_time":"2026-11-20T01:00:00+24:00"`): "/event_time RFC 3339", with(`"event_time":"2026-11-20T01:00:00+01:60"`): "/event_time RFC 3339",
		with(`"event_time":"2026-11-21T24:00:00Z"`): "/event_time RFC 3339", with(`"event_time":"2026-11-21T02:05:01Z"`): "/event_time ahead of this service's clock",
		with(`"event_time":"0001-01-01T00:00:00Z"`): "/event_time before 2000", with(`"event_time":"1970-01-01T00:00:00Z"`): "/event_time before 2000", with(`"event_time":""`): "/event_time empty",
	} {
		_, err := s.decodeBlockRequest([]byte(body), decodeNow)
		var e *parry.Error
		if !errors.As(err, &e) || e.Kind != parry.KindInvalid || len(e.Fields) == 0 {
			t.Errorf("%.80q was taken: %v", body, err)
			continue
		}
		pointer, says, _ := strings.Cut(want, " ")
		found := false
		for _, f := range e.Fields {
			found = found || f.Pointer == pointer && strings.Contains(f.Detail, says)
		}
		if !found {
			t.Errorf("%.80q: got %q, want %q at %q", body, e.Fields, says, pointer)
		}
	}
}

func TestDecodeBlockRequest_takes(t *testing.T) {
	t.Parallel()
	s := &Server{validate: newValidator()}
	for body, want := range map[string]string{
		`{"source":"203.0.113.7"}`:                                              "203.0.113.7 - - - - default",
		" \t\r\n{ \"source\" : \"203.0.113.7\" } \n":                            "203.0.113.7 - - - - default",
		`{"\u0073ource":"203.0.113.7"}`:                                         "203.0.113.7 - - - - default",
		`{"source":"::ffff:203.0.113.7"}`:                                       "203.0.113.7 - - - - default",
		`{"source":"::ffff:203.0.113.0/120"}`:                                   "203.0.113.0/24 - - - - default",
		`{"source":"203.0.113.7/32"}`:                                           "203.0.113.7 - - - - default",
		`{"source":"2001:DB8:0::7"}`:                                            "2001:db8::7 - - - - default",
		`{"source":"2001:db8::/48","destination":"2001:db8:1::/64"}`:            "2001:db8::/48 2001:db8:1::/64 - - - default",
		`{"source":"203.0.113.7","destination":"::ffff:198.51.100.1"}`:          "203.0.113.7 198.51.100.1 - - - default",
		`{"source":"203.0.113.7","destination_port":22}`:                        "203.0.113.7 - tcp/udp 22 - default",
		`{"source":"203.0.113.7","destination_port":22,"protocol":"any"}`:       "203.0.113.7 - tcp/udp 22 - default",
		`{"source":"203.0.113.7","destination_port":0}`:                         "203.0.113.7 - - - - default",
		`{"source":"203.0.113.7","destination_port":0,"protocol":"icmp"}`:       "203.0.113.7 - icmp - - default",
		`{"source":"203.0.113.7","destination_port":65535,"protocol":"sctp"}`:   "203.0.113.7 - sctp 65535 - default",
		`{"source":"203.0.113.7","interface":"opt1.20"}`:                        "203.0.113.7 - - - opt1.20 default",
		`{"source":"203.0.113.7","firewalls":["edge-b","edge-a","edge-b"]}`:     "203.0.113.7 - - - - edge-a,edge-b",
		`{"source":"203.0.113.7","firewalls":[]}`:                               "203.0.113.7 - - - - default",
		`{"source":"203.0.113.7","firewalls":["default"],"protocol":"tcp/udp"}`: "203.0.113.7 - tcp/udp - - default",
		`{"source":"203.0.113.7","event_time":"2026-11-21T02:05:00Z"}`:          "203.0.113.7 - - - - default",
		`{"source":"203.0.113.7","event_time":"2001-01-01T00:00:00+02:00"}`:     "203.0.113.7 - - - - default",
	} {
		ask, err := s.decodeBlockRequest([]byte(body), decodeNow)
		if err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		if got := string(parry.Entry{Match: ask.match}.AppendKey(nil)) + " " + string(ask.selector); got != want {
			t.Errorf("%s: got %s, want %s", body, got, want)
		}
	}
}

// Text that would act if anything evaluated it is taken, and is the same afterwards.
func TestDecodeBlockRequest_keepsFreeTextAsWritten(t *testing.T) {
	t.Parallel()
	s := &Server{validate: newValidator()}
	for _, text := range []string{
		`{{ lookup('pipe','touch /tmp/canary') }}`, "$(reboot) `reboot`; reboot", `<script>alert(1)</script>`, "a\r\nBcc: x@example.org", "]]><x/>", `{"a":[1}`,
		"\x00\x1b[31m\u202e", `\ " / \u0041`, "😀 \U0010ffff \ufffd", "=cmd|' /C calc'!A0", strings.Repeat("é", 1024), "",
	} {
		body, err := json.Marshal(map[string]string{"source": "203.0.113.7", "reason": text})
		if err != nil {
			t.Fatal(err)
		}
		ask, err := s.decodeBlockRequest(body, decodeNow)
		if err != nil || ask.reason != text {
			t.Errorf("%q became %q, %v", text, ask.reason, err)
		}
	}
}

func TestDecodeBlockRequest_tellsAllThatIsWrong(t *testing.T) {
	t.Parallel()
	s := &Server{validate: newValidator()}
	_, err := s.decodeBlockRequest([]byte(`{"source":"x","destination_port":-1,"protocol":"x","ttl":"x","extra":1,"event_time":"x"}`), decodeNow)
	var e *parry.Error
	if !errors.As(err, &e) || len(e.Fields) != 6 {
		t.Errorf("got %v", err)
	}
	var many bytes.Buffer
	for i := range 3000 {
		fmt.Fprintf(&many, `,"x%d":1`, i)
	}
	_, err = s.decodeBlockRequest([]byte(`{"source":"203.0.113.7"`+many.String()+`}`), decodeNow)
	if !errors.As(err, &e) || len(e.Fields) != maxProblems {
		t.Errorf("%d problems were told", len(e.Fields))
	}
}

// The decoders' tables are written by hand: each must know exactly the fields of its struct, and so of the OpenAPI document.
func TestDecoders_knowTheDocumentsFields(t *testing.T) {
	t.Parallel()
	for name, pair := range map[string][2][]string{
		"BlockRequest":     {names(blockRequestFields), jsonNames[api.BlockRequest]()},
		"BlockUpdate":      {names(blockUpdateFields), jsonNames[api.BlockUpdate]()},
		"DecisionRequest":  {names(decisionFields), jsonNames[api.DecisionRequest]()},
		"PanicRequest":     {names(panicFields), jsonNames[api.PanicRequest]()},
		"HoldRequest":      {names(holdFields), jsonNames[api.HoldRequest]()},
		"ExemptionRequest": {names(exemptionFields), jsonNames[api.ExemptionRequest]()},
		"TokenRequest":     {names(tokenFields), jsonNames[api.TokenRequest]()},
	} {
		got, want := map[string]bool{}, map[string]bool{}
		for _, n := range pair[0] {
			got[n] = true
		}
		for _, n := range pair[1] {
			want[n] = true
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the decoder knows %v, the document %v", name, pair[0], pair[1])
		}
	}
}

func names[T any](fields []field[T]) (out []string) {
	for _, f := range fields {
		out = append(out, f.name)
	}
	return out
}

func jsonNames[T any]() (out []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[T]()) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, name)
	}
	return out
}

// written is an ask as a request again.
func written(a *blockAsk) api.BlockRequest {
	r := api.BlockRequest{
		Source: parry.FormatPrefix(a.match.Source), DestinationPort: int(a.match.Port), Protocol: api.BlockRequestProtocol(a.match.Protocol),
		Interface: a.match.Interface, Firewalls: a.selector.Names(), Reason: a.reason, Origin: a.origin, AlertID: a.alertID, RuleID: a.ruleID, EventTime: a.eventTime,
	}
	if a.match.Destination.IsValid() {
		r.Destination = parry.FormatPrefix(a.match.Destination)
	}
	switch {
	case a.noEnd:
		r.TTL = noEnd
	case a.ttl > 0:
		r.TTL = parry.FormatTTL(a.ttl)
	}
	return r
}

// Whatever is accepted is canonical: written again it is read as the same, and encoding/json reads it as the same too.
func FuzzDecodeBlockRequest(f *testing.F) {
	for _, seed := range []string{
		`{"source":"203.0.113.7"}`, `{"source":"::ffff:203.0.113.7","destination_port":22}`, `{"source":"2001:db8::/48","ttl":"2d12h","firewalls":["b","a"]}`,
		`{"source":"203.0.113.7","reason":"\ud83d\ude00\u0000\"\\","event_time":"2026-11-21T02:00:00.123456789+01:00"}`, `{"source":"fe80::1%x","ſource":null}`,
		`{"source":"203.0.113.7","protocol":"any","destination":"198.51.100.0/24","interface":"wan","ttl":"none","origin":"o","alert_id":"a","rule_id":"r"}`,
		`{"source":[{"a":"}"}],"x":{"y":[1,2,{"z":null}]}}`, "{\"source\":\"\xff\"}", `{"source":"1.1.1.1"}{}`,
	} {
		f.Add([]byte(seed))
	}
	s := &Server{validate: newValidator()}
	f.Fuzz(func(t *testing.T, body []byte) {
		ask, err := s.decodeBlockRequest(body, decodeNow)
		if err != nil {
			if parry.KindOf(err) != parry.KindInvalid {
				t.Fatalf("refused as %s: %v", parry.KindOf(err), err)
			}
			return
		}
		m := ask.match
		if m.Source != m.Source.Masked() || m.Source.Addr().Is4In6() || m.Source.Addr().Zone() != "" || !m.Source.IsValid() {
			t.Fatalf("the source %s is not canonical", m.Source)
		}
		if m.Destination.IsValid() && (m.Destination != m.Destination.Masked() || m.Destination.Addr().Is4() != m.Source.Addr().Is4()) {
			t.Fatalf("the destination %s is not canonical", m.Destination)
		}
		if m.Port != 0 && !m.Protocol.HasPorts() {
			t.Fatalf("port %d with protocol %q", m.Port, m.Protocol)
		}
		req := written(&ask)
		again, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		second, err := s.decodeBlockRequest(again, decodeNow)
		if err != nil {
			t.Fatalf("%s was accepted, and written as %s refused: %v", body, again, err)
		}
		if second != ask {
			t.Fatalf("%s was read as %+v, and written as %s read as %+v", body, ask, again, second)
		}
		var std api.BlockRequest
		if err := json.Unmarshal(body, &std); err != nil {
			t.Fatalf("encoding/json refuses %s: %v", body, err)
		}
		if std.Reason != ask.reason || std.Origin != ask.origin || std.AlertID != ask.alertID || std.RuleID != ask.ruleID {
			t.Fatalf("encoding/json reads other texts in %s", body)
		}
	})
}
