package region

import (
	"context"
	"fmt"
)

// sweep finds the slots that nothing reaches and frees them. Commits go on
// meanwhile: what they free is free anyway, and what they use is pending, which
// a sweep leaves alone. cutMu is held, so no node moves; commitMu is not.
func (im *Image) sweep(ctx context.Context) error {
	im.mu.Lock()
	im.sweepDue, im.unfreed = false, 0
	im.slots.beginSweep()
	for s := im.super; s < im.super+2; s++ {
		im.slots.mark(s)
	}
	for _, r := range im.log.runs {
		for s := r.Start; s < r.End(); s++ {
			im.slots.mark(s)
		}
	}
	im.mu.Unlock()

	mark := func(s Slot) {
		im.mu.Lock()
		im.slots.mark(s)
		im.mu.Unlock()
	}
	err := im.Walk(ctx, mark)
	if err == nil && im.family != nil {
		err = im.family(ctx, mark)
	}
	// Not while the table changes: pages that an epoch has replaced in it and will
	// free are reached from nowhere.
	im.mu.Lock()
	defer im.mu.Unlock()
	im.still()
	if err != nil {
		im.sweepDue = true
		for _, x := range im.slots.extents {
			clear(x.candidate)
		}
		return err
	}
	freed := im.slots.endSweep()
	im.logger.Debug("swept", "region", im.id, "freed_slots", freed, "granted_slots", im.slots.granted)
	return nil
}

// Walk calls visit for every slot that the committed epoch or a checkpoint
// reaches, or recovery would after a crash, some more than once. Pages that commits
// replace meanwhile may be visited or not. A checkpoint that is added meanwhile is
// walked too.
func (im *Image) Walk(ctx context.Context, visit func(Slot)) error {
	if err := im.walkLive(ctx, visit); err != nil {
		return err
	}
	type key struct {
		name string
		tree Tree
	}
	done := make(map[key]bool)
	seen := make(map[Slot]struct{})
	for {
		var next *Checkpoint
		im.mu.Lock()
		for i := range im.checkpoints {
			if cp := &im.checkpoints[i]; !done[key{cp.Name, cp.Tree}] {
				next = cp
				break
			}
		}
		im.mu.Unlock()
		if next == nil {
			return nil
		}
		done[key{next.Name, next.Tree}] = true
		if err := walkTree(ctx, im.dev, im.id, next.Tree, seen, visit); err != nil {
			return fmt.Errorf("checkpoint %q: %w", next.Name, err)
		}
	}
}

func (im *Image) walkLive(ctx context.Context, visit func(Slot)) error {
	var entries [fanout]Entry
	for page := uint64(0); ; {
		im.mu.Lock()
		base, leaf, err := im.nextLeaf(ctx, page)
		if leaf == nil {
			im.mu.Unlock()
			if err != nil {
				return err
			}
			break
		}
		entries = leaf.entries
		im.mu.Unlock()
		for _, e := range entries {
			if e.Slot != 0 {
				visit(e.Slot)
			}
		}
		page = base + fanout
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	// Every inner node is loaded now.
	var nodes []Slot
	var below func(n *node)
	below = func(n *node) {
		nodes = append(nodes, n.stored.Slot)
		if n.kids == nil {
			return
		}
		for i, kid := range n.kids {
			if kid != nil {
				below(kid)
			} else if s := n.entries[i].Slot; s != 0 {
				nodes = append(nodes, s)
			}
		}
	}
	im.mu.Lock()
	for _, e := range im.dropped {
		nodes = append(nodes, e.Slot)
	}
	if im.table.root != nil {
		below(im.table.root)
	} else {
		nodes = append(nodes, im.table.stored.Slot)
	}
	im.mu.Unlock()
	for _, s := range nodes {
		if s != 0 {
			visit(s)
		}
	}
	return nil
}

// walkTree visits every slot of a stored table. seen holds the nodes that were
// walked before: trees of one region share most of them.
func walkTree(ctx context.Context, dev Device, id ID, t Tree, seen map[Slot]struct{}, visit func(Slot)) error {
	if t.Height == 0 {
		return nil
	}
	var below func(e Entry, level uint32) error
	below = func(e Entry, level uint32) error {
		if _, ok := seen[e.Slot]; ok {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		seen[e.Slot] = struct{}{}
		visit(e.Slot)
		var entries [fanout]Entry
		if err := readEntries(ctx, dev, id, e, &entries); err != nil {
			return err
		}
		for _, kid := range entries {
			switch {
			case kid.Slot == 0:
			case level == 0:
				visit(kid.Slot)
			default:
				if err := below(kid, level-1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return below(Entry{Slot: t.Root, CRC: t.CRC}, t.Height-1)
}

// DropCheckpoint forgets a checkpoint. The next sweep frees what only it reached.
func (im *Image) DropCheckpoint(name string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	kept := make([]Checkpoint, 0, len(im.checkpoints))
	for _, cp := range im.checkpoints {
		if cp.Name != name {
			kept = append(kept, cp)
		}
	}
	im.checkpoints = kept
	im.sweepDue = im.super != 0
}

// Checkpoints returns the checkpoints that the image keeps, hidden ones too.
func (im *Image) Checkpoints() []Checkpoint {
	im.mu.Lock()
	defer im.mu.Unlock()
	return append([]Checkpoint(nil), im.checkpoints...)
}

// RequestSweep makes the next Maintain sweep: a relative was removed.
func (im *Image) RequestSweep() {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.sweepDue = im.super != 0
}
