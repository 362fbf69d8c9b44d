package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/namespace"
)

// A Server answers the control API from a volume. The volume outlives Run.
type Server struct {
	controlpb.UnimplementedControlServer

	volume Volume
	open   func(context.Context, namespace.Ino) (image, error) // of volume
	info   Info
	log    *slog.Logger
	grace  time.Duration // stopGrace, or less in tests

	mu    sync.Mutex
	calls map[string]int // under way, by method
	idle  chan struct{}  // closed when calls is empty; nil unless drain waits
}

// NewServer returns a server of vol. A nil log discards.
func NewServer(vol Volume, info Info, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	open := func(ctx context.Context, ino namespace.Ino) (image, error) {
		h, err := vol.Open(ctx, ino)
		if err != nil {
			return nil, err // not a nil *volume.Handle in an image
		}
		return h, nil
	}
	return &Server{volume: vol, open: open, info: info, log: log, grace: stopGrace, calls: make(map[string]int)}
}

// Run serves l, which it closes, until ctx is done or l fails. It then takes no
// new calls, gives those under way a few seconds, and cancels the rest. When it
// returns nil no call uses the volume any more.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(
		grpc.Creds(peerCredentials{}),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxSendMsgSize(maxResponseBytes),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingEvery / 2, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	controlpb.RegisterControlServer(g, s)
	healthpb.RegisterHealthServer(g, health.NewServer())
	reflection.RegisterV1(g)

	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()

	select {
	case err := <-served:
		g.Stop()
		return errors.Join(fmt.Errorf("control: serve %v: %w", l.Addr(), err), s.drain())
	case <-ctx.Done():
	}
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		g.GracefulStop()
	}()
	timer := time.NewTimer(s.grace)
	defer timer.Stop()
	select {
	case <-graceful:
	case <-timer.C:
		g.Stop() // cancels the calls; GracefulStop returns too
		<-graceful
	}
	<-served
	return s.drain()
}

// drain waits until no call is under way, or names those that do not end.
func (s *Server) drain() error {
	s.mu.Lock()
	idle := make(chan struct{})
	s.idle = idle
	if len(s.calls) == 0 {
		close(idle)
		s.idle = nil
	}
	s.mu.Unlock()

	timer := time.NewTimer(s.grace)
	defer timer.Stop()
	select {
	case <-idle:
		return nil
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Errorf("control: stop: calls do not end: %s", strings.Join(slices.Sorted(maps.Keys(s.calls)), ", "))
}

func (s *Server) enter(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[method]++
}

func (s *Server) leave(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls[method]--; s.calls[method] == 0 {
		delete(s.calls, method)
	}
	if len(s.calls) == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	s.enter(info.FullMethod)
	defer s.leave(info.FullMethod)
	if err := authorize(ctx, s.info.OwnerUID); err != nil {
		return nil, s.fail(info.FullMethod, err)
	}
	reply, err := handle(ctx, req)
	if err != nil {
		return nil, s.fail(info.FullMethod, err)
	}
	return reply, nil
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	// Reflection streams live as long as their client likes and never touch the
	// volume.
	if strings.HasPrefix(info.FullMethod, "/"+controlpb.Control_ServiceDesc.ServiceName+"/") {
		s.enter(info.FullMethod)
		defer s.leave(info.FullMethod)
	}
	if err := authorize(stream.Context(), s.info.OwnerUID); err != nil {
		return s.fail(info.FullMethod, err)
	}
	if err := handle(srv, stream); err != nil {
		return s.fail(info.FullMethod, err)
	}
	return nil
}

func (s *Server) fail(method string, err error) error {
	s.log.Debug("control call failed", "method", method, "err", err)
	return wire.Encode(err)
}
