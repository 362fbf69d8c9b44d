package fs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/volume"
)

// An openFile is what a file handle of the kernel stands for.
type openFile struct {
	*volume.Handle
	opener uint32 // thread that opened it; 0 if it is in another pid namespace
}

func (r *rawFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h, err := r.vol.Open(context.Background(), ino(&in.InHeader))
	if err != nil {
		return r.status("open", ino(&in.InHeader), err)
	}
	r.opened(h, in.Pid, out)
	return fuse.OK
}

func (r *rawFS) opened(h *volume.Handle, pid uint32, out *fuse.OpenOut) {
	out.Fh = r.addHandle(&openFile{h, pid})
	// The kernel's pages stay right from one open to the next: this mount is the
	// only writer.
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
}

func (r *rawFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	ctx := context.Background()
	parent := ino(&in.InHeader)
	n := namespace.Inode{Mode: unix.S_IFREG | in.Mode&0o7777, UID: in.Uid, GID: in.Gid}
	a, err := r.vol.Create(ctx, parent, name, n)
	existed := errors.Is(err, namespace.ErrExist) && in.Flags&unix.O_EXCL == 0
	if existed { // somebody else made it since the kernel looked
		a, err = r.vol.Lookup(ctx, parent, name)
	}
	if err != nil {
		return r.status("create", parent, err)
	}
	h, err := r.vol.Open(ctx, a.Ino)
	if err != nil {
		return r.status("create", a.Ino, err)
	}
	if existed && in.Flags&unix.O_TRUNC != 0 {
		if err := h.Truncate(ctx, 0); err != nil {
			h.Release(ctx)
			return r.status("create", a.Ino, err)
		}
		a.Size, a.Blocks = 0, 0
	}
	r.entry(a, &out.EntryOut)
	r.opened(h, in.Pid, &out.OpenOut)
	return fuse.OK
}

func (r *rawFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f, ok := handle[*openFile](r, in.Fh)
	if !ok {
		return nil, fuse.Status(unix.EBADF)
	}
	n, err := f.Read(context.Background(), buf[:min(len(buf), int(in.Size))], int64(in.Offset))
	if err != nil {
		return nil, r.status("read", f.Ino(), err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (r *rawFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f, ok := handle[*openFile](r, in.Fh)
	if !ok {
		return 0, fuse.Status(unix.EBADF)
	}
	ctx := context.Background()
	source := rdmacache.FromWrite
	if in.WriteFlags&fuse.WRITE_CACHE != 0 {
		source = rdmacache.FromMapping
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := f.DropPrivileges(ctx); err != nil {
			return 0, r.status("write", f.Ino(), err)
		}
	}
	n, err := f.Write(ctx, data, int64(in.Offset), source)
	// A short answer to write(2) is seen by the program; the kernel's write-back
	// does not look at it.
	if err != nil && (n == 0 || source == rdmacache.FromMapping) {
		return 0, r.status("write", f.Ino(), err)
	}
	return uint32(n), fuse.OK
}

// Flush is close(2) of a descriptor, not an order to make anything durable.
func (r *rawFS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	f, ok := handle[*openFile](r, in.Fh)
	if !ok {
		return fuse.OK
	}
	err := f.Flush(context.Background(), sameProcess(f.opener, in.Pid))
	return r.status("flush", f.Ino(), err)
}

// sameProcess reports whether two threads, of which b is alive and waits for an
// answer, belong to one process. It is false where that cannot be told.
func sameProcess(a, b uint32) bool {
	if a == 0 || b == 0 {
		return false
	}
	if a == b {
		return true
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b))
	if err != nil {
		return false
	}
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		tgid, ok := bytes.CutPrefix(lines.Bytes(), []byte("Tgid:"))
		if !ok {
			continue
		}
		process, err := strconv.Atoi(string(bytes.TrimSpace(tgid)))
		if err != nil {
			return false
		}
		_, err = os.Stat(fmt.Sprintf("/proc/%d/task/%d", process, a))
		return err == nil
	}
	return false
}

func (r *rawFS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	f, ok := handle[*openFile](r, in.Fh)
	if !ok {
		return fuse.Status(unix.EBADF)
	}
	return r.status("fsync", f.Ino(), f.Sync(context.Background()))
}

func (r *rawFS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if f, ok := removeHandle[*openFile](r, in.Fh); ok {
		f.Release(context.Background())
	}
}

func (r *rawFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	f, ok := handle[*openFile](r, in.Fh)
	if !ok {
		return fuse.Status(unix.EBADF)
	}
	var how volume.Alloc
	switch in.Mode {
	case 0:
		how = volume.AllocGrow
	case unix.FALLOC_FL_KEEP_SIZE:
		how = volume.AllocKeep
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		how = volume.AllocPunch
	case unix.FALLOC_FL_ZERO_RANGE:
		how = volume.AllocZero
	case unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		how = volume.AllocZeroKeep
	default:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	err := f.Allocate(context.Background(), how, int64(in.Offset), int64(in.Length))
	return r.status("fallocate", f.Ino(), err)
}

func (r *rawFS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f, ok := handle[*openFile](r, in.Fh)
	if !ok {
		return fuse.Status(unix.EBADF)
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	off, err := f.Seek(context.Background(), int64(in.Offset), in.Whence == unix.SEEK_HOLE)
	if err != nil {
		return r.status("lseek", f.Ino(), err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

func (r *rawFS) Ioctl(_ <-chan struct{}, _ *fuse.IoctlIn, _ []byte, _ *fuse.IoctlOut, _ []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}
