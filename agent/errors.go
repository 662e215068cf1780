package agent

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

var (
	errUnreachable = shoal.NewError(shoal.Unavailable, "daemon_unreachable",
		"the shoal daemon does not answer", "start it with `shoal up`, or check the home")

	// errLost is why a handler's context ends when its session does.
	errLost = shoal.NewError(shoal.Unavailable, "session_lost",
		"the connection to the daemon was lost; the daemon hands the task over or fails it", "")

	// errCanceled is why a handler's context ends when the asker cancels.
	errCanceled = shoal.NewError(shoal.Conflict, "task_canceled", "the task was cancelled", "")

	// errStopping is why a handler's context ends when Run's context does.
	errStopping = shoal.NewError(shoal.Unavailable, "agent_stopping", "the agent is stopping", "")

	errFinished = shoal.NewError(shoal.Conflict, "task_finished",
		"the handler has returned; its writer takes no more", "write before returning")
)

// kindOfCode is used when the other end attached no ErrorInfo: a proxy, or HTTP itself.
var kindOfCode = map[connect.Code]shoal.Kind{
	connect.CodeInvalidArgument:    shoal.Invalid,
	connect.CodeOutOfRange:         shoal.Invalid,
	connect.CodeNotFound:           shoal.NotFound,
	connect.CodePermissionDenied:   shoal.Denied,
	connect.CodeUnauthenticated:    shoal.Unauthenticated,
	connect.CodeAlreadyExists:      shoal.Conflict,
	connect.CodeFailedPrecondition: shoal.Conflict,
	connect.CodeAborted:            shoal.Conflict,
	connect.CodeResourceExhausted:  shoal.Invalid, // the RPC library: the message is too large
	connect.CodeUnavailable:        shoal.Unavailable,
	connect.CodeDeadlineExceeded:   shoal.Timeout,
	connect.CodeDataLoss:           shoal.Corrupt,
	connect.CodeUnimplemented:      shoal.Unsupported,
}

// asError turns what a call returned into a [*shoal.Error], rebuilt from the ErrorInfo
// that the daemon attached. If ctx has ended, its cause is in the chain, so that
// errors.Is(err, context.Canceled) works.
func asError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var ours *shoal.Error
	if errors.As(err, &ours) {
		return err
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return errUnreachable.Because(err)
	}
	if info := errorInfo(ce); info != nil {
		return shoal.NewError(shoal.ParseKind(info.GetKind()), info.GetReason(), ce.Message(), info.GetHint())
	}
	if ctx.Err() != nil {
		kind, reason := shoal.Unavailable, "call_cancelled"
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			kind, reason = shoal.Timeout, "deadline"
		}
		return shoal.NewError(kind, reason, "the call was given up", "").Because(ctx.Err())
	}
	if !connect.IsWireError(err) {
		return localError(ce)
	}
	kind, known := kindOfCode[ce.Code()]
	if !known {
		kind = shoal.Internal
	}
	return shoal.NewError(kind, ce.Code().String(), ce.Message(), "")
}

// localError is for what went wrong before or instead of an answer: no daemon, a broken
// connection, or a message that cannot be encoded.
func localError(ce *connect.Error) error {
	if ce.Code() == connect.CodeInternal && strings.HasPrefix(ce.Message(), "marshal message") {
		return shoal.NewError(shoal.Invalid, "bad_message", ce.Message(), "text must be valid UTF-8")
	}
	if ce.Code() == connect.CodeResourceExhausted {
		return shoal.NewError(shoal.Exhausted, "answer_too_large", ce.Message(), "")
	}
	return errUnreachable.Because(ce.Unwrap())
}

func errorInfo(ce *connect.Error) *shoalv1.ErrorInfo {
	for _, d := range ce.Details() {
		if v, err := d.Value(); err == nil {
			if info, ok := v.(*shoalv1.ErrorInfo); ok {
				return info
			}
		}
	}
	return nil
}

// lasting reports whether trying the same call again cannot help.
func lasting(err error) bool {
	if err == nil {
		return false
	}
	switch shoal.KindOf(err) {
	case shoal.Invalid, shoal.NotFound, shoal.Denied, shoal.Unauthenticated, shoal.Conflict, shoal.Unsupported:
		return true
	default:
		return false
	}
}

// rejection is what [Reject] returns.
type rejection struct{ reason, msg string }

// Reject returns an error that makes a handler's task REJECTED instead of FAILED: the
// agent will not do it. The reason is a stable snake_case code, msg is for people.
func Reject(reason, msg string) error { return &rejection{reason: reason, msg: msg} }

// Error returns the message.
func (r *rejection) Error() string { return r.msg }
