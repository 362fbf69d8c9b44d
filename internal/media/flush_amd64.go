package media

import "unsafe"

// cpuid executes CPUID with the given leaf and subleaf.
//
//go:noescape
func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// The flush functions write the cache lines of line bytes that overlap n bytes
// from p back to memory, and end with SFENCE.
//
//go:noescape
func flushCLWB(p unsafe.Pointer, n, line uintptr)

//go:noescape
func flushCLFLUSHOPT(p unsafe.Pointer, n, line uintptr)

//go:noescape
func flushCLFLUSH(p unsafe.Pointer, n, line uintptr)

// A flusher writes cache lines back to the persistence domain.
type flusher struct {
	name  string
	line  uintptr // bytes of a cache line
	flush func(p unsafe.Pointer, n, line uintptr)
}

// flushers returns what the processor has, best first: CLWB keeps the line,
// CLFLUSHOPT evicts it, CLFLUSH does so one line after the other. Intel, Software
// Developer's Manual, volume 2: CPUID leaves 1 and 7, CLWB, CLFLUSHOPT, CLFLUSH.
func flushers() []flusher {
	top, _, _, _ := cpuid(0, 0)
	if top < 1 {
		return nil
	}
	_, ebx, _, edx := cpuid(1, 0)
	line := uintptr(ebx>>8&0xff) * 8
	if edx&(1<<19) == 0 || line == 0 || line&(line-1) != 0 {
		return nil
	}
	var all []flusher
	if top >= 7 {
		_, ebx, _, _ := cpuid(7, 0)
		if ebx&(1<<24) != 0 {
			all = append(all, flusher{"CLWB", line, flushCLWB})
		}
		if ebx&(1<<23) != 0 {
			all = append(all, flusher{"CLFLUSHOPT", line, flushCLFLUSHOPT})
		}
	}
	return append(all, flusher{"CLFLUSH", line, flushCLFLUSH})
}
