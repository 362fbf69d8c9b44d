package media

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var seed = flag.Uint64("seed", 1, "seed of the random tests")

// newDataFile makes a zeroed file of size bytes in dir.
func newDataFile(t *testing.T, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "data")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// tmpfsDir returns a directory in memory, or skips.
func tmpfsDir(t *testing.T) string {
	t.Helper()
	volatile, err := Volatile("/dev/shm")
	if err != nil || !volatile {
		t.Skip("no tmpfs at /dev/shm")
	}
	dir, err := os.MkdirTemp("/dev/shm", "media-test-")
	if err != nil {
		t.Skipf("cannot write to /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func mustOpen(t *testing.T, path string, opts Options) Media {
	t.Helper()
	m, err := Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// exercise checks what every medium of 64 KiB must do.
func exercise(t *testing.T, m Media) {
	t.Helper()
	const size = 64 << 10
	if got := m.Size(); got != size {
		t.Fatalf("Size() = %d, want %d", got, size)
	}
	want := bytes.Repeat([]byte{0xa5, 0x5a, 1}, 3001)
	if err := m.WriteAt(want, 4093); err != nil {
		t.Fatalf("WriteAt: %v", err)
	}
	if err := m.Flush(); err != nil {
		t.Fatalf("Flush: %v", err)
	}
	got := make([]byte, len(want))
	if err := m.ReadAt(got, 4093); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadAt: %v, equal %v", err, bytes.Equal(got, want))
	}
	if err := m.ReadAt(got[:8], 32<<10); err != nil || !bytes.Equal(got[:8], make([]byte, 8)) {
		t.Errorf("ReadAt of a hole = %x, %v, want zeros", got[:8], err)
	}
	if err := m.WriteAt(want[:8], size-8); err != nil {
		t.Errorf("WriteAt of the last bytes: %v", err)
	}
	if err := m.ReadAt(nil, size); err != nil {
		t.Errorf("ReadAt of nothing at the end: %v", err)
	}
	for _, off := range []int64{-1, size - 7, size + 1, 1 << 62} {
		if err := m.ReadAt(got[:8], off); !errors.Is(err, ErrRange) {
			t.Errorf("ReadAt(8 bytes, %d) = %v, want ErrRange", off, err)
		}
		if err := m.WriteAt(got[:8], off); !errors.Is(err, ErrRange) {
			t.Errorf("WriteAt(8 bytes, %d) = %v, want ErrRange", off, err)
		}
	}
	if got, want := m.Stats(), (Stats{BytesWritten: uint64(len(want)) + 8, Flushes: 1}); got != want {
		t.Errorf("Stats() = %+v, want %+v", got, want)
	}
	if d, ok := m.(Discarder); ok {
		if err := d.Discard(4096, 8192); err != nil {
			t.Errorf("Discard: %v", err)
		}
		if err := d.Discard(60<<10, 8192); !errors.Is(err, ErrRange) {
			t.Errorf("Discard beyond the end = %v, want ErrRange", err)
		}
		if err := m.WriteAt(want, 4096); err != nil {
			t.Errorf("WriteAt after Discard: %v", err)
		}
	}
}

func TestFile(t *testing.T) {
	m := mustOpen(t, newDataFile(t, t.TempDir(), 64<<10), Options{})
	exercise(t, m)
	if volatile, _ := Volatile(t.TempDir()); m.Volatile() != volatile {
		t.Errorf("Volatile() = %v, want that of the file system, %v", m.Volatile(), volatile)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"ReadAt":  m.ReadAt(make([]byte, 1), 0),
		"WriteAt": m.WriteAt(make([]byte, 1), 0),
		"Flush":   m.Flush(),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s of a closed file = %v, want os.ErrClosed", what, err)
		}
	}
}

func TestTmpfsIsVolatile(t *testing.T) {
	m := mustOpen(t, newDataFile(t, tmpfsDir(t), 64<<10), Options{})
	exercise(t, m)
	if !m.Volatile() || m.Kind() != "tmpfs" {
		t.Errorf("Volatile() = %v, Kind() = %q, want true, \"tmpfs\"", m.Volatile(), m.Kind())
	}
}

func TestOpenReadOnly(t *testing.T) {
	path := newDataFile(t, t.TempDir(), 4096)
	m := mustOpen(t, path, Options{ReadOnly: true})
	for what, err := range map[string]error{
		"WriteAt": m.WriteAt([]byte{1}, 0),
		"Flush":   m.Flush(),
		"Discard": m.(Discarder).Discard(0, 4096),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s = %v, want ErrReadOnly", what, err)
		}
	}
}

// A medium that cannot be written says so when it is opened for writing.
func TestOpenOnReadOnlyMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	path := newDataFile(t, dir, 4096)
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot bind mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skipf("cannot remount read-only: %v", err)
	}
	if m, err := Open(path, Options{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Open = %v, %v, want ErrReadOnly", m, err)
	}
	mustOpen(t, path, Options{ReadOnly: true})
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of nothing = %v, want os.ErrNotExist", err)
	}
	if _, err := Open(dir, Options{ReadOnly: true}); err == nil {
		t.Error("Open of a directory succeeds")
	}
	if _, err := Open("/dev/null", Options{}); err == nil {
		t.Error("Open of /dev/null succeeds")
	}
}

func TestFileTruncatedUnderneath(t *testing.T) {
	path := newDataFile(t, t.TempDir(), 64<<10)
	m := mustOpen(t, path, Options{})
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if err := m.ReadAt(make([]byte, 4096), 4090); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ReadAt = %v, want io.ErrUnexpectedEOF", err)
	}
}

// The kernel forgets a failed write-back once it was reported; a File does not.
// Fails if flushTurn drops its error.
func TestFailedFlushIsFinal(t *testing.T) {
	m := mustOpen(t, newDataFile(t, t.TempDir(), 4096), Options{}).(*File)
	calls := 0
	m.sync = func() error {
		if calls++; calls == 1 {
			return syscall.EIO
		}
		return nil
	}
	for i := range 3 {
		if err := m.Flush(); !errors.Is(err, ErrPoisoned) || !errors.Is(err, syscall.EIO) {
			t.Errorf("flush %d = %v, want ErrPoisoned with EIO", i, err)
		}
	}
	if calls != 1 {
		t.Errorf("the failed flush was tried %d times", calls)
	}
}

// Flushes that wait for a running one, which may have missed what they cover, share the next. A waiter that had not reached flush
// when the first ended runs its own, so it may take some tries to see all share one.
func TestFlushesMerge(t *testing.T) {
	const waiters = 8
	for deadline := time.Now().Add(20 * time.Second); ; {
		runs := flushTogether(t, waiters)
		if runs < 2 || runs > 1+waiters {
			t.Fatalf("%d flushes for a running one and %d waiters, want 2 to %d", runs, waiters, 1+waiters)
		}
		if runs == 2 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d waiters never shared a flush", waiters)
		}
	}
}

// flushTogether lets waiters flush while a flush is running, and returns how many ran.
func flushTogether(t *testing.T, waiters int) int {
	t.Helper()
	var turn flushTurn
	entered, release := make(chan struct{}), make(chan struct{})
	runs := 0 // flushes are serial
	slow := func() error { runs++; close(entered); <-release; return nil }
	var all sync.WaitGroup
	all.Go(func() { turn.flush(slow) })
	<-entered
	arrived := make(chan struct{}, waiters)
	for range waiters {
		all.Go(func() {
			arrived <- struct{}{}
			if err := turn.flush(func() error { runs++; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	for range waiters {
		<-arrived
	}
	close(release)
	all.Wait()
	if turn.started != turn.done {
		t.Errorf("%d flushes began, %d ended", turn.started, turn.done)
	}
	return runs
}

func BenchmarkFile(b *testing.B) {
	path := filepath.Join(b.TempDir(), "data")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		b.Fatal(err)
	}
	m, err := Open(path, Options{})
	if err != nil {
		b.Fatal(err)
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
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := m.ReadAt(p, 8192); err != nil {
				b.Fatal(err)
			}
		}
	})
}
