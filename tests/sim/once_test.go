package sim

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// juggle changes names and slots of its own, so that a change fails, or is seen, if it or
// the one before is made twice, or not at all: memory nodes are killed between a change and
// its answer.
func (t *tenure) juggle() error {
	const root = namespace.Root
	p, stamp := t.pool, t.w.stamp()
	left, right := fmt.Sprintf("left%d", stamp), fmt.Sprintf("right%d", stamp)
	create := func(name string) (namespace.Inode, error) {
		n, err := p.Create(ctx, root, name, namespace.Inode{Mode: unix.S_IFREG | 0o644})
		return n, t.trouble("create "+name, err)
	}
	a, err := create(left)
	if err != nil {
		return err
	}
	b, err := create(right)
	if err != nil {
		return err
	}
	_, err = p.Rename(ctx, root, left, root, right, namespace.RenameExchange)
	if err := t.trouble("exchange "+left, err); err != nil {
		return err
	}
	if n, err := p.Lookup(ctx, root, right); err == nil && n.Ino != a.Ino {
		t.w.fail("%s: %s: not once: an exchange was undone", t.host.name, t.share.name)
	}
	if err := t.trouble("set an attribute", p.SetXattr(ctx, a.Ino, "user.x", nil, namespace.XattrCreate)); err != nil {
		return err
	}
	if err := t.trouble("remove an attribute", p.RemoveXattr(ctx, a.Ino, "user.x")); err != nil {
		return err
	}
	if err := t.juggleSlots(region.ID(a.Ino)); err != nil {
		return err
	}
	for i, name := range []string{left, right} {
		ino := []namespace.Ino{b.Ino, a.Ino}[i]
		n, err := p.Unlink(ctx, root, name)
		if err := t.trouble("unlink "+name, err); err != nil {
			return err
		}
		if n.Ino != ino || n.Nlink != 0 {
			t.w.fail("%s: %s: not once: unlink %s, which is inode %d, removed %+v", t.host.name, t.share.name, name, ino, n)
		}
		_, err = p.Reap(ctx, ino)
		if err := t.trouble("reap "+name, err); err != nil {
			return err
		}
	}
	t.w.counts.juggled.Add(1)
	return nil
}

// juggleSlots has a file without slots granted some, and gives back the last.
func (t *tenure) juggleSlots(id region.ID) error {
	has := uint64(0)
	var g region.Grant
	var err error
	count := func(what string) error {
		loc, err := t.pool.Locate(ctx, id)
		got := uint64(0)
		for _, r := range loc.Extents {
			got += r.N
		}
		if err == nil && got != has {
			t.w.fail("%s: %s: not once: after %s file %d has %d slots, want %d", t.host.name, t.share.name, what, id, got, has)
		}
		return t.trouble("locate", err)
	}
	for range 2 {
		g, err = t.pool.Grant(ctx, id, 5, 5)
		if err := t.trouble("grant", err); err != nil {
			return err
		}
		for _, r := range g.Runs {
			has += r.N
		}
		if err := count("a grant"); err != nil {
			return err
		}
	}
	if err := t.trouble("return", t.pool.Return(ctx, id, g.Runs)); err != nil {
		return err
	}
	has -= 5
	return count("a return")
}
