package ring

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// wantSeals keep the file's size, so that no access to the mapping is past its end.
const wantSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// An Entry tells of a page in the ring. All of it is the producer's word.
type Entry struct {
	Page uint64
	When int64  // CLOCK_MONOTONIC in ns when its copying began
	Tag  uint64 // the last barrier that its producer knew to be over
}

// A Consumer is the daemon's end of a ring. One goroutine uses it, but for Check.
type Consumer struct {
	mapping
	pos   uint64        // of the next entry
	taken atomic.Uint64 // pos, for Check
	freed uint64        // positions below are the producers' again
}

// Open maps the ring of a member that announced so many frames. An error that
// matches ErrProtocol says what is wrong with it. The descriptor stays the caller's.
func Open(fd int, frames uint32) (*Consumer, error) {
	size := Size(frames)
	if size == 0 {
		return nil, fmt.Errorf("%w: %d frames", ErrProtocol, frames)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: not a memfd: %w", ErrProtocol, err)
	}
	if seals&wantSeals != wantSeals {
		return nil, fmt.Errorf("%w: seals %#x, want %#x", ErrProtocol, seals, wantSeals)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("the ring's size: %w", err)
	}
	// No ring has the size of whole huge pages, which may be missing when they are
	// touched.
	if st.Size != size {
		return nil, fmt.Errorf("%w: %d bytes, want %d", ErrProtocol, st.Size, size)
	}
	m, err := mapRing(fd, frames)
	if err != nil {
		return nil, err
	}
	if err := m.checkHeader(); err != nil {
		_ = m.unmap() // the first error counts
		return nil, err
	}
	return &Consumer{mapping: m}, nil
}

// Next takes the next entry and copies its page to p, PageSize bytes. It returns
// false if there is none yet. Errors match ErrProtocol; the ring is of no more use
// then.
func (c *Consumer) Next(e *Entry, p []byte) (bool, error) {
	d := c.descriptor(c.pos)
	if seq := c.word64(d + offSeq).Load(); seq != c.pos+1 {
		c.Free()
		empty := uint64(0) // as it is since the last round
		if c.pos >= uint64(c.frames) {
			empty = c.pos + 1 - uint64(c.frames)
		}
		if seq != empty {
			return false, fmt.Errorf("%w: position %d: sequence %d", ErrProtocol, c.pos, seq)
		}
		return false, nil
	}
	e.Page = c.word64(d + offPage).Load()
	e.When = int64(c.word64(d + offWhen).Load())
	e.Tag = c.word64(d + offTag).Load()
	copy(p, c.frame(c.pos))
	c.pos++
	c.taken.Store(c.pos)
	if c.pos-c.freed >= batch {
		c.Free()
	}
	return true, nil
}

// Free gives the frames of all entries taken so far back to the producers and
// wakes those that wait for room. Next does it for a batch at a time, and when it
// finds nothing.
func (c *Consumer) Free() {
	if c.freed == c.pos {
		return
	}
	c.freed = c.pos
	c.word64(offTail).Store(c.pos)
	space := c.word32(offSpace)
	space.Add(1)
	// After tail: a producer sets space_waiters, then looks at tail once more.
	if c.word32(offSpaceWaiters).Swap(0) != 0 {
		futexWake(space)
	}
}

// Pos returns the position of the next entry.
func (c *Consumer) Pos() uint64 { return c.pos }

// Check refuses a position that the producers cannot have filled. It is safe for
// concurrent use.
func (c *Consumer) Check(upto uint64) error {
	if taken := c.taken.Load(); upto > taken && upto-taken > uint64(c.frames) {
		return fmt.Errorf("%w: position %d of a ring of %d frames, taken up to %d", ErrProtocol, upto, c.frames, taken)
	}
	return nil
}

// Sleep announces that the consumer is going to sleep until it is kicked, and
// reports whether it may: false if an entry is there.
func (c *Consumer) Sleep() bool {
	asleep := c.word32(offAsleep)
	asleep.Store(1)
	// A producer publishes, then looks at asleep.
	if c.word64(c.descriptor(c.pos)+offSeq).Load() == c.pos+1 {
		asleep.Store(0)
		return false
	}
	return true
}

// Wake ends a sleep.
func (c *Consumer) Wake() { c.word32(offAsleep).Store(0) }

// Close unmaps the ring.
func (c *Consumer) Close() error { return c.unmap() }
