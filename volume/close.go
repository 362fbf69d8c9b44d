package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
)

// lastClose settles a file without handles and then lets opens of it go on. The
// caller has set f.settling.
func (v *Volume) lastClose(ctx context.Context, f *file) error {
	err := v.settle(context.WithoutCancel(ctx), f)
	pending := err != nil && !errors.Is(err, epoch.ErrPoisoned) && f.cache.DirtyScope(epoch.All)
	v.mu.Lock()
	defer v.mu.Unlock()
	again := f.pending
	f.pending = pending
	if err != nil && !again {
		v.counters.FailedCloses++
	}
	close(f.settling)
	f.settling = nil
	return err
}

// settleIdle is the last close of a change that was made without a handle, such
// as truncate(2). With handles it does nothing: theirs will come.
func (v *Volume) settleIdle(ctx context.Context, f *file) error {
	v.mu.Lock()
	if f.handles > 0 || f.settling != nil {
		v.mu.Unlock()
		return nil
	}
	f.settling = make(chan struct{})
	v.mu.Unlock()
	return v.lastClose(ctx, f)
}

// settle is the contract of the last close: what write(2), truncate and fallocate
// did commits; what is left are stores through mappings, which are rolled back or
// commit. After an error the open epoch is as it was, so that a later close, or
// the unmount, can try again.
func (v *Volume) settle(ctx context.Context, f *file) error {
	if !f.cache.DirtyScope(epoch.All) {
		return nil
	}
	n, err := v.cfg.Pool.Inode(ctx, f.ino)
	if errors.Is(err, namespace.ErrNotExist) || err == nil && n.Nlink == 0 {
		return nil // nobody will find it again: Reap frees its slots
	}
	if err != nil {
		return err
	}
	commits := v.onClose(n) == namespace.OnCloseCommit
	_, err = v.commit(ctx, f, epoch.Written)
	if noSpace(err) && !commits {
		// What is to be rolled back may hold the very slots that are missing.
		if err := v.rollbackMapped(f); err != nil {
			return err
		}
		_, err = v.commit(ctx, f, epoch.Written)
	}
	switch {
	case err != nil:
		return fmt.Errorf("commit what was written: %w", err)
	case commits:
		if _, err := v.commit(ctx, f, epoch.All); err != nil {
			return fmt.Errorf("commit stores through mappings: %w", err)
		}
		return nil
	}
	return v.rollbackMapped(f)
}

// rollbackMapped throws away the stores through mappings, and says so.
func (v *Volume) rollbackMapped(f *file) error {
	if mapped, _ := f.cache.Dirty(); mapped == 0 {
		return nil
	}
	pages, err := v.discard(f, f.cache.DiscardMapped)
	if err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	v.log.Warn("rolled back stores that no msync committed before the last close",
		"ino", f.ino, "pages", pages, "epoch", f.cache.Committed())
	return nil
}

// onClose is the file's choice, or else the mount's.
func (v *Volume) onClose(n namespace.Inode) namespace.OnClose {
	if n.OnClose != namespace.OnCloseDefault {
		return n.OnClose
	}
	return v.cfg.OnClose
}

// discard throws the open epoch, or its mapped stores, away and makes the kernel
// forget its copy.
func (v *Volume) discard(f *file, throw func(invalidate func() error) (int, error)) (pages int, err error) {
	kernel := v.invalidator()
	pages, err = throw(func() error { return kernel.Content(f.ino) })
	if err != nil {
		return pages, err
	}
	v.mu.Lock()
	v.counters.Rollbacks++
	v.counters.RolledBackPages += uint64(pages)
	v.mu.Unlock()
	return pages, nil
}

// resettle retries the last closes that could not commit.
func (v *Volume) resettle(ctx context.Context) {
	v.mu.Lock()
	var retry []*file
	for _, f := range v.files {
		if f.pending && f.handles == 0 && f.settling == nil && f.left == nil {
			f.refs++
			v.busy(f)
			f.settling = make(chan struct{})
			retry = append(retry, f)
		}
	}
	v.mu.Unlock()
	for _, f := range retry {
		// The first failure was logged; a try every few seconds need not be.
		if err := v.lastClose(ctx, f); err == nil {
			v.log.Info("what a last close could not commit is committed now", "ino", f.ino)
		}
		v.release(f)
	}
}
