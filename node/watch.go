package node

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/region"
)

// A watch is what the holder of a lease is told of readers, in order. The zero value
// is ready.
type watch struct {
	mu      sync.Mutex // guards the fields below
	queue   []*nodepb.WatchResponse
	wanted  map[uint64]*want // not answered yet
	streams uint64           // so far; only the last one gets anything
	changed chan struct{}    // closed at the next change; nil: nobody waits
}

// A want is a pin that was asked for.
type want struct {
	id  uint64
	ino namespace.Ino

	done chan struct{} // closed after the next two are set
	cp   region.Checkpoint
	err  error
}

func (w *watch) push(m *nodepb.WatchResponse) {
	w.queue = append(w.queue, m)
	w.notify()
}

// notify wakes the streams. mu is held.
func (w *watch) notify() {
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

func (t *want) message() *nodepb.WatchResponse {
	return &nodepb.WatchResponse{Wanted: &nodepb.PinWanted{Id: t.id, Ino: uint64(t.ino)}}
}

// ask wants the newest epoch of a file.
func (w *watch) ask(ino namespace.Ino) *want {
	w.mu.Lock()
	defer w.mu.Unlock()
	// Not to be mistaken for one of before a restart, which is answered late.
	t := &want{id: rand.Uint64(), ino: ino, done: make(chan struct{})}
	if w.wanted == nil {
		w.wanted = make(map[uint64]*want)
	}
	w.wanted[t.id] = t
	w.push(t.message())
	return t
}

// take returns a want that nobody else has taken, to be answered or given up.
func (w *watch) take(id uint64) *want {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.wanted[id]
	delete(w.wanted, id)
	return t
}

// gone tells that a pin is no more.
func (w *watch) gone(m *nodepb.PinGone) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.streams > 0 { // else the list that a stream begins with tells
		w.push(&nodepb.WatchResponse{Gone: m})
	}
}

// attach begins a stream, and returns its number. What was wanted, and may be lost
// with the stream before, comes again.
func (w *watch) attach() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.streams++
	w.queue = nil
	for _, t := range w.wanted {
		w.queue = append(w.queue, t.message())
	}
	w.notify()
	return w.streams
}

// next returns what a stream is to send, and else what to wait for. It returns false
// if there is a newer one.
func (w *watch) next(stream uint64) (send []*nodepb.WatchResponse, changed <-chan struct{}, newest bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if stream != w.streams {
		return nil, nil, false
	}
	send, w.queue = w.queue, nil
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	return send, w.changed, true
}

// Watch implements nodepb.NodeServer.
func (s *Server) Watch(_ *nodepb.WatchRequest, stream grpc.ServerStreamingServer[nodepb.WatchResponse]) error {
	ctx := stream.Context()
	holder := ctx.Value(sessionKey{}).(*session)
	no := holder.watch.attach()
	// After that: what goes from now on is told after the list.
	if err := stream.Send(&nodepb.WatchResponse{Pins: s.pins.list(holder.lease.Share)}); err != nil {
		return err
	}
	for {
		send, changed, newest := holder.watch.next(no)
		if !newest {
			return fmt.Errorf("%w: the session has another Watch", errInvalid)
		}
		for _, m := range send {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.sessions.stopping:
			return errStopping
		}
	}
}
