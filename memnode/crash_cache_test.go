package memnode

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// An overlay is the model of an open epoch: what write(2) and mappings did to each
// page. Stamp 0 is a hole.
type overlay struct {
	size            uint64
	written, mapped map[uint64]uint64
}

func newOverlay(size uint64) overlay {
	return overlay{size, map[uint64]uint64{}, map[uint64]uint64{}}
}

// over returns what base is with the overlay committed, as far as scope reaches.
func (o overlay) over(base content, scope epoch.Scope) content {
	c := content{o.size, maps.Clone(base.pages)}
	maps.Copy(c.pages, o.written)
	if scope == epoch.All {
		maps.Copy(c.pages, o.mapped)
	}
	maps.DeleteFunc(c.pages, func(no, stamp uint64) bool { return stamp == 0 || no >= o.size/region.PageSize })
	return c
}

// A crashCache is a file's open epoch, real and as a model. Its methods do nothing
// on nil.
type crashCache struct {
	w       *world
	cache   *rdmacache.Cache
	manager *epoch.Manager
	open    overlay
	pushes  int // writes to the pool since the last look
	busy    bool
}

// A cacheConn is a Cache's way to the pool.
type cacheConn struct {
	device
	c *crashCache
}

func (n cacheConn) Medium() rdmacache.Medium { return rdmacache.Medium{} }
func (n cacheConn) Close() error             { return nil }

func (n cacheConn) Write(ctx context.Context, p []byte, off int64) error {
	n.c.pushes++
	return n.device.Write(ctx, p, off)
}

func (w *world) cache(ctx context.Context, f *crashFile) (*crashCache, error) {
	id := region.ID(f.ino)
	if c := w.caches[id]; c != nil {
		return c, nil
	}
	im, err := w.image(ctx, id)
	if err != nil {
		return nil, err
	}
	c := &crashCache{w: w, open: newOverlay(f.now.size)}
	c.cache = rdmacache.New(rdmacache.Config{
		Conn: cacheConn{device{w.pool}, c}, Image: im, FrameBytes: 1, // as few frames as it takes
	})
	c.manager = epoch.NewManager(sealing{c.cache, c})
	w.caches[id] = c
	return c, nil
}

const (
	cachedPages = 60 // of a cached file at most
	cachedSpan  = 40 // where stores go
)

// store changes a cached file, and mostly commits that.
func (w *world) store(ctx context.Context, f *crashFile) error {
	c, err := w.cache(ctx, f)
	if err != nil {
		return err
	}
	w.full = w.rng.IntN(3) == 0
	defer func() { w.full = false }()
	changes := w.rng.IntN(12)
	if w.rng.IntN(4) == 0 {
		changes *= 5
	}
	for range changes {
		err := c.change(ctx)
		if errors.Is(err, region.ErrNoSpace) {
			if c.cache.Err() != nil || errors.Is(err, errHalf) {
				return errors.Join(err, c.discard())
			}
			break // nothing of the last one is there
		}
		if err != nil {
			return err
		}
	}
	switch w.rng.IntN(8) {
	case 0:
		return nil // it stays open
	case 1:
		return c.discard()
	case 2, 3:
		return c.commit(ctx, f, epoch.Written)
	}
	err = c.commit(ctx, f, epoch.All)
	if errors.Is(err, region.ErrNoSpace) && w.rng.IntN(2) == 0 {
		w.full = false // space was freed
		return c.commit(ctx, f, epoch.Scope(w.rng.IntN(2)))
	}
	return err
}

// change does one random thing to the open epoch.
func (c *crashCache) change(ctx context.Context) error {
	rng := c.w.rng
	page := rng.Uint64N(cachedSpan)
	switch k := rng.IntN(24); {
	case k < 2:
		pages := rng.Uint64N(cachedPages)
		if err := c.cache.Truncate(ctx, int64(pages)*region.PageSize); err != nil {
			return err
		}
		c.open.size = pages * region.PageSize
		for no := range uint64(cachedPages) {
			if no >= pages {
				c.hole(no)
			}
		}
		return nil
	case k < 3:
		if page >= c.open.size/region.PageSize {
			return nil
		}
		if err := c.cache.PunchHole(ctx, int64(page)*region.PageSize, region.PageSize); err != nil {
			return err
		}
		c.hole(page)
		return nil
	case k < 12 && page < c.open.size/region.PageSize:
		return c.put(ctx, page, rdmacache.FromMapping, rng.IntN(2) == 0)
	}
	return c.put(ctx, page, rdmacache.FromWrite, rng.IntN(2) == 0)
}

func (c *crashCache) hole(page uint64) {
	c.open.written[page] = 0
	delete(c.open.mapped, page)
}

// errHalf reports a page of which one half may be stored.
var errHalf = errors.New("not all of the page did fit")

// put stores a page, at once or in two halves, which wait in a frame.
func (c *crashCache) put(ctx context.Context, page uint64, src rdmacache.Source, halves bool) error {
	stamp := c.w.rng.Uint64() | 1
	p, at := stampPage(stamp), int64(page)*region.PageSize
	const half = region.PageSize / 2
	write := func(p []byte, at int64) error {
		_, err := c.cache.WriteAt(ctx, p, at, src)
		if src == rdmacache.FromMapping && errors.Is(err, region.ErrNoSpace) {
			c.cache.Doom(err)
		}
		return err
	}
	if !halves {
		if err := write(p, at); err != nil {
			return err
		}
	} else {
		c.pushes = 0
		err := write(p[half:], at+half)
		if err == nil {
			err = write(p[:half], at)
		}
		if err != nil {
			return errors.Join(errHalf, err)
		}
		c.w.seen.spilled += c.pushes
	}
	if src == rdmacache.FromMapping {
		c.open.mapped[page] = stamp
		return nil
	}
	c.open.written[page] = stamp
	delete(c.open.mapped, page)
	c.open.size = max(c.open.size, (page+1)*region.PageSize)
	return nil
}

// commit commits the open epoch. During it meanwhile may be called.
func (c *crashCache) commit(ctx context.Context, f *crashFile, scope epoch.Scope) error {
	sealed := c.seal(scope)
	was := f.now
	f.now = sealed.over(was, scope)
	c.busy = true
	_, err := c.manager.Commit(ctx, scope)
	c.busy = false
	if err == nil {
		if got, want := uint64(c.cache.Size()), c.open.size; got != want {
			return fmt.Errorf("region %d: size %d, want %d", c.cache.Image().ID(), got, want)
		}
		return c.look(ctx, f.now)
	}
	if !errors.Is(err, region.ErrNoSpace) || errors.Is(err, epoch.ErrPoisoned) {
		return err
	}
	c.reopen(sealed)
	f.now = was
	return cmp.Or(c.look(ctx, was), err)
}

// seal returns the open epoch, as far as scope reaches, and begins the next.
func (c *crashCache) seal(scope epoch.Scope) overlay {
	sealed := c.open
	c.open = newOverlay(sealed.size)
	if scope == epoch.Written {
		c.open.mapped, sealed.mapped = sealed.mapped, map[uint64]uint64{}
		if len(c.open.mapped) > 0 {
			c.w.seen.written++
		}
	}
	return sealed
}

// reopen puts an epoch that did not commit back under what came meanwhile.
func (c *crashCache) reopen(sealed overlay) {
	c.w.seen.opened++
	for no, stamp := range sealed.mapped {
		_, newer := c.open.mapped[no]
		_, covered := c.open.written[no]
		if !newer && !covered {
			c.open.mapped[no] = stamp
		}
	}
	for no, stamp := range sealed.written {
		if _, newer := c.open.written[no]; !newer {
			c.open.written[no] = stamp
		}
	}
}

// look compares what programs see of the file with the model.
func (c *crashCache) look(ctx context.Context, committed content) error {
	want := c.open.over(committed, epoch.All)
	p := make([]byte, region.PageSize)
	for no := range want.size / region.PageSize {
		n, err := c.cache.ReadAt(ctx, p, int64(no)*region.PageSize)
		if err != nil {
			return err
		}
		zero := make([]byte, region.PageSize)
		if stamp, ok := want.pages[no]; ok {
			zero = stampPage(stamp)
		}
		if n != len(p) || string(p) != string(zero) {
			return fmt.Errorf("region %d: page %d reads wrong", c.cache.Image().ID(), no)
		}
	}
	return nil
}

// sealing is a Cache that is stored to between seal and commit.
type sealing struct {
	*rdmacache.Cache
	c *crashCache
}

func (s sealing) Seal(ctx context.Context, scope epoch.Scope) (epoch.ID, bool, error) {
	id, dirty, err := s.Cache.Seal(ctx, scope)
	if dirty && s.c.w.rng.IntN(2) == 0 {
		s.c.storeSome(ctx)
	}
	return id, dirty, err
}

// meanwhile stores a little, as programs do while the epoch before commits.
func (c *crashCache) meanwhile(ctx context.Context) {
	if c == nil || !c.busy {
		return
	}
	// What needs a grant might wait for the commit that calls this.
	if _, free := c.cache.Image().Space(); free < 4 {
		return
	}
	c.storeSome(ctx)
}

// storeSome stores to three pages at most.
func (c *crashCache) storeSome(ctx context.Context) {
	c.busy = false // no flush of this is a chance to do more
	defer func() { c.busy = true }()
	for range c.w.rng.IntN(4) {
		if c.open.size == 0 {
			return
		}
		src := rdmacache.FromMapping
		if c.w.rng.IntN(2) == 0 {
			src = rdmacache.FromWrite
		}
		if err := c.put(ctx, c.w.rng.Uint64N(min(cachedSpan, c.open.size/region.PageSize)), src, false); err != nil {
			return // the pool is full, or the power gone
		}
	}
}

// discard rolls the open epoch back.
func (c *crashCache) discard() error {
	if c == nil {
		return nil
	}
	_, err := c.cache.Discard(func() error { return nil })
	c.open = newOverlay(uint64(c.cache.Size()))
	return err
}
