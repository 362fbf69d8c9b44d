package region

import "encoding/binary"

// The page table is a tree of nodes of one slot each. A node has 256 entries and
// no header: its checksum stands in the entry above it, the root's in the
// superblock. Leaves (level 0) map pages, inner nodes map nodes.
//
//	Offset Size Field (entry i at 16*i)
//	     0    8 slot    of the page or node; 0: a hole, or no pages below
//	     8    4 crc     CRC-32C of the page or node
//	    12    4 series  the region's series when the slot was written
const (
	fanoutBits = 8
	fanout     = 1 << fanoutBits
	entrySize  = 16
	maxHeight  = 5 // 2^40 pages

	maxPages = uint64(1) << (maxHeight * fanoutBits)
)

// An Entry is a page's or node's place. Series counts the checkpoints and clones
// the region had taken when the slot was written: a slot of the present series
// is reached from nowhere else and is free as soon as its successor is durable.
// A slot of an older series may be shared, and only a sweep can free it.
type Entry struct {
	Slot   Slot
	CRC    uint32
	Series uint32
}

// A node is a table node in memory. The Image's mu guards it, but for the
// entries of a frozen leaf, which nobody changes.
type node struct {
	entries [fanout]Entry // where kids[i] is loaded, kids[i].stored is right instead
	kids    *[fanout]*node
	stored  Entry // its place on the device; of a dirty node, the place it had
	dirty   bool  // newer than stored
	frozen  bool  // being written by a cut: copied before it changes
	used    bool  // since the last eviction
}

func newNode(level uint32) *node {
	n := &node{}
	if level > 0 {
		n.kids = new([fanout]*node)
	}
	return n
}

// entry returns where entry i is stored.
func (n *node) entry(i int) Entry {
	if n.kids != nil && n.kids[i] != nil {
		return n.kids[i].stored
	}
	return n.entries[i]
}

func (n *node) encode(b []byte) {
	le := binary.LittleEndian
	for i := range fanout {
		e := n.entry(i)
		le.PutUint64(b[i*entrySize:], uint64(e.Slot))
		le.PutUint32(b[i*entrySize+8:], e.CRC)
		le.PutUint32(b[i*entrySize+12:], e.Series)
	}
}

// decodeEntries sets n's entries from a node's bytes, whose checksum was verified.
func decodeEntries(entries *[fanout]Entry, b []byte) bool {
	le := binary.LittleEndian
	for i := range entries {
		e := Entry{
			Slot:   Slot(le.Uint64(b[i*entrySize:])),
			CRC:    le.Uint32(b[i*entrySize+8:]),
			Series: le.Uint32(b[i*entrySize+12:]),
		}
		if e.Slot >= MaxSlot {
			return false
		}
		entries[i] = e
	}
	return true
}

// index is the entry of page's path in a node of level.
func index(page uint64, level uint32) int {
	return int(page >> (level * fanoutBits) & (fanout - 1))
}

// capacity is how many pages a tree of height levels maps.
func capacity(height uint32) uint64 { return 1 << (height * fanoutBits) }
