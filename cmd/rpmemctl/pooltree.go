package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

// poolTree is the tree of a pool that this process has opened. No program can
// have stored anything in it.
type poolTree struct{ volume *volume.Volume }

// lookup finds a name in a directory, also that of a file too damaged to open.
func (t *poolTree) lookup(ctx context.Context, dir namespace.Ino, name string) (namespace.Ino, error) {
	attr, err := t.volume.Lookup(ctx, dir, name)
	if !errors.Is(err, region.ErrCorrupt) {
		return attr.Ino, err
	}
	entries, readErr := t.volume.ReadDir(ctx, dir)
	if readErr != nil {
		return 0, err
	}
	for _, e := range entries {
		if e.Name == name {
			return e.Ino, nil
		}
	}
	return 0, err
}

func (t *poolTree) create(ctx context.Context, dir *place, name string, perm fs.FileMode) (newFile, error) {
	n, err := t.volume.Create(ctx, namespace.Ino(dir.ino), name, namespace.Inode{
		Mode: fileMode(perm), UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
	})
	if err != nil {
		return nil, err
	}
	h, err := t.volume.Open(ctx, n.Ino)
	if err != nil {
		return nil, err
	}
	return &poolFile{h}, nil
}

func (t *poolTree) remove(ctx context.Context, dir *place, name string) error {
	return t.volume.Remove(ctx, namespace.Ino(dir.ino), name)
}

func (t *poolTree) rename(ctx context.Context, dir *place, from, to string, replace bool) error {
	var flags namespace.RenameFlags
	if !replace {
		flags = namespace.RenameNoReplace
	}
	ino := namespace.Ino(dir.ino)
	return t.volume.Rename(ctx, ino, from, ino, to, flags)
}

func (*poolTree) flush(context.Context, *place) error           { return nil }
func (*poolTree) flushAt(context.Context, *place, string) error { return nil }

// A poolFile is a file of a poolTree that is open. Its calls are short and by
// function call, so none needs to be cancelled.
type poolFile struct{ handle *volume.Handle }

func (f *poolFile) WriteAt(p []byte, off int64) (int, error) {
	return f.handle.Write(context.Background(), p, off, rdmacache.FromWrite)
}

func (f *poolFile) Truncate(size int64) error {
	return f.handle.Truncate(context.Background(), size)
}

func (f *poolFile) Sync() error { return f.handle.Sync(context.Background()) }

func (f *poolFile) Close() error {
	f.handle.Release(context.Background())
	return nil
}
