package rdmacache

import (
	"bytes"
	"context"
	"errors"

	"github.com/rpmemfs/rpmemfs/region"
)

var (
	zeroPage [PageSize]byte
	zeroCRC  = region.Checksum(zeroPage[:])
)

// maxBatch is how many whole pages are written at once.
const maxBatch = 256

// WriteAt takes bytes into the open epoch. Bytes from a write may grow the file;
// bytes from a mapping end at its size. Nothing is durable before a commit.
//
// On an error n bytes were taken. ErrNoSpace from a write changes nothing more;
// bytes from a mapping are kept in memory where the pool is full, as long as the
// bound allows, and the commit says ErrNoSpace. If they cannot be kept, ErrNoSpace
// too: the caller tries again, or calls Doom. After another error of theirs the open
// epoch can no longer commit: it is to be discarded.
func (c *Cache) WriteAt(ctx context.Context, p []byte, off int64, src Source) (n int, err error) {
	return c.writeAt(ctx, p, off, writer{src, src == FromMapping})
}

// TryWriteAt is WriteAt, but keeps nothing in memory that finds no space: ErrNoSpace,
// from a mapping too. The caller tries again, or calls WriteAt, with the rest.
func (c *Cache) TryWriteAt(ctx context.Context, p []byte, off int64, src Source) (n int, err error) {
	return c.writeAt(ctx, p, off, writer{src, false})
}

// A writer is where bytes come from, and what becomes of those that find no space.
type writer struct {
	Source
	keeps bool // in memory
}

func (c *Cache) writeAt(ctx context.Context, p []byte, off int64, w writer) (n int, err error) {
	if off < 0 || off+int64(len(p)) > region.MaxSize {
		return 0, ErrTooLarge
	}
	c.gate.RLock()
	defer c.gate.RUnlock()
	c.mu.Lock()
	c.stats.BytesWritten += uint64(len(p))
	if w.Source == FromMapping {
		ctx = context.WithoutCancel(ctx) // the kernel does not send a page twice
		taken := len(p)
		p = p[:max(0, min(int64(len(p)), c.size-off))]
		if c.discarding {
			c.stats.Discarded += uint64(len(p)+PageSize-1) / PageSize
			c.mu.Unlock()
			return taken, nil
		}
		c.mu.Unlock()
		err := c.writeLocked(ctx, p, off, w, &n)
		if err == nil && c.touch(0) {
			err = c.spill(ctx)
		}
		if err != nil {
			if !errors.Is(err, region.ErrNoSpace) {
				c.Doom(err)
			}
			return n, err
		}
		return taken, nil
	}
	c.mu.Unlock()
	err = c.writeLocked(ctx, p, off, w, &n)
	if n > 0 && c.touch(off+int64(n)) && err == nil {
		err = c.spill(ctx)
	}
	return n, err
}

// ErrTooLarge reports a size past region.MaxSize.
var ErrTooLarge = errors.New("rdmacache: larger than a file can be")

// touch notes that content changed up to end. It says whether too many frames are
// held.
func (c *Cache) touch(end int64) (full bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mtime = c.now().UnixNano()
	if end > c.size {
		c.size, c.shape = end, true
	}
	return c.frames > c.limit
}

// writeLocked writes p under the stripes of its range. gate is held shared, or
// exclusively.
func (c *Cache) writeLocked(ctx context.Context, p []byte, off int64, w writer, n *int) error {
	unlock := c.lockStripes(off, int64(len(p)))
	defer unlock()
	for *n < len(p) {
		at := off + int64(*n)
		rest := p[*n:]
		if at%PageSize == 0 && len(rest) >= PageSize {
			rest = rest[:min(maxBatch, len(rest)/PageSize)*PageSize]
			if err := c.writePages(ctx, rest, uint64(at/PageSize), w); err != nil {
				return err
			}
			*n += len(rest)
			continue
		}
		rest = rest[:min(int64(len(rest)), PageSize-at%PageSize)]
		if err := c.writePart(ctx, rest, at, w); err != nil {
			return err
		}
		*n += len(rest)
	}
	return nil
}

func (c *Cache) lockStripes(off, n int64) (unlock func()) {
	const shift = 20
	first, last := off>>shift, (off+max(n, 1)-1)>>shift
	var need [len(c.stripes)]bool
	for i := first; i <= last && i < first+int64(len(need)); i++ {
		need[i%int64(len(need))] = true
	}
	for i := range need {
		if need[i] {
			c.stripes[i].Lock()
		}
	}
	return func() {
		for i := range need {
			if need[i] {
				c.stripes[i].Unlock()
			}
		}
	}
}

// layerOf returns the layer that src writes to. mu is held.
func (c *Cache) layerOf(src Source) layer {
	if src == FromMapping {
		return c.mapped
	}
	return c.written
}

// below returns the view under the layer that src writes to.
func below(src Source) view {
	if src == FromMapping {
		return viewWritten
	}
	return viewSealed
}

// writePages writes whole pages from page on: those that changed go to free slots.
func (c *Cache) writePages(ctx context.Context, p []byte, page uint64, w writer) error {
	src := w.Source
	n := len(p) / PageSize
	pages := make([]*dirty, n)
	need := uint64(0)
	when := Monotonic()
	for i := range pages {
		b := p[i*PageSize : (i+1)*PageSize]
		d := &dirty{crc: region.Checksum(b), source: src, when: when, whole: src == FromMapping}
		d.hole = d.crc == zeroCRC && bytes.Equal(b, zeroPage[:])
		same, err := c.unchanged(ctx, page+uint64(i), below(src), d, b)
		if err != nil {
			return err
		}
		if same {
			continue
		}
		pages[i] = d
		if !d.hole {
			need++
		}
	}
	runs, err := c.image.Alloc(ctx, need)
	switch {
	case errors.Is(err, region.ErrNoSpace) && w.keeps:
		err = c.keepFrames(p, pages)
	case err == nil:
		assign(pages, runs)
		if err = c.pushPages(ctx, p, pages); err != nil {
			for _, d := range pages {
				if d != nil {
					c.image.Release(d.slot)
				}
			}
		}
	}
	if err != nil {
		return err
	}
	c.install(page, pages, src, when)
	return nil
}

// unchanged says whether b is what v, the view below its layer, already shows. What
// a frozen epoch will show is not known yet.
func (c *Cache) unchanged(ctx context.Context, page uint64, v view, d *dirty, b []byte) (bool, error) {
	if v > viewBelow && c.frozen() {
		return false, nil
	}
	at, err := c.find(ctx, page, v)
	switch {
	case err != nil:
		return false, err
	case at.frame != nil:
		return bytes.Equal(at.frame, b), nil
	case at.entry.Slot == 0:
		return d.hole, nil
	case d.hole || at.entry.CRC != d.crc:
		return false, nil
	}
	// The checksums agree. Only the bytes can tell that nothing changed.
	old := make([]byte, PageSize)
	if err := c.readPage(ctx, page, v, old); err != nil {
		if errors.Is(err, region.ErrCorrupt) {
			return false, nil // damaged: the new bytes mend it
		}
		return false, err
	}
	return bytes.Equal(old, b), nil
}

// assign gives each page that needs one a slot of runs.
func assign(pages []*dirty, runs []region.Run) {
	used := uint64(0) // of runs[0]
	for _, d := range pages {
		if d == nil || d.hole {
			continue
		}
		d.slot = runs[0].Start + region.Slot(used)
		if used++; used == runs[0].N {
			runs, used = runs[1:], 0
		}
	}
}

// pushPages writes the bytes of pages to their slots, adjacent ones by one write.
func (c *Cache) pushPages(ctx context.Context, p []byte, pages []*dirty) error {
	start, count := 0, 0 // adjacent pages in adjacent slots, not written yet
	send := func() error {
		if count == 0 {
			return nil
		}
		b := p[start*PageSize : (start+count)*PageSize]
		return c.conn.Write(ctx, b, pages[start].slot.Offset())
	}
	for i, d := range pages {
		if d == nil || d.hole {
			continue
		}
		if count > 0 && i == start+count && d.slot == pages[start].slot+region.Slot(count) {
			count++
			continue
		}
		if err := send(); err != nil {
			return err
		}
		start, count = i, 1
	}
	return send()
}

// keepFrames keeps pages in memory that no slot was left for.
func (c *Cache) keepFrames(p []byte, pages []*dirty) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	need := 0
	for _, d := range pages {
		if d != nil && !d.hole {
			need++
		}
	}
	if c.frames+need > c.limit {
		return region.ErrNoSpace
	}
	for i, d := range pages {
		if d != nil && !d.hole {
			d.frame = append([]byte(nil), p[i*PageSize:(i+1)*PageSize]...)
			c.frames++
		}
	}
	return nil
}

// install puts whole pages as of when into src's layer; nil ones equal what lies
// below.
func (c *Cache) install(page uint64, pages []*dirty, src Source, when int64) {
	var freed []region.Slot
	c.mu.Lock()
	into := c.layerOf(src)
	for i, d := range pages {
		no := page + uint64(i)
		if old := into[no]; old != nil && !old.pushing {
			freed = append(freed, c.drop(old))
		}
		if hidden := c.mapped[no]; src == FromWrite && hidden != nil {
			// The write covers all that mappings stored there.
			if !hidden.pushing {
				freed = append(freed, c.drop(hidden))
			}
			delete(c.mapped, no)
		}
		if d == nil {
			delete(into, no)
			c.stats.PagesUnchanged++
			if c.capturing > 0 {
				c.past.same[no] = sameAs{when, src == FromMapping}
			}
			continue
		}
		into[no] = d
	}
	c.mu.Unlock()
	c.image.Release(freed...)
}

// writePart writes a part of one page. A write also changes what mappings stored
// in the rest of the page.
func (c *Cache) writePart(ctx context.Context, p []byte, off int64, w writer) error {
	page := uint64(off / PageSize)
	f := func(b []byte) { copy(b[off%PageSize:], p) }
	c.mu.Lock()
	hidden := c.mapped[page] != nil
	inPlace := c.mapped[page].inFrame() && c.written[page].inFrame()
	c.mu.Unlock()
	if w.Source == FromMapping || !hidden {
		// The kernel writes a part of a page back only where the file ends in it.
		return c.change(ctx, page, w, w.Source == FromMapping, nil, f)
	}
	// Both copies change, or none for lack of space.
	slots := [2]region.Slot{}
	if !inPlace {
		runs, err := c.image.Alloc(ctx, 2)
		if err != nil {
			return err
		}
		slots = [2]region.Slot{runs[0].Start, runs[len(runs)-1].End() - 1}
	}
	err := c.change(ctx, page, writer{FromMapping, true}, false, &slots[0], f)
	if err == nil {
		err = c.change(ctx, page, writer{FromWrite, false}, false, &slots[1], f)
	}
	c.image.Release(slots[:]...)
	return err
}

// change applies f to the bytes of a page in w's layer, in a frame; whole is as
// in dirty. If it needs a slot it takes slot, if not nil, and sets it to 0. The
// page's stripe is held, or gate exclusively.
func (c *Cache) change(ctx context.Context, page uint64, w writer, whole bool, slot *region.Slot, f func([]byte)) error {
	src := w.Source
	when := Monotonic()
	c.mu.Lock()
	if d := c.layerOf(src)[page]; d.inFrame() {
		f(d.frame)
		d.when, d.whole = when, whole
		c.mu.Unlock()
		return nil
	}
	c.mu.Unlock()

	b := make([]byte, PageSize)
	v := viewWritten
	if src == FromMapping {
		v = viewNewest
	}
	if err := c.readPage(ctx, page, v, b); err != nil {
		return err
	}
	f(b)
	d := &dirty{frame: b, source: src, when: when, whole: whole}
	if slot != nil {
		d.slot, *slot = *slot, 0
	} else {
		runs, err := c.image.Alloc(ctx, 1)
		switch {
		case err == nil:
			d.slot = runs[0].Start
		case !errors.Is(err, region.ErrNoSpace) || !w.keeps:
			return err
		}
	}
	c.mu.Lock()
	if d.slot == 0 && c.frames >= c.limit {
		c.mu.Unlock()
		return region.ErrNoSpace
	}
	c.frames++
	into := c.layerOf(src)
	var freed region.Slot
	if old := into[page]; old != nil && !old.pushing {
		freed = c.drop(old)
	}
	into[page] = d
	c.mu.Unlock()
	c.image.Release(freed)
	return nil
}
