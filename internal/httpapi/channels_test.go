package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
)

// someChannels has one that works, one that fails, and one that cannot be tested.
type someChannels struct{}

func (someChannels) States(context.Context) ([]parry.Channel, error) {
	return []parry.Channel{
		{Type: "telegram", ChannelState: parry.ChannelState{Channel: "chat", Waiting: 3, Failing: 1, LastError: "429 <b>", FailedAt: time.Unix(1, 0)},
			Subscription: parry.Subscription{Kinds: []parry.NotificationKind{parry.NotifyFailed}, Least: parry.SeverityWarning}},
		{Type: "mail", ChannelState: parry.ChannelState{Channel: "mail"}},
	}, nil
}

func (someChannels) Test(_ context.Context, name string) (string, time.Duration, error) {
	switch name {
	case "chat":
		return "200 OK", 1500 * time.Microsecond, nil
	case "down":
		return "", time.Second, errors.New("connection refused")
	case "limited":
		return "", time.Second, &parry.Error{Kind: parry.KindRateLimited, Detail: "answered 429"}
	}
	return "", 0, parry.Errorf(parry.KindNotFound, "there is no channel %q", name)
}

func TestChannels_listAndTest(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(o *Options) { o.Channels = someChannels{} })
	get := func(role parry.Role, method, path string) (int, string) {
		r := b.do(role, method, path, "")
		return r.StatusCode, r.body
	}
	if code, body := get(parry.RoleReader, http.MethodGet, "/api/v1/channels"); code != http.StatusOK ||
		!strings.Contains(body, `"events":["firewall.failed"]`) || !strings.Contains(body, `"min_severity":"warning"`) ||
		!strings.Contains(body, `"min_severity":"info"`) || !strings.Contains(body, `"waiting":3`) || strings.Contains(body, "<b>") {
		t.Errorf("%d %s", code, body)
	}
	for path, want := range map[string]string{
		"chat": `{"answer":"200 OK","delivered":true,"milliseconds":1}`, "down": `{"answer":"connection refused","delivered":false,"milliseconds":1000}`,
		"limited": `{"answer":"answered 429","delivered":false,"milliseconds":1000}`,
	} {
		if code, body := get(parry.RoleOperator, http.MethodPost, "/api/v1/channels/"+path+"/test"); code != http.StatusOK || strings.TrimSpace(body) != want {
			t.Errorf("%s: %d %s, want %s", path, code, body, want)
		}
	}
	if code, body := get(parry.RoleOperator, http.MethodPost, "/api/v1/channels/pager/test"); code != http.StatusNotFound || !strings.Contains(body, "no channel") {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := get(parry.RoleReader, http.MethodPost, "/api/v1/channels/chat/test"); code != http.StatusForbidden {
		t.Errorf("a reader tests: %d", code)
	}
	if r := newBench(t).do(parry.RoleReader, http.MethodGet, "/api/v1/channels", ""); strings.TrimSpace(r.body) != `{"items":[]}` {
		t.Errorf("without channels: %s", r.body)
	}
}
