package attach

import (
	"math"
	"time"

	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// A Status describes the members of a file.
type Status struct {
	Ino       uint64
	Members   []Member
	Barriers  uint64    // begun since the first member came
	CalledOff uint64    // of these
	Rollbacks uint64    // because of a death
	Late      LateError // the last that called a barrier off; zero if none
	LateN     uint64    // its barrier
	Last      Barrier   // the last that sealed; zero if none
}

// A Member describes one member.
type Member struct {
	ID            uint32
	PID           int
	UID           uint32
	Name          string
	RestartPoints bool // it parks its threads; otherwise its msync asks for barriers
	Tracks        bool // it finds its pages by itself; otherwise the kernel writes back
}

// A Barrier describes one that sealed an epoch.
type Barrier struct {
	N         uint64
	Epoch     uint64
	Members   int
	Drained   bool          // the kernel wrote back within it
	Park      time.Duration // from DUE until all were parked
	Pause     time.Duration // from then until RELEASE
	Rounds    uint32        // of copying before, the most of any member
	Precopied uint64        // pages, in these
	Copied    uint64        // pages, within the pause
	Scan      time.Duration // within the pause, the longest of any member
	Copy      time.Duration // the same
}

// add takes a member's figures in.
func (b *Barrier) add(d *wire.Done) {
	b.Rounds = max(b.Rounds, d.Rounds)
	b.Precopied += d.Precopied
	b.Copied += d.Copied
	b.Scan = max(b.Scan, duration(d.ScanNs))
	b.Copy = max(b.Copy, duration(d.CopyNs))
}

// duration is a member's word for nanoseconds.
func duration(ns uint64) time.Duration { return time.Duration(min(ns, math.MaxInt64)) }
