package fs

import (
	"context"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

func (r *rawFS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := context.Background()
	a, err := r.vol.Lookup(ctx, ino(in), name)
	if errors.Is(err, region.ErrCorrupt) || errors.Is(err, region.ErrVersion) {
		// The name must still be good for unlink and rename. Attributes that are
		// not valid for any time make the kernel ask again, and get the error.
		if a.Inode, err = r.vol.LookupInode(ctx, ino(in), name); err == nil {
			r.entry(a, out)
			out.SetAttrTimeout(0)
			return fuse.OK
		}
	}
	if err != nil {
		return r.status("lookup", ino(in), err)
	}
	r.entry(a, out)
	return fuse.OK
}

func (r *rawFS) Forget(nodeID, n uint64) { r.vol.Forget(namespace.Ino(nodeID), n) }

// create adds a file of the caller's.
func (r *rawFS) create(op string, in *fuse.InHeader, name string, n namespace.Inode, out *fuse.EntryOut) fuse.Status {
	n.UID, n.GID = in.Uid, in.Gid
	a, err := r.vol.Create(context.Background(), ino(in), name, n)
	if err != nil {
		return r.status(op, ino(in), err)
	}
	r.entry(a, out)
	return fuse.OK
}

func (r *rawFS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.create("mknod", &in.InHeader, name, namespace.Inode{Mode: in.Mode, Rdev: in.Rdev}, out)
}

func (r *rawFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	n := namespace.Inode{Mode: unix.S_IFDIR | in.Mode&0o7777}
	return r.create("mkdir", &in.InHeader, name, n, out)
}

func (r *rawFS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if len(target) > namespace.MaxSymlink {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	return r.create("symlink", in, name, namespace.Inode{Mode: unix.S_IFLNK | 0o777, Target: target}, out)
}

func (r *rawFS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := r.vol.Inode(context.Background(), ino(in))
	if err != nil {
		return nil, r.status("readlink", ino(in), err)
	}
	if n.Mode&unix.S_IFMT != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	return []byte(n.Target), fuse.OK
}

func (r *rawFS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	a, err := r.vol.Link(context.Background(), namespace.Ino(in.Oldnodeid), ino(&in.InHeader), name)
	if err != nil {
		return r.status("link", namespace.Ino(in.Oldnodeid), err)
	}
	r.entry(a, out)
	return fuse.OK
}

func (r *rawFS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return r.status("unlink", ino(in), r.vol.Unlink(context.Background(), ino(in), name))
}

func (r *rawFS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return r.status("rmdir", ino(in), r.vol.Rmdir(context.Background(), ino(in), name))
}

func (r *rawFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	var flags namespace.RenameFlags
	if in.Flags&unix.RENAME_NOREPLACE != 0 {
		flags |= namespace.RenameNoReplace
	}
	if in.Flags&unix.RENAME_EXCHANGE != 0 {
		flags |= namespace.RenameExchange
	}
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL // no whiteouts
	}
	err := r.vol.Rename(context.Background(), ino(&in.InHeader), oldName, namespace.Ino(in.Newdir), newName, flags)
	return r.status("rename", ino(&in.InHeader), err)
}
