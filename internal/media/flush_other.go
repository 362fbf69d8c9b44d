//go:build !amd64

package media

import "unsafe"

// A flusher writes cache lines back to the persistence domain.
type flusher struct {
	name  string
	line  uintptr
	flush func(p unsafe.Pointer, n, line uintptr)
}

// flushers returns nothing: no instruction of this architecture is known to
// reach the persistence domain, so DAX files are used through fdatasync.
func flushers() []flusher { return nil }
