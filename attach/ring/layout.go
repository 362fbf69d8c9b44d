// Package ring is the memory through which a member hands its pages to the daemon:
// a memfd that the member makes and both map. Any thread of the member puts pages
// into it (Producer); the daemon takes them out in order (Consumer).
//
// docs/protocol.md has the layout. Position P, counted from 0, uses descriptor and
// frame P mod the number of frames. A producer claims positions by moving head,
// never beyond tail + frames, fills frame and descriptor, and publishes them by
// storing P+1 to the descriptor's seq. The consumer moves tail.
//
// The daemon trusts nothing that it reads here: another process may write to it at
// any time.
package ring

import "errors"

// PageSize is the size of a frame in bytes.
const PageSize = 4096

// Limits of the number of frames, which is a power of two.
const (
	MinFrames     = 64
	MaxFrames     = 65536
	DefaultFrames = 16384 // 64 MiB
)

// ErrProtocol reports a ring that no producer of this version left like that.
var ErrProtocol = errors.New("attach: the ring breaks its protocol")

const (
	magic   = "RPMRING\x00"
	version = 1

	// Offsets in the header.
	offVersion      = 8
	offFrames       = 12
	offHead         = 64
	offTail         = 128
	offSpace        = 136
	offSpaceWaiters = 140
	offAsleep       = 192

	headerSize     = 4096
	descriptorSize = 32

	// Offsets in a descriptor.
	offSeq  = 0
	offPage = 8
	offWhen = 16
	offTag  = 24
)

// batch is how many frames go back to the producers at a time, so that one that
// waits for room does not wake for each.
const batch = 32

// Size returns the size in bytes of a ring of so many frames; 0 if there is none
// of that many.
func Size(frames uint32) int64 {
	if frames < MinFrames || frames > MaxFrames || frames&(frames-1) != 0 {
		return 0
	}
	return framesAt(frames) + int64(frames)*PageSize
}

// framesAt returns the offset of the first frame.
func framesAt(frames uint32) int64 {
	return (headerSize + int64(frames)*descriptorSize + PageSize - 1) &^ (PageSize - 1)
}
