package region

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/rpmemfs/rpmemfs/epoch"
)

// A Config says how to open a region.
type Config struct {
	Device     Device
	Space      Space
	Generation uint64 // of the writer; higher than that of every writer before
	Location   Location
	// NodeBytes bounds the memory for clean leaves of the page table; 0 means 32 MiB.
	NodeBytes int64
	// Family marks what other regions reach of this region's slots, for sweeps;
	// nil if the region shares none.
	Family func(ctx context.Context, mark func(Slot)) error
	Log    *slog.Logger // nil discards
}

// An Image is the writer's view of a region: the committed epoch's page table,
// the log, and the free slots. It is safe for concurrent use.
//
// Lock order: cutMu, then commitMu, then grantMu, then mu. mu is never held across
// the Device or the Space. The others are: that is what they are for.
type Image struct {
	dev    Device
	space  Space
	id     ID
	gen    uint64
	family func(context.Context, func(Slot)) error
	logger *slog.Logger

	cutMu    sync.Mutex // serialises cuts, sweeps and whatever replaces the table
	commitMu sync.Mutex // serialises appends to the log; while it is held the last epoch stays
	grantMu  sync.Mutex // serialises grants

	mu          sync.Mutex // guards the fields below
	landed      sync.Cond  // on mu: flight or settling changed
	flight      []*Posted  // epochs that are not durable yet, oldest first
	settling    bool       // flight[0] is on its way into the table
	stale       bool       // records that were taken back may still be on the medium
	epoch       epoch.ID
	size        uint64
	mtime       int64
	series      uint32
	super       Slot // 0: no storage yet; set once
	sequence    uint64
	table       table
	slots       slotMap
	log         logState
	checkpoints []Checkpoint
	marked      epoch.ID // last epoch a mark or superblock calls durable
	dropped     []Entry  // slots that left the table, but recovery needs until the next superblock
	pinned      []Slot   // of an epoch that recovery refused; it must not become whole after all
	reserved    []Run    // allocated for the nodes of the next cut
	sweepDue    bool
	unfreed     uint64 // slots of older series replaced since the last sweep
	err         error  // set once; matches epoch.ErrPoisoned
	view        bool   // shows a checkpoint, and takes no change
}

// logState is where the log ends. Records since the last superblock are in
// runs[0], or, while a cut is under way or after one was interrupted, in runs[0]
// and then runs[1].
type logState struct {
	runs   [2]Run
	active int // run that takes the next record
	off    int // byte in it
	both   bool
}

func (l *logState) room(n int) bool {
	return l.off+n+recordBytes(0) <= int(l.runs[l.active].N)*PageSize
}

// Open recovers the region's last committed epoch. It reads two superblocks and
// the log since the newer one, and verifies the pages of the last few epochs; it does
// not depend on the region's size or history. It writes nothing.
//
// Errors match ErrCorrupt if an acknowledged epoch is damaged, ErrVersion if
// another version wrote the region.
func Open(ctx context.Context, cfg Config) (*Image, error) {
	im := &Image{
		dev: cfg.Device, space: cfg.Space, id: cfg.Location.ID, gen: cfg.Generation,
		family: cfg.Family, logger: cfg.Log,
		super:       cfg.Location.Super,
		checkpoints: append([]Checkpoint(nil), cfg.Location.Checkpoints...),
	}
	im.landed.L = &im.mu
	if im.logger == nil {
		im.logger = slog.New(slog.DiscardHandler)
	}
	if cfg.NodeBytes == 0 {
		cfg.NodeBytes = 32 << 20
	}
	im.table.limit = max(16, int(cfg.NodeBytes/PageSize))
	for _, r := range cfg.Location.Extents {
		im.slots.add(r, false)
	}
	if im.super == 0 {
		return im, nil
	}
	im.sweepDue = true
	if err := im.recover(ctx); err != nil {
		return nil, fmt.Errorf("open region %d: %w", im.id, err)
	}
	return im, nil
}

// ID returns the region's ID.
func (im *Image) ID() ID { return im.id }

// A State is what is committed.
type State struct {
	Epoch epoch.ID
	Size  uint64 // bytes
	Mtime int64  // ns since 1970
	Pages uint64 // that exist
}

// State returns the last committed epoch.
func (im *Image) State() State {
	im.mu.Lock()
	defer im.mu.Unlock()
	return State{im.epoch, im.size, im.mtime, im.table.pages}
}

// Err returns the error that poisoned the region, or nil.
func (im *Image) Err() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.err
}

// poison makes every later change fail, and those in flight. mu is held.
func (im *Image) poison(cause error) error {
	if im.err == nil {
		im.err = fmt.Errorf("region %d: %w: %w", im.id, epoch.ErrPoisoned, cause)
		im.logger.Error("region poisoned", "region", im.id, "epoch", im.epoch, "err", cause)
	}
	im.abandon()
	return im.err
}

// Lookup returns where the committed epoch keeps page; Slot 0 is a hole. It may
// read a table node.
func (im *Image) Lookup(ctx context.Context, page uint64) (Entry, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	leaf, err := im.leaf(ctx, page)
	if leaf == nil {
		return Entry{}, err
	}
	return leaf.entries[index(page, 0)], nil
}

// Next returns the first page at or after page that the committed epoch keeps in
// a slot, or NoPage.
func (im *Image) Next(ctx context.Context, page uint64) (uint64, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for {
		base, leaf, err := im.nextLeaf(ctx, page)
		if leaf == nil {
			return NoPage, err
		}
		for page = max(page, base); page < base+fanout; page++ {
			if leaf.entries[index(page, 0)].Slot != 0 {
				return page, nil
			}
		}
	}
}

// Alloc takes n free slots for pages of the open epoch, in as few runs as it can.
// A crash frees them again. ErrNoSpace if the pool has too few; then none is
// taken.
func (im *Image) Alloc(ctx context.Context, n uint64) ([]Run, error) {
	if n == 0 {
		return nil, nil
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	for im.slots.free < n { // others may take what was provided
		im.mu.Unlock()
		err := im.provide(ctx, n)
		im.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	return im.allocLocked(n), nil
}

// allocLocked takes n slots. mu is held, and n are free.
func (im *Image) allocLocked(n uint64) (runs []Run) {
	for n > 0 {
		r := im.slots.alloc(n)
		runs = append(runs, r)
		n -= r.N
	}
	return runs
}

// Release gives back slots of pages that will not be committed.
func (im *Image) Release(slots ...Slot) {
	if len(slots) == 0 {
		return
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, s := range slots {
		im.slots.release(s)
	}
}

// sweepFirstSlots is how large a region may be for an allocation to wait for the
// first sweep instead of asking the pool for more. One that has more than twice what
// its pages need waits too, or it would grow with every crash.
const sweepFirstSlots = 16 << 10

// provide sees to it that n slots are free: by the sweep that is due if that is
// quick or pays, else by a grant.
func (im *Image) provide(ctx context.Context, n uint64) error {
	im.mu.Lock()
	free, granted, sweep, unfreed := im.slots.free, im.slots.granted, im.sweepDue, im.unfreed
	first := granted <= sweepFirstSlots || granted > 2*im.table.pages
	im.mu.Unlock()
	if free >= n {
		return nil
	}
	swept := sweep && first && im.trySweep(ctx)
	err := im.grant(ctx, n)
	if !swept && (sweep || unfreed > 0) && errors.Is(err, ErrNoSpace) && im.trySweep(ctx) {
		// The pool was full, but what this region no longer uses was not yet known.
		return im.grant(ctx, n)
	}
	return err
}

// trySweep sweeps unless a cut or another sweep is under way. Damage, perhaps in a
// relative, keeps it from freeing slots, not the region from being written.
func (im *Image) trySweep(ctx context.Context) bool {
	if !im.cutMu.TryLock() {
		return false
	}
	defer im.cutMu.Unlock()
	if err := im.sweep(ctx); err != nil {
		im.logger.Warn("sweep", "region", im.id, "err", err)
		return false
	}
	return true
}

// Grants grow with the region, so that their number is logarithmic in its size.
const (
	minGrant = 4
	maxGrant = 16 << 10
)

// grant asks the pool for what is missing to n free slots.
func (im *Image) grant(ctx context.Context, n uint64) error {
	// One at a time: of two first grants only one holds the superblocks, and the
	// region must hear of that one first.
	im.grantMu.Lock()
	defer im.grantMu.Unlock()
	im.mu.Lock()
	var need uint64
	if im.slots.free < n {
		need = n - im.slots.free
	}
	want := need + min(max(im.slots.granted/4, minGrant), maxGrant)
	first := im.super == 0
	im.mu.Unlock()
	if need == 0 {
		return nil
	}
	if first {
		need += FormatSlots
		want += FormatSlots
	}
	g, err := im.space.Grant(ctx, im.id, need, want)
	if err != nil {
		return fmt.Errorf("region %d: grant %d slots: %w", im.id, need, err)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, r := range g.Runs {
		im.slots.add(r, true)
	}
	if im.super == 0 && g.Super != 0 {
		im.adopt(Seed{ID: im.id}.superblock(g.Super), g.Super)
	}
	return nil
}

// adopt takes over a freshly formatted superblock. mu is held.
func (im *Image) adopt(sb superblock, at Slot) {
	im.super, im.sequence = at, sb.sequence
	im.log = logState{runs: sb.log}
	for s := at; s < at+FormatSlots; s++ {
		im.slots.commit(s)
	}
}

// Adopt takes over extents of a removed relative; the region's own may be among
// them. What of them is free, the next sweep finds out. No extent may be among
// them that the region has returned meanwhile.
func (im *Image) Adopt(extents []Run) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, r := range extents {
		im.slots.add(r, false)
	}
	im.sweepDue = im.super != 0
}

// Space returns how many slots were granted to the region and how many of them
// are known to be free.
func (im *Image) Space() (granted, free uint64) {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.slots.granted, im.slots.free
}
