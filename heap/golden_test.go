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

// The golden files are those of librpmemfs, which writes them.
const goldenDir = "../librpmemfs/test/testdata/"

const goldenBase = 0x2000_0000_0000

// loadGolden puts a golden heap into a new region.
func loadGolden(t testing.TB, name string) *region {
	t.Helper()
	text, err := os.ReadFile(goldenDir + name)
	if err != nil {
		t.Fatal(err)
	}
	var r *region
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		var size uint64
		if strings.HasPrefix(line, "#") {
			continue
		}
		if _, err := fmt.Sscanf(line, "size %d", &size); err == nil {
			r = newRegion(t, size, size)
			continue
		}
		place, data, _ := strings.Cut(line, ":")
		var at uint64
		if _, err := fmt.Sscanf(place, "%x", &at); err != nil || r == nil {
			t.Fatalf("%q: %v", line, err)
		}
		if _, err := hex.Decode(r.bytes()[at:], []byte(strings.ReplaceAll(data, " ", ""))); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	return r
}

// A sequence runs heap.seq, whose head says what its lines mean.
type sequence struct {
	h      *heap.Heap
	c      *heap.Cache
	blocks map[int]heap.Offset
}

func (s *sequence) run(t *testing.T) {
	t.Helper()
	f, err := os.Open(goldenDir + "heap.seq")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if words := strings.Fields(lines.Text()); len(words) > 1 && words[0] != "#" {
			if err := s.line(words); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}

func (s *sequence) line(words []string) error {
	var first, last int
	if n, err := fmt.Sscanf(words[1], "%d-%d", &first, &last); n == 0 {
		return err
	} else if n == 1 {
		last = first
	}
	args := make([]uint64, 2)
	for i, w := range words[2:] {
		if _, err := fmt.Sscan(w, &args[i]); err != nil {
			return err
		}
	}
	step := 1
	if words[0] == "free" && len(words) > 2 {
		step = int(args[0])
	}
	for no := first; no <= last; no += step {
		if err := s.call(words[0], no, args); err != nil {
			return err
		}
	}
	return nil
}

func (s *sequence) call(what string, no int, args []uint64) (err error) {
	off := s.blocks[no]
	switch what {
	case "take":
		off, err = s.c.AllocStale(args[0], 16)
	case "align":
		off, err = s.c.AllocStale(args[1], args[0])
	case "realloc":
		off, err = s.c.Realloc(off, args[0])
	case "free":
		err = s.c.Free(off)
		off = 0
	case "root":
		err = s.h.SetRoot(off)
	default:
		err = fmt.Errorf("unknown call")
	}
	s.blocks[no] = off
	return err
}

// The calls make the golden bytes, which open and are sound. What changes them
// is a new version of the format.
func TestGolden(t *testing.T) {
	for name, guards := range map[string]bool{"heap.hex": false, "heap_guards.hex": true} {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t, 8<<20, 64<<20)
			h := r.create(t, heap.Options{Base: goldenBase, Guards: guards})
			c, err := h.Cache()
			if err != nil {
				t.Fatal(err)
			}
			s := sequence{h, c, map[int]heap.Offset{}}
			s.run(t)
			made := sound(t, h)
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			want := loadGolden(t, name)
			sameBytes(t, r.bytes(), want.bytes())
			if h, err = heap.Open(want.bytes(), heap.Options{}); err != nil {
				t.Fatal(err)
			}
			if got := sound(t, h); got != made || got.Guards != guards || got.Base != goldenBase {
				t.Errorf("loaded: %+v", got)
			}
		})
	}
}

func sameBytes(t *testing.T, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	bad := 0
	for at := 0; at < len(got) && bad < 10; at += 8 {
		if a, b := got[at:at+8], want[at:at+8]; !bytes.Equal(a, b) {
			t.Errorf("at %#x: got %x, want %x", at, a, b)
			bad++
		}
	}
}
