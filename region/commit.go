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
	Size  uint64       // of the file from now on, in bytes
	Mtime int64        // ns since 1970
	Cut   uint64       // pages from this number on are dropped first; NoPage: none
	Pages []PageChange // each page once
}

// Commit makes an epoch of c durable and returns its ID: one record and one
// flush. From then on every recovery finds it.
//
// ErrNoSpace, or an error in reading the table, leaves the region as it was. Any
// other error is final and matches epoch.ErrPoisoned: the medium may hold the
// epoch or not.
func (im *Image) Commit(ctx context.Context, c Change) (epoch.ID, error) {
	if err := im.prepare(ctx, c); err != nil {
		return 0, err
	}
	for {
		im.commitMu.Lock()
		im.mu.Lock()
		err, room := im.err, im.log.room(recordBytes(len(c.Pages)))
		fits := recordBytes(len(c.Pages))+recordBytes(0) <= im.largestRun()*PageSize
		im.mu.Unlock()
		switch {
		case err != nil:
			im.commitMu.Unlock()
			return 0, err
		case room:
			id, err := im.commitRecord(ctx, c)
			im.commitMu.Unlock()
			return id, err
		}
		im.commitMu.Unlock()

		// The active run is full and no cut freed the other in time, or the
		// epoch is too large for any run.
		im.cutMu.Lock()
		im.commitMu.Lock()
		im.mu.Lock()
		room = im.log.room(recordBytes(len(c.Pages)))
		err = im.err
		im.mu.Unlock()
		var id epoch.ID
		switch {
		case err != nil || room:
		case fits:
			err = im.cut(ctx, cutHold)
		default:
			id, err = im.commitLarge(ctx, c)
		}
		im.commitMu.Unlock()
		im.cutMu.Unlock()
		if err != nil || id != 0 {
			return id, err
		}
	}
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

// commitRecord appends the epoch's record and flushes. commitMu is held.
func (im *Image) commitRecord(ctx context.Context, c Change) (epoch.ID, error) {
	im.mu.Lock()
	r := record{
		kind: kindEpoch, id: im.id, generation: im.gen, epoch: im.epoch + 1, durable: im.epoch,
		size: c.Size, cut: c.Cut, mtime: c.Mtime, series: im.series, pages: c.Pages,
	}
	at := im.log.runs[im.log.active].Start.Offset() + int64(im.log.off)
	im.mu.Unlock()

	// Pages and record reach the medium in any order, but all before Commit
	// returns: an acknowledged epoch must survive power loss.
	b := r.encode()
	err := im.dev.Write(ctx, b, at)
	if err == nil {
		err = im.dev.Flush(ctx)
	}

	if errors.Is(err, ErrNoSpace) && im.dev.Write(ctx, im.mark(), at) == nil {
		// The writes are as they were before a flush: the device keeps those that
		// found no space. The record may be among those that did find it, and must
		// not become whole after all, when its epoch's number is another's.
		return 0, fmt.Errorf("commit epoch %d: %w", r.epoch, err)
	}

	im.mu.Lock()
	defer im.mu.Unlock()
	if err != nil {
		return 0, im.poison(fmt.Errorf("commit epoch %d: %w", r.epoch, err))
	}
	im.log.off += len(b)
	var replaced []Entry
	if err := im.apply(ctx, &r, &replaced); err != nil {
		return 0, im.poison(fmt.Errorf("commit epoch %d: %w", r.epoch, err))
	}
	// Only now: until the flush a crash would need the replaced pages.
	im.retire(replaced)
	im.unpin()
	return r.epoch, nil
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
// record does. cutMu and commitMu are held.
func (im *Image) commitLarge(ctx context.Context, c Change) (epoch.ID, error) {
	if err := im.reserveNodes(ctx, c); err != nil {
		return 0, err
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
		return 0, err
	}
	if err := im.cut(ctx, cutHold); err != nil {
		im.mu.Lock()
		defer im.mu.Unlock()
		return 0, im.poison(err) // the table is ahead of the medium
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.unpin()
	return r.epoch, nil
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
	if im.err != nil || im.super == 0 || im.marked == im.epoch || im.log.off+recordBytes(0) > int(im.log.runs[im.log.active].N)*PageSize {
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

// Close marks the last epoch. The caller flushes the device once for all regions.
func (im *Image) Close(ctx context.Context) error {
	if err := im.Mark(ctx); err != nil && !errors.Is(err, epoch.ErrPoisoned) {
		return err
	}
	return nil
}
