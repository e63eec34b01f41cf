package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/config"
)

const channelsText = `
channels:
- {name: hook, type: webhook, url: "https://h.example/x", secret_file: key, events: [block.added], min_severity: warning, at_most: 5/10s}
- {name: chat, type: telegram, token: "1:x", chat: "-1"}
- {name: tickets, type: thehive, url: "https://t.example", token_file: key}
- {name: siem, type: syslog, network: unix}
`

func TestLoad_channelsHaveWhatTheirTypeUsuallyHas(t *testing.T) {
	t.Parallel()
	path := write(t, channelsText)
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "key"), []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	hook, chat, tickets, siem := c.Channels[0], c.Channels[1], c.Channels[2], c.Channels[3]
	if hook.Secret.Reveal() != "0123456789abcdef" || hook.AtMost.String() != "5/10s" || fmt.Sprint(hook.Events) != "[block.added]" {
		t.Errorf("%+v", hook)
	}
	if chat.AtMost.String() != "20/1m" || fmt.Sprint(chat.Events) != "[firewall.failed firewall.recovered block.rejected bundle.refused bundle.recovered panic token.suspended]" {
		t.Errorf("%+v", chat)
	}
	if tickets.API != "v1" || tickets.AtMost.N != 0 || fmt.Sprint(tickets.Events) != "[firewall.failed block.rejected bundle.refused token.suspended block.added]" {
		t.Errorf("%+v", tickets)
	}
	if siem.Format != "rfc5424" || siem.Facility != "local4" || siem.MinSeverity != "info" || siem.Timeout.D() != 30*time.Second {
		t.Errorf("%+v", siem)
	}
	if text := fmt.Sprintf("%+v", c); strings.Contains(text, "0123456789abcdef") {
		t.Error("a secret shows itself")
	}
}

func TestLoad_aChannelsFaultsNameLineKeyAndMend(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"a channel's type":     {"channels:\n- {name: a, type: slack}\n", ":2: channels.0..type: \"slack\" is not known; write webhook, telegram, thehive or syslog"},
		"a channel's key":      {"channels:\n- {name: a, type: webhook, url: 'https://h', chat: x}\n", ":2: channels.0..chat: a channel of type webhook has no chat; it has url, ca_file, plain_http, token, secret, template_file"},
		"a channel's need":     {"channels:\n- name: a\n  type: telegram\n  token: x\n", ":2: channels.0.: a channel of type telegram needs chat"},
		"a channel's event":    {"channels:\n- {name: a, type: thehive, url: 'https://h', token: x, events: [block.ended]}\n", ":2: channels.0..events.0.: \"block.ended\" is no event of a thehive channel; there are firewall.failed, block.rejected, bundle.refused, token.suspended, block.added"},
		"a channel's name":     {"channels:\n- {name: mail, type: webhook, url: 'https://h'}\n", ":2: channels.0..name: \"mail\" is no channel's name; use a-z, 0-9 and -, but not \"mail\""},
		"a channel twice":      {"channels:\n- {name: x, type: webhook, url: 'https://h'}\n- {name: x, type: webhook, url: 'https://h'}\n", ":3: channels.1..name: \"x\" is listed twice; keep one"},
		"a channel's rate":     {"channels:\n- {name: a, type: webhook, url: 'https://h', at_most: 20}\n", ": \"20\" is no rate; write 20/1m, or none"},
		"tickets have no rate": {"channels:\n- {name: a, type: thehive, url: 'https://h', token: x, at_most: 20/1m}\n", ":2: channels.0..at_most: TheHive gets an alert for each block, and no summary; leave it out"},
		"a channel's server":   {"channels:\n- {name: a, type: syslog, network: tcp}\n", ":2: channels.0.: over tcp it needs server: host:port"},
		"a channel's severity": {"channels:\n- {name: a, type: webhook, url: 'https://h', min_severity: high}\n", ":2: channels.0..min_severity: \"high\" is not known; write info or warning or critical"},
		"a channel's secret":   {"channels:\n- {name: a, type: webhook, url: 'https://h', secret_file: /nowhere}\n", ":2: channels.0..secret_file: open /nowhere: no such file or directory; make it, mode 0600, holding the secret alone"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := load(t, tc.text); err == nil {
				t.Fatal("loaded")
			} else if !regexp.MustCompile(tc.want).MatchString(err.Error()) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}
