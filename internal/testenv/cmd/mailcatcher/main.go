// Command mailcatcher is an SMTP server for demos and tests: it takes every message, keeps it as it arrived in a directory (mail-1.eml …) and
// prints its conversation's envelope and readable text.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/parry/parry/internal/testenv"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("mailcatcher: ")
	var o testenv.MailOptions
	flag.StringVar(&o.Addr, "listen", "127.0.0.1:2525", "address and port; port 0 takes a free one")
	flag.StringVar(&o.Security, "security", "plain", "plain, starttls or tls")
	flag.StringVar(&o.User, "user", "", "name that a sender must log in with")
	flag.StringVar(&o.Password, "password", "", "its password")
	dir := flag.String("dir", "", "directory for the messages, and for ca.pem with TLS; none are kept without it")
	raw := flag.Bool("raw", false, "print messages as they arrived rather than their text")
	flag.Parse()

	var mu sync.Mutex
	n := 0
	o.OnMessage = func(l testenv.Letter) {
		mu.Lock()
		defer mu.Unlock()
		n++
		if *dir != "" {
			keep(filepath.Join(*dir, fmt.Sprintf("mail-%d.eml", n)), l.Data)
		}
		show(os.Stdout, n, l, *raw)
	}
	m, err := testenv.NewMail(o)
	if err != nil {
		log.Fatal(err)
	}
	if *dir != "" && m.CA != nil {
		keep(filepath.Join(*dir, "ca.pem"), m.CA)
	}
	fmt.Println("listening on", m.Addr)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	<-ctx.Done()
	stop()
	m.Close()
}

// keep writes under another name first, so that whoever waits for the file finds it whole.
func keep(name string, b []byte) {
	err := os.WriteFile(name+".tmp", b, 0o600)
	if err == nil {
		err = os.Rename(name+".tmp", name)
	}
	if err != nil {
		log.Print(err)
	}
}

func show(w io.Writer, n int, l testenv.Letter, raw bool) {
	fmt.Fprintf(w, "---- mail %d, from <%s> to <%s>, TLS %v ----\n", n, l.From, strings.Join(l.To, ">, <"), l.TLS)
	msg, err := mail.ReadMessage(bytes.NewReader(l.Data))
	if raw || err != nil {
		fmt.Fprintf(w, "%s\n", l.Data)
		return
	}
	for _, h := range []string{"From", "To", "Date", "Subject", "Message-Id", "In-Reply-To"} {
		if v, err := new(mime.WordDecoder).DecodeHeader(msg.Header.Get(h)); err == nil && v != "" {
			fmt.Fprintf(w, "%s: %s\n", h, v)
		}
	}
	fmt.Fprintf(w, "\n%s\n", text(msg))
}

// text is the message's plain part.
func text(msg *mail.Message) []byte {
	body, encoding := msg.Body, msg.Header.Get("Content-Transfer-Encoding")
	if _, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type")); err == nil && params["boundary"] != "" {
		r := multipart.NewReader(body, params["boundary"])
		for {
			p, err := r.NextRawPart()
			if err != nil {
				return nil
			}
			if strings.HasPrefix(p.Header.Get("Content-Type"), "text/plain") {
				body, encoding = p, p.Header.Get("Content-Transfer-Encoding")
				break
			}
		}
	}
	if strings.EqualFold(encoding, "quoted-printable") {
		body = quotedprintable.NewReader(body)
	}
	b, _ := io.ReadAll(body)
	return b
}
