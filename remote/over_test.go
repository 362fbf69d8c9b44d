package remote

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// oneSession is a memory node's data path that knows one session, which does nothing.
type oneSession struct{ rdmacache.Handler }

func (s oneSession) Session([32]byte) (tcp.Session, error) { return s, nil }
func (oneSession) Done() <-chan struct{}                   { return nil }
func (oneSession) Medium() rdmacache.Medium                { return rdmacache.Medium{} }

// The data path may be the first to find out that the lease is over, when it connects
// again. It ends then.
func TestDataPathFindsTheLeaseOver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- tcp.Serve(ctx, l, oneSession{}, tcp.ServerConfig{}) }()

	cfg := Config{Address: l.Addr().String(), Dial: dialTCP}
	p := &Pool{
		link: &link{}, done: make(chan struct{}), token: make([]byte, nodepb.TokenSize),
		opened: &nodepb.OpenResponse{DataPort: uint32(l.Addr().(*net.TCPAddr).Port)},
	}
	if p.grpc, err = newClient(cfg, p.link); err != nil {
		t.Fatal(err)
	}
	p.lease.begin(10*time.Second, 0, 0)
	if err := p.connect(ctx, cfg, "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	p.lease.until.Store(0)
	stop() // the connection breaks
	<-served
	time.AfterFunc(100*time.Millisecond, func() { _ = p.Conn().Flush(context.Background()) })

	ended := make(chan struct{})
	go func() {
		<-p.Done()
		_ = p.data.Conn.Close() // waits for its goroutines
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the data path waits for its own end")
	}
}
