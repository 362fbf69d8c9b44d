package heap

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Operations of futex(2) on memory that processes share.
const (
	futexOpWait = 0
	futexOpWake = 1
)

// futexWait sleeps while *word == seen, for most at most. It may return early.
func futexWait(word *uint32, seen uint32, most time.Duration) {
	ts := unix.NsecToTimespec(int64(most))
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexOpWait, uintptr(seen),
		uintptr(unsafe.Pointer(&ts)), 0, 0) // the caller looks again, whatever it returns
}

// futexWake wakes one that waits for word.
func futexWake(word *uint32) {
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexOpWake, 1, 0, 0, 0) // fails for bad addresses only
}
