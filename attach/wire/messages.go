package wire

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A kind is the type of a message in its header.
type kind uint16

const (
	kindHello kind = 1 + iota
	kindWelcome
	kindRequest
	kindResult
	kindDue
	kindReady
	kindLate
	kindDrain
	kindDrained
	kindGo
	kindDone
	kindRelease
	kindCommitted
	kindLost
	kindGone
	kindUntracked
	kindKick
	kindDetach
)

// message returns an empty message of the kind; nil if there is none.
func (k kind) message() Message {
	switch k {
	case kindHello:
		return new(Hello)
	case kindWelcome:
		return new(Welcome)
	case kindRequest:
		return new(Request)
	case kindResult:
		return new(Result)
	case kindDue:
		return new(Due)
	case kindReady:
		return new(Ready)
	case kindLate:
		return new(Late)
	case kindDrain:
		return new(Drain)
	case kindDrained:
		return new(Drained)
	case kindGo:
		return new(Go)
	case kindDone:
		return new(Done)
	case kindRelease:
		return new(Release)
	case kindCommitted:
		return new(Committed)
	case kindLost:
		return new(Lost)
	case kindGone:
		return new(Gone)
	case kindUntracked:
		return new(Untracked)
	case kindKick:
		return new(Kick)
	case kindDetach:
		return new(Detach)
	}
	return nil
}

func (k kind) String() string { return fmt.Sprintf("%T", k.message())[len("*wire."):] }

// Flags say what a member can do.
type Flags uint32

const (
	// Tracks: the member finds the pages that it stored to by itself.
	Tracks Flags = 1 << iota
	// RestartPoints: it parks its threads at restart points.
	RestartPoints
	// CommitOnly: it is a preloaded program, whose msync asks for barriers and
	// which parks no thread.
	CommitOnly

	allFlags = Tracks | RestartPoints | CommitOnly
)

// Hello is a member's first message. The ring's memfd comes with it (SCM_RIGHTS).
type Hello struct {
	Ino    uint64
	Flags  Flags
	Frames uint32 // of the ring
	Name   string // of the program
}

// Welcome answers Hello. After another errno than 0 the daemon closes.
type Welcome struct {
	Errno    unix.Errno
	Member   uint32
	N        uint64 // of the last barrier
	Epoch    uint64 // the last committed; no later one is sealed
	Interval uint64 // ns between two epochs; 0: only on request
}

// Request asks for a barrier that begins after it. Result answers it.
type Request struct {
	ID      uint64 // the member's own
	Timeout uint64 // ns that threads may take to park; 0: the daemon's choice
}

// Result ends a Request. Everything stored before the request is durable if Errno
// is 0.
type Result struct {
	ID      uint64
	Errno   unix.Errno
	LateTID uint32 // the thread that was late, or the pid of a silent member; or 0
	Epoch   uint64 // the last committed
}

// Due begins barrier N: the member parks its threads.
type Due struct {
	N       uint64
	Timeout uint64 // ns
}

// Ready says that all threads of the member are parked.
type Ready struct{ N uint64 }

// Late says that a thread did not park in time. It calls the barrier off.
type Late struct {
	N    uint64
	TID  uint32
	Name string
}

// Drain asks the member to make the kernel write the file's dirty pages back.
type Drain struct{ N uint64 }

// Drained says that it did.
type Drained struct {
	N     uint64
	Errno unix.Errno
}

// Go says that the epoch is sealed: the member copies what it stored.
type Go struct {
	N     uint64
	Sole  bool     // no other member: threads may go on when all is copied
	Pages []uint64 // to be copied too
	Epoch uint64   // the sealed epoch
}

// Done says that every position of the ring below Upto is full, and that they hold
// all that the member stored before the barrier.
type Done struct {
	N         uint64
	Upto      uint64
	Errno     unix.Errno
	Rounds    uint32 // of copying before the barrier
	Precopied uint64 // pages, in the rounds
	Copied    uint64 // pages, at the barrier
	ScanNs    uint64
	CopyNs    uint64
	PauseNs   uint64 // until now
}

// Release ends barrier N: the member's threads go on. Errno says why the barrier
// was called off; 0: it sealed Epoch.
type Release struct {
	N     uint64
	Errno unix.Errno
	Epoch uint64
}

// Committed says that Epoch is durable.
type Committed struct{ Epoch uint64 }

// Lost says that a member died and that memory shows Epoch, the last committed,
// again.
type Lost struct {
	Errno unix.Errno
	Epoch uint64
}

// Gone is the daemon's last message.
type Gone struct{ Errno unix.Errno }

// Untracked says that stores escaped the member's tracking.
type Untracked struct{}

// Kick wakes the ring's consumer.
type Kick struct{}

// Detach is a member's last message.
type Detach struct{}

func (*Hello) kind() kind     { return kindHello }
func (*Welcome) kind() kind   { return kindWelcome }
func (*Request) kind() kind   { return kindRequest }
func (*Result) kind() kind    { return kindResult }
func (*Due) kind() kind       { return kindDue }
func (*Ready) kind() kind     { return kindReady }
func (*Late) kind() kind      { return kindLate }
func (*Drain) kind() kind     { return kindDrain }
func (*Drained) kind() kind   { return kindDrained }
func (*Go) kind() kind        { return kindGo }
func (*Done) kind() kind      { return kindDone }
func (*Release) kind() kind   { return kindRelease }
func (*Committed) kind() kind { return kindCommitted }
func (*Lost) kind() kind      { return kindLost }
func (*Gone) kind() kind      { return kindGone }
func (*Untracked) kind() kind { return kindUntracked }
func (*Kick) kind() kind      { return kindKick }
func (*Detach) kind() kind    { return kindDetach }
