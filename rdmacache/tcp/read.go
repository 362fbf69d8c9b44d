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

	mu sync.Mutex
	p  []byte // nil once nobody waits any more
}

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

// finish hands the bytes over.
func (r *readOp) finish(data []byte) {
	r.mu.Lock()
	copy(r.p, data)
	r.mu.Unlock()
	r.done <- nil
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
	err = op.wait(ctx)
	if err != nil {
		op.abandon() // nobody stores to p any more
	}
	return err
}
