package remote_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// A change whose answer is lost is made once, and the second try gets the first
// one's answer.
func TestLostAnswers(t *testing.T) {
	n := newNode(t, long)
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
		n := newNode(t, long)
		lostAnswers(t, n, n.restart)
	})
	t.Run("killed", func(t *testing.T) {
		n := newNode(t, long)
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
	l := newLoser(t, p)
	for _, c := range slices.Concat(l.names(), l.slots()) {
		if _, err := p.Inode(ctx, l.file.Ino); err != nil { // update finds it remembered
			t.Fatal(err)
		}
		before := l.free()
		if err := way.withoutAnswer(c.do, restart); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if taken := before - l.free(); taken != c.taken {
			t.Errorf("%s took %d slots, want %d", c.name, taken, c.taken)
		}
	}
	for name, want := range map[string]namespace.Inode{"new": l.made, "clone": l.cloned} {
		if got, err := p.Lookup(ctx, namespace.Root, name); err != nil || got != want || want.Ino == 0 {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
		}
	}
	for name, want := range map[string]namespace.Inode{"left": l.right, "right": l.left} {
		if got, err := p.Lookup(ctx, namespace.Root, name); err != nil || got.Ino != want.Ino {
			t.Errorf("after an exchange %s is inode %d, %v, want %d", name, got.Ino, err, want.Ino)
		}
	}
	// What is asked for anew is done anew.
	_, err := p.Create(ctx, namespace.Root, "new", fileInode())
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
	n := newNode(t, long)
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
