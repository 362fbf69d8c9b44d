package remote_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// A storeSession opens one store to every token.
type storeSession struct{ store *conntest.Store }

func (s storeSession) Session([32]byte) (tcp.Session, error) {
	select {
	case <-s.store.Done():
		return nil, rdmacache.ErrFenced
	default:
		return s.store, nil
	}
}

// serveStore serves a store on the data path until the test ends.
func serveStore(t *testing.T, s *conntest.Store) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- tcp.Serve(ctx, l, storeSession{s}, tcp.ServerConfig{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("serve the store: %v", err)
		}
	})
	return l.Addr().String()
}

// A session's Conn keeps what every Conn promises. The control API is a memory
// node's; behind the data path is the suite's store.
func TestConn(t *testing.T) {
	n := newNode(t, 10*time.Second)
	conntest.Run(t, *remote.Seed, func(t *testing.T, s *conntest.Store) rdmacache.Conn {
		n := *n
		n.TB = t
		way := n.pathTo(serveStore(t, s))
		return n.open(remote.Config{Address: way.address(), Steal: true}).Conn()
	})
}

// A session without its bytes is over: a memory node that answers calls, but not on
// its data path, is of no use.
func TestDataPathLost(t *testing.T) {
	n := newNode(t, short)
	way := n.path()
	p := n.open(remote.Config{Address: way.address()})
	way.data.close()
	begun := time.Now()
	wantErr(t, "flush", p.Conn().Flush(ctx), rdmacache.ErrFenced)
	if took := time.Since(begun); took > 3*short {
		t.Errorf("it took %v", took)
	}
	over(t, p)

	_, err := remote.Dial(ctx, remote.Config{Address: way.address(), Wait: patience})
	if err == nil || errors.Is(err, remote.ErrLeased) {
		t.Errorf("dial without a data path: %v", err)
	}
	// The failed Dial gave its lease back.
	if err := n.open(remote.Config{}).Close(); err != nil {
		t.Error(err)
	}
}

// The data path may be the first to notice that the lease is over, when it connects
// again. The session ends all the same, and waits for nobody for ever.
func TestDataPathNoticesTheEnd(t *testing.T) {
	n := newNode(t, long)
	way := n.path()
	p := n.open(remote.Config{Address: way.address()})
	p.Expire()
	way.data.cut()
	time.Sleep(200 * time.Millisecond) // it connects again at once
	closed := make(chan error, 1)
	go func() { closed <- errors.Join(p.Conn().Flush(ctx), p.Close()) }()
	select {
	case err := <-closed:
		wantErr(t, "flush and close", err, rdmacache.ErrFenced)
	case <-time.After(patience):
		t.Fatal("close hangs")
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Conn().Close() }()
	select {
	case err := <-ended:
		wantErr(t, "close of the data path again", err, tcp.ErrClosed)
	case <-time.After(patience):
		t.Fatal("the data path does not end")
	}
	over(t, p)
}

// Writes are on their way when Write returns. They are there before the slots go
// to somebody else.
func TestWritesBeforeReturn(t *testing.T) {
	n := newNode(t, long)
	p := n.open(remote.Config{Share: nodepb.WholePool})
	f := mustCreate(t, p, "f", fileInode())
	g, err := p.Grant(ctx, region.ID(f.Ino), 2000, 2000)
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, region.PageSize)
	for round := range 20 {
		last := region.Run{Start: g.Runs[0].End() - 50*region.Slot(round+1), N: 50}
		for s := last.Start; s < last.End(); s++ {
			if err := p.Conn().Write(ctx, page, s.Offset()); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Return(ctx, region.ID(f.Ino), []region.Run{last}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Conn().Flush(ctx); err != nil {
		t.Fatalf("a late write ended the data path: %v", err)
	}
	for i := range 20 {
		f := mustCreate(t, p, fmt.Sprint(i), fileInode())
		g, err := p.Grant(ctx, region.ID(f.Ino), 100, 100)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Unlink(ctx, namespace.Root, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		for s := g.Runs[0].Start + 10; s < g.Runs[0].End(); s++ {
			if err := p.Conn().Write(ctx, page, s.Offset()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := p.Reap(ctx, f.Ino); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Conn().Flush(ctx); err != nil {
		t.Fatalf("a late write ended the data path: %v", err)
	}
}
