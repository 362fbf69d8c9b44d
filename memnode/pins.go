package memnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// Pins keep epochs of regions for those who only read a share, without its lease. A
// pin is a checkpoint with a hidden name, so it keeps the slots of its epoch from
// every writer, present or to come, by the rules of checkpoints. It lasts until
// DropPin, or until the pool is opened for writing again.

// Reader returns a share as somebody sees it who holds no lease, next to whoever does;
// namespace.Root shows all of the pool. Its Fence reaches the slots of regions that
// Admit was called for, and nothing that was freed since. It can be read only: the
// caller sees to it.
func (p *Pool) Reader(share namespace.Ino) *View {
	f := &Fence{pool: p, reader: true}
	f.slots.Store(&runSet{})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readers == nil {
		p.readers = make(map[*Fence]struct{})
	}
	p.readers[f] = struct{}{}
	return &View{directory{pool: p, share: share, fence: f}}
}

// Admit lets a reader's Fence reach what a region and its relatives have now.
func (v *View) Admit(ctx context.Context, id region.ID) error {
	err := v.fence.admit(func() (runs []region.Run, err error) {
		err = v.view(ctx, func(t txn) error {
			if _, err := t.regular(id); err != nil {
				return err
			}
			rec, err := t.region(id)
			if err != nil {
				return err
			}
			family, err := t.relatives(id, rec.family)
			if err != nil {
				return err
			}
			for _, member := range append(family, id) {
				extents, err := t.extents(member)
				if err != nil {
					return err
				}
				runs = append(runs, extents...)
			}
			return nil
		})
		return runs, err
	})
	if err != nil {
		return fmt.Errorf("admit to region %d: %w", id, err)
	}
	return nil
}

func (p *Pool) forgetReader(f *Fence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.readers, f)
}

// revoke takes slots from all readers, before others get them.
func (p *Pool) revoke(freed []region.Run) {
	p.mu.Lock()
	readers := make([]*Fence, 0, len(p.readers))
	for f := range p.readers {
		readers = append(readers, f)
	}
	p.mu.Unlock()
	for _, f := range readers {
		f.take(freed)
	}
}

// SavePin keeps a committed epoch, durably, for readers. cp is what region.Image.Pin
// returned. A pin of the epoch that is there already stays.
func (d *directory) SavePin(ctx context.Context, id region.ID, cp region.Checkpoint) error {
	if cp.Epoch == 0 || cp.Name != region.PinName(cp.Epoch) || uint64(cp.Tree.Root) >= d.pool.slots {
		return fmt.Errorf("pin epoch %d of region %d: %w", cp.Epoch, id, namespace.ErrInvalid)
	}
	err := d.saveCheckpoint(ctx, id, cp)
	if err != nil && !errors.Is(err, namespace.ErrExist) {
		return fmt.Errorf("pin epoch %d of region %d: %w", cp.Epoch, id, err)
	}
	return nil
}

// DropPin forgets the pin of an epoch, if there is one. Then its slots are the
// writer's to use again.
func (p *Pool) DropPin(ctx context.Context, id region.ID, e epoch.ID) error {
	key := keyName(uint64(id), region.PinName(e))
	err := p.update(ctx, func(t txn) error {
		old, err := t.get(bucketCheckpoints, key)
		if err != nil {
			return err
		}
		if old == nil {
			return errUnchanged
		}
		return t.delete(bucketCheckpoints, key)
	})
	if err != nil {
		return fmt.Errorf("unpin epoch %d of region %d: %w", e, id, err)
	}
	return nil
}

// pinned tells whether a region has a pin.
func (t txn) pinned(id region.ID) (bool, error) {
	none, err := t.empty(bucketCheckpoints, keyName(uint64(id), region.HiddenPrefix))
	return !none, err
}

// dropPins forgets all pins.
func (t txn) dropPins() error {
	b, err := t.bucket(bucketCheckpoints)
	if err != nil {
		return err
	}
	var pins [][]byte
	c := b.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if len(k) > 8 && bytes.HasPrefix(k[8:], []byte(region.HiddenPrefix)) {
			pins = append(pins, bytes.Clone(k))
		}
	}
	for _, k := range pins {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}
