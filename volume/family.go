package volume

import (
	"context"
	"fmt"
	"strconv"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// family returns the walk of region.Config.Family for a file: it marks what the
// relatives reach.
//
// A relative that replaces a page meanwhile may be seen without it. Another one
// may reach that page's slot: a clone that was made since, which the directory
// names before the pin of its source goes, or a checkpoint, none of which goes
// while familyMu is held.
func (v *Volume) family(ino namespace.Ino) func(context.Context, func(region.Slot)) error {
	return func(ctx context.Context, mark func(region.Slot)) error {
		v.familyMu.RLock()
		defer v.familyMu.RUnlock()
		walked := make(map[region.ID]bool)
		for {
			loc, err := v.cfg.Pool.Locate(ctx, region.ID(ino))
			if err != nil {
				return err
			}
			before := len(walked)
			for _, id := range loc.Family {
				if walked[id] {
					continue
				}
				walked[id] = true
				if err := v.walkRelative(ctx, namespace.Ino(id), mark); err != nil {
					return fmt.Errorf("relative %d: %w", id, err)
				}
			}
			if len(walked) == before {
				return nil
			}
		}
	}
}

func (v *Volume) walkRelative(ctx context.Context, ino namespace.Ino, mark func(region.Slot)) error {
	f, err := v.acquireAny(ctx, ino)
	if err != nil {
		return err
	}
	defer v.release(f)
	return f.image.Walk(ctx, mark)
}

// dropFromImage makes the open image forget a checkpoint, between two walks.
func (v *Volume) dropFromImage(f *file, name string) {
	v.familyMu.Lock()
	f.image.DropCheckpoint(name)
	v.familyMu.Unlock()
	v.mu.Lock()
	f.maintain = true
	v.mu.Unlock()
}

// Clone adds a file that starts with the content of src, or of a checkpoint of it
// (by name, or epoch in decimal), and shares its slots until either is written.
// Without a checkpoint the open epoch of src commits first. The clone has src's
// permissions, owner and on-close setting.
func (v *Volume) Clone(ctx context.Context, src namespace.Ino, checkpoint string, parent namespace.Ino, name string) (namespace.Inode, error) {
	if err := v.writable(); err != nil {
		return namespace.Inode{}, err
	}
	f, err := v.acquireRegular(ctx, src)
	if err != nil {
		return namespace.Inode{}, err
	}
	defer v.release(f)
	f.treesMu.Lock()
	defer f.treesMu.Unlock()
	if checkpoint == "" {
		if _, err := v.commitAll(ctx, f); err != nil {
			return namespace.Inode{}, err
		}
	}
	ctx = context.WithoutCancel(ctx)
	// A checkpoint that the directory never hears of keeps the slots in place
	// until the clone is in src's family. It also starts a new series, so that
	// src overwrites none of what the clone shares.
	pin := "\x00clone-" + strconv.FormatInt(v.now().UnixNano(), 10)
	cp, err := f.image.Freeze(ctx, pin, v.now().UnixNano())
	if err != nil {
		return namespace.Inode{}, err
	}
	defer v.dropFromImage(f, pin)
	if checkpoint != "" {
		if cp, err = v.findCheckpoint(ctx, src, checkpoint); err != nil {
			return namespace.Inode{}, err
		}
	}
	return v.addClone(ctx, f, cp, parent, name)
}

func (v *Volume) addClone(ctx context.Context, f *file, cp region.Checkpoint, parent namespace.Ino, name string) (namespace.Inode, error) {
	n, err := v.cfg.Pool.Inode(ctx, f.ino)
	if err != nil {
		return namespace.Inode{}, err
	}
	n = f.attr(n).Inode
	now := v.now().UnixNano()
	clone := namespace.Inode{
		Mode: n.Mode, UID: n.UID, GID: n.GID, OnClose: n.OnClose,
		Atime: now, Mtime: now, Ctime: now,
	}
	seed := f.image.Seed(cp)
	clone.MtimeEpoch = seed.Epoch
	n, err = v.cfg.Pool.Clone(ctx, region.ID(f.ino), parent, name, clone, seed)
	if err != nil {
		return namespace.Inode{}, err
	}
	return n, v.invalidator().Entry(parent, name)
}
