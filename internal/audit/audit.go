// Package audit is the form of parry's audit: rows, each of which holds the hash of the one before, so that what is changed, taken out, moved or
// cut off later shows. It is pure: store writes the rows, httpapi sends them, cli verifies them, here or on another machine.
//
// A row's hash is the SHA-256 of its text, in lower-case hexadecimal. The text is a row of netstrings (the length in bytes, a colon, the bytes,
// a comma) of these values, as UTF-8: prev, seq, time, actor, token_id, role, remote, action, object, outcome, detail, request_id. prev is
// the hash of the row before, 64 zeros for the first; seq a decimal number; all others are as they stand in the JSON.
package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Row is one row, as a line of an export says it.
type Row struct {
	Seq       int64  `json:"seq"` // from 1, without gaps
	Time      string `json:"time"`
	Actor     string `json:"actor"`    // a token's name, "local" for root at the socket, "parry", or "-" for one who did not prove who it is
	TokenID   string `json:"token_id"` // empty for those without a token
	Role      string `json:"role"`
	Remote    string `json:"remote"` // an address, or "socket"
	Action    string `json:"action"`
	Object    string `json:"object"`
	Outcome   string `json:"outcome"`
	Detail    string `json:"detail"` // a JSON object as text, or empty; may hold hostile text as values
	RequestID string `json:"request_id"`
	Prev      string `json:"prev"` // hash of the row before; empty when that is missing
	Hash      string `json:"hash"`
}

// Genesis is the first row's Prev.
var Genesis = strings.Repeat("0", 2*sha256.Size)

// TimeFormat is how a row's time is written: UTC, always with microseconds.
const TimeFormat = "2006-01-02T15:04:05.000000Z"

// FormatTime writes a row's time.
func FormatTime(t time.Time) string { return t.UTC().Format(TimeFormat) }

// Sum is the hash that the row must have when it follows one of the hash prev.
func (r *Row) Sum(prev string) string {
	b := make([]byte, 0, 1024)
	for _, f := range [...]string{
		prev, strconv.FormatInt(r.Seq, 10), r.Time, r.Actor, r.TokenID, r.Role, r.Remote, r.Action, r.Object, r.Outcome, r.Detail, r.RequestID,
	} {
		b = append(strconv.AppendInt(b, int64(len(f)), 10), ':')
		b = append(append(b, f...), ',')
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// Plain makes a caller's words fit for a row: valid UTF-8 without control and formatting characters, at most so many bytes.
func Plain(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r > unicode.MaxASCII && unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co) {
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(s, string(utf8.RuneError)))
	if len(s) <= most {
		return s
	}
	for !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}
