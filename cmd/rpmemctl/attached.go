package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
)

// An attachedJSON is a file that programs are attached to, as --json shows it.
// Times are nanoseconds.
type attachedJSON struct {
	Ino         uint64        `json:"ino"`
	Path        string        `json:"path"` // in the pool
	Interval    int64         `json:"interval"`
	Programs    []programJSON `json:"programs"`
	Barriers    uint64        `json:"barriers"`
	CalledOff   uint64        `json:"called_off"`
	Rollbacks   uint64        `json:"rollbacks"`
	Late        string        `json:"late,omitempty"`
	LateBarrier uint64        `json:"late_barrier,omitempty"`
	Last        *barrierJSON  `json:"last,omitempty"`
}

type programJSON struct {
	PID           int64  `json:"pid"`
	UID           uint32 `json:"uid"`
	Name          string `json:"name"`
	RestartPoints bool   `json:"restart_points"`
	Capture       string `json:"capture"` // "wp_async" or "drain"
}

type barrierJSON struct {
	Number    uint64 `json:"number"`
	Epoch     uint64 `json:"epoch"`
	Drained   bool   `json:"drained"`
	Park      int64  `json:"park"`
	Pause     int64  `json:"pause"`
	Scan      int64  `json:"scan"`
	Copy      int64  `json:"copy"`
	Rounds    uint32 `json:"rounds"`
	Precopied uint64 `json:"precopied_pages"`
	Copied    uint64 `json:"copied_pages"`
}

func attachedFiles(s *controlpb.StatusResponse) []attachedJSON {
	files := []attachedJSON{}
	for _, f := range s.GetAttached() {
		a := attachedJSON{
			Ino: f.GetIno(), Path: string(f.GetPath()), Interval: int64(f.GetInterval()), Programs: []programJSON{},
			Barriers: f.GetBarriers(), CalledOff: f.GetCalledOff(), Rollbacks: f.GetRollbacks(),
			Late: f.GetLate(), LateBarrier: f.GetLateBarrier(),
		}
		for _, p := range f.GetPrograms() {
			capture := "drain"
			if p.GetTracks() {
				capture = "wp_async"
			}
			a.Programs = append(a.Programs, programJSON{p.GetPid(), p.GetUid(), p.GetName(), p.GetRestartPoints(), capture})
		}
		if b := f.GetLast(); b != nil {
			a.Last = &barrierJSON{
				Number: b.GetNumber(), Epoch: b.GetEpoch(), Drained: b.GetDrained(),
				Park: int64(b.GetPark()), Pause: int64(b.GetPause()), Scan: int64(b.GetScan()), Copy: int64(b.GetCopy()),
				Rounds: b.GetRounds(), Precopied: b.GetPrecopied(), Copied: b.GetCopied(),
			}
		}
		files = append(files, a)
	}
	return files
}

func printAttached(w io.Writer, f attachedJSON) {
	interval, late, last := "none: on request", "", "none yet"
	if f.Interval > 0 {
		interval = "every " + time.Duration(f.Interval).String()
	}
	if f.LateBarrier != 0 {
		late = fmt.Sprintf("%s (barrier %d)", clean(f.Late), f.LateBarrier)
	}
	if b := f.Last; b != nil {
		last = fmt.Sprintf("epoch %d: paused %v (parked after %v, scan %v, copy of %s %v), %s copied before in %s",
			b.Epoch, short(b.Pause), short(b.Park), short(b.Scan), plural(b.Copied, "page"), short(b.Copy),
			plural(b.Precopied, "page"), plural(uint64(b.Rounds), "round"))
		if b.Drained {
			last += ", the kernel wrote back within the pause"
		}
	}
	var programs []string
	for _, p := range f.Programs {
		how := p.Capture
		if p.RestartPoints {
			how += ", restart points"
		}
		programs = append(programs, fmt.Sprintf("%s [%d] (%s)", clean(p.Name), p.PID, how))
	}
	fields(w,
		"attached to", clean(f.Path),
		"programs", strings.Join(programs, ", "),
		"epochs", interval,
		"barriers", fmt.Sprintf("%s, %s called off, %s after a death", number(f.Barriers), number(f.CalledOff), plural(f.Rollbacks, "rollback")),
		"late last", late,
		"last barrier", last,
	)
}

// short is a time for people.
func short(ns int64) time.Duration { return time.Duration(ns).Round(10 * time.Microsecond) }
