package quiesce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stopped is the threads that this thread has stopped, or is about to.
type stopped struct {
	pids    []int
	known   map[int]bool // pids
	threads map[int]*thread
}

type thread struct {
	pid, tid int
	stopped  bool
	signal   int // it was stopped as this signal came, which it still has to get
}

func newStopped() *stopped {
	return &stopped{known: make(map[int]bool), threads: make(map[int]*thread)}
}

// others returns those of pids that are not stopped.
func (s *stopped) others(pids []int) []int {
	var others []int
	for _, pid := range pids {
		if !s.known[pid] {
			others = append(others, pid)
		}
	}
	return others
}

// stop stops all threads of processes. Those that end meanwhile are no error.
func (s *stopped) stop(ctx context.Context, pids []int) error {
	for _, pid := range pids {
		s.known[pid] = true
		s.pids = append(s.pids, pid)
	}
	for {
		found := false
		for _, pid := range pids {
			more, err := s.seize(pid)
			if err != nil {
				return err
			}
			found = found || more
		}
		if !found {
			return nil // all that there were are stopped, and can start no others
		}
		if err := s.wait(ctx); err != nil {
			return err
		}
	}
}

// seize asks the threads of a process to stop, and reports whether there were any
// that had not been asked.
func (s *stopped) seize(pid int) (found bool, err error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return false, nil // the process has ended
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil || s.threads[tid] != nil {
			continue
		}
		if err := unix.PtraceSeize(tid); err != nil {
			if err := refused(pid, tid, err); err != nil {
				return false, err
			}
			continue
		}
		s.threads[tid] = &thread{pid: pid, tid: tid}
		if err := unix.PtraceInterrupt(tid); err != nil && !errors.Is(err, unix.ESRCH) {
			return false, fmt.Errorf("stop process %d (%s): %w", pid, comm(pid), err)
		}
		found = true
	}
	return found, nil
}

// refused explains why a thread could not be seized; nil if it has just ended.
func refused(pid, tid int, err error) error {
	status, rerr := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, tid))
	if errors.Is(err, unix.ESRCH) || rerr != nil {
		return nil
	}
	fields := make(map[string]string)
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		fields[key] = strings.TrimSpace(value)
	}
	switch tracer := fields["TracerPid"]; {
	case strings.HasPrefix(fields["State"], "Z"), strings.HasPrefix(fields["State"], "X"):
		return nil
	case tracer != "" && tracer != "0":
		n, _ := strconv.Atoi(tracer)
		return fmt.Errorf("stop process %d (%s): process %s (%s) traces it", pid, comm(pid), tracer, comm(n))
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("stop process %d (%s): %w: be root; where kernel.yama.ptrace_scope is not 0, the same user does not suffice", pid, comm(pid), err)
	}
	return fmt.Errorf("stop process %d (%s): %w", pid, comm(pid), err)
}

func comm(pid int) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // it may have ended
	return string(bytes.TrimSpace(name))
}

// wait waits until every thread has stopped or ended.
func (s *stopped) wait(ctx context.Context) error {
	return s.each(ctx, func(t *thread) (done bool, err error) {
		if t.stopped {
			return true, nil
		}
		gone, err := t.look()
		if gone {
			delete(s.threads, t.tid)
		}
		return gone || t.stopped, err
	})
}

// each calls try with every thread until it is done with all.
func (s *stopped) each(ctx context.Context, try func(*thread) (done bool, err error)) error {
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, time.Millisecond) {
		var late *thread
		for _, t := range s.threads {
			done, err := try(t)
			if err != nil {
				return err
			}
			if !done {
				late = t
			}
		}
		if late == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("thread %d of process %d (%s) does not stop: %w", late.tid, late.pid, comm(late.pid), ctx.Err())
		case <-time.After(pause):
		}
	}
}

// look asks the kernel whether a thread has stopped, or ended.
func (t *thread) look() (gone bool, err error) {
	var status unix.WaitStatus
	tid, err := unix.Wait4(t.tid, &status, unix.WNOHANG|unix.WALL, nil)
	switch {
	case errors.Is(err, unix.EINTR), err == nil && tid == 0:
		return false, nil
	case errors.Is(err, unix.ECHILD):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("wait for process %d: %w", t.pid, err)
	case status.Exited(), status.Signaled():
		return true, nil
	}
	t.stopped = true
	// Any other stop than that of PTRACE_INTERRUPT, or of a process that was
	// stopped already, is that a signal came first.
	if status>>16 != unix.PTRACE_EVENT_STOP {
		t.signal = int(status.StopSignal())
	}
	return false, nil
}

// release lets all threads go on as they were. One that was asked to stop and has
// not is waited for a while: to be let go it has to stop. One that was killed
// meanwhile is waited for too: until then its process cannot end. False if not all
// came.
func (s *stopped) release() bool {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	err := s.each(ctx, func(t *thread) (done bool, err error) {
		if !t.stopped {
			gone, err := t.look()
			if gone {
				delete(s.threads, t.tid)
			}
			if gone || err != nil || !t.stopped {
				return gone, err
			}
		}
		_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(t.tid), 0, uintptr(t.signal), 0, 0)
		t.stopped = errno == 0
		if t.stopped {
			delete(s.threads, t.tid)
		}
		return t.stopped, nil
	})
	return err == nil
}

// releaseTimeout is how long a thread that did not stop is waited for.
const releaseTimeout = time.Second
