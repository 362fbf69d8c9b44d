package region

import (
	"context"
	"fmt"
)

// A Report counts what Check looked at.
type Report struct {
	Pages    uint64 // of the live table and of checkpoints, shared ones once
	Problems uint64
}

// Check reads everything the region reaches and reports every inconsistency: node
// and page checksums, slots used twice or outside the region, page counts, and
// the slot map in memory. Commits wait. progress gets the number of pages read so
// far; it may be nil. The error says that Check could not go on, not what it
// found.
func (im *Image) Check(ctx context.Context, problem func(error), progress func(pages uint64)) (Report, error) {
	im.cutMu.Lock()
	defer im.cutMu.Unlock()
	im.commitMu.Lock()
	defer im.commitMu.Unlock()
	_ = im.drain(ctx) // a region that is poisoned is checked too
	im.mu.Lock()
	root, stored, height, pages := im.table.root, im.table.stored, im.table.height, im.table.pages
	cps := append([]Checkpoint(nil), im.checkpoints...)
	im.mu.Unlock()
	if root != nil {
		stored = root.stored
	}
	c := &checker{im: im, problem: problem, progress: progress, read: make(map[Slot]uint64)}
	if err := c.tree(ctx, "table", root, stored, height, pages); err != nil {
		return c.report, err
	}
	for _, cp := range cps {
		e := Entry{Slot: cp.Tree.Root, CRC: cp.Tree.CRC}
		if err := c.tree(ctx, fmt.Sprintf("checkpoint %q", cp.Name), nil, e, cp.Tree.Height, cp.Pages); err != nil {
			return c.report, err
		}
	}
	return c.report, nil
}

// A checker walks the trees of one region while its table stands still.
type checker struct {
	im       *Image
	problem  func(error)
	progress func(uint64)
	report   Report
	read     map[Slot]uint64 // page numbers of the slots verified so far

	// Of the tree being walked:
	what  string
	seen  map[Slot]struct{}
	pages uint64
}

func (c *checker) say(format string, args ...any) {
	c.report.Problems++
	c.problem(fmt.Errorf("region %d: "+c.what+": "+format, append([]any{c.im.id}, args...)...))
}

func (c *checker) tree(ctx context.Context, what string, root *node, stored Entry, height uint32, pages uint64) error {
	c.what, c.seen, c.pages = what, make(map[Slot]struct{}), 0
	if height > 0 {
		if err := c.node(ctx, root, stored, height-1, 0); err != nil {
			return err
		}
	}
	if c.pages != pages {
		c.say("%d pages found, %d were counted", c.pages, pages)
	}
	return nil
}

// node checks the node stored at e, and all below it. n is the node in memory, nil
// if it is to be read. base is the first page it maps.
func (c *checker) node(ctx context.Context, n *node, e Entry, level uint32, base uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if e.Slot != 0 && !c.slot(e.Slot, "a table node") {
		return nil // below it is what was checked already, perhaps for ever
	}
	var entries [fanout]Entry
	var kids [fanout]*node
	switch {
	case n != nil:
		c.im.mu.Lock()
		for i := range entries {
			entries[i] = n.entry(i)
		}
		if n.kids != nil {
			kids = *n.kids
		}
		c.im.mu.Unlock()
	case e.Slot == 0:
		return nil
	default:
		if err := readEntries(ctx, c.im.dev, c.im.id, e, &entries); err != nil {
			c.say("%w", err)
			return nil
		}
	}
	for i, kid := range entries {
		first := base + uint64(i)<<(level*fanoutBits)
		switch {
		case level > 0:
			if err := c.node(ctx, kids[i], kid, level-1, first); err != nil {
				return err
			}
		case kid.Slot != 0:
			c.page(ctx, first, kid)
		}
	}
	return nil
}

// slot checks that s is the region's, in use, and met once in this tree. It
// returns false if it was met before.
func (c *checker) slot(s Slot, as string) bool {
	if _, dup := c.seen[s]; dup {
		c.say("slot %d is used twice, once as %s", s, as)
		return false
	}
	c.seen[s] = struct{}{}
	c.im.mu.Lock()
	x, b := c.im.slots.find(s)
	free := x != nil && x.used[b/64]>>(b%64)&1 == 0
	c.im.mu.Unlock()
	switch {
	case x == nil && c.im.family == nil:
		c.say("slot %d, %s, was not granted to the region", s, as)
	case free:
		c.say("slot %d, %s, is held to be free", s, as)
	}
	return true
}

func (c *checker) page(ctx context.Context, page uint64, e Entry) {
	c.pages++
	c.slot(e.Slot, fmt.Sprintf("page %d", page))
	if p, ok := c.read[e.Slot]; ok {
		if p != page {
			c.say("slot %d is page %d here and page %d in another tree", e.Slot, page, p)
		}
		return
	}
	c.read[e.Slot] = page
	c.report.Pages++
	if c.progress != nil && c.report.Pages%1024 == 0 {
		c.progress(c.report.Pages)
	}
	err := ReadPage(ctx, c.im.dev, c.im.id, page, e, make([]byte, PageSize))
	if err != nil {
		c.say("%w", err)
	}
}

// ReadPage reads the page that e places into p, and verifies it. A CorruptError
// may also mean that the slot was used again since e was looked up: look again.
func ReadPage(ctx context.Context, dev Device, id ID, page uint64, e Entry, p []byte) error {
	if err := dev.Read(ctx, p, e.Slot.Offset()); err != nil {
		return fmt.Errorf("region %d: read page %d: %w", id, page, err)
	}
	if Checksum(p) != e.CRC {
		return &CorruptError{Region: id, Off: e.Slot.Offset(), Page: page, What: "checksum"}
	}
	return nil
}
