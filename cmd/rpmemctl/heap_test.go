package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/heap"
)

// writeHeap makes a heap with a few blocks in a plain file.
func writeHeap(t *testing.T, path string, guards bool) {
	t.Helper()
	mem := mapAnonymous(t, 8<<20)
	h, err := heap.Create(mem, heap.Options{Guards: guards})
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []uint64{10, 20, 300, 5000, 100_000} {
		off, err := h.Alloc(size)
		if err == nil && size == 300 {
			err = h.SetRoot(off)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, mem, 0o600); err != nil {
		t.Fatal(err)
	}
}

// mapAnonymous returns zeros, aligned as a heap has to be.
func mapAnonymous(t *testing.T, size int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	return mem
}

// damage flips a bit of a file.
func damage(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// badWord is a byte of chunk 0's directory entry: its count.
const badWord = 688128 + 4

func checkResult(t *testing.T, out string) (j heapCheckJSON) {
	t.Helper()
	if err := json.Unmarshal([]byte(out), &j); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return j
}

// Plain files, and files of a pool, with every exit code.
func TestHeapCheck(t *testing.T) {
	dir := fastDir(t)
	t.Chdir(dir)
	writeHeap(t, "sound", false)
	writeHeap(t, "bad", true)
	damage(t, "bad", badWord)
	writeHeap(t, "other", false)
	damage(t, "other", 8) // the version
	if err := os.WriteFile("zeros", make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	pool := newPool(t, 64<<20)
	for _, name := range []string{"sound", "bad", "zeros"} {
		mustCtl(t, "import", name, name, "--pool", pool)
	}
	mustCtl(t, "checkpoint", "bad", "monday", "--pool", pool)
	for _, tt := range []struct {
		args    string
		code    int
		out     string
		errText string
	}{
		{"sound", exitOK, "sound: sound (5 blocks in use, ", ""},
		{"bad", exitFailed, "byte 0xa8004: directory count: is", ""},
		{"bad", exitFailed, "bad: DAMAGED, 1 problem (", ""},
		{"zeros", exitUsage, "", "no heap in this file"},
		{"other", exitUsage, "", "another version"},
		{"none", exitUsage, "", "none: "},
		{".", exitUsage, "", "not a regular file"},
		{"sound --pool " + pool, exitOK, "sound: sound (5 blocks in use, ", ""},
		{"bad --pool " + pool, exitFailed, "bad: DAMAGED, 1 problem (", ""},
		{"bad@monday --pool " + pool, exitFailed, "bad@monday: DAMAGED, 1 problem (", ""},
		{"bad@none --pool " + pool, exitUsage, "", "none"},
		{"none --pool " + pool, exitUsage, "", "none"},
		{"zeros --pool " + pool, exitUsage, "", "no heap in this file"},
	} {
		code, out, errOut := ctl(t, append([]string{"heap", "check"}, strings.Fields(tt.args)...)...)
		if code != tt.code || !strings.Contains(out, tt.out) || !strings.Contains(errOut, tt.errText) || (errOut == "") != (tt.errText == "") {
			t.Errorf("heap check %s: exit code %d, want %d; got %q and %q, want %q and %q", tt.args, code, tt.code, out, errOut, tt.out, tt.errText)
		}
	}
	_, out, _ := ctl(t, "heap", "check", "bad", "--json")
	if j := checkResult(t, out); j.OK || j.Found != 1 || j.Problems[0].Offset != badWord || j.LiveBlocks != 5 || j.InUse {
		t.Errorf("--json: %+v", j)
	}
	if code, _, errOut := ctl(t, "heap"); code != exitUsage || !strings.Contains(errOut, "check or stat") {
		t.Errorf("heap alone: %d, %q", code, errOut)
	}
}

func TestHeapStat(t *testing.T) {
	path := filepath.Join(fastDir(t), "heap")
	writeHeap(t, path, true)
	out := mustCtl(t, "heap", "stat", path)
	for _, want := range []string{"8.0 MiB", "with guards", "in 5 blocks", "block at 0x", "fragmentation", "large", "5,120"} {
		if !strings.Contains(out, want) {
			t.Errorf("got\n%swant %q in it", out, want)
		}
	}
	if strings.Contains(out, "problems") || strings.Contains(out, "open epoch") {
		t.Errorf("got\n%swant neither problems nor an epoch", out)
	}
	var j heapStatJSON
	if err := json.Unmarshal([]byte(mustCtl(t, "heap", "stat", path, "--json")), &j); err != nil {
		t.Fatal(err)
	}
	sum := j.LiveBytes + j.CachedBytes + j.IdleBytes + j.FreeBytes + j.UnusedBytes + j.MetadataBytes
	if sum != j.Size || j.LiveBlocks != 5 || j.Large.Blocks != 1 || len(j.Classes) != 4 || j.DirtyPages != nil {
		t.Errorf("--json: %+v", j)
	}
	damage(t, path, badWord)
	if out := mustCtl(t, "heap", "stat", path); !strings.Contains(out, "problems") {
		t.Errorf("got\n%swant problems", out)
	}
}

// A file of a mount: as it is now, as of a checkpoint, and in the middle of a
// change by a program.
func TestMountedHeap(t *testing.T) {
	m := newMounted(t)
	plain := filepath.Join(m.dir, "plain")
	writeHeap(t, plain, false)
	file := m.path("heap")
	m.ok("import", plain, file)
	m.waitClosed("heap")
	m.ok("checkpoint", file, "monday")
	m.ok("heap", "check", file)
	m.ok("heap", "check", file+"@monday")
	m.waitClosed("heap")

	p := m.mapper("heap")
	p.say("store x", `"x"`) // the first byte of every page
	m.refused(exitUsage, []string{"in the middle of a change", "heap check"}, "heap", "check", file)
	code, out, _ := m.ctl("heap", "check", file, "--json")
	if j := checkResult(t, out); code != exitUsage || j.OK || !j.InUse || j.Found == 0 {
		t.Errorf("in use: exit code %d, %+v", code, j)
	}
	m.ok("heap", "check", file+"@monday")
	m.ok("checkpoint", file, "tuesday")
	if code, _, _ := m.ctl("heap", "check", file+"@tuesday"); code != exitFailed {
		t.Errorf("damaged checkpoint: exit code %d, want %d", code, exitFailed)
	}
	m.ok("rollback", file)
	p.end()
	m.waitClosed("heap")
	m.ok("restore", file, "monday")

	var j heapStatJSON
	if err := json.Unmarshal([]byte(m.ok("heap", "stat", file, "--json")), &j); err != nil {
		t.Fatal(err)
	}
	if j.LiveBlocks != 5 || j.DirtyPages == nil || j.Epoch == nil || j.Found != 0 {
		t.Errorf("stat: %+v", j)
	}
	if out := m.ok("heap", "stat", file); !strings.Contains(out, "open epoch") {
		t.Errorf("got\n%swant the open epoch", out)
	}
}
