package volume

import (
	"context"
	"errors"
	"syscall"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// Lookup returns the attributes of the file that has a name.
func (v *Volume) Lookup(ctx context.Context, parent namespace.Ino, name string) (Attr, error) {
	n, err := v.cfg.Pool.Lookup(ctx, parent, name)
	if err != nil {
		return Attr{}, err
	}
	return v.attr(ctx, n)
}

// LookupInode is Lookup without asking the region: it works for a damaged file.
func (v *Volume) LookupInode(ctx context.Context, parent namespace.Ino, name string) (namespace.Inode, error) {
	return v.cfg.Pool.Lookup(ctx, parent, name)
}

// Create adds a file of n's mode, owner, Rdev and Target under a new name, with
// times of now. In a set-group-ID directory it inherits the group.
func (v *Volume) Create(ctx context.Context, parent namespace.Ino, name string, n namespace.Inode) (Attr, error) {
	if err := v.writable(); err != nil {
		return Attr{}, err
	}
	dir, err := v.cfg.Pool.Inode(ctx, parent)
	if err != nil {
		return Attr{}, err
	}
	if dir.Mode&syscall.S_ISGID != 0 {
		n.GID = dir.GID
		if n.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			n.Mode |= syscall.S_ISGID
		}
	}
	now := v.now().UnixNano()
	n.Atime, n.Mtime, n.Ctime = now, now, now
	if n, err = v.cfg.Pool.Create(ctx, parent, name, n); err != nil {
		return Attr{}, err
	}
	return v.attr(ctx, n)
}

// Link adds a name to a file.
func (v *Volume) Link(ctx context.Context, ino, parent namespace.Ino, name string) (Attr, error) {
	if err := v.writable(); err != nil {
		return Attr{}, err
	}
	n, err := v.cfg.Pool.Link(ctx, ino, parent, name)
	if err != nil {
		return Attr{}, err
	}
	return v.attr(ctx, n)
}

// Unlink removes a name of anything but a directory. Without names the file stays
// while programs have it open.
func (v *Volume) Unlink(ctx context.Context, parent namespace.Ino, name string) error {
	if err := v.writable(); err != nil {
		return err
	}
	n, err := v.cfg.Pool.Unlink(ctx, parent, name)
	if err == nil && n.Nlink == 0 {
		v.orphan(n.Ino)
	}
	return err
}

// Rmdir removes an empty directory.
func (v *Volume) Rmdir(ctx context.Context, parent namespace.Ino, name string) error {
	if err := v.writable(); err != nil {
		return err
	}
	n, err := v.cfg.Pool.Lookup(ctx, parent, name)
	if err != nil {
		return err
	}
	if err := v.cfg.Pool.Rmdir(ctx, parent, name); err != nil {
		return err
	}
	v.orphan(n.Ino)
	return nil
}

// Rename moves a name, over a file of the new name unless flags forbid it.
func (v *Volume) Rename(ctx context.Context, oldParent namespace.Ino, oldName string, newParent namespace.Ino, newName string, flags namespace.RenameFlags) error {
	if err := v.writable(); err != nil {
		return err
	}
	lost, err := v.cfg.Pool.Rename(ctx, oldParent, oldName, newParent, newName, flags)
	if err == nil && lost != nil && lost.Nlink == 0 {
		v.orphan(lost.Ino)
	}
	return err
}

// Remove removes a name, of an empty directory too, on behalf of somebody other
// than the kernel, which is told.
func (v *Volume) Remove(ctx context.Context, parent namespace.Ino, name string) error {
	err := v.Unlink(ctx, parent, name)
	if errors.Is(err, namespace.ErrIsDir) {
		err = v.Rmdir(ctx, parent, name)
	}
	if err != nil {
		return err
	}
	return v.invalidator().Entry(parent, name)
}

// ReadDir returns the entries of a directory, without "." and "..".
func (v *Volume) ReadDir(ctx context.Context, ino namespace.Ino) ([]namespace.Entry, error) {
	return v.cfg.Pool.ReadDir(ctx, ino)
}

// Inode returns what the directory knows of a file, without asking its region.
func (v *Volume) Inode(ctx context.Context, ino namespace.Ino) (namespace.Inode, error) {
	return v.cfg.Pool.Inode(ctx, ino)
}

// Usage returns the space of the pool.
func (v *Volume) Usage(ctx context.Context) (namespace.Usage, error) { return v.cfg.Pool.Usage(ctx) }

// Remember counts one more reference of the kernel to a file. While it has any, a
// file without names is kept.
func (v *Volume) Remember(ino namespace.Ino) {
	v.mu.Lock()
	v.known[ino]++
	v.mu.Unlock()
}

// Forget takes back n references of the kernel. It does no I/O.
func (v *Volume) Forget(ino namespace.Ino, n uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known[ino] > n {
		v.known[ino] -= n
		return
	}
	delete(v.known, ino)
	if _, ok := v.orphans[ino]; ok {
		v.wake()
	}
}

// orphan notes that an inode lost its last name.
func (v *Volume) orphan(ino namespace.Ino) {
	v.mu.Lock()
	v.orphans[ino] = struct{}{}
	v.mu.Unlock()
	v.wake()
}

// reclaim frees the files without names that nobody uses any more. It waits for
// whoever is freeing one already.
func (v *Volume) reclaim(ctx context.Context) {
	ctx = context.WithoutCancel(ctx) // an orphan that is taken up is freed
	for v.reapNext(ctx) {
	}
}

func (v *Volume) hasOrphans() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.orphans) > 0
}

// withSpace does what takes slots for a file's open epoch, and may find the pool full.
// Then it does it again, when the file's epochs in flight are durable, and after the
// space of files that were removed by now is back, whoever is busy freeing them.
func (v *Volume) withSpace(ctx context.Context, f *file, do func() error) error {
	return v.reclaiming(ctx, func() error { return f.manager.WithRoom(ctx, noSpace, do) })
}

// reclaiming is withSpace for what waits for epochs in flight itself.
func (v *Volume) reclaiming(ctx context.Context, do func() error) error {
	err := do()
	if !noSpace(err) {
		return err
	}
	v.reclaim(ctx)
	return do()
}

func (v *Volume) reapNext(ctx context.Context) bool {
	// Before the file is marked as leaving: a walk of its family waits for files
	// that leave.
	v.familyMu.Lock()
	defer v.familyMu.Unlock()
	f := v.reapable()
	if f == nil {
		return false
	}
	err := v.reap(ctx, f.ino)
	pinned := errors.Is(err, region.ErrPinned)
	if err != nil && !pinned {
		v.log.Error("free a removed file", "ino", f.ino, "err", err)
	}
	v.mu.Lock()
	v.forget(f)
	if pinned || err != nil && !hopeless(err) {
		v.pinned[f.ino] = struct{}{}
	}
	v.mu.Unlock()
	return true
}

// hopeless says that freeing a file will not succeed later either. Opening the pool the
// next time frees it, or check tells.
func hopeless(err error) bool {
	return errors.Is(err, region.ErrCorrupt) || errors.Is(err, rdmacache.ErrFenced) || errors.Is(err, namespace.ErrNotExist)
}

// retryPinned has removed files freed that another machine was reading, or that could not
// be freed just then.
func (v *Volume) retryPinned() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for ino := range v.pinned {
		delete(v.pinned, ino)
		v.orphans[ino] = struct{}{}
		v.wake()
	}
}

// reapable picks an orphan and marks its file as leaving.
func (v *Volume) reapable() *file {
	v.mu.Lock()
	defer v.mu.Unlock()
	for ino := range v.orphans {
		f := v.files[ino]
		if v.known[ino] > 0 || f != nil && (f.refs > 0 || f.left != nil) {
			continue
		}
		delete(v.orphans, ino)
		if f == nil {
			f = &file{ino: ino, ready: make(chan struct{})}
			v.files[ino] = f
		}
		v.busy(f)
		f.left = make(chan struct{})
		return f
	}
	return nil
}

// reap frees an inode and tells the relative that inherits its slots, if there is
// one and it is open.
func (v *Volume) reap(ctx context.Context, ino namespace.Ino) error {
	// What it leaves, and not what the heir has afterwards: the heir may just be
	// returning some of that. Anything but a regular file leaves nothing.
	left, lerr := v.cfg.Pool.Locate(ctx, region.ID(ino))
	heir, err := v.cfg.Pool.Reap(ctx, ino)
	if err != nil || heir == 0 {
		return err
	}
	if lerr != nil {
		return lerr
	}
	v.mu.Lock()
	h := v.files[heir]
	leaving := h != nil && h.left != nil
	v.mu.Unlock()
	if h == nil || leaving {
		return nil // opening it finds them
	}
	if err := await(ctx, h.ready); err != nil {
		return err
	}
	if h.err != nil {
		return nil
	}
	h.image.Adopt(left.Extents)
	v.mu.Lock()
	h.maintain = true
	v.mu.Unlock()
	return nil
}
