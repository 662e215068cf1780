package api

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

var (
	errStopping = shoal.NewError(shoal.Unavailable, "shutting_down", "the daemon is stopping",
		"start it again with `shoal up`, then repeat the call")
	errTooManyCalls = shoal.NewError(shoal.Exhausted, "too_many_calls", "too many calls are under way",
		"end some streams or wait for answers")
	errUnknownPath = shoal.NewError(shoal.NotFound, "unknown_method", "no such path or method",
		"see proto/shoal/v1, or `grpcurl -plaintext unix://SOCKET list`")
	errTooLarge = shoal.NewError(shoal.Invalid, "message_too_large", "the request is larger than 1 MiB",
		"send big content by URL, or in several messages")
	errOtherUser = shoal.NewError(shoal.Denied, "other_user", "the socket belongs to another user",
		"run the command as the user that runs the daemon")
	errBadRequest = shoal.NewError(shoal.Invalid, "bad_request", "the request cannot be decoded",
		"see proto/shoal/v1 for its fields and their types")
	errCanceled = shoal.NewError(shoal.Unavailable, "canceled", "the call was ended by the caller", "")
	errDeadline = shoal.NewError(shoal.Timeout, "deadline", "the call's deadline has passed",
		"give it more time with --timeout; a task that was sent goes on meanwhile")
	errNotBuilt = shoal.NewError(shoal.Unsupported, "not_available", "this daemon does not serve that", "")
	errPanic    = shoal.NewError(shoal.Internal, "internal", "the call failed inside the daemon",
		"see `shoal logs`, and please report it")
)

// codeOf is the one place where a Kind becomes a code of Connect and gRPC. The CLI maps
// ErrorInfo.kind back.
func codeOf(k shoal.Kind) connect.Code {
	switch k {
	case shoal.Invalid:
		return connect.CodeInvalidArgument
	case shoal.NotFound:
		return connect.CodeNotFound
	case shoal.Denied:
		return connect.CodePermissionDenied
	case shoal.Unauthenticated:
		return connect.CodeUnauthenticated
	case shoal.Conflict:
		return connect.CodeFailedPrecondition
	case shoal.Exhausted:
		return connect.CodeResourceExhausted
	case shoal.Unavailable:
		return connect.CodeUnavailable
	case shoal.Timeout:
		return connect.CodeDeadlineExceeded
	case shoal.Corrupt:
		return connect.CodeDataLoss
	case shoal.Unsupported:
		return connect.CodeUnimplemented
	default:
		return connect.CodeInternal
	}
}

// connectError returns err as it leaves: with a code and an ErrorInfo.
func connectError(err error) *connect.Error {
	e := classify(err)
	code := codeOf(e.Kind)
	if e.Reason == errCanceled.Reason {
		code = connect.CodeCanceled
	}
	out := connect.NewError(code, errors.New(e.Error()))
	info := &shoalv1.ErrorInfo{Kind: e.Kind.String(), Reason: e.Reason, Hint: e.Hint}
	if detail, err := connect.NewErrorDetail(info); err == nil {
		out.AddDetail(detail)
	}
	return out
}

// classify finds out what err is: one of ours, a context's end, or an error of the
// protocol that Connect itself found before any of our code ran.
func classify(err error) *shoal.Error {
	var ours *shoal.Error
	var theirs *connect.Error
	switch {
	case errors.As(err, &ours):
		return ours
	case errors.Is(err, context.DeadlineExceeded):
		return errDeadline
	case errors.Is(err, context.Canceled):
		return errCanceled
	case !errors.As(err, &theirs):
		return shoal.AsError(err)
	}
	switch theirs.Code() {
	case connect.CodeCanceled:
		return errCanceled
	case connect.CodeDeadlineExceeded:
		return errDeadline
	case connect.CodeResourceExhausted:
		return errTooLarge
	case connect.CodeInvalidArgument:
		return errBadRequest.With("%s", theirs.Message())
	case connect.CodeUnimplemented:
		return shoal.NewError(shoal.Unsupported, "unsupported_encoding", theirs.Message(),
			"send proto or json, uncompressed or gzip")
	default:
		return shoal.NewError(shoal.Internal, "internal", theirs.Message(), "")
	}
}

func recode(e *connect.Error, code connect.Code) *connect.Error {
	out := connect.NewError(code, errors.New(e.Message()))
	for _, d := range e.Details() {
		out.AddDetail(d)
	}
	return out
}
