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
)

const (
	defaultConnections = 1024
	// maxGreeting bounds the connections that have not been welcomed yet, beyond
	// those that have.
	maxGreeting = 256
	// maxStreams bounds the connections of one session.
	maxStreams = 16
	// handshakeTimeout is how long a client has for its HELLO, and for its old
	// connection to end.
	handshakeTimeout = 5 * time.Second
)

// A server is one call of Serve.
type server struct {
	sessions Sessions
	limit    int
	log      *slog.Logger

	links sync.WaitGroup

	mu       sync.Mutex
	greeting int                      // connections that are not welcomed yet
	welcomed int                      // and those that are
	streams  map[[32]byte]clientLinks // by token
}

// clientLinks holds the newest connection of each stream of a session.
type clientLinks map[uint64]*link

// Serve serves the connections that l accepts, until ctx ends or l fails. It closes
// l, and returns when no connection is left. ctx.Err() if ctx ended.
//
// A connection takes less than 4 MiB of memory, whatever the client sends.
func Serve(ctx context.Context, l net.Listener, sessions Sessions, cfg ServerConfig) error {
	s := &server{sessions: sessions, limit: cfg.Connections, log: cfg.Log, streams: make(map[[32]byte]clientLinks)}
	if s.limit <= 0 {
		s.limit = defaultConnections
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer s.links.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // Accept returns
	defer stop()
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.accept(ctx, nc)
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("tcp: accept: %w", err)
		default:
			// Out of descriptors, or a client that left already.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("accept a data connection", "err", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}

// accept begins to serve nc, or closes it where there are too many.
func (s *server) accept(ctx context.Context, nc net.Conn) {
	s.mu.Lock()
	full := s.greeting >= maxGreeting
	if !full {
		s.greeting++
	}
	s.mu.Unlock()
	if full {
		_ = nc.Close()
		return
	}
	s.links.Go(func() {
		defer func() { _ = nc.Close() }()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
		defer stop()
		k, err := s.greet(ctx, nc)
		s.mu.Lock()
		s.greeting--
		s.mu.Unlock()
		if err == nil {
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

// greet exchanges HELLO and WELCOME. A link that is returned, even with an error,
// has to leave.
func (s *server) greet(ctx context.Context, nc net.Conn) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := nc.SetDeadline(deadline); err != nil {
		return nil, err
	}
	b := make([]byte, helloSize)
	if _, err := io.ReadFull(nc, b); err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	var h hello
	err := h.decode(b)
	var session Session
	if err == nil {
		session, err = s.sessions.Session(h.token)
	}
	var k *link
	if err == nil {
		k, err = s.join(ctx, nc, session, h)
	}
	w := welcome{}
	if err != nil {
		w.code, w.text = codeOf(err, codeUnavailable), err.Error()
	} else {
		m := session.Medium()
		w.kind, w.volatile = m.Kind, m.Volatile
	}
	if k != nil {
		// Its old connection may take longer than the handshake.
		_ = nc.SetDeadline(time.Now().Add(time.Second))
	}
	if _, werr := nc.Write(w.encode()); err == nil {
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
func (s *server) join(ctx context.Context, nc net.Conn, session Session, h hello) (*link, error) {
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
	case old == nil && s.welcomed >= s.limit:
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
