package verbs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

const (
	defaultPatience = 10 * time.Second
	minPatience     = 100 * time.Millisecond
	defaultWindow   = 8 << 20
	minWindow       = 8 << 10
	maxQueues       = 16
	// stripe is how many bytes of the pool go over one queue pair before those that go
	// over the next.
	stripe = 1 << 20
)

// A Config says how to reach a memory node.
type Config struct {
	NIC     NIC
	Address string // of the memory node, host:port
	// Token returns a token that is good for one connection, within ctx. An error that
	// matches rdmacache.ErrFenced is final.
	Token func(ctx context.Context) ([32]byte, error)
	// Patience is how long a broken connection is tried again before everything fails with
	// ErrLost: the lease. 0 means 10 s.
	Patience time.Duration
	// Window bounds the bytes of writes that no flush covers yet. Write waits where it is
	// full. They are registered memory, which is not swapped. 0 means 8 MiB.
	Window int64
	// Queues is how many queue pairs are used, each with its own Window / Queues and 4 MiB
	// to read into; at most 16, 0 means 1. More are of use where one is the limit, not the wire.
	Queues int
	Log    *slog.Logger // nil discards
}

func (cfg *Config) defaults() {
	if cfg.Patience <= 0 {
		cfg.Patience = defaultPatience
	}
	cfg.Patience = max(cfg.Patience, minPatience)
	if cfg.Window <= 0 {
		cfg.Window = defaultWindow
	}
	cfg.Window = min(cfg.Window, 1<<30)
	cfg.Queues = min(max(cfg.Queues, 1), maxQueues)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
}

// A Conn is a compute node's end. It is safe for concurrent use.
//
// It has one lane for each queue pair. Stripes of the pool take turns on them, so all
// that concerns one place goes over one queue pair, in order.
type Conn struct {
	lanes  []*lane // immutable, as the next
	medium rdmacache.Medium
}

var _ rdmacache.Conn = (*Conn)(nil)

// Dial makes the connections, and one try at each. ctx bounds that, not the Conn. An error
// that matches rdmacache.ErrFenced means that the session is over; ErrMessage that
// DialStream is to be used; ErrUnsupported that there is no RDMA here.
//
// The Conn belongs to the caller, who closes it.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	cfg.defaults()
	c := &Conn{}
	for range cfg.Queues {
		l, m, err := dialLane(ctx, cfg)
		if err == nil && len(c.lanes) > 0 && m != c.medium {
			err = errors.Join(errChanged, l.close())
		}
		if err != nil {
			_ = c.Close() // nothing was written
			return nil, err
		}
		c.lanes, c.medium = append(c.lanes, l), m
	}
	return c, nil
}

// Medium says what a flush promises.
func (c *Conn) Medium() rdmacache.Medium { return c.medium }

// Close ends the connection: every call, also those that wait, returns ErrClosed. It
// flushes nothing.
func (c *Conn) Close() error {
	errs := make([]error, len(c.lanes))
	var wg sync.WaitGroup
	for i, l := range c.lanes {
		wg.Go(func() { errs[i] = l.close() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// lane returns the lane of byte off, and how many of the n bytes from there are its.
func (c *Conn) lane(off int64, n int) (*lane, int) {
	if len(c.lanes) == 1 {
		return c.lanes[0], n
	}
	return c.lanes[off/stripe%int64(len(c.lanes))], int(min(int64(n), stripe-off%stripe))
}

// Write queues a copy of p for byte off of the pool. Reads see it, and the next Flush makes
// it persistent and says what became of it: until then any part of it may be there or not.
//
// Write waits while the window is full. region.ErrNoSpace if it stays full because the pool
// has no space for what it holds.
func (c *Conn) Write(ctx context.Context, p []byte, off int64) error {
	if err := checkPlace("write", p, off); err != nil {
		return err
	}
	return c.each(p, off, func(l *lane, p []byte, off int64) error {
		if err := l.write(ctx, p, off); err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
		}
		return nil
	})
}

// Read fills p from byte off of the pool. What it put there before an error is
// meaningless. region.ErrNoSpace if a write that it has to see found no space.
func (c *Conn) Read(ctx context.Context, p []byte, off int64) error {
	if err := checkPlace("read", p, off); err != nil {
		return err
	}
	return c.each(p, off, func(l *lane, p []byte, off int64) error {
		if err := l.read(ctx, p, off); err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		return nil
	})
}

// each calls fn for the part of each lane, in order.
func (c *Conn) each(p []byte, off int64, fn func(l *lane, p []byte, off int64) error) error {
	for len(p) > 0 {
		l, n := c.lane(off, len(p))
		if err := fn(l, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Flush makes all earlier writes persistent, as far as Medium promises. Calls that come
// while one is under way share the next. Where nothing was written since the last one it
// asks nobody.
//
// On region.ErrNoSpace some of them found no space. They are kept, and no later Flush
// succeeds without them. ErrPoisoned is final.
func (c *Conn) Flush(ctx context.Context) error {
	if len(c.lanes) == 1 {
		return flushError(c.lanes[0].commit(ctx))
	}
	waits := make([]*wait, len(c.lanes))
	for i, l := range c.lanes {
		l.mu.Lock()
		waits[i] = l.begin(ctx)
		l.mu.Unlock()
	}
	var err error
	for i, l := range c.lanes {
		l.mu.Lock()
		err = errors.Join(err, l.finish(ctx, waits[i]))
		l.mu.Unlock()
	}
	return flushError(err)
}

func flushError(err error) error {
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// Methods returns how writes become persistent, for each queue pair. A new connection may have
// another method, as the memory node may have been started with another declaration.
func (c *Conn) Methods() []Method {
	m := make([]Method, len(c.lanes))
	for i, l := range c.lanes {
		m[i] = l.method()
	}
	return m
}

// Stats returns what was done since Dial.
func (c *Conn) Stats() Stats {
	var s Stats
	for _, l := range c.lanes {
		s = s.plus(l.counted())
	}
	return s
}

// Stats counts what a Conn did. Post, PostRecv, Poll and Wait are one call into C each,
// and Posts are doorbells.
type Stats struct {
	Posts, RecvPosts, Polls, Waits uint64 // calls of the Queue

	Writes, Reads, Flushes, Messages uint64 // work requests that were posted, by Op; messages are SENDs
	BytesWritten, BytesRead          uint64 // of these, what is posted again included

	// RoundTrips counts what somebody had to wait for: reads, persistence steps (of a
	// flush and all who share it, one), and MAP messages.
	RoundTrips uint64
	// Commits counts the flushes that the memory node was asked for and that succeeded;
	// callers who share one count once.
	Commits uint64
	// Connections counts those that were made; 1 a queue pair if nothing ever broke.
	Connections uint64
}

// Crossings is the number of calls into C.
func (s Stats) Crossings() uint64 { return s.Posts + s.RecvPosts + s.Polls + s.Waits }

func (s Stats) plus(t Stats) Stats {
	return Stats{
		s.Posts + t.Posts, s.RecvPosts + t.RecvPosts, s.Polls + t.Polls, s.Waits + t.Waits,
		s.Writes + t.Writes, s.Reads + t.Reads, s.Flushes + t.Flushes, s.Messages + t.Messages,
		s.BytesWritten + t.BytesWritten, s.BytesRead + t.BytesRead,
		s.RoundTrips + t.RoundTrips, s.Commits + t.Commits, s.Connections + t.Connections,
	}
}

func checkPlace(op string, p []byte, off int64) error {
	if off < 0 || off > math.MaxInt64-int64(len(p)) {
		return fmt.Errorf("verbs: %s %d bytes at %d: no such place", op, len(p), off)
	}
	return nil
}
