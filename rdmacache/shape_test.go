package rdmacache_test

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// Holes and searches in a large open epoch take a time that grows with it, not
// with its square.
func TestLargeOverlay(t *testing.T) {
	const pages = 80 * 256
	m := newMemory(pages + 8000)
	c, _ := m.open(t)
	b := make([]byte, 256*pageSize)
	for i := range b {
		b[i] = 1 + byte(i/pageSize)%100
	}
	for off := int64(0); off < pages*pageSize; off += int64(len(b)) {
		if _, err := c.WriteAt(t.Context(), b, off, rdmacache.FromWrite); err != nil {
			t.Fatal(err)
		}
	}
	start := processorTime(t)
	for page := int64(0); page < pages; page += 2 {
		if at, err := c.Seek(t.Context(), page*pageSize, false); err != nil || at != page*pageSize {
			t.Fatalf("seek data at page %d: got byte %d, %v", page, at, err)
		}
	}
	if err := c.PunchHole(t.Context(), 0, pages*pageSize); err != nil {
		t.Fatal(err)
	}
	if at, err := c.Seek(t.Context(), 0, false); !errors.Is(err, rdmacache.ErrNoData) {
		t.Errorf("got data at byte %d, %v", at, err)
	}
	if took := processorTime(t) - start; took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

// processorTime is how long this process has computed; a machine that is busy with others, or
// stands still, does not count.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
