package verbs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// The interface of an RDMA stack, as much of it as this package uses: Open returns
// rdma-core's, package model has one in memory. The words are those of libibverbs.
//
// An object belongs to who made it, and is closed after what was made of it: queues and
// MRs before their domain. All but Queue are safe for concurrent use.

// ErrBroken reports a queue pair that is of no use any more: the peer is gone, refused
// what it was asked, or closed it.
var ErrBroken = errors.New("verbs: queue pair broken")

// ErrRemote reports a Work that the peer's device refused or failed: the memory that it
// names is not there for it, or faults. It matches ErrBroken, too.
var ErrRemote = fmt.Errorf("%w: the peer's device failed the request", ErrBroken)

// A RejectedError is the peer's answer to Connect if it is not one.
type RejectedError struct {
	Private []byte // of the peer, up to MaxReject bytes; empty if nobody listens
}

func (e *RejectedError) Error() string { return "verbs: connection rejected" }

// What fits into the messages that make a connection, in bytes (rdma_cm(7), RDMA_PS_TCP).
// Shorter ones may arrive with zeros behind them: the messages have room for that many.
const (
	MaxHello   = 56
	MaxWelcome = 196
	MaxReject  = 148
)

// A NIC is the RDMA devices of a host.
type NIC interface {
	// Resolve finds the device that leads to address, host:port.
	Resolve(ctx context.Context, address string) (Route, error)
	// Listen takes connection requests. An empty host stands for all devices.
	Listen(address string) (Listener, error)
}

// A Route is a way to a peer that is not connected yet.
type Route interface {
	Device() Device
	// Connect makes a queue pair in d, a domain of Device, and connects it. private
	// goes to the peer, welcome comes from it. It gives up when ctx is done. The error
	// is a *RejectedError if the peer does not want it.
	Connect(ctx context.Context, d Domain, cfg QueueConfig, private []byte) (q Queue, welcome []byte, err error)
	// Close gives up a route that was not connected. After Connect it does nothing.
	Close() error
}

// A Listener takes connection requests.
type Listener interface {
	Addr() net.Addr
	// Accept returns the next request. An error that matches net.ErrClosed after Close.
	Accept() (Request, error)
	Close() error
}

// A Request is a peer that wants to connect. It is answered once, or closed.
type Request interface {
	Device() Device
	Peer() string // address, for people
	Private() []byte
	// Accept makes a queue pair in d and answers with welcome. recvs are posted before.
	Accept(ctx context.Context, d Domain, cfg QueueConfig, recvs []Work, welcome []byte) (Queue, error)
	Reject(private []byte) error
}

// A Device is one RDMA device, the same value as long as it is the same. One that was reset,
// or taken out and put back, is another.
type Device interface {
	Name() string
	// Flushes says that the device has the FLUSH operation.
	Flushes() bool
	NewDomain() (Domain, error)
}

// A Domain is a protection domain: queue pairs reach MRs of their own domain only.
type Domain interface {
	// Register makes memory reachable. mem is not on the Go heap, and stays mapped until
	// the MR is closed. An error that matches errors.ErrUnsupported says that this memory
	// cannot be registered with such access.
	Register(mem []byte, access Access) (MR, error)
	Close() error
}

// An Access says what peers may do with an MR. Its owner may read, write, and READ into it.
type Access uint8

// The accesses of peers.
const (
	RemoteRead Access = 1 << iota
	RemoteWrite
	RemoteFlush // FLUSH with persistent placement: only persistent memory has it
)

// An MR is registered memory.
type MR interface {
	LKey() uint32
	RKey() uint32
	// Address is that of the first byte, as peers name it.
	Address() uint64
	// Close deregisters the memory: when it returned nothing that arrives changes it.
	Close() error
}

// An Op is what a Work does.
type Op uint8

// The operations. All of one queue pair take effect at the peer in the order in which
// they were posted; a Read or Flush after the Writes before it.
const (
	OpWrite Op = iota + 1 // Local goes to Remote
	OpRead                // Remote comes to Local
	OpFlush               // Length bytes at Remote become persistent
	OpSend                // Local goes to a Recv of the peer
	OpRecv                // takes a Send of the peer
)

// A Work is a work request.
type Work struct {
	Op       Op
	Signaled bool   // its success makes a Completion; failure does in any case
	ID       uint64 // of that Completion, below 1<<56
	Local    []byte // in the MR of LKey
	LKey     uint32
	RKey     uint32
	Remote   uint64
	Length   uint32 // of a Flush; Local says that of the others
}

// A Completion tells that a Work is done, and all posted before it to the same queue.
type Completion struct {
	ID    uint64
	Op    Op
	Bytes int   // received
	Err   error // nil: success; else the queue pair is broken
}

// A QueueConfig says how a queue pair is made.
type QueueConfig struct {
	Sends  int // work requests that are posted and not done, at most; a Queue has at least that
	Recvs  int
	Inline int  // bytes of a Write or Send that the device may take along; a wish
	Flush  bool // OpFlush is used; Device.Flushes has to be true
}

// A Queue is a connected queue pair with its completion queue. Post may be called by one
// goroutine at a time, and Poll and Wait by one; Close by any.
type Queue interface {
	// Post hands over work by one doorbell, and one call into C: no more than
	// QueueConfig.Sends of sends and reads may be outstanding. The memory of Local
	// belongs to the device until the completion. An error breaks the queue pair.
	Post(work []Work) error
	// PostRecv hands over memory for what the peer sends.
	PostRecv(recvs []Work) error
	// Poll returns completions that are there, looking for them as long as spin, by one
	// call into C.
	Poll(done []Completion, spin time.Duration) (int, error)
	// Wait waits until there may be completions, and takes them as Poll does, by one call
	// into C. It returns none when ctx is done, or an error that matches ErrBroken when
	// the peer closed the connection and no completion is left.
	Wait(ctx context.Context, done []Completion) (int, error)
	// Close destroys the queue pair and then its completion queue. When it returned
	// nothing of it touches local memory. A Wait under way returns ErrBroken.
	Close() error
}
