package memnode

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lockPool locks the file at path: shared if readOnly, else for this process
// alone, whose pid it writes into the file. The lock ends with the file's
// descriptor. ErrLocked, without waiting, if another process has it.
func lockPool(path string, readOnly bool) (*os.File, error) {
	flags, how := os.O_RDWR|os.O_CREATE, unix.LOCK_EX
	if readOnly {
		flags, how = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
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
		err = writePID(f)
	}
	if err != nil {
		_ = f.Close() // nothing to lose
		return nil, err
	}
	return f, nil
}

func writePID(f *os.File) error {
	pid := strconv.Itoa(os.Getpid()) + "\n"
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(pid), 0)
	return err
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
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0) // a short file is an end of file
	if pid, err := strconv.Atoi(string(bytes.TrimSpace(b[:n]))); err == nil {
		return "process " + strconv.Itoa(pid)
	}
	return "another process"
}
