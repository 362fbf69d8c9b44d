// Package attach is the daemon's side of restart points: it stops the processes
// that are attached to a file, its members, at a barrier, seals the epoch there,
// and takes the pages that they stored to out of their rings.
//
// A member is a process that mapped a file and connected to the daemon's attach
// socket (librpmemfs, package client, or the preload library). docs/protocol.md has
// the messages (package wire) and the ring (package ring).
//
// A barrier of a file, numbered from 1: every member parks its threads (DUE,
// READY); the epoch is sealed; the members copy what they stored to into their
// rings (GO, DONE) and go on (RELEASE); the daemon takes the rings' pages into the
// sealed epoch and commits it behind the running programs. A thread that is late
// calls the barrier off, and the epoch stays open.
//
// A member that dies without DETACH leaves a change half made. From then on
// nothing of the open epoch may commit: at the next barrier, with all survivors
// parked, it is rolled back instead, and they are told (LOST).
//
// For each file with members there is a group: a machine, which is the protocol
// without sockets and clocks, and one goroutine that runs barriers and rollbacks
// one at a time. Each member has a goroutine that reads its socket and drives the
// machine, and one that consumes its ring.
package attach

import (
	"context"
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/epoch"
)

var (
	// ErrLate reports a barrier that was called off because a thread did not park
	// in time. The epoch is still open.
	ErrLate = errors.New("attach: late at the barrier")
	// ErrLost reports an epoch that was rolled back because a member died.
	ErrLost = errors.New("attach: a member died, and the open epoch was rolled back")
	// ErrCalledOff reports a barrier that was called off for another reason. The
	// epoch is still open.
	ErrCalledOff = errors.New("attach: the barrier was called off")
)

// A LateError says who was late. It matches ErrLate.
type LateError struct {
	PID  int
	TID  uint32 // the thread, as the member numbers it; 0 if the whole member was silent
	Name string // of the thread, or of the member
}

func (e *LateError) Error() string {
	if e.TID == 0 {
		return fmt.Sprintf("%v: process %d (%q) did not answer", ErrLate, e.PID, e.Name)
	}
	return fmt.Sprintf("%v: thread %d (%q) of process %d", ErrLate, e.TID, e.Name, e.PID)
}

func (e *LateError) Is(target error) bool { return target == ErrLate }

// A Region is an open file as its group uses it; volume's is one.
type Region interface {
	// Barrier makes one epoch. It calls quiesce, which calls seal at most once, in
	// any goroutine, at the barrier, and returns when Capture was given every page
	// of the epoch. From seal on other commits wait. Barrier then commits what was
	// sealed and returns the last committed epoch. An error of quiesce before seal
	// leaves the epoch open; after seal, what was sealed is open again.
	//
	// seal returns the epoch that it sealed, and pages whose copies so far may be
	// stale: members copy them once more.
	Barrier(ctx context.Context, quiesce func(ctx context.Context, seal func() (extra []uint64, id epoch.ID, err error)) error) (epoch.ID, error)
	// Capture takes a page, 4096 bytes, of the sealed epoch or of the open one. when
	// is CLOCK_MONOTONIC in ns as its copying began, and never in the future. Of two
	// copies of a page the newer counts. Capture keeps no reference to p. After an
	// error the copy was dropped.
	Capture(ctx context.Context, sealed bool, page uint64, when int64, p []byte) error
	// Untracked reports whether the kernel may have stores of the open epoch that no
	// member finds: a handle is open whose opener is not among pids, or copies were
	// dropped.
	Untracked(pids []int) bool
	// Condemn says that the open epoch must not commit: until Rollback returns no
	// other commit may seal it, and opens of the file wait. An epoch that is sealed
	// already may commit.
	Condemn()
	// Rollback throws the open epoch away under running programs. Their mappings
	// show the last committed epoch when it returns.
	Rollback(ctx context.Context) error
	// Committed returns the last committed epoch.
	Committed() epoch.ID
	// Size returns the file's size in bytes. It does not block.
	Size() int64
	// Err returns why no commit will ever succeed again, or nil.
	Err() error
	// Close ends the use of the region.
	Close()
}

// Regions opens regions.
type Regions interface {
	// Attach opens a file for a member whose user may write it: uid and gid are
	// checked against the file's owner and mode. It waits while the file is rolled
	// back.
	Attach(ctx context.Context, ino uint64, uid, gid uint32) (Region, error)
}
