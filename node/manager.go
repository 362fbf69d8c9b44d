package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// Limits of what callers can make a node remember.
const (
	maxSessions = 1024 // open, opening or ending
	maxWaiters  = 1024
	maxObits    = 256 // sessions that are over, of which it is known why
	maxListing  = 4   // directories of one session, each as a whole

	// One identity may be one part in maxShareOf of the waiters, and of the readers.
	maxShareOf = 8
)

// forgetAgain is how long an ended lease stays recorded for want of space until the
// next try.
const forgetAgain = time.Second

// A manager gives the leases of the pool's shares to sessions, one at a time for
// each share, and takes them back when they are not kept alive. Its clock alone
// decides.
//
// A session ends in this order: its data connections and calls are cut, and the
// fence closed; when no access is under way any more, the lease's record goes; only
// then is it the next one's turn. So nothing of a session comes after the grant of
// the next.
//
// mu is never held across the store or a fence.
type manager struct {
	store store
	log   *slog.Logger

	stopping chan struct{} // closed by stop
	// readerGone is told of each reader whose session is over, before anybody else
	// is. Set before the first session.
	readerGone func(*session)

	mu       sync.Mutex // guards the fields below, and the state of every session
	stopped  bool
	sessions map[namespace.Ino]*session // by share
	readers  map[sessionID]*session     // live and ending, without a lease
	tokens   map[tokenHash]*session     // live and ending
	queue    []*waiter                  // in the order of their turns
	obits    map[tokenHash]error        // why late callers are fenced
	buried   []tokenHash                // in obits, oldest first
	counts   Stats                      // without its first fields
	ends     sync.WaitGroup             // sessions that are ending; not added to once stopped
}

// Stats are what a node has, and what it counted since it started.
type Stats struct {
	Sessions int // that hold a lease
	Readers  int // sessions without one
	Waiting  int // callers, for a lease

	Strangers int    // connections that have not shown yet who they are
	Dropped   uint64 // connections, to make room for others
	Refused   uint64 // reads, writes and flushes of data that a session had no right to, or no more
	Failed    uint64 // and those that failed otherwise

	Granted   uint64 // leases; those that the restart found are not counted
	KeptAlive uint64 // times
	Expired   uint64 // leases, by what ended them
	Stolen    uint64
	Closed    uint64 // by their holders
	Ended     uint64 // by an operator
}

func newManager(st store, log *slog.Logger) *manager {
	return &manager{
		store:    st,
		log:      log,
		stopping: make(chan struct{}),
		sessions: make(map[namespace.Ino]*session),
		readers:  make(map[sessionID]*session),
		tokens:   make(map[tokenHash]*session),
		obits:    make(map[tokenHash]error),
	}
}

// restore takes up the leases that are recorded. Each lasts its whole time again:
// the holders could not keep them alive while the node was away. Others are served also
// where one share is damaged.
func (m *manager) restore(ctx context.Context) error {
	leases, err := m.store.Leases(ctx)
	if err != nil {
		return fmt.Errorf("restore leases: %w", err)
	}
	names, err := m.store.names(ctx)
	if err != nil {
		return fmt.Errorf("restore leases: %w", err)
	}
	for _, l := range leases {
		l.Timeout = min(max(l.Timeout, MinLease), MaxLease)
		s := newSession(l)
		s.req = openRequest{share: l.Share, name: names[l.Share], holder: l.Holder}
		close(s.opened)
		s.view, s.fence, err = m.store.open(ctx, l.Share)
		if errors.Is(err, region.ErrCorrupt) {
			// The record stays: nobody gets the share before it is repaired.
			m.log.Error("a share is damaged, and nobody can use it", "share", s.req.name, "holder", l.Holder, "error", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("restore the lease of %s: %w", l.Holder, err)
		}
		m.mu.Lock()
		m.sessions[l.Share] = s
		m.begin(s)
		m.mu.Unlock()
		m.log.Info("lease restored", "share", s.req.name, "holder", l.Holder, "generation", l.Generation)
	}
	return nil
}

func newSession(l memnode.Lease) *session {
	s := &session{lease: l, opened: make(chan struct{}), listing: make(chan struct{}, maxListing), gone: make(chan struct{})}
	s.life, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// begin makes a session live. mu is held.
func (m *manager) begin(s *session) {
	s.state = live
	s.last = time.Now()
	s.deadline = s.last.Add(s.lease.Timeout)
	m.tokens[tokenHash(s.lease.TokenHash)] = s
	s.timer = time.AfterFunc(s.lease.Timeout, func() { m.expire(s) })
}

// expire ends s unless it was kept alive since the timer was set.
func (m *manager) expire(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.state != live || m.stopped || s.req.own || m.overdue(s) {
		return
	}
	s.timer.Reset(time.Until(s.deadline))
}

// overdue ends a live session whose lease has run out, and tells so.
//
// When that is noticed late, the node itself was paused, and keep-alives may wait in
// its sockets. Their senders get as much time as the node was late, once. mu is held.
func (m *manager) overdue(s *session) bool {
	late := time.Since(s.deadline)
	if late < 0 {
		return false
	}
	if late > s.lease.Timeout/8 && !s.spared {
		s.spared = true
		s.deadline = time.Now().Add(min(late, s.lease.Timeout))
		m.log.Warn("the node was paused; a lease lasts longer", "share", s.req.name, "holder", s.lease.Holder, "late", late)
		return false
	}
	if m.lapse(s) {
		return false
	}
	m.counts.Expired++
	m.end(s, s.silence())
	return true
}

// silence says for how long nothing was heard of a session's holder. mu is held.
func (s *session) silence() string {
	return fmt.Sprintf("it was not kept alive for %v", time.Since(s.last).Round(time.Millisecond))
}

// lapse lets the session of a holder with patience live on whose lease has run out, as long as
// nobody wants its share: until he is heard again, or his patience is over. After a restart
// nothing is known of that. mu is held.
func (m *manager) lapse(s *session) bool {
	end := s.last.Add(s.req.patience)
	if s.lapsed || s.req.reader || !time.Now().Before(end) {
		return false
	}
	for _, w := range m.queue {
		if conflict(w.req.share, s.lease.Share) {
			return false
		}
	}
	s.lapsed, s.deadline = true, end
	m.log.Warn("a lease has run out; its holder has it until somebody wants the share", "share", s.req.name, "holder", s.lease.Holder, "patience", s.req.patience)
	return true
}

// giveWay ends a session whose lease has run out, because somebody wants its share.
func (m *manager) giveWay(s *session, who string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.giveWayLocked(s, who)
}

func (m *manager) giveWayLocked(s *session, who string) {
	if s.state == live && s.lapsed {
		m.counts.Expired++
		m.end(s, fmt.Sprintf("%s, and %s wants the share", s.silence(), who))
	}
}

// end begins to end a live session; gone is closed at the end. mu is held.
func (m *manager) end(s *session, why string) {
	if s.state != live || m.stopped {
		return
	}
	s.state = ending
	s.why = fenced(why)
	s.timer.Stop()
	s.cancel(s.why)
	m.log.Info("session ends", "share", s.req.name, "holder", s.lease.Holder, "generation", s.lease.Generation, "why", why)
	m.ends.Go(func() { m.finish(s) })
}

// finish waits until nothing of s is under way, and passes its share on.
func (m *manager) finish(s *session) {
	s.fence.End()
	if s.req.reader {
		m.finishReader(s)
		return
	}
	m.forget(s.lease)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sessions, s.lease.Share)
	m.conclude(s)
	m.dispatch()
}

// forget ends a lease in the store. While there is no space to say so it tries again:
// nobody else is granted the share before. After any other error the pool is poisoned,
// and grants nothing any more.
func (m *manager) forget(l memnode.Lease) {
	for {
		err := m.store.EndLease(context.Background(), l.Share, l.Session)
		if err == nil {
			return
		}
		m.log.Error("the record of an ended lease stays", "share", l.Share, "holder", l.Holder, "error", err)
		if !errors.Is(err, region.ErrNoSpace) {
			return
		}
		select {
		case <-time.After(forgetAgain):
		case <-m.stopping:
			return // the next start finds the lease, and ends it in time
		}
	}
}

// conclude makes an ending session over. mu is held.
func (m *manager) conclude(s *session) {
	s.state = over
	hash := tokenHash(s.lease.TokenHash)
	delete(m.tokens, hash)
	m.bury(hash, s.why)
	close(s.gone)
}

// bury keeps why a session ended, for callers who come late. mu is held.
func (m *manager) bury(hash tokenHash, why error) {
	if len(m.buried) == maxObits {
		delete(m.obits, m.buried[0])
		m.buried = m.buried[1:]
	}
	m.obits[hash] = why
	m.buried = append(m.buried, hash)
}

// keepAlive makes the lease last its whole time from now.
func (m *manager) keepAlive(id sessionID, t token) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.find(id, t)
	if err != nil {
		return err
	}
	m.counts.KeptAlive++
	s.last = time.Now()
	s.deadline = s.last.Add(s.lease.Timeout)
	s.spared, s.lapsed = false, false
	s.timer.Reset(s.lease.Timeout)
	return nil
}

// session returns the live session of a token.
func (m *manager) session(id sessionID, t token) (*session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.find(id, t)
}

// find returns the live session of a token; else its error matches
// rdmacache.ErrFenced. mu is held.
func (m *manager) find(id sessionID, t token) (*session, error) {
	s, err := m.findToken(t)
	if err != nil {
		return nil, err
	}
	if s.lease.Session != id {
		return nil, fenced("the session is not the token's")
	}
	return s, nil
}

// findToken is find for the data path, which has no number. The table is searched
// by a hash of what the caller sent, so the time it takes tells nothing about the
// tokens in it. mu is held.
func (m *manager) findToken(t token) (*session, error) {
	hash := t.hash()
	s := m.tokens[hash]
	if s == nil {
		if why := m.obits[hash]; why != nil {
			return nil, why
		}
		return nil, fenced("no such session; the memory node may have restarted since it ended")
	}
	return s, m.usable(s)
}

// usable returns why a session is over, if it is. mu is held.
func (m *manager) usable(s *session) error {
	// The timer may be late.
	if s.state != live || !m.stopped && m.overdue(s) {
		return s.why
	}
	return nil
}

// close ends the session of its own accord, and waits until it is over or ctx is
// done.
func (m *manager) close(ctx context.Context, id sessionID, t token) error {
	m.mu.Lock()
	s, err := m.find(id, t)
	if err == nil {
		m.counts.Closed++
		m.end(s, "it was closed")
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return m.wait(ctx, s)
}

// endShare ends the session that holds a share, if it is the one given.
func (m *manager) endShare(ctx context.Context, share namespace.Ino, only *sessionID) error {
	m.mu.Lock()
	s := m.sessions[share]
	if only != nil && m.readers[*only] != nil && m.readers[*only].lease.Share == share {
		s = m.readers[*only]
	}
	if s == nil || s.state == opening || only != nil && s.lease.Session != *only {
		m.mu.Unlock()
		return fmt.Errorf("%w: no such session", namespace.ErrNotExist)
	}
	if s.state == live {
		m.counts.Ended++
		m.end(s, "an operator ended it")
	}
	m.mu.Unlock()
	return m.wait(ctx, s)
}

// wait waits until s, which is ending, is over.
func (m *manager) wait(ctx context.Context, s *session) error {
	select {
	case <-s.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-m.stopping:
		return errStopping
	}
}

// cancel ends the calls of all sessions, which the node cannot wait for any
// longer. The sessions stay.
func (m *manager) cancel() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.tokens {
		s.cancel(errStopping)
	}
}

// stop ends the waiting, and lets no session begin or end any more: what is
// recorded stays for the next start. It returns when no session is ending.
func (m *manager) stop() {
	m.mu.Lock()
	if !m.stopped {
		m.stopped = true
		close(m.stopping)
	}
	for _, s := range m.tokens {
		s.timer.Stop()
	}
	m.mu.Unlock()
	m.ends.Wait()
}

// A holding is what a session looks like from outside.
type holding struct {
	lease    memnode.Lease
	identity string
	kept     time.Duration // since the last KeepAlive
}

// holdings returns the sessions by share.
func (m *manager) holdings() map[namespace.Ino]holding {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[namespace.Ino]holding)
	for share, s := range m.sessions {
		if s.state == live || s.state == ending {
			out[share] = holding{s.lease, s.req.identity, time.Since(s.last)}
		}
	}
	return out
}

func (m *manager) stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.counts
	st.Sessions, st.Readers, st.Waiting = len(m.tokens)-len(m.readers), len(m.readers), len(m.queue)
	return st
}
