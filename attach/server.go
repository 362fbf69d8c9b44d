package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/attach/wire"
	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
)

// Limits of the server.
const (
	maxConns     = 1024 // connections, members and others
	helloTimeout = 5 * time.Second
	acceptPause  = 50 * time.Millisecond // when the daemon is out of descriptors
)

// A Config says what a Server serves.
type Config struct {
	Regions Regions
	// Interval is how often a file gets an epoch that nobody asked for, while all of
	// its members have restart points; 0: never. It is asked again after each epoch.
	// nil is never.
	Interval func(ino uint64) time.Duration
	// Errno is what members are told of an error. nil tells unix.Errno as they are,
	// those of package namespace that Attach returns, and EIO for all others.
	Errno func(error) unix.Errno
	// Paused is told how long each barrier that sealed paused the members; nil: nobody is. It
	// does not wait.
	Paused func(time.Duration)
	Log    *slog.Logger // nil discards
}

// A Server runs the barriers of all files that have members. It is safe for
// concurrent use.
//
// Lock order: mu, then a group's locks.
type Server struct {
	cfg    Config // immutable
	lastID atomic.Uint32

	mu     sync.Mutex // guards groups
	groups map[uint64]*group
}

// NewServer returns a server without members.
func NewServer(cfg Config) *Server {
	if cfg.Interval == nil {
		cfg.Interval = func(uint64) time.Duration { return 0 }
	}
	if cfg.Errno == nil {
		cfg.Errno = defaultErrno
	}
	if cfg.Paused == nil {
		cfg.Paused = func(time.Duration) {}
	}
	errno := cfg.Errno
	cfg.Errno = func(err error) unix.Errno {
		if err == nil {
			return 0
		}
		return errno(err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, groups: make(map[uint64]*group)}
}

func defaultErrno(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, ErrLost):
		return unix.EOWNERDEAD
	case errors.Is(err, namespace.ErrNotExist):
		return unix.ENOENT
	case errors.Is(err, namespace.ErrInvalid):
		return unix.EINVAL
	case errors.Is(err, os.ErrPermission):
		return unix.EACCES
	case errors.Is(err, context.DeadlineExceeded):
		return unix.ETIMEDOUT
	}
	return unix.EIO
}

// Serve takes members from l, a listener of SOCK_SEQPACKET, until ctx is done or l
// fails. It closes l. When it returns all members are out and no region is in use.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })() // Accept returns then
	defer l.Close()
	slots := make(chan struct{}, maxConns)
	for {
		conn, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ECONNABORTED):
			s.cfg.Log.Warn("attach: accept", "err", err)
			time.Sleep(acceptPause)
			continue
		case err != nil:
			return fmt.Errorf("attach: serve %v: %w", l.Addr(), err)
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close() // one too many
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			if err := s.admit(ctx, &wg, conn); err != nil {
				s.cfg.Log.Info("attach refused", "err", err)
			}
		})
	}
}

// admit takes a connection from its Hello to its end.
func (s *Server) admit(ctx context.Context, wg *sync.WaitGroup, conn *net.UnixConn) error {
	p, err := peerOf(conn)
	if err != nil {
		return err
	}
	defer p.close()
	l, err := newLink(conn)
	if err != nil {
		return err
	}
	c := &member{
		uid: p.uid, peer: p, link: l,
		kick: make(chan struct{}, 1), left: make(chan struct{}),
	}
	c.target.Store(none)
	c.limit.Store(none)
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseRead() }) // until its group does that
	defer stop()
	hello, err := c.hello()
	if err != nil {
		return fmt.Errorf("process %d: %w", p.pid, err)
	}
	c.seat = seat{id: s.lastID.Add(1), pid: p.pid, name: printable(hello.Name), flags: hello.Flags}
	if err := s.join(ctx, wg, c, hello); err != nil {
		_ = l.send(&wire.Welcome{Errno: s.cfg.Errno(err)}) // it may be gone
		if c.ring != nil {
			_ = c.ring.Close() // nothing was in it
		}
		return fmt.Errorf("process %d (%q), inode %d: %w", p.pid, c.seat.name, hello.Ino, err)
	}
	stop()
	c.serve(ctx)
	return nil
}

// hello reads the first message and maps the ring that comes with it.
func (c *member) hello() (*wire.Hello, error) {
	if err := c.link.conn.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return nil, err
	}
	b, oob := make([]byte, wire.MaxRequest+1), make([]byte, unix.CmsgSpace(4*8))
	n, oobn, _, _, err := c.link.conn.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	fds := rights(oob[:oobn])
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd) // the mapping stays
		}
	}()
	msg, err := wire.Decode(b[:n])
	if err != nil {
		return nil, err
	}
	hello, ok := msg.(*wire.Hello)
	if !ok {
		return nil, errors.New("the first message is no HELLO")
	}
	if len(fds) != 1 {
		return nil, fmt.Errorf("HELLO with %d descriptors, want 1", len(fds))
	}
	c.ring, err = ring.Open(fds[0], hello.Frames)
	return hello, err
}

// rights returns the descriptors that came with a message.
func rights(oob []byte) (fds []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		if more, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, more...)
		}
	}
	return fds
}

// join brings a member into the group of its file, after those that died before it
// came were dealt with.
func (s *Server) join(ctx context.Context, wg *sync.WaitGroup, c *member, hello *wire.Hello) error {
	if hello.Flags&wire.RestartPoints != 0 && hello.Flags&wire.CommitOnly != 0 {
		return unix.EINVAL
	}
	limit, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := c.link.conn.SetReadDeadline(time.Now().Add(joinTimeout)); err != nil {
		return err
	}
	if err := s.Settle(limit, hello.Ino); err != nil {
		return err
	}
	region, err := s.cfg.Regions.Attach(limit, hello.Ino, c.peer.uid, c.peer.gid)
	if err != nil {
		return err
	}
	interval := s.cfg.Interval(hello.Ino)
	for {
		s.mu.Lock()
		g := s.groups[hello.Ino]
		if g == nil {
			if err := region.Err(); err != nil {
				s.mu.Unlock()
				region.Close()
				return err
			}
			g = newGroup(hello.Ino, region, &s.cfg)
			g.join(c, interval)
			s.groups[hello.Ino] = g
			s.mu.Unlock()
			wg.Go(func() { s.run(ctx, g) })
			return nil
		}
		s.mu.Unlock()
		c.hold = region // the group has its own
		if g.join(c, interval) {
			return nil
		}
		c.hold = nil
		if err := await(limit, g.ended); err != nil {
			region.Close()
			return err
		}
	}
}

func (s *Server) run(ctx context.Context, g *group) {
	defer close(g.ended)
	g.run(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.groups, g.ino)
}

func (s *Server) group(ino uint64) *group {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groups[ino]
}

// Checkpoint makes everything durable that was stored before the call, at a barrier,
// and returns the last committed epoch. handled is false if the file has no member
// with restart points; then nothing was done. Errors match ErrLate, ErrLost,
// ErrCalledOff, or are those of the commit.
func (s *Server) Checkpoint(ctx context.Context, ino uint64) (id epoch.ID, handled bool, err error) {
	g := s.group(ino)
	if g == nil {
		return 0, false, nil
	}
	return g.checkpoint(ctx)
}

// Settle returns when the open epoch of a file holds nothing of a member that is dead
// by now: it was rolled back. It returns ctx's error if the survivors take longer to
// park.
func (s *Server) Settle(ctx context.Context, ino uint64) error {
	g := s.group(ino)
	if g == nil {
		return nil
	}
	return g.settle(ctx)
}

// Status describes the members of a file; false if it has none.
func (s *Server) Status(ino uint64) (Status, bool) {
	g := s.group(ino)
	if g == nil {
		return Status{}, false
	}
	return g.status(), true
}

// Files describes all files that have members, by number.
func (s *Server) Files() []Status {
	s.mu.Lock()
	inos := slices.Sorted(maps.Keys(s.groups))
	s.mu.Unlock()
	var files []Status
	for _, ino := range inos {
		if st, ok := s.Status(ino); ok {
			files = append(files, st)
		}
	}
	return files
}

// HasRestartPoints reports whether a process is attached to a file and has restart
// points.
func (s *Server) HasRestartPoints(ino uint64, pid int) bool {
	st, _ := s.Status(ino)
	return slices.ContainsFunc(st.Members, func(m Member) bool { return m.PID == pid && m.RestartPoints })
}
