package epoch

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// maxInFlight bounds the epochs of a region that are in flight. A fifth waits, and
// takes what is stored meanwhile along.
const maxInFlight = 4

// A Manager turns requests for durability into commits of one region. An epoch is
// sealed and sent while those before it are in flight. Requests that come until then
// share the next one.
type Manager struct {
	store Store // immutable

	mu       sync.Mutex          // guards the fields below; never held across Store
	changed  sync.Cond           // on mu: busy or sending became false, holds or inFlight less
	busy     bool                // an epoch is being sealed and sent, or is kept from it
	sending  bool                // one is, and no program is waited for
	holds    int                 // calls of WithRoom that keep epochs from being sealed
	seals    uint64              // epochs that were to be sealed, ever
	inFlight []*batch            // epochs that were sent, oldest first
	waiting  [Written + 1]*batch // by scope; nil: nobody waits
	full     uint64              // see Stats
}

// Stats tell of a Manager.
type Stats struct {
	InFlight int    // epochs that were sent, and are not known to be durable
	Full     uint64 // epochs that were sealed later because too many were in flight
}

// A batch is a commit that callers wait for.
type batch struct {
	done chan struct{} // closed when the next two are set
	id   ID
	err  error
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

func (b *batch) wait() (ID, error) {
	<-b.done
	return b.id, b.err
}

func (b *batch) end(id ID, err error) (ID, error) {
	b.id, b.err = id, err
	close(b.done)
	return id, err
}

// NewManager returns the manager of store's epochs.
func NewManager(store Store) *Manager {
	m := &Manager{store: store}
	m.changed.L = &m.mu
	return m
}

// Commit makes durable what was stored before the call, as far as scope reaches,
// and returns an epoch that has all of it. Where nothing was stored it only waits for
// what is in flight. Past the seal ctx is not looked at: half a commit is worse than a
// late one.
func (m *Manager) Commit(ctx context.Context, scope Scope) (ID, error) {
	m.mu.Lock()
	b := m.waiting[scope]
	if b != nil {
		m.mu.Unlock()
		return b.wait()
	}
	b = newBatch()
	m.waiting[scope] = b
	m.beginNext()
	m.sending = true
	// Whoever comes from here on may have stored after the seal.
	m.waiting[scope] = nil
	before := slices.Clone(m.inFlight) // those that have failed by now are open again
	m.mu.Unlock()

	ctx = context.WithoutCancel(ctx)
	id, dirty, err := m.store.Seal(ctx, scope)
	if err == nil && dirty {
		return m.send(ctx, b, id)
	}
	m.end()
	// Where nothing was stored since the last seal, what this caller stored may be in
	// an epoch that is in flight.
	for i := 0; i < len(before) && err == nil; i++ {
		id, err = before[i].wait()
	}
	return b.end(id, err)
}

// begin makes this the only epoch that is being sealed and sent. mu is held, and
// released meanwhile.
func (m *Manager) begin() {
	for m.busy || m.holds > 0 {
		m.changed.Wait()
	}
	m.busy = true
	m.seals++
}

// beginNext is begin when there is room for one more in flight.
func (m *Manager) beginNext() {
	m.begin()
	if len(m.inFlight) >= maxInFlight {
		m.full++
	}
	m.await(maxInFlight - 1)
}

// await waits until at most n epochs are in flight. mu is held, and released meanwhile.
func (m *Manager) await(n int) {
	for len(m.inFlight) > n {
		m.changed.Wait()
	}
}

// end lets the next one begin.
func (m *Manager) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy, m.sending = false, false
	m.changed.Broadcast()
}

// send sends the epoch that was sealed, lets the next one begin, and waits until this
// one is durable. It ends b.
func (m *Manager) send(ctx context.Context, b *batch, id ID) (ID, error) {
	m.mu.Lock()
	m.sending = true
	m.mu.Unlock()
	wait, err := m.store.Post(ctx, id, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.await(0)
	})
	if err != nil {
		m.end()
		return b.end(id, err)
	}
	m.mu.Lock()
	m.inFlight = append(m.inFlight, b)
	m.busy, m.sending = false, false
	m.changed.Broadcast()
	m.mu.Unlock()

	err = wait(ctx)
	m.mu.Lock()
	m.inFlight = slices.DeleteFunc(m.inFlight, func(x *batch) bool { return x == b })
	m.changed.Broadcast()
	m.mu.Unlock()
	return b.end(id, err)
}

// Stats returns the present numbers.
func (m *Manager) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Stats{InFlight: len(m.inFlight), Full: m.full}
}

// ErrNoSeal reports a barrier that ended without a seal.
var ErrNoSeal = errors.New("epoch: the barrier ended without a seal")

// Barrier commits the open epoch as it is at a barrier, and returns its ID. quiesce
// stops whoever stores to the region, calls seal once, and lets them go on. It returns when every page that was captured at the barrier
// has joined the epoch; after an error the epoch is open again.
//
// Epochs may be in flight at the seal, but no other is sealed from then on until this
// one was sent. Before that, while participants are still arriving, others are: one
// of them may be in an fsync.
func (m *Manager) Barrier(ctx context.Context, quiesce func(ctx context.Context, seal func() (ID, error)) error) (ID, error) {
	var sealed ID
	begun := false
	err := quiesce(ctx, func() (id ID, err error) {
		if begun {
			return 0, errors.New("epoch: sealed twice at one barrier")
		}
		m.mu.Lock()
		m.beginNext()
		m.mu.Unlock()
		begun = true
		sealed, err = m.store.Freeze(ctx)
		return sealed, err
	})
	ctx = context.WithoutCancel(ctx)
	if err == nil && sealed != 0 {
		return m.send(ctx, newBatch(), sealed)
	}
	if sealed != 0 {
		m.store.Thaw(ctx, sealed)
	}
	if begun {
		m.end()
	}
	if err == nil {
		err = ErrNoSeal
	}
	return 0, err
}

// Exclusive runs f while no commit is under way.
func (m *Manager) Exclusive(f func() error) error {
	m.mu.Lock()
	m.begin()
	m.await(0)
	m.mu.Unlock()
	defer m.end()
	return f()
}

// WithRoom runs do, which takes space for the open epoch. What epochs in flight replace
// becomes free when they are durable: so if full says of do's error that it found too
// little, and any were in flight meanwhile, WithRoom waits for them, lets no other be
// sealed, and runs do once more. That ends with ctx.
//
// It waits for no barrier and for no Exclusive: these may be waiting for do. do calls
// nothing of the Manager.
func (m *Manager) WithRoom(ctx context.Context, full func(error) bool, do func() error) error {
	m.mu.Lock()
	quiet, seals := m.quiet(), m.seals
	m.mu.Unlock()
	err := do()
	if !full(err) {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if quiet && seals == m.seals {
		return err // and whoever waits to seal is not kept from it
	}
	stop := context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.changed.Broadcast()
	})
	defer stop()
	m.holds++
	defer func() {
		m.holds--
		m.changed.Broadcast()
	}()
	for !m.quiet() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.changed.Wait()
	}
	m.mu.Unlock()
	defer m.mu.Lock()
	return do()
}

// quiet reports whether no epoch was sent, or is about to be, that is not known to be
// durable. mu is held.
func (m *Manager) quiet() bool { return !m.sending && len(m.inFlight) == 0 }
