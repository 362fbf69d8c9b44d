package rdmacache

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/region"
)

// A program that finds the pages it stored to by itself hands them in with
// Capture. The kernel still has the same pages dirty and writes them back some
// time, so two copies of a page reach the cache on two ways, in any order. Each
// carries the time at which its copying began, and the newer one stays: a page
// under write-back does not change until the WRITE is answered, and a page that
// was stored to after it was captured is captured again.
//
// Where that rule could lose stores, the barrier gets them otherwise: pages that
// write(2) changed are copied once more (Rewritten), and after a truncation
// or a full pool the kernel is made to write back all it has (Lossy).

// A past is what makes copies stale that no layer tells of any more.
type past struct {
	same  map[uint64]sameAs // pages that equal what lies below, or moved below
	cut   uint64            // pages from here on were cut off
	cutAt int64             // when
}

// sameAs is what dirty would tell of a page.
type sameAs struct {
	when  int64
	whole bool
}

func newPast() past { return past{same: make(map[uint64]sameAs), cut: region.NoPage} }

// join adds what an epoch that is opened again was told.
func (p *past) join(q past) {
	for no, s := range q.same {
		if s.when > p.same[no].when {
			p.same[no] = s
		}
	}
	p.cut, p.cutAt = min(p.cut, q.cut), max(p.cutAt, q.cutAt)
}

// Monotonic returns CLOCK_MONOTONIC in ns: the clock of all copies of pages on
// this machine.
func Monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("clock_gettime: " + err.Error()) // the clock always exists
	}
	return ts.Nano()
}

// Capturing says that one more program, or one less, is going to call Capture. When
// the first one comes the cache is lossy: the kernel may have stores from before.
func (c *Cache) Capturing(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if on {
		c.lossy = c.lossy || c.capturing == 0
		c.capturing++
	} else {
		c.capturing--
	}
}

// Freeze seals the whole open epoch at a barrier. Until Post or Thaw captured
// pages still join it. EAGAIN if the cache became lossy since Lossy was asked.
func (c *Cache) Freeze(context.Context) (epoch.ID, error) {
	if err := c.Err(); err != nil {
		return 0, err
	}
	c.gate.Lock()
	defer c.gate.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lossy {
		return 0, fmt.Errorf("region %d: copies of pages were dropped just now: %w", c.image.ID(), unix.EAGAIN)
	}
	s, err := c.sealLocked(c.last()+1, epoch.All)
	if err != nil {
		return 0, err
	}
	s.frozen = true
	s.past, c.past = c.past, newPast() // copies from before the barrier join it
	c.drains = false
	return s.id, nil
}

// Thaw puts a frozen epoch back under what the open one gathered meanwhile.
func (c *Cache) Thaw(_ context.Context, id epoch.ID) {
	c.mu.Lock()
	s := c.newest()
	c.mu.Unlock()
	if s != nil && s.id == id {
		c.unseal(s)
	}
}

// Rewritten returns the pages that write(2) changed in the open epoch. A copy from
// before may wait in a ring: it loses, and stores with it. So they are to be copied
// once more at the barrier.
func (c *Cache) Rewritten() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var pages []uint64
	for no := range c.written {
		pages = append(pages, no)
	}
	for no, s := range c.past.same {
		if !s.whole {
			pages = append(pages, no)
		}
	}
	slices.Sort(pages)
	return slices.Compact(pages)
}

// Lossy reports whether copies from before now may be dropped that the epoch needs:
// the kernel must write back what it has before Freeze.
func (c *Cache) Lossy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drains = c.drains || c.lossy
	c.lossy = false
	return c.drains
}

// Capture takes a copy of a whole page, PageSize bytes, that a program stored to
// through a mapping. when is Monotonic as copying began. The copy belongs to the
// frozen epoch, or else to the open one. A page past the end of the file is
// ignored, and so are bytes past the end in the last page.
//
// After an error the copy was dropped, and the cache is lossy.
func (c *Cache) Capture(ctx context.Context, frozen bool, page uint64, when int64, p []byte) error {
	if len(p) != PageSize {
		return fmt.Errorf("region %d: capture %d bytes", c.image.ID(), len(p))
	}
	if page >= region.MaxSize/PageSize {
		return nil
	}
	c.gate.RLock()
	defer c.gate.RUnlock()
	unlock := c.lockStripes(int64(page)*PageSize, PageSize)
	defer unlock()

	c.mu.Lock()
	size := c.size
	if frozen {
		s := c.newest()
		if s == nil || !s.frozen {
			c.mu.Unlock()
			return fmt.Errorf("region %d: capture page %d: no frozen epoch", c.image.ID(), page)
		}
		size = s.size
	}
	stale := c.stale(frozen, page, when)
	c.mu.Unlock()
	rest := size - int64(page)*PageSize
	if stale || rest <= 0 {
		return nil
	}
	if rest < PageSize {
		p = append(slices.Clone(p[:rest]), zeroPage[rest:]...)
	}
	err := c.capturePage(ctx, frozen, page, when, p)
	if err != nil {
		c.mu.Lock()
		c.lossy = true
		c.mu.Unlock()
	}
	return err
}

// stale reports whether something newer is known of page than a copy from when.
// mu is held.
func (c *Cache) stale(frozen bool, page uint64, when int64) bool {
	past, over := &c.past, []layer{c.mapped, c.written}
	if frozen {
		s := c.newest()
		past, over = &s.past, []layer{s.pages}
	}
	if c.discarding || when <= c.discarded || page >= past.cut && when <= past.cutAt {
		return true
	}
	newest := past.same[page]
	for _, l := range over {
		if d := l[page]; d != nil && d.when > newest.when {
			newest = sameAs{d.when, d.whole}
		}
	}
	return newest.when >= when
}

// capturePage puts a copy into its layer. The stripe is held, and gate shared.
func (c *Cache) capturePage(ctx context.Context, frozen bool, page uint64, when int64, p []byte) error {
	d := &dirty{crc: region.Checksum(p), source: FromMapping, when: when, whole: true}
	d.hole = d.crc == zeroCRC && slices.Equal(p, zeroPage[:])
	v := viewWritten
	if frozen {
		v = viewBelow
	}
	if frozen {
		d.under = c.underSealed(page)
	}
	same, err := c.unchanged(ctx, page, v, d, p)
	if err != nil {
		return err
	}
	same = same && d.under == nil
	if !same && !d.hole {
		runs, err := c.image.Alloc(ctx, 1)
		if err != nil {
			return err
		}
		d.slot = runs[0].Start
		if err := c.conn.Write(ctx, p, d.slot.Offset()); err != nil {
			c.image.Release(d.slot)
			return err
		}
	}
	var freed []region.Slot
	c.mu.Lock()
	into, past := c.mapped, &c.past
	if frozen {
		into, past = c.newest().pages, &c.newest().past
	}
	if old := into[page]; old != nil && old != d.under && !old.pushing {
		freed = append(freed, c.drop(old))
	}
	if same {
		delete(into, page)
		c.stats.PagesUnchanged++
		past.same[page] = sameAs{when, true}
	} else {
		into[page] = d
	}
	c.mtime = c.now().UnixNano()
	if frozen {
		c.newest().mtime = c.mtime
	}
	c.mu.Unlock()
	c.image.Release(freed...)
	return nil
}

// underSealed returns what write(2) changed of a page in the frozen epoch, or nil.
func (c *Cache) underSealed(page uint64) *dirty {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.newest().pages[page]
	if d != nil && d.source == FromMapping {
		d = d.under
	}
	return d
}
