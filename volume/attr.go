package volume

import (
	"context"
	"errors"
	"syscall"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// An Attr is what stat(2) tells of a file. Of a regular file, Mtime and Ctime
// take the content into account, that of the open epoch included.
type Attr struct {
	namespace.Inode
	Size   uint64 // bytes
	Blocks uint64 // of 512 bytes
}

// dirSize is what a directory's size is said to be.
const dirSize = 4096

// Getattr returns the attributes of a file.
func (v *Volume) Getattr(ctx context.Context, ino namespace.Ino) (Attr, error) {
	n, err := v.cfg.Pool.Inode(ctx, ino)
	if err != nil {
		return Attr{}, err
	}
	return v.attr(ctx, n)
}

// attr adds to an inode what its region knows.
func (v *Volume) attr(ctx context.Context, n namespace.Inode) (Attr, error) {
	switch n.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
	case syscall.S_IFDIR:
		return Attr{Inode: n, Size: dirSize}, nil
	case syscall.S_IFLNK:
		return Attr{Inode: n, Size: uint64(len(n.Target))}, nil
	default:
		return Attr{Inode: n}, nil
	}
	f, err := v.acquire(ctx, n.Ino)
	if err != nil {
		return Attr{}, err
	}
	defer v.release(f)
	return f.attr(n), nil
}

func (f *file) attr(n namespace.Inode) Attr {
	// The inode may be ahead of the epoch that is shown.
	if mtime, dirty := f.cache.Times(); dirty || f.cache.Committed() != n.MtimeEpoch {
		n.Mtime = mtime
		n.Ctime = max(n.Ctime, mtime)
	}
	return Attr{Inode: n, Size: uint64(f.cache.Size()), Blocks: f.cache.Pages() * (4096 / 512)}
}

// A Change is what Setattr changes; nil fields stay.
type Change struct {
	Mode     *uint32 // permissions
	UID, GID *uint32
	Size     *uint64 // in the open epoch; commits at once if no handle is open
	Atime    *int64  // ns since 1970
	Mtime    *int64
	// MtimeNow says that Mtime is the current time: a change of size that comes
	// with it has its own.
	MtimeNow bool
	// DropPrivileges clears what a write or a truncation by somebody else must
	// not leave: set-user-ID, set-group-ID of what a group may execute, and file
	// capabilities. Changing the owner implies it.
	DropPrivileges bool
}

// Setattr changes attributes of a file and returns them all. All but the size is
// durable when it returns.
func (v *Volume) Setattr(ctx context.Context, ino namespace.Ino, c Change) (Attr, error) {
	if err := v.writable(); err != nil {
		return Attr{}, err
	}
	if c.UID != nil || c.GID != nil {
		c.DropPrivileges = true
	}
	n, err := v.cfg.Pool.Inode(ctx, ino)
	if err != nil {
		return Attr{}, err
	}
	if n.Mode&syscall.S_IFMT != syscall.S_IFREG {
		if c.Size != nil {
			return Attr{}, notRegular(n)
		}
		c.DropPrivileges = false // they mean something else there
		if n, err = v.update(ctx, n, c, 0); err != nil {
			return Attr{}, err
		}
		return v.attr(ctx, n)
	}

	f, err := v.acquire(ctx, ino)
	if err != nil {
		return Attr{}, err
	}
	defer v.release(f)
	if c.Size != nil {
		if *c.Size > maxSize {
			return Attr{}, rdmacache.ErrTooLarge
		}
		if c.MtimeNow && f.cache.Size() != int64(*c.Size) {
			c.Mtime = nil
		}
		if err := v.withSpace(ctx, f, func() error { return f.cache.Truncate(ctx, int64(*c.Size)) }); err != nil {
			return Attr{}, err
		}
		if err := v.settleIdle(ctx, f); err != nil {
			return Attr{}, err
		}
	}
	if n, err = v.updateRegular(ctx, f, n, c); err != nil {
		return Attr{}, err
	}
	return f.attr(n), nil
}

// updateRegular changes the inode of a regular file. The time of its last write
// has two homes: the region, for what was written, and the inode, for what
// utimensat(2) said since. Without a commit in flight the inode's counts from the
// last committed epoch on, and an open epoch takes it along.
func (v *Volume) updateRegular(ctx context.Context, f *file, n namespace.Inode, c Change) (namespace.Inode, error) {
	if c.Mtime == nil {
		return v.update(ctx, n, c, 0)
	}
	err := f.manager.Exclusive(func() (err error) {
		if _, open := f.cache.Times(); open {
			f.cache.SetMtime(*c.Mtime)
		}
		n, err = v.update(ctx, n, c, f.cache.Committed())
		return err
	})
	return n, err
}

// update changes the inode if c does, in one transaction.
func (v *Volume) update(ctx context.Context, n namespace.Inode, c Change, committed epoch.ID) (namespace.Inode, error) {
	if c.DropPrivileges {
		mode := n.Mode
		if c.Mode != nil {
			mode = n.Mode&^0o7777 | *c.Mode&0o7777
		}
		if clean := withoutPrivileges(mode); clean != mode {
			c.Mode = &clean
		}
		if err := v.dropCapability(ctx, n.Ino); err != nil {
			return n, err
		}
	}
	if c.Mode == nil && c.UID == nil && c.GID == nil && c.Atime == nil && c.Mtime == nil {
		return n, nil
	}
	now := v.now().UnixNano()
	return v.cfg.Pool.Update(ctx, n.Ino, func(n *namespace.Inode) {
		if c.Mode != nil {
			n.Mode = n.Mode&^0o7777 | *c.Mode&0o7777
		}
		if c.UID != nil {
			n.UID = *c.UID
		}
		if c.GID != nil {
			n.GID = *c.GID
		}
		if c.Atime != nil {
			n.Atime = *c.Atime
		}
		if c.Mtime != nil {
			n.Mtime, n.MtimeEpoch = *c.Mtime, committed
		}
		n.Ctime = now
	})
}

// dropCapability removes file capabilities. Almost no file has any, and looking is
// cheaper than a transaction.
func (v *Volume) dropCapability(ctx context.Context, ino namespace.Ino) error {
	_, err := v.cfg.Pool.Xattr(ctx, ino, xattrCapability)
	if err == nil {
		err = v.cfg.Pool.RemoveXattr(ctx, ino, xattrCapability)
	}
	if errors.Is(err, namespace.ErrNoXattr) {
		return nil
	}
	return err
}

// DropPrivileges is Change.DropPrivileges on behalf of a write.
func (h *Handle) DropPrivileges(ctx context.Context) error {
	n, err := h.v.cfg.Pool.Inode(ctx, h.f.ino)
	if err != nil {
		return err
	}
	_, err = h.v.update(ctx, n, Change{DropPrivileges: true}, 0)
	return err
}

func withoutPrivileges(mode uint32) uint32 {
	mode &^= syscall.S_ISUID
	if mode&syscall.S_IXGRP != 0 {
		mode &^= syscall.S_ISGID
	}
	return mode
}

// notRegular is the error of a change of content of anything but a regular file.
func notRegular(n namespace.Inode) error {
	if n.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return namespace.ErrIsDir
	}
	return ErrNotRegular
}
