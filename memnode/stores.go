package memnode

import (
	"context"
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// A device of a session stores to the pool's memory without a call, and makes persistent
// what a commit needs. What it stored besides is there, and the next session takes it
// for durable; but no Flush of the medium knows of it. So it is made persistent before the
// lease is forgotten. A share that was reached by calls only costs nothing: a Flush knows what
// this process stored.
//
// It does not know what the process before stored, which may have been killed with that in the
// processor's caches. So the shares whose leases the pool is opened with are made persistent,
// too, whether devices reached them or not.

// exposed notes that devices may store to the slots of a share.
func (p *Pool) exposed(share namespace.Ino) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stored[share] = struct{}{}
}

// settle makes persistent what devices, or the process before, may have stored to the slots of
// a share. It costs a walk through the share's memory. Nobody may store to them any more.
func (p *Pool) settle(ctx context.Context, share namespace.Ino) error {
	p.mu.Lock()
	_, exposed := p.stored[share]
	p.mu.Unlock()
	if !exposed {
		return nil
	}
	var runs []region.Run
	err := p.view(ctx, func(t txn) (err error) {
		runs, err = t.of(share).allExtents()
		return err
	})
	if err == nil {
		err = p.persistRuns(runs)
	}
	if err != nil {
		return fmt.Errorf("persist what share %d was stored: %w", share, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.stored, share)
	return nil
}

// settleLeases deals with the shares that are leased, as the pool is opened. Leases that go
// on are settled when they end: their holders store again what no flush covers.
func (p *Pool) settleLeases(keep bool) error {
	if _, ok := p.media.(media.Mapped); !ok {
		return nil
	}
	var runs []region.Run
	err := p.meta.view(func(t txn) error {
		leases, err := t.leases()
		for _, l := range leases {
			if err != nil {
				break
			}
			if keep {
				p.stored[l.Share] = struct{}{}
				continue
			}
			var more []region.Run
			more, err = t.of(l.Share).allExtents()
			runs = append(runs, more...)
		}
		return err
	})
	if err != nil {
		return err
	}
	return p.persistRuns(runs)
}

// persistRuns makes slots persistent, whoever stored to them, but for pages that fault.
func (p *Pool) persistRuns(runs []region.Run) error {
	for i := 0; i < len(runs); {
		start, end := runs[i].Start.Offset(), runs[i].End().Offset()
		for i++; i < len(runs) && runs[i].Start.Offset() == end; i++ {
			end = runs[i].End().Offset()
		}
		err := p.persist(start, end-start)
		if errors.Is(err, media.ErrFault) {
			err = p.persistPages(start, end)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// persistPages makes persistent what does not fault of the pages from start up to end. A
// page that cannot be written back cannot be read either: no epoch that uses it passes for
// a good one, and the others must not be lost for it.
func (p *Pool) persistPages(start, end int64) error {
	var first error
	faults := 0
	for off := start; off < end; off += region.PageSize {
		err := p.persist(off, region.PageSize)
		switch {
		case err == nil:
		case !errors.Is(err, media.ErrFault):
			return err
		case faults == 0:
			first = err
			fallthrough
		default:
			faults++
		}
	}
	if faults > 0 {
		p.log.Error("pages of the pool cannot be made persistent", "pages", faults, "start", start, "end", end, "first", first)
	}
	return nil
}
