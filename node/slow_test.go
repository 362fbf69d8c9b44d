package node

import (
	"context"
	"encoding/binary"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// A slowCheck is a caller of Check that takes its time for each answer.
type slowCheck struct {
	grpc.ServerStreamingServer[nodepb.CheckResponse]
	ctx  context.Context
	send func() error
}

func (s slowCheck) Context() context.Context { return s.ctx }

func (s slowCheck) Send(*nodepb.CheckResponse) error { return s.send() }

// While a caller takes what Check found, the pool changes, and others check it.
func TestSlowCallerOfCheck(t *testing.T) {
	n := newNode(t, Config{})
	s := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	ino := n.file(s, "lost")
	n.stop()
	db, err := bbolt.Open(filepath.Join(n.dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("inodes")).Delete(binary.BigEndian.AppendUint64(nil, ino))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	n.start()
	ctx := context.WithValue(t.Context(), sessionKey{}, newSession(memnode.Lease{Share: namespace.Root}))
	done := make(chan error, 1)
	sent := 0
	err = n.server.Check(nil, slowCheck{ctx: ctx, send: func() error {
		if sent++; sent > 1 {
			return nil
		}
		go func() {
			_, err := n.pool.MakeShare(ctx, "b", 0)
			if err == nil {
				_, _, err = n.server.check(ctx, true)
			}
			done <- err
		}()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("the pool is held meanwhile")
		}
	}})
	if err != nil || sent == 0 {
		t.Errorf("Check = %v, %d problems", err, sent)
	}
}

// A slowList is a caller of ReadDir that takes its time for each answer.
type slowList struct {
	grpc.ServerStreamingServer[nodepb.ReadDirResponse]
	ctx  context.Context
	send func() error
}

func (s slowList) Context() context.Context { return s.ctx }

func (s slowList) Send(*nodepb.ReadDirResponse) error { return s.send() }

// A caller that begins to read directories, and takes nothing, does not make the node
// keep more than a few; whoever waits for it can give up.
func TestSlowCallersOfReadDir(t *testing.T) {
	n := newNode(t, Config{})
	opened := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	n.file(opened, "f")
	n.server.sessions.mu.Lock()
	s := n.server.sessions.tokens[token(opened.GetToken()).hash()]
	n.server.sessions.mu.Unlock()
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), sessionKey{}, s))
	defer cancel()
	sending, release := make(chan struct{}, 2*maxListing), make(chan struct{})
	done := make(chan error, 2*maxListing)
	for range 2 * maxListing {
		go func() {
			done <- n.server.ReadDir(&nodepb.ReadDirRequest{Ino: uint64(namespace.Root)}, slowList{ctx: ctx, send: func() error {
				sending <- struct{}{}
				<-release
				return nil
			}})
		}()
	}
	for range maxListing {
		<-sending
	}
	select {
	case <-sending:
		close(release)
		t.Fatalf("more than %d directories are in memory", maxListing)
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	for range maxListing {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("who waits gets %v", err)
		}
	}
	close(release)
	for range maxListing {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
