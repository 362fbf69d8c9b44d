package heap

import (
	"hash/crc32"
)

// The heap's layout: docs/format.md, section Heap, has the tables. Offsets and
// sizes are bytes.
const (
	version    = 1
	flagGuards = 1

	unitShift  = 14
	unitSize   = 1 << unitShift
	chunkShift = 26
	chunkSize  = 1 << chunkShift
	chunkUnits = chunkSize / unitSize
	maxChunks  = 65536
	maxSize    = maxChunks << chunkShift
	minSize    = 512 * unitSize

	headerSize   = 4096
	unitMapAt    = 4096 // in each chunk of kind 1
	descAt       = 20480
	descSize     = 160
	directoryAt  = 688128 // in chunk 0, as the caches are
	cachesAt     = 1212416
	cacheSize    = 16384
	cacheEnd     = 15168 // of the last magazine, in a cache
	caches       = 256
	chunkMeta    = 42  // units, of chunks other than 0
	chunk0Meta   = 330 // units
	smallMax     = 32768
	guardSize    = 16
	guardFill    = 0xFB
	guardFillMax = 64
	alignMax     = chunkSize
	magic        = "RPMHEAP\x00"
	checkedBytes = 60 // of the header, that never change

	// Words of the header.
	versionAt  = 8
	flagsAt    = 12
	baseAt     = 16
	checksumAt = 60
	lockAt     = 64
	sizeAt     = 128
	rootAt     = 136
	topAt      = 144
	chunksAt   = 152
	normalAt   = 156
	hugeAt     = 160
	firstAt    = 164
	sumAt      = 184
	listsAt    = 256
	listsEnd   = listsAt + 8*classes

	stateSeed  = 0x45544154534d5052 // "RPMSTATE"
	guardLive  = 0x4d50522d4556494c // "LIVE-RPM"
	guardFreed = 0x4d50522d45455246 // "FREE-RPM"
)

// Kinds of chunks, in the directory.
const (
	chunkUnused = iota
	chunkCut    // into units
	chunkHuge
	chunkHugeRest
)

// Kinds of units, in the unit map, and of spans.
const (
	unitFree = iota
	unitMeta
	unitSmall
	unitLarge
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A unitNo is chunk · 4096 + unit. 0 is none: unit 0 is metadata.
type unitNo uint32

func (n unitNo) chunk() uint32  { return uint32(n) / chunkUnits }
func (n unitNo) unit() uint32   { return uint32(n) % chunkUnits }
func (n unitNo) offset() uint64 { return uint64(n) << unitShift }

// mapEntry is the offset of the unit's entry in its chunk's unit map.
func (n unitNo) mapEntry() uint64 { return chunkStart(n.chunk()) + unitMapAt + 4*uint64(n.unit()) }

// desc is the offset of the descriptor of a span that begins at the unit.
func (n unitNo) desc() uint64 { return chunkStart(n.chunk()) + descAt + descSize*uint64(n.unit()) }

// Offsets in a descriptor.
const (
	descNext   = 0
	descPrev   = 4
	descUnits  = 8
	descBlocks = 10
	descFree   = 12
	descClass  = 14
	descKind   = 15
	descBitmap = 32
)

// A unitEntry is an entry of a unit map.
type unitEntry uint32

func newUnitEntry(head uint32, class, kind uint8) unitEntry {
	return unitEntry(head | uint32(class)<<16 | uint32(kind)<<24)
}

func (e unitEntry) head() uint32 { return uint32(e) & 0xffff }
func (e unitEntry) class() int   { return int(e >> 16 & 0xff) }
func (e unitEntry) kind() uint8  { return uint8(e >> 24) }

// A dirEntry is an entry of the chunk directory.
type dirEntry uint64

func newDirEntry(kind, low uint8, longest uint16, count uint32) dirEntry {
	return dirEntry(uint64(kind) | uint64(low)<<8 | uint64(longest)<<16 | uint64(count)<<32)
}

func (e dirEntry) kind() uint8     { return uint8(e) }
func (e dirEntry) low() uint32     { return uint32(e >> 8 & 0xff) }
func (e dirEntry) longest() uint32 { return uint32(e >> 16 & 0xffff) }
func (e dirEntry) count() uint32   { return uint32(e >> 32) }

// with replaces low and longest.
func (e dirEntry) with(low, longest, count uint32) dirEntry {
	return newDirEntry(e.kind(), uint8(low), uint16(longest), count)
}

func chunkStart(chunk uint32) uint64 { return uint64(chunk) << chunkShift }
func dirAt(chunk uint32) uint64      { return directoryAt + 8*uint64(chunk) }
func listAt(class int) uint64        { return listsAt + 8*uint64(class) }

// metaUnits is the number of metadata units at the start of a chunk.
func metaUnits(chunk uint32) uint32 {
	if chunk == 0 {
		return chunk0Meta
	}
	return chunkMeta
}

// unitsBelow is the number of units of a chunk that lie below size.
func unitsBelow(size uint64, chunk uint32) uint32 {
	start := chunkStart(chunk)
	if size <= start {
		return 0
	}
	return uint32(min((size-start)>>unitShift, chunkUnits))
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }
