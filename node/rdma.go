package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// serveRDMA serves the RDMA data path until ctx is done or it fails. Where a device does
// not reach the medium its connections are streams, which package tcp serves as it does
// those of TCP, TLS included.
func (s *Server) serveRDMA(ctx context.Context) error {
	if s.cfg.RDMA == nil {
		return nil
	}
	sessions := s.data()
	streams := newHanded(s.cfg.RDMA.Addr())
	var l net.Listener = streams
	if s.cfg.TLS != nil {
		l = tls.NewListener(l, s.cfg.TLS)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		defer cancel()
		served <- tcp.Serve(ctx, l, sessions, tcp.ServerConfig{Log: s.log})
	}()
	err := verbs.Serve(ctx, s.cfg.RDMA, rdmaSessions{sessions, s.tokens}, verbs.ServerConfig{
		Persistence: s.cfg.Persistence, Stream: streams.hand, Log: s.log,
	})
	cancel()
	err = errors.Join(unlessDone(ctx, err), unlessDone(ctx, <-served))
	if err != nil {
		return fmt.Errorf("node: RDMA: %w", err)
	}
	return nil
}

// unlessDone is err, unless it only says that ctx is done.
func unlessDone(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}

// rdmaPort is the port of the RDMA data path; 0: there is none.
func (s *Server) rdmaPort() uint32 {
	if s.cfg.RDMA == nil {
		return 0
	}
	return portOf(s.cfg.RDMA.Addr())
}

// handed is a net.Listener of connections that somebody else accepted.
type handed struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{} // closed by Close
	once  sync.Once
}

// maxHanded bounds the connections that wait for Accept.
const maxHanded = 16

func newHanded(addr net.Addr) *handed {
	return &handed{addr: addr, conns: make(chan net.Conn, maxHanded), done: make(chan struct{})}
}

// hand gives nc to whoever accepts. It is closed if nobody does.
func (h *handed) hand(nc net.Conn) {
	select {
	case <-h.done:
	default:
		select {
		case h.conns <- nc:
			return
		default: // a flood: the client comes again
		}
	}
	_ = nc.Close()
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case nc := <-h.conns:
		return nc, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept, and closes the connections that wait for it.
func (h *handed) Close() error {
	h.once.Do(func() { close(h.done) })
	for {
		select {
		case nc := <-h.conns:
			_ = nc.Close()
		default:
			return nil
		}
	}
}

func (h *handed) Addr() net.Addr { return h.addr }
