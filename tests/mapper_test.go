package tests

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A mapper is a child process that maps a file and does what it is told, one
// command a line. It is how a test arranges who stores what when.
type mapper struct {
	t *testing.T
	c *child
}

// newMapper maps pages pages of a file, which grows to that if it is smaller.
func (m *mount) newMapper(name string, pages int) *mapper {
	m.t.Helper()
	c := m.role("mapper", m.path(name), strconv.Itoa(pages))
	c.mustLine("ready")
	return &mapper{m.t, c}
}

// do sends a command and returns the answer.
func (p *mapper) do(format string, args ...any) string {
	p.t.Helper()
	p.c.say(fmt.Sprintf(format, args...))
	line, err := p.c.line()
	if err != nil {
		p.t.Fatal(err)
	}
	return line
}

// ok sends a command that has to succeed.
func (p *mapper) ok(format string, args ...any) {
	p.t.Helper()
	if got := p.do(format, args...); got != "ok" {
		p.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), got)
	}
}

// wants sends a command and compares the answer.
func (p *mapper) wants(want, format string, args ...any) {
	p.t.Helper()
	if got := p.do(format, args...); got != want {
		p.t.Errorf("%s: got %q, want %q", fmt.Sprintf(format, args...), got, want)
	}
}

// quit ends the program in order: it unmaps and closes.
func (p *mapper) quit() {
	p.t.Helper()
	p.c.mustFinish(patience)
}

// roleMapper obeys:
//
//	store STAMP FROM TO	stamp pages [FROM, TO) through the mapping
//	write STAMP FROM TO	the same by pwrite
//	stamps			print the stamps of all pages, in runs: "3*100 4*28"
//	read			the same by pread
//	msync, fsync, fdatasync, writeback, syncfs, truncate BYTES, punch FROM TO
func roleMapper(args []string) error {
	pages, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	fd, err := unix.Open(args[0], unix.O_RDWR|unix.O_CREAT, 0o644)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	size := pages * pageSize
	if st.Size < int64(size) {
		if err := unix.Ftruncate(fd, int64(size)); err != nil {
			return fmt.Errorf("ftruncate: %w", err)
		}
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answer, err := obey(fd, mem, strings.Fields(in.Text()))
		if err != nil {
			answer = "error: " + err.Error()
		}
		fmt.Println(answer)
	}
	if err := unix.Munmap(mem); err != nil {
		return err
	}
	return unix.Close(fd)
}

var errCommand = errors.New("unknown command")

func obey(fd int, mem []byte, words []string) (string, error) {
	numbers := make([]uint64, 3)
	for i, word := range words[1:] {
		n, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return "", err
		}
		numbers[i] = n
	}
	var err error
	switch words[0] {
	case "store":
		for no := numbers[1]; no < numbers[2]; no++ {
			stampPage(mem[no*pageSize:(no+1)*pageSize], no, numbers[0])
		}
	case "write":
		for no := numbers[1]; no < numbers[2] && err == nil; no++ {
			page := make([]byte, pageSize)
			stampPage(page, no, numbers[0])
			_, err = unix.Pwrite(fd, page, int64(no)*pageSize)
		}
	case "stamps":
		return stampRuns(mem)
	case "read":
		data := make([]byte, len(mem))
		for done := 0; done < len(data); {
			n, err := unix.Pread(fd, data[done:], int64(done))
			if err != nil || n == 0 {
				return "", fmt.Errorf("pread at %d: %d bytes: %w", done, n, err)
			}
			done += n
		}
		return stampRuns(data)
	case "msync":
		err = unix.Msync(mem, unix.MS_SYNC)
	case "fsync":
		err = unix.Fsync(fd)
	case "fdatasync":
		err = unix.Fdatasync(fd)
	case "syncfs":
		err = unix.Syncfs(fd)
	case "writeback":
		err = unix.SyncFileRange(fd, 0, 0,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	case "truncate":
		err = unix.Ftruncate(fd, int64(numbers[0]))
	case "punch":
		err = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
			int64(numbers[0])*pageSize, int64(numbers[1]-numbers[0])*pageSize)
	default:
		err = errCommand
	}
	if err != nil {
		return "", err
	}
	return "ok", nil
}

// stampRuns renders the stamps of pages, run by run.
func stampRuns(data []byte) (string, error) {
	var runs []string
	var last uint64
	n := 0
	for no := range uint64(len(data) / pageSize) {
		stamp, err := pageStamp(data[no*pageSize:(no+1)*pageSize], no)
		if err != nil {
			return "", err
		}
		if n > 0 && stamp != last {
			runs = append(runs, fmt.Sprintf("%d*%d", last, n))
			n = 0
		}
		last = stamp
		n++
	}
	return strings.Join(append(runs, fmt.Sprintf("%d*%d", last, n)), " "), nil
}

// roleSetxattr sets an extended attribute.
func roleSetxattr(args []string) error {
	return unix.Setxattr(args[0], args[1], []byte(args[2]), 0)
}
