package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	chainThreads = 3
	chainLinks   = 100
	chainSize    = chainThreads * chainLinks * 2 * pageSize
)

// chain starts tests/c/chain.c on a new file.
func (m *mounted) chain(name string) *mapper {
	m.t.Helper()
	bin := filepath.Join(m.dir, "chain")
	if out, err := exec.Command("gcc", "-std=c11", "-O2", "-o", bin, "../../tests/c/chain.c", "-lpthread").CombinedOutput(); err != nil {
		if _, missing := exec.LookPath("gcc"); missing != nil {
			m.t.Skip("gcc is missing here")
		}
		m.t.Fatalf("gcc: %v: %s", err, out)
	}
	m.ok("create", m.path(name), "--size", fmt.Sprint(chainSize))
	return m.chainOn(name)
}

// chainOn starts the program that chain built on a file that it made.
func (m *mounted) chainOn(name string) *mapper {
	m.t.Helper()
	return m.child(exec.Command(filepath.Join(m.dir, "chain"), m.path(name), fmt.Sprint(chainThreads), fmt.Sprint(chainLinks)))
}

// kill ends the process as a crash does.
func (p *mapper) kill() {
	p.t.Helper()
	_ = p.cmd.Process.Kill() // it may be dead
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case <-ended: // "signal: killed"
	case <-time.After(patience):
		p.t.Fatalf("process %d does not die", p.cmd.Process.Pid)
	}
	p.cmd = nil
}

// rounds asks the slowest thread of a chain for its rounds.
func (p *mapper) rounds() uint64 {
	p.t.Helper()
	if _, err := p.in.Write([]byte("\n")); err != nil {
		p.t.Fatal(err)
	}
	select {
	case line := <-p.lines:
		n, err := strconv.ParseUint(line, 10, 64)
		if err != nil {
			p.t.Fatalf("chain: %q", line)
		}
		return n
	case <-time.After(patience):
		p.t.Fatal("chain: no answer")
	}
	return 0
}

// advances waits until every thread of a chain has done another round.
func (p *mapper) advances() {
	p.t.Helper()
	limit := time.Now().Add(patience)
	for from := p.rounds(); p.rounds() < from+2; {
		if time.Now().After(limit) {
			p.t.Fatal("chain: a thread stands still")
		}
	}
}

// brokenChain says where an image of a chain is none of one moment.
func brokenChain(image []byte) string {
	for thread := range chainThreads {
		word := func(link int) uint64 {
			place := (link*7 + thread*3) % chainLinks
			return binary.LittleEndian.Uint64(image[(thread*chainLinks+place)*2*pageSize:])
		}
		for i := 1; i < chainLinks; i++ {
			if word(i) > word(i-1) {
				return fmt.Sprintf("thread %d: link %d holds %d, the one before %d", thread, i, word(i), word(i-1))
			}
		}
		if first, last := word(0), word(chainLinks-1); first-last > 1 {
			return fmt.Sprintf("thread %d: the first link holds %d, the last %d", thread, first, last)
		}
	}
	return ""
}

// The epoch of a checkpoint with --quiesce stop is what memory was at one moment.
// Without the stop some image has a store but not one before it.
func TestQuiesceStop(t *testing.T) {
	m := newMounted(t)
	p := m.chain("heap")
	p.advances()
	for i := range 10 {
		name := fmt.Sprint("c", i)
		var r stoppedJSON
		out := m.ok("checkpoint", "--quiesce", "stop", "--json", m.path("heap"), name)
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		if r.Processes != 1 || r.Threads != chainThreads+1 || r.Pause <= 0 || r.Pages == 0 || r.Epoch == 0 || r.Name != name {
			t.Fatalf("checkpoint: %+v in %s", r, out)
		}
		image := filepath.Join(m.dir, name)
		m.ok("export", m.path("heap")+"@"+name, image)
		b, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if broken := brokenChain(b); broken != "" {
			t.Fatalf("checkpoint %s, %+v: %s", name, r, broken)
		}
		p.advances()
	}
	if out := m.ok("checkpoint", "--quiesce=stop", m.path("heap")); !strings.Contains(out, "4 threads of 1 process stood still for") {
		t.Errorf("checkpoint --quiesce stop: got %q", out)
	}
	m.refused(exitFailed, []string{"has a checkpoint \"c0\" already"}, "checkpoint", "--quiesce", "stop", m.path("heap"), "c0")
	p.advances()
	p.end()
	m.waitClosed("heap")
	if out := m.ok("checkpoint", "--quiesce", "stop", m.path("heap")); !strings.Contains(out, "0 processes") {
		t.Errorf("checkpoint --quiesce stop of a file that nobody maps: got %q", out)
	}
	m.refused(exitUsage, []string{"neither none nor stop"}, "checkpoint", "--quiesce", "halt", m.path("heap"))
	m.refused(exitUsage, []string{"one file of a mount"}, "checkpoint", "--quiesce", "stop", "--all", m.point)
}

// Whenever rpmemctl is killed or interrupted, the program goes on.
func TestQuiesceKilled(t *testing.T) {
	m := newMounted(t)
	p := m.chain("heap")
	rng := rand.New(rand.NewPCG(*seed, 0))
	for i := range 30 {
		cmd := exec.Command(filepath.Join(m.bin, "rpmemctl"), "checkpoint", "--quiesce", "stop", m.path("heap"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.IntN(40_000)) * time.Microsecond) // when it is killed is the test
		signal := os.Kill
		if i%3 == 0 {
			signal = os.Interrupt
		}
		_ = cmd.Process.Signal(signal) // it may have ended
		_ = cmd.Wait()                 // of the signal, or well
		p.advances()
	}
}

// awaitEpoch waits until a file is n epochs further.
func (m *mounted) awaitEpoch(name string, n uint64) {
	m.t.Helper()
	limit := time.Now().Add(patience)
	for first := *m.statOf(name).Epoch; *m.statOf(name).Epoch < first+n; {
		if time.Now().After(limit) {
			m.t.Fatalf("%s does not commit: epoch %d", name, *m.statOf(name).Epoch)
		}
	}
}

// wantChain fails if the last committed epoch of a file is none of one moment.
func (m *mounted) wantChain(name string) {
	m.t.Helper()
	image := filepath.Join(m.dir, "image")
	m.ok("export", m.path(name), image, "--force")
	b, err := os.ReadFile(image)
	if err != nil {
		m.t.Fatal(err)
	}
	if broken := brokenChain(b); broken != "" {
		m.t.Fatal(broken)
	}
}

// A mount with --epoch and --quiesce stop commits what a program stores that calls
// nothing, under whatever name; when program, daemon or helper is killed, the file
// holds one moment.
func TestQuiesceEpochs(t *testing.T) {
	m := newMounted(t, "--epoch", "10ms", "--quiesce", "stop")
	p := m.chain("heap")
	m.awaitEpoch("heap", 5)
	p.advances()
	m.sh("mkdir mnt/d; mv mnt/heap mnt/d/other")
	m.awaitEpoch("d/other", 3)

	// Another helper takes over.
	m.sh(fmt.Sprintf("pkill -KILL -P %d", m.daemon.Process.Pid))
	m.awaitEpoch("d/other", 3)
	p.advances()

	p.kill()
	m.waitClosed("d/other")
	m.wantChain("d/other")

	p = m.chainOn("d/other")
	m.awaitEpoch("d/other", 2)
	m.kill()
	p.kill()
	m.unmountDead()
	m.start()
	m.wantChain("d/other")

	m.sh("setfattr -n user.rpmemfs.interval -v 0 mnt/d/other")
	p = m.chainOn("d/other")
	epoch := *m.statOf("d/other").Epoch
	for range 3 {
		p.advances()
		time.Sleep(20 * time.Millisecond) // two intervals: time for what must not happen
	}
	if now := *m.statOf("d/other").Epoch; now != epoch {
		t.Errorf("a file with the interval 0 went from epoch %d to %d", epoch, now)
	}
	p.kill()
	for line := range strings.Lines(m.log.String()) {
		// A thread that is killed as it is being stopped may be given up.
		if strings.Contains(line, "not attached") && strings.Contains(line, "said") && !strings.Contains(line, "does not stop") {
			t.Errorf("the helper complains:\n%s", m.log.String())
		}
	}
}
