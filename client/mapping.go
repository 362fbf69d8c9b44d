package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// mapAlign is what the address of a mapping is a multiple of (docs/format.md,
	// the heap's chunks).
	mapAlign = 64 << 20
	// firstAddress and the 16 TiB above it are free in processes of today: above
	// what a program, its heap and Go's arenas use, below mmap's own area.
	firstAddress = 0x1000_0000_0000
	places       = 256
)

// mapFile maps the first reserve bytes of a file, which may be shorter: at the
// address that its heap asks for, or else at one of mapAlign that ino chooses, so
// that the next process finds it free too.
func mapFile(file *os.File, reserve int64, ino uint64) ([]byte, error) {
	base, err := heapBase(file)
	if err != nil {
		return nil, err
	}
	if base != 0 {
		mem, err := mapAt(file, uintptr(base), reserve)
		if err != nil {
			return nil, fmt.Errorf("map at %#x, where the file's heap has to be: %w", base, err)
		}
		return mem, nil
	}
	for i := range uint64(places) {
		mem, err := mapAt(file, uintptr(firstAddress+(ino+i)%places<<36), reserve)
		if !errors.Is(err, unix.EEXIST) {
			return mem, err
		}
	}
	return nil, fmt.Errorf("map: no free address above %#x: %w", firstAddress, unix.ENOMEM)
}

func mapAt(file *os.File, at uintptr, size int64) ([]byte, error) {
	const flags = unix.MAP_SHARED | unix.MAP_FIXED_NOREPLACE
	ptr, err := unix.MmapPtr(int(file.Fd()), 0, unsafe.Add(nil, at), uintptr(size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return unsafe.Slice((*byte)(ptr), size), nil
}

func unmap(mem []byte) error { return unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(len(mem))) }

// heapBase returns the address in the header of a file's heap; 0 if it has none
// (docs/format.md).
func heapBase(file *os.File) (uint64, error) {
	var h [64]byte
	if n, err := unix.Pread(int(file.Fd()), h[:], 0); err != nil {
		return 0, fmt.Errorf("read the first page: %w", err)
	} else if n < len(h) || string(h[:8]) != "RPMHEAP\x00" || binary.LittleEndian.Uint32(h[8:]) != 1 {
		return 0, nil
	}
	if crc32.Checksum(h[:60], crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(h[60:]) {
		return 0, nil // heap.Open says what is wrong with it
	}
	base := binary.LittleEndian.Uint64(h[16:])
	if base == 0 || base%mapAlign != 0 || base >= 1<<47 {
		return 0, fmt.Errorf("the file's heap wants to be at %#x", base)
	}
	return base, nil
}
