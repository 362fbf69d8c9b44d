package rdmacache

import (
	"context"
	"fmt"
	"slices"

	"github.com/rpmemfs/rpmemfs/region"
)

// Truncate sets the file's size. What a file loses reads as zeros if it grows
// again.
func (c *Cache) Truncate(ctx context.Context, size int64) error {
	if size < 0 || size > region.MaxSize {
		return ErrTooLarge
	}
	c.gate.Lock()
	defer c.gate.Unlock()
	old := c.Size()
	if size < old && size%PageSize != 0 {
		if err := c.zero(ctx, size, min(old, size-size%PageSize+PageSize)-size); err != nil {
			return err
		}
	}
	var freed []region.Slot
	c.mu.Lock()
	if size < old {
		end := uint64(size+PageSize-1) / PageSize
		c.cut = min(c.cut, end)
		c.past.cut, c.past.cutAt, c.lossy = min(c.past.cut, end), Monotonic(), true
		for _, l := range []layer{c.written, c.mapped} {
			for no, d := range l {
				if no >= end {
					freed = append(freed, c.drop(d))
					delete(l, no)
				}
			}
		}
	}
	if size != old {
		c.size, c.shape = size, true
	}
	c.mtime = c.now().UnixNano()
	c.mu.Unlock()
	c.image.Release(freed...)
	return nil
}

// zero writes zeros over a part of one page, if the page exists. gate is held
// exclusively.
func (c *Cache) zero(ctx context.Context, off, n int64) error {
	page := uint64(off / PageSize)
	for _, src := range []Source{FromMapping, FromWrite} {
		v := viewWritten
		if src == FromMapping {
			c.mu.Lock()
			hidden := c.mapped[page] != nil
			c.mu.Unlock()
			if !hidden {
				continue
			}
			v = viewNewest
		}
		at, err := c.find(ctx, page, v)
		if err != nil {
			return err
		}
		if at.frame == nil && at.entry.Slot == 0 {
			continue
		}
		if err := c.change(ctx, page, writer{src, src == FromMapping}, false, nil, func(b []byte) { clear(b[off%PageSize : off%PageSize+n]) }); err != nil {
			return err
		}
	}
	return nil
}

// PunchHole makes n bytes from off zero and frees their slots. The size stays.
func (c *Cache) PunchHole(ctx context.Context, off, n int64) error {
	c.gate.Lock()
	defer c.gate.Unlock()
	size := c.Size()
	if off < 0 || n < 0 || off >= size {
		return nil
	}
	end := min(off+n, size)
	first, last := uint64(off+PageSize-1)/PageSize, uint64(end)/PageSize
	if end == size {
		last = uint64(end+PageSize-1) / PageSize // the rest of the last page is zero already
	}
	if first > last || first*PageSize > uint64(end) { // within one page
		first, last = 0, 0
		if err := c.zero(ctx, off, end-off); err != nil {
			return err
		}
	} else {
		if off%PageSize != 0 {
			if err := c.zero(ctx, off, int64(first)*PageSize-off); err != nil {
				return err
			}
		}
		if tail := end - int64(last)*PageSize; tail > 0 {
			if err := c.zero(ctx, int64(last)*PageSize, tail); err != nil {
				return err
			}
		}
	}
	if err := c.punchPages(ctx, first, last); err != nil {
		return err
	}
	c.touch(0)
	return nil
}

// punchPages makes the pages from first up to last holes. gate is held exclusively.
func (c *Cache) punchPages(ctx context.Context, first, last uint64) error {
	kept := c.keptFrom(first)
	for page := first; ; page++ {
		var err error
		if page, err = kept.next(ctx, page); err != nil || page >= last {
			return err
		}
		if err := c.punchPage(ctx, page); err != nil {
			return err
		}
	}
}

// kept walks over the pages that some layer or the committed image keeps. A layer
// above may hide them.
type kept struct {
	image    *region.Image
	overlaid []uint64 // kept by layers, ascending
}

// keptFrom begins at page.
func (c *Cache) keptFrom(page uint64) *kept {
	k := &kept{image: c.image}
	c.mu.Lock()
	defer c.mu.Unlock()
	layers := []layer{c.written, c.mapped}
	for _, s := range c.sealed {
		layers = append(layers, s.pages)
	}
	for _, l := range layers {
		for no, d := range l {
			if no >= page && !d.hole {
				k.overlaid = append(k.overlaid, no)
			}
		}
	}
	slices.Sort(k.overlaid)
	return k
}

// next returns the first page at or after page, or NoPage. It only goes forward.
func (k *kept) next(ctx context.Context, page uint64) (uint64, error) {
	no, err := k.image.Next(ctx, page)
	if err != nil {
		return 0, fmt.Errorf("look for data: %w", err)
	}
	for len(k.overlaid) > 0 && k.overlaid[0] < page {
		k.overlaid = k.overlaid[1:]
	}
	if len(k.overlaid) > 0 {
		no = min(no, k.overlaid[0])
	}
	return no, nil
}

// punchPage makes one page a hole, in all layers of the open epoch.
func (c *Cache) punchPage(ctx context.Context, page uint64) error {
	when := Monotonic()
	d := &dirty{hole: true, crc: zeroCRC, source: FromWrite, when: when}
	same, err := c.unchanged(ctx, page, viewSealed, d, zeroPage[:])
	if err != nil {
		return err
	}
	if same {
		d = nil
	}
	c.install(page, []*dirty{d}, FromWrite, when)
	return nil
}

// Reserve sees to it that the pool has room for n bytes from off, or returns
// region.ErrNoSpace.
func (c *Cache) Reserve(ctx context.Context, off, n int64) error {
	if off < 0 || n < 0 || off+n > region.MaxSize {
		return ErrTooLarge
	}
	runs, err := c.image.Alloc(ctx, uint64(n+PageSize-1)/PageSize)
	for _, r := range runs {
		for s := r.Start; s < r.End(); s++ {
			c.image.Release(s)
		}
	}
	return err
}

// Seek returns the first byte at or after off that is data, or that is in a hole;
// the end of the file is a hole. ErrNoData if there is none before the end.
func (c *Cache) Seek(ctx context.Context, off int64, hole bool) (int64, error) {
	size := c.Size()
	if off < 0 || off >= size {
		return 0, ErrNoData
	}
	page := uint64(off / PageSize)
	if !hole {
		page, err := c.next(ctx, page)
		if err != nil {
			return 0, err
		}
		if page == region.NoPage || int64(page)*PageSize >= size {
			return 0, ErrNoData
		}
		return max(off, int64(page)*PageSize), nil
	}
	for ; int64(page)*PageSize < size; page++ {
		at, err := c.find(ctx, page, viewNewest)
		if err != nil {
			return 0, err
		}
		if at.frame == nil && at.entry.Slot == 0 {
			break
		}
	}
	return min(size, max(off, int64(page)*PageSize)), nil
}

// next returns the first page at or after page that is not a hole, or NoPage.
func (c *Cache) next(ctx context.Context, page uint64) (uint64, error) {
	var k *kept
	for {
		at, err := c.find(ctx, page, viewNewest)
		if err != nil || at.frame != nil || at.entry.Slot != 0 {
			return page, err
		}
		if k == nil { // most often the page itself is data
			k = c.keptFrom(page)
		} else {
			page++
		}
		if page, err = k.next(ctx, page); err != nil || page == region.NoPage {
			return page, err
		}
	}
}
