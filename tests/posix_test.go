package tests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What POSIX and Linux promise of a file system, checked from inside the mount.
func TestPOSIX(t *testing.T) {
	dir := insideDir()
	if dir == "" {
		t.Parallel()
		m := newMount(t, fastDir(t), "--size", "256MiB")
		m.runInside(m.mnt)
		// Nothing of what the checks did may look like damage.
		if code, out := m.ctlCode("check", m.mnt); code != 0 {
			t.Errorf("check: exit code %d: %s", code, out)
		}
		return
	}
	checks := []struct {
		name string
		run  func(t *testing.T, dir string)
	}{
		{"rename", posixRename},
		{"renameat2", posixRenameFlags},
		{"unlink-open", posixUnlinkOpen},
		{"directories", posixDirectories},
		{"big-directory", posixBigDirectory},
		{"append", posixAppend},
		{"trunc", posixTrunc},
		{"excl", posixExclusive},
		{"sparse", posixSparse},
		{"fallocate", posixFallocate},
		{"permissions", posixPermissions},
		{"owners", posixOwners},
		{"times", posixTimes},
		{"xattr", posixXattr},
		{"symlink", posixSymlink},
		{"hard-link", posixHardLink},
		{"flock", posixFlock},
		{"fcntl-lock", posixFcntlLock},
		{"statfs", posixStatfs},
		{"growth", posixGrowth},
		{"private-mapping", posixPrivateMapping},
		{"mapping-beyond-end", posixMappingTail},
		{"names", posixNames},
		{"special-files", posixSpecialFiles},
		{"errors", posixErrors},
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			sub := filepath.Join(dir, c.name)
			must(t, os.Mkdir(sub, 0o755))
			c.run(t, sub)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s: got %.60q, %v; want %.60q", filepath.Base(path), got, err, want)
	}
}

func write(t *testing.T, path, content string) string {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o644)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func stat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	must(t, syscall.Lstat(path, &st))
	return &st
}

func posixRename(t *testing.T, dir string) {
	a, b := write(t, dir+"/a", "first"), write(t, dir+"/b", "second")
	old := open(t, b, os.O_RDONLY)
	must(t, os.Rename(a, b))
	wantContent(t, b, "first")
	_, err := os.Stat(a)
	wantErr(t, "stat of the old name", err, fs.ErrNotExist)
	got, err := io.ReadAll(old)
	if err != nil || string(got) != "second" {
		t.Errorf("the replaced file, still open: got %q, %v", got, err)
	}
	must(t, os.MkdirAll(dir+"/d/e", 0o755))
	must(t, os.Mkdir(dir+"/empty", 0o755))
	must(t, os.Mkdir(dir+"/full", 0o755))
	write(t, dir+"/full/x", "x")
	wantErr(t, "directory below itself", os.Rename(dir+"/d", dir+"/d/e/f"), syscall.EINVAL)
	wantErr(t, "directory over a full one", unix.Rename(dir+"/d", dir+"/full"), syscall.ENOTEMPTY)
	wantErr(t, "directory over a file", unix.Rename(dir+"/d", b), syscall.ENOTDIR)
	wantErr(t, "file over a directory", unix.Rename(b, dir+"/empty"), syscall.EISDIR)
	must(t, unix.Rename(dir+"/d", dir+"/empty"))
	if _, err := os.Stat(dir + "/empty/e"); err != nil {
		t.Error(err)
	}
	must(t, os.Rename(b, dir+"/full/x"))
	wantContent(t, dir+"/full/x", "first")
	must(t, os.Rename(dir+"/full/x", dir+"/full/x")) // onto itself: nothing happens
	wantContent(t, dir+"/full/x", "first")
}

func posixRenameFlags(t *testing.T, dir string) {
	a, b := write(t, dir+"/a", "first"), write(t, dir+"/b", "second")
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE)
	wantErr(t, "RENAME_NOREPLACE", err, syscall.EEXIST)
	must(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
	wantContent(t, a, "second")
	wantContent(t, b, "first")
	err = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, dir+"/none", unix.RENAME_EXCHANGE)
	wantErr(t, "RENAME_EXCHANGE with no file", err, syscall.ENOENT)
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

func posixDirectories(t *testing.T, dir string) {
	must(t, os.Mkdir(dir+"/a", 0o755))
	wantErr(t, "mkdir of an existing name", unix.Mkdir(dir+"/a", 0o755), syscall.EEXIST)
	links := stat(t, dir+"/a").Nlink
	must(t, os.Mkdir(dir+"/a/b", 0o755))
	if got := stat(t, dir+"/a").Nlink; got != links+1 {
		t.Errorf("nlink with a subdirectory: got %d, want %d", got, links+1)
	}
	wantErr(t, "rmdir of a full directory", unix.Rmdir(dir+"/a"), syscall.ENOTEMPTY)
	wantErr(t, "unlink of a directory", unix.Unlink(dir+"/a"), syscall.EISDIR)
	wantErr(t, "rmdir of a file", unix.Rmdir(write(t, dir+"/f", "")), syscall.ENOTDIR)
	must(t, os.Rename(dir+"/a/b", dir+"/b"))
	if got := stat(t, dir+"/a").Nlink; got != links {
		t.Errorf("nlink after the subdirectory left: got %d, want %d", got, links)
	}
	must(t, unix.Rmdir(dir+"/a"))
	_, err := os.Stat(dir + "/f/below")
	wantErr(t, "a file as a directory", err, syscall.ENOTDIR)
}

func posixBigDirectory(t *testing.T, dir string) {
	const n = 2000
	want := make([]string, n)
	for i := range n {
		want[i] = fmt.Sprintf("name-%05d", i)
		f, err := os.OpenFile(filepath.Join(dir, want[i]), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		must(t, err)
		must(t, f.Close())
	}
	entries, err := os.ReadDir(dir) // sorted
	must(t, err)
	got := make([]string, len(entries))
	for i, e := range entries {
		got[i] = e.Name()
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %d names of %d", len(got), n)
	}
	for i := 0; i < n; i += 2 {
		must(t, os.Remove(filepath.Join(dir, want[i])))
	}
	entries, err = os.ReadDir(dir)
	if err != nil || len(entries) != n/2 {
		t.Errorf("after removing half: %d names, %v; want %d", len(entries), err, n/2)
	}
}

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

func posixExclusive(t *testing.T, dir string) {
	path := write(t, dir+"/file", "x")
	_, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	wantErr(t, "O_EXCL", err, fs.ErrExist)
	_, err = os.OpenFile(dir+"/none", os.O_RDWR, 0)
	wantErr(t, "no O_CREAT", err, fs.ErrNotExist)
	_, err = os.OpenFile(dir, os.O_RDWR, 0)
	wantErr(t, "directory to write", err, syscall.EISDIR)
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

// asOther runs a shell command as another user and returns its output.
func asOther(t *testing.T, script string) (string, error) {
	t.Helper()
	out, err := asNobody("sh", "-c", script).CombinedOutput()
	return string(out), err
}

func posixPermissions(t *testing.T, dir string) {
	if os.Getuid() != 0 {
		t.Skip("not root: cannot become another user")
	}
	path := write(t, dir+"/file", "secret")
	must(t, os.Chmod(path, 0o600))
	if out, err := asOther(t, "cat "+path); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("another user reads mode 600: got %q, %v", out, err)
	}
	must(t, os.Chmod(path, 0o644))
	if out, err := asOther(t, "cat "+path); err != nil || out != "secret" {
		t.Errorf("another user reads mode 644: got %q, %v", out, err)
	}
	if out, err := asOther(t, "echo x > "+path); err == nil {
		t.Errorf("another user writes mode 644: %q", out)
	}
	if out, err := asOther(t, "touch "+dir+"/new"); err == nil {
		t.Errorf("another user creates in a directory of mode 755: %q", out)
	}
	must(t, os.Chmod(dir, 0o777|fs.ModeSticky))
	if out, err := asOther(t, "rm -f "+path); err == nil {
		t.Errorf("another user removes from a sticky directory: %q", out)
	}
	if out, err := asOther(t, "umask 027; echo mine > "+dir+"/mine"); err != nil {
		t.Errorf("create in mode 1777: %q, %v", out, err)
	}
	if st := stat(t, dir+"/mine"); st.Uid != 65534 || st.Gid != 65534 || st.Mode&0o777 != 0o640 {
		t.Errorf("another user's file: owner %d:%d mode %o", st.Uid, st.Gid, st.Mode)
	}
	if out, err := asOther(t, "chmod 777 "+path); err == nil {
		t.Errorf("another user's chmod: %q", out)
	}
	must(t, unix.Chmod(path, 0o6755))
	if got := stat(t, path).Mode & 0o7777; got != 0o6755 {
		t.Errorf("mode with setuid: got %o, want 6755", got)
	}
}

func posixOwners(t *testing.T, dir string) {
	if os.Getuid() != 0 {
		t.Skip("not root: cannot chown")
	}
	path := write(t, dir+"/file", "x")
	must(t, os.Chown(path, 1234, 5678))
	must(t, os.Lchown(path, -1, 4321))
	if st := stat(t, path); st.Uid != 1234 || st.Gid != 4321 {
		t.Errorf("owner: got %d:%d, want 1234:4321", st.Uid, st.Gid)
	}
}

func posixTimes(t *testing.T, dir string) {
	path := write(t, dir+"/file", "x")
	atime, mtime := time.Unix(1_000_000_000, 123456789), time.Unix(1_100_000_000, 987654321)
	must(t, os.Chtimes(path, atime, mtime))
	st := stat(t, path)
	if st.Atim.Nano() != atime.UnixNano() || st.Mtim.Nano() != mtime.UnixNano() {
		t.Errorf("times: got %d, %d", st.Atim.Nano(), st.Mtim.Nano())
	}
	before := time.Now().Add(-time.Second)
	f := open(t, path, os.O_WRONLY)
	_, err := f.WriteAt([]byte("y"), 0)
	must(t, err)
	if got := stat(t, path).Mtim.Nano(); got < before.UnixNano() {
		t.Errorf("mtime after a write: %v", time.Unix(0, got))
	}
	must(t, f.Sync())
	must(t, os.Chtimes(path, atime, mtime))
	must(t, f.Close())
	if got := stat(t, path).Mtim.Nano(); got != mtime.UnixNano() {
		t.Errorf("mtime set before the close: got %v, want %v", time.Unix(0, got), mtime)
	}
	must(t, os.Chtimes(dir, atime, mtime))
	write(t, dir+"/new", "")
	if got := stat(t, dir).Mtim.Nano(); got < before.UnixNano() {
		t.Errorf("mtime of a directory with a new name: %v", time.Unix(0, got))
	}
}

func posixXattr(t *testing.T, dir string) {
	path := write(t, dir+"/file", "x")
	must(t, unix.Setxattr(path, "user.colour", []byte("red"), 0))
	wantErr(t, "XATTR_CREATE", unix.Setxattr(path, "user.colour", nil, unix.XATTR_CREATE), syscall.EEXIST)
	wantErr(t, "XATTR_REPLACE", unix.Setxattr(path, "user.none", nil, unix.XATTR_REPLACE), syscall.ENODATA)
	must(t, unix.Setxattr(path, "user.empty", nil, 0))
	big := bytes.Repeat([]byte("b"), 4000)
	must(t, unix.Setxattr(path, "user.big", big, 0))
	buf := make([]byte, 64<<10)
	n, err := unix.Getxattr(path, "user.colour", buf)
	if err != nil || string(buf[:n]) != "red" {
		t.Errorf("getxattr: got %q, %v", buf[:max(n, 0)], err)
	}
	n, err = unix.Getxattr(path, "user.big", buf)
	if err != nil || !bytes.Equal(buf[:n], big) {
		t.Errorf("getxattr of 4,000 bytes: got %d, %v", n, err)
	}
	_, err = unix.Getxattr(path, "user.big", buf[:10])
	wantErr(t, "a small buffer", err, syscall.ERANGE)
	if n, err = unix.Getxattr(path, "user.big", nil); err != nil || n != 4000 {
		t.Errorf("size of an attribute: got %d, %v", n, err)
	}
	n, err = unix.Listxattr(path, buf)
	must(t, err)
	names := strings.Split(string(bytes.TrimRight(buf[:n], "\x00")), "\x00")
	for _, want := range []string{"user.colour", "user.empty", "user.big"} {
		if !slices.Contains(names, want) {
			t.Errorf("listxattr %q lacks %s", names, want)
		}
	}
	must(t, unix.Removexattr(path, "user.colour"))
	_, err = unix.Getxattr(path, "user.colour", buf)
	wantErr(t, "a removed attribute", err, syscall.ENODATA)
	wantErr(t, "removing it again", unix.Removexattr(path, "user.colour"), syscall.ENODATA)
	n, err = unix.Getxattr(path, "user.rpmemfs.epoch", buf)
	if err != nil || n == 0 {
		t.Errorf("user.rpmemfs.epoch: %v", err)
	}
}

func posixSymlink(t *testing.T, dir string) {
	write(t, dir+"/file", "content")
	must(t, os.Symlink("file", dir+"/link"))
	wantContent(t, dir+"/link", "content")
	if got, err := os.Readlink(dir + "/link"); err != nil || got != "file" {
		t.Errorf("readlink: got %q, %v", got, err)
	}
	if st := stat(t, dir+"/link"); st.Size != 4 || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("lstat of a link: size %d mode %o", st.Size, st.Mode)
	}
	must(t, os.Symlink("loop", dir+"/loop"))
	_, err := os.ReadFile(dir + "/loop")
	wantErr(t, "a loop", err, syscall.ELOOP)
	long := strings.Repeat("l/", 2000)
	must(t, os.Symlink(long, dir+"/long"))
	if got, err := os.Readlink(dir + "/long"); err != nil || got != long {
		t.Errorf("a long link: %d bytes, %v", len(got), err)
	}
}

func posixHardLink(t *testing.T, dir string) {
	a, b := write(t, dir+"/a", "one"), dir+"/b"
	must(t, os.Link(a, b))
	if st := stat(t, b); st.Nlink != 2 || st.Ino != stat(t, a).Ino {
		t.Errorf("hard link: nlink %d, inodes %d and %d", st.Nlink, st.Ino, stat(t, a).Ino)
	}
	write(t, b, "two")
	wantContent(t, a, "two")
	must(t, os.Rename(a, b)) // two names of one file: nothing happens
	wantContent(t, a, "two")
	must(t, os.Remove(a))
	wantContent(t, b, "two")
	if got := stat(t, b).Nlink; got != 1 {
		t.Errorf("nlink after unlink: %d", got)
	}
	wantErr(t, "link to a directory", os.Link(dir, dir+"/d"), syscall.EPERM)
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

func posixNames(t *testing.T, dir string) {
	long := strings.Repeat("n", 255)
	for _, name := range []string{long, "with space", "new\nline", "ümläut", "\xff\xfe", ".hidden", "-dash"} {
		wantContent(t, write(t, dir+"/"+name, name), name)
	}
	_, err := os.Create(dir + "/" + long + "n")
	wantErr(t, "a name of 256 bytes", err, syscall.ENAMETOOLONG)
}

func posixSpecialFiles(t *testing.T, dir string) {
	must(t, unix.Mkfifo(dir+"/fifo", 0o644))
	if got := stat(t, dir+"/fifo").Mode & unix.S_IFMT; got != unix.S_IFIFO {
		t.Errorf("fifo: mode %o", got)
	}
	err := unix.Mknod(dir+"/sock", unix.S_IFSOCK|0o644, 0)
	if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.EPERM) {
		t.Errorf("mknod of a socket: %v", err)
	}
	must(t, os.Remove(dir+"/fifo"))
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
