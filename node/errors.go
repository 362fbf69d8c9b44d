package node

import (
	"errors"
	"slices"

	"google.golang.org/grpc/codes"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/internal/rpcerr"
	"github.com/rpmemfs/rpmemfs/memnode"
)

var (
	errPermission = errors.New("node: permission denied")
	errInvalid    = errors.New("node: invalid request")
	errReadOnly   = errors.New("node: the session is read-only")
	errChanged    = errors.New("node: the inode was changed meanwhile")
	errBusy       = errors.New("node: too much at a time")
	// errStopping travels without a reason: the caller comes again.
	errStopping = errors.New("node: the memory node is stopping")
)

// wire ties the errors that a caller can act on to their form on the wire.
var wire = slices.Concat(
	rpcerr.Pools,
	rpcerr.Table{
		{Err: memnode.ErrPoisoned, Reason: controlpb.Reason_REASON_POISONED, Code: codes.DataLoss},
		{Err: memnode.ErrLeased, Reason: controlpb.Reason_REASON_LEASED, Code: codes.FailedPrecondition},
		{Err: memnode.ErrNotOwned, Reason: controlpb.Reason_REASON_NOT_OWNED, Code: codes.FailedPrecondition},
		{Err: errChanged, Reason: controlpb.Reason_REASON_CHANGED, Code: codes.Aborted},
		{Err: errReadOnly, Reason: controlpb.Reason_REASON_READ_ONLY, Code: codes.FailedPrecondition},
		{Err: memnode.ErrReadOnly, Reason: controlpb.Reason_REASON_READ_ONLY, Code: codes.FailedPrecondition},
		{Err: errPermission, Reason: controlpb.Reason_REASON_PERMISSION, Code: codes.PermissionDenied},
		{Err: memnode.ErrRequest, Reason: controlpb.Reason_REASON_INVALID, Code: codes.InvalidArgument},
		{Err: errInvalid, Reason: controlpb.Reason_REASON_INVALID, Code: codes.InvalidArgument},
		{Err: errBusy, Reason: controlpb.Reason_REASON_BUSY, Code: codes.ResourceExhausted},
		{Err: errStopping, Code: codes.Unavailable},
		{Err: memnode.ErrClosed, Code: codes.Unavailable},
	},
)
