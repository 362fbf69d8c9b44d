package media

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapTmpfs makes a Pmem over an ordinary mapping of a tmpfs file: the same code,
// on memory that is not persistent.
func mapTmpfs(t *testing.T, size int64) (*Pmem, string) {
	t.Helper()
	path := newDataFile(t, tmpfsDir(t), size)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mapPmem(f, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if errors.Is(err, ErrUnsupported) {
		f.Close()
		t.Skipf("no cache line flush: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m, path
}

func TestPmem(t *testing.T) {
	m, _ := mapTmpfs(t, 64<<10)
	exercise(t, m)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"ReadAt":  m.ReadAt(make([]byte, 1), 0),
		"WriteAt": m.WriteAt(make([]byte, 1), 0),
		"Flush":   m.Flush(),
		"Discard": m.Discard(0, 4096),
		"Close":   m.Close(),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s of a closed medium = %v, want os.ErrClosed", what, err)
		}
	}
}

// Every flush instruction of this processor leaves the content alone and takes
// ranges at any alignment.
func TestFlushInstructions(t *testing.T) {
	all := flushers()
	if len(all) == 0 {
		t.Skip("the processor has no known instruction to flush a cache line")
	}
	buf := make([]byte, 3*4096)
	for _, f := range all {
		t.Run(f.name, func(t *testing.T) {
			if f.line < 16 || f.line > 1024 {
				t.Errorf("cache line of %d bytes", f.line)
			}
			rng := rand.New(rand.NewPCG(*seed, 0))
			for range 200 {
				start, n := rng.IntN(4096), rng.IntN(8192)
				for i := range buf {
					buf[i] = byte(rng.Uint32())
				}
				want := bytes.Clone(buf)
				f.flush(unsafe.Pointer(&buf[start]), uintptr(n), f.line)
				if !bytes.Equal(buf, want) {
					t.Fatalf("flush of %d bytes at %d changed memory; -seed=%d", n, start, *seed)
				}
			}
		})
	}
}

// recorder replaces a Pmem's flusher and records which bytes it was called for.
func recorder(m *Pmem) *map[int64]bool {
	base := uintptr(unsafe.Pointer(&m.mem[0]))
	var mu sync.Mutex
	flushed := map[int64]bool{}
	m.flusher.flush = func(p unsafe.Pointer, n, _ uintptr) {
		mu.Lock()
		defer mu.Unlock()
		for i := range n {
			flushed[int64(uintptr(p)-base+i)] = true
		}
	}
	return &flushed
}

// After a flush every byte written before it was flushed after it was written,
// also when there are more ranges than a Pmem remembers. Fails if remember
// drops a range, or coalesce joins wrongly.
func TestPmemFlushesWhatWasWritten(t *testing.T) {
	const size = 4 << 20
	m, _ := mapTmpfs(t, size)
	rng := rand.New(rand.NewPCG(*seed, 0))
	for round, writes := range []int{0, 1, 10, 1000, maxDirtyRanges, 3 * maxDirtyRanges} {
		flushed := recorder(m)
		var want []int64
		for range writes {
			off, n := rng.Int64N(size-64), 1+rng.IntN(32)
			if err := m.WriteAt(make([]byte, n), off); err != nil {
				t.Fatal(err)
			}
			for i := range int64(n) {
				want = append(want, off+i)
			}
			if len(m.dirty) > maxDirtyRanges {
				t.Fatalf("%d dirty ranges remembered, limit %d", len(m.dirty), maxDirtyRanges)
			}
		}
		if err := m.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, off := range want {
			if !(*flushed)[off] {
				t.Fatalf("round %d: byte %d was written and not flushed; -seed=%d", round, off, *seed)
			}
		}
		distinct := map[int64]bool{}
		for _, off := range want {
			distinct[off] = true
		}
		if len(*flushed) != len(distinct) {
			t.Errorf("round %d: %d bytes flushed, %d were written", round, len(*flushed), len(distinct))
		}
	}
}

// Memory that cannot be reached is an error, not the death of the daemon.
func TestPmemFaultIsAnError(t *testing.T) {
	m, path := mapTmpfs(t, 64<<10)
	if err := os.Truncate(path, 8192); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	if err := m.ReadAt(p, 16384); !errors.Is(err, ErrFault) {
		t.Errorf("ReadAt of a lost page = %v, want ErrFault", err)
	}
	if err := m.WriteAt(p, 16384); !errors.Is(err, ErrFault) {
		t.Errorf("WriteAt of a lost page = %v, want ErrFault", err)
	}
	if err := m.WriteAt(p, 0); err != nil {
		t.Errorf("WriteAt of a good page: %v", err)
	}
	if err := m.Flush(); err != nil {
		t.Errorf("Flush of good pages: %v", err)
	}
	// A page that is lost between write and flush poisons.
	if err := m.WriteAt(p, 4096); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	first := m.Flush()
	if first == nil {
		t.Skip("this processor's flush instruction does not fault")
	}
	if !errors.Is(first, ErrFault) || !errors.Is(first, ErrPoisoned) {
		t.Errorf("Flush of a lost page = %v, want ErrPoisoned with ErrFault", first)
	}
	if again := m.Flush(); !errors.Is(again, ErrPoisoned) {
		t.Errorf("Flush after it = %v, want ErrPoisoned", again)
	}
}

func TestPmemConcurrent(t *testing.T) {
	m, _ := mapTmpfs(t, 64<<10)
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			p, got := bytes.Repeat([]byte{byte(w + 1)}, 4096), make([]byte, 4096)
			for range 100 {
				if err := errors.Join(m.WriteAt(p, int64(w)*8192), m.Flush(), m.ReadAt(got, int64(w)*8192)); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(got, p) {
					t.Errorf("worker %d read another's bytes", w)
					return
				}
			}
		})
	}
	all.Wait()
}

// TestPmemOnDAX runs on a file system mounted with -o dax, or a directory named
// by RPMEMFS_TEST_DAX.
func TestPmemOnDAX(t *testing.T) {
	dir := os.Getenv("RPMEMFS_TEST_DAX")
	if dir == "" {
		dir = daxMount()
	}
	if dir == "" {
		t.Skip("no DAX mount (set RPMEMFS_TEST_DAX to a directory on one)")
	}
	dir, err := os.MkdirTemp(dir, "media-test-")
	if err != nil {
		t.Skipf("cannot write to the DAX mount: %v", err)
	}
	defer os.RemoveAll(dir)
	m := mustOpen(t, newDataFile(t, dir, 64<<10), Options{})
	if m.Kind() != "dax" || m.Volatile() {
		t.Fatalf("Kind() = %q, Volatile() = %v, want \"dax\", false", m.Kind(), m.Volatile())
	}
	exercise(t, m)
}

// daxMount returns the mount point of a file system with DAX, or "".
func daxMount() string {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(table) {
		fields := bytes.Fields(line)
		if len(fields) < 4 {
			continue
		}
		for opt := range bytes.SplitSeq(fields[3], []byte(",")) {
			if s := string(opt); s == "dax" || s == "dax=always" {
				return string(fields[1])
			}
		}
	}
	return ""
}

func TestDeviceDAXSize(t *testing.T) {
	sys := t.TempDir()
	dev := filepath.Join(sys, "dev/char/252:3")
	if err := os.MkdirAll(dev, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := deviceDAXSize(sys, 252, 3); err == nil {
		t.Error("a device without a subsystem has a size")
	}
	if err := os.Symlink("../../../../bus/dax", filepath.Join(dev, "subsystem")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text string
		want int64
	}{{"1073741824\n", 1 << 30}, {"0\n", 0}, {"-4096\n", 0}, {"x\n", 0}} {
		if err := os.WriteFile(filepath.Join(dev, "size"), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := deviceDAXSize(sys, 252, 3)
		if got != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("size %q = %d, %v, want %d", c.text, got, err, c.want)
		}
	}
}

// Only what belongs to an NVDIMM bus, and is not of a volatile region, survives power loss.
func TestPersistentDAX(t *testing.T) {
	const (
		nvdimm = "devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus0/region0"
		virtio = "devices/pci0000:00/0000:00:04.0/virtio1/ndbus0/region0"
	)
	for _, c := range []struct {
		device, region, kind string
		want                 bool
	}{
		{nvdimm + "/dax0.0/dax0.0", nvdimm, "nd_pmem", true},
		{nvdimm + "/dax0.0/dax0.0", nvdimm, "nd_volatile", false},
		{virtio + "/dax0.0/dax0.0", virtio, "nd_pmem", false},
		{"devices/platform/hmem.0/dax0.0", "", "", false},                                // high bandwidth memory
		{"devices/platform/ACPI0017:00/root0/region0/dax_region0/dax0.0", "", "", false}, // CXL, volatile
	} {
		sys := t.TempDir()
		link := deviceDir(sys, 252, 3)
		err := errors.Join(os.MkdirAll(filepath.Join(sys, c.device), 0o700), os.MkdirAll(filepath.Dir(link), 0o700),
			os.Symlink(filepath.Join(sys, c.device), link))
		if c.region != "" {
			err = errors.Join(err, os.WriteFile(filepath.Join(sys, c.region, "devtype"), []byte(c.kind+"\n"), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := PersistentDAX(link); got != c.want || err != nil {
			t.Errorf("%s %s: persistent %v, %v, want %v", c.device, c.kind, got, err, c.want)
		}
	}
	if _, err := PersistentDAX(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a device that is not there: no error")
	}
}

// A volatile device is not called tmpfs, and has no file to be read from.
func TestVolatileDevice(t *testing.T) {
	m, path := mapTmpfs(t, 64<<10)
	m.device, m.volatile = true, true
	if err := errors.Join(m.WriteAt([]byte("x"), 0), m.Flush(), m.Persist(0, 1)); err != nil {
		t.Error(err)
	}
	if m.Kind() != "dax" || !m.Volatile() {
		t.Errorf("Kind() = %q, Volatile() = %v, want \"dax\", true", m.Kind(), m.Volatile())
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.ReadAt(make([]byte, preadFrom), 0); !errors.Is(err, ErrFault) {
		t.Errorf("read = %v, want that of memory", err)
	}
}

func BenchmarkPmem(b *testing.B) {
	f, err := os.CreateTemp("/dev/shm", "media-bench-")
	if err != nil {
		b.Skip(err)
	}
	defer os.Remove(f.Name())
	if err := f.Truncate(1 << 20); err != nil {
		b.Fatal(err)
	}
	m, err := mapPmem(f, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		b.Skip(err)
	}
	defer m.Close()
	p := make([]byte, 4096)
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := m.WriteAt(p, 8192); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("write+flush", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := errors.Join(m.WriteAt(p, 8192), m.Flush()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Persist flushes exactly what it was asked for, whoever stored it.
func TestPmemPersist(t *testing.T) {
	const size = 1 << 20
	m, _ := mapTmpfs(t, size)
	flushed := recorder(m)
	copy(m.Bytes()[5000:], "stored from outside")
	if err := m.Persist(5000, 19); err != nil {
		t.Fatal(err)
	}
	if len(*flushed) != 19 || !(*flushed)[5000] || !(*flushed)[5018] {
		t.Errorf("%d bytes flushed, want those from 5000 to 5018", len(*flushed))
	}
	for _, x := range []struct{ off, n int64 }{{-1, 1}, {size, 1}, {size - 1, 2}, {0, -1}, {0, 1 << 62}} {
		if err := m.Persist(x.off, x.n); !errors.Is(err, ErrRange) {
			t.Errorf("Persist(%d, %d) = %v, want ErrRange", x.off, x.n, err)
		}
	}
}
