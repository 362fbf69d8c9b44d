package ring

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// look is how long a producer waits for room without a look at its context.
const look = 50 * time.Millisecond

// A Producer is a member's end of a ring. It is safe for concurrent use.
type Producer struct {
	mapping
	file *os.File
	kick func()
}

// Create makes a ring of so many frames, all of its memory allocated. Put calls
// kick when the daemon sleeps and has to be sent a Kick.
func Create(frames uint32, kick func()) (*Producer, error) {
	size := Size(frames)
	if size == 0 {
		return nil, fmt.Errorf("a ring of %d frames: want a power of two from %d to %d", frames, MinFrames, MaxFrames)
	}
	fd, err := unix.MemfdCreate("rpmemfs-ring", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd for a ring: %w", err)
	}
	p := &Producer{file: os.NewFile(uintptr(fd), "rpmemfs-ring"), kick: kick}
	if err := p.create(fd, frames, size); err != nil {
		_ = p.Close() // the first error counts
		return nil, err
	}
	return p, nil
}

func (p *Producer) create(fd int, frames uint32, size int64) error {
	// All of it now: running out of memory at a store would be SIGBUS.
	if err := unix.Fallocate(fd, 0, 0, size); err != nil {
		return fmt.Errorf("allocate a ring of %d bytes: %w", size, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, wantSeals); err != nil {
		return fmt.Errorf("seal the ring: %w", err)
	}
	m, err := mapRing(fd, frames)
	if err != nil {
		return err
	}
	m.putHeader()
	p.mapping = m
	return nil
}

// File returns the ring's memfd, which goes to the daemon with Hello. It stays the
// producer's.
func (p *Producer) File() *os.File { return p.file }

// Frames returns the number of frames.
func (p *Producer) Frames() uint32 { return p.frames }

// Head returns the position after the last that was claimed. When no Put is under
// way all below are full.
func (p *Producer) Head() uint64 { return p.word64(offHead).Load() }

// Put copies pages of a region that is mapped at mem into the ring, with a tag
// (Entry.Tag). It takes a few at a time and waits for room as long as ctx allows.
// After an error the pages that it took are in the ring, and no position is
// claimed that is not full.
//
// The pages' protection, by which the next scan finds stores, has to be in place
// before: a store that the copy misses must be found again.
func (p *Producer) Put(ctx context.Context, mem []byte, pages []uint64, tag uint64) error {
	for len(pages) > 0 {
		n := min(len(pages), batch/2)
		pos, err := p.claim(ctx, uint64(n))
		if err != nil {
			return err
		}
		p.fill(pos, mem, pages[:n], tag)
		pages = pages[n:]
		if a := p.word32(offAsleep); a.Load() != 0 && a.CompareAndSwap(1, 0) {
			p.kick()
		}
	}
	return nil
}

// fill copies pages into the positions from pos on and publishes them.
func (p *Producer) fill(pos uint64, mem []byte, pages []uint64, tag uint64) {
	when := monotonic()
	for _, page := range pages {
		copy(p.frame(pos), mem[page*PageSize:(page+1)*PageSize])
		d := p.descriptor(pos)
		p.word64(d + offPage).Store(page)
		p.word64(d + offWhen).Store(uint64(when))
		p.word64(d + offTag).Store(tag)
		pos++
		p.word64(d + offSeq).Store(pos)
	}
}

// claim takes n positions that are free.
func (p *Producer) claim(ctx context.Context, n uint64) (uint64, error) {
	head := p.word64(offHead)
	for {
		pos := head.Load()
		if p.room(pos, n) {
			if head.CompareAndSwap(pos, pos+n) {
				return pos, nil
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("the ring is full: %w", err)
		}
		space := p.word32(offSpace)
		seen := space.Load()
		// Before the next look at tail: the consumer moves it, then looks for
		// waiters.
		p.word32(offSpaceWaiters).Store(1)
		if !p.room(head.Load(), n) {
			futexWait(space, seen, look)
		}
	}
}

// room reports whether the n positions from pos on are free.
func (p *Producer) room(pos, n uint64) bool {
	return pos+n-p.word64(offTail).Load() <= uint64(p.frames)
}

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("clock_gettime: " + err.Error()) // the clock always exists
	}
	return ts.Nano()
}

// Close unmaps the ring and closes its file.
func (p *Producer) Close() error {
	err := p.unmap()
	if cerr := p.file.Close(); err == nil {
		err = cerr
	}
	return err
}
