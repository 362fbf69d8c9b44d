package memnode

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// valueVersion is the first byte of every value in meta.db, but for the inodes of
// shares: programs that know of no shares must not open their pools.
const (
	valueVersion      = 1
	shareInodeVersion = 2
)

// Buckets of meta.db. Keys are big-endian, so that a cursor sees the entries of
// one owner side by side; values are little-endian. docs/format.md has all
// layouts.
const (
	bucketPool        = "pool"        // "pool" → poolRecord, "state" → stateRecord
	bucketInodes      = "inodes"      // ino → inode
	bucketDirents     = "dirents"     // parent ino, name → dirent
	bucketXattrs      = "xattrs"      // ino, name → xattr
	bucketRegions     = "regions"     // ino → regionRecord
	bucketExtents     = "extents"     // ino, start slot → slots
	bucketFamilies    = "families"    // family, ino → nothing
	bucketCheckpoints = "checkpoints" // ino, name → region.Checkpoint
	bucketOrphans     = "orphans"     // ino → nothing
	bucketShares      = "shares"      // ino → shareRecord
	bucketLeases      = "leases"      // ino → Lease
	bucketNames       = "names"       // ino → namesRecord
	bucketRequests    = "requests"    // ino, place → requestRecord
	bucketAnswers     = "answers"     // ino, request → requestRecord
)

// buckets are those that every pool has. Pools that were made before there were
// shares, or requests, get lateBuckets when they are opened for writing.
var (
	buckets = []string{
		bucketPool, bucketInodes, bucketDirents, bucketXattrs, bucketRegions,
		bucketExtents, bucketFamilies, bucketCheckpoints, bucketOrphans,
	}
	lateBuckets = []string{bucketShares, bucketLeases, bucketNames, bucketRequests, bucketAnswers}
)

// sealValue appends to a value's body the CRC-32C of bucket, key and body.
func sealValue(bucket string, key, body []byte) []byte {
	return binary.LittleEndian.AppendUint32(body, valueSum(bucket, key, body))
}

// openValue returns the body of a value, version byte first, once its version
// and checksum are right.
func openValue(bucket string, key, v []byte) ([]byte, error) {
	if len(v) < 5 {
		return nil, corruptValue(bucket, key, fmt.Sprintf("value of %d bytes", len(v)))
	}
	if v[0] != valueVersion && (bucket != bucketInodes || v[0] != shareInodeVersion) {
		return nil, fmt.Errorf("%s: key %x: %w", bucket, key, versionError("meta.db", uint64(v[0]), valueVersion))
	}
	body := v[:len(v)-4]
	if valueSum(bucket, key, body) != binary.LittleEndian.Uint32(v[len(v)-4:]) {
		return nil, corruptValue(bucket, key, "checksum does not match")
	}
	return body, nil
}

func valueSum(bucket string, key, body []byte) uint32 {
	sum := crc32.Update(0, castagnoli, append(make([]byte, 0, 16), bucket...))
	sum = crc32.Update(sum, castagnoli, key)
	return crc32.Update(sum, castagnoli, body)
}

func corruptValue(bucket string, key []byte, what string) error {
	return &CorruptError{File: "meta.db", Name: bucket, Key: append([]byte{}, key...), What: what}
}

// key1 is the key of a number.
func key1(n uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 0, 8), n) }

// key2 is the key of two numbers.
func key2(n, m uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(make([]byte, 0, 16), n), m)
}

// keyName is the key of a number and a name.
func keyName(n uint64, name string) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(name)), n), name...)
}
