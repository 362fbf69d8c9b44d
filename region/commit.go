package region

import (
	"context"
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/epoch"
)

// A Change is what one epoch does to a region. The bytes of its pages were
// written to slots from Alloc, on the same Device, before Commit.
type Change struct {
	Epoch epoch.ID     // that it is to become; 0: the next. One before it may have failed
	Size  uint64       // of the file from now on, in bytes
	Mtime int64        // ns since 1970
	Cut   uint64       // pages from this number on are dropped first; NoPage: none
	Pages []PageChange // each page once
}

// Commit makes an epoch of c durable and returns its ID: Post and Wait.
func (im *Image) Commit(ctx context.Context, c Change) (epoch.ID, error) {
	p, err := im.Post(ctx, c)
	if err != nil {
		return 0, err
	}
	return p.Epoch(), p.Wait(ctx)
}

// Post begins to commit an epoch of c: its record goes to the log, behind those that
// are in flight. An epoch that is too large for the log, or that comes when the log has
// to be cut first, waits for all before it; one that is too large is durable when Post
// returns.
//
// ErrNoSpace, or an error in reading the table, leaves the region as it was. Any
// other error is final and matches epoch.ErrPoisoned.
func (im *Image) Post(ctx context.Context, c Change) (*Posted, error) {
	if err := im.prepare(ctx, c); err != nil {
		return nil, err
	}
	for {
		im.commitMu.Lock()
		room, err := im.next(c)
		if err != nil || room {
			var p *Posted
			if err == nil {
				p, err = im.post(ctx, c)
			}
			im.commitMu.Unlock()
			return p, err
		}
		im.commitMu.Unlock()

		// The active run is full and no cut freed the other in time, or the epoch
		// is too large for any run, or too many are in flight.
		im.cutMu.Lock()
		im.commitMu.Lock()
		p, err := im.makeRoom(ctx, c)
		im.commitMu.Unlock()
		im.cutMu.Unlock()
		if err != nil || p != nil {
			return p, err
		}
	}
}

// next tells whether the log has room for c now, and why it must not come next. commitMu is
// held.
func (im *Image) next(c Change) (room bool, err error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	switch {
	case im.err != nil:
		return false, im.err
	case c.Epoch == 0, c.Epoch == im.posted()+1:
		return len(im.flight) < maxInFlight && im.log.room(recordBytes(len(c.Pages))), nil
	case c.Epoch > im.posted():
		return false, fmt.Errorf("commit epoch %d: epoch %d, before it, did not commit: %w", c.Epoch, im.posted()+1, ErrNoSpace)
	}
	return false, fmt.Errorf("region %d: commit epoch %d: there is one", im.id, c.Epoch)
}

// makeRoom makes room for c in the log, or commits it if there can be none. cutMu and
// commitMu are held.
func (im *Image) makeRoom(ctx context.Context, c Change) (*Posted, error) {
	if err := im.drain(ctx); err != nil {
		return nil, err
	}
	room, err := im.next(c)
	if err != nil || room {
		return nil, err
	}
	im.mu.Lock()
	fits := recordBytes(len(c.Pages))+recordBytes(0) <= im.largestRun()*PageSize
	im.mu.Unlock()
	if fits {
		return nil, im.cut(ctx, cutHold)
	}
	return im.commitLarge(ctx, c)
}

// prepare sees to storage for the log, and reads what the commit will change of
// the table while nothing is at stake yet.
func (im *Image) prepare(ctx context.Context, c Change) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.view {
		return fmt.Errorf("region %d: %w", im.id, ErrView)
	}
	if im.super == 0 {
		im.mu.Unlock()
		err := im.grant(ctx, minGrant)
		im.mu.Lock()
		if err != nil {
			return err
		}
	}
	for _, p := range c.Pages {
		if p.Page >= maxPages {
			return fmt.Errorf("region %d: page %d is past the largest file", im.id, p.Page)
		}
		if _, err := im.leaf(ctx, p.Page); err != nil {
			return err
		}
	}
	return nil
}

func (im *Image) largestRun() int { return int(max(im.log.runs[0].N, im.log.runs[1].N)) }

// post appends the epoch's record. commitMu is held.
func (im *Image) post(ctx context.Context, c Change) (*Posted, error) {
	if err := im.freshen(ctx); err != nil {
		return nil, err
	}
	im.mu.Lock()
	p := &Posted{im: im, off: im.log.off, record: record{
		kind: kindEpoch, id: im.id, generation: im.gen, epoch: im.posted() + 1, durable: im.epoch,
		size: c.Size, cut: c.Cut, mtime: c.Mtime, series: im.series, pages: c.Pages,
	}}
	at := im.log.runs[im.log.active].Start.Offset() + int64(p.off)
	im.mu.Unlock()

	b := p.record.encode()
	err := im.dev.Write(ctx, b, at)
	void := errors.Is(err, ErrNoSpace) && im.dev.Write(ctx, im.mark(), at) == nil // see Image.void
	im.mu.Lock()
	defer im.mu.Unlock()
	switch {
	case im.err != nil:
		return nil, im.err
	case void:
		im.stale = true
		return nil, fmt.Errorf("commit epoch %d: %w", p.Epoch(), err)
	case err != nil:
		return nil, im.poison(fmt.Errorf("commit epoch %d: %w", p.Epoch(), err))
	}
	im.log.off += len(b)
	im.flight = append(im.flight, p)
	return p, nil
}

// freshen flushes what made records void. commitMu is held.
func (im *Image) freshen(ctx context.Context) error {
	im.mu.Lock()
	stale, id := im.stale, im.posted()+1
	im.mu.Unlock()
	if !stale {
		return nil
	}
	err := im.dev.Flush(ctx)
	im.mu.Lock()
	defer im.mu.Unlock()
	switch {
	case errors.Is(err, ErrNoSpace):
		return fmt.Errorf("commit epoch %d: %w", id, err)
	case err != nil:
		return im.poison(fmt.Errorf("commit epoch %d: %w", id, err))
	}
	im.stale = false
	return nil
}

// apply brings the table to r's epoch. It adds to replaced the pages that the
// epoch before needed and this one does not; nodes that leave the table are
// dropped. mu is held as in leaf.
func (im *Image) apply(ctx context.Context, r *record, replaced *[]Entry) error {
	im.series = r.series
	if r.cut < NoPage {
		if err := im.drop(ctx, r.cut, replaced); err != nil {
			return err
		}
	}
	for _, p := range r.pages {
		if p.Slot == 0 && p.Page >= capacity(im.table.height) {
			continue
		}
		leaf, err := im.leaf(ctx, p.Page)
		if err != nil {
			return err
		}
		if leaf == nil && p.Slot == 0 {
			continue
		}
		e := Entry{}
		if p.Slot != 0 {
			e = Entry{Slot: p.Slot, CRC: p.CRC, Series: r.series}
			im.slots.commit(p.Slot)
		}
		if old := im.set(p.Page, e); old.Slot != 0 && old.Slot != p.Slot {
			*replaced = append(*replaced, old)
		}
	}
	im.epoch, im.size, im.mtime = r.epoch, r.size, r.mtime
	return nil
}

// retire frees slots that recovery no longer needs. Those of an older series may
// be shared: a sweep frees them. mu is held.
func (im *Image) retire(entries []Entry) {
	for _, e := range entries {
		if e.Series == im.series {
			im.slots.release(e.Slot)
		} else {
			im.unfreed++
		}
	}
}

// unpin lets go of the slots of an epoch that recovery refused: another has its
// number now. mu is held.
func (im *Image) unpin() {
	for _, s := range im.pinned {
		im.slots.unpin(s)
	}
	im.sweepDue = im.sweepDue || im.pinned != nil
	im.pinned = nil
}

// commitLarge commits an epoch that no log run can hold: pages first, then the
// table as of the epoch, then the superblock. It costs two flushes more than a
// record does. cutMu and commitMu are held, and no epoch is in flight.
func (im *Image) commitLarge(ctx context.Context, c Change) (*Posted, error) {
	if err := im.reserveNodes(ctx, c); err != nil {
		return nil, err
	}
	im.mu.Lock()
	r := record{epoch: im.epoch + 1, size: c.Size, cut: c.Cut, mtime: c.Mtime, series: im.series, pages: c.Pages}
	// Until the superblock is there, recovery needs the replaced pages too.
	err := im.apply(ctx, &r, &im.dropped)
	if err != nil {
		err = im.poison(fmt.Errorf("commit epoch %d: %w", r.epoch, err))
	}
	im.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := im.cut(ctx, cutHold); err != nil {
		im.mu.Lock()
		defer im.mu.Unlock()
		return nil, im.poison(err) // the table is ahead of the medium
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.unpin()
	return &Posted{im: im, record: record{epoch: r.epoch}, over: true}, nil
}

// reserveNodes takes slots for all nodes that a cut after c may write. The cut
// gives back what it does not need.
func (im *Image) reserveNodes(ctx context.Context, c Change) error {
	leaves := make(map[uint64]struct{})
	for _, p := range c.Pages {
		leaves[p.Page>>fanoutBits] = struct{}{}
	}
	if c.Cut < maxPages {
		leaves[c.Cut>>fanoutBits] = struct{}{} // it stays in part
	}
	n := uint64(0)
	for level := uint32(1); level <= maxHeight; level++ {
		n += uint64(len(leaves))
		above := make(map[uint64]struct{})
		for l := range leaves {
			above[l>>fanoutBits] = struct{}{}
		}
		leaves = above
	}
	im.mu.Lock()
	n += im.dirtyNodes()
	im.mu.Unlock()
	runs, err := im.Alloc(ctx, n)
	if err != nil {
		return err
	}
	im.mu.Lock()
	im.reserved = runs
	im.mu.Unlock()
	return nil
}

// Mark writes down that the last epoch is durable, if no later record says so.
// It does not flush. Without it recovery cannot tell a damaged page of the last
// epoch from a commit that a crash interrupted.
func (im *Image) Mark(ctx context.Context) error {
	im.commitMu.Lock()
	defer im.commitMu.Unlock()
	im.mu.Lock()
	// A record in flight says the same of the epochs before it.
	if im.err != nil || im.super == 0 || im.marked == im.epoch || len(im.flight) > 0 || im.stale || im.log.off+recordBytes(0) > int(im.log.runs[im.log.active].N)*PageSize {
		defer im.mu.Unlock()
		return im.err
	}
	id, at := im.epoch, im.log.runs[im.log.active].Start.Offset()+int64(im.log.off)
	im.mu.Unlock()
	err := im.dev.Write(ctx, im.mark(), at)
	im.mu.Lock()
	defer im.mu.Unlock()
	if err != nil {
		return im.poison(fmt.Errorf("mark epoch %d: %w", id, err))
	}
	im.marked = id
	return nil
}

// mark is the record that says that the last epoch is durable. commitMu is held.
func (im *Image) mark() []byte {
	im.mu.Lock()
	defer im.mu.Unlock()
	r := record{
		kind: kindMark, id: im.id, generation: im.gen, epoch: im.epoch, durable: im.epoch,
		size: im.size, cut: NoPage, mtime: im.mtime, series: im.series,
	}
	return r.encode()
}

// Close flushes what made records void, and marks the last epoch. The caller flushes
// the device once for all regions. After an error the region is open as before, and who
// opens it again in this session may take records that were taken back for its own.
func (im *Image) Close(ctx context.Context) error {
	im.commitMu.Lock()
	err := im.Err()
	if err == nil {
		err = im.freshen(ctx)
	}
	im.commitMu.Unlock()
	if err == nil {
		err = im.Mark(ctx)
	}
	if errors.Is(err, epoch.ErrPoisoned) {
		return nil
	}
	return err
}
