//go:build linux && cgo && rdma

package verbs

// #cgo noescape shim_post
// #cgo nocallback shim_post
// #cgo noescape shim_post_recv
// #cgo nocallback shim_post_recv
// #cgo noescape shim_poll
// #cgo nocallback shim_poll
// #cgo noescape shim_take
// #cgo nocallback shim_take
// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// What a completion is of goes with its ID, in the byte above: the device does not tell
// that of a failed one.
const (
	opShift = 56
	maxID   = 1<<opShift - 1
)

// An rdmaQueue is a queue pair with its completion queue. Its arrays are C's memory, one for
// each direction of each kind of call, so that nothing is allocated and no pointer of Go's
// gets into C.
type rdmaQueue struct {
	id    *cmID // immutable
	flush bool  // immutable
	sends []C.struct_shim_wr
	recvs []C.struct_shim_wr
	wcs   []C.struct_shim_wc

	// Of who polls.
	found  []C.struct_shim_wc // taken from the device, and not by the caller
	left   bool               // there may be more on the device, without an event
	broken bool               // by the peer, or an error

	crossings atomic.Uint64 // calls into C, by Post, PostRecv, Poll and Wait

	closing sync.Once
	closed  error
	life    sync.RWMutex // held for reading in C, for writing to destroy
	q       *C.struct_shim_queue
}

var _ Queue = (*rdmaQueue)(nil)

// newRDMAQueue makes a queue pair of an id, which it closes if it cannot.
func newRDMAQueue(l *cmID, dev *rdmaDevice, d Domain, cfg QueueConfig) (*rdmaQueue, error) {
	q, err := makeRDMAQueue(l, dev, d, cfg)
	if err != nil {
		l.close()
		return nil, err
	}
	if err := l.wait.add(int32(q.q.channel.fd), onCompletion); err != nil {
		return nil, errors.Join(err, q.Close())
	}
	return q, nil
}

func makeRDMAQueue(l *cmID, dev *rdmaDevice, d Domain, cfg QueueConfig) (*rdmaQueue, error) {
	dom, ok := d.(*rdmaDomain)
	if !ok || dom.device != dev {
		return nil, errors.New("domain of another device")
	}
	sends, recvs := max(cfg.Sends, 1), max(cfg.Recvs, 1)
	if sends > math.MaxInt16 || recvs > math.MaxInt16 || cfg.Inline < 0 || cfg.Inline > math.MaxInt16 {
		return nil, fmt.Errorf("queue pair of %d sends, %d receives and %d bytes inline", cfg.Sends, cfg.Recvs, cfg.Inline)
	}
	flush := C.int(0)
	if cfg.Flush {
		if !dev.Flushes() {
			return nil, fmt.Errorf("%w: %s has no persistent FLUSH", errors.ErrUnsupported, dev.name)
		}
		flush = 1
	}
	dom.mu.Lock()
	defer dom.mu.Unlock()
	if dom.pd == nil {
		return nil, errDomainClosed
	}
	q := &rdmaQueue{id: l, flush: cfg.Flush}
	err := failedC(C.shim_queue(l.id, dom.pd, C.uint32_t(sends), C.uint32_t(recvs), C.uint32_t(cfg.Inline), flush, &q.q))
	if err != nil {
		return nil, fmt.Errorf("queue pair of %d sends and %d receives: %w", sends, recvs, err)
	}
	q.sends = unsafe.Slice(q.q.wr, sends)
	q.recvs = unsafe.Slice(q.q.rr, recvs)
	q.wcs = unsafe.Slice(q.q.wc, C.SHIM_POLL)
	return q, nil
}

func (q *rdmaQueue) Post(work []Work) error {
	if len(work) == 0 {
		return nil
	}
	q.life.RLock()
	defer q.life.RUnlock()
	if q.q == nil {
		return fmt.Errorf("%w: post: closed", ErrBroken)
	}
	if len(work) > len(q.sends) {
		return fmt.Errorf("verbs: post %d requests to a queue pair of %d", len(work), len(q.sends))
	}
	for i := range work {
		w := &work[i]
		if w.Op < OpWrite || w.Op > OpSend || w.Op == OpFlush && !q.flush {
			return fmt.Errorf("verbs: post: operation %d: %w", w.Op, errors.ErrUnsupported)
		}
		if err := fillC(&q.sends[i], w); err != nil {
			return err
		}
	}
	q.crossings.Add(1)
	if err := failedC(C.shim_post(q.q, C.uint32_t(len(work)))); err != nil {
		return fmt.Errorf("%w: post: %w", ErrBroken, err)
	}
	return nil
}

func (q *rdmaQueue) PostRecv(recvs []Work) error {
	if len(recvs) == 0 {
		return nil
	}
	q.life.RLock()
	defer q.life.RUnlock()
	if q.q == nil {
		return fmt.Errorf("%w: post receive: closed", ErrBroken)
	}
	if len(recvs) > len(q.recvs) {
		return fmt.Errorf("verbs: post %d receives to a queue pair of %d", len(recvs), len(q.recvs))
	}
	for i := range recvs {
		if recvs[i].Op != OpRecv {
			return fmt.Errorf("verbs: post receive: operation %d: %w", recvs[i].Op, errors.ErrUnsupported)
		}
		if err := fillC(&q.recvs[i], &recvs[i]); err != nil {
			return err
		}
	}
	q.crossings.Add(1)
	if err := failedC(C.shim_post_recv(q.q, C.uint32_t(len(recvs)))); err != nil {
		return fmt.Errorf("%w: post receive: %w", ErrBroken, err)
	}
	return nil
}

// fillC makes a work request for C.
func fillC(out *C.struct_shim_wr, w *Work) error {
	size := uint64(len(w.Local))
	if w.Op == OpFlush {
		size = uint64(w.Length)
	}
	if size > math.MaxUint32 || w.ID > maxID {
		return fmt.Errorf("verbs: post: request %#x of %d bytes", w.ID, size)
	}
	*out = C.struct_shim_wr{
		id:     C.uint64_t(w.ID | uint64(w.Op)<<opShift),
		local:  addressOf(w.Local),
		remote: C.uint64_t(w.Remote),
		lkey:   C.uint32_t(w.LKey),
		rkey:   C.uint32_t(w.RKey),
		length: C.uint32_t(size),
		op:     C.uint8_t(w.Op),
	}
	if w.Signaled {
		out.signaled = 1
	}
	return nil
}

func (q *rdmaQueue) Poll(done []Completion, spin time.Duration) (int, error) {
	if len(q.found) == 0 {
		err := q.look(func() C.int { return C.shim_poll(q.q, C.int64_t(spin)) })
		if err != nil {
			return 0, err
		}
	}
	return q.hand(done)
}

// Wait looks at the completion queue only when there is an event, or may be more than were
// taken with the last one.
func (q *rdmaQueue) Wait(ctx context.Context, done []Completion) (int, error) {
	if len(q.found) > 0 || q.left || q.broken {
		if n, err := q.Poll(done, 0); n > 0 || err != nil {
			return n, err
		}
	}
	for {
		ready, err := q.id.wait.wait(ctx)
		if err != nil && ctx.Err() != nil {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrBroken, err)
		}
		if ready&onEvent != 0 {
			if err := q.takeEvent(); err != nil {
				return 0, err
			}
		}
		if ready&onCompletion != 0 || q.broken {
			if err := q.look(func() C.int { return C.shim_take(q.q) }); err != nil {
				return 0, err
			}
			if n, err := q.hand(done); n > 0 || err != nil {
				return n, err
			}
		}
	}
}

// look gets completions from the device by one call into C.
func (q *rdmaQueue) look(call func() C.int) error {
	q.life.RLock()
	defer q.life.RUnlock()
	if q.q == nil {
		return fmt.Errorf("%w: closed", ErrBroken)
	}
	q.crossings.Add(1)
	n := call()
	if err := failedC(n); err != nil {
		q.broken = true
		return fmt.Errorf("%w: poll: %w", ErrBroken, err)
	}
	q.found = q.wcs[:n]
	q.left = len(q.found) == len(q.wcs)
	return nil
}

// hand gives the caller what was found.
func (q *rdmaQueue) hand(done []Completion) (int, error) {
	n := min(len(done), len(q.found))
	for i, wc := range q.found[:n] {
		c := Completion{ID: uint64(wc.id) & maxID, Op: Op(wc.id >> opShift)}
		if wc.status != C.IBV_WC_SUCCESS {
			q.broken = true
			why := ErrBroken
			if wc.status == C.IBV_WC_REM_ACCESS_ERR || wc.status == C.IBV_WC_REM_OP_ERR {
				why = ErrRemote
			}
			c.Err = fmt.Errorf("%w: %s", why, C.GoString(C.ibv_wc_status_str(uint32(wc.status))))
		} else if c.Op == OpRecv {
			c.Bytes = int(wc.length)
		}
		done[i] = c
	}
	q.found = q.found[n:]
	if n == 0 && len(done) > 0 && q.broken {
		return 0, ErrBroken
	}
	return n, nil
}

// takeEvent looks whether the peer closed the connection.
func (q *rdmaQueue) takeEvent() error {
	q.life.RLock()
	defer q.life.RUnlock()
	if q.q == nil {
		return fmt.Errorf("%w: closed", ErrBroken)
	}
	ev, err := q.id.take()
	if err != nil {
		return fmt.Errorf("%w: connection manager: %w", ErrBroken, err)
	}
	if ev != nil && (ev.kind == C.RDMA_CM_EVENT_DISCONNECTED || ev.kind == C.RDMA_CM_EVENT_DEVICE_REMOVAL) {
		q.broken = true
	}
	return nil
}

// Crossings counts the calls into C so far, by Post, PostRecv, Poll and Wait.
func (q *rdmaQueue) Crossings() uint64 { return q.crossings.Load() }

func (q *rdmaQueue) Close() error {
	q.closing.Do(func() {
		q.id.wait.close() // ends a Wait
		q.life.Lock()
		defer q.life.Unlock()
		if err := failedC(C.shim_queue_destroy(q.q)); err != nil {
			q.closed = fmt.Errorf("verbs: close queue pair: %w", err)
		}
		q.q = nil
	})
	return q.closed
}
