// Package webhook posts notifications as JSON, signed as Standard Webhooks (standardwebhooks.com) has it, so that receivers find a library that
// checks the signature in any language:
//
//	webhook-id         the notification's id, the same at a repeat: a receiver that has seen it ignores it
//	webhook-timestamp  Unix seconds of this try
//	webhook-signature  "v1," and the base 64 of HMAC-SHA256(secret, id "." timestamp "." body)
//
// The body is [notify.Document], or what the operator's template makes of it.
package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/parry/parry/internal/notify"
	"github.com/parry/parry/internal/notify/post"
	"github.com/parry/parry/internal/parry"
)

// Options of a Channel. Name and URL are required.
type Options struct {
	Name      string
	URL       string
	Secret    string // signs; "whsec_" and base 64, or the key itself; empty: no signature
	Token     string // sent as a bearer token; empty: none
	Template  string // of the body; empty: the whole document
	CAFile    string
	PlainHTTP bool
	Now       func() time.Time
}

// Channel is a [notify.Channel]. Safe for concurrent use.
type Channel struct {
	o    Options
	post *post.Client
	key  []byte
	body func(*parry.Delivery) ([]byte, error)
}

const minSecret = 16 // bytes

// New checks the options, the template by an example of each kind; it connects nowhere.
func New(o Options) (*Channel, error) {
	if err := post.CheckURL(o.URL, o.PlainHTTP); err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Channel{o: o, body: document}
	var err error
	if o.Secret != "" {
		if c.key, err = key(o.Secret); err != nil {
			return nil, fmt.Errorf("secret: %w", err)
		}
	}
	if o.Template != "" {
		if c.body, err = parseTemplate(o.Template); err != nil {
			return nil, fmt.Errorf("template_file: %w", err)
		}
	}
	c.post, err = post.New(post.Options{CAFile: o.CAFile, PlainHTTP: o.PlainHTTP, Secrets: []string{o.Secret, o.Token}, Now: o.Now})
	return c, err
}

func key(secret string) ([]byte, error) {
	k := []byte(secret)
	if rest, ok := strings.CutPrefix(secret, "whsec_"); ok {
		var err error
		if k, err = base64.StdEncoding.DecodeString(rest); err != nil {
			return nil, errors.New("what follows whsec_ is no base 64; `openssl rand -base64 32` makes some")
		}
	}
	if len(k) < minSecret {
		return nil, fmt.Errorf("%d bytes are too short; `openssl rand -base64 32` makes a good one", len(k))
	}
	return k, nil
}

func document(d *parry.Delivery) ([]byte, error) { return json.Marshal(notify.NewDocument(d)) }

// Notify posts one notification.
func (c *Channel) Notify(ctx context.Context, d parry.Delivery) (retryable bool, err error) {
	a, retryable, err := c.send(ctx, &d)
	if err != nil {
		return retryable, err
	}
	return a.Err()
}

func (c *Channel) send(ctx context.Context, d *parry.Delivery) (*post.Answer, bool, error) {
	body, err := c.body(d)
	if err != nil {
		return nil, false, fmt.Errorf("make the body: %w", err)
	}
	at := strconv.FormatInt(c.o.Now().Unix(), 10)
	h := http.Header{}
	h.Set("webhook-id", string(d.ID))
	h.Set("webhook-timestamp", at)
	if c.key != nil {
		h.Set("webhook-signature", "v1,"+sign(c.key, string(d.ID), at, body))
	}
	if c.o.Token != "" {
		h.Set("Authorization", "Bearer "+c.o.Token)
	}
	return c.post.Do(ctx, http.MethodPost, c.o.URL, h, body)
}

func sign(key []byte, id, at string, body []byte) string {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(id + "." + at + "."))
	m.Write(body)
	return base64.StdEncoding.EncodeToString(m.Sum(nil))
}

// Test posts a notification of the kind test, and gives the answer.
func (c *Channel) Test(ctx context.Context) (answer string, err error) {
	d := notify.NewTest(c.o.Name, c.o.Now())
	a, _, err := c.send(ctx, &d)
	if err != nil {
		return "", err
	}
	_, err = a.Err()
	return a.String(), err
}

// Probe connects and sends nothing.
func (c *Channel) Probe(ctx context.Context) (string, error) {
	return "can be reached", c.post.Reach(ctx, c.o.URL)
}

// Close ends connections that idle.
func (c *Channel) Close() { c.post.Close() }
