package quiesce

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A File is a file as /proc/PID/maps names it. Names do not matter: it may have been
// renamed or removed.
type File struct {
	Device Device
	Ino    uint64
}

// A Device is the number of a mounted file system.
type Device struct{ Major, Minor uint32 }

// FileOf returns the file of a descriptor.
func FileOf(f *os.File) (File, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return File{}, fmt.Errorf("statx %s: %w", f.Name(), err)
	}
	return File{Device{st.Dev_major, st.Dev_minor}, st.Ino}, nil
}

// Writers returns the processes, but this one, that map file shared and writable.
func Writers(file File) ([]int, error) {
	found, err := writers(func(f File) bool { return f == file })
	return found[file.Ino], err
}

// WritersOn returns the processes, but this one, that map files of a device shared
// and writable, by inode number.
func WritersOn(device Device) (map[uint64][]int, error) {
	return writers(func(f File) bool { return f.Device == device })
}

func writers(match func(File) bool) (map[uint64][]int, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	found := make(map[uint64][]int)
	var buf []byte
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Gone by now, or another user's: it cannot be stopped either.
		buf = readInto(buf, "/proc/"+name+"/maps")
		seen := make(map[uint64]bool)
		for line := range bytes.Lines(buf) {
			f, ok := sharedWritable(line)
			if ok && match(f) && !seen[f.Ino] {
				seen[f.Ino] = true
				found[f.Ino] = append(found[f.Ino], pid)
			}
		}
	}
	return found, nil
}

// readInto reads a file of /proc whole; empty if it cannot.
func readInto(buf []byte, path string) []byte {
	buf = buf[:0]
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return buf
	}
	defer unix.Close(fd)
	for {
		if cap(buf)-len(buf) < 4096 {
			buf = append(buf, make([]byte, 32<<10)...)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			return buf
		}
		buf = buf[:len(buf)+n]
	}
}

// sharedWritable returns the file of a line of maps (proc_pid_maps(5)) that is a
// shared writable mapping of one: "start-end rw-s offset major:minor inode path".
func sharedWritable(line []byte) (File, bool) {
	_, rest, _ := bytes.Cut(line, []byte(" "))
	if len(rest) < 5 || rest[1] != 'w' || rest[3] != 's' {
		return File{}, false
	}
	fields := strings.Fields(string(rest[:min(len(rest), 80)]))
	if len(fields) < 4 {
		return File{}, false
	}
	major, minor, _ := strings.Cut(fields[2], ":")
	a, err1 := strconv.ParseUint(major, 16, 32)
	b, err2 := strconv.ParseUint(minor, 16, 32)
	ino, err3 := strconv.ParseUint(fields[3], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || ino == 0 {
		return File{}, false
	}
	return File{Device{uint32(a), uint32(b)}, ino}, true
}
