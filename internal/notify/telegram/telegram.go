// Package telegram sends notifications to a chat by the Bot API's sendMessage: plain text without parse_mode, so that nobody's words become
// markup, and without link previews, so that nobody's link is fetched. The bot's token stands in the URL that is asked; no error tells it.
package telegram

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/notify/post"
	"github.com/parry/parry/internal/parry"
)

// PublicAPI is the Bot API of telegram.org; servers of one's own have the same.
const PublicAPI = "https://api.telegram.org"

// maxText is what a message may hold. It is counted in UTF-16 units here, which are never fewer than the characters.
const maxText = 4096

// Options of a Channel. Token and Chat are required.
type Options struct {
	Name      string
	API       string // empty: PublicAPI
	Token     string // of the bot
	Chat      string // id of the chat, or @channel
	CAFile    string
	PlainHTTP bool
	Now       func() time.Time
}

// Channel is a [notify.Channel]. Safe for concurrent use.
type Channel struct {
	o    Options
	post *post.Client
}

var (
	tokenPattern = regexp.MustCompile(`^[0-9]+:[A-Za-z0-9_-]{20,}$`)
	chatPattern  = regexp.MustCompile(`^(-?[0-9]{1,20}|@[A-Za-z0-9_]{4,})$`)
)

// New checks the options; it connects nowhere.
func New(o Options) (*Channel, error) {
	if o.API == "" {
		o.API = PublicAPI
	}
	o.API = strings.TrimRight(o.API, "/")
	if err := post.CheckURL(o.API, o.PlainHTTP); err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	if !tokenPattern.MatchString(o.Token) {
		return nil, errors.New("token: it is no bot's token, as @BotFather gives it: 123456:ABC…")
	}
	if !chatPattern.MatchString(o.Chat) {
		return nil, errors.New("chat: write the chat's id, such as -1001234567890, or @channel")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	_, half, _ := strings.Cut(o.Token, ":")
	c, err := post.New(post.Options{CAFile: o.CAFile, PlainHTTP: o.PlainHTTP, Secrets: []string{o.Token, half}, Now: o.Now})
	return &Channel{o, c}, err
}

// message is what sendMessage takes of us.
type message struct {
	ChatID  string      `json:"chat_id"`
	Text    string      `json:"text"`
	Preview linkPreview `json:"link_preview_options"`
	NoPage  bool        `json:"disable_web_page_preview"` // the same for servers before Bot API 7.0
	Quiet   bool        `json:"disable_notification,omitempty"`
}

type linkPreview struct {
	Disabled bool `json:"is_disabled"`
}

// reply is what every method answers.
type reply struct {
	OK          bool            `json:"ok"`
	Result      json.RawMessage `json:"result"`
	Description string          `json:"description"`
	Parameters  struct {
		RetryAfter int   `json:"retry_after"` // seconds
		MigrateTo  int64 `json:"migrate_to_chat_id"`
	} `json:"parameters"`
}

// Notify sends one message. A repeat shows as a second message with the same reference in its last line.
func (c *Channel) Notify(ctx context.Context, d parry.Delivery) (retryable bool, err error) {
	_, retryable, err = c.send(ctx, &d)
	return retryable, err
}

func (c *Channel) send(ctx context.Context, d *parry.Delivery) (answer string, retryable bool, err error) {
	body, err := json.Marshal(message{
		ChatID: c.o.Chat, Text: cut(d), Preview: linkPreview{true}, NoPage: true, Quiet: d.Severity == parry.SeverityInfo,
	})
	if err != nil {
		return "", false, err
	}
	a, _, retryable, err := c.call(ctx, "sendMessage", body)
	if err != nil {
		return "", retryable, err
	}
	return a.String(), false, nil
}

// call asks a method. A 2xx that does not say ok is no yes.
func (c *Channel) call(ctx context.Context, method string, body []byte) (*post.Answer, reply, bool, error) {
	var r reply
	verb := http.MethodPost
	if body == nil {
		verb = http.MethodGet
	}
	a, retryable, err := c.post.Do(ctx, verb, c.o.API+"/bot"+c.o.Token+"/"+method, nil, body)
	if err != nil {
		return a, r, retryable, err
	}
	broken := json.Unmarshal(a.Body, &r)
	if s := r.Parameters.RetryAfter; s > 0 {
		a.RetryAfter = time.Duration(s) * time.Second
	}
	if retryable, err = a.Err(); err != nil {
		if r.Parameters.MigrateTo != 0 {
			err = fmt.Errorf("%w; the group has become a supergroup: set chat to %d", err, r.Parameters.MigrateTo)
		}
		return a, r, retryable, err
	}
	if broken != nil || !r.OK {
		return a, r, true, fmt.Errorf("the answer is not the Bot API's: %s", a)
	}
	return a, r, false, nil
}

// cut is the text, with the reference kept at its end.
func cut(d *parry.Delivery) string {
	text, units := notify.Text(d), 0
	tail := "\n…\nReference: " + string(d.ID)
	fits := 0 // bytes that leave room for the tail
	for i, r := range text {
		if units <= maxText-len(tail) {
			fits = i
		}
		if units++; r > 0xffff {
			units++
		}
	}
	if units <= maxText {
		return text
	}
	return text[:fits] + tail
}

// Test sends a message that says that the channel works, and gives the answer.
func (c *Channel) Test(ctx context.Context) (answer string, err error) {
	d := notify.NewTest(c.o.Name, c.o.Now())
	answer, _, err = c.send(ctx, &d)
	return answer, err
}

// Probe asks who the bot is and whether it knows the chat, and sends nothing.
func (c *Channel) Probe(ctx context.Context) (string, error) {
	_, me, _, err := c.call(ctx, "getMe", nil)
	if err != nil {
		return "", err
	}
	var bot struct {
		Username string `json:"username"`
	}
	_ = json.Unmarshal(me.Result, &bot) // for people only
	body, err := json.Marshal(map[string]string{"chat_id": c.o.Chat})
	if err != nil {
		return "", err
	}
	if _, _, _, err = c.call(ctx, "getChat", body); err != nil {
		return "", fmt.Errorf("the bot %s does not know the chat: %w", notify.Line(bot.Username), err)
	}
	return "the bot @" + notify.Line(bot.Username) + " knows the chat", nil
}

// Close ends connections that idle.
func (c *Channel) Close() { c.post.Close() }
