package client

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// A helper is the goroutine that answers the daemon: it parks the participants,
// and finds and copies what they stored to. Everything here is its own.
type helper struct {
	r       *Region
	track   *tracker // nil: the daemon drains instead
	tag     uint64   // last barrier that is over, for entries of the ring
	scanned []uint64 // pages that a scan protected again and no copy was made of
	barrier barrier
}

// A barrier is one that the daemon asked for and has not released.
type barrier struct {
	n        uint64 // 0: none
	parking  bool   // participants are awaited
	deadline time.Time
	raised   time.Time
	done     wire.Done // what it cost so far
}

// run serves the connection until it ends, or ctx is done. Nobody waits for the
// region after it.
func (h *helper) run(ctx context.Context) {
	messages := make(chan wire.Message, 16)
	ended := make(chan error, 1)
	go func() {
		defer h.r.stop() // whoever takes from the ring has gone
		defer close(messages)
		for {
			m, err := h.r.session.receive()
			if err != nil {
				ended <- err
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	if err := h.serve(ctx, messages); err != nil {
		h.r.fail(fmt.Errorf("%w: %w", ErrGone, err))
	} else {
		h.r.fail(fmt.Errorf("%w: %w", ErrGone, <-ended))
	}
}

// serve returns nil at the end of the messages.
func (h *helper) serve(ctx context.Context, messages <-chan wire.Message) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if h.barrier.parking {
			timer.Reset(time.Until(h.barrier.deadline))
		}
		var err error
		select {
		case m, ok := <-messages:
			if !ok {
				return nil
			}
			err = h.handle(ctx, m)
		case <-h.r.threads.arrived:
			err = h.look(false)
		case <-timer.C:
			err = h.look(true)
		}
		if err != nil {
			return err
		}
	}
}

func (h *helper) handle(ctx context.Context, m wire.Message) error {
	switch m := m.(type) {
	case *wire.Due:
		return h.begin(ctx, m)
	case *wire.Drain:
		return h.r.session.send(&wire.Drained{N: m.N, Errno: h.drain()})
	case *wire.Go:
		return h.capture(ctx, m)
	case *wire.Release:
		h.release(m.N)
		h.r.threads.release(m.N)
	case *wire.Result:
		h.r.answered(m)
	case *wire.Committed:
		h.r.durable()
	case *wire.Lost:
		h.forget()
		h.r.lost()
	case *wire.Gone:
		return m.Errno
	default:
		return fmt.Errorf("unexpected %T: %w", m, wire.ErrMalformed)
	}
	return nil
}

// begin copies what it can while the participants run, then makes the barrier due.
func (h *helper) begin(ctx context.Context, m *wire.Due) error {
	now := time.Now()
	h.barrier = barrier{n: m.N, done: wire.Done{N: m.N}}
	patience := min(time.Duration(min(m.Timeout, uint64(time.Hour))), time.Hour)
	h.precopy(ctx, now.Add(patience/2))
	h.barrier.parking = true
	h.barrier.deadline = now.Add(patience)
	h.barrier.raised = time.Now()
	h.r.threads.raise(m.N)
	return h.look(false)
}

// look answers the daemon when all participants are parked, or when time is up.
func (h *helper) look(timeout bool) error {
	b := &h.barrier
	if !b.parking {
		return nil
	}
	late := h.r.threads.late(b.n)
	if late != nil && !timeout {
		return nil
	}
	b.parking = false
	if late != nil {
		return h.r.session.send(&wire.Late{N: b.n, TID: late.id, Name: shortName(late.name)})
	}
	if err := h.r.session.send(&wire.Ready{N: b.n}); err != nil {
		return err
	}
	// Nobody here stores any more; the other processes may still be parking.
	h.scan()
	return nil
}

// capture copies what was stored to before the barrier, and lets the participants
// go on if nobody else has to.
func (h *helper) capture(ctx context.Context, m *wire.Go) error {
	b := &h.barrier
	if m.N != b.n || b.parking {
		return fmt.Errorf("GO for barrier %d, which is not parked: %w", m.N, wire.ErrMalformed)
	}
	b.done.Errno = h.finish(ctx, m.Pages)
	b.done.Upto = h.r.ring.Head()
	b.done.PauseNs = uint64(time.Since(b.raised))
	done := b.done
	h.release(m.N)
	h.r.begin()
	if m.Sole && done.Errno == 0 {
		h.r.threads.release(m.N)
	}
	return h.r.session.send(&done)
}

// release ends the barrier for the helper itself.
func (h *helper) release(n uint64) {
	h.tag = max(h.tag, n)
	h.barrier.parking = false
}

// drain makes the kernel write every dirty page of the file.
func (h *helper) drain() unix.Errno {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	return errnoOf(unix.SyncFileRange(int(h.r.file.Fd()), 0, 0, all))
}

func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(unix.Errno); ok {
		return errno
	}
	return unix.EIO
}

// begin begins a new epoch: a barrier has sealed the last one.
func (r *Region) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open++
}

// durable takes note that what the last barrier sealed is committed. Only that
// barrier can be meant: the daemon says it before the next one.
func (r *Region) durable() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.committed = r.open - 1
	r.tell()
}

// lost takes note of a rollback to the last committed epoch.
func (r *Region) lost() {
	r.threads.losses.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rolledBack = append(r.rolledBack, span{r.committed + 1, r.open})
	r.open++
	r.tell()
}

// answered ends a request.
func (r *Region) answered(m *wire.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.requests[m.ID]
	if q == nil {
		return // its caller has gone
	}
	delete(r.requests, m.ID)
	q.result, q.committed = m, r.committed
	close(q.done)
}
