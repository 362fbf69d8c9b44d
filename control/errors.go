package control

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

var (
	// ErrPermission reports a caller who is neither root nor the owner of the
	// mount.
	ErrPermission = errors.New("control: permission denied")
	// ErrInvalid reports a request that no pool could serve: a missing or
	// oversized name, a number out of range.
	ErrInvalid = errors.New("control: invalid request")
	// ErrUnavailable reports a daemon that does not answer on its socket.
	ErrUnavailable = errors.New("control: daemon does not answer")
)

// reasons ties the errors that a caller can act on to their form on the wire.
// Where one sentinel wraps another, the first that matches counts. For a reason
// that occurs twice, the first sentinel is the one that clients see.
var reasons = []struct {
	err    error
	reason controlpb.Reason
	code   codes.Code
}{
	{epoch.ErrPoisoned, controlpb.Reason_REASON_POISONED, codes.DataLoss},
	{region.ErrCorrupt, controlpb.Reason_REASON_CORRUPT, codes.DataLoss},
	{region.ErrVersion, controlpb.Reason_REASON_VERSION, codes.FailedPrecondition},
	{region.ErrNoSpace, controlpb.Reason_REASON_NO_SPACE, codes.ResourceExhausted},
	{volume.ErrBusy, controlpb.Reason_REASON_BUSY, codes.FailedPrecondition},
	{volume.ErrReadOnly, controlpb.Reason_REASON_READ_ONLY, codes.FailedPrecondition},
	{volume.ErrNotRegular, controlpb.Reason_REASON_NOT_REGULAR, codes.FailedPrecondition},
	{volume.ErrNotSupported, controlpb.Reason_REASON_NOT_SUPPORTED, codes.Unimplemented},
	{volume.ErrClosed, controlpb.Reason_REASON_CLOSED, codes.Unavailable},
	{namespace.ErrNotExist, controlpb.Reason_REASON_NOT_EXIST, codes.NotFound},
	{namespace.ErrExist, controlpb.Reason_REASON_EXIST, codes.AlreadyExists},
	{namespace.ErrNotDir, controlpb.Reason_REASON_NOT_DIR, codes.FailedPrecondition},
	{namespace.ErrIsDir, controlpb.Reason_REASON_IS_DIR, codes.FailedPrecondition},
	{namespace.ErrNotEmpty, controlpb.Reason_REASON_NOT_EMPTY, codes.FailedPrecondition},
	{namespace.ErrNameTooLong, controlpb.Reason_REASON_NAME_TOO_LONG, codes.InvalidArgument},
	{ErrInvalid, controlpb.Reason_REASON_INVALID, codes.InvalidArgument},
	{namespace.ErrInvalid, controlpb.Reason_REASON_INVALID, codes.InvalidArgument},
	{ErrPermission, controlpb.Reason_REASON_PERMISSION, codes.PermissionDenied},
}

// statusError puts err into the form that travels: its text, a code, and the
// reason where it has one.
func statusError(err error) error {
	if err == nil {
		return nil
	}
	msg := text(err.Error())
	for _, r := range reasons {
		if !errors.Is(err, r.err) {
			continue
		}
		st, detailErr := status.New(r.code, msg).WithDetails(&controlpb.ErrorDetail{Reason: r.reason})
		if detailErr != nil {
			return status.Error(r.code, msg)
		}
		return st.Err()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, msg)
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, msg)
	}
	return status.Error(codes.Unknown, msg)
}

// An Error is what a Client's calls return: the server's text, and the sentinel
// of the package that found it, which errors.Is matches.
type Error struct {
	Code   codes.Code
	Reason controlpb.Reason
	Text   string
}

func (e *Error) Error() string { return e.Text }

// Is matches the sentinel that the server's error matched.
func (e *Error) Is(target error) bool {
	for _, r := range reasons {
		if r.reason == e.Reason {
			return r.err == target
		}
	}
	switch e.Code {
	case codes.Canceled:
		return target == context.Canceled
	case codes.DeadlineExceeded:
		return target == context.DeadlineExceeded
	case codes.Unavailable:
		return target == ErrUnavailable
	case codes.InvalidArgument:
		return target == ErrInvalid
	case codes.PermissionDenied:
		return target == ErrPermission
	}
	return false
}

// clientError is the inverse of statusError. io.EOF and nil, which end streams,
// never come here.
func clientError(err error) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	e := &Error{Code: st.Code(), Text: st.Message()}
	for _, d := range st.Details() {
		if detail, ok := d.(*controlpb.ErrorDetail); ok {
			e.Reason = detail.Reason
		}
	}
	if e.Code == codes.Unavailable && e.Reason == controlpb.Reason_REASON_UNSPECIFIED {
		e.Text = fmt.Sprintf("%v (%s)", ErrUnavailable, st.Message())
	}
	return e
}
