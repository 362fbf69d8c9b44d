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
				for j := range (rounds(20) + 1) / 2 {
					x.round(j)
				}
				x.end()
			}
			t.Logf("%d epochs", x.epochs)
		})
	}
}

// Threads of one program; those of the second are the ones after.
const exactThreads = 3

// exactInC builds tests/c/exact.c with librpmemfs.
var exactInC = sync.OnceValues(func() (string, error) {
	lib := filepath.Join(shop.disk, "bin", "exact-lib")
	if out, err := exec.Command("make", "-s", "-C", "../librpmemfs", "B="+lib).CombinedOutput(); err != nil {
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
	acked  uint64
	epochs uint64
}

// begin makes a new file.
func (x *exactness) begin(name string, w workload) {
	t := x.m.t
	x.name, x.book, x.model, x.acked = name, filepath.Join(x.m.dir, name+".log"), newModel(w), 0
	x.m.role("truncate", x.m.path(name), strconv.FormatUint(w.pages()*pageSize, 10)).mustFinish(patience)
	if out, err := x.m.role("getxattr", x.m.path(name), "user.rpmemfs.attach").finish(patience); err != nil {
		t.Skipf("the daemon serves no attached programs: %v %s", err, out)
	}
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
		strconv.Itoa(program * exactThreads), strconv.Itoa(exactThreads),
	}
	var c *child
	if x.programs[program] == "C" {
		c = x.m.program(x.exe, args...)
	} else {
		c = x.m.role("exact", args...)
	}
	c.mustLine("ready")
	return c
}

func (x *exactness) round(i int) {
	t := x.m.t
	var running []*child
	for p := range x.programs {
		running = append(running, x.start(p))
	}
	// Some epochs, then perhaps the death of one program under the other.
	for _, c := range running {
		x.hear(c, 1+x.rng.IntN(6))
	}
	what := "all"
	if len(x.programs) > 1 && x.rng.IntN(2) == 0 {
		what = "one, then all"
		victim := x.rng.IntN(len(x.programs))
		<-time.After(time.Duration(x.rng.IntN(4000)) * time.Microsecond)
		x.read(running[victim].stop())
		x.survive(running[1-victim])
		running[victim] = x.start(victim)
		x.hear(running[victim], 1+x.rng.IntN(3))
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
	for _, c := range running {
		x.read(c.stop())
	}
	if who == killProgram {
		x.m.settle(x.name)
	} else {
		x.m.start()
		x.squeeze()
	}
	found := x.verify()
	t.Logf("round %d: killed %s (%s): epoch %d, %d acknowledged", i, what, who, found, x.acked)
	x.epochs += found - min(found, x.acked)
	x.acked = found
}

// stop kills a program and returns what it still said.
func (c *child) stop() []string {
	_ = c.cmd.Process.Kill() // it may have ended
	return c.drainUntilExit(patience)
}

// hear reads until a program was told of n more epochs.
func (x *exactness) hear(c *child, n int) {
	x.m.t.Helper()
	for n > 0 {
		line, err := c.line()
		if err != nil {
			x.m.t.Fatal(err)
		}
		if x.read([]string{line}) {
			n--
		}
	}
}

// survive reads until all threads of a program know that the other one died.
func (x *exactness) survive(c *child) {
	x.m.t.Helper()
	for n := 0; n < exactThreads; {
		line, err := c.line()
		if err != nil {
			x.m.t.Fatal(err)
		}
		if strings.HasPrefix(line, "lost ") {
			n++
		}
		x.read([]string{line})
	}
}

// read takes note of what a program said, and reports whether it named an epoch.
func (x *exactness) read(lines []string) (named bool) {
	x.m.t.Helper()
	for _, line := range lines {
		if strings.HasPrefix(line, "late") {
			x.m.t.Errorf("a barrier was called off: %s", line)
		}
		if text, ok := strings.CutPrefix(line, "durable "); ok {
			id, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				continue // cut off by the kill
			}
			x.epochs += id - min(id, x.acked)
			x.acked = max(x.acked, id)
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
	out := x.m.role("copy", x.m.path(x.name), to).mustFinish(patience)
	id, err := strconv.ParseUint(strings.TrimSpace(out), 10, 64)
	if err != nil {
		t.Fatalf("the file's epoch: %v", err)
	}
	image, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	if id < x.acked {
		t.Fatalf("found epoch %d, %d was acknowledged", id, x.acked)
	}
	if err := x.model.compare(image); err != nil {
		t.Fatalf("epoch %d: %v", id, err)
	}
	for i := range len(x.programs) * exactThreads {
		if got, want := x.model.counts[i], x.log.at(i, id); got != want {
			t.Fatalf("epoch %d: thread %d had done %d steps when it was sealed, the image has %d", id, i, want, got)
		}
	}
	return id
}
