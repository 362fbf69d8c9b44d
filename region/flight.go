package region

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rpmemfs/rpmemfs/epoch"
)

// Several epochs can be in flight: their records are in the log, one behind the
// other, and their flushes under way. The table knows nothing of them. They land in
// their order, whichever flush ends first, and only then does the table take an epoch
// over and are the slots free that it replaced: recovery may need these until the
// epoch and all before it are durable.
//
// Nobody has to flush for another: who posted a record waits for it. So whoever needs
// the table to stand still holds commitMu, which keeps more from being posted, and
// drains.

// A Posted is an epoch in flight. Who posted it calls Wait once.
type Posted struct {
	im     *Image
	record record // without its pages once it is over
	off    int    // byte of the log run where it begins

	// Guarded by the Image's mu.
	flushed bool
	noSpace error // what its flush said
	over    bool
	err     error // once it is over
}

// Epoch returns its ID.
func (p *Posted) Epoch() epoch.ID { return p.record.epoch }

// Wait flushes, and returns when the epoch and all before it are durable: from then on
// every recovery finds them.
//
// ErrNoSpace if the flush, or that of an epoch before, found no space: then neither
// this epoch nor one posted after it is committed, and the region is as it was before
// the first of them. Any other error is final and matches epoch.ErrPoisoned: the
// medium may hold the epoch or not.
func (p *Posted) Wait(ctx context.Context) error {
	im := p.im
	im.mu.Lock()
	over := p.over
	im.mu.Unlock()
	var err error
	if !over {
		// Pages and record reach the medium in any order, but all before Wait
		// returns: an acknowledged epoch must survive power loss.
		err = im.dev.Flush(ctx)
		ctx = context.WithoutCancel(ctx)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	switch {
	case err == nil:
		p.flushed = true
		im.settle(ctx)
	case errors.Is(err, ErrNoSpace):
		p.noSpace = err
		im.landed.Broadcast()
	default:
		_ = im.poison(fmt.Errorf("commit epoch %d: %w", p.Epoch(), err)) // p is over now, with this error
	}
	for !p.over {
		if im.flight[0].noSpace == nil {
			im.landed.Wait()
			continue
		}
		im.mu.Unlock()
		im.commitMu.Lock()
		im.mu.Lock()
		im.void(ctx)
		im.commitMu.Unlock()
	}
	return p.err
}

// posted is the last epoch in the log. mu is held.
func (im *Image) posted() epoch.ID { return im.epoch + epoch.ID(len(im.flight)) }

// settle lands the epochs that are flushed, up to the first that is not. mu is held as
// in leaf.
func (im *Image) settle(ctx context.Context) {
	if im.settling {
		return // whoever does it comes to these too
	}
	im.settling = true
	for len(im.flight) > 0 && im.flight[0].flushed {
		p := im.flight[0]
		var replaced []Entry
		if err := im.apply(ctx, &p.record, &replaced); err != nil {
			im.settling = false
			_ = im.poison(fmt.Errorf("commit epoch %d: %w", p.Epoch(), err)) // p is over now, with this error
			break
		}
		im.flight = slices.Delete(im.flight, 0, 1) // at the same moment as apply set the epoch
		// Only now: until the flush a crash would need the replaced pages.
		im.retire(replaced)
		im.unpin()
		p.land(nil)
	}
	im.settling = false
	im.landed.Broadcast()
}

// land ends the flight of an epoch. The Image's mu is held.
func (p *Posted) land(err error) { p.over, p.err, p.record.pages = true, err, nil }

// abandon ends the flight of all epochs in a region that was poisoned, but for one that
// is durable and about to land. mu is held.
func (im *Image) abandon() {
	lost := im.flight
	if im.settling {
		lost = lost[1:]
	}
	for _, p := range lost {
		p.land(im.err)
	}
	im.flight = im.flight[:len(im.flight)-len(lost)]
	im.landed.Broadcast()
}

// void takes the epochs in flight back if the flush of the first found no space.
// commitMu and mu are held; mu is released meanwhile.
//
// The writes are as they were before the flush: the device keeps those that found no
// space. The records may be among those that did find it, and must not become whole
// after all, when their epochs' numbers are others'. So each is overwritten, and that
// is flushed before the log goes on: else a record of the old ones might follow one of
// the new.
func (im *Image) void(ctx context.Context) {
	if len(im.flight) == 0 || im.flight[0].noSpace == nil {
		return
	}
	all, start := slices.Clone(im.flight), im.log.runs[im.log.active].Start.Offset()
	im.mu.Unlock()
	mark := im.mark()
	var err error
	for _, p := range all {
		err = cmp.Or(err, im.dev.Write(ctx, mark, start+int64(p.off)))
	}
	im.mu.Lock()
	switch {
	case len(im.flight) == 0: // poisoned
	case err != nil:
		_ = im.poison(fmt.Errorf("commit epoch %d: %w", all[0].Epoch(), errors.Join(all[0].noSpace, err))) // all are over now
	default:
		im.log.off, im.stale = all[0].off, true
		for _, p := range all {
			p.land(fmt.Errorf("commit epoch %d: %w", p.Epoch(), all[0].noSpace))
		}
		im.flight = nil
		im.landed.Broadcast()
	}
}

// drain waits until no epoch is in flight. commitMu is held, and mu is not. It returns
// the error that poisoned the region, if one did.
func (im *Image) drain(ctx context.Context) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	for len(im.flight) > 0 {
		if im.flight[0].noSpace != nil {
			im.void(ctx)
		} else {
			im.landed.Wait()
		}
	}
	return im.err
}

// still waits until no epoch is on its way into the table. mu is held, and released
// meanwhile.
func (im *Image) still() {
	for im.settling {
		im.landed.Wait()
	}
}
