package fs

import (
	"context"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

// errnos says which errno a program gets for an error; the first match counts.
// Those that are damage, and not a program's own doing, are logged.
var errnos = []struct {
	err    error
	errno  unix.Errno
	logged bool
}{
	{epoch.ErrPoisoned, unix.EIO, false}, // logged with its cause when it happened
	{region.ErrCorrupt, unix.EIO, true},
	{region.ErrVersion, unix.EIO, true},
	{rdmacache.ErrFenced, unix.EIO, false}, // the end of the lease is logged, once
	{region.ErrNoSpace, unix.ENOSPC, false},
	{rdmacache.ErrNoData, unix.ENXIO, false},
	{namespace.ErrNotExist, unix.ENOENT, false},
	{namespace.ErrExist, unix.EEXIST, false},
	{namespace.ErrNotDir, unix.ENOTDIR, false},
	{namespace.ErrIsDir, unix.EISDIR, false},
	{namespace.ErrNotEmpty, unix.ENOTEMPTY, false},
	{namespace.ErrNameTooLong, unix.ENAMETOOLONG, false},
	{namespace.ErrInvalid, unix.EINVAL, false},
	{namespace.ErrNoXattr, unix.ENODATA, false},
	{namespace.ErrTooBig, unix.E2BIG, false},
	{namespace.ErrTooManyLinks, unix.EMLINK, false},
	{volume.ErrBusy, unix.EBUSY, false},
	{volume.ErrLost, unix.EOWNERDEAD, false},
	{volume.ErrLate, unix.ETIMEDOUT, false},
	{volume.ErrDeadlock, unix.EDEADLK, true},
	{volume.ErrPermission, unix.EACCES, false},
	{volume.ErrReadOnly, unix.EROFS, false},
	{volume.ErrClosed, unix.ENODEV, false},
	{volume.ErrNotRegular, unix.EINVAL, false},
	{rdmacache.ErrTooLarge, unix.EFBIG, false},
	{volume.ErrNotSupported, unix.EOPNOTSUPP, false},
	{context.Canceled, unix.EINTR, false},
	{context.DeadlineExceeded, unix.ETIMEDOUT, false},
}

// Errno returns what a program is told of an error; EIO for unknown ones, 0 for nil.
func Errno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	return unix.EIO
}

// status is the one place that makes an errno of an error. op names the request.
func (r *rawFS) status(op string, ino namespace.Ino, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			if e.logged {
				r.log.Error("request failed", "op", op, "ino", ino, "err", err)
			}
			return fuse.Status(e.errno)
		}
	}
	r.log.Error("request failed", "op", op, "ino", ino, "err", err)
	return fuse.EIO
}
