package remote

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/internal/rpcerr"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

var (
	// ErrLeased reports a share, or the whole pool, that somebody else has the
	// lease of. The text names the holder.
	ErrLeased = errors.New("remote: somebody else holds the lease")
	// ErrUnavailable reports a memory node that does not answer.
	ErrUnavailable = errors.New("remote: memory node does not answer")
	// ErrPermission reports a caller whose certificate does not allow the call.
	ErrPermission = errors.New("remote: permission denied")
	// ErrReadOnly reports a change in a session that was opened read-only.
	ErrReadOnly = errors.New("remote: opened read-only")
	// ErrNotOwned reports slots returned by a region that does not own them.
	ErrNotOwned = errors.New("remote: slots not owned by the region")
	// ErrPoisoned reports a memory node that could not write its directory, and
	// changes nothing until it is restarted. It is not epoch.ErrPoisoned: no region
	// has lost anything.
	ErrPoisoned = errors.New("remote: the memory node's directory is poisoned; restart the memory node")
	// ErrClosed reports the use of a pool after Close.
	ErrClosed = errors.New("remote: closed")
	// ErrProtocol reports an answer that no memory node would give.
	ErrProtocol = errors.New("remote: the memory node's answer makes no sense")
)

// errChanged asks to look at an inode again and repeat.
var errChanged = errors.New("remote: changed by another call")

// wire ties the errors that a memory node sends to sentinels. What the pool itself
// found, damage for example, arrives as the sentinels of packages namespace and
// region.
var wire = slices.Concat(
	rpcerr.Table{
		// Before epoch.ErrPoisoned, which has the same reason.
		{Err: ErrPoisoned, Reason: controlpb.Reason_REASON_POISONED, Code: codes.DataLoss},
	},
	rpcerr.Pools,
	rpcerr.Table{
		{Err: ErrLeased, Reason: controlpb.Reason_REASON_LEASED, Code: codes.FailedPrecondition},
		{Err: errChanged, Reason: controlpb.Reason_REASON_CHANGED, Code: codes.Aborted},
		{Err: ErrNotOwned, Reason: controlpb.Reason_REASON_NOT_OWNED, Code: codes.FailedPrecondition},
		{Err: ErrReadOnly, Reason: controlpb.Reason_REASON_READ_ONLY, Code: codes.FailedPrecondition},
		{Err: ErrPermission, Reason: controlpb.Reason_REASON_PERMISSION, Code: codes.PermissionDenied},
		// What gRPC itself reports.
		{Err: ErrPermission, Code: codes.Unauthenticated},
		{Err: ErrPermission, Code: codes.PermissionDenied},
		{Err: ErrUnavailable, Code: codes.Unavailable},
	},
)

// decode makes a Go error of what a call returned.
func decode(err error) error {
	err = wire.Decode(err)
	var e *rpcerr.Error
	if errors.As(err, &e) && e.Code == codes.Unavailable && e.Reason == controlpb.Reason_REASON_UNSPECIFIED {
		e.Text = fmt.Sprintf("%v (%s)", ErrUnavailable, e.Text)
	}
	return err
}

// unanswered reports whether nobody knows if the call with this decoded error
// happened: the connection broke, or the memory node stopped meanwhile. The
// caller's own context must be sound, for the end of it looks the same.
func unanswered(err error) bool {
	var e *rpcerr.Error
	if !errors.As(err, &e) || e.Reason != controlpb.Reason_REASON_UNSPECIFIED {
		return false
	}
	return e.Code == codes.Unavailable || e.Code == codes.Canceled || e.Code == codes.DeadlineExceeded
}

// fenced is what every call returns once the lease is over.
func fenced(why error) error {
	if errors.Is(why, rdmacache.ErrFenced) {
		return why
	}
	return fmt.Errorf("%w (%w)", rdmacache.ErrFenced, why)
}
