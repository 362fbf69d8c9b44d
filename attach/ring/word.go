package ring

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A mapping is a mapped ring. Its words are shared with another process; what each
// publishes is said in the package's comment.
type mapping struct {
	mem    []byte
	frames uint32
	first  int64 // offset of the first frame
}

// mapRing maps the file of a ring of so many frames.
func mapRing(fd int, frames uint32) (mapping, error) {
	mem, err := unix.Mmap(fd, 0, int(Size(frames)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return mapping{}, fmt.Errorf("map the ring: %w", err)
	}
	return mapping{mem, frames, framesAt(frames)}, nil
}

func (m *mapping) unmap() error {
	if m.mem == nil {
		return nil
	}
	mem := m.mem
	m.mem = nil
	return unix.Munmap(mem)
}

// word32 and word64 return words in place. A mapping begins at a page and off is a
// multiple of the word's size, so that they are aligned.
func (m *mapping) word32(off int64) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&m.mem[off : off+4][0]))
}

func (m *mapping) word64(off int64) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&m.mem[off : off+8][0]))
}

func (m *mapping) putHeader() {
	copy(m.mem, magic)
	binary.LittleEndian.PutUint32(m.mem[offVersion:], version)
	binary.LittleEndian.PutUint32(m.mem[offFrames:], m.frames)
}

func (m *mapping) checkHeader() error {
	var h [16]byte
	copy(h[:], m.mem)
	switch v, frames := binary.LittleEndian.Uint32(h[offVersion:]), binary.LittleEndian.Uint32(h[offFrames:]); {
	case string(h[:len(magic)]) != magic:
		return fmt.Errorf("%w: magic", ErrProtocol)
	case v != version:
		return fmt.Errorf("%w: version %d, want %d", ErrProtocol, v, version)
	case frames != m.frames:
		return fmt.Errorf("%w: %d frames, announced %d", ErrProtocol, frames, m.frames)
	}
	return nil
}

// descriptor returns the offset of a position's descriptor.
func (m *mapping) descriptor(pos uint64) int64 {
	return headerSize + int64(pos&uint64(m.frames-1))*descriptorSize
}

// frame returns the frame of a position.
func (m *mapping) frame(pos uint64) []byte {
	off := m.first + int64(pos&uint64(m.frames-1))*PageSize
	return m.mem[off : off+PageSize]
}
