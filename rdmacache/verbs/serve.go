package verbs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/accept"
)

const (
	defaultConnections = 1024
	// maxGreeting bounds the connections that have not been welcomed yet, beyond those
	// that have.
	maxGreeting = 256
	// maxStreams bounds the connections of one session.
	maxStreams = 32
	// handshakeTimeout is how long a client has to come in, and its old connection to end.
	handshakeTimeout = 5 * time.Second
	// serverCredits is how many messages a client may have under way.
	serverCredits = 8
)

// errSuperseded reports a connection that another one took the place of, or whose session
// is over.
var errSuperseded = errors.New("verbs: the connection has ended")

// A ServerConfig says how to serve. Its zero value is ready for use.
type ServerConfig struct {
	// Persistence is what the operator knows of this machine.
	Persistence Persistence
	Connections int // how many at once; 0 means 1024
	// Stream takes over a connection of a client whose bytes all go in messages, where the
	// pool is not memory that a device reaches, or where the client wants that. It returns
	// at once. nil: there are none.
	Stream func(net.Conn)
	Log    *slog.Logger // nil discards
}

// A server is one call of Serve.
type server struct {
	sessions Sessions
	cfg      ServerConfig
	log      *slog.Logger

	links sync.WaitGroup

	mu       sync.Mutex
	greeting int // connections that are not welcomed yet
	welcomed int // and those that are, or wait for the one before to end
	streams  map[streamName]*serverLink
	session  map[Session]int // connections of each
}

// A streamName names what has one connection at a time.
type streamName struct {
	session Session
	stream  uint64
}

// Serve serves the connections that l accepts, until ctx ends or l fails. It closes l, and
// returns when no connection is left. ctx.Err() if ctx ended.
//
// The pool has to stay mapped until then. A connection takes less than 4 MiB of memory,
// whatever the client sends, and at most 1024 MRs.
func Serve(ctx context.Context, l Listener, sessions Sessions, cfg ServerConfig) error {
	s := &server{
		sessions: sessions, cfg: cfg, log: cfg.Log,
		streams: make(map[streamName]*serverLink), session: make(map[Session]int),
	}
	if s.cfg.Connections <= 0 {
		s.cfg.Connections = defaultConnections
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer s.links.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // Accept returns
	defer stop()
	failed := func(err error) { s.log.Warn("accept an RDMA connection", "err", err) }
	if err := accept.All(ctx, l.Accept, func(r Request) { s.accept(ctx, r) }, failed); ctx.Err() == nil {
		return fmt.Errorf("verbs: accept: %w", err)
	}
	return ctx.Err()
}

// accept begins to serve r, or rejects it where there are too many.
func (s *server) accept(ctx context.Context, r Request) {
	s.mu.Lock()
	full := s.greeting >= maxGreeting
	if !full {
		s.greeting++
	}
	s.mu.Unlock()
	if full {
		_ = r.Reject((&refusal{codeUnavailable, "too many come at once"}).encodeReject())
		return
	}
	s.links.Go(func() {
		var greeted sync.Once
		done := func() {
			greeted.Do(func() {
				s.mu.Lock()
				s.greeting--
				s.mu.Unlock()
			})
		}
		defer done()
		var h hello
		session, err := s.admit(r, &h)
		if err != nil { // anybody may come, and must not fill the log
			s.log.Debug("RDMA connection refused", "peer", r.Peer(), "err", s.reject(r, err))
			return
		}
		if err := s.handle(ctx, r, session, h, done); err != nil && ctx.Err() == nil {
			s.log.Info("RDMA connection ended", "peer", r.Peer(), "err", err)
		}
	})
}

// handle serves one connection of a session. welcomed is called when the greeting is over.
func (s *server) handle(ctx context.Context, r Request, session Session, h hello, welcomed func()) error {
	var k *serverLink
	err := s.sparing(nil, func() (err error) {
		k, err = newServerLink(session, h, r, s.log)
		return err
	})
	if err != nil {
		return s.reject(r, err)
	}
	defer k.close()
	if err := s.join(k); err != nil {
		return s.reject(r, err)
	}
	defer s.leave(k)
	c := choice{method: ByMessage, why: []string{"the client wants messages"}}
	if !h.wants {
		if err := s.sparing(k.window, func() (err error) {
			c, err = choose(session, r.Device(), k.domain, h.flushes, s.cfg.Persistence)
			return err
		}); err != nil {
			return s.reject(r, err)
		}
	}
	s.log.Info("RDMA connection", "peer", r.Peer(), "device", r.Device().Name(), "medium", session.Medium().Kind,
		"method", c.method, "because", c.String())
	switch {
	case c.method != ByMessage:
		return s.serve(ctx, k, r, c, welcomed)
	case s.cfg.Stream == nil:
		return s.reject(r, &refusal{codeUnavailable, c.String()})
	case !h.wants:
		return s.reject(r, &refusal{codeMessage, c.String()})
	}
	return s.stream(ctx, k, r, welcomed)
}

// admit takes the token of a request.
func (s *server) admit(r Request, h *hello) (Session, error) {
	if err := h.decode(r.Private()); err != nil {
		return nil, err
	}
	return s.sessions.Take(h.token)
}

func (s *server) reject(r Request, err error) error {
	why := &refusal{codeOf(err, codeUnavailable), textOf(err)}
	return errors.Join(err, r.Reject(why.encodeReject()))
}

// join makes k the connection of its stream. The one before has ended when join returned
// without an error: nothing of it arrives any more.
func (s *server) join(k *serverLink) error {
	s.mu.Lock()
	old := s.streams[k.name]
	var err error
	switch {
	case old != nil && k.attempt <= old.attempt:
		err = fmt.Errorf("attempt %d came after %d: %w", k.attempt, old.attempt, errUnavailable)
	case old == nil && s.session[k.name.session] >= maxStreams:
		err = fmt.Errorf("the session has %d connections: %w", maxStreams, errUnavailable)
	case old == nil && s.welcomed >= s.cfg.Connections:
		err = fmt.Errorf("%d connections: %w", s.welcomed, errUnavailable)
	}
	if err != nil {
		s.mu.Unlock()
		return err
	}
	s.streams[k.name] = k
	s.session[k.name.session]++
	s.welcomed++
	k.before = old
	s.mu.Unlock()
	for old != nil {
		old.end()
		s.mu.Lock()
		old = old.before // old may still be at ending it
		s.mu.Unlock()
	}
	s.mu.Lock()
	k.before = nil
	s.mu.Unlock()
	return nil
}

// leave forgets k, which has ended.
func (s *server) leave(k *serverLink) {
	k.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.welcomed--
	if s.session[k.name.session]--; s.session[k.name.session] == 0 {
		delete(s.session, k.name.session)
	}
	if s.streams[k.name] == k {
		delete(s.streams, k.name)
	}
}

// A serverLink is one connection of a client, at the memory node.
type serverLink struct {
	name    streamName // immutable, as all up to window
	attempt uint32
	log     *slog.Logger
	domain  Domain
	mem     []byte // messages
	mr      MR     // of mem
	window  *window
	before  *serverLink // that it took the place of, until that has ended; the server's mu guards it
}

// end ends the connection: nothing of it arrives when it returned.
func (k *serverLink) end() { k.window.End() }

// The messages of a connection: buffers to receive, and twice as many to answer.
const serverMessages = 3 * serverCredits

func newServerLink(session Session, h hello, r Request, log *slog.Logger) (*serverLink, error) {
	size := serverMessages * messageSize
	if h.wants {
		size = streamSize
	}
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	k := &serverLink{
		name: streamName{session, h.stream}, attempt: h.attempt, log: log.With("peer", r.Peer()), mem: mem,
	}
	if k.domain, err = r.Device().NewDomain(); err == nil {
		k.mr, err = k.domain.Register(mem, 0)
	}
	if err != nil {
		k.close()
		return nil, fmt.Errorf("device %s: %w", r.Device().Name(), err)
	}
	k.window = &window{session: session, mem: session.Bytes(), domain: k.domain, log: k.log}
	return k, nil
}

// close gives everything back. The window has ended.
func (k *serverLink) close() {
	var err error
	if k.mr != nil {
		err = k.mr.Close()
	}
	if k.domain != nil {
		err = errors.Join(err, k.domain.Close())
	}
	if err != nil {
		k.log.Error("RDMA memory cannot be given back", "err", err)
		return // the device may still use it
	}
	_ = unix.Munmap(k.mem) // it is mapped
}

// buffer is message i.
func (k *serverLink) buffer(i int) []byte { return k.mem[i*messageSize : (i+1)*messageSize] }
