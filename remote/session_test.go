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

// A memory node that is stopped, or killed, after it made a change and before it could
// say so, and starts again, gives the answer that it would have given, and makes the
// change once.
func TestLostAnswersAndARestart(t *testing.T) {
	t.Run("stopped", func(t *testing.T) {
		n := newNode(t, 8*time.Second)
		lostAnswers(t, n, n.restart)
	})
	t.Run("killed", func(t *testing.T) {
		n := newNode(t, 8*time.Second)
		n.stop()
		c := &child{TB: t, node: n}
		c.start()
		t.Cleanup(c.kill)
		lostAnswers(t, n, func() {
			c.kill()
			c.start()
		})
	})
}

func lostAnswers(t *testing.T, n *memoryNode, restart func()) {
	way := n.path()
	p := n.open(remote.Config{Address: way.address()})
	f := mustCreate(t, p, "f", fileInode())
	id := region.ID(f.Ino)
	for _, name := range []string{"gone", "orphan", "moved", "over", "under"} {
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
	tree := region.Tree{Root: g.Super + 10, Height: 1}
	if err := p.SaveCheckpoint(ctx, id, region.Checkpoint{Name: "cp", Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	if err := p.SetXattr(ctx, f.Ino, "user.x", nil, 0); err != nil {
		t.Fatal(err)
	}
	free := func() int64 {
		t.Helper()
		u, err := p.Usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return int64(u.FreeSlots)
	}
	saved := region.Checkpoint{Name: "saved", Epoch: 2, Time: 3}
	var made, cloned namespace.Inode
	var granted region.Grant
	wantInode := func(got namespace.Inode, ino namespace.Ino, nlink uint32, err error) error {
		if err == nil && (got.Ino != ino || got.Nlink != nlink) {
			err = fmt.Errorf("got %+v, want inode %d with %d links", got, ino, nlink)
		}
		return err
	}
	look := func(name string) namespace.Ino {
		t.Helper()
		n, err := p.Lookup(ctx, namespace.Root, name)
		if err != nil {
			t.Fatal(err)
		}
		return n.Ino
	}
	gone, over := look("gone"), look("over")
	for _, call := range []struct {
		name  string
		do    func() error
		taken int64 // slots
	}{
		{"create", func() (err error) { made, err = p.Create(ctx, namespace.Root, "new", fileInode()); return err }, 0},
		{"mkdir", func() error { _, err := p.Create(ctx, namespace.Root, "newdir", dirInode()); return err }, 0},
		{"link", func() error {
			n, err := p.Link(ctx, f.Ino, namespace.Root, "l")
			return wantInode(n, f.Ino, 2, err)
		}, 0},
		{"unlink", func() error {
			n, err := p.Unlink(ctx, namespace.Root, "gone")
			return wantInode(n, gone, 0, err)
		}, 0},
		{"rmdir", func() error { return p.Rmdir(ctx, namespace.Root, "dir") }, 0},
		{"rename", func() error {
			lost, err := p.Rename(ctx, namespace.Root, "moved", namespace.Root, "there", 0)
			if err == nil && lost != nil {
				err = fmt.Errorf("it replaced %+v", lost)
			}
			return err
		}, 0},
		{"rename without replacing", func() error {
			_, err := p.Rename(ctx, namespace.Root, "there", namespace.Root, "moved", namespace.RenameNoReplace)
			return err
		}, 0},
		{"rename over another", func() error {
			lost, err := p.Rename(ctx, namespace.Root, "under", namespace.Root, "over", 0)
			if err == nil && lost == nil {
				err = errors.New("it replaced nothing")
			}
			if err == nil {
				err = wantInode(*lost, over, 0, nil)
			}
			return err
		}, 0},
		{"exchange", func() error {
			_, err := p.Rename(ctx, namespace.Root, "left", namespace.Root, "right", namespace.RenameExchange)
			return err
		}, 0},
		{"update", func() error {
			times := 0
			n, err := p.Update(ctx, f.Ino, func(n *namespace.Inode) { n.UID++; times++ })
			if err == nil && (n.UID != fileInode().UID+1 || times != 1) {
				err = fmt.Errorf("got %+v after %d changes", n, times)
			}
			return err
		}, 0},
		{"setxattr", func() error { return p.SetXattr(ctx, f.Ino, "user.y", []byte("1"), namespace.XattrCreate) }, 0},
		{"replace an attribute", func() error {
			return p.SetXattr(ctx, f.Ino, "user.y", []byte("2"), namespace.XattrReplace)
		}, 0},
		{"removexattr", func() error { return p.RemoveXattr(ctx, f.Ino, "user.x") }, 0},
		{"first grant", func() error {
			g, err := p.Grant(ctx, region.ID(left.Ino), 1, 1)
			if err == nil && g.Super != g.Runs[0].Start {
				err = fmt.Errorf("got %+v", g)
			}
			return err
		}, region.MinFirstGrant},
		{"grant", func() (err error) { granted, err = p.Grant(ctx, id, 20, 20); return err }, 20},
		{"return", func() error { return p.Return(ctx, id, []region.Run{returned}) }, -10},
		{"save checkpoint", func() error { return p.SaveCheckpoint(ctx, id, saved) }, 0},
		{"drop checkpoint", func() error { return p.DropCheckpoint(ctx, id, "cp") }, 0},
		{"clone", func() (err error) {
			cloned, err = p.Clone(ctx, id, namespace.Root, "clone", fileInode(), region.Seed{Epoch: 1, Pages: 1, Tree: tree})
			return err
		}, region.MinFirstGrant},
		{"reap", func() error { _, err := p.Reap(ctx, orphan.Ino); return err }, 0},
	} {
		if _, err := p.Inode(ctx, f.Ino); err != nil { // update finds it remembered
			t.Fatal(err)
		}
		before := free()
		if err := way.withoutAnswer(call.do, restart); err != nil {
			t.Errorf("%s: %v", call.name, err)
		}
		if taken := before - free(); taken != call.taken {
			t.Errorf("%s took %d slots, want %d", call.name, taken, call.taken)
		}
	}
	// Who has slots of a file that is reaped is told, too.
	for _, name := range []string{"f", "l"} {
		if _, err := p.Unlink(ctx, namespace.Root, name); err != nil {
			t.Fatal(err)
		}
	}
	loc, err := p.Locate(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range granted.Runs {
		if !slices.ContainsFunc(loc.Extents, func(x region.Run) bool { return x.Start <= r.Start && r.End() <= x.End() }) {
			t.Errorf("slots %+v were granted, but the region has %+v", r, loc.Extents)
		}
	}
	err = way.withoutAnswer(func() error {
		heir, err := p.Reap(ctx, f.Ino)
		if err == nil && heir != cloned.Ino {
			err = fmt.Errorf("the heir is %d, want %d", heir, cloned.Ino)
		}
		return err
	}, restart)
	if err != nil {
		t.Errorf("reap: %v", err)
	}
	for name, want := range map[string]namespace.Inode{"new": made, "clone": cloned} {
		if got, err := p.Lookup(ctx, namespace.Root, name); err != nil || got != want || want.Ino == 0 {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
		}
	}
	if look("left") != right.Ino || look("right") != left.Ino {
		t.Error("an exchange was undone")
	}
	// What is asked for anew is done anew.
	_, err = p.Create(ctx, namespace.Root, "new", fileInode())
	wantErr(t, "create again", err, namespace.ErrExist)
	wantErr(t, "rmdir again", p.Rmdir(ctx, namespace.Root, "dir"), namespace.ErrNotExist)
	_, err = p.Unlink(ctx, namespace.Root, "gone")
	wantErr(t, "unlink again", err, namespace.ErrNotExist)
	if err := p.Check(ctx, func(problem string) { t.Error("check: " + problem) }); err != nil {
		t.Error(err)
	}
}

// A Grant may come between a Return and its repetition, and get the very slots again:
// the repetition does not take them away.
func TestGrantBetweenReturns(t *testing.T) {
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
