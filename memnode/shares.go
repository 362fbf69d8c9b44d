package memnode

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// A Share is a directory in the root of the pool that is leased as a whole. Nothing
// moves in or out of it but by copying.
type Share struct {
	Ino       namespace.Ino // of its directory
	Name      string
	Quota     uint64 // bytes that its regions may be granted; 0: no limit
	UsedBytes uint64 // granted to its regions
	Inodes    uint64 // in it, its directory too
	Names     uint64 // bytes that its names, attributes and the like take
	NamesMax  uint64 // and may take
	Lease     *Lease // nil: nobody has it; that of the whole pool is not shown here
}

// errQuota reports a share that has all it may have.
var errQuota = fmt.Errorf("%w: quota of the share", region.ErrNoSpace)

// MakeShare makes an empty share, durably. quota is in bytes; 0 is no limit.
// namespace.ErrExist if the name is taken. ErrLeased if somebody has the whole pool:
// who does, trusts that nobody else changes it.
func (p *Pool) MakeShare(ctx context.Context, name string, quota uint64) (made namespace.Inode, err error) {
	if err := checkName(name); err != nil {
		return namespace.Inode{}, fmt.Errorf("make share %q: %w", name, err)
	}
	err = p.update(ctx, func(t txn) error {
		if whole, err := t.lease(namespace.Root); err != nil {
			return err
		} else if whole != nil {
			return whole.refusal()
		}
		if _, err := p.checkFree(t, namespace.Root, name); err != nil {
			return err
		}
		ino := p.reserveIno()
		if ino > maxShareIno {
			return fmt.Errorf("%w: inode numbers of shares", region.ErrNoSpace)
		}
		if err := t.putShare(ino, shareRecord{quota: quota}); err != nil {
			return err
		}
		if err := t.put(bucketNames, key1(uint64(ino)), (&namesRecord{}).encode()); err != nil {
			return err
		}
		now := p.now().UnixNano()
		made, err = p.addInode(t, namespace.Root, name, namespace.Inode{
			Mode: unix.S_IFDIR | 0o755, Share: ino, Atime: now, Mtime: now, Ctime: now,
		}, ino)
		return err
	})
	if err != nil {
		return namespace.Inode{}, fmt.Errorf("make share %q: %w", name, err)
	}
	return made, nil
}

// SetQuota changes the quota of a share, in bytes; 0 is no limit. A share that has
// more keeps it. namespace.ErrNotExist if there is no share of that name.
func (p *Pool) SetQuota(ctx context.Context, name string, quota uint64) error {
	err := p.update(ctx, func(t txn) error {
		ino, rec, err := t.shareNamed(name)
		if err != nil {
			return err
		}
		rec.quota = quota
		return t.putShare(ino, rec)
	})
	if err != nil {
		return fmt.Errorf("set quota of share %q: %w", name, err)
	}
	return nil
}

// Share returns a share by its name. namespace.ErrNotExist if there is none.
func (p *Pool) Share(ctx context.Context, name string) (s Share, err error) {
	err = p.view(ctx, func(t txn) error {
		ino, rec, err := t.shareNamed(name)
		if err != nil {
			return err
		}
		s, err = t.describeShare(ino, name, rec)
		return err
	})
	if err != nil {
		return Share{}, fmt.Errorf("share %q: %w", name, err)
	}
	return s, nil
}

// Shares returns all shares, sorted by name.
func (p *Pool) Shares(ctx context.Context) (shares []Share, err error) {
	err = p.view(ctx, func(t txn) error {
		return t.eachDirent(namespace.Root, func(name string, e dirent) error {
			rec, err := t.shareRecord(e.ino)
			if errors.Is(err, namespace.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			s, err := t.describeShare(e.ino, name, rec)
			shares = append(shares, s)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list shares: %w", err)
	}
	return shares, nil
}

func (t txn) describeShare(ino namespace.Ino, name string, rec shareRecord) (Share, error) {
	lease, err := t.lease(ino)
	if err != nil {
		return Share{}, err
	}
	names, err := t.names(ino)
	if errors.Is(err, namespace.ErrNotExist) { // nobody has counted yet, in a pool that is only read
		err = nil
	}
	return Share{
		Ino: ino, Name: name, Quota: rec.quota, UsedBytes: rec.slots * region.PageSize, Inodes: rec.inodes,
		Names: names.used, NamesMax: names.limit(), Lease: lease,
	}, err
}

// shareNamed returns ErrNotExist if the name is not there or not that of a share.
func (t txn) shareNamed(name string) (namespace.Ino, shareRecord, error) {
	if err := checkName(name); err != nil {
		return 0, shareRecord{}, err
	}
	e, err := t.dirent(namespace.Root, name)
	if err != nil {
		return 0, shareRecord{}, err
	}
	rec, err := t.shareRecord(e.ino)
	return e.ino, rec, err
}

// shareRecord returns ErrNotExist if ino is not a share.
func (t txn) shareRecord(ino namespace.Ino) (shareRecord, error) {
	key := key1(uint64(t.number(ino)))
	body, err := t.get(bucketShares, key)
	if err != nil {
		return shareRecord{}, err
	}
	if body == nil {
		return shareRecord{}, namespace.ErrNotExist
	}
	var r shareRecord
	if err := r.decode(body); err != nil {
		return shareRecord{}, corruptValue(bucketShares, key, err.Error())
	}
	return r, nil
}

func (t txn) putShare(ino namespace.Ino, r shareRecord) error {
	return t.put(bucketShares, key1(uint64(t.number(ino))), r.encode())
}

// dropShare makes a directory that lost its name, and is empty, no share any more.
func (t txn) dropShare(ino namespace.Ino) error {
	lease, err := t.lease(ino)
	if err != nil {
		return err
	}
	if lease != nil {
		return lease.refusal()
	}
	if err := t.delete(bucketNames, key1(uint64(t.number(ino)))); err != nil {
		return err
	}
	return t.delete(bucketShares, key1(uint64(t.number(ino))))
}

// isShare tells whether n is the directory of a share.
func isShare(n *namespace.Inode) bool { return n.Share == n.Ino }

// checkBorder refuses to put n into directory dir if they are not of one share. A
// share itself stays in the root.
func checkBorder(n, dir *namespace.Inode) error {
	if n.Share == dir.Share || isShare(n) && dir.Ino == namespace.Root {
		return nil
	}
	return namespace.ErrCrossShare
}

// charge counts what a share gets, or loses: inodes and slots. share is 0 for what is
// in none. errQuota if the share may not have the slots.
func (t txn) charge(share namespace.Ino, inodes, slots int64) error {
	if share == 0 {
		return nil
	}
	rec, err := t.shareRecord(share)
	if errors.Is(err, namespace.ErrNotExist) {
		return nil // it was removed; only orphans are left of it
	}
	if err != nil {
		return err
	}
	if inodes < 0 && rec.inodes < uint64(-inodes) || slots < 0 && rec.slots < uint64(-slots) {
		return corruptValue(bucketShares, key1(uint64(t.number(share))), "less counted than there is")
	}
	if slots > 0 && rec.room() < uint64(slots) {
		return errQuota
	}
	rec.inodes += uint64(inodes)
	rec.slots += uint64(slots)
	return t.putShare(share, rec)
}

// room is how many slots a share may still be granted. share is 0 for none.
func (t txn) room(share namespace.Ino) (uint64, error) {
	if share == 0 {
		return math.MaxUint64, nil
	}
	rec, err := t.shareRecord(share)
	if errors.Is(err, namespace.ErrNotExist) {
		return math.MaxUint64, nil
	}
	return rec.room(), err
}

// A shareRecord is what a share may have, and has.
//
//	Offset Size Field
//	     0    1 version   1
//	     1    7 reserved  zero
//	     8    8 quota     bytes that its regions may be granted; 0: no limit
//	    16    8 slots     granted to its regions
//	    24    8 inodes    in it, its directory too
type shareRecord struct{ quota, slots, inodes uint64 }

const shareRecordSize = 32

// maxShareIno is the largest inode number that fits an inode's field share.
const maxShareIno = 1<<48 - 1

func (r *shareRecord) encode() []byte {
	b := newBody(shareRecordSize)
	binary.LittleEndian.PutUint64(b[8:], r.quota)
	binary.LittleEndian.PutUint64(b[16:], r.slots)
	binary.LittleEndian.PutUint64(b[24:], r.inodes)
	return b
}

func (r *shareRecord) decode(b []byte) error {
	if err := checkBody(b, shareRecordSize, 1, 8); err != nil {
		return err
	}
	n := shareRecord{
		quota:  binary.LittleEndian.Uint64(b[8:]),
		slots:  binary.LittleEndian.Uint64(b[16:]),
		inodes: binary.LittleEndian.Uint64(b[24:]),
	}
	if n.slots >= uint64(region.MaxSlot) {
		return fmt.Errorf("%d slots", n.slots)
	}
	*r = n
	return nil
}

// room is how many slots the share may still be granted.
func (r *shareRecord) room() uint64 {
	if r.quota == 0 {
		return math.MaxUint64
	}
	quota := r.quota / region.PageSize
	return quota - min(r.slots, quota)
}
