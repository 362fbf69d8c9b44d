package tests

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// threadsProgram builds examples/bank/threads.c with librpmemfs.
var threadsProgram = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(shop.disk, "bin")
	lib := filepath.Join(bin, "librpmemfs")
	exe := filepath.Join(bin, "threads")
	for _, cmd := range []*exec.Cmd{
		exec.Command("make", "-s", "-C", "../librpmemfs", "B="+lib),
		exec.Command("gcc", "-std=c11", "-O2", "-g", "-I../librpmemfs", "-o", exe,
			"../examples/bank/threads.c", filepath.Join(lib, "librpmemfs.a"), "-lpthread"),
	} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
		}
	}
	return exe, nil
})

// A threadsBank is a file of examples/bank/threads.c on a mount.
type threadsBank struct {
	m     *mount
	exe   string
	acked uint64 // transfers that a process called durable
}

func newThreadsBank(t *testing.T, interval string) *threadsBank {
	t.Helper()
	need(t, "gcc", "make")
	exe, err := threadsProgram()
	if err != nil {
		t.Fatal(err)
	}
	b := &threadsBank{m: newMount(t, fastDir(t)), exe: exe}
	b.m.run(exe, "create", b.file(), "8192")
	b.m.role("setxattr", b.file(), "user.rpmemfs.interval", interval).mustFinish(patience)
	return b
}

func (b *threadsBank) file() string { return b.m.path("bank") }

func (b *threadsBank) start(command string, threads int) *child {
	return b.m.program(b.exe, command, b.file(), strconv.Itoa(threads))
}

// await reads n lines of a process; each is an epoch that became durable.
func (b *threadsBank) await(p *child, n int) {
	b.m.t.Helper()
	for range n {
		b.acked = max(b.acked, lastNumber(b.m.t, []string{p.mustLine("")}, 0))
	}
}

// kill kills a process and takes note of what it still printed.
func (b *threadsBank) kill(p *child) {
	b.m.t.Helper()
	_ = syscall.Kill(p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	b.acked = lastNumber(b.m.t, p.drainUntilExit(patience), b.acked)
}

// check fails the test if a coin is missing, if a transfer is half there, or if
// fewer are there than were called durable.
func (b *threadsBank) check(after string) {
	b.m.t.Helper()
	out, err := b.m.program(b.exe, "check", b.file()).finish(patience)
	if err != nil {
		b.m.t.Fatalf("after %s: %v", after, err)
	}
	var sent uint64
	if _, err := fmt.Sscanf(out, "%d transfers sent", &sent); err != nil {
		b.m.t.Fatalf("%v in %q", err, out)
	}
	b.m.t.Logf("after %s: acknowledged %d, found %s", after, b.acked, strings.TrimSpace(out))
	if sent < b.acked {
		b.m.t.Fatalf("after %s: %d transfers, %d were acknowledged", after, sent, b.acked)
	}
}

func pause(rng *rand.Rand, limit time.Duration) {
	<-time.After(time.Duration(rng.Int64N(int64(limit))))
}

// Threads move money without a msync anywhere, and epochs end at an interval.
// Whatever is killed in mid-transfer, every coin is there.
func TestThreadsKilled(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	b := newThreadsBank(t, "16ms")
	for i := range rounds(20) {
		who := victim(rng.IntN(3))
		p := b.start("run", 1+rng.IntN(4))
		b.await(p, rng.IntN(4))
		pause(rng, 50*time.Millisecond)
		if who != killProgram {
			b.m.kill()
		}
		b.kill(p)
		if who == killProgram {
			b.m.settle("bank")
		} else {
			b.m.start()
		}
		b.check(fmt.Sprintf("round %d, kill %s", i, who))
	}
}

// Two processes work on one bank, and one is killed: the other goes on from the
// last epoch, and what it does becomes durable. In the end both are killed.
func TestThreadsSurvivor(t *testing.T) {
	t.Parallel()
	rng, _ := newRand(t)
	b := newThreadsBank(t, "16ms")
	for i := range rounds(8) {
		dies, lives := b.start("run", 2), b.start("run", 2)
		b.await(dies, 1)
		b.await(lives, 1)
		pause(rng, 30*time.Millisecond)
		b.kill(dies)
		b.await(lives, 3)
		pause(rng, 30*time.Millisecond)
		b.m.kill()
		b.kill(lives)
		b.m.start()
		b.check(fmt.Sprintf("round %d", i))
	}
}

// With the restart point in the middle of a transfer, half-made ones are in
// every epoch, and check finds them: the tests above can fail.
func TestThreadsCareless(t *testing.T) {
	t.Parallel()
	b := newThreadsBank(t, "16ms")
	p := b.start("careless", 4)
	b.await(p, 3)
	b.m.kill()
	b.kill(p)
	b.m.start()
	if out, err := b.m.program(b.exe, "check", b.file()).finish(patience); err == nil {
		t.Errorf("half-made transfers were not found: %s", out)
	}
}
