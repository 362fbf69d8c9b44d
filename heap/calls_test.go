package heap_test

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rpmemfs/rpmemfs/heap"
)

// A call is a line of testdata/damage.calls, which says what they mean.
type call struct {
	what        byte
	no          int
	size, align uint64
}

func damageCalls(t testing.TB) []call {
	t.Helper()
	f, err := os.Open("testdata/damage.calls")
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
