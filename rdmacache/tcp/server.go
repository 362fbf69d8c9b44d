package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/accept"
	"github.com/rpmemfs/rpmemfs/internal/places"
)

const (
	defaultConnections = 1024
	// maxGreeting bounds the connections that have not shown a session's token yet,
	// beyond those that have: the oldest is dropped for the next one. As many more
	// may be about to notice that they were dropped.
	maxGreeting = 256
	// maxStreams bounds the connections of one session.
	maxStreams = 16
	// maxThreads bounds the connections that each have a thread of their own; the
	// others share those of the runtime's poller.
	maxThreads = 64
	// handshakeTimeout is how long a client has for TLS and its HELLO, and for its old
	// connection to end.
	handshakeTimeout = 5 * time.Second
)

// A server is one call of Serve.
type server struct {
	sessions Sessions
	limit    int
	log      *slog.Logger

	strangers *places.Table
	greeting  chan struct{} // holds an element for each connection in hello
	links     sync.WaitGroup

	mu       sync.Mutex               // guards the fields below
	told     time.Time                // when the log got a stranger's error
	untold   int                      // strangers' errors since
	welcomed int                      // connections that joined
	streams  map[[32]byte]clientLinks // by token
}

// clientLinks holds the newest connection of each stream of a session.
type clientLinks map[uint64]*link

// Serve serves the connections that l accepts, until ctx ends or l fails. It closes
// l, and returns when no connection is left, and nothing is applied any more. ctx.Err()
// if ctx ended.
//
// Requests that have arrived by then are applied and answered over their connection, if
// that takes no longer than two seconds. Those after them clients send to whoever serves
// next.
//
// A connection takes less than 4 MiB of memory, whatever the client sends.
func Serve(ctx context.Context, l net.Listener, sessions Sessions, cfg ServerConfig) error {
	s := &server{
		sessions: sessions, limit: cfg.Connections, log: cfg.Log, strangers: cfg.Strangers,
		greeting: make(chan struct{}, 2*maxGreeting), streams: make(map[[32]byte]clientLinks),
	}
	if s.limit <= 0 {
		s.limit = defaultConnections
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.strangers == nil {
		s.strangers = Strangers(nil)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer s.links.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // Accept returns
	defer stop()
	// What passes: out of descriptors, or a client that left already.
	failed := func(err error) { s.log.Warn("accept a data connection", "err", err) }
	if err := accept.All(ctx, l.Accept, func(nc net.Conn) { s.accept(ctx, nc) }, failed); ctx.Err() == nil {
		return fmt.Errorf("tcp: accept: %w", err)
	}
	return ctx.Err()
}

// Strangers returns a table for ServerConfig.Strangers; full is as in places.New.
func Strangers(full func(owner string, dropped uint64)) *places.Table {
	return places.New(maxGreeting, places.DropOldest, full)
}

// accept begins to serve a connection. Where there are too many that have not said who they are,
// it drops one of them, and waits until one has noticed.
func (s *server) accept(ctx context.Context, conn net.Conn) {
	nc := &direct{Conn: conn}
	select {
	case s.greeting <- struct{}{}:
	case <-ctx.Done():
		_ = nc.Close()
		return
	}
	place := s.strangers.Enter(places.Source(nc.RemoteAddr()), places.Closer(conn))
	s.links.Go(func() {
		defer func() { _ = nc.Close() }()
		// Who was not welcomed has nothing to wait for.
		welcome := context.AfterFunc(ctx, func() { _ = nc.Close() })
		defer welcome()
		deadline := time.Now().Add(handshakeTimeout)
		h, session, err := s.hello(nc, deadline)
		if !place.Leave() && err == nil {
			err = errUnavailable // dropped at the last moment
		}
		<-s.greeting
		if err != nil {
			s.stranger(nc, err)
			return
		}
		k, err := s.greet(ctx, nc, session, h, deadline)
		if err == nil && welcome() {
			if s.few() {
				nc.detach(writeTimeout)
			}
			err = k.serve(ctx)
		}
		if k != nil {
			s.leave(k)
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			s.log.Info("data connection ended", "peer", nc.RemoteAddr(), "err", err)
		}
	})
}

// few says whether a connection may have a thread.
func (s *server) few() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.welcomed <= maxThreads
}

// stranger logs why a connection got no session: once a second, however many come.
func (s *server) stranger(nc net.Conn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.told) < time.Second {
		s.untold++
		return
	}
	s.log.Info("data connection refused", "peer", nc.RemoteAddr(), "err", err, "others before", s.untold)
	s.told, s.untold = time.Now(), 0
}

// hello takes the HELLO and finds the session, for which TLS shakes hands first. If it
// fails the client is told.
func (s *server) hello(nc *direct, deadline time.Time) (h hello, session Session, err error) {
	if err := nc.SetDeadline(deadline); err != nil {
		return h, nil, err
	}
	b := make([]byte, helloSize)
	if _, err := io.ReadFull(nc, b); err != nil {
		return h, nil, fmt.Errorf("hello: %w", err)
	}
	if err = h.decode(b); err == nil {
		session, err = s.sessions.Session(h.token)
	}
	if err != nil {
		_, _ = nc.Write(refuseHello(err)) // it is told, or it is gone
	}
	return h, session, err
}

func refuseHello(err error) []byte {
	return (&welcome{code: codeOf(err, codeUnavailable), text: err.Error()}).encode()
}

// greet joins nc to its stream and answers HELLO. A link that is returned, even with
// an error, has to leave.
func (s *server) greet(ctx context.Context, nc *direct, session Session, h hello, deadline time.Time) (*link, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	k, err := s.join(ctx, nc, session, h)
	answer := []byte(nil)
	if err != nil {
		answer = refuseHello(err)
	} else {
		m := session.Medium()
		answer = (&welcome{kind: m.Kind, volatile: m.Volatile}).encode()
	}
	if k != nil {
		// Its old connection may take longer than the handshake.
		_ = nc.SetDeadline(time.Now().Add(time.Second))
	}
	if _, werr := nc.Write(answer); err == nil {
		err = werr
	}
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	return k, err
}

// join makes nc the connection of its stream. The one before is cut, and everything
// that it received is applied or dropped when join returns without an error: what
// comes over nc comes after it.
func (s *server) join(ctx context.Context, nc *direct, session Session, h hello) (*link, error) {
	k := newLink(nc, session, h)
	s.mu.Lock()
	links := s.streams[h.token]
	old := links[h.stream]
	var err error
	switch {
	case old != nil && h.attempt <= old.hello.attempt:
		err = fmt.Errorf("attempt %d came after %d: %w", h.attempt, old.hello.attempt, errUnavailable)
	case old == nil && len(links) >= maxStreams:
		err = fmt.Errorf("the session has %d connections: %w", len(links), errUnavailable)
	case s.welcomed >= s.limit && (old == nil || s.welcomed >= 2*s.limit): // those that wait for their old ones
		err = fmt.Errorf("%d connections: %w", s.welcomed, errUnavailable)
	}
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	if links == nil {
		links = make(clientLinks)
		s.streams[h.token] = links
	}
	links[h.stream] = k
	s.welcomed++
	s.mu.Unlock()
	if old == nil {
		return k, nil
	}
	k.before = old.drained
	_ = old.nc.Close()
	select {
	case <-old.drained:
		return k, nil
	case <-ctx.Done():
		return k, fmt.Errorf("the connection before is still at work: %w", errUnavailable)
	}
}

// leave forgets k once nothing of its stream is applied any more. A connection that
// comes meanwhile waits for it, as k waits for the one before.
func (s *server) leave(k *link) {
	_ = k.nc.Close()
	if k.before != nil {
		<-k.before
	}
	k.drainOnce()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.welcomed--
	links := s.streams[k.hello.token]
	if links[k.hello.stream] == k {
		delete(links, k.hello.stream)
		if len(links) == 0 {
			delete(s.streams, k.hello.token)
		}
	}
}
