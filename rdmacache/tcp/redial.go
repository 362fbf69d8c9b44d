package tcp

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// A clientLink is one connection of a Conn.
type clientLink struct {
	nc      net.Conn
	raw     syscall.RawConn // of a direct connection; nil where bytes are not sent as they are
	seq     uint64          // of the last request; mu of the Conn guards it
	resumed chan struct{}   // one token: the goroutine of receive is to go on
	broken  chan struct{}   // closed when it is of no use any more
	once    sync.Once
	err     error // why; set before broken is closed

	turn sync.Mutex // to receive; held across it
	rx   *receiver
}

// resume makes the goroutine of receive take its turn.
func (k *clientLink) resume() {
	select {
	case k.resumed <- struct{}{}:
	default:
	}
}

func (k *clientLink) fail(err error) {
	k.once.Do(func() {
		k.err = err
		close(k.broken)
		_ = k.nc.Close()
	})
}

// The quiet of a peer is counted in ticks of an interval in which it has to show
// signs of life; after stallTicks the connection is cut. However long the patience, another
// connection is tried before long.
const (
	ticksPerPatience = 12
	stallTicks       = 4
	maxTick          = 5 * time.Second
	maxConnect       = 30 * time.Second
)

func (c *Conn) aliveInterval() time.Duration {
	return min(max(c.patience/ticksPerPatience, minAlive), maxTick)
}

// run keeps a connection until the Conn fails or is closed.
func (c *Conn) run(ctx context.Context, k *clientLink) {
	defer close(c.done)
	defer c.stop()
	for k != nil {
		var workers sync.WaitGroup
		workers.Go(func() { k.fail(c.receive(k)) })
		workers.Go(func() { c.pump(ctx, k) })
		since := c.watch(ctx, k)
		workers.Wait()
		k.turn.Lock() // for good: an answer that still arrived would be taken for another's
		if ctx.Err() == nil {
			c.log.Info("data connection broke", "err", k.err)
		}
		c.unlink(since)
		k = c.redial(ctx, k.err)
	}
}

// watch waits until k breaks, and breaks it when the peer lets requests wait without
// a sign of life. It returns since when nothing was heard.
func (c *Conn) watch(ctx context.Context, k *clientLink) time.Time {
	tick := time.NewTicker(c.aliveInterval())
	defer tick.Stop()
	var (
		heard int64
		quiet int
		since time.Time
	)
	for {
		select {
		case <-ctx.Done():
			k.fail(ctx.Err())
			return time.Now()
		case <-k.broken:
			return time.Now()
		case now := <-tick.C:
			h := k.rx.heard.Load()
			if h == heard {
				k.resume() // to hear of the connection's end when nobody waits
			}
			if h != heard || !c.outstanding() {
				heard, quiet = h, 0
				continue
			}
			if quiet++; quiet == 1 {
				since = now
			}
			if quiet > stallTicks {
				k.fail(fmt.Errorf("%w for %v", errStalled, now.Sub(since)))
				return since
			}
		}
	}
}

// outstanding says that somebody waits for an answer.
func (c *Conn) outstanding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outstandingLocked()
}

func (c *Conn) outstandingLocked() bool {
	return len(c.asked)+len(c.reads)+len(c.waiting) > 0 || c.inFlight.sequence != 0
}

// unlink makes everything that was not answered something to send.
func (c *Conn) unlink(since time.Time) {
	c.sendMu.Lock() // nobody sends from the batch any more
	defer c.sendMu.Unlock()
	c.batch.reset()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link = nil
	if c.err != nil {
		return
	}
	if c.troubled.IsZero() {
		c.troubled = since
	}
	c.writes.rewind()
	for _, r := range c.asked {
		c.reads = append(c.reads, r)
	}
	clear(c.asked)
	c.waiting = append(c.flying, c.waiting...)
	c.flying, c.inFlight = nil, flight{}
}

// redial makes a new connection. nil if the Conn is over.
func (c *Conn) redial(ctx context.Context, why error) *clientLink {
	c.mu.Lock()
	deadline := c.troubled.Add(c.patience)
	c.mu.Unlock()
	for {
		switch {
		case final(why):
			c.fail(why)
			return nil
		case ctx.Err() != nil:
			return nil // whoever ended it said why
		case !time.Now().Before(deadline):
			c.log.Error("memory node lost", "patience", c.patience, "err", why)
			c.fail(fmt.Errorf("%w: not reached for %v: %w", ErrLost, c.patience, why))
			return nil
		}
		if pause := c.nextPause(); pause > 0 {
			select {
			case <-time.After(pause/2 + rand.N(pause)): // many clients may have lost it together
			case <-ctx.Done():
			}
		}
		if ctx.Err() == nil && time.Now().Before(deadline) {
			attempt, cancel := context.WithDeadline(ctx, deadline)
			k, _, err := c.connect(attempt)
			cancel()
			if err == nil {
				c.relink(k)
				return k
			}
			why = err
		}
	}
}

// nextPause is how long to wait before the next try, and makes the one after it longer: up to
// a tenth of the patience.
func (c *Conn) nextPause() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	pause := c.pause
	c.pause = min(max(2*pause, 5*time.Millisecond), c.patience/10, 500*time.Millisecond)
	return pause
}

// relink begins to use k.
func (c *Conn) relink(k *clientLink) {
	c.mu.Lock()
	c.link = k
	if !c.outstandingLocked() {
		c.troubled = time.Time{}
	}
	c.mu.Unlock()
	c.log.Info("data connection is back", "peer", k.nc.RemoteAddr())
	c.kick()
}

func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

// connect makes one try at a connection.
func (c *Conn) connect(ctx context.Context) (*clientLink, *welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, min(max(c.patience/3, minPatience), maxConnect))
	defer cancel()
	nc, err := c.cfg.Connect(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("tcp: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	c.attempt++
	w, err := greet(nc, hello{token: c.cfg.Token, stream: c.stream, attempt: c.attempt, alive: c.aliveInterval()})
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = nc.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return nil, nil, fmt.Errorf("tcp: greet the memory node: %w", err)
	}
	d := &direct{Conn: nc}
	d.detach(c.patience)
	return &clientLink{
		nc: d, raw: d.raw, rx: newReceiver(d), resumed: make(chan struct{}, 1), broken: make(chan struct{}),
	}, w, nil
}

// greet exchanges HELLO and WELCOME.
func greet(nc net.Conn, h hello) (*welcome, error) {
	if _, err := nc.Write(h.encode()); err != nil {
		return nil, err
	}
	b := make([]byte, welcomeSize)
	if _, err := io.ReadFull(nc, b); err != nil {
		return nil, err
	}
	w := new(welcome)
	if err := w.decode(b); err != nil {
		return nil, err
	}
	if w.code != codeOK {
		return nil, &refusal{w.code, w.text}
	}
	return w, nil
}
