package region

import (
	"context"
	"errors"
	"fmt"
)

// ErrView reports a change of an image that shows a checkpoint.
var ErrView = errors.New("region: the image shows a checkpoint, and takes no change")

// ErrManyChanges reports trees that differ in too many places to list.
var ErrManyChanges = errors.New("region: too many changes to list")

// maxCompared bounds the nodes that Changed reads of each tree, which may be forged:
// enough for 64 GiB of pages next to each other.
const maxCompared = 64 << 10

// View makes an image that nothing was committed to show a checkpoint, for reading:
// its epoch is that of the checkpoint from then on. It can be called again, with
// another one. Reads under way see either.
//
// The caller sees to it that nobody uses the slots of the checkpoint again. ErrCorrupt
// if there can be no such checkpoint; the image is as it was then.
func (im *Image) View(cp Checkpoint) error {
	if err := cp.check(); err != nil {
		return fmt.Errorf("region %d: checkpoint %q: %w", im.id, cp.Name, err)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.view = true
	im.epoch, im.size, im.mtime = cp.Epoch, cp.Size, cp.Mtime
	im.table = table{
		height: cp.Tree.Height, pages: cp.Pages, limit: im.table.limit,
		stored: Entry{Slot: cp.Tree.Root, CRC: cp.Tree.CRC},
	}
	return nil
}

// check refuses what no Freeze returned. It may come from a hostile machine.
func (cp *Checkpoint) check() error {
	if cp.Size > MaxSize {
		return fmt.Errorf("%w: a size of %d bytes", ErrCorrupt, cp.Size)
	}
	return cp.Tree.check()
}

func (t Tree) check() error {
	if t.Height > maxHeight || (t.Height == 0) != (t.Root == 0) || t.Root >= MaxSlot {
		return fmt.Errorf("%w: a table of %d levels with root %d", ErrCorrupt, t.Height, t.Root)
	}
	return nil
}

// Changed calls visit for each run of pages that two trees of one region keep in
// different places, in ascending order. Pages may be among them that are the same. It
// reads the nodes that differ, and no page. The slots of both trees must stay.
// ErrManyChanges, after some of them, if that would take too long.
func Changed(ctx context.Context, dev Device, id ID, before, after Tree, visit func(page, n uint64)) error {
	if err := errors.Join(before.check(), after.check()); err != nil {
		return fmt.Errorf("region %d: %w", id, err)
	}
	c := comparison{dev: dev, id: id, heights: [2]uint32{before.Height, after.Height}, visit: visit}
	top := max(before.Height, after.Height)
	if top == 0 {
		return nil
	}
	err := c.node(ctx, [2]Entry{{Slot: before.Root, CRC: before.CRC}, {Slot: after.Root, CRC: after.CRC}}, top-1, 0)
	c.end()
	return err
}

// A comparison walks two trees at a time.
type comparison struct {
	dev     Device
	id      ID
	heights [2]uint32
	visit   func(page, n uint64)

	nodes    int    // compared so far
	first, n uint64 // the run under way
}

// node compares what both trees have in one place. base is the first page there.
func (c *comparison) node(ctx context.Context, at [2]Entry, level uint32, base uint64) error {
	if c.nodes++; c.nodes > maxCompared {
		return ErrManyChanges
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var entries [2][fanout]Entry
	for i, e := range at {
		switch {
		case e.Slot == 0:
		case level >= c.heights[i]: // above the root of the lower tree
			entries[i][0] = e
		default:
			if err := readEntries(ctx, c.dev, c.id, e, &entries[i]); err != nil {
				return err
			}
		}
	}
	for i := range fanout {
		a, b := entries[0][i], entries[1][i]
		// Without the series: that of a root is not known.
		same := a.Slot == b.Slot && a.CRC == b.CRC
		first := base + uint64(i)<<(level*fanoutBits)
		switch {
		case same:
		case level == 0:
			c.add(first)
		default:
			if err := c.node(ctx, [2]Entry{a, b}, level-1, first); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *comparison) add(page uint64) {
	if c.n > 0 && c.first+c.n == page {
		c.n++
		return
	}
	c.end()
	c.first, c.n = page, 1
}

func (c *comparison) end() {
	if c.n > 0 {
		c.visit(c.first, c.n)
	}
	c.n = 0
}
