package sim

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

// The ports of the memory node.
const (
	controlPort = 7470
	dataPort    = 7471
)

// A network connects hosts with the memory node, as TCP does: bytes arrive in their
// order, late, or not at all because the connection breaks. A write never blocks.
type network struct {
	mu        sync.Mutex // guards the fields below, and the fields of every host
	rng       *rand.Rand
	listeners map[int]*listener
	conns     map[*conn]struct{} // the hosts' ends
	made      int                // counts connections
	plugged   map[string]*host   // those with a device, by name
	nodeNIC   *model.Host        // of the life of the memory node that runs

	slow atomic.Bool // devices hold writes back
	calm atomic.Bool // set once, when the last fault is over

	// Immutable once there are hosts:
	path   path
	fabric *model.Fabric // nil: no devices
}

func newNetwork(rng *rand.Rand) *network {
	return &network{
		rng: rng, listeners: make(map[int]*listener), conns: make(map[*conn]struct{}), plugged: make(map[string]*host),
	}
}

// A host is one life of a compute node on the network.
type host struct {
	net  *network
	name string
	nic  *model.Host // nil: it has none

	dead    bool
	held    [2]bool       // nothing passes, by direction
	clipped bool          // a flush behind something else does not arrive
	changed chan struct{} // closed when the fields above change
	// lagUntil is until when the memory node's threads that serve this host are
	// sometimes not scheduled for long, just after they received something.
	lagUntil time.Time
	lag      time.Duration
	streams  [][]byte // what went to the data port, by connection
}

// The directions of a host's bytes.
const (
	toNode = iota
	fromNode
)

func (n *network) newHost(name string) *host {
	return &host{net: n, name: name, changed: make(chan struct{})}
}

// newCompute adds a host that has a device where the schedule has them.
func (n *network) newCompute(name string) *host {
	h := n.newHost(name)
	if n.fabric == nil {
		return h
	}
	h.nic = n.fabric.Host(name, model.HostOptions{Flush: n.path == overFlush})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.plugged[name] = h
	return h
}

// change changes what passes.
func (h *host) change(fn func()) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	fn()
	close(h.changed)
	h.changed = make(chan struct{})
}

// hold makes nothing pass, in both directions or one, until it is called again.
func (h *host) hold(to, from bool) {
	h.change(func() { h.held = [2]bool{to, from} })
	if h.nic != nil {
		h.nic.Hold(to, from)
	}
}

// clip makes that flushes which come behind something else do not arrive any more.
func (h *host) clip() {
	h.change(func() { h.clipped = true })
	if h.nic != nil {
		h.nic.Clip(flushes)
	}
}

// die ends the host for good; all that it sent and that did not arrive is lost, or, of
// what its device had posted, may be.
func (h *host) die() {
	h.change(func() { h.dead = true })
	h.cut(true)
	if h.nic != nil {
		h.nic.Crash()
	}
}

// crash ends the host for good. What it sent may still arrive.
func (h *host) crash() {
	h.change(func() { h.dead = true })
	h.cut(h.net.coin())
	if h.nic != nil {
		h.nic.Crash()
	}
}

// cut breaks the connections of the host. What it sent arrives nevertheless, unless
// whole.
func (h *host) cut(whole bool) {
	for _, c := range h.net.connsOf(h) {
		c.in.fail(syscall.ECONNRESET)
		if whole {
			c.out.fail(syscall.ECONNRESET)
		} else {
			c.out.end()
		}
	}
	if h.nic != nil && !h.isDead() {
		h.nic.Break(whole)
	}
}

func (h *host) isDead() bool {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.dead
}

func (n *network) connsOf(h *host) (conns []*conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if h == nil || c.host == h {
			conns = append(conns, c)
		}
	}
	slices.SortFunc(conns, func(a, b *conn) int { return a.no - b.no })
	return conns
}

// down ends the memory node's part of every connection, and refuses others. What it
// sent may still arrive.
func (n *network) down() {
	n.mu.Lock()
	listeners := n.listeners
	n.listeners = make(map[int]*listener)
	if n.nodeNIC != nil {
		n.nodeNIC.PowerOff()
	}
	n.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close()
	}
	for _, c := range n.connsOf(nil) {
		c.out.fail(syscall.ECONNRESET)
		if n.coin() {
			c.in.fail(syscall.ECONNRESET)
		} else {
			c.in.end()
		}
	}
}

func (n *network) coin() bool { return n.intN(2) == 0 }

func (n *network) intN(limit int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rng.IntN(limit)
}

// delay is how long some bytes take. One in a hundred takes long: two such may cost a connection
// its greeting, so there are none where no fault is allowed.
func (n *network) delay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch k := n.rng.IntN(100); {
	case k < 90:
		return time.Duration(20+n.rng.IntN(200)) * time.Microsecond
	case k < 99 || n.calm.Load():
		return time.Duration(n.rng.IntN(5000)) * time.Microsecond
	}
	return time.Duration(n.rng.IntN(150)) * time.Millisecond
}

// descheduled is how long the memory node's thread that just received something from
// the host does nothing.
func (h *host) descheduled() time.Duration {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Now().After(h.lagUntil) || n.rng.IntN(3) > 0 {
		return 0
	}
	return time.Duration(1 + n.rng.Int64N(int64(h.lag)))
}

// stopped returns nil if bytes pass in a direction, or what is closed when that may
// have changed.
func (h *host) stopped(direction int) <-chan struct{} {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.held[direction] {
		return h.changed
	}
	return nil
}

// dial connects to the memory node, whatever its name.
func (h *host) dial(ctx context.Context, _, address string) (net.Conn, error) {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(2 * h.net.delay())
	defer timer.Stop()
	for arrived := timer.C; ; {
		select {
		case <-ctx.Done():
			return nil, &net.OpError{Op: "dial", Net: "sim", Err: ctx.Err()}
		case <-arrived:
			arrived = nil
		case <-firstOf(h.stopped(toNode), h.stopped(fromNode)):
		}
		if arrived == nil && h.stopped(toNode) == nil && h.stopped(fromNode) == nil {
			return h.connect(port)
		}
	}
}

func firstOf(a, b <-chan struct{}) <-chan struct{} {
	if a != nil {
		return a
	}
	return b
}

func (h *host) connect(port int) (net.Conn, error) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	refused := &net.OpError{Op: "dial", Net: "sim", Err: syscall.ECONNREFUSED}
	l := n.listeners[port]
	if h.dead || l == nil {
		return nil, refused
	}
	to, from := newPipe(h, toNode), newPipe(h, fromNode)
	client := &conn{host: h, in: from, out: to, local: address(1), remote: address(port), record: -1}
	server := &conn{host: h, in: to, out: from, local: address(port), remote: address(1), server: true, record: -1}
	if port == dataPort {
		client.record = len(h.streams)
		h.streams = append(h.streams, nil)
	}
	select {
	case l.queue <- server:
	default:
		return nil, refused
	}
	n.made++
	client.no = n.made
	n.conns[client] = struct{}{}
	return client, nil
}

func address(port int) net.Addr {
	return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: port}
}

// A listener is the memory node's, until it goes down.
type listener struct {
	port   int
	queue  chan *conn
	closed chan struct{}
	once   sync.Once
}

func (n *network) listen(port int) *listener {
	l := &listener{port: port, queue: make(chan *conn, 64), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[port] = l
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return address(l.port) }

// replay sends once more what a connection of the host to the data port sent, over a
// connection of its own.
func (h *host) replay(which int) {
	h.net.mu.Lock()
	var b []byte
	if len(h.streams) > 0 {
		b = h.streams[which%len(h.streams)]
	}
	h.net.mu.Unlock()
	nc, err := h.net.newHost(h.name).connect(dataPort)
	if err != nil {
		return
	}
	defer nc.Close()
	_ = nc.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = nc.Write(b)
	_, _ = io.Copy(io.Discard, nc) // until it is refused
}
