package verbs

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

const (
	// chunk is how much of the pool is registered at once, at most, and its alignment.
	chunk = 256 << 20
	// minChunk is how much of it is worth an MR of its own where memory is short.
	minChunk = 2 << 20
	// maxMappings bounds the MRs of a connection.
	maxMappings = 1024
)

// A window is what one connection reaches of the pool: MRs in a domain of its own, so
// that their rkeys are worth nothing to others.
//
// It begins without a queue pair, has one from attach on, and ends for good. mu is held
// while MRs and the queue pair are made and destroyed: whoever returns from Revoke or End
// knows that it is done.
type window struct {
	session Session // immutable, as all up to mu
	mem     []byte
	access  Access
	domain  Domain
	log     *slog.Logger

	// mapped is when the newest of mappings was made, in ns; 0: there are none. It is stored
	// with mu held, and publishes nothing.
	mapped atomic.Int64

	mu       sync.Mutex
	queue    Queue
	mappings []mapping
	ended    bool
}

var _ rdmacache.Window = (*window)(nil)

// A mapping is an MR over the bytes of the pool from start up to end. No two of a window
// overlap.
type mapping struct {
	start, end int64
	mr         MR
}

// attach gives the window its queue pair, or closes that if the window has ended.
func (w *window) attach(q Queue) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return errors.Join(errSuperseded, q.Close())
	}
	w.queue = q
	return nil
}

// reach makes the surroundings of byte off reachable, and says where they are.
func (w *window) reach(off int64) (extent, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return extent{}, errSuperseded
	}
	start, end, err := w.session.Extent(off)
	switch {
	case errors.Is(err, rdmacache.ErrFenced), errors.Is(err, region.ErrNoSpace):
		return extent{}, err
	case err != nil:
		return extent{}, &refusal{codeRange, err.Error()}
	}
	start, end = max(start, off&^(chunk-1)), min(end, off&^(chunk-1)+chunk)
	if start < 0 || off < start || off >= end || end > int64(len(w.mem)) {
		return extent{}, &refusal{codeRange, fmt.Sprintf("byte %d is not in memory", off)}
	}
	for i := range w.mappings {
		switch m := &w.mappings[i]; {
		case m.end <= off:
			start = max(start, m.end)
		case m.start > off:
			end = min(end, m.start)
		default:
			return m.extent(), nil
		}
	}
	if len(w.mappings) >= maxMappings {
		// A new connection has few again: what was granted bit by bit is in one piece by now.
		return extent{}, &refusal{codeStale, fmt.Sprintf("%d parts of the pool are registered", len(w.mappings))}
	}
	m, err := w.register(start, end, off)
	if err != nil {
		return extent{}, err
	}
	w.mappings = append(w.mappings, m)
	w.mapped.Store(time.Now().UnixNano())
	return m.extent(), nil
}

// register makes an MR of the bytes from start up to end, or of fewer around off: where
// some have no memory, as a page that is damaged or that a full tmpfs cannot hold, and where
// so many cannot be registered.
func (w *window) register(start, end, off int64) (mapping, error) {
	for {
		mr, err := w.domain.Register(w.mem[start:end:end], w.access)
		if err == nil {
			return mapping{start, end, mr}, nil
		}
		err = fmt.Errorf("register bytes %d to %d: %w", start, end, err)
		switch faults := errors.Is(err, unix.EFAULT) || errors.Is(err, unix.EHWPOISON); {
		case faults && end-start > region.PageSize, errors.Is(err, unix.ENOMEM) && end-start > minChunk:
			start, end = halve(start, end, off)
		case errors.Is(err, unix.ENOSPC), faults && w.session.Medium().Volatile:
			return mapping{}, fmt.Errorf("%w: %w", region.ErrNoSpace, err)
		case faults: // to try again does not help
			return mapping{}, &refusal{codeRange, err.Error()}
		default:
			return mapping{}, err
		}
	}
}

// halve returns the half that byte off is in, cut between pages, of more than a page.
func halve(start, end, off int64) (int64, int64) {
	middle := (start + (end-start)/2) &^ (region.PageSize - 1)
	if middle <= start {
		middle += region.PageSize
	}
	if off < middle {
		return start, middle
	}
	return middle, end
}

// extent is what the client is told of the mapping.
func (m *mapping) extent() extent {
	return extent{start: m.start, end: m.end, address: m.mr.Address(), rkey: m.mr.RKey()}
}

// remove deregisters the mappings that which says. Where that fails the queue pair goes:
// without it nobody reaches them. Where that fails too it is tried until one of both is
// done: what the peer reaches is not somebody else's. mu is held.
func (w *window) remove(which func(*mapping) bool) {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		failed := w.deregister(which)
		if failed == nil {
			return
		}
		w.log.Error("RDMA access cannot be revoked; the connection ends", "err", failed)
		w.ended = true
		if w.cut() {
			return
		}
		time.Sleep(pause)
	}
}

// deregister closes the MRs of the mappings that which says, and forgets those of which
// that succeeded. mu is held.
func (w *window) deregister(which func(*mapping) bool) error {
	var failed error
	kept := w.mappings[:0]
	for i := range w.mappings {
		m := w.mappings[i]
		if !which(&m) {
			kept = append(kept, m)
		} else if err := m.mr.Close(); err != nil {
			kept = append(kept, m)
			failed = errors.Join(failed, fmt.Errorf("deregister bytes %d to %d: %w", m.start, m.end, err))
		}
	}
	clear(w.mappings[len(kept):])
	if w.mappings = kept; len(kept) == 0 {
		w.mapped.Store(0)
	}
	return failed
}

// cut destroys the queue pair, and says that there is none. mu is held.
func (w *window) cut() bool {
	if w.queue == nil {
		return true
	}
	if err := w.queue.Close(); err != nil {
		w.log.Error("RDMA queue pair cannot be destroyed", "err", err)
		return false
	}
	w.queue = nil
	return true
}

// holds says that n bytes from off are in one mapping.
func (w *window) holds(p place) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.mappings, func(m mapping) bool { return m.start <= p.off && p.end() <= m.end })
}

// Revoke ends access to the bytes from start up to end. The client finds out when it
// uses what it was told: its queue pair breaks, and it connects anew.
func (w *window) Revoke(start, end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remove(func(m *mapping) bool { return m.start < end && start < m.end })
}

// End ends all access. Nothing of the client arrives when it returned.
func (w *window) End() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.cut()
	w.remove(func(*mapping) bool { return true })
}
