package ring

import (
	"math"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Operations of futex(2) on memory that processes share.
const (
	opWait = 0
	opWake = 1
)

// futexWait sleeps while *word == seen, at most for d. It may return early.
func futexWait(word *atomic.Uint32, seen uint32, d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), opWait, uintptr(seen),
		uintptr(unsafe.Pointer(&ts)), 0, 0) // the caller looks again, whatever it returns
}

// futexWake wakes all that wait for word.
func futexWake(word *atomic.Uint32) {
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), opWake, math.MaxInt32, 0, 0, 0) // fails for bad addresses only
}
