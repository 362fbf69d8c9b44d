package sim

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A conn is one end of a connection.
type conn struct {
	host          *host
	no            int // counts those of the network
	in, out       *pipe
	local, remote net.Addr
	server        bool
	record        int // of host.streams; negative: none
}

var _ net.Conn = (*conn)(nil)

// maxRecord bounds what is kept of a connection, to be sent once more.
const maxRecord = 1 << 20

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	if err != nil {
		return n, &net.OpError{Op: "read", Net: "sim", Err: err}
	}
	if c.server {
		// Whatever happens to the connection now, the thread has its bytes.
		if d := c.host.descheduled(); d > 0 {
			time.Sleep(d)
		}
	}
	return n, nil
}

func (c *conn) Write(b []byte) (int, error) {
	if err := c.in.usable(); err != nil {
		return 0, &net.OpError{Op: "write", Net: "sim", Err: err}
	}
	n, late := c.split(b)
	err := c.out.write(b[:n], c.host.net.delay())
	if err == nil && n < len(b) {
		err = c.out.write(b[n:], c.host.net.delay()+late)
	}
	if err != nil {
		// Who reads is told too, whatever passes: gRPC relies on that, and else tries to
		// write again and again.
		c.in.fail(err)
		return 0, &net.OpError{Op: "write", Net: "sim", Err: err}
	}
	if c.record >= 0 {
		c.host.net.mu.Lock()
		defer c.host.net.mu.Unlock()
		if s := c.host.streams[c.record]; len(s)+len(b) <= maxRecord {
			c.host.streams[c.record] = append(s, b...)
		}
	}
	return len(b), nil
}

// split is how many bytes of b arrive before the others, and how late these are.
func (c *conn) split(b []byte) (first int, late time.Duration) {
	n := c.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.host.clipped && c.record >= 0 && len(b) > flushSize && b[len(b)-flushSize] == flushKind {
		return len(b) - flushSize, time.Hour
	}
	if n.rng.IntN(16) == 0 {
		return n.rng.IntN(len(b) + 1), time.Duration(n.rng.IntN(20)) * time.Millisecond
	}
	return len(b), 0
}

// A FLUSH of docs/protocol.md, by which it is told from what comes before it.
const (
	flushSize = 32
	flushKind = 3
)

func (c *conn) Close() error {
	c.in.close()
	c.out.end()
	if !c.server {
		c.host.net.mu.Lock()
		defer c.host.net.mu.Unlock()
		delete(c.host.net.conns, c)
	}
	return nil
}

func (c *conn) LocalAddr() net.Addr                { return c.local }
func (c *conn) RemoteAddr() net.Addr               { return c.remote }
func (c *conn) SetDeadline(t time.Time) error      { c.in.setDeadline(t); return nil }
func (c *conn) SetReadDeadline(t time.Time) error  { c.in.setDeadline(t); return nil }
func (c *conn) SetWriteDeadline(_ time.Time) error { return nil }

// A pipe is one direction of a connection.
type pipe struct {
	host      *host
	direction int
	wake      chan struct{} // one token: the reader should look

	mu       sync.Mutex
	queue    []segment
	ended    bool  // the writer is gone; what is in the queue arrives
	err      error // nothing arrives any more
	closed   bool  // by the reader
	deadline time.Time
}

type segment struct {
	b  []byte
	at time.Time
}

func newPipe(h *host, direction int) *pipe {
	return &pipe{host: h, direction: direction, wake: make(chan struct{}, 1)}
}

func (p *pipe) set(fn func()) {
	p.mu.Lock()
	fn()
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pipe) end()                    { p.set(func() { p.ended = true }) }
func (p *pipe) close()                  { p.set(func() { p.closed = true }) }
func (p *pipe) setDeadline(t time.Time) { p.set(func() { p.deadline = t }) }

func (p *pipe) fail(err error) {
	p.set(func() {
		if p.err == nil {
			p.err, p.queue = err, nil
		}
	})
}

// usable returns why the end that reads from p is of no use.
func (p *pipe) usable() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	return p.err
}

func (p *pipe) write(b []byte, delay time.Duration) error {
	var err error
	p.set(func() {
		switch {
		case p.err != nil:
			err = p.err
		case p.ended || p.closed:
			err = syscall.EPIPE
		default:
			at := time.Now().Add(delay)
			if n := len(p.queue); n > 0 && p.queue[n-1].at.After(at) {
				at = p.queue[n-1].at
			}
			p.queue = append(p.queue, segment{append([]byte(nil), b...), at})
		}
	})
	return err
}

func (p *pipe) read(b []byte) (int, error) {
	for {
		stopped := p.host.stopped(p.direction)
		n, wait, err := p.take(b, stopped == nil)
		if n > 0 || err != nil {
			return n, err
		}
		if wait < 0 {
			select {
			case <-p.wake:
			case <-stopped:
			}
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-p.wake:
		case <-stopped:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// take takes what has arrived. wait is how long something may be expected, negative
// for ever.
func (p *pipe) take(b []byte, passes bool) (n int, wait time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	wait = -1
	if !p.deadline.IsZero() {
		wait = max(0, p.deadline.Sub(now))
	}
	switch {
	case p.closed:
		return 0, 0, net.ErrClosed
	case p.err != nil:
		return 0, 0, p.err
	case wait == 0:
		return 0, 0, os.ErrDeadlineExceeded
	case !passes || len(p.queue) == 0 && !p.ended:
		return 0, wait, nil
	case len(p.queue) == 0:
		return 0, 0, io.EOF
	}
	if early := p.queue[0].at.Sub(now); early > 0 {
		if wait < 0 || early < wait {
			wait = early
		}
		return 0, wait, nil
	}
	n = copy(b, p.queue[0].b)
	if p.queue[0].b = p.queue[0].b[n:]; len(p.queue[0].b) == 0 {
		p.queue = p.queue[1:]
	}
	return n, 0, nil
}
