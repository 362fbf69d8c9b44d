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
	opener int // process that opened it; 0 if it is in another pid namespace
}

func (r *rawFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f, err := r.open(&in.InHeader, ino(&in.InHeader), in.Flags)
	if err != nil {
		return r.status("open", ino(&in.InHeader), err)
	}
	r.opened(f, out)
	return fuse.OK
}

// open opens a file with the flags of open(2).
func (r *rawFS) open(header *fuse.InHeader, file namespace.Ino, flags uint32) (*openFile, error) {
	process := processOf(header.Pid)
	h, err := r.vol.OpenBy(context.Background(), file, process, flags&unix.O_ACCMODE != unix.O_RDONLY)
	return &openFile{h, process}, err
}

func (r *rawFS) opened(f *openFile, out *fuse.OpenOut) {
	out.Fh = r.addHandle(f)
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
	f, err := r.open(&in.InHeader, a.Ino, in.Flags)
	if err != nil {
		return r.status("create", a.Ino, err)
	}
	if existed && in.Flags&unix.O_TRUNC != 0 {
		if err := f.Truncate(ctx, 0); err != nil {
			f.Release(ctx)
			return r.status("create", a.Ino, err)
		}
		a.Size, a.Blocks = 0, 0
	}
	r.entry(a, &out.EntryOut)
	r.opened(f, &out.OpenOut)
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
	byOpener := f.opener != 0 && f.opener == processOf(in.Pid)
	return r.status("flush", f.Ino(), f.Flush(context.Background(), byOpener))
}

// processOf returns the process that a thread belongs to; the thread waits for an
// answer, so it lives. 0 where that cannot be told.
func processOf(thread uint32) int {
	if thread == 0 {
		return 0
	}
	// pidfd_open(2) takes only the first thread of a process, which carries its
	// number.
	if fd, err := unix.PidfdOpen(int(thread), 0); err == nil {
		_ = unix.Close(fd) // nothing was done with it
		return int(thread)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return 0
	}
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		tgid, ok := bytes.CutPrefix(lines.Bytes(), []byte("Tgid:"))
		if !ok {
			continue
		}
		process, err := strconv.Atoi(string(bytes.TrimSpace(tgid)))
		if err != nil {
			return 0
		}
		return process
	}
	return 0
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
