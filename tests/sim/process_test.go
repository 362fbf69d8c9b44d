package sim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// An outcome is what one schedule came to.
type outcome struct {
	Failures, Trace []string
	Counts          []int64 // as counts.each has them
}

// apart plays a schedule in a process of its own, in dir. The process has one processor and
// collects no garbage, its random numbers come from the seed, and it has no thread that takes
// the processor from a goroutine because of the time: see begin.
func apart(dir string, seed uint64) (*outcome, error) {
	runtime.LockOSThread() // it traces the process
	defer runtime.UnlockOSThread()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(self, "-test.run", "^TestAlone$", "-test.timeout", "0", "-alone",
		"-seed", strconv.FormatUint(seed, 10), "-path", *onlyPath)
	cmd.Env = []string{"GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1,memprofilerate=0", "GOGC=off"}
	cmd.Dir = dir // so that paths are the same every time
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	held, err := begin(cmd.Process.Pid, seed)
	if err != nil {
		_ = cmd.Process.Kill()
		return nil, errors.Join(err, cmd.Wait())
	}
	hung := time.AfterFunc(patience, func() { _ = cmd.Process.Signal(unix.SIGQUIT) }) // it prints its stacks
	defer hung.Stop()
	o := &outcome{}
	err = json.NewDecoder(r).Decode(o)
	reap(held)
	return o, errors.Join(err, cmd.Wait())
}

// TestAlone plays one schedule for apart, which reads descriptor 3.
func TestAlone(t *testing.T) {
	if !*alone {
		t.Skip("for TestSchedules")
	}
	cryptotest.SetGlobalRandom(t, *seed)
	synctest.Test(t, func(t *testing.T) {
		var o outcome
		counts := &counts{}
		o.Failures, o.Trace = run(".", *seed, counts)
		counts.each(func(_ string, n *atomic.Int64) { o.Counts = append(o.Counts, n.Load()) })
		if err := json.NewEncoder(os.NewFile(3, "outcome")).Encode(o); err != nil {
			t.Fatal(err)
		}
	})
}

// begin lets a process go on that has just been executed, stopped for its tracer. All that its
// runtime draws (which of the ready cases of a select is taken, where a map begins, who comes
// first at the same time) comes from 16 bytes that the kernel gave it, which are made those of
// the seed. Its first thread is sysmon, which takes the processor from who is in a system call
// or runs for long; it stays stopped. One CPU is all the process gets, because which threads its
// runtime starts depends on how fast the others fall asleep. begin returns the thread that is
// held, for reap.
func begin(pid int, seed uint64) (held int, err error) {
	if err := stopped(pid); err != nil {
		return 0, err
	}
	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return 0, err
	}
	const atRandom = 25 // getauxval(3)
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if binary.NativeEndian.Uint64(auxv) == atRandom {
			random := binary.NativeEndian.AppendUint64(nil, rand.New(rand.NewPCG(seed, 7)).Uint64()|1)
			random = append(random, random...)
			random[15] ^= 0x55
			if _, err := unix.PtracePokeData(pid, uintptr(binary.NativeEndian.Uint64(auxv[8:])), random); err != nil {
				return 0, err
			}
		}
	}
	if err := pin(pid, seed); err != nil {
		return 0, err
	}
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACECLONE); err != nil {
		return 0, err
	}
	for thread := uint(0); thread == 0; {
		if err := unix.PtraceCont(pid, 0); err != nil {
			return 0, err
		}
		if err := stopped(pid); err != nil {
			return 0, err
		}
		thread, _ = unix.PtraceGetEventMsg(pid) // 0 or an error: it stopped for something else
		held = int(thread)
	}
	if err := stopped(held); err != nil {
		return 0, err
	}
	if err := unix.PtraceSetOptions(pid, 0); err != nil {
		return held, err
	}
	return held, unix.PtraceDetach(pid)
}

// pin gives a process one of the CPUs that this one has, and no thread of it the CPU of another
// that wakes it.
func pin(pid int, seed uint64) error {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	nth := int(seed % uint64(all.Count()))
	for cpu := 0; ; cpu++ {
		if !all.IsSet(cpu) {
			continue
		}
		if nth--; nth < 0 {
			one.Set(cpu)
			batch := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH}
			return errors.Join(unix.SchedSetaffinity(pid, &one), unix.SchedSetAttr(pid, batch, 0))
		}
	}
}

// stopped waits until a thread is stopped for its tracer.
func stopped(tid int) error {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(tid, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case status.Stopped():
			return nil
		default:
			return fmt.Errorf("the process ended: %x", status)
		}
	}
}

// reap waits for the end of the thread that is held, if there is one. Its process does not end
// before.
func reap(held int) {
	var status unix.WaitStatus
	for held > 0 {
		_, err := unix.Wait4(held, &status, unix.WALL, nil)
		if err != nil && !errors.Is(err, unix.EINTR) || err == nil && !status.Stopped() {
			return
		}
	}
}
