package tests

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func posixAppend(t *testing.T, dir string) {
	path := write(t, dir+"/log", "begin ")
	a, b := open(t, path, os.O_WRONLY|os.O_APPEND), open(t, path, os.O_WRONLY|os.O_APPEND)
	for i := range 3 {
		_, err := fmt.Fprintf(a, "a%d ", i)
		must(t, err)
		_, err = fmt.Fprintf(b, "b%d ", i)
		must(t, err)
	}
	wantContent(t, path, "begin a0 b0 a1 b1 a2 b2 ")
}

func posixTrunc(t *testing.T, dir string) {
	path := write(t, dir+"/file", strings.Repeat("x", 10000))
	f := open(t, path, os.O_RDWR|os.O_TRUNC)
	if got := stat(t, path).Size; got != 0 {
		t.Errorf("size after O_TRUNC: %d", got)
	}
	must(t, f.Truncate(9000))
	wantContent(t, path, strings.Repeat("\x00", 9000))
	_, err := f.WriteAt([]byte("y"), 8999)
	must(t, err)
	must(t, f.Truncate(8000))
	must(t, f.Truncate(9000))
	wantContent(t, path, strings.Repeat("\x00", 9000))
	must(t, os.Truncate(path, 3))
	wantContent(t, path, "\x00\x00\x00")
	wantErr(t, "ftruncate of a file open to read", open(t, path, os.O_RDONLY).Truncate(1), syscall.EINVAL)
}

func posixSparse(t *testing.T, dir string) {
	const mib = 1 << 20
	f := open(t, dir+"/sparse", os.O_RDWR|os.O_CREATE)
	must(t, f.Truncate(1<<40))
	for _, at := range []int64{4 * mib, 1<<40 - 4096} {
		_, err := f.WriteAt(bytes.Repeat([]byte{1}, 4096), at)
		must(t, err)
	}
	must(t, f.Sync())
	if st := stat(t, dir+"/sparse"); st.Blocks > 1024 || st.Blocks < 16 || st.Size != 1<<40 {
		t.Errorf("1 TiB with two pages: size %d, %d blocks", st.Size, st.Blocks)
	}
	for _, c := range []struct {
		from   int64
		whence int
		want   int64
	}{
		{0, unix.SEEK_DATA, 4 * mib},
		{4 * mib, unix.SEEK_DATA, 4 * mib},
		{4*mib + 100, unix.SEEK_HOLE, 4*mib + 4096},
		{0, unix.SEEK_HOLE, 0},
		{5 * mib, unix.SEEK_DATA, 1<<40 - 4096},
		{1<<40 - 4096, unix.SEEK_HOLE, 1 << 40},
	} {
		got, err := unix.Seek(int(f.Fd()), c.from, c.whence)
		if err != nil || got != c.want {
			t.Errorf("seek(%d, whence %d): got %d, %v; want %d", c.from, c.whence, got, err, c.want)
		}
	}
	_, err := unix.Seek(int(f.Fd()), 1<<40, unix.SEEK_DATA)
	wantErr(t, "SEEK_DATA at the end", err, syscall.ENXIO)
	buf := make([]byte, 8192)
	_, err = f.ReadAt(buf, 4*mib-4096)
	must(t, err)
	if !bytes.Equal(buf, append(make([]byte, 4096), bytes.Repeat([]byte{1}, 4096)...)) {
		t.Error("hole and page read wrong")
	}
}

func posixFallocate(t *testing.T, dir string) {
	path := write(t, dir+"/file", strings.Repeat("x", 20000))
	f := open(t, path, os.O_RDWR)
	fd := int(f.Fd())
	must(t, unix.Fallocate(fd, 0, 0, 40000))
	if got := stat(t, path).Size; got != 40000 {
		t.Errorf("fallocate: size %d, want 40000", got)
	}
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 80000))
	if got := stat(t, path).Size; got != 40000 {
		t.Errorf("fallocate, keep size: size %d, want 40000", got)
	}
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100, 10000))
	want := strings.Repeat("x", 100) + strings.Repeat("\x00", 10000) + strings.Repeat("x", 9900) + strings.Repeat("\x00", 20000)
	wantContent(t, path, want)
	must(t, f.Sync())
	wantContent(t, path, want)
	err := unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096)
	wantErr(t, "collapse range", err, syscall.EOPNOTSUPP)
	wantErr(t, "fallocate of nothing", unix.Fallocate(fd, 0, 0, 0), syscall.EINVAL)
	wantErr(t, "fallocate past the pool's size", unix.Fallocate(fd, 0, 0, 1<<40), syscall.ENOSPC)
}

func posixFlock(t *testing.T, dir string) {
	path := write(t, dir+"/file", "")
	a, b := open(t, path, os.O_RDWR), open(t, path, os.O_RDWR)
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
	wantErr(t, "flock", unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB), syscall.EWOULDBLOCK)
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_SH))
	must(t, unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB))
	must(t, a.Close()) // a lock ends with its file
	must(t, unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

func posixFcntlLock(t *testing.T, dir string) {
	path := write(t, dir+"/file", strings.Repeat("x", 100))
	f := open(t, path, os.O_RDWR)
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 10, Len: 10}
	must(t, unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock))
	const script = `
import fcntl, sys
f = open(sys.argv[1], "r+")
for start in (0, 10, 20):
    try:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)
        print("got", end=" ")
    except OSError:
        print("busy", end=" ")
`
	if _, err := os.Stat(python); err != nil {
		t.Skip("python3 is missing here")
	}
	out, err := exec.Command(python, "-c", script, path).CombinedOutput()
	if got, want := string(out), "got busy got "; err != nil || got != want {
		t.Errorf("locks of another process: got %q, %v; want %q", got, err, want)
	}
	lock.Type = unix.F_UNLCK
	must(t, unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock))
	out, err = exec.Command(python, "-c", script, path).CombinedOutput()
	if got, want := string(out), "got got got "; err != nil || got != want {
		t.Errorf("after unlocking: got %q, %v; want %q", got, err, want)
	}
}

func posixStatfs(t *testing.T, dir string) {
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	size := int64(st.Blocks) * st.Bsize
	if size < 200<<20 || size > 256<<20 {
		t.Errorf("size of a pool of 256 MiB: %d bytes", size)
	}
	if st.Bfree == 0 || st.Bavail > st.Bfree || st.Bfree > st.Blocks || st.Namelen != 255 || st.Files == 0 {
		t.Errorf("statfs: %+v", st)
	}
}

func posixGrowth(t *testing.T, dir string) {
	f := open(t, dir+"/file", os.O_RDWR|os.O_CREATE)
	block := bytes.Repeat([]byte("grow"), 16384)
	for i := range 128 {
		_, err := f.Write(block)
		must(t, err)
		if i%16 == 0 {
			must(t, f.Sync())
		}
	}
	if got := stat(t, dir+"/file"); got.Size != 128*65536 || got.Blocks < 128*128 {
		t.Errorf("size %d, %d blocks", got.Size, got.Blocks)
	}
	got, err := os.ReadFile(dir + "/file")
	if err != nil || !bytes.Equal(got, bytes.Repeat(block, 128)) {
		t.Errorf("content after growth: %d bytes, %v", len(got), err)
	}
}

func posixPrivateMapping(t *testing.T, dir string) {
	path := write(t, dir+"/file", strings.Repeat("p", 8192))
	f := open(t, path, os.O_RDWR)
	mem, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(t, err)
	defer func() { _ = unix.Munmap(mem) }() // ends with the process
	mem[0] = 'X'
	must(t, unix.Msync(mem, unix.MS_SYNC))
	wantContent(t, path, strings.Repeat("p", 8192))
	if mem[0] != 'X' || mem[4096] != 'p' {
		t.Errorf("private mapping: got %q, %q", mem[0], mem[4096])
	}
}

// Bytes stored behind the end of a file through its last page do not appear
// when the file grows.
func posixMappingTail(t *testing.T, dir string) {
	path := write(t, dir+"/file", "short")
	f := open(t, path, os.O_RDWR)
	mem, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	mem[0], mem[100] = 'S', 'X'
	must(t, unix.Msync(mem, unix.MS_SYNC))
	must(t, unix.Munmap(mem))
	if got := stat(t, path).Size; got != 5 {
		t.Errorf("size after a store behind the end: %d", got)
	}
	must(t, f.Truncate(200))
	wantContent(t, path, "Short"+strings.Repeat("\x00", 195))
}

func posixErrors(t *testing.T, dir string) {
	path := write(t, dir+"/file", "x")
	_, err := open(t, path, os.O_RDONLY).Write([]byte("x"))
	wantErr(t, "write to a file open to read", err, syscall.EBADF)
	_, err = open(t, path, os.O_WRONLY).Read(make([]byte, 1))
	wantErr(t, "read of a file open to write", err, syscall.EBADF)
	wantErr(t, "truncate below zero", unix.Ftruncate(int(open(t, path, os.O_RDWR).Fd()), -1), syscall.EINVAL)
	_, err = open(t, path, os.O_RDWR).ReadAt(make([]byte, 10), 1<<40)
	wantErr(t, "read far behind the end", err, io.EOF)
	var st unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS, &st))
	if st.Size != 1 {
		t.Errorf("statx: size %d", st.Size)
	}
}

func posixUnlinkOpen(t *testing.T, dir string) {
	f := open(t, dir+"/file", os.O_RDWR|os.O_CREATE)
	body := bytes.Repeat([]byte("unlinked"), 5000)
	_, err := f.Write(body)
	must(t, err)
	must(t, os.Remove(dir+"/file"))
	write(t, dir+"/file", "another of the same name")
	must(t, f.Sync())
	_, err = f.WriteAt([]byte("UNLINKED"), 8)
	must(t, err)
	copy(body[8:], "UNLINKED")
	got := make([]byte, len(body))
	_, err = f.ReadAt(got, 0)
	must(t, err)
	if !bytes.Equal(got, body) {
		t.Error("an unlinked open file lost its content")
	}
	var st syscall.Stat_t
	must(t, syscall.Fstat(int(f.Fd()), &st))
	if st.Nlink != 0 {
		t.Errorf("nlink of an unlinked file: %d", st.Nlink)
	}
	wantContent(t, dir+"/file", "another of the same name")
}

func posixExclusive(t *testing.T, dir string) {
	path := write(t, dir+"/file", "x")
	_, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	wantErr(t, "O_EXCL", err, fs.ErrExist)
	_, err = os.OpenFile(dir+"/none", os.O_RDWR, 0)
	wantErr(t, "no O_CREAT", err, fs.ErrNotExist)
	_, err = os.OpenFile(dir, os.O_RDWR, 0)
	wantErr(t, "directory to write", err, syscall.EISDIR)
}
