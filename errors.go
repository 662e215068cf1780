package shoal

import (
	"errors"
	"fmt"
)

// Kind says what sort of thing went wrong. The list is closed: each edge maps a Kind
// once (RPC code in api, exit code in cli).
type Kind uint8

// The kinds of error. Their order is part of the wire format of no protocol.
const (
	Internal        Kind = iota // our own fault
	Invalid                     // the input is wrong and will stay wrong
	NotFound                    // the thing named does not exist, or the caller may not know of it
	Denied                      // the caller is known and may not
	Unauthenticated             // the caller is not known
	Conflict                    // it exists already, or is in a state that forbids this
	Exhausted                   // a quota, a queue or the disk is full
	Unavailable                 // the peer or the daemon cannot be reached now
	Timeout                     // it took longer than allowed
	Corrupt                     // data on disk or on the wire is damaged
	Unsupported                 // this version or build does not do that
)

var kindNames = [...]string{
	"internal", "invalid", "not_found", "denied", "unauthenticated", "conflict",
	"exhausted", "unavailable", "timeout", "corrupt", "unsupported",
}

// String returns the kind in snake case, as it appears in JSON output.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind_%d", uint8(k))
}

// ParseKind is the inverse of [Kind.String]; unknown names are [Internal].
func ParseKind(s string) Kind {
	for i, n := range kindNames {
		if n == s {
			return Kind(i)
		}
	}
	return Internal
}

// Error is an error that a caller can act on: a kind for programs, a stable reason
// code for scripts (docs/reasons.md), a message for the log, a hint for the person.
// Errors are compared by Kind and Reason, so a sentinel matches its copies that
// crossed the API.
type Error struct {
	Kind   Kind
	Reason string // snake_case, stable
	Msg    string
	Hint   string // what the user can do; may be empty
	err    error
}

// NewError returns an Error without a cause.
func NewError(kind Kind, reason, msg, hint string) *Error {
	return &Error{Kind: kind, Reason: reason, Msg: msg, Hint: hint}
}

// Error returns the message and, if there is one, the cause.
func (e *Error) Error() string {
	if e.err != nil {
		return e.Msg + ": " + e.err.Error()
	}
	return e.Msg
}

// Unwrap returns the cause, if any.
func (e *Error) Unwrap() error { return e.err }

// Is reports whether target is an Error of the same kind and reason.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Kind == e.Kind && t.Reason == e.Reason
}

// With returns a copy of e that says more in its message: "MSG: DETAIL".
func (e *Error) With(format string, args ...any) *Error {
	c := *e
	c.Msg += ": " + fmt.Sprintf(format, args...)
	return &c
}

// Because returns a copy of e with err as its cause.
func (e *Error) Because(err error) *Error {
	c := *e
	c.err = err
	return &c
}

// AsError returns the first Error in err's chain; any other error comes back as an
// [Internal] one with reason internal, nil as nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return NewError(Internal, "internal", err.Error(), "")
}

// KindOf returns the kind of the first Error in err's chain, [Internal] if there is none,
// also for nil.
func KindOf(err error) Kind {
	if err == nil {
		return Internal
	}
	return AsError(err).Kind
}
