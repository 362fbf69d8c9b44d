// Package inproc is the transport by function call: compute node and memory node
// share a process. It is the reference that other transports are tested against.
package inproc

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// ErrClosed is what every call on a closed Conn returns.
var ErrClosed = errors.New("inproc: connection closed")

// conn calls its handler. A write is visible when it returns; nothing is queued.
type conn struct {
	handler rdmacache.Handler // immutable
	closed  atomic.Bool       // stored once; publishes only itself
}

var _ rdmacache.Conn = (*conn)(nil)

// Dial returns a connection to h. Closing it does not close h.
func Dial(h rdmacache.Handler) rdmacache.Conn { return &conn{handler: h} }

// Read fills p from byte off of the pool. It honours ctx only on entry: the
// memory node does not let go of a call that it began.
func (c *conn) Read(ctx context.Context, p []byte, off int64) error {
	if err := c.check(ctx, "read"); err != nil {
		return err
	}
	return c.handler.ReadAt(p, off)
}

// Write stores p at byte off of the pool.
func (c *conn) Write(ctx context.Context, p []byte, off int64) error {
	if err := c.check(ctx, "write"); err != nil {
		return err
	}
	return c.handler.WriteAt(p, off)
}

// Flush makes all earlier writes persistent, as far as Medium promises.
func (c *conn) Flush(ctx context.Context) error {
	if err := c.check(ctx, "flush"); err != nil {
		return err
	}
	return c.handler.Flush()
}

// Medium says what a flush promises.
func (c *conn) Medium() rdmacache.Medium { return c.handler.Medium() }

// Close ends the connection: calls that begin later return ErrClosed. It does
// not wait for those under way, and flushes nothing.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return ErrClosed
	}
	return nil
}

func (c *conn) check(ctx context.Context, op string) error {
	if c.closed.Load() {
		return fmt.Errorf("%s: %w", op, ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
