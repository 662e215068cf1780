package shoal

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

var errFull = NewError(Exhausted, "queue_full", "the queue is full", "wait")

func TestErrorsAreComparedByKindAndReason(t *testing.T) {
	copied := NewError(Exhausted, "queue_full", "said by another node", "")
	for _, c := range []struct {
		name string
		err  error
		want bool
	}{
		{"itself", errFull, true},
		{"a copy that crossed the API", copied, true},
		{"with detail", errFull.With("%d of %d", 3, 3), true},
		{"with cause", errFull.Because(io.EOF), true},
		{"wrapped", fmt.Errorf("post: %w", errFull.With("x")), true},
		{"another reason", NewError(Exhausted, "disk_full", "", ""), false},
		{"another kind", NewError(Conflict, "queue_full", "", ""), false},
		{"not ours", io.EOF, false},
		{"nil", nil, false},
	} {
		if got := errors.Is(c.err, errFull); got != c.want {
			t.Errorf("%s: errors.Is = %v, want %v", c.name, got, c.want)
		}
	}
}

func TestErrorSaysMessageThenCause(t *testing.T) {
	err := errFull.With("%d envelopes", 7).Because(io.ErrUnexpectedEOF)
	if got, want := err.Error(), "the queue is full: 7 envelopes: unexpected EOF"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) || err.Hint != "wait" {
		t.Errorf("cause or hint is lost: %+v", err)
	}
	if errFull.Msg != "the queue is full" || errFull.Unwrap() != nil {
		t.Errorf("the sentinel was changed: %+v", errFull)
	}
	// The reason of the outer error is what callers see.
	outer := errFull.Because(NewError(Invalid, "inner", "inner", ""))
	if KindOf(outer) != Exhausted || AsError(outer).Reason != "queue_full" {
		t.Errorf("got %v %s", KindOf(outer), AsError(outer).Reason)
	}
}

func TestAsErrorOfWhatIsNotOurs(t *testing.T) {
	if AsError(nil) != nil {
		t.Error("AsError(nil) is not nil")
	}
	e := AsError(fmt.Errorf("read: %w", io.EOF))
	if e.Kind != Internal || e.Reason != "internal" || e.Error() != "read: EOF" {
		t.Errorf("got %+v", e)
	}
	if KindOf(io.EOF) != Internal || KindOf(errFull) != Exhausted {
		t.Errorf("got %v, %v", KindOf(io.EOF), KindOf(errFull))
	}
}

func TestKindsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for k := Internal; k <= Unsupported; k++ {
		name := k.String()
		if seen[name] || ParseKind(name) != k {
			t.Errorf("kind %d is %q, parsed as %v", k, name, ParseKind(name))
		}
		seen[name] = true
	}
	if len(seen) != len(kindNames) {
		t.Errorf("%d kinds, %d names", len(seen), len(kindNames))
	}
	if got := Kind(200).String(); got != "kind_200" || ParseKind(got) != Internal || ParseKind("") != Internal {
		t.Errorf("unknown kind: %q, %v", got, ParseKind(got))
	}
}
