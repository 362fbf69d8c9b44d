package memnode

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A directory is names, attributes and space of one share, or of the whole pool: what
// Pool and View have in common.
type directory struct {
	pool  *Pool         // immutable
	share namespace.Ino // immutable; namespace.Root: the whole pool
	fence *Fence        // immutable; nil: never ends
}

var (
	_ namespace.Directory = (*directory)(nil)
	_ region.Space        = (*directory)(nil)
)

// view runs fn on the share as it is.
func (d *directory) view(ctx context.Context, fn func(txn) error) error {
	return d.pool.view(ctx, func(t txn) error {
		if d.fence.over() {
			return rdmacache.ErrFenced
		}
		return fn(t.of(d.share))
	})
}

// update commits what fn changes, and puts into out, once: see WithRequest.
func (d *directory) update(ctx context.Context, out result, fn func(txn) error) error {
	r := requestOf(ctx)
	return d.pool.update(ctx, func(t txn) error {
		// In the transaction: those that follow the one which ends the lease
		// find the fence ended.
		if d.fence.over() {
			return rdmacache.ErrFenced
		}
		t = t.of(d.share)
		if done, err := t.repeated(r, out); err != nil || done {
			return cmp.Or(err, errUnchanged)
		}
		if err := fn(t); err != nil {
			return err
		}
		return t.remember(r, out)
	})
}

// resize commits a change of the slots that the share has. The session reaches what
// it was granted once that is durable, and nothing of what was freed when others may
// get it.
func (d *directory) resize(ctx context.Context, out result, fn func(txn) (granted, freed []region.Run, err error)) error {
	var freed []region.Run
	err := d.fence.change(func() (granted, _ []region.Run, err error) {
		err = d.update(ctx, out, func(t txn) error {
			granted, freed, err = fn(t)
			return err
		})
		return granted, freed, err
	})
	if err != nil {
		return err
	}
	d.pool.release(freed)
	return nil
}

// Usage counts slots and inodes. A share with a quota is as big as that.
func (d *directory) Usage(ctx context.Context) (u namespace.Usage, err error) {
	room := uint64(math.MaxUint64)
	u.Slots = d.pool.slots - 1
	err = d.view(ctx, func(t txn) error {
		if d.share == namespace.Root {
			state, err := t.state()
			u.Inodes = state.inodes
			return err
		}
		rec, err := t.shareRecord(namespace.Root)
		u.Inodes = rec.inodes
		if room = rec.room(); rec.quota > 0 {
			u.Slots = min(u.Slots, rec.quota/region.PageSize)
		}
		return err
	})
	if err != nil {
		return namespace.Usage{}, err
	}
	d.pool.mu.Lock()
	defer d.pool.mu.Unlock()
	u.FreeSlots = min(room, d.pool.free.slots)
	return u, nil
}

// A View is the pool as the holder of a lease sees it: one share, whose directory has
// the number namespace.Root, and nothing of others: their inodes are
// namespace.ErrNotExist. All other numbers are those of the pool. Space is granted up
// to the share's quota. It is safe for concurrent use.
//
// Once its Fence has ended every call returns rdmacache.ErrFenced, and a change that
// began before is committed before any lease is granted.
type View struct{ directory }

// View returns the pool as the holder of a lease of share sees it; namespace.Root
// shows all of it. Each session needs a View of its own.
func (p *Pool) View(share namespace.Ino) *View {
	return &View{directory{pool: p, share: share, fence: &Fence{pool: p, share: share}}}
}

// Fence returns the session's way to the bytes of the share: the same one at every
// call. It costs a walk through the share.
func (v *View) Fence(ctx context.Context) (*Fence, error) {
	if err := v.fence.load(func() ([]region.Run, error) { return v.Extents(ctx) }); err != nil {
		return nil, err
	}
	return v.fence, nil
}

// Extents returns all slots of the share's regions, sorted.
func (v *View) Extents(ctx context.Context) (runs []region.Run, err error) {
	err = v.view(ctx, func(t txn) error {
		runs, err = t.allExtents()
		return err
	})
	return runs, err
}

// allExtents returns the extents of all regions of the share, sorted by slot.
func (t txn) allExtents() (runs []region.Run, err error) {
	add := func(_ region.ID, r region.Run) error {
		runs = append(runs, r)
		return nil
	}
	if t.share == namespace.Root {
		err = t.eachExtent(nil, add)
	} else {
		var files []namespace.Ino
		if files, err = t.files(); err != nil {
			return nil, err
		}
		for _, ino := range files {
			if err = t.eachExtent(key1(uint64(ino)), add); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(runs, func(a, b region.Run) int { return cmp.Compare(a.Start, b.Start) })
	return runs, err
}

// files returns the regular files of the share, those without names too, each once.
func (t txn) files() ([]namespace.Ino, error) {
	if _, err := t.dir(namespace.Root); err != nil {
		return nil, err
	}
	files, err := t.orphans(0, -1)
	if err != nil {
		return nil, err
	}
	seen := map[namespace.Ino]bool{}
	for dirs := []namespace.Ino{namespace.Root}; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		if seen[dir] {
			return nil, corruptValue(bucketDirents, key1(uint64(dir)), "a directory is below itself")
		}
		seen[dir] = true
		err := t.eachDirent(dir, func(_ string, e dirent) error {
			switch {
			case isDir(e.mode):
				dirs = append(dirs, e.ino)
			case isRegular(e.mode):
				files = append(files, e.ino)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(files)
	return slices.Compact(files), nil // a file may have several names
}

// orphans returns up to n inodes of the share without names, with numbers above
// after; all, if n is negative.
func (t txn) orphans(after namespace.Ino, n int) ([]namespace.Ino, error) {
	b, err := t.bucket(bucketOrphans)
	if err != nil {
		return nil, err
	}
	var inos []namespace.Ino
	c := b.Cursor()
	for k, v := c.Seek(key1(uint64(after) + 1)); k != nil && len(inos) != n; k, v = c.Next() {
		body, err := openValue(bucketOrphans, k, v)
		if err != nil {
			return nil, err
		}
		if err := decodeMark(body); err != nil || len(k) != 8 {
			return nil, corruptValue(bucketOrphans, k, "bad entry")
		}
		ino := namespace.Ino(binary.BigEndian.Uint64(k))
		if t.share != namespace.Root {
			if _, err := t.inode(ino); errors.Is(err, namespace.ErrNotExist) {
				continue // of another share
			} else if err != nil {
				return nil, err
			}
		}
		inos = append(inos, ino)
	}
	return inos, nil
}
