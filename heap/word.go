package heap

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// This file alone casts pointers onto the heap's bytes. The formats are
// little-endian and so are the machines it runs on: Open and Create refuse others.

// memory is a region's bytes, as far as they are mapped. Its start is aligned to
// memoryAlign. The caller checks offsets; those of 4-byte words are multiples
// of 4, those of 8-byte words of 8.
//
// Plain accesses are for what the heap's lock or the owner of a cache guards.
// load and store are for words that others read meanwhile: a directory entry's
// first word, unit maps, the sizes of spans, size and root. None of them
// publishes another word.
type memory []byte

// memoryAlign is the alignment of types and words that may lie in a heap.
const memoryAlign = 16

func (m memory) u16(off uint64) uint16 { return binary.LittleEndian.Uint16(m[off:]) }
func (m memory) u32(off uint64) uint32 { return binary.LittleEndian.Uint32(m[off:]) }
func (m memory) u64(off uint64) uint64 { return binary.LittleEndian.Uint64(m[off:]) }

func (m memory) put16(off uint64, v uint16) { binary.LittleEndian.PutUint16(m[off:], v) }
func (m memory) put32(off uint64, v uint32) { binary.LittleEndian.PutUint32(m[off:], v) }
func (m memory) put64(off uint64, v uint64) { binary.LittleEndian.PutUint64(m[off:], v) }

// word32 returns the address of a word, which is inside of m.
func (m memory) word32(off uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(&m[off : off+4][0]))
}

func (m memory) word64(off uint64) *uint64 {
	return (*uint64)(unsafe.Pointer(&m[off : off+8][0]))
}

func (m memory) load32(off uint64) uint32     { return atomic.LoadUint32(m.word32(off)) }
func (m memory) load64(off uint64) uint64     { return atomic.LoadUint64(m.word64(off)) }
func (m memory) store32(off uint64, v uint32) { atomic.StoreUint32(m.word32(off), v) }
func (m memory) store64(off uint64, v uint64) { atomic.StoreUint64(m.word64(off), v) }

// usable reports whether words can be used in place: the machine is
// little-endian and m aligned.
func (m memory) usable() bool {
	return binary.NativeEndian.Uint16([]byte{1, 0}) == 1 && len(m) > 0 && m.address()%memoryAlign == 0
}

// address is where m begins.
func (m memory) address() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(m))) }

// at returns the T at off; nil if it is not inside of m or not aligned.
func at[T any](m memory, off uint64) *T {
	var t T
	size, align := uint64(unsafe.Sizeof(t)), uint64(unsafe.Alignof(t))
	if off > uint64(len(m)) || size > uint64(len(m))-off || off%align != 0 || size == 0 {
		return nil
	}
	return (*T)(unsafe.Pointer(&m[off]))
}

// arrayAt returns the n Ts from off on; nil if they are not inside of m.
func arrayAt[T any](m memory, off, n uint64) []T {
	first := at[T](m, off)
	if first == nil || n > (uint64(len(m))-off)/uint64(unsafe.Sizeof(*first)) {
		return nil
	}
	return unsafe.Slice(first, n)
}
