package region

import (
	"context"
	"fmt"

	"github.com/rpmemfs/rpmemfs/epoch"
)

// MaxSize is the largest file in bytes.
const MaxSize = 1 << 50

const (
	// firstRunSlots is the length of each log run of a new region; runs grow
	// with the region to maxRunSlots.
	firstRunSlots = 2
	maxRunSlots   = 128
)

// FormatSlots is how many slots Format needs: two superblocks and two log runs.
const FormatSlots = 2 + 2*firstRunSlots

// A Seed is the first content of a region: nothing for a new file, the source's
// tree for a clone.
type Seed struct {
	ID     ID
	Epoch  epoch.ID
	Series uint32 // see Entry
	Size   uint64
	Mtime  int64
	Pages  uint64 // in Tree
	Tree   Tree
}

// superblock returns the first superblock of a region whose first extent begins
// at start.
func (s Seed) superblock(start Slot) superblock {
	return superblock{
		id: s.ID, sequence: 1, epoch: s.Epoch, size: s.Size, mtime: s.Mtime,
		tree: s.Tree, series: s.Series, pages: s.Pages,
		log: [2]Run{{start + 2, firstRunSlots}, {start + 2 + firstRunSlots, firstRunSlots}},
	}
}

// Format writes the superblocks and empty log of a new region into the start of
// extent, which no region owns yet, and flushes them. It returns the place of
// the superblocks, which Location must carry from then on.
//
// The other superblock and the log are cleared: a former owner's records must
// not be taken for the new region's.
func Format(ctx context.Context, dev Device, extent Run, seed Seed) (Slot, error) {
	if extent.N < FormatSlots {
		return 0, fmt.Errorf("region: format region %d: extent of %d slots, need %d", seed.ID, extent.N, FormatSlots)
	}
	b := make([]byte, FormatSlots*PageSize)
	sb := seed.superblock(extent.Start)
	copy(b[(sb.sequence%2)*PageSize:], sb.encode())
	if err := dev.Write(ctx, b, extent.Start.Offset()); err != nil {
		return 0, fmt.Errorf("region: format region %d: %w", seed.ID, err)
	}
	if err := dev.Flush(ctx); err != nil {
		return 0, fmt.Errorf("region: format region %d: flush: %w", seed.ID, err)
	}
	return extent.Start, nil
}
