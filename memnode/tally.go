package memnode

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// What a share has in meta.db is bounded too: without that one session could fill the
// file system below, and no other could make a file any more. Counted are keys and
// values of all records that belong to an inode of the share, in bytes.

// DefaultNames is how many bytes of names, attributes and the like a share may have
// unless SetNamesQuota says otherwise: those of a few million files.
const DefaultNames = 1 << 30

// errNames reports a share that has all the names and attributes it may have.
var errNames = fmt.Errorf("%w: names and attributes of the share", region.ErrNoSpace)

// tallied are the buckets that count. Their keys begin with the inode's number.
var tallied = []string{bucketInodes, bucketDirents, bucketXattrs, bucketRegions, bucketExtents, bucketCheckpoints}

// A tally is what a transaction adds to each share.
type tally map[namespace.Ino]int64

// counts tells whether a record counts. Those of pins are the readers'.
func counts(bucket string, key []byte) bool {
	return len(key) >= 8 && slices.Contains(tallied, bucket) &&
		!(bucket == bucketCheckpoints && bytes.HasPrefix(key[8:], []byte(region.HiddenPrefix)))
}

// count notes that a record changes from a value to another one; nil: there is none.
func (t txn) count(bucket string, key, was, becomes []byte) error {
	if t.tally == nil || !counts(bucket, key) || len(was) == len(becomes) {
		return nil
	}
	value := becomes
	if bucket != bucketInodes {
		b, err := t.bucket(bucketInodes)
		if err != nil {
			return err
		}
		if value = b.Get(key[:8]); value == nil {
			return nil // of nobody: Check tells
		}
	} else if value == nil {
		value = was
	}
	body, err := openValue(bucketInodes, key[:8], value)
	if err != nil {
		return err
	}
	n, err := decodeInode(namespace.Ino(binary.BigEndian.Uint64(key)), body)
	if err != nil {
		return corruptValue(bucketInodes, key[:8], err.Error())
	}
	if n.Share != 0 {
		t.tally[n.Share] += recordSize(key, becomes) - recordSize(key, was)
	}
	return nil
}

// recordSize is what a record counts.
func recordSize(key, value []byte) int64 {
	if value == nil {
		return 0
	}
	return int64(len(key) + len(value))
}

// settle adds the tally to what the shares have. errNames if one would have too much.
func (t txn) settle() error {
	for share, n := range t.tally {
		rec, err := t.names(share)
		if errors.Is(err, namespace.ErrNotExist) {
			continue // it was removed; only orphans are left of it
		}
		if err != nil {
			return err
		}
		switch {
		case n < 0 && rec.used < uint64(-n):
			return corruptValue(bucketNames, key1(uint64(share)), "less counted than there is")
		case n > 0 && rec.room() < uint64(n):
			return errNames
		}
		rec.used += uint64(n)
		if err := t.put(bucketNames, key1(uint64(share)), rec.encode()); err != nil {
			return err
		}
	}
	return nil
}

// recount counts all of the pool again. It is for pools that were made before anybody
// counted.
func (t txn) recount() error {
	shares := map[namespace.Ino]namespace.Ino{}
	used := map[namespace.Ino]uint64{}
	for _, bucket := range tallied { // inodes come first
		b, err := t.bucket(bucket)
		if err != nil {
			return err
		}
		c := b.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			if !counts(bucket, k) {
				continue
			}
			ino := namespace.Ino(binary.BigEndian.Uint64(k))
			if bucket == bucketInodes {
				body, err := openValue(bucket, k, v)
				if err != nil {
					return err
				}
				n, err := decodeInode(ino, body)
				if err != nil {
					return corruptValue(bucket, k, err.Error())
				}
				shares[ino] = n.Share
			}
			used[shares[ino]] += uint64(recordSize(k, v))
		}
	}
	return t.each(bucketShares, nil, func(key, _ []byte) error {
		share := namespace.Ino(binary.BigEndian.Uint64(key))
		return t.put(bucketNames, key, (&namesRecord{used: used[share]}).encode())
	})
}

// names returns ErrNotExist if share is none.
func (t txn) names(share namespace.Ino) (r namesRecord, err error) {
	key := key1(uint64(share))
	body, err := t.get(bucketNames, key)
	if err != nil {
		return r, err
	}
	if body == nil {
		return r, namespace.ErrNotExist
	}
	if err := r.decode(body); err != nil {
		return r, corruptValue(bucketNames, key, err.Error())
	}
	return r, nil
}

// SetNamesQuota changes how many bytes of names, attributes and the like a share may
// have; 0 is DefaultNames. A share that has more keeps it. namespace.ErrNotExist if there
// is no share of that name.
func (p *Pool) SetNamesQuota(ctx context.Context, name string, quota uint64) error {
	err := p.update(ctx, func(t txn) error {
		share, _, err := t.shareNamed(name)
		if err != nil {
			return err
		}
		rec, err := t.names(share)
		if err != nil {
			return err
		}
		rec.quota = quota
		return t.put(bucketNames, key1(uint64(share)), rec.encode())
	})
	if err != nil {
		return fmt.Errorf("set quota of names of share %q: %w", name, err)
	}
	return nil
}

// A namesRecord is what a share may have in meta.db, and has.
//
//	Offset Size Field
//	     0    1 version   1
//	     1    7 reserved  zero
//	     8    8 quota     bytes; 0: DefaultNames
//	    16    8 used      bytes: keys and values of its inodes' records
type namesRecord struct{ quota, used uint64 }

const namesRecordSize = 24

func (r *namesRecord) encode() []byte {
	b := newBody(namesRecordSize)
	binary.LittleEndian.PutUint64(b[8:], r.quota)
	binary.LittleEndian.PutUint64(b[16:], r.used)
	return b
}

func (r *namesRecord) decode(b []byte) error {
	if err := checkBody(b, namesRecordSize, 1, 8); err != nil {
		return err
	}
	*r = namesRecord{quota: binary.LittleEndian.Uint64(b[8:]), used: binary.LittleEndian.Uint64(b[16:])}
	return nil
}

// limit is what the share may have, in bytes.
func (r *namesRecord) limit() uint64 {
	if r.quota == 0 {
		return DefaultNames
	}
	return r.quota
}

func (r *namesRecord) room() uint64 { return r.limit() - min(r.used, r.limit()) }
