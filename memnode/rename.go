package memnode

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// A place is a name in a directory and what is there.
type place struct {
	parent namespace.Ino
	name   string
	inode  namespace.Inode // Ino 0: nothing
}

// Rename moves a name, as renameat2(2) does. Names of one inode in both places
// stay as they are. ErrCrossShare if what moves would leave its share or, being a
// share, the root.
func (d *directory) Rename(ctx context.Context, oldParent namespace.Ino, oldName string, newParent namespace.Ino, newName string, flags namespace.RenameFlags) (lost *namespace.Inode, err error) {
	if flags&^(namespace.RenameNoReplace|namespace.RenameExchange) != 0 ||
		flags == namespace.RenameNoReplace|namespace.RenameExchange {
		return nil, namespace.ErrInvalid
	}
	for _, name := range []string{oldName, newName} {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	var was namespace.Inode // what lost its name; Ino 0: nothing
	err = d.update(ctx, result{inode: &was}, func(t txn) error {
		from := place{parent: oldParent, name: oldName}
		to := place{parent: newParent, name: newName}
		oldDir, err := t.dir(oldParent)
		if err != nil {
			return err
		}
		newDir, err := liveDir(t, newParent)
		if err != nil {
			return err
		}
		if from.inode, err = t.named(oldParent, oldName); err != nil {
			return err
		}
		to.inode, err = t.named(newParent, newName)
		if err != nil && (!errors.Is(err, namespace.ErrNotExist) || flags&namespace.RenameExchange != 0) {
			return err
		}
		switch {
		case to.inode.Ino != 0 && flags&namespace.RenameNoReplace != 0:
			return namespace.ErrExist
		case to.inode.Ino == from.inode.Ino:
			return errUnchanged
		}
		if err := checkBorder(&from.inode, &newDir); err != nil {
			return err
		}
		if flags&namespace.RenameExchange != 0 {
			if err := checkBorder(&to.inode, &oldDir); err != nil {
				return err
			}
			return d.exchange(t, &from, &to)
		}
		was, err = d.move(t, &from, &to)
		return err
	})
	if err != nil || was.Ino == 0 {
		return nil, err
	}
	return &was, nil
}

// move takes the name from one place to another, over what is there, and returns that;
// Ino 0: nothing.
func (d *directory) move(t txn, from, to *place) (lost namespace.Inode, err error) {
	if err := checkNotBelow(t, &from.inode, to.parent); err != nil {
		return lost, err
	}
	fromLinks, toLinks := 0, 0 // what the parents' link counts change by
	if isDir(from.inode.Mode) {
		fromLinks, toLinks = -1, 1
	}
	if to.inode.Ino != 0 {
		if err := checkReplace(t, from, to); err != nil {
			return lost, err
		}
		if isDir(to.inode.Mode) {
			toLinks--
		}
		if err := d.dropLink(t, &to.inode); err != nil {
			return lost, err
		}
		lost = to.inode
	}
	if err := t.deleteDirent(from.parent, from.name); err != nil {
		return lost, err
	}
	if err := d.settle(t, &from.inode, to.parent, to.name); err != nil {
		return lost, err
	}
	return lost, d.touchParents(t, from.parent, fromLinks, to.parent, toLinks)
}

// checkReplace refuses to replace a directory by something else, or one that has
// entries.
func checkReplace(t txn, from, to *place) error {
	if isDir(from.inode.Mode) {
		return checkEmptyDir(t, &to.inode)
	}
	if isDir(to.inode.Mode) {
		return namespace.ErrIsDir
	}
	return nil
}

// exchange swaps what two names stand for.
func (d *directory) exchange(t txn, from, to *place) error {
	if err := checkNotBelow(t, &from.inode, to.parent); err != nil {
		return err
	}
	if err := checkNotBelow(t, &to.inode, from.parent); err != nil {
		return err
	}
	links := 0 // what goes from one parent's link count to the other's
	if isDir(from.inode.Mode) {
		links++
	}
	if isDir(to.inode.Mode) {
		links--
	}
	if err := d.settle(t, &from.inode, to.parent, to.name); err != nil {
		return err
	}
	if err := d.settle(t, &to.inode, from.parent, from.name); err != nil {
		return err
	}
	return d.touchParents(t, from.parent, -links, to.parent, links)
}

// settle puts n under a name.
func (d *directory) settle(t txn, n *namespace.Inode, parent namespace.Ino, name string) error {
	n.Ctime = d.pool.now().UnixNano()
	if isDir(n.Mode) {
		n.Parent = parent
	}
	if err := t.putInode(n); err != nil {
		return err
	}
	return t.putDirent(parent, name, dirent{ino: n.Ino, mode: n.Mode & unix.S_IFMT})
}

func (d *directory) touchParents(t txn, from namespace.Ino, fromLinks int, to namespace.Ino, toLinks int) error {
	if from == to {
		return d.touchDir(t, from, fromLinks+toLinks)
	}
	if err := d.touchDir(t, from, fromLinks); err != nil {
		return err
	}
	return d.touchDir(t, to, toLinks)
}

// maxDepth bounds the walk to the root: a pool with a deeper tree, or a ring, is
// damaged or of no use.
const maxDepth = 1 << 20

// checkNotBelow refuses to put directory n into itself or into a directory below
// it.
func checkNotBelow(t txn, n *namespace.Inode, parent namespace.Ino) error {
	if !isDir(n.Mode) {
		return nil
	}
	for range maxDepth {
		if parent == n.Ino {
			return namespace.ErrInvalid
		}
		if parent == namespace.Root {
			return nil
		}
		above, err := t.dir(parent)
		if errors.Is(err, namespace.ErrNotExist) || errors.Is(err, namespace.ErrNotDir) {
			return corruptValue(bucketInodes, key1(uint64(t.number(parent))), "the parent of a directory is none")
		}
		if err != nil {
			return err
		}
		parent = above.Parent
	}
	return corruptValue(bucketInodes, key1(uint64(t.number(parent))), "the way to the root does not end")
}
