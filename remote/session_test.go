package remote_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// A memory node that is not there is an error at once; one that stops listening
// meanwhile does not hang anybody.
func TestNobodyThere(t *testing.T) {
	n := newNode(t, long)
	if err := n.open(remote.Config{}).Close(); err != nil {
		t.Fatal(err)
	}
	n.stop()
	begun := time.Now()
	_, err := remote.Dial(ctx, remote.Config{Address: n.control, Wait: time.Hour})
	wantErr(t, "dial", err, remote.ErrUnavailable)
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A lease is kept for longer than it lasts, and a second client waits for it.
func TestLeaseIsKept(t *testing.T) {
	n := newNode(t, short)
	p := n.open(remote.Config{})
	_, err := remote.Dial(ctx, remote.Config{Address: n.control, Wait: 2 * short})
	wantErr(t, "a second client", err, remote.ErrLeased)
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		q, err := remote.Dial(ctx, remote.Config{Address: n.control, Wait: patience})
		if err == nil {
			err = q.Close()
		}
		second <- err
	}()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Errorf("after close: %v", err)
	}
}

// A session whose lease is stolen is fenced: its calls, its data, and its owner
// hears of it.
func TestSteal(t *testing.T) {
	n := newNode(t, long)
	p := n.open(remote.Config{})
	f := mustCreate(t, p, "f", fileInode())
	g, err := p.Grant(ctx, region.ID(f.Ino), 10, 10)
	if err != nil {
		t.Fatal(err)
	}
	q := n.open(remote.Config{Steal: true})
	page := make([]byte, region.PageSize)
	if err := errors.Join(p.Conn().Write(ctx, page, g.Runs[0].Start.Offset()), p.Conn().Flush(ctx)); !errors.Is(err, rdmacache.ErrFenced) {
		t.Errorf("data of the old session: %v", err)
	}
	_, err = p.Create(ctx, namespace.Root, "g", fileInode())
	wantErr(t, "a change of the old session", err, rdmacache.ErrFenced)
	_, err = p.Inode(ctx, f.Ino)
	wantErr(t, "an inode that the old session remembers", err, rdmacache.ErrFenced)
	over(t, p)
	wantErr(t, "close", p.Close(), rdmacache.ErrFenced)
	if _, err := q.Inode(ctx, f.Ino); err != nil {
		t.Errorf("the new session: %v", err)
	}
}

// A session that nothing is asked of learns of its end by itself.
func TestStealOfAnIdleSession(t *testing.T) {
	n := newNode(t, long)
	p := n.open(remote.Config{Heartbeat: often})
	n.open(remote.Config{Steal: true})
	over(t, p)
}

// While nothing passes between client and memory node, calls wait, and go on when
// it was short. When it is longer than the lease, all of them end with ErrFenced
// in about that time.
func TestPartition(t *testing.T) {
	const lease = 6 * time.Second
	n := newNode(t, lease)
	way := n.path()
	p := n.open(remote.Config{Address: way.address()})
	f := mustCreate(t, p, "f", fileInode())
	g, err := p.Grant(ctx, region.ID(f.Ino), 10, 10)
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, region.PageSize)
	calls := map[string]func(i int) error{
		"create":  func(i int) error { _, err := p.Create(ctx, namespace.Root, fmt.Sprint(i), fileInode()); return err },
		"lookup":  func(int) error { _, err := p.Lookup(ctx, namespace.Root, "f"); return err },
		"readdir": func(int) error { _, err := p.ReadDir(ctx, namespace.Root); return err },
		"grant":   func(int) error { _, err := p.Grant(ctx, region.ID(f.Ino), 1, 1); return err },
		"read":    func(int) error { return p.Conn().Read(ctx, make([]byte, 10), g.Runs[0].Start.Offset()) },
		"commit": func(int) error {
			if err := p.Conn().Write(ctx, page, g.Runs[0].Start.Offset()); err != nil {
				return err
			}
			return p.Conn().Flush(ctx)
		},
	}
	during := func(i int) (results chan error) {
		results = make(chan error, len(calls))
		for name, call := range calls {
			go func() {
				if err := call(i); err != nil {
					results <- fmt.Errorf("%s: %w", name, err)
				} else {
					results <- nil
				}
			}()
		}
		return results
	}

	way.set(stall)
	results := during(1)
	time.Sleep(lease / 3)
	select {
	case err := <-results:
		t.Fatalf("a call ended in a partition: %v", err)
	default:
	}
	way.set(fair)
	for range calls {
		if err := <-results; err != nil {
			t.Errorf("after a short partition: %v", err)
		}
	}

	way.set(stall)
	begun := time.Now()
	results = during(2)
	for range calls {
		select {
		case err := <-results:
			wantErr(t, "in a long partition", err, rdmacache.ErrFenced)
		case <-time.After(patience):
			t.Fatal("a call hangs")
		}
	}
	if took := time.Since(begun); took > lease+lease/2 {
		t.Errorf("calls ended after %v with a lease of %v", took, lease)
	}
	over(t, p)
	way.set(fair)
	results = during(3)
	for range calls {
		wantErr(t, "after the partition", <-results, rdmacache.ErrFenced)
	}
	wantErr(t, "close", p.Close(), rdmacache.ErrFenced)
	n.open(remote.Config{Wait: patience})
}

// A connection that is dead without a word, as after a crash of a machine, is given
// up in time, and calls go on over the next one.
func TestDeadConnections(t *testing.T) {
	n := newNode(t, 6*time.Second)
	way := n.path()
	p := n.open(remote.Config{Address: way.address()})
	f := mustCreate(t, p, "f", fileInode())
	g, err := p.Grant(ctx, region.ID(f.Ino), 10, 10)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		way.control.freeze()
		way.data.freeze()
		mustCreate(t, p, fmt.Sprint(i), fileInode())
		if err := p.Conn().Write(ctx, make([]byte, region.PageSize), g.Runs[0].Start.Offset()); err != nil {
			t.Fatal(err)
		}
		if err := p.Conn().Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
}

// A Dial whose answer is lost gets the session all the same, and does not wait for
// its own lease.
func TestDialWithoutAnswer(t *testing.T) {
	n := newNode(t, long)
	way := n.path()
	holder := n.open(remote.Config{})
	dialled := make(chan error, 1)
	var p *remote.Pool
	go func() {
		var err error
		p, err = remote.Dial(ctx, remote.Config{Address: way.address(), Wait: patience})
		dialled <- err
	}()
	eventually(t, "it waits for the lease", func() bool { return n.server.Stats().Waiting == 1 })
	err := way.withoutAnswer(func() error { return errors.Join(holder.Close(), <-dialled) }, func() {})
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, p, "f", fileInode())
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// A Dial that is given up just as it gets the lease gives it back.
func TestDialGivenUp(t *testing.T) {
	n := newNode(t, long)
	way := n.path()
	holder := n.open(remote.Config{})
	dialling, cancel := context.WithCancel(ctx)
	defer cancel()
	dialled := make(chan error, 1)
	go func() {
		_, err := remote.Dial(dialling, remote.Config{Address: way.address(), Wait: patience})
		dialled <- err
	}()
	eventually(t, "it waits for the lease", func() bool { return n.server.Stats().Waiting == 1 })
	err := way.withoutAnswer(func() error { return errors.Join(holder.Close(), <-dialled) }, cancel)
	if err == nil {
		t.Fatal("it was not given up")
	}
	n.open(remote.Config{Wait: patience})
}

// Far more calls at a time than a connection takes, none of which ends, do not keep the
// lease from being kept.
func TestManyCalls(t *testing.T) {
	n := newNode(t, 2*short)
	p := n.open(remote.Config{Heartbeat: often})
	holds, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := n.pool.Update(ctx, namespace.Root, func(*namespace.Inode) { close(holds); <-release }); err != nil {
			t.Error(err)
		}
	})
	<-holds // no change of the pool ends
	const calls = 600
	var begun atomic.Int64
	for i := range calls {
		wg.Go(func() {
			begun.Add(1)
			if _, err := p.Create(ctx, namespace.Root, fmt.Sprint(i), fileInode()); err != nil {
				t.Errorf("create %d: %v", i, err)
			}
		})
	}
	eventually(t, "all calls are under way", func() bool { return begun.Load() == calls })
	kept := n.server.Stats().KeptAlive
	eventually(t, "the lease is kept", func() bool { return n.server.Stats().KeptAlive >= kept+5 || p.Err() != nil })
	close(release)
	wg.Wait()
}

// A client that slept past its lease asks before it believes anything that it
// remembers.
func TestAsleep(t *testing.T) {
	n := newNode(t, short)
	way := n.path()
	p := n.open(remote.Config{Address: way.address()})
	if _, err := p.Inode(ctx, namespace.Root); err != nil {
		t.Fatal(err)
	}
	way.set(stall) // as good as asleep: no word gets out
	time.Sleep(short + short/10)
	_, err := p.Inode(ctx, namespace.Root)
	wantErr(t, "inode", err, rdmacache.ErrFenced)
	over(t, p)
}
