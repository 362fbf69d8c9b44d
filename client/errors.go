package client

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrLost reports that another process of the region died and everything since
	// the last committed epoch was rolled back, in memory too. It matches
	// unix.EOWNERDEAD.
	ErrLost = fmt.Errorf("client: a process of the region died, its epoch was rolled back: %w", unix.EOWNERDEAD)
	// ErrGone reports a region of no more use: its daemon ended, or a commit
	// failed. The last committed epoch is found when it is mounted again.
	ErrGone = errors.New("client: region gone; mount it again")
	// ErrClosed reports the use of a region after Close.
	ErrClosed = errors.New("client: region closed")
	// ErrCalledOff reports a checkpoint that no barrier could serve. The epoch is
	// still open; it may be tried again.
	ErrCalledOff = errors.New("client: checkpoint called off")
	// ErrNotAttachable reports a file that is on no rpmemfs mount, or on one whose
	// daemon serves no attached programs.
	ErrNotAttachable = errors.New("client: not a file of rpmemfs that can be attached")
)

// A LateError names who did not reach a restart point in time. It matches
// ErrCalledOff.
type LateError struct {
	ID uint32 // of the thread, as its process numbers it, or a silent process's pid
}

func (e *LateError) Error() string { return fmt.Sprintf("%v: thread %d was late", ErrCalledOff, e.ID) }

func (e *LateError) Is(target error) bool { return target == ErrCalledOff }
