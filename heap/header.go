package heap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A fixed is the part of the header that never changes: bytes 0-63.
type fixed struct {
	base   uint64 // address at which programs map the region
	guards bool
}

func (f *fixed) encode() []byte {
	b := make([]byte, checksumAt+4)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[versionAt:], version)
	if f.guards {
		binary.LittleEndian.PutUint32(b[flagsAt:], flagGuards)
	}
	binary.LittleEndian.PutUint64(b[baseAt:], f.base)
	binary.LittleEndian.PutUint32(b[checksumAt:], crc32.Checksum(b[:checkedBytes], castagnoli))
	return b
}

// decode reads the first headerSize bytes of a region.
func (f *fixed) decode(b []byte) error {
	if allZero(b[:headerSize]) {
		return ErrNoHeap
	}
	if string(b[:len(magic)]) != magic {
		return corruptf(0, "header magic: not that of a heap")
	}
	if v := binary.LittleEndian.Uint32(b[versionAt:]); v != version {
		return fmt.Errorf("%w %d", ErrVersion, v)
	}
	if sum := crc32.Checksum(b[:checkedBytes], castagnoli); sum != binary.LittleEndian.Uint32(b[checksumAt:]) {
		return corruptf(checksumAt, "header checksum: bytes 0-59 have %#x", sum)
	}
	flags := binary.LittleEndian.Uint32(b[flagsAt:])
	if flags&^flagGuards != 0 {
		return corruptf(flagsAt, "header flags: %#x", flags)
	}
	base := binary.LittleEndian.Uint64(b[baseAt:])
	if base == 0 || base%chunkSize != 0 {
		return corruptf(baseAt, "header base: %#x is no multiple of 64 MiB", base)
	}
	if !allZero(b[baseAt+8 : checkedBytes]) {
		return corruptf(baseAt+8, "header reserved: not zero")
	}
	*f = fixed{base: base, guards: flags&flagGuards != 0}
	return nil
}

// A state is the part of the header that says what is in use: bytes 128-191.
type state struct {
	size   uint64 // bytes that the heap uses
	root   uint64
	top    uint64 // from here to size nothing was ever used
	chunks uint32 // entries of the directory
	normal uint32 // chunks of kind 1
	huge   uint32 // chunks of kinds 2 and 3
	first  uint32 // none of kind 1 before it has free units
}

// sum is the XOR of the state's words, the reserved ones being zero.
func (s *state) sum() uint64 {
	return stateSeed ^ s.size ^ s.root ^ s.top ^ (uint64(s.chunks) | uint64(s.normal)<<32) ^
		(uint64(s.huge) | uint64(s.first)<<32)
}

// decode reads the header's state, of a region of at least headerSize bytes.
func (s *state) decode(m memory) error {
	got := state{
		size: m.load64(sizeAt), root: m.load64(rootAt), top: m.u64(topAt), chunks: m.u32(chunksAt),
		normal: m.u32(normalAt), huge: m.u32(hugeAt), first: m.u32(firstAt),
	}
	if sum := got.sum(); sum != m.u64(sumAt) {
		return corruptf(sumAt, "header sum: bytes 128-183 have %#x", sum)
	}
	if err := got.valid(); err != nil {
		return err
	}
	*s = got
	return nil
}

// valid checks what can be checked without looking further.
func (s *state) valid() error {
	switch {
	case s.size < minSize || s.size > maxSize || s.size%unitSize != 0:
		return corruptf(sizeAt, "header size: %d", s.size)
	case s.top < chunk0Meta*unitSize || s.top > s.size || s.top%unitSize != 0:
		return corruptf(topAt, "header top: %d", s.top)
	case s.chunks == 0 || chunkStart(s.chunks-1) >= s.size:
		return corruptf(chunksAt, "header chunks: %d", s.chunks)
	case s.normal == 0 || s.normal > s.chunks:
		return corruptf(normalAt, "header normal: %d", s.normal)
	case s.huge > s.chunks-s.normal:
		return corruptf(hugeAt, "header huge: %d", s.huge)
	case s.first > s.chunks:
		return corruptf(firstAt, "header first: %d", s.first)
	case s.root >= s.size || s.root%memoryAlign != 0:
		return corruptf(rootAt, "header root: %#x", s.root)
	}
	return nil
}

func (s *state) encode(m memory) {
	m.store64(sizeAt, s.size)
	m.store64(rootAt, s.root)
	m.put64(topAt, s.top)
	m.put32(chunksAt, s.chunks)
	m.put32(normalAt, s.normal)
	m.put32(hugeAt, s.huge)
	m.put32(firstAt, s.first)
	m.put64(sumAt, s.sum())
}

var zeros [4096]byte

func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
