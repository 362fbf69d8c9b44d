package memnode

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

func TestCreateAndOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "pool")
	p, created, err := OpenOrCreate(dir, CreateOptions{SizeBytes: 1<<20 + 5}, Options{})
	if err != nil || !created {
		t.Fatalf("OpenOrCreate = created %v, %v", created, err)
	}
	u, err := p.Usage(t.Context())
	if want := (namespace.Usage{Slots: 255, FreeSlots: 255, Inodes: 1}); err != nil || u != want {
		t.Errorf("Usage = %+v, %v, want %+v", u, err, want)
	}
	root, err := p.Inode(t.Context(), namespace.Root)
	if err != nil || root.Mode != unix.S_IFDIR|0o755 || root.Nlink != 2 || root.UID != uint32(os.Geteuid()) {
		t.Errorf("root = %+v, %v", root, err)
	}
	wantSound(t, p)
	wantErr(t, "Create over a pool", Create(dir, CreateOptions{}), ErrPoolExist)
	id := p.ID()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p, created, err = OpenOrCreate(dir, CreateOptions{}, Options{})
	if err != nil || created || p.ID() != id {
		t.Fatalf("second OpenOrCreate = created %v, %v", created, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "second Close", p.Close(), ErrClosed)
	_, err = p.Inode(t.Context(), namespace.Root)
	wantErr(t, "Inode after Close", err, ErrClosed)
}

func TestDefaultSize(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pool")
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(dir), &st); err != nil {
		t.Fatal(err)
	}
	if err := Create(dir, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(dir, dataFile))
	if err != nil {
		t.Fatal(err)
	}
	free := int64(st.Bavail) * st.Bsize
	if fi.Size()%(1<<20) != 0 || fi.Size() > free*6/10 || fi.Size() < min(free*4/10, maxDefaultSize/2) {
		t.Errorf("data has %d bytes where %d are free, want about half", fi.Size(), free)
	}
	if used := fi.Sys().(*syscall.Stat_t).Blocks * 512; used > 1<<20 {
		t.Errorf("data takes %d bytes, want a sparse file", used)
	}
}

func TestCreateRefusesSizes(t *testing.T) {
	for _, size := range []int64{-1, 1, minSlots*region.PageSize - 1} {
		dir := filepath.Join(t.TempDir(), "pool")
		wantErr(t, fmt.Sprint("Create with size ", size), Create(dir, CreateOptions{SizeBytes: size}), ErrSize)
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrNotPool) {
			t.Errorf("after it Open = %v, want ErrNotPool", err)
		}
	}
}

// A crash while a pool is made leaves none, and no trouble.
func TestCreateAfterInterruption(t *testing.T) {
	dir := newPoolDir(t)
	if err := os.Rename(filepath.Join(dir, metaFile), filepath.Join(dir, newMetaFile)); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, Options{})
	wantErr(t, "Open of half a pool", err, ErrNotPool)
	p, created, err := OpenOrCreate(dir, CreateOptions{SizeBytes: 1 << 20}, Options{})
	if err != nil || !created {
		t.Fatalf("OpenOrCreate = created %v, %v", created, err)
	}
	wantSound(t, p)
	p.Close()

	// Without meta.db.new, data may be what is left of a real pool.
	if err := os.Remove(filepath.Join(dir, metaFile)); err != nil {
		t.Fatal(err)
	}
	if err := Create(dir, CreateOptions{}); err == nil || !strings.Contains(err.Error(), "restore meta.db") {
		t.Errorf("Create over data without meta.db = %v, want advice", err)
	}
	_, err = Open(dir, Options{})
	wantErr(t, "Open without meta.db", err, ErrNotPool)
}

func TestCreateOnDevice(t *testing.T) {
	tmp := t.TempDir()
	device := filepath.Join(tmp, "device")
	if err := os.WriteFile(device, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(tmp, "pool")
	p, _, err := OpenOrCreate(dir, CreateOptions{Device: device}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if u, _ := p.Usage(t.Context()); u.Slots != 255 {
		t.Errorf("pool of %d slots on a device of 256", u.Slots)
	}
	p.Close()
	wantErr(t, "Create on a device with a pool", Create(filepath.Join(tmp, "other"), CreateOptions{Device: device}), ErrPoolExist)
}

func TestGenerationRises(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	for want := uint64(1); want < 5; want++ {
		if got := p.Generation(); got != want {
			t.Errorf("Generation() = %d, want %d", got, want)
		}
		p = reopen(t, p, dir)
	}
	p.Close()
	r, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := r.Generation(); got != 5 {
		t.Errorf("read-only Generation() = %d, want that of the last writer, 5", got)
	}
}

func TestLock(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	for _, readOnly := range []bool{false, true} {
		_, err := Open(dir, Options{ReadOnly: readOnly})
		wantErr(t, "second Open", err, ErrLocked)
		if pid := fmt.Sprintf("process %d", os.Getpid()); err == nil || !strings.Contains(err.Error(), pid) {
			t.Errorf("second Open = %v, want the holder, %s", err, pid)
		}
	}
	p.Close()
	a, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("second reader: %v", err)
	}
	defer b.Close()
	_, err = Open(dir, Options{})
	wantErr(t, "writer beside readers", err, ErrLocked)
}

func TestReadOnlyPool(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	mustGrant(t, p, f.Ino, 20)
	gone := mustCreate(t, p, namespace.Root, "gone", fileInode())
	if _, err := p.Unlink(t.Context(), namespace.Root, "gone"); err != nil {
		t.Fatal(err)
	}
	p.Close()
	r, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if found := problems(t, r); found != nil {
		t.Errorf("Check finds %q", found)
	}
	ctx, id := t.Context(), region.ID(f.Ino)
	if _, err := r.Inode(ctx, gone.Ino); err != nil {
		t.Errorf("a reader reaped an orphan: %v", err)
	}
	_, create := r.Create(ctx, namespace.Root, "g", fileInode())
	_, grant := r.Grant(ctx, id, 1, 1)
	_, clone := r.Clone(ctx, id, namespace.Root, "g", fileInode(), region.Seed{})
	for what, err := range map[string]error{
		"Create":  create,
		"Grant":   grant,
		"Clone":   clone,
		"WriteAt": r.WriteAt(make([]byte, 1), region.PageSize),
		"Flush":   r.Flush(),
		"Rmdir":   r.Rmdir(ctx, namespace.Root, "f"),
	} {
		wantErr(t, what, err, ErrReadOnly)
	}
	if err := r.ReadAt(make([]byte, 1), region.PageSize); err != nil {
		t.Errorf("ReadAt: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	sum := func(b []byte) []byte {
		binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
		return b
	}
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   error
		says   string
	}{
		{"no pool", func(t *testing.T, dir string) { os.RemoveAll(dir) }, ErrNotPool, ""},
		{"data missing", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, dataFile)) }, ErrTruncated, "restore"},
		{"data truncated", func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, dataFile), 8192) }, ErrTruncated, "restore"},
		{"meta.db truncated", func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, metaFile), 16384) }, ErrTruncated, "restore"},
		{"meta.db empty", func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, metaFile), 0) }, ErrCorrupt, ""},
		{"meta.db is text", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, metaFile), func([]byte) []byte { return []byte(strings.Repeat("not a database\n", 9999)) })
		}, ErrCorrupt, ""},
		{"data of another pool", func(t *testing.T, dir string) {
			other, err := os.ReadFile(filepath.Join(newPoolDir(t), dataFile))
			if err != nil {
				t.Fatal(err)
			}
			edit(t, filepath.Join(dir, dataFile), func([]byte) []byte { return other })
		}, ErrForeign, "put the files of one pool together"},
		{"data is not a pool's", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, dataFile), func(b []byte) []byte { clear(b); return b })
		}, ErrCorrupt, "magic"},
		{"header bit flipped", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, dataFile), func(b []byte) []byte { b[20] ^= 1; return b })
		}, ErrCorrupt, "checksum"},
		{"header version", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, dataFile), func(b []byte) []byte { b[8] = 7; return sum(b) })
		}, ErrVersion, "data has version 7, this program knows version 1"},
		{"meta.db version", func(t *testing.T, dir string) {
			m, err := openMeta(filepath.Join(dir, metaFile), false, true)
			if err != nil {
				t.Fatal(err)
			}
			defer m.close()
			err = m.update(func(t txn) error {
				pool, err := t.pool()
				if err != nil {
					return err
				}
				body := pool.encode()
				body[0] = 9
				return t.put(bucketPool, []byte("pool"), body)
			})
			if err != nil {
				t.Fatal(err)
			}
		}, ErrVersion, "meta.db has version 9, this program knows version 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := newPoolDir(t)
			c.damage(t, dir)
			for _, readOnly := range []bool{false, true} {
				p, err := Open(dir, Options{ReadOnly: readOnly})
				if err == nil {
					p.Close()
				}
				if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("Open(ReadOnly: %v) = %v, want %v saying %q", readOnly, err, c.want, c.says)
				}
			}
		})
	}
}

// A flipped bit anywhere in meta.db is an error, a problem that Check reports, or
// without effect; it is never a panic, and never other names or extents.
func TestMetaBitFlips(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	sub := mustCreate(t, p, namespace.Root, "sub", dirInode())
	for i := range 20 {
		f := mustCreate(t, p, sub.Ino, fmt.Sprint("f", i), fileInode())
		mustGrant(t, p, f.Ino, 8)
	}
	want, err := p.ReadDir(t.Context(), sub.Ino)
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	path := filepath.Join(dir, metaFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const step = 509 // bits; a prime, so that all positions in a value are hit
	silent := 0
	for bit := 0; bit < 8*len(good); bit += step {
		good[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		good[bit/8] ^= 1 << (bit % 8)
		r, err := Open(dir, Options{ReadOnly: true})
		if err != nil {
			continue
		}
		found := 0
		checkErr := r.Check(context.Background(), func(string) { found++ })
		got, err := r.ReadDir(context.Background(), sub.Ino)
		r.Close()
		if checkErr != nil || found > 0 || err != nil {
			continue
		}
		silent++
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("bit %d: ReadDir = %v, and Check finds nothing", bit, got)
		}
	}
	t.Logf("%d of %d flips had no effect: free pages, the older root", silent, 8*len(good)/step)
}

func TestOpenOnReadOnlyMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := newPoolDir(t)
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot bind mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skipf("cannot remount read-only: %v", err)
	}
	_, err := Open(dir, Options{})
	wantErr(t, "Open for writing", err, media.ErrReadOnly)
	p, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("Open for reading: %v", err)
	}
	p.Close()
}

func TestDataAccessIsBounded(t *testing.T) {
	p := newPool(t)
	const end = testSlots * region.PageSize
	for _, c := range []struct {
		n   int
		off int64
		ok  bool
	}{
		{8, region.PageSize, true}, {8, end - 8, true}, {0, end, true},
		{8, 0, false}, {8, region.PageSize - 1, false}, {8, end - 7, false}, {1, end, false}, {8, -8, false}, {8, 1 << 62, false},
	} {
		for what, err := range map[string]error{
			"ReadAt":  p.ReadAt(make([]byte, c.n), c.off),
			"WriteAt": p.WriteAt(make([]byte, c.n), c.off),
		} {
			if c.ok != (err == nil) || (!c.ok && !errors.Is(err, ErrRange)) {
				t.Errorf("%s(%d bytes, %d) = %v, want success: %v", what, c.n, c.off, err, c.ok)
			}
		}
	}
}

func BenchmarkPool(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "pool")
	p, _, err := OpenOrCreate(dir, CreateOptions{SizeBytes: 1 << 24}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	f := mustCreate(b, p, namespace.Root, "f", fileInode())
	ctx := context.Background()
	buf := make([]byte, region.PageSize)
	for name, fn := range map[string]func(i int) error{
		"write":  func(int) error { return p.WriteAt(buf, 8192) },
		"read":   func(int) error { return p.ReadAt(buf, 8192) },
		"lookup": func(int) error { _, err := p.Lookup(ctx, namespace.Root, "f"); return err },
		"inode":  func(int) error { _, err := p.Inode(ctx, f.Ino); return err },
		"update": func(i int) error {
			_, err := p.Update(ctx, f.Ino, func(n *namespace.Inode) { n.Atime = int64(i + 1) })
			return err
		},
		"create": func(i int) error {
			_, err := p.Create(ctx, namespace.Root, fmt.Sprint("n", i, "-", b.N, b.Elapsed()), fileInode())
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if err := fn(i); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// The check of meta.db's pages at opening takes a directory of several levels,
// large values and free pages for what they are.
func TestOpenLargeDirectory(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	ctx := context.Background()
	for i := range 3000 {
		n := mustCreate(t, p, namespace.Root, fmt.Sprintf("%04d-%0100d", i, i), fileInode())
		if i%100 == 0 {
			if err := p.SetXattr(ctx, n.Ino, "user.large", make([]byte, namespace.MaxXattrValue), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 3000 {
		if i%3 == 0 {
			continue
		}
		n, err := p.Unlink(ctx, namespace.Root, fmt.Sprintf("%04d-%0100d", i, i))
		if err == nil {
			_, err = p.Reap(ctx, n.Ino)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p = reopen(t, p, dir)
	entries, err := p.ReadDir(ctx, namespace.Root)
	if err != nil || len(entries) != 1000 {
		t.Fatalf("got %d entries, %v; want 1000", len(entries), err)
	}
	if err := p.Check(ctx, func(problem string) { t.Error(problem) }); err != nil {
		t.Fatal(err)
	}
}
