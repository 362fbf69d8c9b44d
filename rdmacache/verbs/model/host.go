package model

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// errDead is what a host that crashed finds everywhere.
var errDead = errors.New("model: the host is dead")

// A Host is one life of a machine, or of the process that uses its device.
type Host struct {
	fabric *Fabric // immutable, as all up to off
	name   string
	ip     net.IP
	opts   HostOptions

	// off is stored once, and publishes only itself: nothing passes any more.
	off atomic.Bool

	// Guarded by Fabric.mu:
	dead      bool
	lockable  int     // bytes that may be registered for peers, see Limit
	locked    int     // bytes that are
	held      [2]bool // nothing passes to others, from others
	clip      func(verbs.Work) bool
	listeners map[int]*listener
	mrs       map[uint32]*mr // by key
	queues    map[*queue]struct{}
}

var (
	_ verbs.NIC    = (*Host)(nil)
	_ verbs.Device = (*Host)(nil)
)

// Host adds a host. One of the same name before it is forgotten by who connects from now
// on; it should have crashed.
func (f *Fabric) Host(name string, opts HostOptions) *Host {
	h := &Host{
		fabric: f, name: name, opts: opts,
		listeners: map[int]*listener{}, mrs: map[uint32]*mr{}, queues: map[*queue]struct{}{},
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	number, ok := f.numbers[name]
	if !ok {
		number = uint16(len(f.numbers) + 1)
		f.numbers[name] = number
	}
	h.ip = net.IPv4(10, 77, byte(number>>8), byte(number))
	f.hosts[name], f.hosts[h.ip.String()] = h, h
	return h
}

// Name is "model" and the host's name.
func (h *Host) Name() string { return "model-" + h.name }

// Flushes says that there is FLUSH.
func (h *Host) Flushes() bool { return h.opts.Flush }

// Hold makes nothing pass from the host to others, or to it, until it is called again.
func (h *Host) Hold(out, in bool) {
	f := h.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	h.held = [2]bool{out, in}
	for _, x := range f.hosts {
		x.advance()
	}
	h.advance()
}

// Limit makes that no more than n bytes of the host's memory are registered for access of peers
// from now on; 0: any number is. What is registered stays.
func (h *Host) Limit(n int) {
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	h.lockable = n
}

// Clip makes that work of the host's queues for which drop is true does not arrive any
// more, nor what comes after it in its queue. drop is called with Fabric's mutex held.
func (h *Host) Clip(drop func(verbs.Work) bool) {
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	h.clip = drop
}

// advance lets go on what waited.
func (h *Host) advance() {
	for q := range h.queues {
		q.advance()
	}
}

// passes tells whether something gets from one host to another now. mu is held.
func (h *Host) passes(to *Host) bool {
	return !h.off.Load() && !to.off.Load() && !h.held[0] && !to.held[1]
}

// Break puts the queue pairs of the host into the error state, and those of the peers,
// too, if both: else a peer finds out by itself.
func (h *Host) Break(both bool) {
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	for q := range h.queues {
		q.fail(nil, fmt.Errorf("%w: link error", verbs.ErrBroken))
		if both {
			q.peer.fail(nil, fmt.Errorf("%w: link error", verbs.ErrBroken))
		}
	}
}

// Crash is the end of the host, without a word. Its memory belongs to the caller again:
// nothing changes it after. What it had posted may still land.
func (h *Host) Crash() {
	f := h.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	h.dead = true
	for q := range h.queues {
		q.destroy(false)
	}
	for _, m := range h.mrs {
		m.close()
	}
	for _, l := range h.listeners {
		l.close()
	}
	if f.hosts[h.name] == h {
		delete(f.hosts, h.name)
		delete(f.hosts, h.ip.String())
	}
}

// PowerOff makes that nothing passes from the host or to it any more. It may be called at
// any time, by a Medium too, and does not wait. A Crash should follow.
func (h *Host) PowerOff() { h.off.Store(true) }
