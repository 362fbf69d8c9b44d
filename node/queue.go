package node

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
)

// stealWait is how long a thief waits for what its victim has under way, and anybody
// for the node itself.
const stealWait = time.Minute

// An openRequest is what a caller wants to open.
type openRequest struct {
	share    namespace.Ino
	name     string // of the share, for people
	identity string
	holder   string
	timeout  time.Duration
	patience time.Duration // see lapse
	wait     time.Duration
	steal    bool
	readOnly bool
	reader   bool  // without a lease
	own      bool  // of the node itself, for a moment: it does not expire
	nonce    nonce // zero: none
}

// repeats tells whether r is the same request again, whose answer was lost.
func (r *openRequest) repeats(old *openRequest) bool {
	return r.nonce != (nonce{}) && r.nonce == old.nonce &&
		r.identity == old.identity && r.share == old.share && r.readOnly == old.readOnly && r.reader == old.reader
}

// A waiter waits for its turn to hold a share.
type waiter struct {
	req openRequest
	// turn gets the session to be granted, or nil if a repetition of the request
	// has taken the waiter's place.
	turn chan *session
}

// open waits for its turn, has the lease granted, and returns the session. A
// repetition of the request gets the session that the first one got.
//
// Errors match memnode.ErrLeased if the wait was too short.
func (m *manager) open(ctx context.Context, req openRequest) (*session, error) {
	for {
		s, w, err := m.enqueue(&req)
		switch {
		case err != nil:
			return nil, err
		case w != nil:
			if s, err = m.await(ctx, w); err != nil {
				return nil, err
			}
			return s, m.grant(context.WithoutCancel(ctx), s)
		}
		select {
		case <-s.opened:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if m.isLive(s) {
			return s, nil
		}
	}
}

func (m *manager) isLive(s *session) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return s.state == live
}

// enqueue puts a request in the queue, unless it repeats one that has its session.
func (m *manager) enqueue(req *openRequest) (*session, *waiter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return nil, nil, errStopping
	}
	if s := m.sessions[req.share]; s != nil && s.state <= live && req.repeats(&s.req) {
		return s, nil, nil
	}
	w := &waiter{req: *req, turn: make(chan *session, 1)}
	for i, old := range m.queue {
		if req.repeats(&old.req) {
			m.queue[i] = w
			old.turn <- nil
			return nil, w, nil
		}
	}
	if len(m.queue) == maxWaiters || len(m.sessions) >= maxSessions || m.waitsEnough(req.identity) {
		return nil, nil, fmt.Errorf("%w: %d sessions, %d more wait", errBusy, len(m.sessions), len(m.queue))
	}
	if req.steal {
		for share, s := range m.sessions {
			if conflict(share, req.share) {
				m.steal(s, req.holder)
			}
		}
		m.queue = slices.Insert(m.queue, 0, w)
	} else {
		for share, s := range m.sessions {
			if conflict(share, req.share) {
				m.giveWayLocked(s, req.holder)
			}
		}
		m.queue = append(m.queue, w)
	}
	m.dispatch()
	return nil, w, nil
}

// waitsEnough tells whether an identity has as many requests in the queue as leave
// room for others. Without TLS nobody has a name, and all are trusted. mu is held.
func (m *manager) waitsEnough(identity string) bool {
	n := 0
	for _, w := range m.queue {
		if w.req.identity == identity {
			n++
		}
	}
	return identity != "" && n >= maxWaiters/maxShareOf
}

// steal ends a session for another holder: now, or as soon as it was granted. mu is
// held.
func (m *manager) steal(s *session, thief string) {
	switch s.state {
	case opening:
		s.thief = thief
	case live:
		m.counts.Stolen++
		m.end(s, fmt.Sprintf("%s took the lease", thief))
	}
}

// dispatch gives their turn to all whose share is free and not awaited by anyone
// before them, so that he who wants the whole pool is not passed for ever. mu is
// held.
func (m *manager) dispatch() {
	if m.stopped {
		return
	}
	var waiting []*waiter
	for _, w := range m.queue {
		if m.holder(w.req.share) != nil || slices.ContainsFunc(waiting, func(before *waiter) bool {
			return conflict(before.req.share, w.req.share)
		}) {
			waiting = append(waiting, w)
			continue
		}
		s := newSession(memnode.Lease{Share: w.req.share})
		s.req = w.req
		m.sessions[w.req.share] = s
		w.turn <- s
	}
	m.queue = waiting
}

// holder returns a session that keeps a share from being leased, or nil. mu is held.
func (m *manager) holder(share namespace.Ino) *session {
	if share != namespace.Root {
		if s := m.sessions[namespace.Root]; s != nil {
			return s
		}
		return m.sessions[share]
	}
	for _, s := range m.sessions {
		return s
	}
	return nil
}

// await returns the session whose turn it is, or why the waiting ended.
func (m *manager) await(ctx context.Context, w *waiter) (*session, error) {
	wait := w.req.wait
	if w.req.steal || m.isOwn(w.req.share) {
		wait = max(wait, stealWait)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var why error
	select {
	case s := <-w.turn:
		return turn(s)
	case <-timer.C:
	case <-ctx.Done():
		why = ctx.Err()
	case <-m.stopping:
		why = errStopping
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case s := <-w.turn: // at the same moment
		if s == nil || why == nil {
			return turn(s)
		}
		m.abandon(s)
		return nil, why
	default:
	}
	m.queue = slices.DeleteFunc(m.queue, func(other *waiter) bool { return other == w })
	m.dispatch() // for those who waited only for w
	if why == nil {
		why = m.leased(&w.req)
	}
	return nil, why
}

func turn(s *session) (*session, error) {
	if s == nil {
		return nil, fmt.Errorf("%w: the caller asks again", context.Canceled)
	}
	return s, nil
}

// leased says who has what the request wants. mu is held.
func (m *manager) leased(req *openRequest) error {
	s := m.holder(req.share)
	switch {
	case s == nil:
		return fmt.Errorf("%w: others wait for share %q", memnode.ErrLeased, req.name)
	case s.state == opening:
		return fmt.Errorf("%w: share %q: %s is about to get it", memnode.ErrLeased, s.req.name, s.req.holder)
	case s.state == ending:
		return fmt.Errorf("%w: share %q: the session of %s is ending", memnode.ErrLeased, s.req.name, s.lease.Holder)
	}
	since := time.Unix(0, s.lease.Granted).UTC().Format(time.RFC3339)
	return fmt.Errorf("%w: share %q: by %s since %s; wait, or steal it", memnode.ErrLeased, s.req.name, s.lease.Holder, since)
}

// grant records the lease of a session whose turn it is, and makes it live.
func (m *manager) grant(ctx context.Context, s *session) error {
	s.token = newToken(s.req.readOnly)
	l := memnode.Lease{
		Share:     s.req.share,
		TokenHash: s.token.hash(),
		Holder:    s.req.holder,
		Timeout:   s.req.timeout,
	}
	_, _ = rand.Read(l.Session[:]) // never fails
	l, err := m.store.GrantLease(ctx, l)
	if err == nil {
		if s.view, s.fence, err = m.store.open(ctx, l.Share); err != nil {
			m.forget(l)
		}
	}
	m.mu.Lock()
	if err == nil && !m.stopped {
		defer m.mu.Unlock()
		s.lease = l
		m.begin(s)
		m.counts.Granted++
		close(s.opened)
		m.log.Info("session opened", "share", s.req.name, "holder", l.Holder, "identity", s.req.identity, "generation", l.Generation)
		if s.thief != "" {
			m.steal(s, s.thief)
		}
		return nil
	}
	m.mu.Unlock()
	if err == nil {
		s.fence.End()
		m.forget(l) // nobody will ever know its token
		err = errStopping
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.abandon(s)
	return fmt.Errorf("lease share %q: %w", s.req.name, err)
}

// abandon gives up a turn that came to nothing. mu is held.
func (m *manager) abandon(s *session) {
	s.state = over
	delete(m.sessions, s.req.share)
	close(s.opened)
	close(s.gone)
	m.dispatch()
}
