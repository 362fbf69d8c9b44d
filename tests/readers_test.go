package tests

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roleWatch maps a file for reading, once, and prints its one stamp for each line of
// its input: as the mapping has it, which read(2) must agree with.
//
//	watch FILE
func roleWatch(args []string) error {
	file, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(file.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	fmt.Println("watching")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		byMap, err := oneStamp(mem)
		if err != nil {
			return fmt.Errorf("mapping: %w", err)
		}
		data, err := io.ReadAll(io.NewSectionReader(file, 0, st.Size()))
		if err != nil {
			return err
		}
		byRead, err := oneStamp(data)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if byRead != byMap {
			return fmt.Errorf("read finds stamp %d, the mapping %d", byRead, byMap)
		}
		fmt.Println(byMap)
	}
	return nil
}

// A watcher is a program that has a file of a read-only mount mapped.
type watcher struct {
	*mount
	program *child
	last    uint64
}

func (m *mount) watch(name string) *watcher {
	m.t.Helper()
	w := &watcher{mount: m, program: m.role("watch", m.path(name))}
	w.program.mustLine("watching")
	return w
}

// look returns the stamp that the program sees.
func (w *watcher) look() uint64 {
	w.t.Helper()
	w.program.say("look")
	line := w.program.mustLine("")
	stamp, err := strconv.ParseUint(line, 10, 64)
	if err != nil {
		w.t.Fatalf("the watcher says %q", line)
	}
	if stamp < w.last {
		w.t.Fatalf("stamp %d after %d", stamp, w.last)
	}
	w.last = stamp
	return stamp
}

// acknowledged returns the last stamp that a program has printed by now.
func (c *child) acknowledged(t *testing.T, before uint64) uint64 {
	t.Helper()
	for range cap(c.lines) {
		select {
		case line := <-c.lines:
			before = lastNumber(t, []string{line}, before)
			continue
		default:
		}
		break
	}
	return before
}

// usedBytes is what a file takes of the pool.
func (m *mount) usedBytes(name string) uint64 {
	m.t.Helper()
	var st struct {
		Granted uint64 `json:"granted_bytes"`
		Spare   uint64 `json:"spare_bytes"`
	}
	out := m.ctl("stat", m.path(name), "--json")
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		m.t.Fatalf("rpmemctl stat --json: %v in %q", err, out)
	}
	return st.Granted - st.Spare
}

// One node stamps a file, epoch after epoch; programs on two others have it mapped.
// These see one epoch, whole, until they ask for the newest, and then none that is
// older than what was acknowledged before they asked. A reader that is killed keeps
// nothing, and one whose writer was killed reads on.
func TestReadersBesideWriter(t *testing.T) {
	const pages = 300
	rng, _ := newRand(t)
	dir := fastDir(t)
	n := newNode(t, dir, nil, nodeLease)
	writer := n.mount(newDir(t, dir), "", "app", nil)
	writer.start()
	program := writer.role("stamp", writer.path("file"), strconv.Itoa(pages), "msync")
	program.mustLine("from")
	acked := lastNumber(t, []string{program.mustLine("")}, 0)

	var readers []*watcher
	for range 2 {
		m := n.mount(newDir(t, dir), "", "app", nil)
		m.args = append(m.args, "--read-only")
		m.start()
		readers = append(readers, m.watch("file"))
	}
	for range rounds(40) {
		r := readers[rng.IntN(2)]
		<-time.After(time.Duration(rng.Int64N(int64(20 * time.Millisecond))))
		shown := r.look()
		acked = program.acknowledged(t, acked)
		if again := r.look(); again != shown {
			t.Fatalf("stamp %d became %d though nobody asked", shown, again)
		}
		path := r.mnt
		if rng.IntN(2) == 0 {
			path = r.path("file")
		}
		r.ctl("refresh", path)
		if now := r.look(); now < acked {
			t.Fatalf("after refresh %s: stamp %d, %d was acknowledged before", path, now, acked)
		}
	}
	if err := os.WriteFile(readers[0].path("new"), nil, 0o644); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a file in a read-only mount: %v", err)
	}

	// One follows by itself.
	m := n.mount(newDir(t, dir), "", "app", nil)
	m.args = append(m.args, "--read-only", "--follow", "50ms")
	m.start()
	follower := m.watch("file")
	for range 5 {
		acked = program.acknowledged(t, acked)
		until(t, "the follower has followed", func() bool { return m.stampFollowed("file") >= acked })
	}
	_ = follower.program.cmd.Process.Kill() // it may have looked in the middle of a refresh
	follower.program.drainUntilExit(patience)
	m.stop()

	// One is stopped until its session is over, and goes on in another.
	paused := readers[0]
	must(t, syscall.Kill(-paused.daemon.cmd.Process.Pid, syscall.SIGSTOP))
	<-time.After(nodeLease + nodeLease/2)
	acked = program.acknowledged(t, acked)
	must(t, syscall.Kill(-paused.daemon.cmd.Process.Pid, syscall.SIGCONT))
	paused.ctl("refresh", paused.path("file"))
	if now := paused.look(); now < acked {
		t.Errorf("stamp %d after a pause and a refresh, %d was acknowledged before", now, acked)
	}

	// A reader dies with its epoch pinned; when its session is over, nobody keeps
	// anything of it.
	dead := readers[0]
	dead.kill()
	_ = dead.program.cmd.Process.Kill()
	dead.program.drainUntilExit(patience)
	dead.unmountDead()
	_ = program.cmd.Process.Kill()
	acked = lastNumber(t, program.drainUntilExit(patience), acked)
	readers[1].ctl("refresh", readers[1].mnt)
	until(t, "the slots of old epochs are free", func() bool { return writer.usedBytes("file") < 3*pages*pageSize/2 })

	// The writer dies; when its lease is over, the memory node does its part.
	again := writer.role("stamp", writer.path("file"), strconv.Itoa(pages), "msync")
	again.mustLine("from")
	acked = lastNumber(t, []string{again.mustLine("")}, acked)
	writer.kill()
	acked = lastNumber(t, again.drainUntilExit(patience), acked)
	writer.unmountDead()
	readers[1].ctl("refresh", readers[1].path("file"))
	if now := readers[1].look(); now < acked || now > acked+1 {
		t.Errorf("stamp %d after the writer's death, want %d or %d", now, acked, acked+1)
	}
	readers[1].program.mustFinish(patience)
	readers[1].stop()
	n.stop()
	writer.ctl("check", "--pool", n.pool)
}

// stampFollowed returns the stamp of a file that may be refreshed at any moment: that
// of its first page.
func (m *mount) stampFollowed(name string) uint64 {
	m.t.Helper()
	f, err := os.Open(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, pageSize)
	if _, err := f.ReadAt(page, 0); err != nil {
		m.t.Fatal(err)
	}
	stamp, err := pageStamp(page, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	return stamp
}
