package fs

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
)

func (r *rawFS) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	value, err := r.vol.Xattr(context.Background(), ino(in), name)
	if err != nil {
		return 0, r.status("getxattr", ino(in), err)
	}
	return copyOut(dest, value)
}

func (r *rawFS) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	names, err := r.vol.Xattrs(context.Background(), ino(in))
	if err != nil {
		return 0, r.status("listxattr", ino(in), err)
	}
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	return copyOut(dest, list)
}

// copyOut fills the caller's buffer, or tells how large it must be.
func copyOut(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

func (r *rawFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	var flags namespace.XattrFlags
	if in.Flags&unix.XATTR_CREATE != 0 {
		flags |= namespace.XattrCreate
	}
	if in.Flags&unix.XATTR_REPLACE != 0 {
		flags |= namespace.XattrReplace
	}
	err := r.vol.SetXattr(context.Background(), ino(&in.InHeader), name, value, flags)
	return r.status("setxattr", ino(&in.InHeader), err)
}

func (r *rawFS) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return r.status("removexattr", ino(in), r.vol.RemoveXattr(context.Background(), ino(in), name))
}
