package tests

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// A stamped page carries its epoch's number at its start, in its middle and at
// its end, and its own number after the first.
var stampPlaces = []int{0, 2048, pageSize - 8}

func stampPage(page []byte, no, stamp uint64) {
	for _, at := range stampPlaces {
		binary.LittleEndian.PutUint64(page[at:], stamp)
	}
	binary.LittleEndian.PutUint64(page[8:], no)
}

// pageStamp returns the stamp of a page, or an error if the page is torn or not
// where it belongs.
func pageStamp(page []byte, no uint64) (uint64, error) {
	stamp := binary.LittleEndian.Uint64(page)
	for _, at := range stampPlaces[1:] {
		if got := binary.LittleEndian.Uint64(page[at:]); got != stamp {
			return 0, fmt.Errorf("page %d is torn: stamp %d at 0, %d at %d", no, stamp, got, at)
		}
	}
	if got := binary.LittleEndian.Uint64(page[8:]); stamp != 0 && got != no {
		return 0, fmt.Errorf("page %d holds page %d", no, got)
	}
	return stamp, nil
}

// roleStamp maps a file and stamps every page with one epoch after the other:
//
//	stamp FILE PAGES msync|fsync|fdatasync|write
//
// It prints "from E" first, then every epoch whose commit returned. In some
// epochs it makes the kernel write half of the pages back before the rest is
// stored, as the flusher may do at any time.
func roleStamp(args []string) error {
	pages, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	how := args[2]
	fd, err := unix.Open(args[0], unix.O_RDWR|unix.O_CREAT, 0o644)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	size := pages * pageSize
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return fmt.Errorf("ftruncate: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	from := binary.LittleEndian.Uint64(mem)
	fmt.Println("from", from)
	for e := from + 1; ; e++ {
		for no := range pages {
			page := mem[no*pageSize : (no+1)*pageSize]
			if how == "write" {
				buf := make([]byte, pageSize)
				stampPage(buf, uint64(no), e)
				if _, err := unix.Pwrite(fd, buf, int64(no)*pageSize); err != nil {
					return fmt.Errorf("pwrite: %w", err)
				}
			} else {
				stampPage(page, uint64(no), e)
			}
			if no == pages/2 && e%3 == 0 {
				const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
				if err := unix.SyncFileRange(fd, 0, 0, all); err != nil {
					return fmt.Errorf("sync_file_range: %w", err)
				}
			}
		}
		switch how {
		case "msync":
			err = unix.Msync(mem, unix.MS_SYNC)
		case "fsync":
			err = unix.Fsync(fd)
		case "fdatasync", "write":
			err = unix.Fdatasync(fd)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", how, err)
		}
		fmt.Println(e)
	}
}

// roleVerify prints the one stamp that all pages of a file carry, read by
// read(2) and through a mapping. A file that is not there, or is empty, has
// stamp 0.
func roleVerify(args []string) error {
	data, err := os.ReadFile(args[0])
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		fmt.Println(0)
		return nil
	}
	if err != nil {
		return err
	}
	byRead, err := oneStamp(data)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	file, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer file.Close()
	mem, err := unix.Mmap(int(file.Fd()), 0, len(data), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	byMap, err := oneStamp(mem)
	if err != nil {
		return fmt.Errorf("mapping: %w", err)
	}
	if byRead != byMap {
		return fmt.Errorf("read finds stamp %d, the mapping %d", byRead, byMap)
	}
	fmt.Println(byRead)
	return nil
}

func oneStamp(data []byte) (uint64, error) {
	if len(data)%pageSize != 0 {
		return 0, fmt.Errorf("%d bytes, not whole pages", len(data))
	}
	var first uint64
	for no := range uint64(len(data) / pageSize) {
		stamp, err := pageStamp(data[no*pageSize:(no+1)*pageSize], no)
		if err != nil {
			return 0, err
		}
		if no == 0 {
			first = stamp
		}
		if stamp != first {
			return 0, fmt.Errorf("page 0 is of epoch %d, page %d of epoch %d: a mix", first, no, stamp)
		}
	}
	return first, nil
}

// stampOf returns the one stamp of a file and fails the test if there are more.
func (m *mount) stampOf(name string) uint64 {
	m.t.Helper()
	out := m.role("verify", m.path(name)).mustFinish(patience)
	stamp, err := strconv.ParseUint(strings.TrimSpace(out), 10, 64)
	if err != nil {
		m.t.Fatalf("verify %s: %v in %q", name, err, out)
	}
	return stamp
}

// lastNumber returns the last line that is a number, or before.
func lastNumber(t *testing.T, lines []string, before uint64) uint64 {
	t.Helper()
	for _, line := range lines {
		n, err := strconv.ParseUint(line, 10, 64)
		if err != nil {
			continue // cut off by the kill
		}
		before = n
	}
	return before
}
