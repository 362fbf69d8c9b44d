package fs

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/volume"
)

// cacheFor is how long the kernel may use names and attributes without asking.
// All changes go through it or make it forget; the bound is for the content of
// attributes that change by write-back, such as the time of the last write.
const cacheFor = time.Second

// rawFS answers the kernel's requests. The methods are in the files named after
// what they are about.
type rawFS struct {
	fuse.RawFileSystem // answers ENOSYS to all that is not here

	vol *volume.Volume
	log *slog.Logger

	mu      sync.RWMutex // guards the fields below
	handles map[uint64]any
	next    uint64
}

var _ fuse.RawFileSystem = (*rawFS)(nil)

func newRawFS(cfg Config) *rawFS {
	return &rawFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		vol:           cfg.Volume,
		log:           cfg.Log,
		handles:       make(map[uint64]any),
	}
}

func (r *rawFS) String() string { return "rpmemfs" }

// addHandle gives an open file or directory its number.
func (r *rawFS) addHandle(h any) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	r.handles[r.next] = h
	return r.next
}

// handle returns the open file or directory of a number.
func handle[T any](r *rawFS, fh uint64) (T, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	h, ok := r.handles[fh].(T)
	return h, ok
}

func removeHandle[T any](r *rawFS, fh uint64) (T, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.handles[fh].(T)
	if ok {
		delete(r.handles, fh)
	}
	return h, ok
}

// entry fills in the answer to a request that found or made a file, and counts
// the reference that the kernel has from then on.
func (r *rawFS) entry(a volume.Attr, out *fuse.EntryOut) {
	r.vol.Remember(a.Ino)
	out.NodeId = uint64(a.Ino)
	out.Generation = 1 // numbers are never used twice
	out.SetEntryTimeout(cacheFor)
	out.SetAttrTimeout(cacheFor)
	fill(&out.Attr, a)
}

func fill(out *fuse.Attr, a volume.Attr) {
	out.Ino = uint64(a.Ino)
	out.Size = a.Size
	out.Blocks = a.Blocks
	out.Atime, out.Atimensec = splitTime(a.Atime)
	out.Mtime, out.Mtimensec = splitTime(a.Mtime)
	out.Ctime, out.Ctimensec = splitTime(a.Ctime)
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid = a.UID
	out.Gid = a.GID
	out.Rdev = a.Rdev
	out.Blksize = 4096
}

// splitTime splits ns since 1970, before which the seconds are negative.
func splitTime(ns int64) (sec uint64, nsec uint32) {
	t := time.Unix(0, ns)
	return uint64(t.Unix()), uint32(t.Nanosecond())
}

// joinTime is the reverse. What an int64 cannot hold becomes its nearest value.
func joinTime(sec uint64, nsec uint32) int64 {
	const limit = (1<<63 - 1) / 1_000_000_000
	s := min(max(int64(sec), -limit), limit)
	return s*1e9 + int64(nsec)
}

func ino(h *fuse.InHeader) namespace.Ino { return namespace.Ino(h.NodeId) }

// invalidator tells the kernel to forget. It implements volume.Invalidator.
type invalidator struct{ server *fuse.Server }

var _ volume.Invalidator = (*invalidator)(nil)

func (i *invalidator) Content(ino namespace.Ino) error {
	return notified("content of inode", i.server.InodeNotify(uint64(ino), 0, 0))
}

func (i *invalidator) Range(ino namespace.Ino, off, n int64) error {
	return notified("part of inode", i.server.InodeNotify(uint64(ino), off, n))
}

func (i *invalidator) Attr(ino namespace.Ino) error {
	return notified("attributes of inode", i.server.InodeNotify(uint64(ino), -1, 0))
}

func (i *invalidator) Entry(parent namespace.Ino, name string) error {
	return notified("name "+name, i.server.EntryNotify(uint64(parent), name))
}

// notified makes an error of an answer to a notification. What the kernel does
// not know, and a mount that is gone, need no forgetting.
func notified(what string, status fuse.Status) error {
	switch unix.Errno(status) {
	case 0, unix.ENOENT, unix.ENOTDIR, unix.EBADF, unix.ENODEV, unix.ENOTCONN, unix.EPERM:
		return nil
	}
	return fmt.Errorf("invalidate %s: %w", what, unix.Errno(status))
}
