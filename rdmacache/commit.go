package rdmacache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/region"
)

var _ epoch.Store = (*Cache)(nil)

// Seal ends the open epoch: what it holds, as far as scope reaches, can no longer
// change. It waits for writes under way.
func (c *Cache) Seal(_ context.Context, scope epoch.Scope) (id epoch.ID, dirty bool, err error) {
	if err := c.Err(); err != nil && (scope == epoch.All || c.image.Err() != nil) {
		return 0, false, err
	}
	c.gate.Lock()
	defer c.gate.Unlock()
	id = c.Committed()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dirtyLocked(scope) {
		return id, false, nil
	}
	if c.condemned != nil {
		return 0, false, c.condemned
	}
	s, err := c.sealLocked(id+1, scope)
	if err != nil {
		return 0, false, err
	}
	if c.capturing > 0 {
		for no, d := range s.pages { // copies from before still lose against them
			c.past.same[no] = sameAs{d.when, d.whole}
		}
	}
	return s.id, true, nil
}

// sealLocked moves the layers that scope reaches below the open epoch. gate is held
// exclusively, and mu.
func (c *Cache) sealLocked(id epoch.ID, scope epoch.Scope) (*sealed, error) {
	if c.sealed != nil {
		return nil, fmt.Errorf("region %d: epoch %d is sealed already", c.image.ID(), c.sealed.id)
	}
	s := &sealed{id: id, pages: c.written, size: c.size, cut: c.cut, mtime: c.mtime, past: newPast()}
	c.written = layer{}
	if scope == epoch.All {
		if len(s.pages) == 0 {
			s.pages = c.mapped
		} else {
			for no, d := range c.mapped {
				d.under = s.pages[no]
				s.pages[no] = d
			}
		}
		c.mapped = layer{}
	}
	c.sealed = s
	c.cut, c.shape = region.NoPage, false
	return s, nil
}

// Commit makes the sealed epoch durable: it pushes what still waits in frames,
// and appends the epoch's record. Without space the epoch is open again.
func (c *Cache) Commit(ctx context.Context, id epoch.ID) error {
	start := c.now()
	c.mu.Lock()
	s := c.sealed
	if s == nil || s.id != id {
		c.mu.Unlock()
		return fmt.Errorf("region %d: epoch %d is not sealed", c.image.ID(), id)
	}
	s.frozen = false // no page joins it any more
	c.mu.Unlock()
	frames, err := c.pushSealed(ctx, s)
	if err == nil {
		change := region.Change{Size: uint64(s.size), Mtime: s.mtime, Cut: s.cut, Pages: make([]region.PageChange, 0, len(s.pages))}
		for no, d := range s.pages {
			p := region.PageChange{Page: no}
			if !d.hole {
				p.Slot, p.CRC = d.slot, d.crc
			}
			change.Pages = append(change.Pages, p)
		}
		slices.SortFunc(change.Pages, func(a, b region.PageChange) int { return cmp.Compare(a.Page, b.Page) })
		_, err = c.image.Commit(ctx, change)
	}
	if err != nil {
		if !errors.Is(err, epoch.ErrPoisoned) {
			c.unseal(s)
		}
		return err
	}
	var freed []region.Slot
	c.mu.Lock()
	for _, d := range s.pages {
		if d.under != nil {
			freed = append(freed, c.drop(d.under))
		}
	}
	c.frames -= frames
	c.sealed = nil
	c.stats.Epochs++
	c.stats.PagesCommitted += uint64(len(s.pages))
	c.stats.LastCommit = c.now().Sub(start).Round(time.Microsecond)
	c.mu.Unlock()
	c.image.Release(freed...)
	return nil
}

// pushSealed pushes the frames of a sealed epoch and returns their number. The
// frames stay until the commit, in case the epoch is opened again.
func (c *Cache) pushSealed(ctx context.Context, s *sealed) (int, error) {
	var out []framed
	need := uint64(0)
	for no, d := range s.pages {
		if d.frame != nil {
			out = append(out, framed{no, d})
			if d.slot == 0 {
				need++
			}
		}
	}
	if need > 0 {
		runs, err := c.image.Alloc(ctx, need)
		if err != nil {
			return 0, err
		}
		var pages []*dirty
		for _, f := range out {
			if f.d.slot == 0 {
				pages = append(pages, f.d)
			}
		}
		c.mu.Lock()
		assign(pages, runs)
		c.mu.Unlock()
	}
	return len(out), c.push(ctx, out)
}

// unseal puts a sealed epoch back under what the open epoch gathered meanwhile.
func (c *Cache) unseal(s *sealed) {
	c.gate.Lock()
	defer c.gate.Unlock()
	var freed []region.Slot
	c.mu.Lock()
	put := func(no uint64, d *dirty) {
		into := c.layerOf(d.source)
		if into[no] != nil || no >= c.cut || d.source == FromMapping && c.written[no] != nil {
			freed = append(freed, c.drop(d))
			return
		}
		into[no] = d
	}
	for no, d := range s.pages {
		under := d.under
		d.under = nil
		put(no, d)
		if under != nil {
			put(no, under)
		}
	}
	c.cut = min(c.cut, s.cut)
	c.past.join(s.past)
	c.shape = c.shape || s.size != int64(c.image.State().Size) || s.cut != region.NoPage
	c.sealed = nil
	c.mu.Unlock()
	c.image.Release(freed...)
}
