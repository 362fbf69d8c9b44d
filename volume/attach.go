package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
)

var (
	// ErrLost reports an open epoch that is being rolled back, because a program
	// that was attached to the file died in the middle of it.
	ErrLost = errors.New("volume: a program attached to the file died; its open epoch is being rolled back")
	// ErrLate reports a commit that was called off: a thread of an attached program
	// did not come to a restart point in time. The epoch is still open.
	ErrLate = errors.New("volume: not all threads came to a restart point; try again")
	// ErrDeadlock reports an fsync by a program with restart points: it commits by
	// rpmemfs_checkpoint.
	ErrDeadlock = errors.New("volume: a program with restart points commits by rpmemfs_checkpoint, not by fsync")
	// ErrPermission reports a program that may not write the file it wants to
	// attach to.
	ErrPermission = errors.New("volume: permission denied")
)

// Members are the programs that are attached to files: they capture what they
// store, and meet at barriers. attach.Server is one.
type Members interface {
	// Checkpoint commits a file at a barrier if programs with restart points are
	// attached to it; handled tells.
	Checkpoint(ctx context.Context, ino uint64) (id epoch.ID, handled bool, err error)
	// HasRestartPoints reports whether a process is attached to a file and has
	// restart points.
	HasRestartPoints(ino uint64, pid int) bool
	// Settle waits until each member of a file that is dead by now has been dealt
	// with.
	Settle(ctx context.Context, ino uint64) error
}

// noMembers is the Members of a volume that nobody can attach to.
type noMembers struct{}

func (noMembers) Checkpoint(context.Context, uint64) (epoch.ID, bool, error) { return 0, false, nil }
func (noMembers) HasRestartPoints(uint64, int) bool                          { return false }
func (noMembers) Settle(context.Context, uint64) error                       { return nil }

// SetMembers tells the volume who is attached to its files. It is called once,
// before the first request.
func (v *Volume) SetMembers(m Members) { v.members = m }

// An Attachment is the hold that attached programs have on a file. It counts as a
// handle. It is what package attach asks of a region.
type Attachment struct{ h *Handle }

// Attach gets a file ready for programs that capture what they store. uid and gid
// are a program's; they must be allowed to write the file.
func (v *Volume) Attach(ctx context.Context, ino uint64, uid, gid uint32) (*Attachment, error) {
	if err := v.writable(); err != nil {
		return nil, err
	}
	n, err := v.cfg.Pool.Inode(ctx, namespace.Ino(ino))
	if err != nil {
		return nil, err
	}
	if n.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, notRegular(n)
	}
	if !mayWrite(n, uid, gid) {
		return nil, fmt.Errorf("attach to file %d: %w: user %d may not write it", ino, ErrPermission, uid)
	}
	h, err := v.Open(ctx, namespace.Ino(ino))
	if err != nil {
		return nil, err
	}
	h.f.cache.Capturing(true)
	v.mu.Lock()
	defer v.mu.Unlock()
	h.f.attached++
	return &Attachment{h: h}, nil
}

// mayWrite is what the mode says. Supplementary groups are not looked at.
func mayWrite(n namespace.Inode, uid, gid uint32) bool {
	switch {
	case uid == 0:
		return true
	case uid == n.UID:
		return n.Mode&0o200 != 0
	case gid == n.GID:
		return n.Mode&0o020 != 0
	}
	return n.Mode&0o002 != 0
}

// maxExtra is how many pages a barrier copies once more rather than have the kernel
// write back everything.
const maxExtra = 8000

// Barrier commits the file's open epoch as it is at a barrier; see epoch.Manager.
// seal also returns the pages that are to be copied once more there.
func (a *Attachment) Barrier(ctx context.Context, quiesce func(ctx context.Context, seal func() (extra []uint64, id epoch.ID, err error)) error) (epoch.ID, error) {
	f, v := a.h.f, a.h.v
	began := time.Now()
	id, err := f.manager.Barrier(ctx, func(ctx context.Context, seal func() (epoch.ID, error)) error {
		return quiesce(ctx, func() ([]uint64, epoch.ID, error) {
			extra := f.cache.Rewritten()
			id, err := seal()
			return extra, id, err
		})
	})
	if noSpace(err) {
		v.reclaim(ctx) // for the next try
	}
	if err == nil {
		v.committed(f, began)
	}
	return id, err
}

// Capture takes a copy of a page that a program stored to; see rdmacache.Cache.
func (a *Attachment) Capture(ctx context.Context, sealed bool, page uint64, when int64, p []byte) error {
	f := a.h.f
	return a.h.v.withSpace(ctx, f, func() error { return f.cache.Capture(ctx, sealed, page, when, p) })
}

// Untracked reports whether the kernel may have stores that no copy holds: of a
// process that is not in pids and has the file open for writing, or of one whose
// copies were dropped.
func (a *Attachment) Untracked(pids []int) bool {
	f, v := a.h.f, a.h.v
	drain := f.cache.Lossy() || len(f.cache.Rewritten()) > maxExtra
	v.mu.Lock()
	for h := range f.writers {
		drain = drain || !slices.Contains(pids, h.process)
	}
	v.mu.Unlock()
	return drain
}

// Condemn says that an attached program died: no commit takes the open epoch any
// more, and opens of the file wait, until Rollback.
func (a *Attachment) Condemn() {
	f, v := a.h.f, a.h.v
	v.mu.Lock()
	if f.condemned == nil {
		f.condemned = make(chan struct{})
	}
	v.mu.Unlock()
	f.cache.Condemn(ErrLost)
}

// Rollback throws the open epoch away, under programs that map the file.
func (a *Attachment) Rollback(context.Context) error {
	f, v := a.h.f, a.h.v
	var pages int
	err := f.manager.Exclusive(func() (err error) {
		pages, err = v.discard(f, f.cache.Discard)
		return err
	})
	if err != nil {
		return fmt.Errorf("roll back file %d: %w", f.ino, err)
	}
	v.log.Warn("rolled back the open epoch: a program that was attached died", "ino", f.ino, "pages", pages, "epoch", f.cache.Committed())
	v.mu.Lock()
	defer v.mu.Unlock()
	if f.condemned != nil {
		close(f.condemned)
		f.condemned = nil
	}
	return nil
}

// Committed returns the file's last committed epoch.
func (a *Attachment) Committed() epoch.ID { return a.h.f.cache.Committed() }

// Err returns why the file takes no more commits, or nil.
func (a *Attachment) Err() error { return a.h.f.cache.Err() }

// Size returns the file's size in bytes.
func (a *Attachment) Size() int64 { return a.h.f.cache.Size() }

// Close gives the hold back. The last one of a file that nobody has open is its
// last close.
func (a *Attachment) Close() {
	f, v := a.h.f, a.h.v
	f.cache.Capturing(false)
	v.mu.Lock()
	f.attached--
	v.mu.Unlock()
	a.h.Release(context.Background())
}

// lostWait is how long an open waits for the rollback of an epoch whose program
// died: the others that are attached must come to a restart point first.
const lostWait = 10 * time.Second

// settleMembers waits until a file has got over the death of an attached program.
func (v *Volume) settleMembers(ctx context.Context, f *file) error {
	v.mu.Lock()
	quiet := f.attached == 0 && f.condemned == nil
	v.mu.Unlock()
	if quiet {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lostWait)
	defer cancel()
	if err := v.members.Settle(ctx, uint64(f.ino)); err != nil {
		return fmt.Errorf("file %d: %w", f.ino, ErrLost)
	}
	v.mu.Lock()
	wait := f.condemned
	v.mu.Unlock()
	// It stays if the rollback failed: until the next mount the file cannot be opened.
	if wait != nil && await(ctx, wait) != nil {
		return fmt.Errorf("file %d: %w", f.ino, ErrLost)
	}
	return nil
}

// syncMembers is an fsync by a process, 0 if it is unknown, of a file that programs
// may be attached to: it commits at the barrier of those with restart points. By one
// of these it is refused: it would wait for itself, or else commit the half-made
// changes of its other threads.
func (v *Volume) syncMembers(ctx context.Context, f *file, process int) (handled bool, err error) {
	if !v.isAttached(f) {
		return false, nil
	}
	if process != 0 && v.members.HasRestartPoints(uint64(f.ino), process) {
		return true, fmt.Errorf("fsync of file %d by process %d: %w", f.ino, process, ErrDeadlock)
	}
	_, handled, err = v.members.Checkpoint(ctx, uint64(f.ino))
	return handled, err
}

func (v *Volume) isAttached(f *file) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return f.attached > 0
}
