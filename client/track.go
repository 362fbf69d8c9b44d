package client

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// From linux/userfaultfd.h and linux/fs.h of Linux 6.7; x/sys has none of it.
const (
	uffdUserModeOnly          = 1
	uffdAPI                   = 0xAA
	uffdFeatureFlagWP         = 1 << 0
	uffdFeatureUnpopul        = 1 << 13
	uffdFeatureAsync          = 1 << 15
	uffdRegisterWP            = 1 << 1
	uffdWriteProtectWP        = 1 << 0
	uffdioAPI                 = 0xC018AA3F
	uffdioRegister            = 0xC020AA00
	uffdioWriteProtect        = 0xC018AA06
	pagemapScan               = 0xC0606610
	scanWPMatching            = 1 << 0
	scanCheckAsync            = 1 << 1
	pageIsWritten             = 1 << 1
	wantedFeatures     uint64 = uffdFeatureFlagWP | uffdFeatureUnpopul | uffdFeatureAsync
)

type (
	uffdAPIArg      struct{ api, features, ioctls uint64 }
	uffdRegisterArg struct{ start, length, mode, ioctls uint64 }
	uffdProtectArg  struct{ start, length, mode uint64 }
	scanArg         struct {
		size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
		inverted, mask, anyOf, returned                         uint64
	}
	scanRegion struct{ start, end, categories uint64 }
)

// A tracker finds the pages of a mapping that were stored to, by userfaultfd's
// asynchronous write protection (Linux 6.7): the kernel notes the first store to a
// protected page and lets it go on, and one ioctl lists those pages and protects
// them again. Stores by write(2) to the file are not seen; those the daemon sees.
//
// One goroutine uses it.
type tracker struct {
	uffd, pagemap int
	base          uintptr
	tracked       int64 // bytes from base that are registered
	found         []scanRegion
}

// newTracker tracks the first size bytes at base, to which nobody has stored yet.
// An error says what the kernel does not have.
func newTracker(base uintptr, size int64) (*tracker, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|uffdUserModeOnly, 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("userfaultfd: %w", errno)
	}
	t := &tracker{uffd: int(fd), pagemap: -1, base: base, found: make([]scanRegion, 1024)}
	if err := t.arm(size); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *tracker) arm(size int64) error {
	api := uffdAPIArg{api: uffdAPI, features: wantedFeatures}
	if err := ioctl(t.uffd, uffdioAPI, unsafe.Pointer(&api)); err != nil {
		return fmt.Errorf("userfaultfd: asynchronous write protection: %w", err)
	}
	fd, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("pagemap: %w", err)
	}
	t.pagemap = fd
	if err := t.extend(size); err != nil {
		return err
	}
	if t.tracked == 0 {
		return nil
	}
	// Else the first touch of a page would list all pages around it.
	wp := uffdProtectArg{uint64(t.base), uint64(t.tracked), uffdWriteProtectWP}
	if err := ioctl(t.uffd, uffdioWriteProtect, unsafe.Pointer(&wp)); err != nil {
		return fmt.Errorf("userfaultfd: protect: %w", err)
	}
	_, err = t.scan(size, nil)
	return err
}

// extend tracks the mapping up to size. What was stored to the new part before,
// the next scan finds.
func (t *tracker) extend(size int64) error {
	size = (size + pageSize - 1) &^ (pageSize - 1)
	if size <= t.tracked {
		return nil
	}
	reg := uffdRegisterArg{start: uint64(t.base) + uint64(t.tracked), length: uint64(size - t.tracked), mode: uffdRegisterWP}
	if err := ioctl(t.uffd, uffdioRegister, unsafe.Pointer(&reg)); err != nil {
		return fmt.Errorf("userfaultfd: register: %w", err)
	}
	t.tracked = size
	return nil
}

// scan appends the pages below size bytes that were stored to since the last scan,
// ascending, and protects them again: a store after it is for the next one.
func (t *tracker) scan(size int64, pages []uint64) ([]uint64, error) {
	if err := t.extend(size); err != nil {
		return pages, err
	}
	end := uint64(t.base) + uint64(min(t.tracked, (size+pageSize-1)&^(pageSize-1)))
	for at := uint64(t.base); at < end; {
		arg := scanArg{
			size: uint64(unsafe.Sizeof(scanArg{})), flags: scanWPMatching | scanCheckAsync, start: at, end: end,
			vec: uint64(uintptr(unsafe.Pointer(&t.found[0]))), vecLen: uint64(len(t.found)),
			mask: pageIsWritten, returned: pageIsWritten,
		}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(t.pagemap), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		runtime.KeepAlive(t)
		if errno != 0 {
			return pages, fmt.Errorf("pagemap scan: %w", errno)
		}
		for _, r := range t.found[:n] {
			for a := r.start; a < r.end; a += pageSize {
				pages = append(pages, (a-uint64(t.base))/pageSize)
			}
		}
		at = arg.walkEnd
	}
	return pages, nil
}

// close ends the tracking.
func (t *tracker) close() {
	_ = unix.Close(t.uffd) // nothing is written to either
	if t.pagemap >= 0 {
		_ = unix.Close(t.pagemap)
	}
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
