package parry

import (
	"errors"
	"fmt"
	"time"
)

// Kind classes an error for whoever has to answer it: httpapi maps it to a status, cli to an exit code.
type Kind string

const (
	KindInvalid         Kind = "invalid"         // 400: the request is wrong; Fields say where
	KindUnauthenticated Kind = "unauthenticated" // 401
	KindForbidden       Kind = "forbidden"       // 403
	KindNotFound        Kind = "not-found"       // 404
	KindConflict        Kind = "conflict"        // 409
	KindRefused         Kind = "refused"         // 422: policy said no; Fields or Detail name the exemption or limit
	KindRateLimited     Kind = "rate-limited"    // 429, with RetryAfter
	KindUnavailable     Kind = "unavailable"     // 503, with RetryAfter
	KindInternal        Kind = "internal"        // 500, its cause goes to the log only
)

// FieldError names one wrong field and the mend.
type FieldError struct {
	Pointer string `json:"pointer"` // JSON pointer into the body (RFC 6901), or "?name" for a query parameter, "Header-Name" for a header
	Detail  string `json:"detail"`  // what is wrong and what to write instead
}

// ErrGrace is the cause of a refusal because of a grace.
var ErrGrace = errors.New("grace")

// Error is an error whose text may be shown to the caller. Err, its cause, may not.
type Error struct {
	Kind       Kind
	Detail     string
	Fields     []FieldError
	RetryAfter time.Duration
	Err        error
}

func (e *Error) Error() string {
	s := e.Detail
	if s == "" {
		s = string(e.Kind)
	}
	for _, f := range e.Fields {
		s += fmt.Sprintf("; %s: %s", f.Pointer, f.Detail)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error of a kind; a wrapped cause (%w) stays reachable and hidden from callers only if it is given as Err instead.
func Errorf(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Detail: fmt.Sprintf(format, args...)}
}

// Invalid is a KindInvalid error about one field.
func Invalid(pointer, format string, args ...any) *Error {
	return &Error{Kind: KindInvalid, Detail: "the request is not valid", Fields: []FieldError{{pointer, fmt.Sprintf(format, args...)}}}
}

// KindOf is the kind of err, KindInternal when it bears none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindInternal
}
