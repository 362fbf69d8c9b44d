package memnode

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/region"
)

// minDiscardSlots is the shortest run that is given back to the file system
// below when it becomes free: punching many small holes costs more than it
// frees.
const minDiscardSlots = 16

// Grant gives a region slots, durably, and formats it if they are its first.
//
// ErrNoSpace if fewer than need are left in the pool or to the share, or, for a first
// grant, if no run has region.MinFirstGrant. namespace.ErrNotExist if there is no such
// file.
func (d *directory) Grant(ctx context.Context, id region.ID, need, want uint64) (g region.Grant, err error) {
	var (
		rec   regionRecord
		first uint64 // the least that the first run must have
		room  uint64
		out   = result{grant: &g}
		done  bool
	)
	err = d.view(ctx, func(t txn) error {
		if done, err = t.repeated(requestOf(ctx), out); err != nil || done {
			return err
		}
		n, err := t.regular(id)
		if err != nil {
			return err
		}
		if rec, err = t.region(id); err != nil {
			return err
		}
		if rec.super == 0 {
			first = region.MinFirstGrant
		}
		need = max(need, first, 1)
		if room, err = t.room(n.Share); err == nil && room < need {
			err = fmt.Errorf("%w: %d slots wanted, %d left", errQuota, need, room)
		}
		return err
	})
	if err != nil || done {
		return g, err
	}
	if d.pool.readOnly {
		return region.Grant{}, ErrReadOnly
	}
	runs, err := d.pool.take(need, min(want, room), first)
	if err != nil {
		return region.Grant{}, err
	}
	if rec.super == 0 {
		// Flushed before the transaction that makes it the region's.
		rec.super, err = region.Format(ctx, device{d.pool}, runs[0], region.Seed{ID: id})
		if err != nil {
			d.pool.untake(runs, err)
			return region.Grant{}, err
		}
	}
	rest := runs // all, if the request turns out to be done by now
	err = d.resize(ctx, out, func(t txn) (granted, _ []region.Run, err error) {
		n, err := t.regular(id)
		if err != nil {
			return nil, nil, err // reaped meanwhile
		}
		now, err := t.region(id)
		if err != nil {
			return nil, nil, err
		}
		if now.super == 0 {
			if err := t.putRegion(id, rec); err != nil {
				return nil, nil, err
			}
			now = rec
		}
		// Another region of the share may have got some of the room meanwhile.
		if room, err = t.room(n.Share); err != nil {
			return nil, nil, err
		}
		if granted, rest = cutRuns(runs, room); slotsOf(granted) < int64(need) {
			return nil, nil, fmt.Errorf("%w: %d slots wanted, %d left", errQuota, need, room)
		}
		if err := t.charge(n.Share, 0, slotsOf(granted)); err != nil {
			return nil, nil, err
		}
		g = region.Grant{Runs: granted, Super: now.super}
		return granted, nil, t.addExtents(id, granted)
	})
	if err != nil {
		d.pool.untake(runs, err)
		return region.Grant{}, err
	}
	d.pool.untake(rest, nil)
	return g, nil
}

// cutRuns returns the first n slots of runs, and the others.
func cutRuns(runs []region.Run, n uint64) (head, tail []region.Run) {
	for i, r := range runs {
		if r.N > n {
			if n > 0 {
				head = append(head, region.Run{Start: r.Start, N: n})
			}
			tail = append(tail, region.Run{Start: r.Start + region.Slot(n), N: r.N - n})
			return head, append(tail, runs[i+1:]...)
		}
		head = append(head, r)
		n -= r.N
	}
	return head, nil
}

// slotsOf counts the slots of runs, which fit the pool.
func slotsOf(runs []region.Run) int64 {
	n := uint64(0)
	for _, r := range runs {
		n += r.N
	}
	return int64(n)
}

// take takes slots from the free list for a transaction to come. The first run
// has first slots at least, which need is not below. Where shares have owners of their
// own there are zeros in all of them that another owner may have stored to.
func (p *Pool) take(need, want, first uint64) ([]region.Run, error) {
	p.mu.Lock()
	runs := p.free.take(need, want, first)
	if runs == nil {
		defer p.mu.Unlock()
		return nil, fmt.Errorf("%w: %d slots wanted, %d free in %d runs", region.ErrNoSpace, need, p.free.slots, len(p.free.runs))
	}
	unwiped := p.unwiped.common(runs)
	p.mu.Unlock()
	if len(unwiped) == 0 {
		return runs, nil
	}
	// Durable before the transaction that grants them: a crash after it would leave
	// the old bytes to the new owner.
	if err := p.empty(unwiped); err != nil {
		p.untake(runs, nil)
		return nil, fmt.Errorf("wipe free slots: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unwiped = p.unwiped.without(unwiped)
	return runs, nil
}

// untake puts runs back after err, unless err leaves open who owns them: then
// they stay lost until the pool is opened again.
func (p *Pool) untake(runs []region.Run, err error) {
	if errors.Is(err, ErrPoisoned) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free.give(runs)
}

// release makes runs free that a committed transaction took from their owner. The
// next one finds zeros in them where shares have owners of their own.
func (p *Pool) release(runs []region.Run) {
	if len(runs) == 0 {
		return
	}
	p.revoke(runs)
	var err error
	if p.serving {
		err = p.empty(runs)
	} else {
		_, err = p.discard(runs)
	}
	if err != nil {
		p.log.Warn("free slots keep what was in them", "slots", slotsOf(runs), "error", err)
		if p.serving {
			return // nobody gets them before the pool is opened again; then take wipes them
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free.give(runs)
}

// discard gives long runs back to the file system below, and returns the others.
func (p *Pool) discard(runs []region.Run) (kept []region.Run, err error) {
	d, ok := p.media.(media.Discarder)
	for _, r := range runs {
		if !ok || r.N < minDiscardSlots {
			kept = append(kept, r)
			continue
		}
		err := d.Discard(r.Start.Offset(), int64(r.N)*region.PageSize)
		if errors.Is(err, errors.ErrUnsupported) {
			ok, kept = false, append(kept, r)
		} else if err != nil {
			return nil, err
		}
	}
	return kept, nil
}

// empty puts zeros into runs, durably.
func (p *Pool) empty(runs []region.Run) error {
	kept, err := p.discard(runs)
	if err != nil {
		return err
	}
	return p.wipe(kept)
}

// wipe writes zeros to runs, and makes them and all that was discarded durable.
func (p *Pool) wipe(runs []region.Run) error {
	zeros := make([]byte, minDiscardSlots*region.PageSize)
	for _, r := range runs {
		for at := r.Start; at < r.End(); at += minDiscardSlots {
			n := min(uint64(r.End()-at), minDiscardSlots)
			if err := p.WriteAt(zeros[:n*region.PageSize], at.Offset()); err != nil {
				return err
			}
		}
	}
	return p.media.Flush()
}

// Return takes slots back from a region. Each run must be inside one of its
// extents and not hold its superblocks: ErrNotOwned. namespace.ErrNotExist if there is
// no such file.
func (d *directory) Return(ctx context.Context, id region.ID, runs []region.Run) error {
	if len(runs) == 0 {
		return nil
	}
	err := d.resize(ctx, result{}, func(t txn) (_, freed []region.Run, err error) {
		n, err := t.regular(id)
		if err != nil {
			return nil, nil, err
		}
		rec, err := t.region(id)
		if err != nil {
			return nil, nil, err
		}
		super := region.Run{Start: rec.super, N: 2}
		for _, r := range runs {
			if r.N == 0 || r.Start >= region.MaxSlot || r.N > uint64(region.MaxSlot) || overlap(r, super) {
				return nil, nil, fmt.Errorf("%w: %d slots from %d", ErrNotOwned, r.N, r.Start)
			}
			if err := t.removeExtent(id, r); err != nil {
				return nil, nil, err
			}
		}
		return nil, runs, t.charge(n.Share, 0, -slotsOf(runs))
	})
	if err != nil {
		return fmt.Errorf("return slots of region %d: %w", id, err)
	}
	return nil
}

func overlap(a, b region.Run) bool { return a.Start < b.End() && b.Start < a.End() }

// addExtents makes runs, which nobody owns, those of a region. One that begins
// where an extent of the region ends becomes part of it.
func (t txn) addExtents(id region.ID, runs []region.Run) error {
	for _, r := range runs {
		before, err := t.extentBefore(id, r.Start)
		if err != nil {
			return err
		}
		if before.N > 0 && before.End() == r.Start {
			r = region.Run{Start: before.Start, N: before.N + r.N}
		}
		if err := t.putExtent(id, r); err != nil {
			return err
		}
	}
	return nil
}

func (t txn) putExtent(id region.ID, r region.Run) error {
	return t.put(bucketExtents, key2(uint64(id), uint64(r.Start)), encodeExtent(r.N))
}

// removeExtent takes r, which must be inside one extent, from a region.
func (t txn) removeExtent(id region.ID, r region.Run) error {
	x, err := t.extentBefore(id, r.Start+1)
	if err != nil {
		return err
	}
	if x.N == 0 || r.End() > x.End() {
		return fmt.Errorf("%w: %d slots from %d", ErrNotOwned, r.N, r.Start)
	}
	if r.Start > x.Start {
		err = t.putExtent(id, region.Run{Start: x.Start, N: uint64(r.Start - x.Start)})
	} else {
		err = t.delete(bucketExtents, key2(uint64(id), uint64(x.Start)))
	}
	if err != nil || r.End() == x.End() {
		return err
	}
	return t.putExtent(id, region.Run{Start: r.End(), N: uint64(x.End() - r.End())})
}

// extentBefore returns the region's last extent that begins before slot s, or
// none.
func (t txn) extentBefore(id region.ID, s region.Slot) (region.Run, error) {
	b, err := t.bucket(bucketExtents)
	if err != nil {
		return region.Run{}, err
	}
	c := b.Cursor()
	before := c.Prev
	if k, _ := c.Seek(key2(uint64(id), uint64(s))); k == nil {
		before = c.Last
	}
	k, v := before()
	if len(k) != 16 || !bytes.Equal(k[:8], key1(uint64(id))) {
		return region.Run{}, nil
	}
	body, err := openValue(bucketExtents, k, v)
	if err != nil {
		return region.Run{}, err
	}
	r, err := decodeExtent(region.Slot(binary.BigEndian.Uint64(k[8:])), body)
	if err != nil {
		return region.Run{}, corruptValue(bucketExtents, k, err.Error())
	}
	return r, nil
}
