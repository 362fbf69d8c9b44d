package region

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/rpmemfs/rpmemfs/epoch"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the CRC-32C of p, which covers every page, node, record and
// superblock.
func Checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

const (
	superMagic   = "RPMSUPER"
	superVersion = 1
	superSize    = 128
)

// A superblock says where a region's table and log are. Two of them alternate:
// the one with number sequence goes to slot sequence mod 2, so the one before
// stays whole while it is written.
//
//	Offset Size Field
//	     0    8 magic       "RPMSUPER"
//	     8    4 version     1
//	    12    4 height      levels of the page table
//	    16    8 region      region ID
//	    24    8 sequence    number of this superblock
//	    32    8 generation  of the writer
//	    40    8 epoch       the table is the image of this epoch
//	    48    8 size        of the file, in bytes
//	    56    8 mtime       of the file, ns since 1970
//	    64    8 root        slot of the root node, 0 if height is 0
//	    72    4 root_crc    CRC-32C of the root node
//	    76    4 series      checkpoints and clones taken so far
//	    80    8 log         first slot of the run where records after epoch begin
//	    88    8 log_slots   length of that run
//	    96    8 next        first slot of the run where they go on
//	   104    8 next_slots  length of that run
//	   112    8 pages       pages in the table
//	   120    4 reserved    zero
//	   124    4 checksum    CRC-32C of bytes 0-123
type superblock struct {
	id         ID
	sequence   uint64
	generation uint64
	epoch      epoch.ID
	size       uint64
	mtime      int64
	tree       Tree
	series     uint32
	log        [2]Run
	pages      uint64
}

// crc32Update extends a CRC-32C with more bytes.
func crc32Update(crc uint32, p []byte) uint32 { return crc32.Update(crc, castagnoli, p) }

func (s *superblock) encode() []byte {
	b := make([]byte, superSize)
	le := binary.LittleEndian
	copy(b, superMagic)
	le.PutUint32(b[8:], superVersion)
	le.PutUint32(b[12:], s.tree.Height)
	le.PutUint64(b[16:], uint64(s.id))
	le.PutUint64(b[24:], s.sequence)
	le.PutUint64(b[32:], s.generation)
	le.PutUint64(b[40:], uint64(s.epoch))
	le.PutUint64(b[48:], s.size)
	le.PutUint64(b[56:], uint64(s.mtime))
	le.PutUint64(b[64:], uint64(s.tree.Root))
	le.PutUint32(b[72:], s.tree.CRC)
	le.PutUint32(b[76:], s.series)
	le.PutUint64(b[80:], uint64(s.log[0].Start))
	le.PutUint64(b[88:], s.log[0].N)
	le.PutUint64(b[96:], uint64(s.log[1].Start))
	le.PutUint64(b[104:], s.log[1].N)
	le.PutUint64(b[112:], s.pages)
	le.PutUint32(b[124:], Checksum(b[:124]))
	return b
}

// decode sets s from b, which is at off in the pool, if b is a superblock.
func (s *superblock) decode(b []byte, off int64) error {
	bad := func(what string) error {
		return &CorruptError{Off: off, Page: NoPage, What: "superblock " + what}
	}
	if len(b) < superSize || string(b[:8]) != superMagic {
		return bad("magic")
	}
	le := binary.LittleEndian
	// Checksum before version: power loss can tear a superblock, and leave any
	// version in it. Every version keeps magic, version and checksum in place.
	if le.Uint32(b[124:]) != Checksum(b[:124]) {
		return bad("checksum")
	}
	if v := le.Uint32(b[8:]); v != superVersion {
		return fmt.Errorf("%w: superblock version %d, this program knows %d", ErrVersion, v, superVersion)
	}
	if le.Uint32(b[120:]) != 0 {
		return bad("reserved bytes")
	}
	d := superblock{
		id:         ID(le.Uint64(b[16:])),
		sequence:   le.Uint64(b[24:]),
		generation: le.Uint64(b[32:]),
		epoch:      epoch.ID(le.Uint64(b[40:])),
		size:       le.Uint64(b[48:]),
		mtime:      int64(le.Uint64(b[56:])),
		tree: Tree{
			Root:   Slot(le.Uint64(b[64:])),
			CRC:    le.Uint32(b[72:]),
			Height: le.Uint32(b[12:]),
		},
		series: le.Uint32(b[76:]),
		log: [2]Run{
			{Slot(le.Uint64(b[80:])), le.Uint64(b[88:])},
			{Slot(le.Uint64(b[96:])), le.Uint64(b[104:])},
		},
		pages: le.Uint64(b[112:]),
	}
	switch {
	case d.size > MaxSize:
		return bad("size")
	case d.tree.Height > maxHeight || (d.tree.Height == 0) != (d.tree.Root == 0) || d.tree.Root >= MaxSlot:
		return bad("root")
	}
	for _, r := range d.log {
		if r.Start == 0 || r.Start >= MaxSlot || r.N == 0 || r.N > maxRunSlots {
			return bad("log")
		}
	}
	*s = d
	return nil
}
