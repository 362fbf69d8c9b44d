package verbs

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The arena is in huge pages, or asks for them.
func TestArenaIsInHugePages(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Skip(err)
	}
	mem, err := mapArena(hugePage + 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	if len(mem) != 2*hugePage {
		t.Errorf("%d bytes, want whole huge pages", len(mem))
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	// Its entry may begin before it: mappings that are alike are one. See proc_pid_smaps(5).
	at := uintptr(unsafe.Pointer(&mem[0]))
	inside := false
	for line := range strings.Lines(string(maps)) {
		var start, end uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &start, &end); n == 2 {
			inside = start <= at && at < end
		}
		flags, ok := strings.CutPrefix(line, "VmFlags:")
		if !inside || !ok {
			continue
		}
		if !strings.Contains(flags, " hg") && !strings.Contains(flags, " ht") {
			t.Errorf("flags of the mapping:%s want hg or ht", flags)
		}
		return
	}
	t.Skip("/proc/self/smaps has no VmFlags of the arena")
}
