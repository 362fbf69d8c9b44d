// Package quiesce stops the processes that store to a file through mappings, for as
// long as it takes to commit what they stored.
//
// A stop is not a restart point: a program may be in the middle of a change. What it
// gives is an image of one moment: of two stores by whichever threads, the later is
// in the image only if the earlier is.
//
// Threads are stopped by PTRACE_SEIZE and PTRACE_INTERRUPT (ptrace(2)), not by
// SIGSTOP: a shell does not see its foreground job stop, a program that was stopped
// before stays so, and the kernel lets every thread go on if this process ends, in
// whatever way. A process that a debugger has cannot be stopped, and says so.
//
// Which processes store to a file is in /proc/PID/maps. Processes that this one
// cannot see (of an outer PID namespace, of other users) are not found.
package quiesce

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A Report tells about one stop.
type Report struct {
	Processes int
	Threads   int
	Pause     time.Duration // from the first stop to the last release
}

// maxLooks bounds how often processes that just began to map the file are looked
// for: a program that forks without end would never be done.
const maxLooks = 20

// ErrRestless reports a file that new processes map faster than they are stopped.
var ErrRestless = errors.New("more and more processes map the file")

// Run stops the processes that map file shared and writable, calls drain while they
// are stopped, again after each look that found another one, and then commit, with the
// number of threads that stand still. All go on when it returns. first is who is known
// to map the file; nil if that is to be found out.
//
// drain runs beside the look at other processes. Neither function may use ptrace, nor
// wait for one of the processes.
//
// Run gives up waiting for a stop when ctx ends: a thread that waits for a page of a
// daemon that hangs cannot be stopped.
func Run(ctx context.Context, file File, first []int, drain func() error, commit func(threads int) error) (report Report, err error) {
	if first == nil {
		if first, err = Writers(file); err != nil {
			return Report{}, err
		}
	}
	onOwnThread(func() (clean bool) {
		s := newStopped()
		begin := time.Now()
		err = run(ctx, file, s, first, drain, commit)
		report = Report{Processes: len(s.pids), Threads: len(s.threads)}
		clean = s.release()
		report.Pause = time.Since(begin)
		return clean
	})
	return report, err
}

// onOwnThread runs fn in one thread: ptrace knows its tracer by the thread. Unless fn
// returns true the thread ends, and with it lets go of whatever it still has.
func onOwnThread(fn func() bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The runtime never lets the main thread end. While this holds it, fn
			// gets another.
			onOwnThread(fn)
			runtime.UnlockOSThread()
		} else if fn() {
			runtime.UnlockOSThread()
		}
	}()
	<-done
}

func run(ctx context.Context, file File, s *stopped, pids []int, drain func() error, commit func(threads int) error) error {
	for look := 0; ; look++ {
		if look == maxLooks {
			return ErrRestless
		}
		if err := s.stop(ctx, pids); err != nil {
			return err
		}
		drained := make(chan error, 1)
		go func() { drained <- drain() }()
		now, err := Writers(file)
		if derr := <-drained; derr != nil {
			return fmt.Errorf("write back: %w", derr)
		}
		if err != nil {
			return err
		}
		if pids = s.others(now); len(pids) == 0 {
			return commit(len(s.threads))
		}
	}
}
