package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seed      = flag.Uint64("seed", 1, "seed of the first schedule")
	schedules = flag.Int("schedules", 300, "schedules that TestSchedules plays")
	story     = flag.Bool("story", false, "print what happens in each schedule")
)

// patience bounds one schedule, on the clock of the wall.
const patience = 2 * time.Minute

func TestSchedules(t *testing.T) {
	var next atomic.Int64
	counts := &counts{}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // much garbage, little memory
	began := time.Now()
	t.Run("all", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for i := int(next.Add(1)) - 1; i < *schedules && !t.Failed(); i = int(next.Add(1)) - 1 {
					play(t, *seed+uint64(i), counts)
				}
			})
		}
	})
	t.Logf("%d schedules in %v: %d sessions, %d epochs, %d commits refused, %d files recovered, %d of them at epochs that were not acknowledged; node killed %d times, without power %d; "+
		"compute nodes: %d crashes, %d partitions, %d broken connections, %d replays, %d stalls of the node, %d unmounts",
		counts.schedules.Load(), time.Since(began).Round(time.Second/10), counts.tenures.Load(), counts.epochs.Load(),
		counts.refused.Load(), counts.recoveries.Load(), counts.unheard.Load(), counts.kills.Load(), counts.cuts.Load(),
		counts.crashes.Load(), counts.holds.Load(), counts.resets.Load(), counts.replays.Load(), counts.lags.Load(), counts.ends.Load())
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
		panic(fmt.Sprintf("the schedule hangs: -schedules 1 -seed %d", seed))
	})
	defer hung.Stop()
	synctest.Test(t, func(t *testing.T) {
		failures, trace := run(dir, seed, counts)
		if len(failures) > 0 {
			t.Errorf("-schedules 1 -seed %d: %s\n%s", seed, strings.Join(failures, "\n"), strings.Join(trace, "\n"))
		} else if *story {
			t.Log(strings.Join(trace, "\n"))
		}
	})
}

// memoryDir is where files cost no I/O; empty: where temporary files are.
func memoryDir() string {
	const dir = "/dev/shm"
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return dir
	}
	return ""
}
