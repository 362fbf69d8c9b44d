//go:build linux && cgo && rdma

package verbs

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"
)

// A cmID is an identifier of the connection manager, with an event channel of its own.
// Whoever has it closes it, or makes a queue of it.
type cmID struct {
	id   *C.struct_rdma_cm_id
	wait *fdWaiter
}

func newID() (*cmID, error) {
	var id *C.struct_rdma_cm_id
	if err := failedC(C.shim_id(&id)); err != nil {
		return nil, err
	}
	return idOf(id)
}

// idOf takes id over, and destroys it if that fails.
func idOf(id *C.struct_rdma_cm_id) (*cmID, error) {
	w, err := newFDWaiter()
	if err != nil {
		C.shim_id_destroy(id)
		return nil, err
	}
	if err := w.add(int32(id.channel.fd), onEvent); err != nil {
		w.close()
		C.shim_id_destroy(id)
		return nil, err
	}
	return &cmID{id: id, wait: w}, nil
}

func (l *cmID) close() {
	l.wait.close()
	C.shim_id_destroy(l.id)
}

func (l *cmID) local() netip.AddrPort {
	var a C.struct_shim_address
	C.shim_local(l.id, &a)
	return fromC(a)
}

// next waits for the next event.
func (l *cmID) next(ctx context.Context) (*cmEvent, error) {
	for {
		if _, err := l.wait.wait(ctx); err != nil {
			return nil, err
		}
		ev, err := l.take()
		if ev != nil || err != nil {
			return ev, err
		}
	}
}

// take returns the next event if there is one.
func (l *cmID) take() (*cmEvent, error) {
	var ev C.struct_shim_event
	n := C.shim_event(l.id.channel, &ev)
	if n <= 0 {
		return nil, failedC(n)
	}
	return &cmEvent{
		kind:    uint32(ev.event),
		status:  int(ev.status),
		id:      ev.id,
		private: C.GoBytes(unsafe.Pointer(&ev.private_data[0]), C.int(ev.private_size)),
	}, nil
}

// expect waits for an event that has to be of this kind.
func (l *cmID) expect(ctx context.Context, kind uint32) error {
	ev, err := l.next(ctx)
	if err != nil {
		return err
	}
	return ev.is(kind)
}

// A cmEvent is what the connection manager tells of an id.
type cmEvent struct {
	kind    uint32 // RDMA_CM_EVENT_*
	status  int    // a negative errno, or why the peer rejects
	id      *C.struct_rdma_cm_id
	private []byte
}

// Why a peer rejects (InfiniBand Architecture Specification 1, 12.6.7.2).
const (
	nobodyListens = 8
	byPeer        = 28
)

// is returns the error that an event of another kind is.
func (e *cmEvent) is(kind uint32) error {
	if e.kind == kind {
		return nil
	}
	if e.kind == C.RDMA_CM_EVENT_REJECTED {
		switch {
		case e.status == byPeer, e.status == -int(syscall.ECONNREFUSED): // the latter by iWARP
			return &RejectedError{Private: e.private}
		case e.status == nobodyListens:
			return &RejectedError{}
		}
	}
	what := C.GoString(C.rdma_event_str(e.kind))
	if e.status < 0 {
		return fmt.Errorf("%s: %w", what, syscall.Errno(-e.status))
	}
	return fmt.Errorf("%s: status %d", what, e.status)
}

// An rdmaRoute is an id whose peer is known.
type rdmaRoute struct {
	device *rdmaDevice // immutable

	mu sync.Mutex // guards what follows
	id *cmID      // nil when it is closed, or was taken by Connect
}

var _ Route = (*rdmaRoute)(nil)

func (r *rdmaRoute) Device() Device { return r.device }

func (r *rdmaRoute) take() *cmID {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.id
	r.id = nil
	return l
}

func (r *rdmaRoute) Connect(ctx context.Context, d Domain, cfg QueueConfig, hello []byte) (Queue, []byte, error) {
	l := r.take()
	if l == nil {
		return nil, nil, fmt.Errorf("verbs: connect: %w", net.ErrClosed)
	}
	q, err := newRDMAQueue(l, r.device, d, cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("verbs: connect: %w", err)
	}
	welcome, err := q.connect(ctx, hello)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("verbs: connect: %w", err), q.Close())
	}
	return q, welcome, nil
}

func (q *rdmaQueue) connect(ctx context.Context, hello []byte) (welcome []byte, err error) {
	err = crossPrivate(hello, MaxHello, func(p unsafe.Pointer, size C.uint8_t) C.int { return C.shim_connect(q.id.id, p, size) })
	if err != nil {
		return nil, err
	}
	ev, err := q.id.next(ctx)
	if err != nil {
		return nil, err
	}
	return ev.private, ev.is(C.RDMA_CM_EVENT_ESTABLISHED)
}

func (r *rdmaRoute) Close() error {
	if l := r.take(); l != nil {
		l.close()
	}
	return nil
}

// crossPrivate passes private data to one call of C.
func crossPrivate(p []byte, limit int, call func(p unsafe.Pointer, size C.uint8_t) C.int) error {
	var buf [MaxWelcome]byte // p may lie beside Go pointers, which cgo forbids
	if len(p) > min(limit, len(buf)) {
		return fmt.Errorf("%d bytes of private data", len(p))
	}
	copy(buf[:], p)
	return failedC(call(unsafe.Pointer(&buf), C.uint8_t(len(p))))
}

// An rdmaListener is an id that peers ask for.
type rdmaListener struct {
	nic  *rdmaNIC
	addr net.Addr

	closing sync.Once
	mu      sync.Mutex // held by Accept, and to close; guards what follows
	id      *cmID
	closed  bool
}

var _ Listener = (*rdmaListener)(nil)

func (l *rdmaListener) Addr() net.Addr { return l.addr }

func (l *rdmaListener) Accept() (Request, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.closed {
			return nil, fmt.Errorf("verbs: accept: %w", net.ErrClosed)
		}
		ev, err := l.id.next(context.Background())
		if err != nil {
			return nil, fmt.Errorf("verbs: accept: %w", err)
		}
		if ev.kind != C.RDMA_CM_EVENT_CONNECT_REQUEST || ev.id == nil {
			continue // of a device that is gone, or descriptors are short
		}
		peer, err := idOf(ev.id)
		if err != nil {
			continue // the same; the peer is rejected
		}
		device, err := l.nic.device(ev.id.verbs)
		if err != nil {
			peer.close() // it is rejected
			return nil, err
		}
		return &rdmaRequest{id: peer, device: device, private: ev.private}, nil
	}
}

// Close ends an Accept under way.
func (l *rdmaListener) Close() error {
	l.closing.Do(func() {
		l.id.wait.close()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.closed = true
		l.id.close()
	})
	return nil
}

// An rdmaRequest is the id of a peer that asks.
type rdmaRequest struct {
	device  *rdmaDevice // immutable
	private []byte      // immutable

	mu sync.Mutex // guards what follows
	id *cmID      // nil when it was answered
}

var _ Request = (*rdmaRequest)(nil)

func (r *rdmaRequest) Device() Device  { return r.device }
func (r *rdmaRequest) Private() []byte { return r.private }

func (r *rdmaRequest) Peer() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.id == nil {
		return ""
	}
	var a C.struct_shim_address
	C.shim_peer(r.id.id, &a)
	return fromC(a).String()
}

func (r *rdmaRequest) take() (*cmID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.id
	r.id = nil
	if l == nil {
		return nil, errors.New("answered already")
	}
	return l, nil
}

func (r *rdmaRequest) Accept(ctx context.Context, d Domain, cfg QueueConfig, recvs []Work, welcome []byte) (Queue, error) {
	l, err := r.take()
	if err != nil {
		return nil, fmt.Errorf("verbs: accept: %w", err)
	}
	q, err := newRDMAQueue(l, r.device, d, cfg)
	if err != nil {
		return nil, fmt.Errorf("verbs: accept: %w", err)
	}
	if err := q.accept(ctx, recvs, welcome); err != nil {
		return nil, errors.Join(fmt.Errorf("verbs: accept: %w", err), q.Close())
	}
	return q, nil
}

// accept returns when the peer knows of it, so that nothing the queue does comes too early.
func (q *rdmaQueue) accept(ctx context.Context, recvs []Work, welcome []byte) error {
	if err := q.PostRecv(recvs); err != nil {
		return err
	}
	err := crossPrivate(welcome, MaxWelcome, func(p unsafe.Pointer, size C.uint8_t) C.int { return C.shim_accept(q.id.id, p, size) })
	if err != nil {
		return err
	}
	return q.id.expect(ctx, C.RDMA_CM_EVENT_ESTABLISHED)
}

func (r *rdmaRequest) Reject(reason []byte) error {
	l, err := r.take()
	if err != nil {
		return fmt.Errorf("verbs: reject: %w", err)
	}
	defer l.close()
	err = crossPrivate(reason, MaxReject, func(p unsafe.Pointer, size C.uint8_t) C.int { return C.shim_reject(l.id, p, size) })
	if err != nil {
		return fmt.Errorf("verbs: reject: %w", err)
	}
	return nil
}
