package tests

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Programs with restart points work on one file, while the kernel writes back and
// drops pages as it likes; programs, daemon or both are killed at a random moment.
// What is mounted again is the memory at the barrier of its epoch, byte for byte:
// the steps that each thread had done when it was parked there, whole, and nothing
// of any other. About ten epochs a round; -rounds 1000 makes ten thousand.
//
// The programs' own notes say what each thread had done; the model in this process
// says what memory is then.
//
// Was seen to fail with a member that does not scan when its last thread is parked,
// with one of two that lets its threads go when it is done itself, without the
// second look at due when a thread comes back, and with a cache that keeps the copy
// which came last instead of the newest.
func TestExact(t *testing.T) {
	for _, programs := range [][]string{{"Go"}, {"C"}, {"Go", "Go"}, {"C", "Go"}} {
		t.Run(strings.Join(programs, "+"), func(t *testing.T) {
			t.Parallel()
			rng, seed := newRand(t)
			x := &exactness{m: newMount(t, fastDir(t)), rng: rng, programs: programs}
			if slices.Contains(programs, "C") {
				need(t, "gcc", "make")
				exe, err := exactInC()
				if err != nil {
					t.Fatal(err)
				}
				x.exe = exe
			}
			for i, half := range []uint64{40, 2000} {
				x.begin(fmt.Sprint("file", i), workload{seed + uint64(i), half})
				for j := range (rounds(12) + 1) / 2 {
					x.round(j)
				}
				x.end()
			}
			t.Logf("%d epochs", x.epochs)
		})
	}
}

// Threads of one program; those of the second are the ones after. The last of a
// program is that of its forked children, one after the other, if it has any; they
// are attached by themselves.
const (
	exactThreads  = 4
	exactChildren = exactThreads - 1
)

// exactInC builds tests/c/exact.c with librpmemfs.
var exactInC = sync.OnceValues(func() (string, error) {
	lib := filepath.Join(shop.disk, "bin", "exact-lib")
	if out, err := exec.Command("make", "-s", "-C", "../librpmemfs", "B="+lib, filepath.Join(lib, "librpmemfs.a")).CombinedOutput(); err != nil {
		return "", fmt.Errorf("make librpmemfs: %w\n%s", err, out)
	}
	return compile(filepath.Dir(lib), "c/exact.c", "-I../librpmemfs", filepath.Join(lib, "librpmemfs.a"), "-lpthread")()
})

type exactness struct {
	m        *mount
	rng      *rand.Rand
	programs []string // the language of each
	exe      string   // the one in C

	name   string
	book   string // path of the logbook
	log    *logbook
	model  *model
	acked  []uint64 // by program, as it counts: the last epoch it was told of, or began with
	epochs uint64   // of all files
	epoch  uint64   // of the file
}

// begin makes a new file.
func (x *exactness) begin(name string, w workload) {
	t := x.m.t
	x.name, x.book, x.model, x.epoch = name, filepath.Join(x.m.dir, name+".log"), newModel(w), 0
	x.acked = make([]uint64, len(x.programs))
	x.m.role("truncate", x.m.path(name), strconv.FormatUint(w.pages()*pageSize, 10)).mustFinish(patience)
	var err error
	if x.log, err = openLogbook(x.book); err != nil {
		t.Fatal(err)
	}
	x.squeeze()
}

func (x *exactness) end() {
	if err := x.log.close(); err != nil {
		x.m.t.Error(err)
	}
}

// squeeze makes the kernel's flusher run all the time, for this mount only.
func (x *exactness) squeeze() {
	for _, m := range fuseMounts(x.m.mnt) {
		dir := "/sys/class/bdi/0:" + m.minor + "/"
		for name, value := range map[string]string{"strict_limit": "1", "max_bytes": "1048576"} {
			if err := os.WriteFile(dir+name, []byte(value), 0o644); err != nil {
				x.m.t.Logf("the flusher stays as it is: %v", err)
			}
		}
	}
}

func (x *exactness) start(program int) *child {
	w := x.model.workload
	args := []string{
		x.m.path(x.name), x.book, strconv.FormatUint(w.seed, 10), strconv.FormatUint(w.half, 10),
		strconv.Itoa(program * exactThreads), strconv.Itoa(exactChildren),
	}
	var c *child
	if x.programs[program] == "C" {
		c = x.m.program(x.exe, args...)
	} else {
		c = x.m.role("exact", args...)
	}
	id, err := strconv.ParseUint(c.mustLine("ready "), 10, 64)
	if err != nil {
		x.m.t.Fatal(err)
	}
	x.acked[program] = id
	return c
}

func (x *exactness) round(i int) {
	t := x.m.t
	var running []*child
	for p := range x.programs {
		running = append(running, x.start(p))
	}
	// Some epochs, then perhaps the death of one program under the other.
	for p, c := range running {
		x.hear(p, c, 1+x.rng.IntN(10))
	}
	what := "all"
	if len(x.programs) > 1 && x.rng.IntN(2) == 0 {
		what = "one, then all"
		victim := x.rng.IntN(len(x.programs))
		<-time.After(time.Duration(x.rng.IntN(4000)) * time.Microsecond)
		x.read(victim, running[victim].stop())
		x.survive(1-victim, running[1-victim])
		running[victim] = x.start(victim)
		x.hear(victim, running[victim], 1+x.rng.IntN(10))
	}
	<-time.After(time.Duration(x.rng.IntN(4000)) * time.Microsecond)
	who := victim(x.rng.IntN(3))
	for _, c := range running {
		if who == killProgram || who == killBoth && x.rng.IntN(2) == 0 {
			_ = c.cmd.Process.Kill() // it may have ended
		}
	}
	if who != killProgram {
		x.m.kill()
	}
	for p, c := range running {
		x.read(p, c.stop())
	}
	if who == killProgram {
		x.m.settle(x.name)
	} else {
		x.m.start()
		x.squeeze()
	}
	found := x.verify()
	t.Logf("round %d: killed %s (%s): epoch %d", i, what, who, found)
	x.epochs += found - x.epoch
	x.epoch = found
}

// stop kills a program and returns what it still said.
func (c *child) stop() []string {
	_ = c.cmd.Process.Kill() // it may have ended
	return c.drainUntilExit(patience)
}

// hear reads until a program was told of n more epochs.
func (x *exactness) hear(p int, c *child, n int) {
	x.m.t.Helper()
	for late := 0; n > 0; {
		line, err := c.line()
		if err != nil {
			x.m.t.Fatal(err)
		}
		if x.read(p, []string{line}) {
			n, late = n-1, 0
		} else if late++; late > 100 {
			x.m.t.Fatalf("no epoch ends; the program said %q, and more", line)
		}
	}
}

// survive reads until all threads of a program know that the other one died.
func (x *exactness) survive(p int, c *child) {
	x.m.t.Helper()
	for n := 0; n < exactChildren; {
		line, err := c.line()
		if err != nil {
			x.m.t.Fatal(err)
		}
		if line == "lost" {
			n++
		}
		x.read(p, []string{line})
	}
}

// read takes note of what a program said, and reports whether it named an epoch.
func (x *exactness) read(p int, lines []string) (named bool) {
	x.m.t.Helper()
	for _, line := range lines {
		if strings.HasPrefix(line, "late") { // on a machine that is busy
			x.m.t.Logf("a barrier was called off: %s", line)
		}
		if text, ok := strings.CutPrefix(line, "durable "); ok {
			id, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				continue // cut off by the kill
			}
			x.acked[p] = max(x.acked[p], id)
			named = true
		}
	}
	return named
}

// verify compares the file with the model and the programs' notes, and returns its
// epoch.
func (x *exactness) verify() uint64 {
	t := x.m.t
	t.Helper()
	to := filepath.Join(x.m.dir, "copy")
	x.m.run("cp", x.m.path(x.name), to)
	image, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	id := x.m.xattrNumber(x.name, "user.rpmemfs.epoch")
	if err := x.model.compare(image); err != nil {
		t.Fatalf("epoch %d: %v", id, err)
	}
	for p := range x.programs {
		first := p * exactThreads
		var threads []int
		for i := range exactChildren {
			threads = append(threads, first+i)
		}
		x.verifyNotes(id, threads, x.acked[p])
		x.verifyNotes(id, []int{first + exactChildren}, 0)
	}
	return id
}

// verifyNotes fails the test unless the image has what threads had done at one of
// their barriers, from an epoch on.
func (x *exactness) verifyNotes(id uint64, threads []int, from uint64) {
	t := x.m.t
	t.Helper()
	last, ok := x.log.find(threads, x.model.counts[:], from)
	if ok {
		return
	}
	for _, i := range threads {
		t.Logf("thread %d has %d; noted at epochs from %d to %d: %v", i, x.model.counts[i], from, last, x.log.from(i, from, last))
	}
	t.Fatalf("epoch %d: the image is of no barrier of threads %v from their epoch %d on", id, threads, from)
}
