// Package model is an RDMA stack in memory, for tests: a Fabric connects Hosts, each of
// which is a verbs.NIC. What a queue writes goes to the peer's Go slices.
//
// It keeps what reliable connections (RC) promise, and nothing more:
//
//   - work of one queue takes effect at the peer in the order in which it was posted, a
//     Read or Flush after the Writes before it;
//   - rkey, protection domain, access rights and bounds are checked. What does not pass
//     puts both queue pairs into the error state: it and all work after it fails;
//   - a Send waits for a Recv for a bounded time, a peer that does not answer is tried
//     for a bounded time;
//   - a write is visible when it has landed and persistent when a Flush of its queue and
//     place, or the host's processor, made it so (see Medium).
//
// With the zero Config there are no surprises: work is done when Post returns. Delay makes
// it take time; Rand makes the model hostile, which is still legal:
//
//   - a write is read from local memory when it lands, not when it was posted;
//   - it lands in pieces, whole aligned 8-byte words in any order, with others' work, the
//     end of a queue pair or of the power in between;
//   - a write may have landed and its completion say that it failed;
//   - what a queue pair had posted when it was destroyed, broke, or its host died, may land
//     up to Config.Late later, until the peer's queue pair is destroyed or the MR closed;
//   - the keys of closed MRs are used again for new ones.
//
// Time is that of package time, so a Fabric works in a bubble of testing/synctest. It has
// no goroutines but those of timers. One mutex guards all of it, and calls of Medium,
// Delay and Rand are made with that held.
package model

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// A Config is how a Fabric behaves. The zero value is fast and friendly.
type Config struct {
	// Rand makes it hostile. Nobody else uses it.
	Rand *rand.Rand
	// Delay is how long work takes to the peer; op is 0 for what comes back, and for
	// messages that make and end connections. nil: no time.
	Delay func(op verbs.Op, bytes int) time.Duration
	// Timeout is how long a peer is tried that does not answer, or has no Recv. 0: 1 s.
	Timeout time.Duration
	// Late is how long after the end of a queue pair its writes may land.
	Late time.Duration
}

// A Fabric connects hosts.
type Fabric struct {
	cfg Config // immutable

	mu       sync.Mutex        // guards the fields below, and all of hosts, MRs and queues
	hosts    map[string]*Host  // by name and by address
	numbers  map[string]uint16 // of all lives of a host, by name
	lastKey  uint32
	lastPort int
	oldKeys  []uint32
	stats    Stats
}

// Stats counts what happened on a Fabric.
type Stats struct {
	Writes, Reads, Flushes, Sends int // that took effect
	Torn                          int // writes that landed in pieces
	Late                          int // writes that landed after the end of their queue pair
	Refused                       int // accesses that did not pass
	Broken                        int // queue pairs that went into the error state
}

// New returns a fabric without hosts.
func New(cfg Config) *Fabric {
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Second
	}
	return &Fabric{cfg: cfg, hosts: map[string]*Host{}, numbers: map[string]uint16{}}
}

// Stats counts since New.
func (f *Fabric) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}

// A Medium is memory that outlives its host's power. Its methods do not call the Fabric,
// but for Host.PowerOff.
type Medium interface {
	// Bytes is where peers reach it; always the same as long as it is registered.
	Bytes() []byte
	// Store makes p the content at off, visible and not persistent.
	Store(p []byte, off int64) error
	ReadAt(p []byte, off int64) error
	// Persist makes n bytes from off persistent.
	Persist(off, n int64) error
}

// Plain is a Medium on which everything is persistent at once.
type Plain []byte

var _ Medium = Plain(nil)

// Bytes is p.
func (p Plain) Bytes() []byte { return p }

// Store stores b.
func (p Plain) Store(b []byte, off int64) error { copy(p[off:], b); return nil }

// ReadAt fills b.
func (p Plain) ReadAt(b []byte, off int64) error { copy(b, p[off:]); return nil }

// Persist does nothing.
func (p Plain) Persist(int64, int64) error { return nil }

// HostOptions say what a host's device and memory can do.
type HostOptions struct {
	Flush bool // the device has the FLUSH operation
	// ReadPersists says that a Read makes the Writes before it in its queue persistent:
	// the processor's caches are not in the way (DDIO off), or survive.
	ReadPersists bool
	// Media are persistent. Other memory can be registered too, but not for FLUSH.
	Media []Medium
}

// delay is how long something takes. mu is held.
func (f *Fabric) delay(op verbs.Op, bytes int) time.Duration {
	if f.cfg.Delay == nil {
		return 0
	}
	return f.cfg.Delay(op, bytes)
}

// hostile tells, once in n times, to do something that is legal and unpleasant. mu is held.
func (f *Fabric) hostile(n int) bool { return f.cfg.Rand != nil && f.cfg.Rand.IntN(n) == 0 }

// later runs fn after d, with mu held; at once if d is not positive. mu is held.
func (f *Fabric) later(d time.Duration, fn func()) {
	if d <= 0 {
		fn()
		return
	}
	time.AfterFunc(d, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		fn()
	})
}
