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
	c.mu.Lock()
	defer c.mu.Unlock()
	id = c.last()
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

// last returns the last epoch that was sealed. mu is held.
func (c *Cache) last() epoch.ID {
	if s := c.newest(); s != nil {
		return s.id
	}
	return c.Committed()
}

// sealLocked moves the layers that scope reaches below the open epoch. gate is held
// exclusively, and mu. While an epoch that failed is not open again nothing is sealed
// on top of it.
func (c *Cache) sealLocked(id epoch.ID, scope epoch.Scope) (*sealed, error) {
	for _, s := range c.sealed {
		if s.failed != nil {
			return nil, s.failed
		}
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
	c.sealed = append(c.sealed, s)
	c.cut, c.shape = region.NoPage, false
	return s, nil
}

// Post pushes what of the sealed epoch still waits in frames, and appends the epoch's
// record. Without space, also if an epoch in flight before it finds none, the epoch is
// open again.
func (c *Cache) Post(ctx context.Context, id epoch.ID, landed func()) (wait func(context.Context) error, err error) {
	c.mu.Lock()
	s := c.newest()
	if s == nil || s.id != id {
		c.mu.Unlock()
		return nil, fmt.Errorf("region %d: epoch %d is not sealed", c.image.ID(), id)
	}
	s.frozen = false // no page joins it any more
	s.began = c.now()
	c.mu.Unlock()
	err = c.pushSealed(ctx, s)
	if errors.Is(err, region.ErrNoSpace) {
		landed() // slots that epochs in flight replace are free then
		err = c.pushSealed(ctx, s)
	}
	if err != nil {
		return nil, c.fail(s, err)
	}
	change := region.Change{
		Epoch: s.id, Size: uint64(s.size), Mtime: s.mtime, Cut: s.cut,
		Pages: make([]region.PageChange, 0, len(s.pages)),
	}
	for no, d := range s.pages {
		p := region.PageChange{Page: no}
		if !d.hole {
			p.Slot, p.CRC = d.slot, d.crc
		}
		change.Pages = append(change.Pages, p)
	}
	slices.SortFunc(change.Pages, func(a, b region.PageChange) int { return cmp.Compare(a.Page, b.Page) })
	posted, err := c.image.Post(ctx, change)
	if err != nil {
		return nil, c.fail(s, err)
	}
	return func(ctx context.Context) error {
		if err := posted.Wait(ctx); err != nil {
			return c.fail(s, err)
		}
		c.landed(s.id)
		return nil
	}, nil
}

// landed forgets the sealed epochs up to id: the image has them.
func (c *Cache) landed(id epoch.ID) {
	var freed []region.Slot
	c.mu.Lock()
	// Those before as well, whose own callers are about to come: they would hide it.
	for len(c.sealed) > 0 && c.sealed[0].id <= id {
		s := c.sealed[0]
		c.sealed = slices.Delete(c.sealed, 0, 1)
		for _, d := range s.pages {
			if d.under != nil {
				freed = append(freed, c.drop(d.under))
			}
		}
		c.frames -= s.frames
		c.stats.Epochs++
		c.stats.PagesCommitted += uint64(len(s.pages))
		c.stats.LastCommit = c.now().Sub(s.began).Round(time.Microsecond)
	}
	c.mu.Unlock()
	c.image.Release(freed...)
}

// fail puts a sealed epoch that did not commit back into the open one. Epochs above it
// fail too, and are put back before it, so that newer pages stay on top. Where the
// region is poisoned they stay, to be read. It returns why s did not commit.
func (c *Cache) fail(s *sealed, err error) error {
	c.mu.Lock()
	s.failed = err
	for {
		top := c.newest()
		if !errors.Is(err, epoch.ErrPoisoned) && errors.Is(top.failed, epoch.ErrPoisoned) {
			err = top.failed
		}
		switch {
		case errors.Is(err, epoch.ErrPoisoned):
			c.opened.Broadcast() // those that wait below
			c.mu.Unlock()
			return err
		case top == s:
			c.mu.Unlock()
			c.unseal(s)
			return err
		}
		c.opened.Wait()
	}
}

// pushSealed pushes the frames of a sealed epoch. They stay until the commit, in case
// the epoch is opened again.
func (c *Cache) pushSealed(ctx context.Context, s *sealed) error {
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
			return err
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
	s.frames = len(out)
	return c.push(ctx, out)
}

// unseal puts the newest sealed epoch back under what the open epoch gathered
// meanwhile.
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
	c.sealed = c.sealed[:len(c.sealed)-1]
	below, _ := c.below()
	c.shape = c.shape || s.size != below || s.cut != region.NoPage
	c.opened.Broadcast()
	c.mu.Unlock()
	c.image.Release(freed...)
}
