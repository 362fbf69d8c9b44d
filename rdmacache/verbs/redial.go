package verbs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// The quiet of a peer is counted in ticks; after stallTicks the connection is broken off.
// However long the patience, another connection is tried before long.
const (
	ticksPerPatience = 12
	stallTicks       = 4
	maxTick          = 5 * time.Second
	maxConnect       = 30 * time.Second
)

// run keeps a connection until the lane fails or is closed.
func (l *lane) run(ctx context.Context, k *link) {
	defer close(l.done)
	defer l.stop()
	for k != nil {
		since := l.watch(ctx, k)
		if ctx.Err() == nil {
			l.log.Info("RDMA connection broke", "memory_node", l.cfg.Address, "err", k.err)
		}
		err := k.q.Close()
		l.unlink(k, since, err)
		k = l.redial(ctx, k.err)
	}
}

// watch waits until k breaks, and breaks it when the peer lets requests wait without a
// sign of life. It returns since when nothing was heard.
func (l *lane) watch(ctx context.Context, k *link) time.Time {
	tick := time.NewTicker(min(l.cfg.Patience/ticksPerPatience, maxTick))
	defer tick.Stop()
	var (
		heard uint64
		quiet int
		since time.Time
	)
	for {
		select {
		case <-ctx.Done():
			l.mu.Lock()
			l.breakLink(k, ctx.Err())
			l.mu.Unlock()
			return time.Now()
		case <-k.broken:
			return time.Now()
		case now := <-tick.C:
			l.mu.Lock()
			if k.err == nil && k.outstanding() && !l.polling {
				l.look(k, 0) // perhaps nobody waits
			}
			if k.heard != heard || !k.outstanding() {
				heard, quiet = k.heard, 0
			} else if quiet++; quiet == 1 {
				since = now
			}
			if quiet > stallTicks {
				l.breakLink(k, fmt.Errorf("%w for %v", errStalled, now.Sub(since)))
			}
			l.mu.Unlock()
			if quiet > stallTicks {
				return since
			}
		}
	}
}

// unlink makes everything that was not answered something to post. The queue pair of k is
// destroyed, unless err says that it is not.
func (l *lane) unlink(k *link, since time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.posting || l.polling {
		l.sleep(context.Background()) // they have a queue that is closed
	}
	if err != nil {
		l.leaked = true
		l.failLocked(fmt.Errorf("%w: destroy a queue pair: %w", ErrLost, err))
	}
	l.alive = k.heard > 0
	waiting := l.reads
	l.reads = nil
	for _, r := range k.reads {
		switch {
		case r.abandoned:
			l.blocks.free(r.first, int(r.n))
		case l.err != nil:
			r.finish(l.err)
		case r.refused >= maxRefused:
			r.finish(fmt.Errorf("verbs: read %d bytes at %d: %w", r.n, r.off, k.err))
		default:
			l.reads = append(l.reads, r)
		}
	}
	l.reads = append(l.reads, waiting...)
	k.reads = nil
	for _, w := range l.waits {
		w.flying = false
	}
	l.changed()
	if l.err != nil {
		return
	}
	if l.troubled.IsZero() {
		l.troubled = since
	}
	if l.writeErr == nil {
		l.again = max(l.again, l.ring.posted)
		l.ring.rewind()
	}
}

// redial makes a new connection. nil if the lane is over.
func (l *lane) redial(ctx context.Context, why error) *link {
	l.mu.Lock()
	deadline := l.troubled.Add(l.cfg.Patience)
	l.mu.Unlock()
	for {
		switch {
		case final(why):
			l.fail(why)
			return nil
		case ctx.Err() != nil:
			return nil // whoever ended it said why
		case !time.Now().Before(deadline):
			l.log.Error("memory node lost", "memory_node", l.cfg.Address, "patience", l.cfg.Patience, "err", why)
			l.fail(fmt.Errorf("%w: not reached for %v: %w", ErrLost, l.cfg.Patience, why))
			return nil
		}
		if pause := l.nextPause(); pause > 0 {
			select {
			case <-time.After(pause/2 + rand.N(pause)): // many clients may have lost it together
			case <-ctx.Done():
			}
		}
		if ctx.Err() == nil && time.Now().Before(deadline) {
			attempt, cancel := context.WithDeadline(ctx, deadline)
			k, _, err := l.connect(attempt)
			cancel()
			if err == nil {
				l.relink(k)
				return k
			}
			why = err
		}
	}
}

// nextPause is how long to wait before the next try, and makes the one after it longer: up to
// a tenth of the patience, or a hundredth where the memory node answers. What breaks the
// connections then may be memory that it revokes again and again, which takes some luck.
func (l *lane) nextPause() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	pause := l.pause
	l.pause = min(max(2*pause, 5*time.Millisecond), l.cfg.Patience/10, 500*time.Millisecond)
	if l.alive {
		l.pause = min(l.pause, max(l.cfg.Patience/100, 5*time.Millisecond))
	}
	return pause
}

// relink begins to use k.
func (l *lane) relink(k *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.link, l.by = k, k.method
	l.stats.Connections++
	if len(l.reads)+len(l.waits) == 0 {
		l.troubled = time.Time{}
	}
	l.log.Info("RDMA connection is back", "memory_node", l.cfg.Address, "device", l.arena.device.Name(), "method", k.method)
	l.changed()
}

func (l *lane) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failLocked(err)
}

// connect makes one try at a connection. No queue pair of the lane is left.
func (l *lane) connect(ctx context.Context) (*link, *welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, min(max(l.cfg.Patience/3, minPatience), maxConnect))
	defer cancel()
	l.attempt++
	d := dialer{cfg: &l.cfg, hello: hello{stream: l.stream, attempt: l.attempt}, sends: queueSends, recvs: maxClientCredits}
	q, w, err := d.dial(ctx, l.arena)
	if err != nil {
		return nil, nil, err
	}
	k := &link{
		q: q, method: w.method, lkey: l.arena.mr.LKey(), limit: min(w.credits, maxClientCredits),
		made: time.Now(), broken: make(chan struct{}), receivable: maxClientCredits,
	}
	recvs := make([]Work, maxClientCredits)
	for i := range recvs {
		recvs[i] = Work{Op: OpRecv, ID: uint64(i), Local: l.arena.receive(i), LKey: k.lkey}
	}
	switch m := (rdmacache.Medium{Kind: w.kind, Volatile: w.volatile}); {
	case w.method == ByMessage:
		err = &refusal{codeMessage, "it chose messages"}
	case w.method == ByFlush && !d.hello.flushes:
		err = fmt.Errorf("%w: the device has no FLUSH, and is to use it", errProtocol)
	case l.stop != nil && (m != l.medium || w.readOnly != l.readOnly): // not the first
		err = errChanged
	default:
		err = q.PostRecv(recvs)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("verbs: connect to %s: %w", l.cfg.Address, err), q.Close())
	}
	return k, w, nil
}

// A dialer makes one try at a connection.
type dialer struct {
	cfg   *Config
	hello hello // but for the token and the device
	sends int
	recvs int
}

// dial connects a queue pair whose device reaches a.
func (d *dialer) dial(ctx context.Context, a *arena) (Queue, *welcome, error) {
	var err error
	if d.hello.token, err = d.cfg.Token(ctx); err != nil {
		return nil, nil, fmt.Errorf("verbs: token for a connection: %w", err)
	}
	route, err := d.cfg.NIC.Resolve(ctx, d.cfg.Address)
	if err != nil {
		return nil, nil, fmt.Errorf("verbs: %s: %w", d.cfg.Address, err)
	}
	defer func() { _ = route.Close() }() // does nothing to a connection
	device := route.Device()
	if err := a.register(device); err != nil {
		return nil, nil, err
	}
	d.hello.flushes = device.Flushes()
	cfg := QueueConfig{Sends: d.sends, Recvs: d.recvs, Inline: inlineSize, Flush: d.hello.flushes && !d.hello.wants}
	q, private, err := route.Connect(ctx, a.domain, cfg, d.hello.encode())
	if err != nil {
		return nil, nil, fmt.Errorf("verbs: connect to %s: %w", d.cfg.Address, rejection(err))
	}
	w := new(welcome)
	if err := w.decode(private); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("verbs: connect to %s: %w", d.cfg.Address, err), q.Close())
	}
	return q, w, nil
}

// rejection is what a failed Connect says.
func rejection(err error) error {
	var r *RejectedError
	if !errors.As(err, &r) {
		return err
	}
	if len(r.Private) == 0 {
		return fmt.Errorf("%w: nobody listens", errUnavailable)
	}
	why := new(refusal)
	if derr := why.decodeReject(r.Private); derr != nil {
		return fmt.Errorf("%w: %w", err, derr)
	}
	return why
}
