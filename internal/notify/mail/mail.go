// Package mail sends notifications by SMTP: composed with jordan-wright/email, delivered over connections of its own that have deadlines.
//
// TLS is what the configuration says, never less: with starttls a server that does not offer it (or something in between that strips the
// offer) gets no message. Credentials travel over TLS only, but for a server on loopback.
package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	netmail "net/mail"
	"net/smtp"
	"net/textproto"
	"os"
	"strings"
	"time"

	"github.com/parry/parry/internal/parry"
)

// Security is how the connection is protected.
type Security string

const (
	StartTLS Security = "starttls" // required: no message without
	TLS      Security = "tls"      // from the first byte, usually port 465
	Plain    Security = "plain"    // none
)

// Options of a Mailer. Server, Security, From and To are required.
type Options struct {
	Server   string // host:port; the host is also the name that the certificate must bear
	Security Security
	Username string // empty: no login
	Password string
	From     string        // "parry <parry@example.org>" or an address
	To       []string      // likewise
	Helo     string        // how to greet; "" is this machine's name
	Timeout  time.Duration // of one message, unless the context ends before; 0 is 30 s
	TLS      *tls.Config   // nil: the system's roots; ServerName and MinVersion are filled in
	Now      func() time.Time
	Logger   *slog.Logger // is told of recipients that get nothing while others do; nil: nobody is
}

// Mailer is a notify.Channel. Safe for concurrent use.
type Mailer struct {
	o        Options
	host     string
	loopback bool
	from     *netmail.Address
	to       []*netmail.Address
}

// New checks the options; it connects nowhere.
func New(o Options) (*Mailer, error) {
	m := &Mailer{o: o}
	var err error
	var port string
	if m.host, port, err = net.SplitHostPort(o.Server); err != nil || m.host == "" || port == "" {
		return nil, fmt.Errorf("mail: server %q: write host:port", o.Server)
	}
	ip := net.ParseIP(m.host)
	m.loopback = m.host == "localhost" || ip != nil && ip.IsLoopback()
	switch o.Security {
	case StartTLS, TLS:
	case Plain:
		if o.Username != "" && !m.loopback {
			return nil, errors.New("mail: a password is not sent in the clear: use security starttls or tls, or no username")
		}
	default:
		return nil, fmt.Errorf("mail: security %q: write starttls, tls or plain", o.Security)
	}
	if m.from, err = address(o.From); err != nil {
		return nil, fmt.Errorf("mail: from: %w", err)
	}
	if len(o.To) == 0 {
		return nil, errors.New("mail: to: name at least one address")
	}
	for _, s := range o.To {
		a, err := address(s)
		if err != nil {
			return nil, fmt.Errorf("mail: to: %w", err)
		}
		m.to = append(m.to, a)
	}
	if m.o.Timeout <= 0 {
		m.o.Timeout = 30 * time.Second
	}
	if m.o.Now == nil {
		m.o.Now = time.Now
	}
	if m.o.Logger == nil {
		m.o.Logger = slog.New(slog.DiscardHandler)
	}
	if m.o.Helo == "" {
		if m.o.Helo, err = os.Hostname(); err != nil || m.o.Helo == "" {
			m.o.Helo = "localhost"
		}
	}
	if clean(m.o.Helo, false) != m.o.Helo || strings.ContainsAny(m.o.Helo, " <>") {
		return nil, fmt.Errorf("mail: helo %q is no host name", m.o.Helo)
	}
	return m, nil
}

// address parses one; net/mail takes no line ends in it, so that none gets into a header.
func address(s string) (*netmail.Address, error) {
	a, err := netmail.ParseAddress(s)
	if err != nil {
		return nil, fmt.Errorf("%q is no mail address: %w", s, err)
	}
	if clean(s, false) != s || strings.ContainsAny(a.Address, "\r\n,") || strings.Contains(a.Name, ",") {
		return nil, fmt.Errorf("%q: a mail address and its name take no control characters and no comma", s)
	}
	return a, nil
}

// Notify sends one notification to every recipient in one conversation. It is retryable unless the server said no for good, or cannot be
// trusted. Once the server has taken it for one of them it is delivered: whom the server refuses is logged, and gets it no more, because the
// others would get it again.
func (m *Mailer) Notify(ctx context.Context, d parry.Delivery) (retryable bool, err error) {
	msg, err := m.Compose(d)
	if err != nil {
		return false, fmt.Errorf("compose the mail: %w", err)
	}
	refused, retryable, err := m.send(ctx, msg)
	for _, r := range refused {
		if err == nil {
			m.o.Logger.Warn("a recipient is refused, others have the mail", "notification_id", d.ID, "recipient", r.address, "err", r.why)
		}
	}
	return retryable, err
}

// Test sends a mail that says that mail works, for parry check. It is an error that one of several recipients is refused; the others have it.
func (m *Mailer) Test(ctx context.Context) error {
	msg, err := m.composeTest()
	if err != nil {
		return err
	}
	return m.all(m.send(ctx, msg))
}

// Probe goes through the conversation as far as the recipients and sends nothing; its error names what the server refuses.
func (m *Mailer) Probe(ctx context.Context) error { return m.all(m.send(ctx, nil)) }

// all makes recipients that were refused an error.
func (m *Mailer) all(refused []refusal, _ bool, err error) error {
	if err == nil && len(refused) > 0 {
		return fmt.Errorf("mail server %s: %w", m.o.Server, joined(refused))
	}
	return err
}

// refusal is a recipient that the server does not take, and its answer.
type refusal struct {
	address string
	why     error
}

// joined names every one, first those whose refusal may change by itself: while there is one, trying again is of use.
func joined(refused []refusal) (err error) {
	for _, forGood := range []bool{false, true} {
		for _, r := range refused {
			switch one := fmt.Errorf("recipient %s: %w", r.address, r.why); {
			case final(r.why) != forGood:
			case err == nil:
				err = one
			default:
				err = fmt.Errorf("%w; %w", err, one)
			}
		}
	}
	return err
}

// final tells whether the server said no for good (RFC 5321, 4.2.1).
func final(err error) bool {
	var reply *textproto.Error
	return errors.As(err, &reply) && reply.Code >= 500
}

// errHopeless marks what trying again does not mend.
type errHopeless struct{ error }

func (e errHopeless) Unwrap() error { return e.error }

func (m *Mailer) send(ctx context.Context, msg []byte) (refused []refusal, retryable bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.o.Timeout)
	defer cancel()
	if refused, err = m.converse(ctx, msg); err != nil {
		if ctx.Err() != nil { // the deadline shows as a closed connection
			return nil, true, fmt.Errorf("mail server %s: %w (%w)", m.o.Server, err, ctx.Err())
		}
		var hopeless errHopeless
		return nil, !errors.As(err, &hopeless) && !final(err), fmt.Errorf("mail server %s: %w", m.o.Server, err)
	}
	return refused, false, nil
}

// converse is one SMTP conversation, without a message only a trial. All of it ends with ctx.
func (m *Mailer) converse(ctx context.Context, msg []byte) ([]refusal, error) {
	conf := &tls.Config{}
	if m.o.TLS != nil {
		conf = m.o.TLS.Clone()
	}
	conf.ServerName, conf.MinVersion = m.host, max(conf.MinVersion, tls.VersionTLS12)
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", m.o.Server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if t, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(t); err != nil {
			return nil, err
		}
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if m.o.Security == TLS {
		tc := tls.Client(conn, conf)
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, untrusted(err)
		}
		conn = tc
	}
	c, err := smtp.NewClient(conn, m.host)
	if err != nil {
		return nil, fmt.Errorf("greeting: %w", err)
	}
	if err := c.Hello(m.o.Helo); err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	if m.o.Security == StartTLS {
		if ok, _ := c.Extension("STARTTLS"); !ok {
			return nil, errHopeless{errors.New("it does not offer STARTTLS, and mail is not sent in the clear")}
		}
		if err := c.StartTLS(conf); err != nil {
			return nil, untrusted(fmt.Errorf("starttls: %w", err))
		}
	}
	if m.o.Username != "" {
		if err := m.login(c); err != nil {
			return nil, err
		}
	}
	if err := c.Mail(m.from.Address); err != nil {
		return nil, fmt.Errorf("sender %s: %w", m.from.Address, err)
	}
	// Whoever the server takes gets the mail: one wrong address among several must not keep it from the others.
	var refused []refusal
	for _, a := range m.to {
		if err := c.Rcpt(a.Address); err != nil {
			refused = append(refused, refusal{a.Address, err})
		}
	}
	if msg == nil {
		_ = c.Quit()
		return refused, nil
	}
	if len(refused) == len(m.to) {
		return nil, joined(refused)
	}
	w, err := c.Data()
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	if _, err := w.Write(msg); err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	_ = c.Quit() // the message is taken: how the server says goodbye makes no difference
	return refused, nil
}

func untrusted(err error) error {
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return errHopeless{err}
	}
	return err
}

// login uses the strongest mechanism that the server offers.
func (m *Mailer) login(c *smtp.Client) error {
	if _, ok := c.TLSConnectionState(); !ok && !m.loopback {
		return errHopeless{errors.New("a password is not sent in the clear")}
	}
	_, offer := c.Extension("AUTH")
	has := map[string]bool{}
	for _, s := range strings.Fields(strings.ToUpper(offer)) {
		has[s] = true
	}
	var a smtp.Auth
	switch {
	case has["CRAM-MD5"]:
		a = smtp.CRAMMD5Auth(m.o.Username, m.o.Password)
	case has["PLAIN"]:
		a = &plainAuth{m.o.Username, m.o.Password}
	case has["LOGIN"]:
		a = &loginAuth{m.o.Username, m.o.Password}
	default:
		return errHopeless{fmt.Errorf("it offers no login that parry knows (%q); parry knows PLAIN, LOGIN and CRAM-MD5", clean(offer, false))}
	}
	if err := c.Auth(a); err != nil {
		return fmt.Errorf("login as %s: %w", m.o.Username, err)
	}
	return nil
}

// plainAuth is PLAIN (RFC 4616). Whether the connection may carry it was decided before; net/smtp's own goes by the server's name.
type plainAuth struct{ user, password string }

func (a *plainAuth) Start(*smtp.ServerInfo) (string, []byte, error) {
	return "PLAIN", []byte("\x00" + a.user + "\x00" + a.password), nil
}

func (a *plainAuth) Next(_ []byte, more bool) ([]byte, error) {
	if more {
		return nil, errors.New("unexpected challenge")
	}
	return nil, nil
}

// loginAuth is LOGIN, which some servers offer alone: the name and the password, each when asked for.
type loginAuth struct{ user, password string }

func (a *loginAuth) Start(*smtp.ServerInfo) (string, []byte, error) { return "LOGIN", nil, nil }

func (a *loginAuth) Next(challenge []byte, more bool) ([]byte, error) {
	if !more {
		return nil, nil
	}
	switch q := strings.ToLower(string(challenge)); {
	case strings.HasPrefix(q, "user"):
		return []byte(a.user), nil
	case strings.HasPrefix(q, "pass"):
		return []byte(a.password), nil
	}
	return nil, fmt.Errorf("unexpected challenge %q", clean(string(challenge), false))
}
