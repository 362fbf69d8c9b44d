package memnode

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// gatherShares takes the records of shares, and from each the inodes that it counts.
func (c *checker) gatherShares() error {
	err := c.scan(bucketShares, 8, false, func(key, body []byte) error {
		var r shareRecord
		if err := r.decode(body); err != nil {
			return err
		}
		c.shares[namespace.Ino(binary.BigEndian.Uint64(key))] = &r
		return nil
	})
	for _, n := range c.inodes {
		if r := c.shares[n.share]; r != nil {
			r.inodes--
		}
	}
	return err
}

// checkShares makes sure that every share is a directory in the root, and the other
// way round, and that nothing is left of what it counts.
func (c *checker) checkShares() error {
	for ino, r := range c.shares {
		n := c.inodes[ino]
		if !c.damaged && (n == nil || n.share != ino || n.nlink == 0) {
			c.say("share %d has no directory", ino)
		}
		if !c.damaged && (r.inodes != 0 || r.slots != 0) {
			c.say("share %d counts %d inodes and %d slots too many", ino, int64(r.inodes), int64(r.slots))
		}
	}
	for ino, n := range c.inodes {
		if n.share == ino && n.nlink > 0 && c.shares[ino] == nil && !c.damaged {
			c.say("directory %d says that it is a share, but there is no such share", ino)
		}
	}
	return nil
}

// checkNames makes sure that what shares have in meta.db is counted.
func (c *checker) checkNames() error {
	if b, err := c.bucket(bucketNames); b == nil {
		return err
	}
	used := map[namespace.Ino]uint64{}
	for _, bucket := range tallied {
		b, err := c.bucket(bucket)
		if err != nil {
			return err
		}
		cursor := b.Cursor()
		for k, v := cursor.First(); k != nil; k, v = cursor.Next() {
			if err := c.ctx.Err(); err != nil {
				return err
			}
			if !counts(bucket, k) {
				continue
			}
			if n := c.inodes[namespace.Ino(binary.BigEndian.Uint64(k))]; n != nil {
				used[n.share] += uint64(recordSize(k, v))
			}
		}
	}
	found := map[namespace.Ino]bool{}
	err := c.scan(bucketNames, 8, false, func(key, body []byte) error {
		share := namespace.Ino(binary.BigEndian.Uint64(key))
		found[share] = true
		var r namesRecord
		switch err := r.decode(body); {
		case err != nil:
			return err
		case c.shares[share] == nil && !c.damaged:
			return fmt.Errorf("share %d does not exist", share)
		case r.used != used[share] && !c.damaged:
			return fmt.Errorf("names and attributes of share %d take %d bytes, %d are counted", share, used[share], r.used)
		}
		return nil
	})
	for share := range c.shares {
		if !found[share] && !c.damaged {
			c.say("names and attributes of share %d are not counted", share)
		}
	}
	return err
}

// checkLeases finds leases of nothing, and two of one thing.
func (c *checker) checkLeases() error {
	state, err := c.state()
	if err != nil {
		return nil // checkCounters has said so
	}
	leases, whole := 0, false
	err = c.scan(bucketLeases, 8, false, func(key, body []byte) error {
		l, err := decodeLease(namespace.Ino(binary.BigEndian.Uint64(key)), body)
		if err != nil {
			return err
		}
		leases++
		whole = whole || l.Share == namespace.Root
		if l.Share != namespace.Root && c.shares[l.Share] == nil && !c.damaged {
			c.say("a lease of share %d, which does not exist", l.Share)
		}
		if l.Generation > state.generation {
			return fmt.Errorf("generation %d, that of the pool is %d", l.Generation, state.generation)
		}
		c.leases[l.Share] = l.Generation
		return nil
	})
	if whole && leases > 1 {
		c.say("%d leases beside that of the whole pool", leases-1)
	}
	return err
}

// checkRequests makes sure that each request is one of who has the lease, in its place,
// and that each long answer is one of those.
func (c *checker) checkRequests() error {
	err := c.scan(bucketRequests, 16, false, func(key, body []byte) error {
		rec, err := decodeRequest(body)
		if err != nil {
			return err
		}
		share := namespace.Ino(binary.BigEndian.Uint64(key))
		if !bytes.Equal(key, rec.key(share)) {
			c.say("request %d of share %d is in place %d", rec.ID, share, binary.BigEndian.Uint64(key[8:]))
		}
		if rec.Generation != c.leases[share] && !c.damaged {
			c.say("request %d of share %d has generation %d, its lease %d", rec.ID, share, rec.Generation, c.leases[share])
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.scan(bucketAnswers, 16, false, func(key, body []byte) error {
		rec, err := decodeRequest(body)
		if err != nil {
			return err
		}
		share := namespace.Ino(binary.BigEndian.Uint64(key))
		of, err := c.request(bucketRequests, rec.key(share))
		if err == nil && (!bytes.Equal(key, rec.longKey(share)) || of.Request != rec.Request || of.kind != answerLong) {
			c.say("answer %d of share %d, to request %d: no such request", binary.BigEndian.Uint64(key[8:]), share, rec.ID)
		}
		return nil // a damaged request was told of
	})
}
