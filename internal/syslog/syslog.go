// Package syslog sends lines to a syslog receiver: RFC 5424 over UDP (RFC 5426), TCP (RFC 6587, octet counting; lines for RFC 3164) and TLS (RFC 5425), and the
// form of syslog(3) over the local socket.
//
// Plain syslog has no acknowledgement. A connection is therefore watched for its end, so that a receiver that went away is noticed before the
// next line is written into the void, and with Options.Confirm every line has a connection of its own, which the receiver closes when it has
// read all. UDP and the local socket promise nothing beyond this host.
package syslog

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Network is how a line travels.
type Network string

const (
	UDP  Network = "udp"
	TCP  Network = "tcp"
	TLS  Network = "tls"
	Unix Network = "unix" // a datagram socket of this host
)

// Options of a Client. Network is required, and Address but for Unix.
type Options struct {
	Network  Network
	Address  string        // host or host:port; the port is 514, of TLS 6514. Of Unix a path; empty is /dev/log
	CAFile   string        // of TLS: trust these certificates and no others
	TLS      *tls.Config   // of TLS, beside CAFile; ServerName and MinVersion are filled in
	AppName  string        // empty: parry
	Facility string        // empty: local4
	Hostname string        // empty: this machine's
	Format   Format        // empty: RFC5424, over Unix Local
	Confirm  bool          // TCP and TLS: a connection for each line, and wait until the receiver has read it
	Timeout  time.Duration // of one Send, unless its context ends before; 0 is 5 s
	MaxBytes int           // of one line; 0 is 8192, over UDP 2048
	Now      func() time.Time
}

// confirmWait is for receivers that do not close their side when they have read all: no complaint within it counts as taken.
const confirmWait = 2 * time.Second

// Client sends lines to one receiver. Safe for concurrent use; lines go out one after the other.
type Client struct {
	o    Options
	h    header
	conf *tls.Config
	turn chan struct{} // holds one: who has it may use conn
	conn *watched
}

// New checks the options; it connects nowhere.
func New(o Options) (*Client, error) {
	facility, err := ParseFacility(cmp.Or(o.Facility, "local4"))
	if err != nil {
		return nil, fmt.Errorf("syslog: %w", err)
	}
	c := &Client{turn: make(chan struct{}, 1)}
	switch o.Network {
	case Unix:
		o.Address, o.Format = cmp.Or(o.Address, "/dev/log"), cmp.Or(o.Format, Local)
	case UDP, TCP, TLS:
		if o.Address, err = withPort(o.Address, o.Network); err != nil {
			return nil, fmt.Errorf("syslog: %w", err)
		}
	default:
		return nil, fmt.Errorf("syslog: network %q: write udp, tcp, tls or unix", o.Network)
	}
	switch o.Format = cmp.Or(o.Format, RFC5424); o.Format {
	case RFC5424, RFC3164, Local:
	default:
		return nil, fmt.Errorf("syslog: format %q: write rfc5424, rfc3164 or local", o.Format)
	}
	if o.Network == TLS {
		if c.conf, err = tlsConfig(&o); err != nil {
			return nil, fmt.Errorf("syslog: %w", err)
		}
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 8192
		if o.Network == UDP {
			o.MaxBytes = 2048 // what RFC 5426 asks receivers to take
		}
	}
	if o.MaxBytes < 480 {
		return nil, fmt.Errorf("syslog: %d bytes are too few for a line; 480 are the least", o.MaxBytes)
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Hostname == "" {
		o.Hostname, _ = os.Hostname() // "-" without one
	}
	c.o = o
	c.h = header{
		format: o.Format, facility: facility, hostname: name(o.Hostname, 255), app: name(cmp.Or(o.AppName, "parry"), 48), pid: strconv.Itoa(os.Getpid()),
	}
	return c, nil
}

func withPort(addr string, n Network) (string, error) {
	port := "514"
	if n == TLS {
		port = "6514"
	}
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		host, p = strings.Trim(addr, "[]"), port
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", fmt.Errorf("address %q: write host:port", addr)
		}
	}
	if _, err := strconv.ParseUint(p, 10, 16); err != nil || host == "" {
		return "", fmt.Errorf("address %q: write host:port", addr)
	}
	return net.JoinHostPort(host, p), nil
}

func tlsConfig(o *Options) (*tls.Config, error) {
	conf := &tls.Config{}
	if o.TLS != nil {
		conf = o.TLS.Clone()
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		if conf.RootCAs = x509.NewCertPool(); !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", o.CAFile)
		}
	}
	if conf.ServerName == "" {
		conf.ServerName, _, _ = net.SplitHostPort(o.Address)
	}
	conf.MinVersion = max(conf.MinVersion, tls.VersionTLS12)
	return conf, nil
}

// Send hands a line to the receiver, within ctx and the client's timeout. It connects when there is no connection, and once more when the one
// that it had turns out to be gone. After an error the line may have arrived all the same.
func (c *Client) Send(ctx context.Context, m Message) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return fmt.Errorf("syslog %s: wait for the connection: %w", c.o.Address, ctx.Err())
	}
	if m.Time.IsZero() {
		m.Time = c.o.Now()
	}
	line := c.h.render(&m, c.o.MaxBytes)
	if c.o.Network == TCP || c.o.Network == TLS {
		if c.o.Format == RFC3164 {
			line = append(line, '\n') // RFC 6587, 3.4.2: who takes this form over TCP (OSSEC, Wazuh) knows no octet counting; no text holds a line end
		} else {
			line = append(append(strconv.AppendInt(nil, int64(len(line)), 10), ' '), line...)
		}
	}
	err := c.send(ctx, line)
	if err != nil && ctx.Err() != nil { // the deadline shows as a closed connection
		err = fmt.Errorf("%w (%w)", err, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("syslog %s: %w", c.o.Address, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, line []byte) error {
	if c.conn != nil {
		if c.conn.alive() && c.conn.write(ctx, line) == nil {
			return nil
		}
		c.drop()
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	c.conn = conn
	if err = conn.write(ctx, line); err == nil && c.o.Confirm && conn.closeWrite != nil {
		err = conn.confirm(ctx)
		c.drop()
	}
	if err != nil {
		c.drop()
	}
	return err
}

func (c *Client) dial(ctx context.Context) (*watched, error) {
	switch d := new(net.Dialer); c.o.Network {
	case Unix:
		conn, err := d.DialContext(ctx, "unixgram", c.o.Address)
		return &watched{Conn: conn}, err
	case UDP:
		conn, err := d.DialContext(ctx, "udp", c.o.Address)
		return &watched{Conn: conn}, err
	case TLS:
		raw, err := d.DialContext(ctx, "tcp", c.o.Address)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, c.conf)
		if err := conn.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		return watch(conn, conn.CloseWrite), nil
	default:
		conn, err := d.DialContext(ctx, "tcp", c.o.Address)
		if err != nil {
			return nil, err
		}
		return watch(conn, conn.(*net.TCPConn).CloseWrite), nil
	}
}

// Probe connects, sends nothing, and ends the connection.
func (c *Client) Probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return fmt.Errorf("syslog %s: %w", c.o.Address, err)
	}
	_ = conn.Close()
	if conn.gone != nil {
		<-conn.gone
	}
	return nil
}

// Close ends the connection, if there is one. A later Send makes a new one.
func (c *Client) Close() error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	c.drop()
	return nil
}

func (c *Client) drop() {
	if c.conn == nil {
		return
	}
	_ = c.conn.Close() // what is written is written, or the receiver is gone
	if c.conn.gone != nil {
		<-c.conn.gone
	}
	c.conn = nil
}

// watched is a connection; a stream's is read all the time, since its end shows there first.
type watched struct {
	net.Conn
	closeWrite func() error  // of a stream
	gone       chan struct{} // closed at the stream's end
	why        error         // then: nil when the receiver closed in order
}

func watch(c net.Conn, closeWrite func() error) *watched {
	w := &watched{Conn: c, closeWrite: closeWrite, gone: make(chan struct{})}
	go func() {
		defer close(w.gone)
		_, w.why = io.Copy(io.Discard, c)
	}()
	return w
}

func (w *watched) alive() bool {
	select {
	case <-w.gone: // nil, and so never, of a datagram socket
		return false
	default:
		return true
	}
}

func (w *watched) write(ctx context.Context, line []byte) error {
	if t, ok := ctx.Deadline(); ok {
		if err := w.SetWriteDeadline(t); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	_, err := w.Write(line)
	if !stop() && err == nil {
		err = context.Cause(ctx) // closed beneath us: who knows what went out
	}
	return err
}

// confirm says that no more comes, and waits until the receiver has read to that end.
func (w *watched) confirm(ctx context.Context) error {
	if err := w.closeWrite(); err != nil {
		return err
	}
	t := time.NewTimer(confirmWait)
	defer t.Stop()
	select {
	case <-w.gone:
		if w.why != nil && !errors.Is(w.why, io.EOF) {
			return fmt.Errorf("the receiver broke off: %w", w.why)
		}
		return nil
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
