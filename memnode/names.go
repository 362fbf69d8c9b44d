package memnode

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// maxLinks bounds the names of a file and the directories in a directory. It
// fits every st_nlink.
const maxLinks = math.MaxInt32

// Lookup returns the inode that a name stands for.
func (d *directory) Lookup(ctx context.Context, parent namespace.Ino, name string) (n namespace.Inode, err error) {
	if err := checkName(name); err != nil {
		return namespace.Inode{}, err
	}
	err = d.view(ctx, func(t txn) error {
		if _, err := t.dir(parent); err != nil {
			return err
		}
		n, err = t.named(parent, name)
		return err
	})
	return n, err
}

// Inode returns an inode by its number, also one without names.
func (d *directory) Inode(ctx context.Context, ino namespace.Ino) (n namespace.Inode, err error) {
	err = d.view(ctx, func(t txn) error {
		n, err = t.inode(ino)
		return err
	})
	return n, err
}

// ReadDir returns the names in a directory, sorted by their bytes.
func (d *directory) ReadDir(ctx context.Context, ino namespace.Ino) (entries []namespace.Entry, err error) {
	err = d.view(ctx, func(t txn) error {
		if _, err := t.dir(ino); err != nil {
			return err
		}
		return t.eachDirent(ino, func(name string, e dirent) error {
			entries = append(entries, namespace.Entry{Name: name, Ino: e.ino, Mode: e.mode})
			return nil
		})
	})
	return entries, err
}

// Create adds an inode under a new name.
func (d *directory) Create(ctx context.Context, parent namespace.Ino, name string, n namespace.Inode) (made namespace.Inode, err error) {
	if err := checkNew(name, &n); err != nil {
		return namespace.Inode{}, err
	}
	err = d.update(ctx, result{inode: &made}, func(t txn) error {
		if n.Share, err = d.checkFree(t, parent, name); err != nil {
			return err
		}
		made, err = d.addInode(t, parent, name, n, d.pool.reserveIno())
		return err
	})
	if err != nil {
		return namespace.Inode{}, err
	}
	return made, nil
}

// checkNew refuses what Create and Clone cannot make.
func checkNew(name string, n *namespace.Inode) error {
	if err := checkName(name); err != nil {
		return err
	}
	switch {
	case !validType(n.Mode) || n.OnClose > namespace.OnCloseCommit:
		return namespace.ErrInvalid
	case len(n.Target) > namespace.MaxSymlink:
		return namespace.ErrNameTooLong
	case (n.Mode&unix.S_IFMT == unix.S_IFLNK) != (n.Target != ""):
		return namespace.ErrInvalid
	}
	return nil
}

// checkFree makes sure that a name can be added, and returns the share that parent is
// in.
func (d *directory) checkFree(t txn, parent namespace.Ino, name string) (share namespace.Ino, err error) {
	dir, err := liveDir(t, parent)
	if err != nil {
		return 0, err
	}
	_, err = t.dirent(parent, name)
	switch {
	case err == nil:
		return 0, namespace.ErrExist
	case errors.Is(err, namespace.ErrNotExist):
		return dir.Share, nil
	}
	return 0, err
}

// addInode adds n with the number ino, to the share n.Share, under a name that
// checkFree passed.
func (d *directory) addInode(t txn, parent namespace.Ino, name string, n namespace.Inode, ino namespace.Ino) (namespace.Inode, error) {
	state, err := t.state()
	if err != nil {
		return n, err
	}
	state.inodes++
	state.nextIno = max(state.nextIno, ino+1)
	n.Ino, n.Nlink, n.Parent = ino, 1, 0
	links := 0
	if isDir(n.Mode) {
		n.Nlink, n.Parent, links = 2, parent, 1
	}
	if err := t.putState(state); err != nil {
		return n, err
	}
	if err := t.putInode(&n); err != nil {
		return n, err
	}
	if err := t.charge(n.Share, 1, 0); err != nil {
		return n, err
	}
	if err := t.putDirent(parent, name, dirent{ino: ino, mode: n.Mode & unix.S_IFMT}); err != nil {
		return n, err
	}
	return n, d.touchDir(t, parent, links)
}

// touchDir sets a directory's times after a name changed, and adds links to its
// link count.
func (d *directory) touchDir(t txn, ino namespace.Ino, links int) error {
	n, err := t.dir(ino)
	if err != nil {
		return err
	}
	if links > 0 && n.Nlink >= maxLinks {
		return namespace.ErrTooManyLinks
	}
	if links < 0 && n.Nlink < uint32(2-links) {
		return corruptValue(bucketInodes, key1(uint64(t.number(ino))), fmt.Sprintf("a directory with a directory in it has %d links", n.Nlink))
	}
	n.Nlink = uint32(int64(n.Nlink) + int64(links))
	n.Mtime = d.pool.now().UnixNano()
	n.Ctime = n.Mtime
	return t.putInode(&n)
}

// Link gives an inode, but no directory, another name.
func (d *directory) Link(ctx context.Context, ino, parent namespace.Ino, name string) (n namespace.Inode, err error) {
	if err := checkName(name); err != nil {
		return namespace.Inode{}, err
	}
	err = d.update(ctx, result{inode: &n}, func(t txn) error {
		if n, err = t.inode(ino); err != nil {
			return err
		}
		switch {
		case isDir(n.Mode):
			return namespace.ErrIsDir
		case n.Nlink == 0:
			return namespace.ErrNotExist // it is about to be reaped
		case n.Nlink >= maxLinks:
			return namespace.ErrTooManyLinks
		}
		share, err := d.checkFree(t, parent, name)
		if err != nil {
			return err
		}
		if n.Share != share {
			return namespace.ErrCrossShare
		}
		n.Nlink++
		n.Ctime = d.pool.now().UnixNano()
		if err := t.putInode(&n); err != nil {
			return err
		}
		if err := t.putDirent(parent, name, dirent{ino: ino, mode: n.Mode & unix.S_IFMT}); err != nil {
			return err
		}
		return d.touchDir(t, parent, 0)
	})
	if err != nil {
		return namespace.Inode{}, err
	}
	return n, nil
}

// Unlink removes a name of anything but a directory.
func (d *directory) Unlink(ctx context.Context, parent namespace.Ino, name string) (n namespace.Inode, err error) {
	if err := checkName(name); err != nil {
		return namespace.Inode{}, err
	}
	err = d.update(ctx, result{inode: &n}, func(t txn) error {
		if _, err := t.dir(parent); err != nil {
			return err
		}
		if n, err = t.named(parent, name); err != nil {
			return err
		}
		if isDir(n.Mode) {
			return namespace.ErrIsDir
		}
		if err := t.deleteDirent(parent, name); err != nil {
			return err
		}
		if err := d.dropLink(t, &n); err != nil {
			return err
		}
		return d.touchDir(t, parent, 0)
	})
	if err != nil {
		return namespace.Inode{}, err
	}
	return n, nil
}

// Rmdir removes an empty directory's name; Reap frees it.
func (d *directory) Rmdir(ctx context.Context, parent namespace.Ino, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return d.update(ctx, result{}, func(t txn) error {
		if _, err := t.dir(parent); err != nil {
			return err
		}
		n, err := t.named(parent, name)
		if err != nil {
			return err
		}
		if err := checkEmptyDir(t, &n); err != nil {
			return err
		}
		if err := t.deleteDirent(parent, name); err != nil {
			return err
		}
		if err := d.dropLink(t, &n); err != nil {
			return err
		}
		return d.touchDir(t, parent, -1)
	})
}

// dropLink takes one name from n, for a directory its only one, and remembers n
// as an orphan if that was the last.
func (d *directory) dropLink(t txn, n *namespace.Inode) error {
	if n.Nlink == 0 {
		return corruptValue(bucketInodes, key1(uint64(n.Ino)), "a named inode has no links")
	}
	n.Nlink--
	if isDir(n.Mode) {
		n.Nlink = 0
	}
	n.Ctime = d.pool.now().UnixNano()
	if isShare(n) {
		if err := t.dropShare(n.Ino); err != nil {
			return err
		}
	}
	if n.Nlink == 0 {
		if err := t.put(bucketOrphans, key1(uint64(n.Ino)), encodeMark()); err != nil {
			return err
		}
	}
	return t.putInode(n)
}

// Update changes an inode's attributes. Inode, link count, parent, share, type and
// target must stay as they are: ErrInvalid.
func (d *directory) Update(ctx context.Context, ino namespace.Ino, change func(*namespace.Inode)) (n namespace.Inode, err error) {
	err = d.update(ctx, result{inode: &n}, func(t txn) error {
		old, err := t.inode(ino)
		if err != nil {
			return err
		}
		n = old
		change(&n)
		if n == old {
			return errUnchanged
		}
		if n.Ino != old.Ino || n.Nlink != old.Nlink || n.Parent != old.Parent || n.Share != old.Share || n.Target != old.Target ||
			!validType(n.Mode) || (n.Mode^old.Mode)&unix.S_IFMT != 0 || n.OnClose > namespace.OnCloseCommit {
			return namespace.ErrInvalid
		}
		return t.putInode(&n)
	})
	if err != nil {
		return namespace.Inode{}, err
	}
	return n, nil
}

// checkName refuses what Linux does not allow as a name in a directory.
func checkName(name string) error {
	switch {
	case len(name) > namespace.MaxName:
		return namespace.ErrNameTooLong
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return namespace.ErrInvalid
	}
	return nil
}

// liveDir returns a directory that names can be added to.
func liveDir(t txn, ino namespace.Ino) (namespace.Inode, error) {
	n, err := t.dir(ino)
	if err == nil && n.Nlink == 0 {
		return namespace.Inode{}, namespace.ErrNotExist // removed while in use
	}
	return n, err
}

// checkEmptyDir refuses all but a directory without entries.
func checkEmptyDir(t txn, n *namespace.Inode) error {
	if !isDir(n.Mode) {
		return namespace.ErrNotDir
	}
	empty, err := t.empty(bucketDirents, key1(uint64(t.number(n.Ino))))
	if err == nil && !empty {
		return namespace.ErrNotEmpty
	}
	return err
}
