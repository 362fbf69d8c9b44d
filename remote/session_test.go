package remote_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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
	n.open(remote.Config{Wait: patience})
}

// A connection that is dead without a word, as after a crash of a machine, is given
// up in time, and calls go on over the next one.
func TestDeadConnections(t *testing.T) {
	n := newNode(t, 2*time.Second)
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
	n := newNode(t, 10*time.Second)
	way := n.path()
	holder := n.open(remote.Config{})
	dialled := make(chan error, 1)
	var p *remote.Pool
	go func() {
		var err error
		p, err = remote.Dial(ctx, remote.Config{Address: way.address(), Wait: time.Second})
		dialled <- err
	}()
	time.Sleep(200 * time.Millisecond) // it waits for the lease
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
	n := newNode(t, 10*time.Second)
	way := n.path()
	holder := n.open(remote.Config{})
	dialling, cancel := context.WithCancel(ctx)
	defer cancel()
	dialled := make(chan error, 1)
	go func() {
		_, err := remote.Dial(dialling, remote.Config{Address: way.address(), Wait: patience})
		dialled <- err
	}()
	time.Sleep(200 * time.Millisecond) // it waits for the lease
	err := way.withoutAnswer(func() error { return errors.Join(holder.Close(), <-dialled) }, cancel)
	if err == nil {
		t.Fatal("it was not given up")
	}
	n.open(remote.Config{Wait: time.Second})
}

// Far more calls at a time than a connection takes do not keep the lease from being
// kept.
func TestManyCalls(t *testing.T) {
	n := newNode(t, time.Second)
	p := n.open(remote.Config{})
	var wg sync.WaitGroup
	for i := range 3000 {
		wg.Go(func() {
			if _, err := p.Create(ctx, namespace.Root, fmt.Sprint(i), fileInode()); err != nil {
				t.Errorf("create %d: %v", i, err)
			}
		})
	}
	wg.Wait()
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
		if _, err := p.Inode(ctx, f.Ino); err != nil { // update finds it remembered
			t.Fatal(err)
		}
		if err := way.withoutAnswer(call.do, func() {}); err != nil {
			t.Errorf("%s: %v", call.name, err)
		}
	}
	if n, err := p.Inode(ctx, f.Ino); err != nil || n.UID != fileInode().UID+1 || n.Nlink != 2 {
		t.Errorf("got %+v, %v", n, err)
	}
}

// A memory node that restarts forgets its answers. What a repeated change finds
// done, and nobody else can have done, is success; the rest is what the package's
// comment says.
func TestLostAnswersAndARestart(t *testing.T) {
	n := newNode(t, 8*time.Second)
	way := n.path()
	p := n.open(remote.Config{Address: way.address()})
	f := mustCreate(t, p, "f", fileInode())
	id := region.ID(f.Ino)
	for _, name := range []string{"gone", "orphan", "moved"} {
		mustCreate(t, p, name, fileInode())
	}
	left, right := mustCreate(t, p, "left", fileInode()), mustCreate(t, p, "right", fileInode())
	mustCreate(t, p, "dir", dirInode())
	orphan, err := p.Unlink(ctx, namespace.Root, "orphan")
	if err != nil {
		t.Fatal(err)
	}
	g, err := p.Grant(ctx, id, 50, 50)
	if err != nil {
		t.Fatal(err)
	}
	returned := region.Run{Start: g.Runs[0].End() - 10, N: 10}
	if err := p.SaveCheckpoint(ctx, id, region.Checkpoint{Name: "cp", Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	if err := p.SetXattr(ctx, f.Ino, "user.x", nil, 0); err != nil {
		t.Fatal(err)
	}
	saved := region.Checkpoint{Name: "saved", Epoch: 2, Time: 3}
	var made, cloned namespace.Inode
	for _, call := range []struct {
		name string
		do   func() error
		want error
	}{
		{"create", func() (err error) { made, err = p.Create(ctx, namespace.Root, "new", fileInode()); return err }, nil},
		{"mkdir", func() error { _, err := p.Create(ctx, namespace.Root, "newdir", dirInode()); return err }, nil},
		{"link", func() error { _, err := p.Link(ctx, f.Ino, namespace.Root, "l"); return err }, nil},
		{"rmdir", func() error { return p.Rmdir(ctx, namespace.Root, "dir") }, nil},
		{"update", func() error {
			n, err := p.Update(ctx, f.Ino, func(n *namespace.Inode) { n.UID = 77 })
			if err == nil && n.UID != 77 {
				err = fmt.Errorf("got %+v", n)
			}
			return err
		}, nil},
		{"reap", func() error { _, err := p.Reap(ctx, orphan.Ino); return err }, nil},
		{"removexattr", func() error { return p.RemoveXattr(ctx, f.Ino, "user.x") }, nil},
		{"return", func() error { return p.Return(ctx, id, []region.Run{returned}) }, nil},
		{"drop checkpoint", func() error { return p.DropCheckpoint(ctx, id, "cp") }, nil},
		{"save checkpoint", func() error { return p.SaveCheckpoint(ctx, id, saved) }, nil},
		{"save another checkpoint of the name", func() error {
			return p.SaveCheckpoint(ctx, id, region.Checkpoint{Name: "saved", Epoch: 2, Time: 4})
		}, namespace.ErrExist},
		{"clone", func() (err error) {
			cloned, err = p.Clone(ctx, id, namespace.Root, "clone", fileInode(), region.Seed{Epoch: 1})
			return err
		}, nil},
		{"exchange", func() error {
			_, err := p.Rename(ctx, namespace.Root, "left", namespace.Root, "right", namespace.RenameExchange)
			return err
		}, nil},
		{"unlink", func() error { _, err := p.Unlink(ctx, namespace.Root, "gone"); return err }, namespace.ErrNotExist},
		{"rename", func() error {
			_, err := p.Rename(ctx, namespace.Root, "moved", namespace.Root, "there", 0)
			return err
		}, namespace.ErrNotExist},
	} {
		if _, err := p.Inode(ctx, f.Ino); err != nil { // update finds it remembered
			t.Fatal(err)
		}
		wantErr(t, call.name, way.withoutAnswer(call.do, n.restart), call.want)
	}
	if got, err := p.Lookup(ctx, namespace.Root, "new"); err != nil || got != made || made.Ino == 0 {
		t.Errorf("got %+v, %v, want %+v", got, err, made)
	}
	if got, err := p.Lookup(ctx, namespace.Root, "clone"); err != nil || got != cloned || cloned.Ino == 0 {
		t.Errorf("got %+v, %v, want %+v", got, err, cloned)
	}
	for name, want := range map[string]namespace.Ino{"left": right.Ino, "right": left.Ino} {
		if got, err := p.Lookup(ctx, namespace.Root, name); err != nil || got.Ino != want {
			t.Errorf("after an exchange %s is inode %d, %v, want %d", name, got.Ino, err, want)
		}
	}
	// It is the error only of a call that was repeated.
	wantErr(t, "save checkpoint again", p.SaveCheckpoint(ctx, id, saved), namespace.ErrExist)
	_, err = p.Create(ctx, namespace.Root, "new", fileInode())
	wantErr(t, "create again", err, namespace.ErrExist)
	wantErr(t, "rmdir again", p.Rmdir(ctx, namespace.Root, "dir"), namespace.ErrNotExist)
	wantErr(t, "return again", p.Return(ctx, id, []region.Run{returned}), remote.ErrNotOwned)
	if err := p.Check(ctx, func(problem string) { t.Error("check: " + problem) }); err != nil {
		t.Error(err)
	}
}

// No grant comes between a Return and its repetition: the region could get the very
// slots again, and lose them to the repetition.
func TestNoGrantBetweenReturns(t *testing.T) {
	n := newNode(t, 8*time.Second)
	way := n.path()
	p := n.open(remote.Config{Address: way.address()})
	f := mustCreate(t, p, "f", fileInode())
	id := region.ID(f.Ino)
	g, err := p.Grant(ctx, id, 50, 50)
	if err != nil {
		t.Fatal(err)
	}
	runs := g.Runs
	for range 8 {
		last := runs[len(runs)-1]
		returned := region.Run{Start: last.End() - 4, N: 4}
		granted := make(chan error, 1)
		err = way.withoutAnswer(func() error { return p.Return(ctx, id, []region.Run{returned}) }, func() {
			n.restart()
			go func() {
				g, err := p.Grant(ctx, id, 4, 4)
				runs = g.Runs
				granted <- err
			}()
		})
		if err := errors.Join(err, <-granted); err != nil {
			t.Fatal(err)
		}
		loc, err := p.Locate(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range runs {
			if !slices.ContainsFunc(loc.Extents, func(x region.Run) bool { return x.Start <= r.Start && r.End() <= x.End() }) {
				t.Fatalf("slots %+v were granted, but the region has %+v", r, loc.Extents)
			}
		}
	}
}

// withoutAnswer does a call whose first answer vanishes; then does what is to happen
// before the call can be repeated.
func (p path) withoutAnswer(call func() error, then func()) error {
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
	p.control.set(down)
	then()
	p.control.set(fair)
	return <-result
}
