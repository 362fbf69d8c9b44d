package tcp

import (
	"context"
	"fmt"
	"sync"
)

// A readOp is a READ that somebody waits for.
type readOp struct {
	waiter
	off int64
	n   int

	mu sync.Mutex // held while bytes are received to p
	p  []byte     // nil once nobody waits any more
}

// abandon makes r one that nobody waits for, and nobody stores for. It waits where the
// bytes are just arriving.
func (r *readOp) abandon() {
	r.mu.Lock()
	r.p = nil
	r.mu.Unlock()
}

// abandoned says that nobody waits any more.
func (r *readOp) abandoned() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.p == nil
}

// receive stores the bytes that follow h.
func (r *readOp) receive(rx *receiver, h *header) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.p == nil {
		return rx.skip(h.follows())
	}
	sum, err := rx.into(r.p, 0)
	if err == nil && sum != h.sum {
		err = errCorrupt
	}
	return err
}

// Read fills p from byte off of the pool. What it put there before an error is
// meaningless.
func (c *Conn) Read(ctx context.Context, p []byte, off int64) error {
	if err := checkPlace("read", p, off); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), maxData)
		if err := c.ask(ctx, p[:n], off); err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// ask does one READ.
func (c *Conn) ask(ctx context.Context, p []byte, off int64) error {
	op := &readOp{waiter: waiter{done: make(chan error, 1)}, off: off, n: len(p), p: p}
	c.mu.Lock()
	err := c.err
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	op.after = c.writes.queued
	c.reads = append(c.reads, op)
	c.mu.Unlock()
	c.send()
	c.lead(op.done)
	err = op.wait(ctx)
	if err != nil {
		op.abandon() // nobody stores to p any more
	}
	return err
}
