package region

import (
	"context"
	"fmt"
	"slices"
)

// table is the page table in memory: all inner nodes that were ever touched, and
// a bounded number of leaves. The Image's mu guards it.
type table struct {
	height uint32
	root   *node // nil: not loaded, or no pages
	stored Entry // of the root, while root is nil
	pages  uint64

	leaves  int // loaded
	limit   int // of clean leaves
	evictAt int // leaves at which to look for some to forget
}

// leaf returns the leaf that maps page, or nil if there is none. mu is held, and
// released while a node is read.
func (im *Image) leaf(ctx context.Context, page uint64) (*node, error) {
	var loaded []*node // the one that is missing, and leaves that follow it
	for {
		t := &im.table
		if page >= capacity(t.height) || t.height == 0 {
			return nil, nil
		}
		n, e, level := t.root, t.stored, t.height-1
		place, above, i := &t.root, (*node)(nil), 0
		for n != nil && level > 0 {
			above, i = n, index(page, level)
			level--
			place, e = &n.kids[i], n.entries[i]
			n = n.kids[i]
		}
		switch {
		case n != nil:
			n.used = true
			return n, nil
		case e.Slot == 0:
			return nil, nil
		case len(loaded) > 0 && loaded[0].stored == e:
			*place = loaded[0]
			if level == 0 {
				t.leaves += 1 + above.adopt(i+1, loaded[1:])
				im.evict(loaded[0])
			}
			loaded = nil
			continue
		}
		run := []Entry{e}
		if level == 0 {
			run = append(run, above.following(i)...)
		}
		im.mu.Unlock()
		nodes, err := im.readNodes(ctx, run, level)
		im.mu.Lock()
		if err != nil && im.entryAt(page, level) == e {
			return nil, err
		}
		loaded = nodes // none if the slot was used again meanwhile: look again
	}
}

// leavesAhead bounds the leaves that are read with another one.
const leavesAhead = 15

// following returns the places of leaves that are read with leaf i of n: those behind it,
// on the device too, where somebody comes from the one before it.
func (n *node) following(i int) []Entry {
	if n == nil || i == 0 || n.kids[i-1] == nil {
		return nil
	}
	end := i + 1
	for end < min(fanout, i+1+leavesAhead) && n.kids[end] == nil && n.entries[end].Slot == n.entries[end-1].Slot+1 {
		end++
	}
	return slices.Clone(n.entries[i+1 : end])
}

// adopt makes leaves the ones from entry i on, where they still are. It returns how many.
func (n *node) adopt(i int, leaves []*node) (adopted int) {
	for j, leaf := range leaves {
		if n.kids[i+j] == nil && n.entries[i+j] == leaf.stored {
			n.kids[i+j] = leaf
			adopted++
		}
	}
	return adopted
}

// entryAt is where the node of level on page's path is stored, if it is not loaded.
func (im *Image) entryAt(page uint64, level uint32) Entry {
	t := &im.table
	if page >= capacity(t.height) || level >= t.height {
		return Entry{}
	}
	n, e := t.root, t.stored
	for l := t.height - 1; n != nil && l > level; l-- {
		i := index(page, l)
		n, e = n.kids[i], n.entries[i]
	}
	if n != nil {
		return Entry{}
	}
	return e
}

// readNodes reads and verifies a node, and those of run behind it in adjacent slots, up to
// the first that is not right. mu is not held.
func (im *Image) readNodes(ctx context.Context, run []Entry, level uint32) ([]*node, error) {
	b := make([]byte, len(run)*PageSize)
	err := readTable(ctx, im.dev, im.id, run[0], b)
	if err != nil && len(run) > 1 { // one of the others may be gone
		run, b = run[:1], b[:PageSize]
		err = readTable(ctx, im.dev, im.id, run[0], b)
	}
	if err != nil {
		return nil, err
	}
	nodes := make([]*node, 0, len(run))
	for i, e := range run {
		n := newNode(level)
		n.stored, n.used = e, true
		if err = verifyEntries(im.id, e, &n.entries, b[i*PageSize:(i+1)*PageSize]); err != nil {
			break
		}
		nodes = append(nodes, n)
	}
	if len(nodes) == 0 {
		return nil, err
	}
	return nodes, nil
}

func readEntries(ctx context.Context, dev Device, id ID, e Entry, entries *[fanout]Entry) error {
	b := make([]byte, PageSize)
	if err := readTable(ctx, dev, id, e, b); err != nil {
		return err
	}
	return verifyEntries(id, e, entries, b)
}

// readTable fills b with the bytes of nodes from the one at e on.
func readTable(ctx context.Context, dev Device, id ID, e Entry, b []byte) error {
	if err := dev.Read(ctx, b, e.Slot.Offset()); err != nil {
		return fmt.Errorf("region %d: read table node: %w", id, err)
	}
	return nil
}

// verifyEntries decodes the bytes of the node at e.
func verifyEntries(id ID, e Entry, entries *[fanout]Entry, b []byte) error {
	if Checksum(b) != e.CRC || !decodeEntries(entries, b) {
		return &CorruptError{Region: id, Off: e.Slot.Offset(), Page: NoPage, What: "table node"}
	}
	return nil
}

// nextLeaf returns the first leaf that maps pages at or after page, and the first
// page it maps; nil if there is none. mu is held as in leaf.
func (im *Image) nextLeaf(ctx context.Context, page uint64) (uint64, *node, error) {
search:
	for page < capacity(im.table.height) && im.table.height > 0 {
		n := im.table.root
		for level := im.table.height - 1; n != nil && level > 0; level-- {
			i := index(page, level)
			if n.kids[i] == nil && n.entries[i].Slot == 0 {
				page = (page>>(level*fanoutBits) + 1) << (level * fanoutBits)
				continue search
			}
			n = n.kids[i]
		}
		leaf, err := im.leaf(ctx, page)
		if err != nil {
			return 0, nil, err
		}
		if leaf != nil {
			return page &^ (fanout - 1), leaf, nil
		}
		if im.table.root == nil && im.table.stored.Slot == 0 {
			break
		}
		// The path is loaded now, and ends in a hole that the loop above skips.
	}
	return 0, nil, nil
}

// own makes the node at place fit for a change: a frozen one is copied.
func own(place **node) *node {
	n := *place
	if n.frozen {
		c := *n
		if n.kids != nil {
			kids := *n.kids
			c.kids = &kids
		}
		c.frozen = false
		n = &c
		*place = n
	}
	n.dirty, n.used = true, true
	return n
}

// set maps page to e and returns what it was mapped to. The leaf is loaded, or
// does not exist. mu is held.
func (im *Image) set(page uint64, e Entry) Entry {
	t := &im.table
	if t.height == 0 {
		t.height = 1
		t.root, t.stored = newNode(0), Entry{}
		t.leaves++
	}
	for page >= capacity(t.height) {
		// Only the old root's first pages exist: it becomes entry 0.
		up := newNode(t.height)
		up.kids[0], up.entries[0] = t.root, t.stored
		up.dirty = true
		t.root, t.stored = up, Entry{}
		t.height++
	}
	n := own(&t.root)
	for level := t.height - 1; level > 0; level-- {
		i := index(page, level)
		if n.kids[i] == nil {
			n.kids[i] = newNode(level - 1)
			if level == 1 {
				t.leaves++
			}
		}
		n = own(&n.kids[i])
	}
	i := index(page, 0)
	old := n.entries[i]
	n.entries[i] = e
	if old.Slot != 0 {
		t.pages--
	}
	if e.Slot != 0 {
		t.pages++
	}
	return old
}

// drop unmaps all pages from page cut on. It adds their entries to replaced, and
// all nodes that only mapped them to im.dropped: recovery needs those until the
// next superblock. mu is held as in leaf; nobody else changes the table
// meanwhile: see settle.
func (im *Image) drop(ctx context.Context, cut uint64, replaced *[]Entry) error {
	t := &im.table
	for at := cut; ; {
		base, leaf, err := im.nextLeaf(ctx, at)
		if err != nil {
			return err
		}
		if leaf == nil {
			break
		}
		for p := max(base, cut); p < base+fanout; p++ {
			if e := leaf.entries[index(p, 0)]; e.Slot != 0 {
				t.pages--
				*replaced = append(*replaced, e)
			}
		}
		at = base + fanout
	}
	if t.height == 0 || cut >= capacity(t.height) {
		return nil
	}
	if _, err := im.leaf(ctx, cut); err != nil { // the leaf that stays in part
		return err
	}
	if t.root != nil {
		im.dropBelow(&t.root, t.height-1, 0, cut)
	}
	if cut == 0 {
		t.root, t.stored, t.height, t.leaves = nil, Entry{}, 0, 0
	}
	return nil
}

// dropBelow clears the subtree at place, whose first page is base, from cut on.
// Every inner node below was loaded by nextLeaf.
func (im *Image) dropBelow(place **node, level uint32, base, cut uint64) {
	if base >= cut && (*place).stored.Slot != 0 {
		im.dropped = append(im.dropped, (*place).stored)
	}
	n := own(place)
	for i := range fanout {
		span := uint64(1) << (level * fanoutBits)
		first := base + uint64(i)*span
		switch {
		case first+span <= cut:
		case level == 0:
			n.entries[i] = Entry{}
		case n.kids[i] != nil:
			im.dropBelow(&n.kids[i], level-1, first, cut)
			if first >= cut {
				n.kids[i], n.entries[i] = nil, Entry{}
				if level == 1 {
					im.table.leaves--
				}
			}
		case first >= cut && n.entries[i].Slot != 0:
			im.dropped = append(im.dropped, n.entries[i])
			n.entries[i] = Entry{}
		}
	}
}

// evict forgets clean leaves that were not used since the last time, but never
// keep, if too many are loaded.
func (im *Image) evict(keep *node) {
	t := &im.table
	if t.leaves <= max(t.limit, t.evictAt) || t.height < 2 {
		return
	}
	var below func(n *node, level uint32)
	below = func(n *node, level uint32) {
		for i, kid := range n.kids {
			switch {
			case kid == nil:
			case level > 1:
				below(kid, level-1)
			case kid.dirty || kid.frozen || kid == keep || t.leaves <= t.limit/2:
			case kid.used:
				kid.used = false
			default:
				n.entries[i], n.kids[i] = kid.stored, nil
				t.leaves--
			}
		}
	}
	below(t.root, t.height-1)
	t.evictAt = t.leaves + t.limit/4 // where all are dirty, do not look at each load
}
