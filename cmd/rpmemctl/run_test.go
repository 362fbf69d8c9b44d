package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// preloadBuilt is the preload library, built once.
var preloadBuilt = sync.OnceValues(func() (string, error) {
	bin, err := binaries()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(bin, "librpmemfs") // where rpmemctl looks
	out, err := exec.Command("make", "-s", "-C", "../../librpmemfs", "B="+dir, filepath.Join(dir, preloadName)).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make: %w: %s", err, out)
	}
	return filepath.Join(dir, preloadName), nil
})

// newPreloaded is newMounted where programs can be preloaded.
func newPreloaded(t *testing.T) *mounted {
	t.Helper()
	for _, program := range []string{"gcc", "make"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is missing here", program)
		}
	}
	m := newMounted(t)
	if _, err := preloadBuilt(); err != nil {
		t.Fatal(err)
	}
	return m
}

// cc builds a program of tests/c.
func (m *mounted) cc(name string) string {
	m.t.Helper()
	bin := filepath.Join(m.dir, name)
	if out, err := exec.Command("gcc", "-std=c11", "-O2", "-o", bin, "../../tests/c/"+name+".c", "-lpthread").CombinedOutput(); err != nil {
		m.t.Fatalf("gcc: %v: %s", err, out)
	}
	return bin
}

// attached counts the programs that are attached to a file.
func (m *mounted) attached(name string) int { return int(*m.statOf(name).Attached) }

// Every way to map a file and to commit it means the same as without the library,
// and what is not committed is rolled back however the program ends.
func TestRunWays(t *testing.T) {
	m := newPreloaded(t)
	ways := m.cc("ways")
	const pages = 64
	for _, way := range []string{"plain", "fsync", "write", "overlapping", "fixed", "protected", "remapped", "forked", "child", "vforked", "turns"} {
		ends := []string{""}
		if way == "plain" || way == "fixed" || way == "forked" {
			ends = []string{"", "_exit", "kill"}
		}
		for _, end := range ends {
			name := way + end
			m.ok("create", m.path(name), "--size", fmt.Sprint(pages*pageSize))
			args := []string{"run", "--", ways, m.path(name), way}
			if end != "" {
				args = append(args, end)
			}
			died := strings.Count(m.log.String(), "member died")
			if code, out, errOut := m.ctl(args...); code != exitOK && (end != "kill" || errOut != "") {
				t.Errorf("%s %s: exit code %d: %s%s", way, end, code, out, errOut)
				continue
			}
			m.waitClosed(name)
			if died := strings.Count(m.log.String(), "member died") > died; died != (end == "kill") {
				t.Errorf("%s %s: the daemon counts it as dead: %v", way, end, died)
			}
			image := filepath.Join(m.dir, "image")
			m.ok("export", "--force", m.path(name), image)
			b, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			for i := range pages {
				if got := binary.LittleEndian.Uint64(b[i*pageSize:]); got != 1 {
					t.Errorf("%s %s: page %d holds %d, want 1", way, end, i, got)
					break
				}
			}
			m.ok("rm", m.path(name))
		}
	}
}

const pythonCounter = `
import mmap, os, sys
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
for line in sys.stdin:
    for at in range(0, len(m), 4096):
        m[at] = ord(line[0])
    if line[1] == "!":
        m.flush()
    print(m[0], flush=True)
`

// An unmodified Python program is attached, commits by flush, and loses nothing
// else when it is killed.
func TestRunPython(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("python3 is missing here")
	}
	m := newPreloaded(t)
	m.ok("create", m.path("f"), "--size", "1MiB")
	epoch := *m.statOf("f").Epoch
	p := m.child(exec.Command(filepath.Join(m.bin, "rpmemctl"), "run", "--", "python3", "-c", pythonCounter, m.path("f")))
	p.say("a!", "97")
	p.say("b!", "98")
	p.say("c ", "99")
	if n, now := m.attached("f"), *m.statOf("f").Epoch; n != 1 || now != epoch+2 {
		t.Errorf("%d programs attached, epoch %d; want 1 and %d", n, now, epoch+2)
	}
	p.kill()
	m.waitClosed("f")
	p = m.child(exec.Command(filepath.Join(m.bin, "rpmemctl"), "run", "--", "python3", "-c", pythonCounter, m.path("f")))
	p.say("b ", "98") // starts; what it finds is checked by the export
	p.end()
	m.waitClosed("f")
	image := filepath.Join(m.dir, "image")
	m.ok("export", m.path("f"), image)
	if b, err := os.ReadFile(image); err != nil || b[0] != 'b' || b[len(b)-pageSize] != 'b' {
		t.Errorf("the file holds %q, %v; want the last flush", b[0], err)
	}
}

// Epochs at an interval, for a program that calls nothing: each is one moment.
func TestRunEpochs(t *testing.T) {
	m := newPreloaded(t)
	chain := m.cc("chain")
	m.ok("create", m.path("heap"), "--size", fmt.Sprint(chainSize))
	run := func(flags ...string) *mapper {
		args := append(append([]string{"run"}, flags...), "--", chain, m.path("heap"), fmt.Sprint(chainThreads), fmt.Sprint(chainLinks))
		return m.child(exec.Command(filepath.Join(m.bin, "rpmemctl"), args...))
	}
	for range 5 {
		p := run("--epoch", "5ms", "--quiesce", "stop")
		m.awaitEpoch("heap", 6)
		if n := m.attached("heap"); n != 1 {
			t.Errorf("%d programs attached, want 1", n)
		}
		p.advances()
		p.kill()
		m.waitClosed("heap")
		m.wantChain("heap")
	}
	p := run("--epoch", "5ms")
	m.awaitEpoch("heap", 3)
	p.advances()
	p.end()
	m.waitClosed("heap")
}

// What cannot be preloaded is refused; what is not there is as in a shell.
func TestRunRefuses(t *testing.T) {
	m := newPreloaded(t)
	m.refused(exitUsage, []string{"needs --epoch"}, "run", "--quiesce", "stop", "--", "true")
	m.refused(exitUsage, []string{"at least"}, "run", "--epoch", "1us", "--", "true")
	m.refused(exitNotFound, []string{"no-such-program"}, "run", "no-such-program")
	if out, err := exec.Command("gcc", "-static", "-o", filepath.Join(m.dir, "static"), "../../tests/c/ways.c").CombinedOutput(); err != nil {
		t.Logf("not tried with a static program: gcc -static: %s", out)
	} else {
		m.refused(exitFailed, []string{"linked statically", "--quiesce stop"}, "run", filepath.Join(m.dir, "static"), "x")
	}
	m.refused(exitFailed, []string{"nowhere.so"}, "run", "--library", "nowhere.so", "true")
	if code, out, errOut := m.ctl("run", "--", "sh", "-c", "echo $0 $1; exit 7", "--epoch", "x"); code != 7 || out != "--epoch x\n" || errOut != "" {
		t.Errorf("run sh: exit code %d, %q, %q", code, out, errOut)
	}
}

// Who is interrupted ends, as rpmemctl still or as the program already.
func TestRunInterrupted(t *testing.T) {
	m := newPreloaded(t)
	rng := rand.New(rand.NewPCG(*seed, 0))
	for range 40 {
		var b bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		cmd := exec.CommandContext(ctx, filepath.Join(m.bin, "rpmemctl"), "run", "sleep", "600")
		cmd.Stderr = &b
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.IntN(40_000)) * time.Microsecond) // when it is interrupted is the test
		_ = cmd.Process.Signal(os.Interrupt)                           // it runs
		err := cmd.Wait()
		if ctx.Err() != nil {
			t.Fatal("an interrupted program goes on")
		}
		if err == nil || b.Len() > 0 {
			t.Errorf("an interrupted program: %v, %q", err, b.String())
		}
		cancel()
	}
}
