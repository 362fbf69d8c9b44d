package remote_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// A loser is a session whose answers are lost, with what its changes work on.
type loser struct {
	*testing.T
	pool *remote.Pool

	file, left, right, orphan, gone, over namespace.Inode
	returned                              region.Run
	tree                                  region.Tree

	made, cloned namespace.Inode // by the changes
	granted      region.Grant
}

// newLoser makes what the changes need.
func newLoser(t *testing.T, p *remote.Pool) *loser {
	l := &loser{T: t, pool: p, file: mustCreate(t, p, "f", fileInode())}
	for _, name := range []string{"moved", "under"} {
		mustCreate(t, p, name, fileInode())
	}
	l.left, l.right = mustCreate(t, p, "left", fileInode()), mustCreate(t, p, "right", fileInode())
	l.gone, l.over = mustCreate(t, p, "gone", fileInode()), mustCreate(t, p, "over", fileInode())
	mustCreate(t, p, "dir", dirInode())
	mustCreate(t, p, "orphan", fileInode())
	id := region.ID(l.file.Ino)
	var err, grantErr error
	var g region.Grant
	l.orphan, err = p.Unlink(ctx, namespace.Root, "orphan")
	g, grantErr = p.Grant(ctx, id, 50, 50)
	if err := errors.Join(err, grantErr, p.SaveCheckpoint(ctx, id, region.Checkpoint{Name: "cp", Epoch: 1}),
		p.SetXattr(ctx, l.file.Ino, "user.x", nil, 0)); err != nil {
		t.Fatal(err)
	}
	l.returned = region.Run{Start: g.Runs[0].End() - 10, N: 10}
	l.tree = region.Tree{Root: g.Super + 10, Height: 1}
	return l
}

// A lost change takes slots, and fails, or its answer is not as it should be, if it is made
// twice.
type lostChange struct {
	name  string
	do    func() error
	taken int64 // slots
}

func wantInode(got namespace.Inode, ino namespace.Ino, nlink uint32, err error) error {
	if err == nil && (got.Ino != ino || got.Nlink != nlink) {
		err = fmt.Errorf("got %+v, want inode %d with %d links", got, ino, nlink)
	}
	return err
}

// names are the changes of names and attributes.
func (l *loser) names() []lostChange {
	const root = namespace.Root
	p := l.pool
	return []lostChange{
		{"create", func() (err error) { l.made, err = p.Create(ctx, root, "new", fileInode()); return err }, 0},
		{"mkdir", func() error { _, err := p.Create(ctx, root, "newdir", dirInode()); return err }, 0},
		{"link", func() error {
			n, err := p.Link(ctx, l.file.Ino, root, "l")
			return wantInode(n, l.file.Ino, 2, err)
		}, 0},
		{"unlink", func() error {
			n, err := p.Unlink(ctx, root, "gone")
			return wantInode(n, l.gone.Ino, 0, err)
		}, 0},
		{"rmdir", func() error { return p.Rmdir(ctx, root, "dir") }, 0},
		{"rename", func() error {
			lost, err := p.Rename(ctx, root, "moved", root, "there", 0)
			if err == nil && lost != nil {
				err = fmt.Errorf("it replaced %+v", lost)
			}
			return err
		}, 0},
		{"rename without replacing", func() error {
			_, err := p.Rename(ctx, root, "there", root, "moved", namespace.RenameNoReplace)
			return err
		}, 0},
		{"rename over another", func() error {
			lost, err := p.Rename(ctx, root, "under", root, "over", 0)
			if err == nil && lost == nil {
				err = errors.New("it replaced nothing")
			}
			if err == nil {
				err = wantInode(*lost, l.over.Ino, 0, nil)
			}
			return err
		}, 0},
		{"exchange", func() error {
			_, err := p.Rename(ctx, root, "left", root, "right", namespace.RenameExchange)
			return err
		}, 0},
		{"update", func() error {
			times := 0
			n, err := p.Update(ctx, l.file.Ino, func(n *namespace.Inode) { n.UID++; times++ })
			if err == nil && (n.UID != fileInode().UID+1 || times != 1) {
				err = fmt.Errorf("got %+v after %d changes", n, times)
			}
			return err
		}, 0},
		{"setxattr", func() error { return p.SetXattr(ctx, l.file.Ino, "user.y", []byte("1"), namespace.XattrCreate) }, 0},
		{"replace an attribute", func() error {
			return p.SetXattr(ctx, l.file.Ino, "user.y", []byte("2"), namespace.XattrReplace)
		}, 0},
		{"removexattr", func() error { return p.RemoveXattr(ctx, l.file.Ino, "user.x") }, 0},
	}
}

// slots are the changes of regions.
func (l *loser) slots() []lostChange {
	p, id := l.pool, region.ID(l.file.Ino)
	return []lostChange{
		{"first grant", func() error {
			g, err := p.Grant(ctx, region.ID(l.left.Ino), 1, 1)
			if err == nil && g.Super != g.Runs[0].Start {
				err = fmt.Errorf("got %+v", g)
			}
			return err
		}, region.MinFirstGrant},
		{"grant", func() (err error) { l.granted, err = p.Grant(ctx, id, 20, 20); return err }, 20},
		{"return", func() error { return p.Return(ctx, id, []region.Run{l.returned}) }, -10},
		{"save checkpoint", func() error { return p.SaveCheckpoint(ctx, id, region.Checkpoint{Name: "saved", Epoch: 2}) }, 0},
		{"drop checkpoint", func() error { return p.DropCheckpoint(ctx, id, "cp") }, 0},
		{"clone", func() (err error) {
			l.cloned, err = p.Clone(ctx, id, namespace.Root, "clone", fileInode(), region.Seed{Epoch: 1, Pages: 1, Tree: l.tree})
			return err
		}, region.MinFirstGrant},
		{"reap", func() error { _, err := p.Reap(ctx, l.orphan.Ino); return err }, 0},
		{"unlink a name", func() error { _, err := p.Unlink(ctx, namespace.Root, "f"); return err }, 0},
		{"unlink the last name", func() error { _, err := p.Unlink(ctx, namespace.Root, "l"); return err }, 0},
		{"look", l.checkGranted, 0},
		{"reap with an heir", func() error {
			heir, err := p.Reap(ctx, l.file.Ino)
			if err == nil && heir != l.cloned.Ino {
				err = fmt.Errorf("the heir is %d, want %d", heir, l.cloned.Ino)
			}
			return err
		}, 0},
	}
}

// checkGranted makes sure that the file has what the session heard of.
func (l *loser) checkGranted() error {
	loc, err := l.pool.Locate(ctx, region.ID(l.file.Ino))
	for _, r := range l.granted.Runs {
		if err == nil && !slices.ContainsFunc(loc.Extents, func(x region.Run) bool { return x.Start <= r.Start && r.End() <= x.End() }) {
			err = fmt.Errorf("slots %+v were granted, but the region has %+v", r, loc.Extents)
		}
	}
	return err
}

// free counts the slots that are free.
func (l *loser) free() int64 {
	l.Helper()
	u, err := l.pool.Usage(ctx)
	if err != nil {
		l.Fatal(err)
	}
	return int64(u.FreeSlots)
}
