package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"unicode/utf8"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// Checkpoints returns the checkpoints of a file, oldest first.
func (v *Volume) Checkpoints(ctx context.Context, ino namespace.Ino) ([]region.Checkpoint, error) {
	n, err := v.cfg.Pool.Inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	if n.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, notRegular(n)
	}
	loc, err := v.cfg.Pool.Locate(ctx, region.ID(ino))
	if err != nil {
		return nil, err
	}
	list := slices.DeleteFunc(slices.Clone(loc.Checkpoints), func(cp region.Checkpoint) bool { return cp.Hidden() })
	slices.SortStableFunc(list, func(a, b region.Checkpoint) int {
		switch {
		case a.Epoch != b.Epoch && a.Epoch < b.Epoch, a.Epoch == b.Epoch && a.Time < b.Time:
			return -1
		case a.Epoch == b.Epoch && a.Time == b.Time:
			return 0
		}
		return 1
	})
	return list, nil
}

// Checkpoint commits the open epoch and keeps the result, durably, under a name.
// namespace.ErrExist if the name is taken.
func (v *Volume) Checkpoint(ctx context.Context, ino namespace.Ino, name string) (region.Checkpoint, error) {
	if err := v.writable(); err != nil {
		return region.Checkpoint{}, err
	}
	if err := checkCheckpointName(name); err != nil {
		return region.Checkpoint{}, err
	}
	f, err := v.acquireRegular(ctx, ino)
	if err != nil {
		return region.Checkpoint{}, err
	}
	defer v.release(f)
	f.treesMu.Lock()
	defer f.treesMu.Unlock()
	if _, err := v.commitAll(ctx, f); err != nil {
		return region.Checkpoint{}, err
	}
	return v.saveCheckpoint(ctx, f, name)
}

// saveCheckpoint keeps the committed epoch under a name. treesMu is held.
func (v *Volume) saveCheckpoint(ctx context.Context, f *file, name string) (region.Checkpoint, error) {
	ctx = context.WithoutCancel(ctx)
	cp, err := f.image.Freeze(ctx, name, v.now().UnixNano())
	if errors.Is(err, region.ErrCheckpointExists) {
		return cp, fmt.Errorf("checkpoint %q: %w", name, namespace.ErrExist)
	}
	if err != nil {
		return cp, err
	}
	if err := v.cfg.Pool.SaveCheckpoint(ctx, region.ID(f.ino), cp); err != nil {
		// It may be saved all the same, where the directory was poisoned.
		if loc, lerr := v.cfg.Pool.Locate(ctx, region.ID(f.ino)); lerr == nil && !slices.Contains(loc.Checkpoints, cp) {
			v.dropFromImage(f, name)
		}
		return cp, err
	}
	return cp, nil
}

// DropCheckpoint forgets a checkpoint, durably. The slots that only it reached
// become free in the background. namespace.ErrNotExist if there is none.
func (v *Volume) DropCheckpoint(ctx context.Context, ino namespace.Ino, name string) error {
	if err := v.writable(); err != nil {
		return err
	}
	f, err := v.acquireRegular(ctx, ino)
	if err != nil {
		return err
	}
	defer v.release(f)
	f.treesMu.Lock()
	defer f.treesMu.Unlock()
	err = v.cfg.Pool.DropCheckpoint(ctx, region.ID(ino), name)
	// In this order: the directory must not name a tree whose slots are free. The image
	// may have one of which saveCheckpoint could not tell whether it was saved.
	if err == nil || errors.Is(err, namespace.ErrNotExist) {
		v.dropFromImage(f, name)
	}
	return err
}

// findCheckpoint returns the checkpoint of a name, or else the newest of an epoch
// written in decimal.
func (v *Volume) findCheckpoint(ctx context.Context, ino namespace.Ino, name string) (region.Checkpoint, error) {
	list, err := v.Checkpoints(ctx, ino)
	if err != nil {
		return region.Checkpoint{}, err
	}
	for _, cp := range list {
		if cp.Name == name {
			return cp, nil
		}
	}
	if id, err := strconv.ParseUint(name, 10, 64); err == nil {
		for _, cp := range slices.Backward(list) {
			if cp.Epoch == epoch.ID(id) {
				return cp, nil
			}
		}
	}
	return region.Checkpoint{}, fmt.Errorf("checkpoint %q: %w", name, namespace.ErrNotExist)
}

// Restore makes a checkpoint, given by name or by its epoch in decimal, the newest
// epoch of the file, and returns that epoch's ID. What the file held before stays
// as the checkpoint "before-restore-EPOCH"; an open epoch is thrown away. ErrBusy
// while programs have the file open, unless force: then their mappings show the
// restored content when Restore returns.
func (v *Volume) Restore(ctx context.Context, ino namespace.Ino, name string, force bool) (epoch.ID, error) {
	if err := v.writable(); err != nil {
		return 0, err
	}
	f, err := v.acquireRegular(ctx, ino)
	if err != nil {
		return 0, err
	}
	defer v.release(f)
	f.treesMu.Lock()
	defer f.treesMu.Unlock()
	cp, err := v.findCheckpoint(ctx, ino, name)
	if err != nil {
		return 0, err
	}
	if err := v.hold(ctx, f, force); err != nil {
		return 0, err
	}
	defer v.unhold(f)

	var id epoch.ID
	ctx = context.WithoutCancel(ctx)
	// No commit may come between: it would put the open epoch, which belongs to
	// the old content, on top of the restored one.
	err = f.manager.Exclusive(func() error {
		before := fmt.Sprintf("before-restore-%d", f.cache.Committed())
		if _, err := v.saveCheckpoint(ctx, f, before); err != nil && !errors.Is(err, namespace.ErrExist) {
			return fmt.Errorf("keep the present state: %w", err)
		}
		var err error
		if id, err = f.image.Restore(ctx, cp, v.now().UnixNano()); err != nil {
			return err
		}
		_, err = v.discard(f, f.cache.Discard)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("restore %q: %w", cp.Name, err)
	}
	v.mu.Lock()
	v.counters.Commits++
	f.maintain = true
	v.mu.Unlock()
	return id, nil
}

// hold makes opens and last closes of the file wait until unhold.
func (v *Volume) hold(ctx context.Context, f *file, force bool) error {
	for {
		v.mu.Lock()
		if f.handles > 0 && !force || f.attached > 0 {
			v.mu.Unlock()
			return ErrBusy
		}
		wait := f.settling
		if wait == nil {
			f.settling = make(chan struct{})
			v.mu.Unlock()
			return nil
		}
		v.mu.Unlock()
		if err := await(ctx, wait); err != nil {
			return err
		}
	}
}

func (v *Volume) unhold(f *file) {
	v.mu.Lock()
	defer v.mu.Unlock()
	close(f.settling)
	f.settling = nil
}

// checkCheckpointName refuses names that a listing of one a line, or a shell,
// would trip over.
func checkCheckpointName(name string) error {
	if name == "" || len(name) > region.MaxCheckpointName {
		return fmt.Errorf("checkpoint name of %d bytes, want 1 to %d: %w", len(name), region.MaxCheckpointName, namespace.ErrInvalid)
	}
	if !utf8.ValidString(name) {
		return fmt.Errorf("checkpoint name %q: not UTF-8: %w", name, namespace.ErrInvalid)
	}
	for _, c := range []byte(name) {
		if c < ' ' || c == 0x7f || c == '/' {
			return fmt.Errorf("checkpoint name %q: control characters and slashes: %w", name, namespace.ErrInvalid)
		}
	}
	return nil
}
