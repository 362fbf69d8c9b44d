package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A Handle is a program's open file. Its last Release is the file's last close.
type Handle struct {
	v *Volume
	f *file

	process int // that opened it; 0 if unknown, or none
}

// OpenBy is Open by a process, 0 if it is unknown, that may store to the file if
// writes.
func (v *Volume) OpenBy(ctx context.Context, ino namespace.Ino, process int, writes bool) (*Handle, error) {
	h, err := v.Open(ctx, ino)
	if err != nil {
		return nil, err
	}
	h.process = process
	if writes {
		v.mu.Lock()
		defer v.mu.Unlock()
		h.f.writers[h] = struct{}{}
		h.f.maintain = true // what a crash left granted may go back to the pool
	}
	return h, nil
}

// Open opens a regular file. It waits while the last close of the file before, or a
// rollback after the death of a program that was attached, is still under way, so
// that no program sees stores that are being rolled back.
func (v *Volume) Open(ctx context.Context, ino namespace.Ino) (*Handle, error) {
	f, err := v.acquire(ctx, ino)
	if err != nil {
		return nil, err
	}
	for {
		if err := v.settleMembers(ctx, f); err != nil {
			v.release(f)
			return nil, err
		}
		v.mu.Lock()
		wait := f.settling
		if wait == nil && f.condemned == nil {
			f.handles++
			v.mu.Unlock()
			return &Handle{v: v, f: f}, nil
		}
		if wait == nil {
			v.mu.Unlock()
			continue
		}
		v.mu.Unlock()
		if err := await(ctx, wait); err != nil {
			v.release(f)
			return nil, err
		}
	}
}

// Ino returns the file's number.
func (h *Handle) Ino() namespace.Ino { return h.f.ino }

// InFlight returns how many epochs of the file were sent and are not known to be
// durable.
func (h *Handle) InFlight() int { return h.f.manager.Stats().InFlight }

// Read reads the newest bytes, those of the open epoch included, at off. n is
// less than len(p) only at the end of the file.
func (h *Handle) Read(ctx context.Context, p []byte, off int64) (n int, err error) {
	return h.f.cache.ReadAt(ctx, p, off)
}

// Write stores p at off in the open epoch. A write(2) may grow the file; a
// write-back of a mapping is clipped at its end. One that finds no space is lost: the
// open epoch cannot commit until it is rolled back.
func (h *Handle) Write(ctx context.Context, p []byte, off int64, src rdmacache.Source) (n int, err error) {
	if err := h.v.writable(); err != nil {
		return 0, err
	}
	take := h.f.cache.WriteAt
	if src == rdmacache.FromMapping {
		ctx = context.WithoutCancel(ctx) // the kernel does not send a page twice
		take = h.f.cache.TryWriteAt
	}
	more := func() error {
		if n == len(p) {
			n = 0 // it was about memory, after all were taken
		}
		taken, err := take(ctx, p[n:], off+int64(n), src)
		n += taken
		return err
	}
	err = h.v.withSpace(ctx, h.f, more)
	if src == rdmacache.FromMapping && noSpace(err) {
		take = h.f.cache.WriteAt // waiting and freeing did not help: memory may
		if err = more(); noSpace(err) {
			h.f.cache.Doom(err)
		}
	}
	return n, err
}

// Sync commits everything stored in the file, as one epoch: at a barrier, if
// programs with restart points are attached. ErrDeadlock if the one that opened the
// file is one of them.
func (h *Handle) Sync(ctx context.Context) error {
	handled, err := h.v.syncMembers(ctx, h.f, h.process)
	if !handled {
		_, err = h.v.commit(ctx, h.f, epoch.All)
	}
	return err
}

// Flush is a program's close(2) of one of its descriptors. If it is the only
// handle, and the closer is who opened it, this is most likely the last close: it
// commits what a last close commits, so that close(2) can report an error. Other
// closes, of descriptors that a child inherited say, commit nothing.
func (h *Handle) Flush(ctx context.Context, byOpener bool) error {
	h.v.mu.Lock()
	only := h.f.handles == 1
	h.v.mu.Unlock()
	if !byOpener || !only || h.v.cfg.ReadOnly {
		return nil
	}
	if n, err := h.v.cfg.Pool.Inode(ctx, h.f.ino); err == nil && n.Nlink == 0 {
		return nil // nobody will find it again
	}
	_, err := h.v.commit(ctx, h.f, epoch.Written)
	return err
}

// Truncate sets the size in bytes, in the open epoch.
func (h *Handle) Truncate(ctx context.Context, size int64) error {
	if err := h.v.writable(); err != nil {
		return err
	}
	return h.v.withSpace(ctx, h.f, func() error { return h.f.cache.Truncate(ctx, size) })
}

// An Alloc says what Allocate does to a range.
type Alloc int

const (
	AllocGrow     Alloc = iota // reserve space, and grow the file to the range's end
	AllocKeep                  // reserve space
	AllocPunch                 // make a hole
	AllocZero                  // make zeros, and grow the file to the range's end
	AllocZeroKeep              // make zeros
)

// Allocate is fallocate(2) of n bytes at off.
func (h *Handle) Allocate(ctx context.Context, how Alloc, off, n int64) error {
	if err := h.v.writable(); err != nil {
		return err
	}
	if off < 0 || n <= 0 {
		return namespace.ErrInvalid
	}
	if n > maxSize || off > maxSize-n {
		return rdmacache.ErrTooLarge
	}
	c := h.f.cache
	switch how {
	case AllocGrow, AllocKeep:
		if err := h.v.withSpace(ctx, h.f, func() error { return c.Reserve(ctx, off, n) }); err != nil {
			return err
		}
	case AllocPunch, AllocZero, AllocZeroKeep:
		if err := h.v.withSpace(ctx, h.f, func() error { return c.PunchHole(ctx, off, n) }); err != nil {
			return err
		}
	default:
		return fmt.Errorf("allocate mode %d: %w", how, namespace.ErrInvalid)
	}
	if (how == AllocGrow || how == AllocZero) && off+n > c.Size() {
		return h.Truncate(ctx, off+n)
	}
	return nil
}

// Seek returns the offset of the next data, or hole, at or after off.
// ErrNoData if there is none.
func (h *Handle) Seek(ctx context.Context, off int64, hole bool) (int64, error) {
	return h.f.cache.Seek(ctx, off, hole)
}

// Release gives the handle back; it must not be used again. The last Release of a
// file runs the contract of the last close before it returns.
func (h *Handle) Release(ctx context.Context) {
	v, f := h.v, h.f
	defer v.release(f)
	for {
		v.mu.Lock()
		delete(f.writers, h)
		f.used = v.now()
		wait := f.settling
		switch {
		case v.closed:
			v.mu.Unlock()
			return
		case f.handles > 1:
			f.handles--
			v.mu.Unlock()
			return
		case wait == nil:
			f.handles = 0
			f.settling = make(chan struct{})
			v.mu.Unlock()
			if err := v.lastClose(ctx, f); err != nil {
				// No caller is left to hear of it: close(2) had its answer.
				v.log.Error("last close of a file", "ino", f.ino, "err", err)
			}
			return
		}
		v.mu.Unlock()
		<-wait // a restore under force; it ends by itself
	}
}

// noSpace reports whether freeing a removed file's slots may help.
func noSpace(err error) bool { return errors.Is(err, region.ErrNoSpace) }

// maxSize is the largest file in bytes. The sum of two does not overflow.
const maxSize = region.MaxSize
