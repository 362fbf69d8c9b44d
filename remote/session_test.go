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
	n := newNode(t, time.Second)
	if err := n.open(remote.Config{}).Close(); err != nil {
		t.Fatal(err)
	}
	n.stop()
	begun := time.Now()
	_, err := remote.Dial(ctx, remote.Config{Address: n.control, Wait: time.Hour})
	wantErr(t, "dial", err, remote.ErrUnavailable)
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A lease is kept for longer than it lasts, and a second client waits for it.
func TestLeaseIsKept(t *testing.T) {
	n := newNode(t, time.Second)
	p := n.open(remote.Config{})
	_, err := remote.Dial(ctx, remote.Config{Address: n.control, Wait: 3 * time.Second})
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
	n := newNode(t, 2*time.Second)
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
	over(t, p, 2*time.Second)
	wantErr(t, "close", p.Close(), rdmacache.ErrFenced)
	if _, err := q.Inode(ctx, f.Ino); err != nil {
		t.Errorf("the new session: %v", err)
	}
}

// A session that nothing is asked of learns of its end by itself.
func TestStealOfAnIdleSession(t *testing.T) {
	n := newNode(t, 1500*time.Millisecond)
	p := n.open(remote.Config{})
	n.open(remote.Config{Steal: true})
	over(t, p, 1500*time.Millisecond)
}

// While nothing passes between client and memory node, calls wait, and go on when
// it was short. When it is longer than the lease, all of them end with ErrFenced
// in about that time.
func TestPartition(t *testing.T) {
	const lease = 2 * time.Second
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
	time.Sleep(lease / 2)
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
	over(t, p, time.Second)
	way.set(fair)
	results = during(3)
	for range calls {
		wantErr(t, "after the partition", <-results, rdmacache.ErrFenced)
	}
	wantErr(t, "close", p.Close(), rdmacache.ErrFenced)
	q := n.open(remote.Config{Wait: patience})
	if _, err := q.Lookup(ctx, namespace.Root, "2"); !errors.Is(err, namespace.ErrNotExist) {
		t.Errorf("what was asked for in the partition: %v", err)
	}
}

// A client that slept past its lease asks before it believes anything that it
// remembers.
func TestAsleep(t *testing.T) {
	const lease = time.Second
	n := newNode(t, lease)
	way := n.path()
	p := n.open(remote.Config{Address: way.address()})
	if _, err := p.Inode(ctx, namespace.Root); err != nil {
		t.Fatal(err)
	}
	way.set(stall) // as good as asleep: no word gets out
	time.Sleep(lease + lease/10)
	_, err := p.Inode(ctx, namespace.Root)
	wantErr(t, "inode", err, rdmacache.ErrFenced)
	over(t, p, time.Second)
}

// A change whose answer is lost is made once, and the second try gets the first
// one's answer.
func TestLostAnswers(t *testing.T) {
	n := newNode(t, 8*time.Second)
	way := n.path()
	p := n.open(remote.Config{Address: way.address()})
	f := mustCreate(t, p, "f", fileInode())
	dir := mustCreate(t, p, "d", dirInode())
	mustCreate(t, p, "gone", fileInode())
	mustCreate(t, p, "moved", fileInode())
	id := region.ID(f.Ino)
	g, err := p.Grant(ctx, id, 50, 50)
	if err != nil {
		t.Fatal(err)
	}
	cp := region.Checkpoint{Name: "cp", Epoch: 1, Time: 5}
	orphan := mustCreate(t, p, "orphan", fileInode())
	if _, err := p.Unlink(ctx, namespace.Root, "orphan"); err != nil {
		t.Fatal(err)
	}
	used := func() uint64 {
		usage, err := n.pool.Usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return usage.FreeSlots
	}
	var free uint64
	for _, call := range []struct {
		name string
		do   func() error
	}{
		{"create", func() error { _, err := p.Create(ctx, namespace.Root, "new", fileInode()); return err }},
		{"link", func() error { _, err := p.Link(ctx, f.Ino, dir.Ino, "l"); return err }},
		{"unlink", func() error {
			gone, err := p.Unlink(ctx, namespace.Root, "gone")
			if err == nil && (gone.Ino == 0 || gone.Nlink != 0) {
				err = fmt.Errorf("got %+v", gone)
			}
			return err
		}},
		{"rename", func() error { _, err := p.Rename(ctx, namespace.Root, "moved", dir.Ino, "moved", 0); return err }},
		{"setxattr", func() error { return p.SetXattr(ctx, f.Ino, "user.x", []byte("1"), namespace.XattrCreate) }},
		{"update", func() error {
			_, err := p.Update(ctx, f.Ino, func(n *namespace.Inode) { n.UID++ })
			return err
		}},
		{"grant", func() error {
			before := used()
			g, err := p.Grant(ctx, id, 20, 20)
			if free = before - used(); err == nil && free != 20 {
				err = fmt.Errorf("%d slots are gone for %+v", free, g)
			}
			return err
		}},
		{"return", func() error { return p.Return(ctx, id, []region.Run{{Start: g.Runs[0].End() - 1, N: 1}}) }},
		{"save checkpoint", func() error { return p.SaveCheckpoint(ctx, id, cp) }},
		{"drop checkpoint", func() error { return p.DropCheckpoint(ctx, id, "cp") }},
		{"clone", func() error {
			_, err := p.Clone(ctx, id, namespace.Root, "clone", fileInode(), region.Seed{Epoch: 1})
			return err
		}},
		{"reap", func() error { _, err := p.Reap(ctx, orphan.Ino); return err }},
	} {
		if err := way.withoutAnswer(call.do); err != nil {
			t.Errorf("%s: %v", call.name, err)
		}
	}
	if n, err := p.Inode(ctx, f.Ino); err != nil || n.UID != fileInode().UID+1 || n.Nlink != 2 {
		t.Errorf("got %+v, %v", n, err)
	}
}

// withoutAnswer does a call whose first answer vanishes.
func (p path) withoutAnswer(call func() error) error {
	p.control.swallow()
	result := make(chan error, 1)
	go func() { result <- call() }()
	defer p.control.set(fair)
	for begun := time.Now(); !p.control.swallowed() && time.Since(begun) < patience; {
		select {
		case err := <-result:
			return fmt.Errorf("it ended without an answer: %w", errors.Join(err, errors.New("nothing was lost")))
		case <-time.After(time.Millisecond):
		}
	}
	// Pings and window updates are swallowed as well as the answer. Wait until
	// nothing more comes.
	time.Sleep(100 * time.Millisecond)
	p.control.set(fair)
	p.control.cut()
	return <-result
}

// The memory node is stopped and started again and again under load. Nothing that
// was acknowledged is missing, and no call fails.
func TestRestartUnderLoad(t *testing.T) {
	n := newNode(t, 5*time.Second)
	p := n.open(remote.Config{})
	f := mustCreate(t, p, "f", fileInode())
	g, err := p.Grant(ctx, region.ID(f.Ino), 64, 64)
	if err != nil {
		t.Fatal(err)
	}
	load, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var made, commits atomic.Int64
	for worker := range 4 {
		wg.Go(func() {
			for i := 0; load.Err() == nil; i++ {
				name := fmt.Sprintf("%d-%d", worker, i)
				if _, err := p.Create(ctx, namespace.Root, name, fileInode()); err != nil {
					t.Errorf("create %s: %v", name, err)
					return
				}
				made.Add(1)
			}
		})
		wg.Go(func() {
			off := (g.Runs[0].Start + 16 + region.Slot(worker)).Offset()
			for i := 0; load.Err() == nil; i++ {
				page := []byte(fmt.Sprintf("%4096d", i))
				if err := errors.Join(p.Conn().Write(ctx, page, off), p.Conn().Flush(ctx)); err != nil {
					t.Errorf("commit: %v", err)
					return
				}
				got := make([]byte, len(page))
				if err := p.Conn().Read(ctx, got, off); err != nil || string(got) != string(page) {
					t.Errorf("read after commit %d: %v", i, err)
					return
				}
				commits.Add(1)
			}
		})
	}
	for range 4 {
		before := made.Load() + commits.Load()
		n.restart()
		for begun := time.Now(); made.Load()+commits.Load() < before+50; time.Sleep(time.Millisecond) {
			if time.Since(begun) > patience {
				t.Fatal("nothing goes on after a restart")
			}
		}
	}
	cancel()
	wg.Wait()
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	entries, err := p.ReadDir(ctx, namespace.Root)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := int64(len(entries)), made.Load()+1; got != want {
		t.Errorf("%d names after %d creates", got, want)
	}
	t.Logf("%d files, %d commits", made.Load(), commits.Load())
}
