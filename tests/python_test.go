package tests

import (
	"strings"
	"testing"
)

const python = "/usr/bin/python3"

// A mapping of Python's mmap module, flushed, survives the daemon's death; what
// was stored after the flush does not.
func TestPythonMmap(t *testing.T) {
	t.Parallel()
	need(t, python)
	m := newMount(t, fastDir(t))
	p := m.program(python, "-c", `
import mmap, sys
with open(sys.argv[1], "w+b") as f:
    f.truncate(1 << 20)
    m = mmap.mmap(f.fileno(), 0)
    for i in range(0, 1 << 20, 4096):
        m[i:i+8] = b"epoch  1"
    m.flush()
    for i in range(0, 1 << 20, 8192):
        m[i:i+8] = b"epoch  2"
    print("stored", flush=True)
    sys.stdin.read()
`, m.path("heap"))
	p.mustLine("stored")
	m.kill()
	p.kill()
	m.start()
	out := m.run(python, "-c", `
import sys
data = open(sys.argv[1], "rb").read()
print(len(data), {data[i:i+8] for i in range(0, len(data), 4096)})
`, m.path("heap"))
	if got, want := strings.TrimSpace(out), "1048576 {b'epoch  1'}"; got != want {
		t.Errorf("after the daemon's death: got %s, want %s", got, want)
	}
}

// A numpy.memmap: the same.
func TestNumpyMemmap(t *testing.T) {
	t.Parallel()
	need(t, python, "/usr/lib/python3/dist-packages/numpy")
	m := newMount(t, fastDir(t))
	p := m.program(python, "-c", `
import numpy, sys
a = numpy.memmap(sys.argv[1], dtype="int64", mode="w+", shape=(512, 512))
a[:] = 7
a.flush()
a[100:300] = 8
print("stored", flush=True)
sys.stdin.read()
`, m.path("array"))
	p.mustLine("stored")
	m.kill()
	p.kill()
	m.start()
	out := m.run(python, "-c", `
import numpy, sys
a = numpy.memmap(sys.argv[1], dtype="int64", mode="r", shape=(512, 512))
print(a.min(), a.max(), a.sum() == 7 * 512 * 512)
`, m.path("array"))
	if got, want := strings.TrimSpace(out), "7 7 True"; got != want {
		t.Errorf("after the daemon's death: got %s, want %s", got, want)
	}
}

// The example counts its starts, also over a death of the daemon.
func TestPythonExample(t *testing.T) {
	t.Parallel()
	need(t, python)
	m := newMount(t, fastDir(t))
	for i, want := range []string{"the first start", "start 2;", "start 3;"} {
		out := m.run(python, "../examples/python/counter.py", m.path("count"))
		if !strings.HasPrefix(out, want) {
			t.Errorf("start %d: got %q, want %s...", i+1, out, want)
		}
		m.kill()
		m.start()
	}
}
