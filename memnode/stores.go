package memnode

import (
	"context"
	"fmt"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// A device of a session stores to the pool's memory without a call, and makes persistent
// what a commit needs. What it stored besides is there, and the next session takes it
// for durable; but no Flush of the medium knows of it. So it is made persistent before the
// lease is forgotten, and for the leases that the pool is opened with.

// exposed notes that devices may store to the slots of a share.
func (p *Pool) exposed(share namespace.Ino) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stored[share] = struct{}{}
}

// settle makes persistent what devices stored to the slots of a share, if they could. It
// costs a walk through the share's memory. None may store to them any more.
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

// settleLeases does the same for the shares that are leased, as the pool is opened.
func (p *Pool) settleLeases() error {
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

// persistRuns makes slots persistent, whoever stored to them.
func (p *Pool) persistRuns(runs []region.Run) error {
	for i := 0; i < len(runs); {
		start, end := runs[i].Start.Offset(), runs[i].End().Offset()
		for i++; i < len(runs) && runs[i].Start.Offset() == end; i++ {
			end = runs[i].End().Offset()
		}
		if err := p.persist(start, end-start); err != nil {
			return err
		}
	}
	return nil
}
