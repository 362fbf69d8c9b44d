package conntest

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Fault is what happens to a connection when it has carried some bytes.
type Fault int

// The faults of a connection.
const (
	Cut   Fault = iota // both ends see it closed
	Late               // this end sees it closed; what it wrote last arrives after a while
	Stall              // no byte moves any more, in either direction
	Flip               // one bit changes
	Slow               // each call takes a millisecond
	faults
)

// A Break says which fault a connection has, and when.
type Break struct {
	Fault  Fault
	Writes int64 // bytes written by this end before it, -1: never
	Reads  int64 // and read
	Pieces bool  // calls move a part of what they could
}

// Lateness is how long a Late fault keeps bytes.
const Lateness = 15 * time.Millisecond

// errBroken is what the end sees that wraps a connection.
var errBroken = errors.New("conntest: connection broken")

// Broken returns nc with a fault. It belongs to the caller; nc is closed with it, or
// a little later.
func Broken(nc net.Conn, b Break, seed uint64) net.Conn {
	return &brokenConn{Conn: nc, b: b, stalled: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 5))}
}

// RandomBreak returns a fault somewhere in the next n bytes.
func RandomBreak(rng *rand.Rand, n int64) Break {
	b := Break{Fault: Fault(rng.IntN(int(faults))), Writes: rng.Int64N(n), Reads: -1, Pieces: rng.IntN(4) == 0}
	if rng.IntN(2) == 0 {
		b.Writes, b.Reads = -1, rng.Int64N(n)
	}
	return b
}

type brokenConn struct {
	net.Conn
	b       Break
	stalled chan struct{} // closed by Close
	close   sync.Once
	broken  atomic.Bool

	mu    sync.Mutex
	rng   *rand.Rand
	wrote int64
	read  int64
	late  bool
}

// piece is how much of n bytes a call moves.
func (c *brokenConn) piece(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n <= 1 || !c.b.Pieces {
		return n
	}
	return 1 + c.rng.IntN(n)
}

// reached tells where in the n bytes that follow at the fault is.
func reached(limit, at int64, n int) (int, bool) {
	if limit < 0 || at+int64(n) <= limit {
		return n, false
	}
	return int(max(0, limit-at)), true
}

// Write writes all of p, in pieces, up to the fault.
func (c *brokenConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		part := p[done : done+c.piece(len(p)-done)]
		n, here := reached(c.b.Writes, c.wrote, len(part))
		if c.broken.Load() && c.b.Fault != Flip && c.b.Fault != Slow {
			return done, c.fault()
		}
		if here && c.b.Fault == Late {
			c.mu.Lock()
			c.late = true
			c.mu.Unlock()
			rest := append([]byte(nil), p[done:]...)
			c.broken.Store(true)
			go func() { // the network has it, and nobody can call it back
				time.Sleep(Lateness)
				_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
				_, _ = c.Conn.Write(rest)
				_ = c.Conn.Close()
			}()
			return done, errBroken
		}
		if here {
			part = c.mangle(part, n)
		}
		m, err := c.Conn.Write(part)
		done += m
		c.wrote += int64(m)
		if err == nil && here && (c.b.Fault == Cut || c.b.Fault == Stall) {
			err = c.fault()
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Read reads up to the fault.
func (c *brokenConn) Read(p []byte) (int, error) {
	if c.broken.Load() && c.b.Fault != Flip && c.b.Fault != Slow {
		return 0, c.fault()
	}
	n, err := c.Conn.Read(p[:c.piece(len(p))])
	keep, here := reached(c.b.Reads, c.read, n)
	c.read += int64(n)
	if here {
		copy(p, c.mangle(p[:n], keep))
		if c.b.Fault != Flip && c.b.Fault != Slow {
			return keep, c.fault()
		}
	}
	return n, err
}

// mangle returns what becomes of p, of which n bytes are before the fault.
func (c *brokenConn) mangle(p []byte, n int) []byte {
	switch c.b.Fault {
	case Flip:
		if !c.broken.Swap(true) && n < len(p) {
			p = append([]byte(nil), p...)
			p[n] ^= 1 << (n % 8)
		}
		return p
	case Slow:
		c.broken.Store(true)
		time.Sleep(time.Millisecond)
		return p
	}
	return p[:n]
}

// fault does what the fault does to a call.
func (c *brokenConn) fault() error {
	c.broken.Store(true)
	if c.b.Fault == Stall {
		<-c.stalled
		return net.ErrClosed
	}
	if c.b.Fault == Cut {
		_ = c.Conn.Close()
	}
	return errBroken
}

// Close closes the connection, or leaves that to what is late.
func (c *brokenConn) Close() error {
	c.close.Do(func() { close(c.stalled) })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late {
		return nil
	}
	return c.Conn.Close()
}

// A Listener wraps each connection that it accepts.
type Listener struct {
	net.Listener
	Wrap func(net.Conn) net.Conn
}

// Accept returns the next connection, wrapped.
func (l *Listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.Wrap(nc), nil
}
