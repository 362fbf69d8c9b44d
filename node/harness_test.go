package node

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/internal/loopback"
	"github.com/rpmemfs/rpmemfs/internal/rpcerr"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// A testNode is a memory node on the loopback, that can be restarted.
type testNode struct {
	t   *testing.T
	dir string
	cfg Config

	server *Server
	pool   *memnode.Pool
	stop   func() // ends the node; what it returned is checked
	addr   string // of the control listener
	data   string
}

// newNode makes a pool and starts a node on it.
func newNode(t *testing.T, cfg Config) *testNode {
	t.Helper()
	host := loopback.Host()
	n := &testNode{t: t, dir: t.TempDir(), cfg: cfg, addr: host + ":0", data: host + ":0"}
	if err := memnode.Create(n.dir, memnode.CreateOptions{SizeBytes: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

// start opens the pool and serves it, where it was served before.
func (n *testNode) start() {
	n.t.Helper()
	var err error
	if n.pool, err = memnode.Open(n.dir, memnode.Options{KeepOrphans: true}); err != nil {
		n.t.Fatal(err)
	}
	cfg := n.cfg
	cfg.Pool = n.pool
	n.server = NewServer(cfg)
	control, data := n.listen(&n.addr), n.listen(&n.data)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.server.Run(ctx, control, data) }()
	n.stop = func() {
		n.stop = func() {}
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("run: %v", err)
		}
		if err := n.pool.Close(); err != nil {
			n.t.Errorf("close pool: %v", err)
		}
	}
}

func (n *testNode) listen(addr *string) net.Listener {
	n.t.Helper()
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		n.t.Fatal(err)
	}
	*addr = l.Addr().String()
	return l
}

// client returns a client of the service; cfg as for credentials.NewTLS, nil for
// none.
func (n *testNode) client(cfg *tls.Config) nodepb.NodeClient {
	n.t.Helper()
	creds := insecure.NewCredentials()
	if cfg != nil {
		creds = credentials.NewTLS(cfg)
	}
	conn, err := grpc.NewClient("passthrough:///"+n.addr, grpc.WithTransportCredentials(creds),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if err := invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(true))...); err != nil {
				return wire.Decode(err)
			}
			return nil
		}))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = conn.Close() }) // nothing waits for it
	return nodepb.NewNodeClient(conn)
}

// A testSession is an open session.
type testSession struct {
	*nodepb.OpenResponse
	node nodepb.NodeClient
	ctx  context.Context // with its metadata
}

func (n *testNode) open(req *nodepb.OpenRequest) *testSession {
	n.t.Helper()
	s, err := n.tryOpen(n.client(nil), req)
	if err != nil {
		n.t.Fatalf("open %q: %v", req.GetShare(), err)
	}
	return s
}

func (n *testNode) tryOpen(c nodepb.NodeClient, req *nodepb.OpenRequest) (*testSession, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	n.t.Cleanup(cancel)
	resp, err := c.Open(ctx, req)
	if err != nil {
		return nil, err
	}
	return &testSession{resp, c, sessionContext(ctx, resp.GetSession(), resp.GetToken())}, nil
}

func sessionContext(ctx context.Context, id, token []byte) context.Context {
	return metadata.AppendToOutgoingContext(ctx, nodepb.SessionKey, string(id), nodepb.TokenKey, string(token))
}

// dial opens the session's data path.
func (n *testNode) dial(s *testSession) *tcp.Conn {
	n.t.Helper()
	addr := n.data
	c, err := tcp.Dial(s.ctx, tcp.Config{
		Connect: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		},
		Token:    [32]byte(s.GetToken()),
		Patience: 10 * time.Second,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Close() })
	return c
}

// file makes a regular file in the root of the session's share.
func (n *testNode) file(s *testSession, name string) uint64 {
	n.t.Helper()
	resp, err := s.node.Create(s.ctx, &nodepb.CreateRequest{Parent: 1, Name: []byte(name), Inode: &nodepb.Inode{Mode: 0o100644}})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.GetInode().GetIno()
}

// grant gives a file slots and returns the last of them.
func (n *testNode) grant(s *testSession, ino uint64) (offset int64) {
	n.t.Helper()
	resp, err := s.node.Grant(s.ctx, &nodepb.GrantRequest{Ino: ino, Need: 16, Want: 16})
	if err != nil {
		n.t.Fatal(err)
	}
	last := resp.GetRuns()[len(resp.GetRuns())-1]
	return int64(last.GetStart()+last.GetN()-1) * 4096
}

// reasonOf is the reason of a decoded error.
func reasonOf(err error) controlpb.Reason {
	var e *rpcerr.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return controlpb.Reason_REASON_UNSPECIFIED
}

func wantReason(t *testing.T, what string, err error, want controlpb.Reason) {
	t.Helper()
	if got := reasonOf(err); err == nil || got != want {
		t.Errorf("%s: got %v (%v), want %v", what, err, got, want)
	}
}
