package fs

import (
	"context"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

func (r *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	a, err := r.vol.Getattr(context.Background(), ino(&in.InHeader))
	if err != nil {
		return r.status("getattr", ino(&in.InHeader), err)
	}
	out.SetTimeout(cacheFor)
	fill(&out.Attr, a)
	return fuse.OK
}

func (r *rawFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	var c volume.Change
	if mode, ok := in.GetMode(); ok {
		c.Mode = &mode
	}
	if uid, ok := in.GetUID(); ok {
		c.UID = &uid
	}
	if gid, ok := in.GetGID(); ok {
		c.GID = &gid
	}
	if size, ok := in.GetSize(); ok {
		c.Size = &size
	}
	now := time.Now().UnixNano()
	if in.Valid&fuse.FATTR_ATIME != 0 {
		c.Atime = &now
		if in.Valid&fuse.FATTR_ATIME_NOW == 0 {
			t := joinTime(in.Atime, in.Atimensec)
			c.Atime = &t
		}
	}
	if in.Valid&fuse.FATTR_MTIME != 0 {
		c.Mtime, c.MtimeNow = &now, true
		if in.Valid&fuse.FATTR_MTIME_NOW == 0 {
			t := joinTime(in.Mtime, in.Mtimensec)
			c.Mtime, c.MtimeNow = &t, false
		}
	}
	c.DropPrivileges = in.Valid&fuse.FATTR_KILL_SUIDGID != 0
	a, err := r.vol.Setattr(context.Background(), ino(&in.InHeader), c)
	if err != nil {
		return r.status("setattr", ino(&in.InHeader), err)
	}
	out.SetTimeout(cacheFor)
	fill(&out.Attr, a)
	return fuse.OK
}

func (r *rawFS) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	u, err := r.vol.Usage(context.Background())
	if err != nil {
		return r.status("statfs", ino(in), err)
	}
	out.Bsize, out.Frsize = region.PageSize, region.PageSize
	out.Blocks = u.Slots
	out.Bfree, out.Bavail = u.FreeSlots, u.FreeSlots
	// Inodes live in the pool's directory, not in slots; a file with content
	// needs a slot.
	out.Files, out.Ffree = u.Inodes+u.FreeSlots, u.FreeSlots
	out.NameLen = namespace.MaxName
	return fuse.OK
}
