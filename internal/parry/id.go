package parry

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"time"
)

// Ids are a prefix that names the noun and 26 characters of Crockford's base 32: 48 bits of Unix milliseconds, then 80 random bits, so that
// they sort by time and are made before the transaction that stores them.
type (
	BlockID        string // b-…
	RequestID      string // q-…
	RunID          string // r-…
	ExemptionID    string // x-…, or cfg:… and found:… for those that no store holds
	TokenID        string // t-…
	NotificationID string // n-…
	ApprovalID     string // a-…
)

var crockford = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

func newID(prefix string, now time.Time) string {
	var b [17]byte // 136 bits; the first 130 make 26 characters
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16)
	_, _ = rand.Read(b[6:]) // never fails: crypto/rand ends the program instead
	return prefix + crockford.EncodeToString(b[:])[:26]
}

func NewBlockID(now time.Time) BlockID               { return BlockID(newID("b-", now)) }
func NewRequestID(now time.Time) RequestID           { return RequestID(newID("q-", now)) }
func NewRunID(now time.Time) RunID                   { return RunID(newID("r-", now)) }
func NewExemptionID(now time.Time) ExemptionID       { return ExemptionID(newID("x-", now)) }
func NewTokenID(now time.Time) TokenID               { return TokenID(newID("t-", now)) }
func NewNotificationID(now time.Time) NotificationID { return NotificationID(newID("n-", now)) }
func NewApprovalID(now time.Time) ApprovalID         { return ApprovalID(newID("a-", now)) }
