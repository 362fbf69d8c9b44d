package quiesce

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// seed is the same in every package, so that all take it at once.
var _ = flag.Uint64("seed", 0, "seed of the random tests; there are none here")

const (
	roleEnv = "QUIESCE_TEST_ROLE"
	words   = 8 // counters of the file, one a thread
)

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) != "" {
		if err := counter(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// counter maps a file and counts in it, in as many threads as it has words, until
// standard input ends.
func counter(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, words*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	for i := range words {
		word := (*uint64)(unsafe.Pointer(&mem[i*8]))
		go func() {
			for {
				atomic.AddUint64(word, 1)
				if i > 0 { // one that never leaves user mode, the others sleep too
					time.Sleep(50 * time.Microsecond)
				}
			}
		}()
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// A child is a running counter.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

func start(t *testing.T, path string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(exe, path)}
	c.cmd.Env = append(os.Environ(), roleEnv+"=counter")
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.in.Close()         // it ends by itself
		_ = c.cmd.Process.Kill() // or not
		_ = c.cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("counter: %q, %v", line, err)
	}
	return c
}

// newFile makes a file for counters and looks at it through its own descriptor.
func newFile(t *testing.T) (path string, file File, read func() [words]uint64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(words * 8); err != nil {
		t.Fatal(err)
	}
	if file, err = FileOf(f); err != nil {
		t.Fatal(err)
	}
	return path, file, func() (n [words]uint64) {
		b := make([]byte, words*8)
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Error(err)
		}
		for i := range n {
			n[i] = binary.LittleEndian.Uint64(b[i*8:])
		}
		return n
	}
}

func nothing() error     { return nil }
func noCommit(int) error { return nil }

// moves waits until every counter has moved.
func moves(t *testing.T, read func() [words]uint64) {
	t.Helper()
	before := read()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		now, all := read(), true
		for i := range now {
			all = all && now[i] != before[i]
		}
		if all {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not all counters move: %v, then %v", before, now)
		}
	}
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// While Run commits no thread of any process stores, also if the file was renamed
// and removed; afterwards all do.
func TestRunStopsAll(t *testing.T) {
	path, file, read := newFile(t)
	a := start(t, path)
	if err := os.Rename(path, path+"2"); err != nil {
		t.Fatal(err)
	}
	b := start(t, path+"2")
	if err := os.Remove(path + "2"); err != nil {
		t.Fatal(err)
	}
	pids, err := Writers(file)
	slices.Sort(pids)
	want := []int{a.cmd.Process.Pid, b.cmd.Process.Pid}
	slices.Sort(want)
	if err != nil || !slices.Equal(pids, want) {
		t.Fatalf("Writers = %v, %v; want %v", pids, err, want)
	}
	for range 20 {
		moves(t, read)
		var before [words]uint64
		report, err := Run(bounded(t), file, nil,
			func() error { before = read(); return nil },
			func(int) error {
				time.Sleep(2 * time.Millisecond)
				if now := read(); now != before {
					t.Errorf("stores during the stop: %v, then %v", before, now)
				}
				return nil
			})
		if err != nil || report.Processes != 2 || report.Threads < 2*2 || report.Pause < 2*time.Millisecond {
			t.Fatalf("Run = %+v, %v", report, err)
		}
	}
	moves(t, read)
}

// A process that began to map the file after the first look is stopped too, and
// what it stored is drained.
func TestRunLooksAgain(t *testing.T) {
	path, file, read := newFile(t)
	first := start(t, path)
	start(t, path)
	drains := 0
	var before [words]uint64
	report, err := Run(bounded(t), file, []int{first.cmd.Process.Pid}, func() error {
		drains++
		before = read()
		return nil
	}, func(int) error {
		time.Sleep(2 * time.Millisecond)
		if now := read(); now != before {
			t.Errorf("stores during the stop: %v, then %v", before, now)
		}
		return nil
	})
	if err != nil || report.Processes != 2 || drains != 2 {
		t.Fatalf("Run = %+v, %v, after %d drains", report, err, drains)
	}
	moves(t, read)
}

// After an error of either function all go on.
func TestRunReleasesAfterErrors(t *testing.T) {
	path, file, read := newFile(t)
	start(t, path)
	boom := errors.New("boom")
	fails := func() error { return boom }
	if _, err := Run(bounded(t), file, nil, fails, func(int) error { t.Error("committed after a drain that failed"); return nil }); !errors.Is(err, boom) {
		t.Errorf("Run = %v, want the drain's error", err)
	}
	moves(t, read)
	if _, err := Run(bounded(t), file, nil, nothing, func(int) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("Run = %v, want the commit's error", err)
	}
	moves(t, read)
}

// A process that was stopped before stays stopped.
func TestRunKeepsStopped(t *testing.T) {
	path, file, read := newFile(t)
	c := start(t, path)
	if err := c.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitState(t, c.cmd.Process.Pid, "T")
	if _, err := Run(bounded(t), file, nil, nothing, noCommit); err != nil {
		t.Fatal(err)
	}
	waitState(t, c.cmd.Process.Pid, "T")
	before := read()
	time.Sleep(5 * time.Millisecond)
	if now := read(); now != before {
		t.Errorf("it runs: %v, then %v", before, now)
	}
	if err := c.cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	moves(t, read)
}

// Signals that come during the stop are not lost: a stopped process dies of one.
func TestRunPassesSignals(t *testing.T) {
	path, file, _ := newFile(t)
	c := start(t, path)
	_, err := Run(bounded(t), file, nil, nothing, func(int) error { return c.cmd.Process.Signal(unix.SIGTERM) })
	if err != nil {
		t.Fatal(err)
	}
	// ECHILD: Run met its end, because this process is its parent too.
	if err := c.cmd.Wait(); !errors.Is(err, unix.ECHILD) && (err == nil || !strings.Contains(err.Error(), "terminated")) {
		t.Errorf("it ended with %v, want a SIGTERM", err)
	}
}

// The kernel lets all go on when the process that stopped them is killed.
func TestKilledTracer(t *testing.T) {
	path, _, read := newFile(t)
	start(t, path)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tracer := exec.Command(exe, "-test.run", "^TestHoldForever$")
	tracer.Env = append(os.Environ(), "QUIESCE_TEST_FILE="+path)
	out, err := tracer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "holding\n" {
		t.Fatalf("tracer: %q, %v", line, err)
	}
	before := read()
	time.Sleep(5 * time.Millisecond)
	if now := read(); now != before {
		t.Errorf("it runs: %v, then %v", before, now)
	}
	if err := errors.Join(tracer.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = tracer.Wait() // "signal: killed"
	moves(t, read)
}

// TestHoldForever is the tracer that TestKilledTracer kills.
func TestHoldForever(t *testing.T) {
	path := os.Getenv("QUIESCE_TEST_FILE")
	if path == "" {
		t.Skip("it is a part of TestKilledTracer")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := FileOf(f)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), file, nil, nothing, func(int) error {
		fmt.Println("holding")
		time.Sleep(time.Minute)
		return nil
	})
	t.Fatal(err)
}

// A process that has another tracer cannot be stopped; the error names both.
func TestTracedByAnother(t *testing.T) {
	path, file, read := newFile(t)
	start(t, path)
	_, err := Run(bounded(t), file, nil, nothing, func(int) error {
		_, err := Run(bounded(t), file, nil, nothing, noCommit)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "traces it") {
		t.Errorf("Run inside Run = %v, want an error that names the tracer", err)
	}
	moves(t, read)
}

func waitState(t *testing.T, pid int, want string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(status), "State:\t"+want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is not in state %s", pid, want)
		}
	}
}

func TestSharedWritable(t *testing.T) {
	for _, c := range []struct {
		line string
		want File
		ok   bool
	}{
		{"7f2c1a000000-7f2c1a001000 rw-s 00000000 00:2f 17                         /mnt/a b (deleted)\n", File{Device{0, 0x2f}, 17}, true},
		{"7f2c1a000000-7f2c1a001000 -w-s 00000000 103:02 18446744073709551615 x\n", File{Device{0x103, 2}, 1<<64 - 1}, true},
		{"7f2c1a000000-7f2c1a001000 r--s 00000000 00:2f 17 /mnt/a\n", File{}, false},
		{"7f2c1a000000-7f2c1a001000 rw-p 00000000 00:2f 17 /mnt/a\n", File{}, false},
		{"7f2c1a000000-7f2c1a001000 rw-s 00000000 00:00 0 \n", File{}, false},
		{"", File{}, false},
		{"x rw-s\n", File{}, false},
		{"x rw-s 0 zz 1\n", File{}, false},
	} {
		if got, ok := sharedWritable([]byte(c.line)); got != c.want || ok != c.ok {
			t.Errorf("%q: %+v, %v; want %+v, %v", c.line, got, ok, c.want, c.ok)
		}
	}
}

func BenchmarkWriters(b *testing.B) {
	for b.Loop() {
		if _, err := Writers(File{}); err != nil {
			b.Fatal(err)
		}
	}
}
