package rdmacache

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/region"
)

// A Source tells how bytes reached the file.
type Source int

const (
	// FromWrite is write(2): the program was told that it succeeded.
	FromWrite Source = iota
	// FromMapping is the kernel's write-back of stores to a mapping.
	FromMapping
)

// ErrNoData reports a Seek at or past the end of the file, or past its last data.
var ErrNoData = errors.New("rdmacache: no data there")

// A Config says how to make a Cache.
type Config struct {
	Conn  Conn
	Image *region.Image
	// FrameBytes bounds the memory for pages that wait to be pushed; 0 means
	// 8 MiB. Whole pages go to free slots at once and need none.
	FrameBytes int64
	// Pages has clean pages of the regions behind Conn, which it must Watch; nil
	// where reading costs no more than memory does.
	Pages *Pages
	Log   *slog.Logger     // nil discards
	Now   func() time.Time // nil means time.Now
}

// A Cache holds the open epoch of one region, the overlay: everything written
// since the last seal, over the committed image.
//
// The overlay has two layers. The written layer holds what write(2), truncate and
// fallocate did; it commits at the last close. The mapped layer, above it, holds
// what the kernel wrote back of mappings; it commits at msync and fsync. Sealed
// epochs on their way lie below both, the newest on top:
//
//	mapped → written → sealed → ... → sealed → committed image
//
// A whole page goes to a free slot of the pool as soon as it arrives, so a commit
// has little left to do and the overlay costs little memory; nothing refers to
// the slot until the epoch commits. Parts of pages are gathered in frames. A slot
// that was written is never written again in the same epoch: a reader that finds
// a checksum different and the page moved meanwhile only has to look again.
//
// Lock order: gate, then stripes in ascending order, then mu. mu is never held
// across Conn, or what of Image may use it.
type Cache struct {
	conn   Conn
	image  *region.Image
	pages  *Pages // nil: none
	limit  int    // frames
	logger *slog.Logger
	now    func() time.Time

	// gate is held shared by writes and exclusively by what must not see half a
	// write: seal, truncate, punch, discard.
	gate    sync.RWMutex
	stripes [64]sync.Mutex // order writes to the same MiB

	mu         sync.Mutex // guards the fields below
	written    layer
	mapped     layer
	sealed     []*sealed // oldest first
	opened     sync.Cond // on mu: the newest of sealed is open again
	size       int64
	cut        uint64 // pages from here on, unless in the overlay, are holes
	mtime      int64
	shape      bool // size, cut or mtime differ from what is committed or sealed
	frames     int
	discarding bool
	discarded  int64 // Monotonic at the end of the last discard
	capturing  int   // programs that capture
	lossy      bool  // since Lossy was asked
	drains     bool  // Lossy said so, and nothing was frozen since
	past       past
	doomed     error // the open epoch lacks pages and cannot commit
	condemned  error // the open epoch must not commit
	stats      Stats
}

// A layer is the overlay's pages from one source.
type layer map[uint64]*dirty

// A dirty page differs from what lies below it. It does not change once pushing
// is set, but for its frame, which goes when it is pushed.
type dirty struct {
	slot    region.Slot // where it is or will be pushed; 0: a hole, or not allocated yet
	crc     uint32      // of its bytes, once pushed
	frame   []byte      // its bytes, until pushed
	hole    bool        // all zero, no slot
	pushing bool
	whole   bool  // has every store through a mapping up to when
	when    int64 // Monotonic at which the bytes were right
	source  Source
	under   *dirty // sealed pages: the written page that a mapped one hides
}

// inFrame says whether the bytes of d, which may be nil, can be changed in place.
func (d *dirty) inFrame() bool { return d != nil && d.frame != nil && !d.pushing }

// sealed is an epoch on its way to the pool.
type sealed struct {
	id     epoch.ID
	pages  layer
	size   int64
	cut    uint64
	mtime  int64
	frozen bool // captured pages still join it; of the newest only
	past   past
	frames int       // that pages hold, once they are pushed
	began  time.Time // to commit
	failed error     // it is going to be open again, when those above are
}

// Stats counts since the Cache was made.
type Stats struct {
	Epochs         uint64        // committed
	PagesCommitted uint64        // in them
	BytesWritten   uint64        // that arrived by either source
	PagesUnchanged uint64        // that arrived but equal what lay below
	Discarded      uint64        // pages rolled back
	LastCommit     time.Duration // of an epoch, from its first push until it was durable
}

// New returns the Cache of an image. It is the image's only writer.
func New(cfg Config) *Cache {
	if cfg.FrameBytes == 0 {
		cfg.FrameBytes = 8 << 20
	}
	c := &Cache{
		conn: cfg.Conn, image: cfg.Image, pages: cfg.Pages, limit: max(16, int(cfg.FrameBytes/PageSize)),
		logger: cfg.Log, now: cfg.Now,
		written: layer{}, mapped: layer{}, past: newPast(),
	}
	if c.logger == nil {
		c.logger = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.opened.L = &c.mu
	c.reset()
	return c
}

// reset gives the open epoch the shape of the one below. mu is held, or c is new.
func (c *Cache) reset() {
	c.cut, c.shape = region.NoPage, false
	c.size, c.mtime = c.below()
}

// below returns the size and time of what the open epoch began with. mu is held, or c
// is new.
func (c *Cache) below() (size, mtime int64) {
	if s := c.newest(); s != nil {
		return s.size, s.mtime
	}
	s := c.image.State()
	return int64(s.Size), s.Mtime
}

// newest returns the newest sealed epoch on its way, or nil. mu is held.
func (c *Cache) newest() *sealed {
	if len(c.sealed) == 0 {
		return nil
	}
	return c.sealed[len(c.sealed)-1]
}

// Image returns the committed image below.
func (c *Cache) Image() *region.Image { return c.image }

// Size returns the file's size in bytes, open epoch included.
func (c *Cache) Size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size
}

// Pages returns about how many pages exist, open epoch included.
func (c *Cache) Pages() uint64 {
	s := c.image.State()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := s.Pages
	if c.cut == 0 {
		n = 0
	}
	for _, l := range []layer{c.written, c.mapped} {
		n += uint64(len(l))
	}
	return min(n, uint64(c.size+PageSize-1)/PageSize)
}

// Times returns when the content last changed, in ns since 1970, and whether that
// is not committed.
func (c *Cache) Times() (mtime int64, open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mtime, c.shape || len(c.written) > 0 || len(c.mapped) > 0 || len(c.sealed) > 0
}

// SetMtime sets the time that the open epoch will carry, unless it changes again.
func (c *Cache) SetMtime(ns int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mtime = ns
}

// Committed returns the last committed epoch.
func (c *Cache) Committed() epoch.ID { return c.image.State().Epoch }

// Dirty returns how many pages of the open epoch came from mappings and how many
// from writes.
func (c *Cache) Dirty() (mapped, written int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.mapped), len(c.written)
}

// frozen says whether captured pages still join the sealed epoch.
func (c *Cache) frozen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.newest()
	return s != nil && s.frozen
}

// DirtyScope says whether a commit of scope would change anything, or would have to
// wait for something.
func (c *Cache) DirtyScope(scope epoch.Scope) bool {
	poisoned := c.image.Err() != nil
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dirtyLocked(scope) || len(c.sealed) > 0 && !poisoned
}

func (c *Cache) dirtyLocked(scope epoch.Scope) bool {
	return c.shape || len(c.written) > 0 || scope == epoch.All && len(c.mapped) > 0
}

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Err returns why the region takes no more commits, or nil: the image is poisoned,
// or the open epoch lacks pages until it is discarded.
func (c *Cache) Err() error {
	if err := c.image.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return cmp.Or(c.condemned, c.doomed)
}

// Doom notes that bytes from a mapping were lost, for which WriteAt found no space:
// committing the rest would tear the open epoch. Its commits fail until Discard.
func (c *Cache) Doom(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.doomed == nil {
		c.doomed = fmt.Errorf("region %d: the open epoch is incomplete, roll it back: %w", c.image.ID(), cause)
		c.logger.Error("write-back failed; the open epoch cannot commit", "region", c.image.ID(), "err", cause)
	}
}

// Condemn makes every commit of the open epoch fail with cause until Discard.
func (c *Cache) Condemn(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.condemned = fmt.Errorf("region %d: %w", c.image.ID(), cause)
}

// drop forgets a page of the overlay. mu is held; the caller releases the slot.
func (c *Cache) drop(d *dirty) region.Slot {
	if d.frame != nil {
		c.frames--
	}
	return d.slot
}

// Discard throws the open epoch away. invalidate makes the kernel drop its cached
// pages of the file; stores that it writes back meanwhile are dropped too. It is
// called twice: the second time, nothing is dropped any more, and what the kernel
// kept of dropped stores goes. Programs may run; what they store to pages during
// the call may survive it.
//
// pages is how many pages of the open epoch were lost.
func (c *Cache) Discard(invalidate func() error) (pages int, err error) {
	return c.discard(invalidate, true)
}

// DiscardMapped is Discard for stores through mappings only. What write(2),
// truncate and fallocate did stays in the open epoch.
func (c *Cache) DiscardMapped(invalidate func() error) (pages int, err error) {
	return c.discard(invalidate, false)
}

func (c *Cache) discard(invalidate func() error, all bool) (pages int, err error) {
	c.gate.Lock()
	c.mu.Lock()
	var slots []region.Slot
	for _, d := range c.mapped {
		slots = append(slots, c.drop(d))
	}
	c.mapped = layer{}
	if all {
		for _, d := range c.written {
			slots = append(slots, c.drop(d))
		}
		c.written = layer{}
		c.reset()
		c.condemned = nil
	}
	c.doomed = nil
	c.discarding = true
	before := c.stats.Discarded
	c.stats.Discarded += uint64(len(slots))
	c.mu.Unlock()
	c.gate.Unlock()
	c.image.Release(slots...)

	err = invalidate()

	c.gate.Lock()
	c.mu.Lock()
	c.discarding = false
	c.discarded = Monotonic()
	pages = int(c.stats.Discarded - before)
	c.mu.Unlock()
	c.gate.Unlock()
	return pages, errors.Join(err, invalidate())
}
