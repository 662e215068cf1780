package cli

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// The exit codes of docs/design/cli.md.
const (
	exitOK          = 0
	exitFailed      = 1 // also a task that ended FAILED or CANCELED
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4 // also a task that ended REJECTED
	exitTimeout     = 5
	exitUnreachable = 6
	exitConflict    = 7
)

// exitCode is the one place where a kind of error becomes an exit code.
func exitCode(err error) int {
	switch shoal.KindOf(err) {
	case shoal.Invalid:
		return exitUsage
	case shoal.NotFound:
		return exitNotFound
	case shoal.Denied, shoal.Unauthenticated:
		return exitRefused
	case shoal.Timeout:
		return exitTimeout
	case shoal.Unavailable:
		return exitUnreachable
	case shoal.Conflict:
		return exitConflict
	default: // Internal, Exhausted, Corrupt, Unsupported
		return exitFailed
	}
}

// errInterrupted is what ctrl-C makes of a command that was waiting.
var errInterrupted = shoal.NewError(shoal.Internal, "interrupted", "interrupted", "")

var errTimeout = shoal.NewError(shoal.Timeout, "timeout", "no answer in time", "allow more with --timeout")

// usage returns an error about what was typed.
func usage(hint, format string, args ...any) *shoal.Error {
	return shoal.NewError(shoal.Invalid, "usage", fmt.Sprintf(format, args...), hint)
}

// apiError turns what a call returned into an error that a person can act on. ctx is
// the call's context, which tells our own time-out and ctrl-C from the daemon's.
func apiError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var known *shoal.Error
	if errors.As(err, &known) {
		return known
	}
	if ctx.Err() != nil {
		if errors.As(context.Cause(ctx), &known) {
			return known
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return errTimeout
		}
		return errInterrupted
	}

	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	for _, detail := range ce.Details() {
		value, err := detail.Value()
		if info, ok := value.(*shoalv1.ErrorInfo); err == nil && ok {
			return shoal.NewError(shoal.ParseKind(info.GetKind()), info.GetReason(), ce.Message(), info.GetHint())
		}
	}
	if ce.Code() == connect.CodeDeadlineExceeded {
		return errTimeout // the daemon knows our deadline, too, and may be the first to see it pass
	}
	return shoal.NewError(kindOfCode(ce.Code()), ce.Code().String(), ce.Message(), hintOfCode(ce.Code()))
}

// kindOfCode is for answers without an ErrorInfo: a proxy's, or an older daemon's.
func kindOfCode(code connect.Code) shoal.Kind {
	switch code {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return shoal.Invalid
	case connect.CodeNotFound:
		return shoal.NotFound
	case connect.CodePermissionDenied:
		return shoal.Denied
	case connect.CodeUnauthenticated:
		return shoal.Unauthenticated
	case connect.CodeAlreadyExists, connect.CodeFailedPrecondition, connect.CodeAborted:
		return shoal.Conflict
	case connect.CodeResourceExhausted:
		return shoal.Exhausted
	case connect.CodeUnavailable:
		return shoal.Unavailable
	case connect.CodeDeadlineExceeded:
		return shoal.Timeout
	case connect.CodeDataLoss:
		return shoal.Corrupt
	case connect.CodeUnimplemented:
		return shoal.Unsupported
	default:
		return shoal.Internal
	}
}

func hintOfCode(code connect.Code) string {
	switch code {
	case connect.CodeUnavailable:
		return "see `shoal status`; start the daemon with `shoal up`"
	case connect.CodeUnimplemented:
		return "the daemon is of another version: compare `shoal version` and `shoal status`"
	default:
		return ""
	}
}

// report prints err to stderr, as JSON if that is the output format.
func (a *app) report(err error) {
	e := shoal.AsError(err)
	if a.asJSON() {
		line, merr := marshalJSON(struct {
			Kind     string `json:"kind"`
			Reason   string `json:"reason"`
			Message  string `json:"message"`
			Hint     string `json:"hint,omitempty"`
			ExitCode int    `json:"exit_code"`
		}{e.Kind.String(), e.Reason, e.Error(), e.Hint, exitCode(err)})
		if merr == nil {
			fmt.Fprintf(a.err, "%s\n", line)
			return
		}
	}
	fmt.Fprintf(a.err, "error: %s (%s)\n", escapeText(e.Error()), escapeLine(e.Reason))
	if e.Hint != "" {
		fmt.Fprintf(a.err, "hint: %s\n", escapeText(e.Hint))
	}
}
