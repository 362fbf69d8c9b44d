package attach

import (
	"math"
	"strings"
	"time"
	"unicode"

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

// empty reports whether no member stored anything.
func (b *Barrier) empty() bool { return !b.Drained && b.Precopied == 0 && b.Copied == 0 }

// duration is a member's word for nanoseconds.
func duration(ns uint64) time.Duration { return time.Duration(min(ns, math.MaxInt64)) }

// printable is a member's word for a name, fit for a terminal.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
}

// status describes the group.
func (g *group) status() Status {
	g.driveMu.Lock()
	defer g.driveMu.Unlock()
	m := &g.machine
	st := Status{
		Ino: g.ino, Barriers: m.n, CalledOff: m.counters.calledOff, Rollbacks: m.counters.rollbacks,
		Late: m.counters.late, LateN: m.counters.lateN, Last: m.counters.last,
	}
	for _, s := range m.seats {
		st.Members = append(st.Members, Member{
			ID: s.id, PID: s.pid, UID: g.members[s.id].uid, Name: s.name,
			RestartPoints: s.flags&wire.RestartPoints != 0, Tracks: s.flags&wire.Tracks != 0,
		})
	}
	return st
}
