package tests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
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
