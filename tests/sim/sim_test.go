// Package sim plays schedules of faults on compute nodes and a memory node: the real
// packages node, memnode, remote, rdmacache/tcp, rdmacache/verbs and volume over a network,
// RDMA devices, a clock and a medium that are not.
//
// Each schedule has a bubble of testing/synctest for itself, so that leases last no
// time: a network in memory, which delays, splits, stalls and breaks connections; the
// memory node, on a media.Crashable that loses power at any time or during a flush,
// and a meta.db on tmpfs; and compute nodes that open sessions, steal them from each
// other, look at all files, commit epochs, and die without a word or unmount. Beside them
// nodes mount the shares read-only: they look at files, refresh them to the newest epoch,
// and die or unmount, too. Every page of a file carries its epoch's stamp.
//
// In half of the schedules the data path is RDMA: devices of package verbs/model, hostile,
// whose writes come late, in pieces and after the end of their session if nobody prevents
// it, and are visible and not persistent until something makes them so: FLUSH, a READ, or
// the memory node's processor. What is checked:
//
//   - atomic: what a session finds in a file is one epoch, whole;
//   - durable: it is the last that was acknowledged, or one tried after that; what
//     recovery refused, or another epoch replaced, is never seen again;
//   - fenced: once a lease was granted, no commit or creation of an earlier session
//     succeeds, nothing that it sent, or that is sent for it once more, changes a
//     file, and no generation is granted twice;
//   - checked: no checksum is wrong;
//   - once: a change of names or slots whose answer was lost is made once;
//   - readers see of a file one epoch, whole, and no other until they refresh it or lose
//     their session: then at least what was acknowledged before, or seen by anybody. What
//     a node sees never goes back, and what it saw recovery finds, or something later.
//
// In the end, without faults, a reader follows a writer and dies: its pins expire, and the
// writer has their slots again. Then every share is taken over, read, checked and written.
// Nobody waits in vain: no connection for bytes breaks because an answer does not come.
//
// A seed decides what a schedule does and when. TestSchedules plays each one in a process of its
// own, in which one goroutine runs at a time and the runtime draws its random numbers from the
// seed, too: of 150 schedules 149 repeated exactly. -replay says whether one does. TestTogether plays
// them in this process, where goroutines run in parallel and meet in more ways; but which of two
// events at the same moment of the bubble's clock comes first is open there, and a seed that failed
// plays a schedule of the same kind, not the same run. That takes a third of the time. What
// happened is printed with a failure. docs/rationale.md has what else was tried.
//
// A goroutine that waits for a mutex keeps the clock of its bubble from moving. Some
// mutexes are held across the network, so a session makes one call at a time, and the
// medium takes no time. A writer pins for readers between two steps, with no epoch in flight,
// and a call of a reader whose session is lost is interrupted, and does not wait for the next.
// For the same reason RDMA by messages is not among the paths: package tcp holds a lock while
// it sends, and a stream of package verbs waits in that send for room, which the peer gives
// by a frame of its own. A queue that never blocks changes nothing about that; it would take
// a buffer without a limit before the stream, as conn is.
package sim

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

var (
	seed      = flag.Uint64("seed", 1, "seed of the first schedule")
	schedules = flag.Int("schedules", 0, "schedules to play; 0: 200 in TestSchedules, 50 in TestTogether")
	onlyPath  = flag.String("path", "", "data path of all schedules: tcp, or flush, read or cpu over RDMA; empty: by the seed")
	story     = flag.Bool("story", false, "print what happens in each schedule")
	replay    = flag.Int("replay", 0, "TestSchedules plays each schedule this often once more, and says how many are the same")
	alone     = flag.Bool("alone", false, "for TestAlone: play the schedule of -seed in this process")
)

// patience bounds one schedule, on the clock of the wall.
const patience = 2 * time.Minute

// TestSchedules plays schedules that repeat.
func TestSchedules(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has threads of its own, which nothing orders: TestTogether")
	}
	var repeated atomic.Int64
	n := each(t, 200, func(t *testing.T, seed uint64, counts *counts) { playApart(t, seed, counts, &repeated) })
	if *replay > 0 {
		t.Logf("%d of %d schedules repeated exactly, each of %d times", repeated.Load(), n, *replay)
	}
}

// TestTogether plays schedules whose goroutines run in parallel.
func TestTogether(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // much garbage, little memory
	each(t, 50, play)
}

// each plays as many schedules as -schedules says, or n, one on each processor, and returns how many.
func each(t *testing.T, n int, play func(t *testing.T, seed uint64, counts *counts)) int {
	if *schedules > 0 {
		n = *schedules
	}
	var next atomic.Int64
	counts := &counts{}
	began := time.Now()
	t.Run("all", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for i := int(next.Add(1)) - 1; i < n && !t.Failed(); i = int(next.Add(1)) - 1 {
					play(t, *seed+uint64(i), counts)
				}
			})
		}
	})
	if counts.schedules.Load() == 0 && !t.Failed() {
		t.Skip("no schedule was played, see above")
	}
	t.Logf("%v: %s", time.Since(began).Round(time.Second/10), counts)
	if missed := counts.missed(); missed != "" && n >= 200 && *onlyPath == "" && !t.Failed() {
		t.Errorf("the schedules never reached: %s", missed)
	}
	return n
}

// play plays one schedule in a bubble of its own.
func play(t *testing.T, seed uint64, counts *counts) {
	dir, err := os.MkdirTemp(memoryDir(), "rpmemfs-sim")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	hung := time.AfterFunc(patience, func() {
		buf := make([]byte, 4<<20)
		_, _ = os.Stderr.Write(buf[:runtime.Stack(buf, true)])
		panic(fmt.Sprintf("the schedule hangs: -run Together -schedules 1 -seed %d", seed))
	})
	defer hung.Stop()
	synctest.Test(t, func(t *testing.T) {
		failures, trace := run(dir, seed, counts)
		report(t, fmt.Sprintf("-run Together -schedules 1 -seed %d", seed), failures, trace)
	})
}

// playApart plays one schedule in a process of its own, and again for each -replay.
func playApart(t *testing.T, seed uint64, counts *counts, repeated *atomic.Int64) {
	var first *outcome
	same, failed := 0, 0
	for i := range 1 + *replay {
		dir, err := os.MkdirTemp(memoryDir(), "rpmemfs-sim")
		if err != nil {
			t.Fatal(err)
		}
		o, err := apart(dir, seed)
		if errors.Is(err, unix.EPERM) {
			t.Skipf("no process can be traced here, TestTogether has to do: %v", errors.Join(err, os.RemoveAll(dir)))
		}
		if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
			t.Errorf("-run Schedules -schedules 1 -seed %d: %v", seed, err)
			return
		}
		if len(o.Failures) > 0 {
			failed++
		}
		if i == 0 {
			first = o
			counts.add(o.Counts)
		}
		if slices.Equal(o.Trace, first.Trace) {
			same++
		}
		report(t, fmt.Sprintf("-run Schedules -schedules 1 -seed %d", seed), o.Failures, o.Trace)
	}
	if same == 1+*replay {
		repeated.Add(1)
	}
	if failed > 0 {
		t.Logf("-seed %d: %d of %d plays failed, %d were like the first", seed, failed, 1+*replay, same)
	}
}

func report(t *testing.T, how string, failures, trace []string) {
	if len(failures) > 0 {
		t.Errorf("%s: %s\n%s", how, strings.Join(failures, "\n"), strings.Join(trace, "\n"))
	} else if *story {
		t.Log(strings.Join(trace, "\n"))
	}
}

// memoryDir is where files cost no I/O; empty: where temporary files are.
func memoryDir() string {
	const dir = "/dev/shm"
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return dir
	}
	return ""
}
