package client

import (
	"fmt"
	"runtime"
	"sync"
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

// ahead is how far beyond the file's end pages are protected, so that a file which
// grows by little steps needs no more than a look at its size.
const ahead = 64 << 20

// A tracker finds the pages of a mapping that were stored to, by userfaultfd's
// asynchronous write protection (Linux 6.7): the kernel notes the first store to a
// protected page and lets it go on, and one ioctl lists those pages and protects
// them again. Stores by write(2) to the file are not seen; those the daemon sees.
//
// A page that was never protected counts as stored to, even if it was not touched.
// So the whole mapping is registered once, and pages are protected before the file
// reaches them. Protection takes 8 bytes of page table for a page.
type tracker struct {
	uffd    int
	pagemap int
	mem     []byte       // all of the mapping
	size    func() int64 // of the file, now

	mu        sync.Mutex // serialises ioctls; guards the fields below
	protected int64      // bytes from the start
	missed    []uint64   // pages that may have been stored to before they were protected
	found     []scanRegion
}

// newTracker tracks a mapping to which nobody has stored yet. An error says what
// the kernel does not have.
func newTracker(mem []byte, size func() int64) (*tracker, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|uffdUserModeOnly, 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("userfaultfd: %w", errno)
	}
	t := &tracker{uffd: int(fd), pagemap: -1, mem: mem, size: size, found: make([]scanRegion, 1024)}
	if err := t.arm(); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *tracker) arm() error {
	api := uffdAPIArg{api: uffdAPI, features: wantedFeatures}
	if err := ioctl(t.uffd, uffdioAPI, unsafe.Pointer(&api)); err != nil {
		return fmt.Errorf("userfaultfd: asynchronous write protection: %w", err)
	}
	fd, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("pagemap: %w", err)
	}
	t.pagemap = fd
	reg := uffdRegisterArg{start: t.address(0), length: uint64(len(t.mem)), mode: uffdRegisterWP}
	if err := ioctl(t.uffd, uffdioRegister, unsafe.Pointer(&reg)); err != nil {
		return fmt.Errorf("userfaultfd: register: %w", err)
	}
	t.protected = t.window(t.size())
	if err := t.protectAgain(); err != nil {
		return err
	}
	_, err = t.scan(nil)
	return err
}

func (t *tracker) address(off int64) uint64 {
	return uint64(uintptr(unsafe.Pointer(&t.mem[0]))) + uint64(off)
}

// window returns up to where pages are protected if the file has so many bytes.
func (t *tracker) window(size int64) int64 { return min(roundUp(size+ahead), int64(len(t.mem))) }

func roundUp(n int64) int64 { return (n + pageSize - 1) &^ (pageSize - 1) }

// reach protects pages before the file grows to size.
func (t *tracker) reach(size int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.extend(size)
}

// extend protects up to size and a bit further. The caller holds mu.
func (t *tracker) extend(size int64) error {
	from := t.protected
	if size <= from {
		return nil
	}
	to := t.window(size)
	if err := t.protect(from, to); err != nil {
		return err
	}
	t.protected = to
	// Another process made the file grow past from: who knows what was stored
	// there before it was protected.
	for at := from; at < min(t.size(), to); at += pageSize {
		t.missed = append(t.missed, uint64(at/pageSize))
	}
	return nil
}

func (t *tracker) protect(from, to int64) error {
	wp := uffdProtectArg{t.address(from), uint64(to - from), uffdWriteProtectWP}
	if err := ioctl(t.uffd, uffdioWriteProtect, unsafe.Pointer(&wp)); err != nil {
		return fmt.Errorf("userfaultfd: protect: %w", err)
	}
	return nil
}

// protectAgain forgets what was stored to. Nobody stores meanwhile.
func (t *tracker) protectAgain() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.missed = nil
	return t.protect(0, t.protected)
}

// scan appends the pages of the file that were stored to since the last scan, and
// protects them again: a store after it is for the next one.
func (t *tracker) scan(pages []uint64) ([]uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	size := min(t.size(), int64(len(t.mem)))
	if err := t.extend(size); err != nil {
		return pages, err
	}
	pages, t.missed = append(pages, t.missed...), nil
	for at, end := t.address(0), t.address(roundUp(size)); at < end; {
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
				pages = append(pages, (a-t.address(0))/pageSize)
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
