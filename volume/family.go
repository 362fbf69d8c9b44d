package volume

import (
	"context"
	"fmt"

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
