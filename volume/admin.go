package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
)

// acquireRegular is acquire, and ErrNotRegular or namespace.ErrIsDir for anything
// but a regular file.
func (v *Volume) acquireRegular(ctx context.Context, ino namespace.Ino) (*file, error) {
	n, err := v.cfg.Pool.Inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	if n.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, notRegular(n)
	}
	return v.acquire(ctx, ino)
}

// Commit commits everything that reached the daemon of a file's open epoch, and
// returns the last committed epoch.
func (v *Volume) Commit(ctx context.Context, ino namespace.Ino) (epoch.ID, error) {
	if err := v.writable(); err != nil {
		return 0, err
	}
	f, err := v.acquireRegular(ctx, ino)
	if err != nil {
		return 0, err
	}
	defer v.release(f)
	return v.commitAll(ctx, f)
}

// commitAll commits the whole open epoch of a file: at a barrier, if programs with
// restart points are attached.
func (v *Volume) commitAll(ctx context.Context, f *file) (epoch.ID, error) {
	if v.isAttached(f) {
		if id, handled, err := v.members.Checkpoint(ctx, uint64(f.ino)); handled {
			return id, err
		}
	}
	return v.commit(ctx, f, epoch.All)
}

// CommitAll commits every file that has an open epoch and returns how many had.
// It goes on after errors and returns them joined.
func (v *Volume) CommitAll(ctx context.Context) (files int, err error) {
	if err := v.writable(); err != nil {
		return 0, err
	}
	var errs []error
	for _, f := range v.inUse() {
		if f.cache.DirtyScope(epoch.All) || v.isAttached(f) {
			if _, err := v.commitAll(ctx, f); err != nil {
				errs = append(errs, fmt.Errorf("commit file %d: %w", f.ino, err))
			} else {
				files++
			}
		}
		v.release(f)
	}
	return files, errors.Join(errs...)
}

// OpenFiles returns the files that programs have open: only these can have stores
// that the kernel has not sent yet.
func (v *Volume) OpenFiles(context.Context) []namespace.Ino {
	v.mu.Lock()
	defer v.mu.Unlock()
	var open []namespace.Ino
	for _, f := range v.files {
		if f.handles > 0 {
			open = append(open, f.ino)
		}
	}
	slices.Sort(open)
	return open
}

// inUse returns every file that is loaded, each with one more ref, by number.
func (v *Volume) inUse() []*file {
	v.mu.Lock()
	defer v.mu.Unlock()
	var files []*file
	for _, f := range v.files {
		if f.loaded() && f.left == nil {
			f.refs++
			v.busy(f)
			files = append(files, f)
		}
	}
	slices.SortFunc(files, func(a, b *file) int {
		if a.ino < b.ino {
			return -1
		}
		return 1
	})
	return files
}

// Rollback throws the open epoch away, under programs that map the file: when it
// returns their mappings show the last committed epoch. It returns how many pages
// were thrown away. Stores that programs make meanwhile may be lost or kept.
func (v *Volume) Rollback(ctx context.Context, ino namespace.Ino) (pages int, err error) {
	if err := v.writable(); err != nil {
		return 0, err
	}
	f, err := v.acquireRegular(ctx, ino)
	if err != nil {
		return 0, err
	}
	defer v.release(f)
	err = f.manager.Exclusive(func() (err error) {
		if v.isAttached(f) {
			return fmt.Errorf("roll back file %d: %w: programs are attached to it; stop them first", ino, ErrBusy)
		}
		pages, err = v.discard(f, f.cache.Discard)
		return err
	})
	return pages, err
}
