package epoch

import (
	"context"
	"errors"
	"sync"
)

// A Manager turns requests for durability into commits of one region. Requests
// that come while a commit is under way share the next one.
//
// Lock order: commitMu, then mu.
type Manager struct {
	store Store // immutable

	commitMu sync.Mutex // serialises commits; held across Store

	mu      sync.Mutex          // guards waiting
	waiting [Written + 1]*batch // by scope; nil: nobody waits
}

// A batch is a commit that several callers wait for.
type batch struct {
	once sync.Once
	id   ID
	err  error
}

// NewManager returns the manager of store's epochs.
func NewManager(store Store) *Manager { return &Manager{store: store} }

// Commit makes durable what was stored before the call, as far as scope reaches,
// and returns the last committed epoch. Where nothing was stored it only returns
// that. Past the seal ctx is not looked at: half a commit is worse than a late one.
func (m *Manager) Commit(ctx context.Context, scope Scope) (ID, error) {
	m.mu.Lock()
	b := m.waiting[scope]
	if b == nil {
		b = &batch{}
		m.waiting[scope] = b
	}
	m.mu.Unlock()
	b.once.Do(func() { b.id, b.err = m.run(context.WithoutCancel(ctx), scope) })
	return b.id, b.err
}

func (m *Manager) run(ctx context.Context, scope Scope) (ID, error) {
	m.commitMu.Lock()
	defer m.commitMu.Unlock()
	// Whoever comes from here on may have stored after the seal.
	m.mu.Lock()
	m.waiting[scope] = nil
	m.mu.Unlock()
	id, dirty, err := m.store.Seal(ctx, scope)
	if err != nil || !dirty {
		return id, err
	}
	return id, m.store.Commit(ctx, id)
}

// ErrNoSeal reports a barrier that ended without a seal.
var ErrNoSeal = errors.New("epoch: the barrier ended without a seal")

// Barrier commits the open epoch as it is at a barrier, and returns its ID. quiesce stops whoever stores to the region, calls seal once,
// and lets them go on. It returns when every page that was captured at the barrier
// has joined the epoch; after an error the epoch is open again.
//
// Other commits wait from the seal on, not while participants are still arriving:
// one of them may be in an fsync.
func (m *Manager) Barrier(ctx context.Context, quiesce func(ctx context.Context, seal func() (ID, error)) error) (ID, error) {
	var sealed ID
	locked := false
	defer func() {
		if locked {
			m.commitMu.Unlock()
		}
	}()
	err := quiesce(ctx, func() (id ID, err error) {
		if locked {
			return 0, errors.New("epoch: sealed twice at one barrier")
		}
		m.commitMu.Lock()
		locked = true
		sealed, err = m.store.Freeze(ctx)
		return sealed, err
	})
	ctx = context.WithoutCancel(ctx)
	switch {
	case err != nil && sealed != 0:
		m.store.Thaw(ctx, sealed)
		return 0, err
	case err != nil:
		return 0, err
	case sealed == 0:
		return 0, ErrNoSeal
	}
	return sealed, m.store.Commit(ctx, sealed)
}

// Exclusive runs f while no commit is under way.
func (m *Manager) Exclusive(f func() error) error {
	m.commitMu.Lock()
	defer m.commitMu.Unlock()
	return f()
}
