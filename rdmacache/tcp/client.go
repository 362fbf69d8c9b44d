package tcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

const (
	defaultPatience = 10 * time.Second
	minPatience     = 100 * time.Millisecond
	// defaultWindow is small, so that what is written stays in the processor's
	// caches until it is sent. Where a flush waits for a device it is larger: a
	// flush is asked for when half of it is used.
	defaultWindow     = 4 << 20
	defaultSlowWindow = 32 << 20
)

// A Conn is a compute node's end. It is safe for concurrent use.
//
// A write is queued, sent, and covered by a FLUSH, in this order; writes are
// counted, and acked <= sent <= queued are numbers of them:
//
//	acked   a FLUSH covered them: they are forgotten
//	sent    they were sent over the present connection
//	queued  Write returned
//
// A new connection starts with sent = acked.
//
// run owns the goroutines: one that sends, one that receives, one that watches. Who
// flushes or reads sends itself where that does not block, and receives his answer
// where it comes soon.
//
// Lock order: turn of the link, then sendMu, then mu. mu is never held across the
// network; the others are, and mu of the readOp that is being received, under turn.
type Conn struct {
	patience time.Duration // immutable, as all up to sendMu
	window   int64
	cfg      Config
	log      *slog.Logger
	stream   uint64
	medium   rdmacache.Medium
	stop     context.CancelFunc
	done     chan struct{} // closed when run has ended
	wake     chan struct{} // one token: there is something to send

	sendMu sync.Mutex // held across a send
	batch  batch      // what is being sent

	mu       sync.Mutex
	link     *clientLink   // nil while there is none
	attempt  uint64        // connections tried; of run, after Dial, as the next
	pause    time.Duration // before the next try; grows until work gets done
	err      error         // of all calls, final
	writeErr error         // of writes and flushes, final
	writes   writeQueue
	reads    []*readOp          // to be sent, oldest first
	asked    map[uint64]*readOp // sent, by sequence
	waiting  []waiter           // for a FLUSH that is to be sent
	flying   []waiter           // for the FLUSH that was sent
	inFlight flight
	full     bool      // the last FLUSH found no space for its writes
	troubled time.Time // since when nothing was heard; zero: all is well
}

var _ rdmacache.Conn = (*Conn)(nil)

// A flight is the FLUSH that was sent, if sequence is not 0.
type flight struct {
	sequence uint64
	covers   uint64 // writes before this one
}

// A waiter waits for an answer.
type waiter struct {
	after uint64     // to a request that is sent after the writes before this one
	done  chan error // has room for the one answer
}

// Dial makes a connection, and one try at it. ctx bounds that, not the Conn. An error
// that matches rdmacache.ErrFenced means that the session is over.
//
// The Conn belongs to the caller, who closes it.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	c := &Conn{
		patience: max(cfg.Patience, minPatience), window: cfg.Window, cfg: cfg, log: cfg.Log,
		stream: rand.Uint64(), done: make(chan struct{}), wake: make(chan struct{}, 1),
		asked: make(map[uint64]*readOp),
	}
	if cfg.Patience <= 0 {
		c.patience = defaultPatience
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	dialCtx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	k, w, err := c.connect(dialCtx)
	if err != nil {
		return nil, err
	}
	c.medium = rdmacache.Medium{Kind: w.kind, Volatile: w.volatile}
	if c.window <= 0 {
		c.window = defaultWindow
		if slow(c.medium) {
			c.window = defaultSlowWindow
		}
	}
	c.link = k
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	go c.run(runCtx, k)
	return c, nil
}

// Medium says what a flush promises.
func (c *Conn) Medium() rdmacache.Medium { return c.medium }

// Close ends the connection: every call, also those that wait, returns ErrClosed.
// It flushes nothing.
func (c *Conn) Close() error {
	c.mu.Lock()
	closed := errors.Is(c.err, ErrClosed)
	if !closed {
		c.failLocked(ErrClosed)
		c.err = ErrClosed
	}
	c.mu.Unlock()
	<-c.done
	if closed {
		return ErrClosed
	}
	return nil
}

// Write queues a copy of p for byte off of the pool. Reads see it, and the next
// Flush makes it persistent and says what became of it: until then any part of it may
// be there or not.
//
// Write waits while the window is full. region.ErrNoSpace if it stays full because
// the pool has no space for what it holds.
func (c *Conn) Write(ctx context.Context, p []byte, off int64) error {
	if err := checkPlace("write", p, off); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), maxWrite)
		if err := c.queue(ctx, p[:n], off); err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// queue adds one WRITE.
func (c *Conn) queue(ctx context.Context, p []byte, off int64) error {
	w := newWrite(p, off)
	c.mu.Lock()
	for {
		err := c.writable(ctx)
		if err == nil && c.writes.fits(w, c.window) {
			break
		}
		if err == nil {
			err = c.waitForRoom(ctx)
		}
		if err != nil {
			c.mu.Unlock()
			w.free()
			return err
		}
	}
	c.writes.push(w)
	send := c.writes.unsent >= eagerBytes && !c.full
	if c.writes.unposted >= c.window/2 && !c.full {
		c.expect() // nobody waits, but there is room again before the window is full
		c.writes.unposted = 0
		send = true
	}
	c.mu.Unlock()
	if send {
		c.send()
	}
	return nil
}

// expect adds a wait for a FLUSH of all that is queued. mu is held.
func (c *Conn) expect() waiter {
	w := waiter{after: c.writes.queued, done: make(chan error, 1)}
	c.waiting = append(c.waiting, w)
	return w
}

// writable returns why nothing can be written. mu is held.
func (c *Conn) writable(ctx context.Context) error {
	switch {
	case c.err != nil:
		return c.err
	case c.writeErr != nil:
		return c.writeErr
	}
	return ctx.Err()
}

// waitForRoom waits for the next FLUSH to be answered. mu is held, but for the wait.
func (c *Conn) waitForRoom(ctx context.Context) error {
	var w waiter
	if c.inFlight.sequence != 0 {
		w.done = make(chan error, 1)
		c.flying = append(c.flying, w)
	} else {
		w = c.expect()
	}
	c.mu.Unlock()
	c.kick()
	err := w.wait(ctx)
	c.mu.Lock()
	return err
}

// Flush makes all earlier writes persistent, as far as Medium promises. Calls that
// come while one is under way share the next.
//
// On region.ErrNoSpace some of them found no space. They are kept, and no later
// Flush succeeds without them. ErrPoisoned is final.
func (c *Conn) Flush(ctx context.Context) error {
	c.mu.Lock()
	if err := c.writable(ctx); err != nil {
		c.mu.Unlock()
		return fmt.Errorf("flush: %w", err)
	}
	w := c.expect()
	c.mu.Unlock()
	c.send()
	c.lead(w.done)
	if err := w.wait(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

func (w waiter) wait(ctx context.Context) error {
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func checkPlace(op string, p []byte, off int64) error {
	if off < 0 || off > math.MaxInt64-int64(len(p)) {
		return fmt.Errorf("tcp: %s %d bytes at %d: no such place", op, len(p), off)
	}
	return nil
}

// kick makes the sender look.
func (c *Conn) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// failLocked makes err what every call returns from now on. mu is held.
func (c *Conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	c.failWritesLocked(err)
	for _, r := range c.reads {
		r.done <- err
	}
	for _, r := range c.asked {
		r.done <- err
	}
	c.reads, c.asked = nil, nil
	c.stop()
}

// failWritesLocked makes err what every write and flush returns from now on. mu is
// held.
func (c *Conn) failWritesLocked(err error) {
	if c.writeErr == nil {
		c.writeErr = err
	}
	c.writes.drop()
	c.answerLocked(&c.flying, err)
	c.answerLocked(&c.waiting, err)
}

// answerLocked tells waiters what they wait for. mu is held.
func (c *Conn) answerLocked(to *[]waiter, err error) {
	for _, w := range *to {
		w.done <- err
	}
	*to = nil
}
