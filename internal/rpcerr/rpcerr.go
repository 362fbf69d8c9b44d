// Package rpcerr carries errors over gRPC, so that errors.Is finds on one side what
// it would have found on the other. A Table ties sentinels to the reasons of
// control.proto; the two sides of a service have tables with the same reasons,
// and each its own sentinels.
package rpcerr

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A Row ties a sentinel to its form on the wire. One without a reason travels as
// its code alone, and stands for what gRPC itself reports with that code.
type Row struct {
	Err    error
	Reason controlpb.Reason
	Code   codes.Code
}

// A Table is searched from its start: where one sentinel wraps another, the first
// that matches travels. For a reason that occurs twice, the first sentinel is the
// one that arrives.
type Table []Row

// Pools has the errors of what every pool is made of.
var Pools = Table{
	{rdmacache.ErrFenced, controlpb.Reason_REASON_FENCED, codes.FailedPrecondition},
	{epoch.ErrPoisoned, controlpb.Reason_REASON_POISONED, codes.DataLoss},
	{region.ErrCorrupt, controlpb.Reason_REASON_CORRUPT, codes.DataLoss},
	{region.ErrVersion, controlpb.Reason_REASON_VERSION, codes.FailedPrecondition},
	{region.ErrPinned, controlpb.Reason_REASON_PINNED, codes.FailedPrecondition},
	{region.ErrNoSpace, controlpb.Reason_REASON_NO_SPACE, codes.ResourceExhausted},
	{namespace.ErrNotExist, controlpb.Reason_REASON_NOT_EXIST, codes.NotFound},
	{namespace.ErrExist, controlpb.Reason_REASON_EXIST, codes.AlreadyExists},
	{namespace.ErrNotDir, controlpb.Reason_REASON_NOT_DIR, codes.FailedPrecondition},
	{namespace.ErrIsDir, controlpb.Reason_REASON_IS_DIR, codes.FailedPrecondition},
	{namespace.ErrNotEmpty, controlpb.Reason_REASON_NOT_EMPTY, codes.FailedPrecondition},
	{namespace.ErrNameTooLong, controlpb.Reason_REASON_NAME_TOO_LONG, codes.InvalidArgument},
	{namespace.ErrNoXattr, controlpb.Reason_REASON_NO_XATTR, codes.NotFound},
	{namespace.ErrTooBig, controlpb.Reason_REASON_TOO_BIG, codes.InvalidArgument},
	{namespace.ErrTooManyLinks, controlpb.Reason_REASON_TOO_MANY_LINKS, codes.FailedPrecondition},
	{namespace.ErrCrossShare, controlpb.Reason_REASON_CROSS_SHARE, codes.FailedPrecondition},
	{namespace.ErrInvalid, controlpb.Reason_REASON_INVALID, codes.InvalidArgument},
}

// Encode puts err into the form that travels: its text, a code, and the reason
// where it has one. What is in that form already stays as it is.
func (t Table) Encode(err error) error {
	if err == nil {
		return nil
	}
	msg := strings.ToValidUTF8(err.Error(), "\uFFFD")
	for _, r := range t {
		if !errors.Is(err, r.Err) {
			continue
		}
		st := status.New(r.Code, msg)
		if r.Reason == controlpb.Reason_REASON_UNSPECIFIED {
			return st.Err()
		}
		detailed, detailErr := st.WithDetails(&controlpb.ErrorDetail{Reason: r.Reason})
		if detailErr != nil {
			return st.Err()
		}
		return detailed.Err()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, msg)
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, msg)
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unknown, msg)
}

// An Error is a decoded one: the other side's text, and the sentinel of the table
// that errors.Is matches.
type Error struct {
	Code   codes.Code
	Reason controlpb.Reason
	Text   string

	table Table
}

func (e *Error) Error() string { return e.Text }

// Is matches the sentinel of the reason, or else that of the code.
func (e *Error) Is(target error) bool {
	for _, r := range e.table {
		if e.Reason != controlpb.Reason_REASON_UNSPECIFIED && r.Reason == e.Reason {
			return r.Err == target
		}
	}
	for _, r := range e.table {
		if r.Reason == controlpb.Reason_REASON_UNSPECIFIED && r.Code == e.Code {
			return r.Err == target
		}
	}
	switch e.Code {
	case codes.Canceled:
		return target == context.Canceled
	case codes.DeadlineExceeded:
		return target == context.DeadlineExceeded
	}
	return false
}

// Decode is the inverse of Encode: it returns an *Error, unless err is none of
// gRPC. io.EOF and nil, which end streams, never come here.
func (t Table) Decode(err error) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	e := &Error{Code: st.Code(), Text: st.Message(), table: t}
	for _, d := range st.Details() {
		if detail, ok := d.(*controlpb.ErrorDetail); ok {
			e.Reason = detail.GetReason()
		}
	}
	return e
}
