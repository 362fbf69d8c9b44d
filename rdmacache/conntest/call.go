package conntest

import (
	"net"
	"slices"
	"sync"
	"time"
)

// A Call is one call of one end of a connection, and what happens at it.
type Call struct {
	CallFault
	Write bool // of Write, or of Read
	N     int  // its number, from 1 on; 0: none
}

// A CallFault is what happens at a call.
type CallFault struct {
	Name  string
	kind  callKind
	Delay time.Duration // of Delayed and Late
}

type callKind int

const (
	callCut callKind = iota + 1
	callShort
	callFlip
	callTwice
	callLate
	callDelayed
	callStall
)

// CallFaults are the faults of a call. A stream has no messages, and nothing below it
// delivers bytes in another order: what comes out of order comes over another connection,
// which Late is. What comes twice is either bytes of one connection, which Twice is, or all
// of a connection, which PlayAgain is.
func CallFaults() []CallFault {
	return []CallFault{
		{Name: "cut", kind: callCut},                                  // closed instead
		{Name: "short", kind: callShort},                              // a write takes a half and fails, a read returns a few bytes
		{Name: "flip", kind: callFlip},                                // one bit of it changes
		{Name: "twice", kind: callTwice},                              // its bytes come twice
		{Name: "late", kind: callLate, Delay: Lateness},               // fails; bytes, and the close, arrive later
		{Name: "delayed", kind: callDelayed, Delay: Lateness},         // takes its time
		{Name: "given up", kind: callDelayed, Delay: 6 * time.Second}, // as much as a client does not wait
		{Name: "stall", kind: callStall},                              // no byte moves any more, in either direction
	}
}

// Patient says that the fault takes more than milliseconds: it wants a clock that jumps.
func (f CallFault) Patient() bool { return f.kind == callStall || f.Delay > time.Second }

// A CallConn is a connection with a fault at one call. It is safe for concurrent use as far
// as one goroutine reads at a time, and one writes.
type CallConn struct {
	net.Conn
	call   Call
	closed chan struct{}
	hole   net.Conn // where calls stall until they are late, or it is closed
	close  sync.Once

	mu       sync.Mutex
	reads    int
	writes   int
	took     []byte // what Read returned
	gave     []byte // what Write took
	again    []byte // what Read has to return once more
	happened bool
	broken   bool // no call works any more
	late     bool // somebody else closes Conn
}

// AtCall returns nc with a fault. It belongs to the caller; nc is closed with it, or a
// little later.
func AtCall(nc net.Conn, call Call) *CallConn {
	hole, _ := net.Pipe()
	return &CallConn{Conn: nc, call: call, closed: make(chan struct{}), hole: hole}
}

// Disarm says whether the call was made. If not, nothing happens any more.
func (c *CallConn) Disarm() (happened bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.happened {
		c.call.N = 0
	}
	return c.happened
}

// Carried returns what this end received, and what it sent, be it late.
func (c *CallConn) Carried() (took, gave []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.took), slices.Clone(c.gave)
}

// begin counts a call, and does what its fault does before it. here says that more is to
// happen.
func (c *CallConn) begin(write bool) (here bool, err error) {
	c.mu.Lock()
	count := &c.reads
	if write {
		count = &c.writes
	}
	*count++
	here = c.call.N == *count && c.call.Write == write
	if here {
		c.happened = true
		c.broken = c.call.kind == callCut || c.call.kind == callLate || c.call.kind == callStall
		c.late = c.call.kind == callLate
	}
	broken := c.broken
	c.mu.Unlock()
	if !broken {
		if here && c.call.kind == callDelayed {
			select {
			case <-time.After(c.call.Delay):
			case <-c.closed:
			}
		}
		return here, nil
	}
	return here, c.fail(write)
}

// fail is what a call of a broken connection does.
func (c *CallConn) fail(write bool) (err error) {
	switch c.call.kind {
	case callStall:
		p := make([]byte, 1)
		if write {
			_, err = c.hole.Write(p)
		} else {
			_, err = c.hole.Read(p)
		}
		return err
	case callCut, callShort:
		_ = c.Conn.Close()
	}
	return errBroken
}

// Write writes p, unless the fault is here.
func (c *CallConn) Write(p []byte) (int, error) {
	here, err := c.begin(true)
	switch {
	case err != nil && here && c.call.kind == callLate:
		go c.finish(slices.Clone(p))
		return 0, err
	case err != nil:
		return 0, err
	case !here:
		return c.send(p)
	}
	switch c.call.kind {
	case callShort:
		c.mu.Lock()
		c.broken = true
		c.mu.Unlock()
		n, _ := c.send(p[:len(p)/2])
		return n, c.fail(true)
	case callFlip:
		p = slices.Clone(p)
		p[len(p)/2] ^= 1 << (len(p) % 8)
	case callTwice:
		if n, err := c.send(p); err != nil {
			return n, err
		}
	}
	return c.send(p)
}

// finish is what the network still does for a connection that this end believes to be gone:
// it delivers rest, and closes it.
func (c *CallConn) finish(rest []byte) {
	time.Sleep(c.call.Delay)
	_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.send(rest)
	_ = c.Conn.Close()
}

func (c *CallConn) send(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gave = append(c.gave, p[:n]...)
	return n, err
}

// Read reads, unless the fault is here.
func (c *CallConn) Read(p []byte) (int, error) {
	here, err := c.begin(false)
	if err != nil {
		if here && c.call.kind == callLate {
			go c.finish(nil)
		}
		return 0, err
	}
	if n := c.repeat(p); n > 0 {
		return n, nil
	}
	if here && c.call.kind == callShort {
		p = p[:min(len(p), 7)]
	}
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken && c.call.kind == callStall {
		c.mu.Unlock()
		err := c.fail(false)
		c.mu.Lock()
		return 0, err
	}
	c.took = append(c.took, p[:n]...)
	if here && n > 0 {
		switch c.call.kind {
		case callFlip:
			p[n/2] ^= 1 << (n % 8)
		case callTwice:
			c.again = slices.Clone(p[:n])
		}
	}
	return n, err
}

// repeat takes into p what comes once more.
func (c *CallConn) repeat(p []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := copy(p, c.again)
	c.again = c.again[n:]
	return n
}

// Close closes the connection, or leaves that to the network.
func (c *CallConn) Close() error {
	c.close.Do(func() {
		close(c.closed)
		_ = c.hole.Close()
	})
	c.mu.Lock()
	late := c.late
	c.mu.Unlock()
	if late {
		return nil
	}
	return c.Conn.Close()
}

// SetDeadline is that of reads and writes.
func (c *CallConn) SetDeadline(t time.Time) error {
	_ = c.hole.SetDeadline(t)
	return c.Conn.SetDeadline(t)
}

// SetReadDeadline is that of reads.
func (c *CallConn) SetReadDeadline(t time.Time) error {
	_ = c.hole.SetReadDeadline(t)
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline is that of writes.
func (c *CallConn) SetWriteDeadline(t time.Time) error {
	_ = c.hole.SetWriteDeadline(t)
	return c.Conn.SetWriteDeadline(t)
}

// PlayAgain sends over nc what another connection carried, and waits until the peer has
// closed it, or limit is over.
func PlayAgain(nc net.Conn, carried []byte, limit time.Duration) error {
	defer func() { _ = nc.Close() }()
	if err := nc.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	go func() { _, _ = nc.Write(carried) }() // as much as the peer takes
	for p := make([]byte, 4096); ; {
		if _, err := nc.Read(p); err != nil {
			if t, ok := err.(net.Error); ok && t.Timeout() {
				return err
			}
			return nil
		}
	}
}
