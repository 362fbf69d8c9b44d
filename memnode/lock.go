package memnode

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockPool locks the file at path: shared if readOnly, else for this process
// alone, which it names in the file. The lock ends with the file's descriptor.
// before is who the file named. ErrLocked, without waiting, if another process has it.
func lockPool(path string, readOnly bool) (_ *os.File, before holder, _ error) {
	flags, how := os.O_RDWR|os.O_CREATE, unix.LOCK_EX
	if readOnly {
		flags, how = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, before, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%w by %s", ErrLocked, lockHolder(f))
	}
	if err == nil && !readOnly {
		before = readHolder(f)
		err = writeHolder(f)
	}
	if err != nil {
		_ = f.Close() // nothing to lose
		return nil, before, err
	}
	return f, before, nil
}

// A holder is a process that had the lock. The zero holder is none.
type holder struct {
	pid     int
	started string // in ticks since the machine's start: tells it from one with its pid
}

// readHolder reads who is named in a lock file: "PID STARTED\n".
func readHolder(f *os.File) (h holder) {
	b := make([]byte, 64)
	n, _ := f.ReadAt(b, 0) // a short file is an end of file
	fields := strings.Fields(string(b[:n]))
	if len(fields) > 0 {
		h.pid, _ = strconv.Atoi(fields[0])
	}
	if len(fields) > 1 {
		h.started = fields[1]
	}
	return h
}

func writeHolder(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, started := threadState(fmt.Sprintf("/proc/%d/stat", os.Getpid()))
	_, err := f.WriteAt([]byte(strings.TrimSpace(fmt.Sprintf("%d %s", os.Getpid(), started))+"\n"), 0)
	return err
}

// holderPause is how often await looks.
const holderPause = 5 * time.Millisecond

// await waits until h is gone with all that it had open. A process that was killed gives
// its files up one after the other: its lock may go before the RDMA devices, by which
// clients still store to the pool. ErrLocked if it takes too long.
func (h holder) await(within time.Duration) error {
	for deadline := time.Now().Add(within); h.lives(); time.Sleep(holderPause) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%w by process %d, which is ending", ErrLocked, h.pid)
		}
	}
	return nil
}

// lives says that a thread of h is not done with its files: those that are become
// zombies, or vanish.
func (h holder) lives() bool {
	if h.pid <= 0 || h.pid == os.Getpid() || h.started == "" {
		return false
	}
	if _, started := threadState(fmt.Sprintf("/proc/%d/stat", h.pid)); started != h.started {
		return false
	}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", h.pid)) // the pattern is right
	for _, t := range threads {
		if state, _ := threadState(t); state != "" && state != "Z" && state != "X" {
			return true
		}
	}
	return false
}

// threadState returns a thread's state and start from its file stat, proc(5); empty if it
// is gone.
func threadState(stat string) (state, started string) {
	b, err := os.ReadFile(stat)
	if err != nil {
		return "", ""
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return "", ""
	}
	return fields[0], fields[19]
}

// lockHolder names the process that holds a lock of f: the kernel knows best,
// the file may be of an older holder.
func lockHolder(f *os.File) string {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err == nil {
		table, _ := os.ReadFile("/proc/locks") // without it the file has to do
		place := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
		for line := range strings.Lines(string(table)) {
			// 1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF
			f := strings.Fields(line)
			if len(f) >= 6 && f[1] == "FLOCK" && f[5] == place && f[4] != "0" {
				return "process " + f[4]
			}
		}
	}
	if h := readHolder(f); h.pid > 0 {
		return "process " + strconv.Itoa(h.pid)
	}
	return "another process"
}
