package memnode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// A txn is a transaction of the directory: bbolt's, with typed values that are
// checked when they are read.
//
// It shows one share and nothing else: inodes of others do not exist in it, and the
// share's directory has the number Root. With Root for a share it shows the pool.
type txn struct {
	tx    *bolt.Tx
	share namespace.Ino
	tally tally // of a transaction that counts; shared by all its views
}

// of is the same transaction as the holder of a share sees it.
func (t txn) of(share namespace.Ino) txn { return txn{t.tx, share, t.tally} }

// number is the number in the pool of an inode that the share calls ino.
func (t txn) number(ino namespace.Ino) namespace.Ino {
	if ino == namespace.Root {
		return t.share
	}
	return ino
}

// name is what the share calls an inode of the pool.
func (t txn) name(ino namespace.Ino) namespace.Ino {
	if ino == t.share {
		return namespace.Root
	}
	return ino
}

// bucket returns nil for one that a pool opened for reading may lack: nothing is
// in it.
func (t txn) bucket(name string) (*bolt.Bucket, error) {
	b := t.tx.Bucket([]byte(name))
	if b == nil && (t.tx.Writable() || !slices.Contains(lateBuckets, name)) {
		return nil, &CorruptError{File: "meta.db", Name: name, What: "bucket missing"}
	}
	return b, nil
}

// get returns the body of a value, which is valid until the transaction ends, or
// nil.
func (t txn) get(bucket string, key []byte) ([]byte, error) {
	b, err := t.bucket(bucket)
	if b == nil {
		return nil, err
	}
	v := b.Get(key)
	if v == nil {
		return nil, nil
	}
	return openValue(bucket, key, v)
}

func (t txn) put(bucket string, key, body []byte) error {
	b, err := t.bucket(bucket)
	if err != nil {
		return err
	}
	value := sealValue(bucket, key, body)
	if err := t.count(bucket, key, b.Get(key), value); err != nil {
		return err
	}
	return b.Put(key, value)
}

func (t txn) delete(bucket string, key []byte) error {
	b, err := t.bucket(bucket)
	if err != nil {
		return err
	}
	if err := t.count(bucket, key, b.Get(key), nil); err != nil {
		return err
	}
	return b.Delete(key)
}

// each calls fn in key order for every entry whose key begins with prefix. Key
// and body are valid until the transaction ends. fn must not change the bucket.
func (t txn) each(bucket string, prefix []byte, fn func(key, body []byte) error) error {
	b, err := t.bucket(bucket)
	if b == nil {
		return err
	}
	c := b.Cursor()
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		body, err := openValue(bucket, k, v)
		if err != nil {
			return err
		}
		if err := fn(k, body); err != nil {
			return err
		}
	}
	return nil
}

// empty tells whether no key begins with prefix.
func (t txn) empty(bucket string, prefix []byte) (bool, error) {
	b, err := t.bucket(bucket)
	if err != nil {
		return false, err
	}
	k, _ := b.Cursor().Seek(prefix)
	return k == nil || !bytes.HasPrefix(k, prefix), nil
}

// deleteAll deletes every entry whose key begins with prefix.
func (t txn) deleteAll(bucket string, prefix []byte) error {
	b, err := t.bucket(bucket)
	if err != nil {
		return err
	}
	// A cursor loses its place when its bucket changes.
	var keys [][]byte
	c := b.Cursor()
	for k, _ := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := t.delete(bucket, k); err != nil {
			return err
		}
	}
	return nil
}

func (t txn) pool() (poolRecord, error) {
	key := []byte("pool")
	body, err := t.get(bucketPool, key)
	if err != nil {
		return poolRecord{}, err
	}
	var r poolRecord
	if err := r.decode(body); err != nil {
		return poolRecord{}, corruptValue(bucketPool, key, err.Error())
	}
	return r, nil
}

func (t txn) state() (stateRecord, error) {
	key := []byte("state")
	body, err := t.get(bucketPool, key)
	if err != nil {
		return stateRecord{}, err
	}
	var r stateRecord
	if err := r.decode(body); err != nil {
		return stateRecord{}, corruptValue(bucketPool, key, err.Error())
	}
	return r, nil
}

func (t txn) putState(r stateRecord) error { return t.put(bucketPool, []byte("state"), r.encode()) }

// inode returns ErrNotExist if there is none of that number in the share.
func (t txn) inode(ino namespace.Ino) (namespace.Inode, error) {
	if ino == t.share && ino != namespace.Root {
		return namespace.Inode{}, namespace.ErrNotExist // its number here is Root
	}
	ino = t.number(ino)
	key := key1(uint64(ino))
	body, err := t.get(bucketInodes, key)
	if err != nil {
		return namespace.Inode{}, err
	}
	if body == nil {
		return namespace.Inode{}, namespace.ErrNotExist
	}
	n, err := decodeInode(ino, body)
	if err != nil {
		return namespace.Inode{}, corruptValue(bucketInodes, key, err.Error())
	}
	if t.share == namespace.Root {
		return n, nil
	}
	if n.Share == 0 || n.Share != t.share {
		return namespace.Inode{}, namespace.ErrNotExist
	}
	return t.shown(n), nil
}

// shown is an inode of the pool, and of the share, as the share sees it.
func (t txn) shown(n namespace.Inode) namespace.Inode {
	if n.Ino != t.share { // the directory of a share is in the pool's root
		n.Parent = t.name(n.Parent)
	}
	n.Ino, n.Share = t.name(n.Ino), t.name(n.Share)
	return n
}

// stored is an inode of the share as the pool has it.
func (t txn) stored(n namespace.Inode) namespace.Inode {
	if n.Ino != namespace.Root {
		n.Parent = t.number(n.Parent)
	}
	n.Ino, n.Share = t.number(n.Ino), t.number(n.Share)
	return n
}

func (t txn) putInode(n *namespace.Inode) error {
	m := t.stored(*n)
	return t.put(bucketInodes, key1(uint64(m.Ino)), encodeInode(&m))
}

// dir returns an inode that must be a directory.
func (t txn) dir(ino namespace.Ino) (namespace.Inode, error) {
	n, err := t.inode(ino)
	if err != nil {
		return namespace.Inode{}, err
	}
	if !isDir(n.Mode) {
		return namespace.Inode{}, namespace.ErrNotDir
	}
	return n, nil
}

// regular returns an inode that must be a regular file.
func (t txn) regular(id region.ID) (namespace.Inode, error) {
	n, err := t.inode(namespace.Ino(id))
	if err != nil {
		return namespace.Inode{}, err
	}
	if !isRegular(n.Mode) {
		return namespace.Inode{}, namespace.ErrInvalid
	}
	return n, nil
}

// dirent returns ErrNotExist if the name is not there. The caller has looked at
// parent.
func (t txn) dirent(parent namespace.Ino, name string) (dirent, error) {
	key := keyName(uint64(t.number(parent)), name)
	body, err := t.get(bucketDirents, key)
	if err != nil {
		return dirent{}, err
	}
	if body == nil {
		return dirent{}, namespace.ErrNotExist
	}
	var d dirent
	if err := d.decode(body); err != nil {
		return dirent{}, corruptValue(bucketDirents, key, err.Error())
	}
	return d, nil
}

func (t txn) putDirent(parent namespace.Ino, name string, d dirent) error {
	return t.put(bucketDirents, keyName(uint64(t.number(parent)), name), d.encode())
}

func (t txn) deleteDirent(parent namespace.Ino, name string) error {
	return t.delete(bucketDirents, keyName(uint64(t.number(parent)), name))
}

// eachDirent calls fn for every name in a directory, in the order of their bytes. The
// caller has looked at parent. fn must not change the directory.
func (t txn) eachDirent(parent namespace.Ino, fn func(name string, e dirent) error) error {
	return t.each(bucketDirents, key1(uint64(t.number(parent))), func(key, body []byte) error {
		var e dirent
		if err := e.decode(body); err != nil {
			return corruptValue(bucketDirents, key, err.Error())
		}
		return fn(string(key[8:]), e)
	})
}

// named returns the inode of a name. A name without one is damage. The caller has
// looked at parent.
func (t txn) named(parent namespace.Ino, name string) (namespace.Inode, error) {
	d, err := t.dirent(parent, name)
	if err != nil {
		return namespace.Inode{}, err
	}
	n, err := t.inode(d.ino)
	if errors.Is(err, namespace.ErrNotExist) {
		return namespace.Inode{}, corruptValue(bucketDirents, keyName(uint64(t.number(parent)), name), "names a missing inode")
	}
	return n, err
}

// region returns the zero record if the region has no slots yet.
func (t txn) region(id region.ID) (regionRecord, error) {
	key := key1(uint64(id))
	body, err := t.get(bucketRegions, key)
	if err != nil || body == nil {
		return regionRecord{}, err
	}
	var r regionRecord
	if err := r.decode(body); err != nil {
		return regionRecord{}, corruptValue(bucketRegions, key, err.Error())
	}
	return r, nil
}

func (t txn) putRegion(id region.ID, r regionRecord) error {
	return t.put(bucketRegions, key1(uint64(id)), r.encode())
}

// extents returns a region's slots, sorted.
func (t txn) extents(id region.ID) ([]region.Run, error) {
	var runs []region.Run
	err := t.eachExtent(key1(uint64(id)), func(_ region.ID, r region.Run) error {
		runs = append(runs, r)
		return nil
	})
	return runs, err
}

func (t txn) eachExtent(prefix []byte, fn func(owner region.ID, r region.Run) error) error {
	return t.each(bucketExtents, prefix, func(key, body []byte) error {
		if len(key) != 16 {
			return corruptValue(bucketExtents, key, "bad key")
		}
		r, err := decodeExtent(region.Slot(binary.BigEndian.Uint64(key[8:])), body)
		if err != nil {
			return corruptValue(bucketExtents, key, err.Error())
		}
		return fn(region.ID(binary.BigEndian.Uint64(key)), r)
	})
}

// relatives returns the other members of a region's family, sorted.
func (t txn) relatives(id region.ID, family uint64) ([]region.ID, error) {
	if family == 0 {
		return nil, nil
	}
	var ids []region.ID
	err := t.each(bucketFamilies, key1(family), func(key, body []byte) error {
		if len(key) != 16 {
			return corruptValue(bucketFamilies, key, "bad key")
		}
		if err := decodeMark(body); err != nil {
			return corruptValue(bucketFamilies, key, err.Error())
		}
		if member := region.ID(binary.BigEndian.Uint64(key[8:])); member != id {
			ids = append(ids, member)
		}
		return nil
	})
	return ids, err
}
