package heap_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rpmemfs/rpmemfs/heap"
)

const goldenBase = 0x2000_0000_0000

var goldens = map[string]bool{"testdata/heap.hex": false, "testdata/heap_guards.hex": true}

// A call is a line of testdata/heap.calls, which says what they mean.
type call struct {
	what        byte
	no          int
	size, align uint64
}

func goldenCalls(t testing.TB) []call {
	t.Helper()
	f, err := os.Open("testdata/heap.calls")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var calls []call
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		var c call
		if _, err := fmt.Sscanf(lines.Text(), "%c %d %d %d", &c.what, &c.no, &c.size, &c.align); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		calls = append(calls, c)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return calls
}

// do does the calls and returns the blocks that are in use then.
func do(t testing.TB, h *heap.Heap, calls []call) map[int]heap.Offset {
	t.Helper()
	blocks := map[int]heap.Offset{}
	for i, c := range calls {
		off, err := blocks[c.no], error(nil)
		switch c.what {
		case 'a':
			off, err = h.Alloc(c.size)
		case 'A':
			off, err = h.AllocAligned(c.size, c.align)
		case 'r':
			off, err = h.Realloc(off, c.size)
		case 'f':
			err = h.Free(off)
			off = 0
		case 's':
			err = h.SetRoot(off)
		}
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		if blocks[c.no] = off; off == 0 {
			delete(blocks, c.no)
		}
		if c.size > 0 {
			h.Bytes(off, c.size)[c.size-1] = byte(c.no)
		}
	}
	return blocks
}

// dump writes the bytes that are not zero, and the size.
func dump(b []byte) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "size %d\n", len(b))
	zero := make([]byte, 4096)
	for at := 0; at < len(b); at += len(zero) {
		if bytes.Equal(b[at:at+len(zero)], zero) {
			continue
		}
		for i := at; i < at+len(zero); i += 16 {
			if line := b[i : i+16]; !bytes.Equal(line, zero[:16]) {
				fmt.Fprintf(&out, "%08x: %x\n", i, line)
			}
		}
	}
	return out.Bytes()
}

// load puts a golden heap into a new region.
func load(t testing.TB, name string) *region {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var r *region
	for line := range strings.Lines(string(text)) {
		var size, at uint64
		var data string
		if _, err := fmt.Sscanf(line, "size %d", &size); err == nil {
			r = newRegion(t, size, max(size, 512<<20))
			continue
		}
		if _, err := fmt.Sscanf(line, "%x: %s", &at, &data); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if _, err := hex.Decode(r.bytes()[at:], []byte(data)); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	return r
}

// The calls make the golden bytes, which open and are sound. What changes them
// is a new version of the format.
func TestGolden(t *testing.T) {
	for name, guards := range goldens {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t, 0, 512<<20)
			h := r.create(t, heap.Options{Base: goldenBase, Guards: guards})
			blocks := do(t, h, goldenCalls(t))
			if s := sound(t, h); s.LiveBlocks != uint64(len(blocks)) || s.Huge.Blocks != 1 {
				t.Errorf("%d blocks in use, want %d, one of them huge", s.LiveBlocks, len(blocks))
			}
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			got := dump(r.bytes())
			if *update {
				if err := os.WriteFile(name, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("other bytes than in %s; write them anew with -update and compare", name)
			}
			r = load(t, name)
			if h, err = heap.Open(r.bytes(), heap.Options{}); err != nil {
				t.Fatal(err)
			}
			if s := sound(t, h); s.LiveBlocks != uint64(len(blocks)) || s.Guards != guards || s.Base != goldenBase {
				t.Errorf("loaded: %+v", s)
			}
		})
	}
}
