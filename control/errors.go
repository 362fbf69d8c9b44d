package control

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/internal/rpcerr"
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

// wire ties the errors that a caller can act on to their form on the wire.
var wire = slices.Concat(
	rpcerr.Table{{Err: ErrInvalid, Reason: controlpb.Reason_REASON_INVALID, Code: codes.InvalidArgument}},
	rpcerr.Pools,
	rpcerr.Table{
		{Err: volume.ErrBusy, Reason: controlpb.Reason_REASON_BUSY, Code: codes.FailedPrecondition},
		{Err: volume.ErrReadOnly, Reason: controlpb.Reason_REASON_READ_ONLY, Code: codes.FailedPrecondition},
		{Err: volume.ErrNotRegular, Reason: controlpb.Reason_REASON_NOT_REGULAR, Code: codes.FailedPrecondition},
		{Err: volume.ErrNotSupported, Reason: controlpb.Reason_REASON_NOT_SUPPORTED, Code: codes.Unimplemented},
		{Err: volume.ErrClosed, Reason: controlpb.Reason_REASON_CLOSED, Code: codes.Unavailable},
		{Err: ErrPermission, Reason: controlpb.Reason_REASON_PERMISSION, Code: codes.PermissionDenied},
		// What gRPC itself reports.
		{Err: ErrInvalid, Code: codes.InvalidArgument},
		{Err: ErrPermission, Code: codes.PermissionDenied},
		{Err: ErrUnavailable, Code: codes.Unavailable},
	},
)

// An Error is what a Client's calls return: the server's text, and the sentinel
// of the package that found it, which errors.Is matches.
type Error = rpcerr.Error

// clientError makes a Go error of what a call returned.
func clientError(err error) error {
	err = wire.Decode(err)
	var e *Error
	if errors.As(err, &e) && e.Code == codes.Unavailable && e.Reason == controlpb.Reason_REASON_UNSPECIFIED {
		e.Text = fmt.Sprintf("%v (%s)", ErrUnavailable, e.Text)
	}
	return err
}
