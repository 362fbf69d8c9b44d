package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// A tree makes and removes names. In a mount the kernel does, under its own rules
// and caches; in a pool of this process the volume does.
type tree interface {
	// create makes a file that did not exist and opens it.
	create(ctx context.Context, dir *place, name string, perm fs.FileMode) (newFile, error)
	// remove removes a file, or an empty directory.
	remove(ctx context.Context, dir *place, name string) error
	// rename moves a name inside a directory, over a file of the new name only if
	// replace.
	rename(ctx context.Context, dir *place, from, to string, replace bool) error
	// flush makes what programs stored in a file so far reach the open epoch, and
	// commits it.
	flush(ctx context.Context, file *place) error
	// flushAt is flush of a file given by its path from the top of the pool that
	// holds where.
	flushAt(ctx context.Context, where *place, path string) error
}

// A newFile is a file that is being filled. Sync commits.
type newFile interface {
	io.WriterAt
	Truncate(size int64) error
	Sync() error
	Close() error
}

// createError words the error of a new name.
func createError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrExist), errors.Is(err, namespace.ErrExist):
		return fmt.Errorf("%s: exists already", path)
	}
	return fmt.Errorf("%s: %w", path, cause(err))
}

// cause takes the path that package os put before an error away.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}

// mountTree is a mount of the kernel's. Only this short-lived process touches the
// mount, never the daemon.
type mountTree struct{}

func (mountTree) create(_ context.Context, dir *place, name string, perm fs.FileMode) (newFile, error) {
	return os.OpenFile(filepath.Join(dir.path, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
}

func (mountTree) remove(_ context.Context, dir *place, name string) error {
	return os.Remove(filepath.Join(dir.path, name))
}

func (mountTree) rename(_ context.Context, dir *place, from, to string, replace bool) error {
	return renameFile(filepath.Join(dir.path, from), filepath.Join(dir.path, to), replace)
}

func (mountTree) flush(ctx context.Context, file *place) error {
	return withFile(ctx, file.path, (*os.File).Sync)
}

func (mountTree) flushAt(ctx context.Context, where *place, path string) error {
	top := where.path
	if where.ino != uint64(namespace.Root) {
		m, ok := mountOf(where.path)
		if !ok {
			return fmt.Errorf("the mount of %s is not in the list of mounts: name the mount point itself", where.path)
		}
		top = m.path
	}
	return withFile(ctx, filepath.Join(top, path), (*os.File).Sync)
}

// withFile opens a file of a mount for fn, and gives up when ctx ends.
func withFile(ctx context.Context, path string, fn func(*os.File) error) error {
	_, err := bounded(ctx, func() (struct{}, error) {
		f, err := os.Open(path)
		if err != nil {
			return struct{}{}, err
		}
		err = fn(f)
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		return struct{}{}, err
	})
	return err
}
