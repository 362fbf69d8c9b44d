// Package node serves a pool to compute nodes: the gRPC service of nodepb/node.proto,
// and package rdmacache/tcp for the bytes. Which session may write is decided here.
//
// A session holds the lease of one share, or of the whole pool, and shows a random
// token with every call and data connection. Leases are recorded in the pool, so a
// restarted node goes on with the sessions that it had.
package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/rpmemfs/rpmemfs/internal/places"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// What a lease may last.
const (
	DefaultLease = 10 * time.Second
	MinLease     = time.Second
	MaxLease     = 10 * time.Minute
	// MaxPatience is the longest that a session may be silent while nobody wants its share.
	MaxPatience = 24 * time.Hour
)

// Limits of what a caller may send and of what waits for it.
const (
	maxCalls         = 256 // at a time, on one connection
	maxWait          = time.Hour
	maxHolder        = 255 // bytes
	handshakeTimeout = 5 * time.Second

	// pingEvery is how long a silent connection is trusted, and again how long it
	// may take to answer.
	pingEvery = 10 * time.Second

	// stopGrace is how long calls may go on after Run's context is done, and
	// again how long cancelled calls may take to return. Data connections have less
	// (package rdmacache/tcp), and a service manager should wait longer.
	stopGrace = 5 * time.Second
)

// A Config says what a Server serves.
type Config struct {
	// Pool is open for writing, with KeepOrphans. The owner closes it after Run.
	Pool *memnode.Pool
	// TLS is that of both listeners, and must ask for certificates: see package
	// internal/pki. Nil is plain TCP, and everybody may do everything.
	TLS *tls.Config
	// Lease is how long a lease lasts if its holder does not say; 0 is
	// DefaultLease.
	Lease time.Duration
	// RDMA takes connections of the RDMA data path; nil: there is none. Run closes it.
	RDMA verbs.Listener
	// Persistence is what the operator knows of writes over RDMA.
	Persistence verbs.Persistence
	Version     string // of the program
	// Flushed is told how long each flush of a data connection took; nil: nobody is.
	Flushed func(time.Duration)
	Log     *slog.Logger // nil discards
}

// A Server serves one pool to sessions.
type Server struct {
	nodepb.UnimplementedNodeServer

	cfg      Config // immutable, defaults filled in
	log      *slog.Logger
	sessions *manager
	pins     *pins
	tokens   *tokens
	work     dataWork
	checking chan struct{} // full while a Check runs
	dataPort uint32        // set by Run before it serves

	door      doorkeeper    // of the API
	strangers *places.Table // of the data path
}

// NewServer returns a server that Run starts, once.
func NewServer(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Lease == 0 {
		cfg.Lease = DefaultLease
	}
	sessions := newManager(poolStore{cfg.Pool}, cfg.Log)
	s := &Server{
		cfg:      cfg,
		log:      cfg.Log,
		sessions: sessions,
		tokens:   newTokens(),
		work:     dataWork{flushed: cfg.Flushed},
		pins:     newPins(cfg.Pool, sessions, cfg.Log),
		checking: make(chan struct{}, 1),
	}
	s.door = newDoorkeeper(s)
	s.strangers = tcp.Strangers(s.warnFull("data path, no session yet"))
	return s
}

// Run serves both listeners, which it closes, until ctx is done or one fails. It
// takes up the leases that are recorded, and leaves them recorded when it ends: so
// holders go on when the node is back in time. Calls under way get a few seconds, and
// so do requests that data connections over TCP had received.
// When it returns nil, no call uses the pool any more, and what was written is
// flushed.
func (s *Server) Run(ctx context.Context, control, data net.Listener) error {
	if err := s.sessions.restore(context.WithoutCancel(ctx)); err != nil {
		err = errors.Join(err, control.Close(), data.Close())
		if s.cfg.RDMA != nil {
			err = errors.Join(err, s.cfg.RDMA.Close())
		}
		return err
	}
	s.dataPort = portOf(data.Addr())
	if s.cfg.TLS != nil {
		data = tls.NewListener(data, s.cfg.TLS)
	}
	g := s.newGRPC()

	// Whichever ends first ends the other.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- g.Serve(control) }()
	moved := make(chan error, 1)
	go func() {
		defer cancel()
		moved <- tcp.Serve(ctx, data, s.data(), tcp.ServerConfig{Strangers: s.strangers, Log: s.log})
	}()
	direct := make(chan error, 1)
	go func() {
		err := s.serveRDMA(ctx)
		if err != nil {
			cancel()
		}
		direct <- err
	}()
	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("node: serve %v: %w", control.Addr(), err)
		cancel()
		served <- nil
	case <-ctx.Done():
	}
	s.sessions.stop()
	err = errors.Join(err, s.stopGRPC(g))
	<-served
	if dataErr := <-moved; dataErr != nil && !errors.Is(dataErr, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("node: data path: %w", dataErr))
	}
	err = errors.Join(err, <-direct)
	// What was acknowledged is flushed; this is for the rest.
	return errors.Join(err, s.cfg.Pool.Flush())
}

// Stats tells of the sessions, of connections, and of what these did.
func (s *Server) Stats() Stats {
	st := s.sessions.stats()
	for _, table := range []*places.Table{s.door.strangers, s.door.known, s.strangers} {
		taken, dropped := table.Counts()
		if table != s.door.known {
			st.Strangers += taken
		}
		st.Dropped += dropped
	}
	st.Refused, st.Failed = s.work.refused.Load(), s.work.failed.Load()
	return st
}

// data is the sessions as data paths know them.
func (s *Server) data() dataSessions { return dataSessions{s.sessions, &s.work} }

func (s *Server) newGRPC() *grpc.Server {
	g := grpc.NewServer(
		grpc.Creds(s.door),
		grpc.MaxRecvMsgSize(nodepb.MaxRequestBytes),
		grpc.MaxSendMsgSize(nodepb.MaxResponseBytes),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: pingEvery}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	nodepb.RegisterNodeServer(g, s)
	healthpb.RegisterHealthServer(g, health.NewServer())
	reflection.RegisterV1(g)
	return g
}

// stopGRPC lets calls end, then cancels them, and then gives up.
func (s *Server) stopGRPC(g *grpc.Server) error {
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		g.GracefulStop()
	}()
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-graceful:
		return nil
	case <-timer.C:
	}
	s.sessions.cancel()
	go g.Stop() // cancels the calls; GracefulStop returns too
	timer.Reset(stopGrace)
	select {
	case <-graceful:
		return nil
	case <-timer.C:
		return errors.New("node: stop: calls do not end")
	}
}

func portOf(addr net.Addr) uint32 {
	_, text, err := net.SplitHostPort(addr.String())
	if err != nil {
		return 0
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0
	}
	return uint32(port)
}
