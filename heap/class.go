package heap

import "math/bits"

const classes = 40

// A class is a size of small blocks: docs/format.md, Classes.
type class struct {
	size   uint32
	units  uint16 // of a span
	blocks uint16 // of a span
	room   uint16 // of a magazine
	at     uint16 // of the magazine, in a cache
}

var classTable = [classes]class{
	{16, 1, 1024, 128, 64},
	{32, 1, 512, 128, 1104},
	{48, 1, 341, 128, 2144},
	{64, 1, 256, 128, 3184},
	{80, 1, 204, 128, 4224},
	{96, 1, 170, 128, 5264},
	{112, 1, 146, 128, 6304},
	{128, 1, 128, 128, 7344},
	{160, 1, 102, 64, 8384},
	{192, 1, 85, 64, 8912},
	{224, 1, 73, 64, 9440},
	{256, 1, 64, 64, 9968},
	{320, 1, 51, 64, 10496},
	{384, 1, 42, 64, 11024},
	{448, 1, 36, 64, 11552},
	{512, 1, 32, 64, 12080},
	{640, 1, 25, 32, 12608},
	{768, 1, 21, 32, 12880},
	{896, 1, 18, 32, 13152},
	{1024, 1, 16, 32, 13424},
	{1280, 2, 25, 16, 13696},
	{1536, 2, 21, 16, 13840},
	{1792, 2, 18, 16, 13984},
	{2048, 2, 16, 16, 14128},
	{2560, 3, 19, 8, 14272},
	{3072, 3, 16, 8, 14352},
	{3584, 4, 18, 8, 14432},
	{4096, 4, 16, 8, 14512},
	{5120, 5, 16, 4, 14592},
	{6144, 6, 16, 4, 14640},
	{7168, 7, 16, 4, 14688},
	{8192, 8, 16, 4, 14736},
	{10240, 5, 8, 4, 14784},
	{12288, 6, 8, 4, 14832},
	{14336, 7, 8, 4, 14880},
	{16384, 8, 8, 4, 14928},
	{20480, 10, 8, 4, 14976},
	{24576, 12, 8, 4, 15024},
	{28672, 14, 8, 4, 15072},
	{32768, 16, 8, 4, 15120},
}

// batchMax is half the room of the largest magazine.
const batchMax = 64

// classOf returns the smallest class of at least size bytes, which is at most
// smallMax.
func classOf(size uint64) int {
	if size <= 128 {
		return int(max(size, 1)+15)/16 - 1
	}
	// Four classes between each power of two and the next.
	log2 := bits.Len64(size-1) - 1
	return 8 + (log2-7)*4 + int((size-1)>>(log2-2)&3)
}

// alignedClassOf is classOf for blocks at multiples of align, a power of two up to
// 16384.
func alignedClassOf(size, align uint64) int {
	c := classOf(size)
	for uint64(classTable[c].size)%align != 0 {
		c++ // the last class is a multiple of every align
	}
	return c
}

// blockAt returns the number of the block that begins at byte off of a span; ok
// is false if none does.
func (c *class) blockAt(off uint64) (no uint32, ok bool) {
	no = uint32(off) / c.size
	return no, off < 1<<31 && no < uint32(c.blocks) && uint32(off)%c.size == 0
}
