// Package verbs is the transport between compute and memory node over RDMA: Dial is the
// compute node's end, Serve the memory node's. docs/protocol.md has the bytes.
//
// The compute node writes and reads the pool's memory itself; the memory node only says
// where it is. A Write is copied into the arena, registered memory of the compute node,
// and posted with what comes after it. Flush posts all that is left by one doorbell, and
// then what makes it persistent. So n writes and a Flush, a commit, are one round trip.
// How writes become persistent is the Method, which the memory node chooses when the
// client connects.
//
// An RDMA write that was acknowledged is not durable: it may be in the memory node's
// caches, or on its bus. See Kalia, Andersen and Kaminsky, "Challenges and Solutions for
// Fast Remote Persistent Memory Access", SoCC 2020, doi:10.1145/3419111.3421294.
//
// What no Flush covers yet stays in the arena. When the queue pair breaks the client
// connects again and posts it once more, in order. The memory node destroys the old queue
// pair and deregisters its memory before it takes the new one, so nothing of it comes late.
package verbs

import (
	"errors"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

var (
	// ErrClosed reports the use of a Conn after Close.
	ErrClosed = errors.New("verbs: connection closed")
	// ErrLost reports a memory node that could not be reached for longer than
	// Config.Patience. It is final: Flushes that returned nil before hold, all else is
	// unknown.
	ErrLost = errors.New("verbs: connection to the memory node lost")
	// ErrPoisoned reports that a flush failed on the memory node's medium. It is final for
	// writes and flushes; reads go on.
	ErrPoisoned = errors.New("verbs: the memory node's medium failed")
	// ErrUnsupported reports a program that was built without RDMA, or a machine without it.
	ErrUnsupported = errors.New("verbs: no RDMA here")
)

// A Method says how writes become persistent.
type Method uint8

const (
	// ByFlush is RDMA FLUSH with persistent placement, after the writes.
	ByFlush Method = iota + 1
	// ByRead is a READ after the writes: it pushes them out of the device and the bus. That
	// is enough where the memory node's operator says that what is there is persistent, or
	// where the medium is volatile anyway.
	ByRead
	// ByCPU is a SEND after the writes: the memory node's processor writes its caches back.
	ByCPU
	// ByMessage is for media that a device cannot reach: all bytes go in SENDs, and the
	// memory node's processor stores them (see Stream).
	ByMessage
)

func (m Method) String() string {
	switch m {
	case ByFlush:
		return "flush"
	case ByRead:
		return "read"
	case ByCPU:
		return "cpu"
	case ByMessage:
		return "message"
	}
	return "none"
}

// A Persistence is what an operator knows of the memory node, and no program can find out.
type Persistence uint8

const (
	// Auto trusts FLUSH, else the processor.
	Auto Persistence = iota
	// ADRNoDDIO declares that inbound writes do not go to the processor's caches (DDIO is
	// off), and that the memory controller's queues survive power loss (ADR).
	ADRNoDDIO
	// EADR declares that the processor's caches survive power loss.
	EADR
	// CPUOnly leaves persistence to the memory node's processor, whatever the device can.
	CPUOnly
)

// A Session is what a token opens: a part of a pool.
type Session interface {
	rdmacache.Memory
	// ReadOnly sessions reach memory for reading only.
	ReadOnly() bool
	// Done is closed when the session is over.
	Done() <-chan struct{}
}

// Sessions knows the sessions of a memory node.
type Sessions interface {
	// Take returns the session of a token that was given out for one connection; the token
	// is of no use any more. What it returns for one session is equal, as a map's key. An error that matches rdmacache.ErrFenced is final for the
	// client, any other one means that it may try again with another token.
	Take(token [32]byte) (Session, error)
}
