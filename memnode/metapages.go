package memnode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The file format of bbolt, as far as it takes to tell whether its pages hang
// together: bbolt has a check of its own, but dies of some of what it is to find.
// Layouts are those of go.etcd.io/bbolt, internal/common: page.go, meta.go,
// inode.go. bbolt writes them in the machine's byte order; all that this module
// runs on are little-endian.
const (
	boltPageSize   = 4096
	boltPageHeader = 16 // id 8, flags 2, count 2, overflow 4
	boltElement    = 16 // of a branch or leaf page

	boltBucketHeader = 16 // root page 8, sequence 8

	boltBranch   = 0x01
	boltLeaf     = 0x02
	boltMetaPage = 0x04
	boltFreelist = 0x10

	boltBucketLeaf = 0x01 // leaf element whose value is a bucket
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
	boltMetaSize   = 64
	boltMaxDepth   = 64
	boltInline     = -1 // depth of a bucket within a value
	boltNoFreelist = ^uint64(0)
)

// A boltRoot is one of the two pages from which a database is read; the newer
// good one counts.
//
//	Offset Size Field, after the page's header
//	     0    4 magic
//	     4    4 version
//	     8    4 page size
//	    12    4 flags
//	    16    8 root page
//	    24    8 sequence
//	    32    8 page of the free list
//	    40    8 number of pages in use, holes included
//	    48    8 transaction
//	    56    8 FNV-1a of bytes 0-55
type boltRoot struct{ root, freelist, pages, txid uint64 }

func (r *boltRoot) decode(page []byte) error {
	if len(page) < boltPageHeader+boltMetaSize {
		return errors.New("root page: short")
	}
	le := binary.LittleEndian
	b := page[boltPageHeader:][:boltMetaSize]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:56]) // a hash does not fail
	switch {
	case le.Uint16(page[8:])&boltMetaPage == 0 || le.Uint32(b) != boltMagic || le.Uint32(b[4:]) != boltVersion:
		return errors.New("root page: not bbolt's")
	case le.Uint32(b[8:]) != boltPageSize:
		return fmt.Errorf("root page: pages of %d bytes", le.Uint32(b[8:]))
	case sum.Sum64() != le.Uint64(b[56:]):
		return errors.New("root page: checksum does not match")
	}
	*r = boltRoot{root: le.Uint64(b[16:]), freelist: le.Uint64(b[32:]), pages: le.Uint64(b[40:]), txid: le.Uint64(b[48:])}
	return nil
}

// newestRoot returns the root page that counts.
func newestRoot(f io.ReaderAt) (newest boltRoot, err error) {
	page := make([]byte, boltPageHeader+boltMetaSize)
	found := false
	for i := range int64(2) {
		var r boltRoot
		_, rerr := f.ReadAt(page, i*boltPageSize)
		if rerr == nil {
			rerr = r.decode(page)
		}
		if rerr != nil {
			err = rerr
		} else if !found || r.txid > newest.txid {
			newest, found = r, true
		}
	}
	if found {
		return newest, nil
	}
	return boltRoot{}, err
}

// checkMetaSize refuses a file that lost its end, which bbolt would find out by
// a fault. What is no database at all is left for bbolt to name.
func checkMetaSize(f io.ReaderAt, size int64) error {
	r, err := newestRoot(f)
	if err == nil && r.pages > uint64(size)/boltPageSize {
		return fmt.Errorf("%w: meta.db has %d bytes of %d pages: restore it from a copy", ErrTruncated, size, r.pages)
	}
	return nil
}

// checkMetaFile refuses a file that bbolt must not be let near: over a damaged
// page it may die, or spin for hours, when a transaction frees that page.
func checkMetaFile(f io.ReaderAt, size int64) error {
	if err := checkMetaSize(f, size); err != nil {
		return err
	}
	if _, err := newestRoot(f); err != nil {
		return nil // for bbolt to name
	}
	var problems []string
	checkMetaPages(f, size, func(format string, args ...any) {
		problems = append(problems, fmt.Sprintf(format, args...))
	})
	if len(problems) == 0 {
		return nil
	}
	return &CorruptError{File: "meta.db", Name: "database",
		What: fmt.Sprintf("%d problems, the first: %s", len(problems), problems[0])}
}

// A pageChecker walks all pages that a database reaches.
type pageChecker struct {
	f     io.ReaderAt
	say   func(format string, args ...any)
	pages uint64
	used  map[uint64]bool // pages reached
}

// checkMetaPages reports pages of the database in f that are damaged, used twice,
// used and free, or neither. No transaction may commit meanwhile.
func checkMetaPages(f io.ReaderAt, size int64, say func(format string, args ...any)) {
	r, err := newestRoot(f)
	if err != nil {
		say("meta.db: %v", err)
		return
	}
	if r.pages > uint64(size)/boltPageSize {
		say("meta.db: %d pages in a file of %d bytes", r.pages, size)
		return
	}
	c := &pageChecker{f: f, say: say, pages: r.pages, used: map[uint64]bool{}}
	c.walk(r.root, 0, true, nil, nil)
	free := c.freelist(r.freelist)
	for no := uint64(2); no < c.pages; no++ {
		if c.used[no] == free[no] {
			say("meta.db: page %d: in use: %v, free: %v", no, c.used[no], free[no])
		}
	}
}

// page reads a page with its overflow and marks it used.
func (c *pageChecker) page(no uint64, flags uint16) []byte {
	if no < 2 || no >= c.pages {
		c.say("meta.db: page %d of %d is referred to", no, c.pages)
		return nil
	}
	head := make([]byte, boltPageHeader)
	if _, err := c.f.ReadAt(head, int64(no)*boltPageSize); err != nil {
		c.say("meta.db: page %d: %v", no, err)
		return nil
	}
	le := binary.LittleEndian
	id, have, overflow := le.Uint64(head), le.Uint16(head[8:]), uint64(le.Uint32(head[12:]))
	if id != no || have&flags == 0 || have&^flags != 0 || have&(have-1) != 0 || overflow >= c.pages-no {
		c.say("meta.db: page %d: bad header: page %d, flags %#x, overflow %d", no, id, have, overflow)
		return nil
	}
	for n := no; n <= no+overflow; n++ {
		if c.used[n] {
			c.say("meta.db: page %d is referred to twice", n)
			return nil
		}
		c.used[n] = true
	}
	b := make([]byte, (overflow+1)*boltPageSize)
	if _, err := c.f.ReadAt(b, int64(no)*boltPageSize); err != nil {
		c.say("meta.db: page %d: %v", no, err)
		return nil
	}
	return b
}

// walk checks the tree below a page, whose keys are not before lo and, unless hi
// is nil, before hi. The top one has buckets, and those have values.
func (c *pageChecker) walk(no uint64, depth int, top bool, lo, hi []byte) {
	if depth > boltMaxDepth {
		c.say("meta.db: page %d: tree too deep", no)
		return
	}
	if b := c.page(no, boltBranch|boltLeaf); b != nil {
		c.elements(no, b, depth, top, lo, hi)
	}
}

// elements checks what is in a page, or in a bucket that lies within a value.
// bbolt writes elements one behind the other and in order, and a bucket's value
// ends with its last one.
func (c *pageChecker) elements(no uint64, b []byte, depth int, top bool, lo, hi []byte) {
	le := binary.LittleEndian
	count, branch := int(le.Uint16(b[10:])), le.Uint16(b[8:])&boltBranch != 0
	next := uint64(boltPageHeader) + uint64(count)*boltElement // where the next key is
	if next > uint64(len(b)) {
		c.say("meta.db: page %d: %d elements do not fit", no, count)
		return
	}
	type child struct {
		page uint64
		key  []byte
	}
	var children []child
	for i := range count {
		at := uint64(boltPageHeader + i*boltElement)
		e := b[at:]
		// branch: pos 4, key size 4, page 8; leaf: flags 4, pos 4, key size 4, value size 4
		pos, keySize, valueSize := uint64(le.Uint32(e)), uint64(le.Uint32(e[4:])), uint64(0)
		if !branch {
			pos, keySize, valueSize = uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		}
		if at+pos != next || next+keySize+valueSize > uint64(len(b)) {
			c.say("meta.db: page %d: element %d is out of place", no, i)
			return
		}
		key, value := b[next:next+keySize], b[next+keySize:next+keySize+valueSize]
		next += keySize + valueSize
		if bytes.Compare(key, lo) < 0 || hi != nil && bytes.Compare(key, hi) >= 0 || i > 0 && bytes.Equal(key, lo) {
			c.say("meta.db: page %d: key %x is out of order", no, key)
		}
		lo = key
		switch {
		case branch:
			children = append(children, child{le.Uint64(e[8:]), key})
		case top && le.Uint32(e) == boltBucketLeaf:
			c.bucket(no, value, depth)
		case top || le.Uint32(e) != 0:
			c.say("meta.db: page %d: element %d has flags %#x", no, i, le.Uint32(e))
		}
	}
	if depth == boltInline && next != uint64(len(b)) {
		c.say("meta.db: page %d: a bucket of %d bytes uses %d", no, len(b), next)
	}
	for i, kid := range children {
		end := hi
		if i+1 < len(children) {
			end = children[i+1].key
		}
		c.walk(kid.page, depth+1, top, kid.key, end)
	}
}

// bucket checks a bucket: root page 8, sequence 8, and if the root is 0 a leaf
// page right there.
func (c *pageChecker) bucket(no uint64, value []byte, depth int) {
	switch {
	case len(value) < boltBucketHeader:
		c.say("meta.db: page %d: a bucket of %d bytes", no, len(value))
	case binary.LittleEndian.Uint64(value) != 0:
		if len(value) != boltBucketHeader {
			c.say("meta.db: page %d: a bucket of %d bytes", no, len(value))
		}
		c.walk(binary.LittleEndian.Uint64(value), depth+1, false, nil, nil)
	default:
		b := value[boltBucketHeader:]
		if len(b) < boltPageHeader || binary.LittleEndian.Uint16(b[8:]) != boltLeaf {
			c.say("meta.db: page %d: a bucket that is no leaf", no)
			return
		}
		c.elements(no, b, boltInline, false, nil, nil)
	}
}

// freelist returns the pages that are listed as free.
func (c *pageChecker) freelist(no uint64) map[uint64]bool {
	free := map[uint64]bool{}
	if no == boltNoFreelist {
		c.say("meta.db: no free list")
		return free
	}
	b := c.page(no, boltFreelist)
	if b == nil {
		return free
	}
	le := binary.LittleEndian
	count, ids := uint64(le.Uint16(b[10:])), b[boltPageHeader:]
	if count == 0xffff { // the number is the first of the list
		count, ids = le.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids))/8 {
		c.say("meta.db: free list of %d pages in %d bytes", count, len(ids))
		return free
	}
	for i := range count {
		id := le.Uint64(ids[8*i:])
		if id < 2 || id >= c.pages || free[id] {
			c.say("meta.db: free list: page %d is outside, or listed twice", id)
		}
		free[id] = true
	}
	return free
}
