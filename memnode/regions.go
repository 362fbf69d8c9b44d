package memnode

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// Locate returns what the directory knows of a region. A file that was never
// written has no superblock and no extents.
func (d *directory) Locate(ctx context.Context, id region.ID) (loc region.Location, err error) {
	err = d.view(ctx, func(t txn) error {
		if _, err := t.regular(id); err != nil {
			return err
		}
		rec, err := t.region(id)
		if err != nil {
			return err
		}
		loc = region.Location{ID: id, Super: rec.super}
		if loc.Extents, err = t.extents(id); err != nil {
			return err
		}
		if loc.Checkpoints, err = t.checkpoints(id); err != nil {
			return err
		}
		loc.Family, err = t.relatives(id, rec.family)
		return err
	})
	if err != nil {
		return region.Location{}, fmt.Errorf("locate region %d: %w", id, err)
	}
	return loc, nil
}

// SaveCheckpoint keeps a committed epoch under a name of its own, durably. The
// caller sees to it that the tree is persistent and its slots stay.
func (d *directory) SaveCheckpoint(ctx context.Context, id region.ID, cp region.Checkpoint) error {
	if err := checkCheckpointName(cp.Name); err != nil {
		return err
	}
	return d.saveCheckpoint(ctx, id, cp)
}

func (d *directory) saveCheckpoint(ctx context.Context, id region.ID, cp region.Checkpoint) error {
	key := keyName(uint64(id), cp.Name)
	body := encodeCheckpoint(&cp)
	if _, err := decodeCheckpoint(cp.Name, body); err != nil {
		return fmt.Errorf("checkpoint %q: %w: %w", cp.Name, namespace.ErrInvalid, err)
	}
	if uint64(cp.Tree.Root) >= d.pool.slots {
		return fmt.Errorf("checkpoint %q: %w: root in slot %d of %d", cp.Name, namespace.ErrInvalid, cp.Tree.Root, d.pool.slots)
	}
	return d.update(ctx, result{}, func(t txn) error {
		if _, err := t.regular(id); err != nil {
			return err
		}
		old, err := t.get(bucketCheckpoints, key)
		if err != nil {
			return err
		}
		if old != nil {
			return namespace.ErrExist
		}
		return t.put(bucketCheckpoints, key, body)
	})
}

// DropCheckpoint forgets a checkpoint. Its slots are the caller's to use again.
func (d *directory) DropCheckpoint(ctx context.Context, id region.ID, name string) error {
	if err := checkCheckpointName(name); err != nil {
		return err
	}
	key := keyName(uint64(id), name)
	return d.update(ctx, result{}, func(t txn) error {
		if _, err := t.regular(id); err != nil {
			return err
		}
		old, err := t.get(bucketCheckpoints, key)
		if err != nil {
			return err
		}
		if old == nil {
			return namespace.ErrNotExist
		}
		return t.delete(bucketCheckpoints, key)
	})
}

func checkCheckpointName(name string) error {
	switch {
	case len(name) > region.MaxCheckpointName:
		return namespace.ErrNameTooLong
	case name == "" || strings.ContainsRune(name, 0):
		return namespace.ErrInvalid
	}
	return nil
}

// checkpoints returns a region's checkpoints, sorted by name.
func (t txn) checkpoints(id region.ID) (cps []region.Checkpoint, err error) {
	err = t.each(bucketCheckpoints, key1(uint64(id)), func(key, body []byte) error {
		cp, err := decodeCheckpoint(string(key[8:]), body)
		if err != nil {
			return corruptValue(bucketCheckpoints, key, err.Error())
		}
		cps = append(cps, cp)
		return nil
	})
	return cps, err
}

// Clone adds a file under a new name whose region begins as seed: with the pages
// of src, in the slots of src. Both become of one family, so that neither uses a
// slot again that the other needs. seed.ID is filled in.
//
// The caller sees to it that the seed's tree is persistent and that src keeps
// its slots until Clone returned. ErrCrossShare if the two are not of one share.
func (d *directory) Clone(ctx context.Context, src region.ID, parent namespace.Ino, name string, n namespace.Inode, seed region.Seed) (made namespace.Inode, err error) {
	if err := checkNew(name, &n); err != nil {
		return namespace.Inode{}, err
	}
	if !isRegular(n.Mode) {
		return namespace.Inode{}, namespace.ErrInvalid
	}
	// Look before slots are taken and written; the transaction looks again.
	out, done := result{inode: &made}, false
	err = d.view(ctx, func(t txn) error {
		if done, err = t.repeated(requestOf(ctx), out); err != nil || done {
			return err
		}
		if n.Share, err = d.checkClone(t, src, parent, name); err != nil {
			return err
		}
		room, err := t.room(n.Share)
		if err == nil && room < region.MinFirstGrant {
			err = errQuota
		}
		return err
	})
	if err != nil || done {
		return made, err
	}
	if d.pool.readOnly {
		return namespace.Inode{}, ErrReadOnly
	}
	ino := d.pool.reserveIno()
	seed.ID = region.ID(ino)
	runs, err := d.pool.take(region.MinFirstGrant, region.MinFirstGrant, region.MinFirstGrant)
	if err != nil {
		return namespace.Inode{}, err
	}
	rec := regionRecord{}
	if rec.super, err = region.Format(ctx, device{d.pool}, runs[0], seed); err != nil {
		d.pool.untake(runs, err)
		return namespace.Inode{}, err
	}
	rest := runs // as in Grant
	err = d.resize(ctx, out, func(t txn) (granted, _ []region.Run, err error) {
		if _, err := d.checkClone(t, src, parent, name); err != nil {
			return nil, nil, err
		}
		if made, err = d.addInode(t, parent, name, n, ino); err != nil {
			return nil, nil, err
		}
		if seed.Tree != (region.Tree{}) {
			if rec.family, err = t.joinFamily(src, seed.ID); err != nil {
				return nil, nil, err
			}
		}
		if err := t.putRegion(seed.ID, rec); err != nil {
			return nil, nil, err
		}
		if err := t.charge(n.Share, 0, slotsOf(runs)); err != nil {
			return nil, nil, err
		}
		rest = nil
		return runs, nil, t.addExtents(seed.ID, runs)
	})
	if err != nil {
		d.pool.untake(runs, err)
		return namespace.Inode{}, err
	}
	d.pool.untake(rest, nil)
	return made, nil
}

// checkClone makes sure that src can be cloned to a name, and returns the share of
// both.
func (d *directory) checkClone(t txn, src region.ID, parent namespace.Ino, name string) (share namespace.Ino, err error) {
	n, err := t.regular(src)
	if err != nil {
		return 0, err
	}
	share, err = d.checkFree(t, parent, name)
	if err == nil && share != n.Share {
		err = namespace.ErrCrossShare
	}
	return share, err
}

// joinFamily makes id a member of src's family, which it founds if there is
// none, and returns the family: the ID of the region that was cloned first.
func (t txn) joinFamily(src, id region.ID) (family uint64, err error) {
	if _, err := t.regular(src); err != nil {
		return 0, err
	}
	rec, err := t.region(src)
	if err != nil {
		return 0, err
	}
	if rec.super == 0 {
		return 0, fmt.Errorf("%w: region %d has no pages to share", namespace.ErrInvalid, src)
	}
	if rec.family == 0 {
		rec.family = uint64(src)
		if err := t.putRegion(src, rec); err != nil {
			return 0, err
		}
		if err := t.put(bucketFamilies, key2(rec.family, uint64(src)), encodeMark()); err != nil {
			return 0, err
		}
	}
	return rec.family, t.put(bucketFamilies, key2(rec.family, uint64(id)), encodeMark())
}

// Reap frees an inode without names. Nothing may use its region any more:
// region.ErrPinned while readers show one of its epochs. If
// others of its family live, the one with the lowest number, heir, owns its
// slots from then on: which of them are still needed only a sweep of that region
// can tell.
func (d *directory) Reap(ctx context.Context, ino namespace.Ino) (heir namespace.Ino, err error) {
	err = d.resize(ctx, result{heir: &heir}, func(t txn) (_, freed []region.Run, err error) {
		heir, freed, err = t.reap(ino)
		return nil, freed, err
	})
	if err != nil {
		return 0, fmt.Errorf("reap inode %d: %w", ino, err)
	}
	return heir, nil
}

// reap deletes all that belongs to ino and returns what slots become free.
func (t txn) reap(ino namespace.Ino) (heir namespace.Ino, freed []region.Run, err error) {
	n, err := t.inode(ino)
	if err != nil {
		return 0, nil, err
	}
	if n.Nlink > 0 {
		return 0, nil, namespace.ErrInvalid
	}
	if pinned, err := t.pinned(region.ID(ino)); err != nil || pinned {
		return 0, nil, cmp.Or(err, region.ErrPinned)
	}
	state, err := t.state()
	if err != nil {
		return 0, nil, err
	}
	if state.inodes == 0 {
		return 0, nil, corruptValue(bucketPool, []byte("state"), "no inodes, but one to reap")
	}
	state.inodes--
	if err := t.putState(state); err != nil {
		return 0, nil, err
	}
	if isRegular(n.Mode) {
		if heir, freed, err = t.reapRegion(region.ID(ino)); err != nil {
			return 0, nil, err
		}
	}
	if err := t.charge(n.Share, -1, -slotsOf(freed)); err != nil {
		return 0, nil, err
	}
	key := key1(uint64(t.number(ino)))
	if err := t.deleteAll(bucketXattrs, key); err != nil {
		return 0, nil, err
	}
	if err := t.delete(bucketOrphans, key); err != nil {
		return 0, nil, err
	}
	return heir, freed, t.delete(bucketInodes, key)
}

// reapRegion deletes a region; its extents pass to a relative or become free.
func (t txn) reapRegion(id region.ID) (heir namespace.Ino, freed []region.Run, err error) {
	rec, err := t.region(id)
	if err != nil {
		return 0, nil, err
	}
	runs, err := t.extents(id)
	if err != nil {
		return 0, nil, err
	}
	relatives, err := t.relatives(id, rec.family)
	if err != nil {
		return 0, nil, err
	}
	if rec.family != 0 {
		if err := t.delete(bucketFamilies, key2(rec.family, uint64(id))); err != nil {
			return 0, nil, err
		}
	}
	for _, r := range runs {
		if err := t.delete(bucketExtents, key2(uint64(id), uint64(r.Start))); err != nil {
			return 0, nil, err
		}
	}
	if len(relatives) > 0 {
		heir = namespace.Ino(relatives[0])
		if err := t.addExtents(relatives[0], runs); err != nil {
			return 0, nil, err
		}
		runs = nil
	}
	if err := t.deleteAll(bucketCheckpoints, key1(uint64(id))); err != nil {
		return 0, nil, err
	}
	return heir, runs, t.delete(bucketRegions, key1(uint64(id)))
}
