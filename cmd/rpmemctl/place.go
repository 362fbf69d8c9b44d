package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/control"
	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/volume"
)

// A session is a pool that commands can ask: one that a daemon has mounted, or
// one that this process has opened.
type session struct {
	client *control.Client
	tree   tree   // where names are made and removed
	socket string // of the daemon; empty for a pool of this process
	close  func() error
}

// A place is a file or directory in a session, as the user named it.
type place struct {
	*session
	path string // as the user wrote it, for messages
	ino  uint64
}

// place finds what the user calls path.
func (a *app) place(ctx context.Context, path string) (*place, error) {
	if a.pool != "" {
		return a.placeInPool(ctx, path)
	}
	reqCtx, cancel := a.request(ctx)
	defer cancel()
	m, err := bounded(reqCtx, func() (mountedFile, error) { return findMounted(path) })
	if err != nil {
		return nil, placeError(path, err)
	}
	for _, s := range a.sessions {
		if s.socket == m.socket {
			return &place{s, path, m.ino}, nil
		}
	}
	client, err := control.Dial(m.socket)
	if err != nil {
		return nil, fmt.Errorf("%s: socket %s: %w", path, m.socket, err)
	}
	s := &session{client: client, tree: mountTree{}, socket: m.socket, close: client.Close}
	a.sessions = append(a.sessions, s)
	return &place{s, path, m.ino}, nil
}

// parent finds the directory of a file that need not exist, and the file's name
// in it.
func (a *app) parent(ctx context.Context, path string) (dir *place, name string, err error) {
	name = filepath.Base(filepath.Clean(path))
	if name == "." || name == ".." || name == "/" {
		return nil, "", usagef("%q does not name a file", path)
	}
	dir, err = a.place(ctx, filepath.Dir(filepath.Clean(path)))
	return dir, name, err
}

// A mountedFile is what a mount tells of a file in it.
type mountedFile struct {
	ino    uint64
	socket string // of the daemon
}

// findMounted asks the file system for a file's number in its pool and for the
// daemon's socket. It follows symbolic links.
func findMounted(path string) (m mountedFile, err error) {
	text, err := getxattr(path, volume.XattrIno)
	if err != nil {
		return m, err
	}
	if m.ino, err = strconv.ParseUint(text, 10, 64); err != nil || m.ino == 0 {
		return m, fmt.Errorf("attribute %s says %q: not an rpmemfs mount", volume.XattrIno, text)
	}
	if m.socket, err = getxattr(path, volume.XattrSocket); err != nil {
		return m, err
	}
	if m.socket == "" {
		return m, errors.New("its mount has no control socket; mount it without --control none")
	}
	return m, nil
}

// getxattr reads a short extended attribute.
func getxattr(path, name string) (string, error) {
	buf := make([]byte, 4096)
	for {
		n, err := unix.Getxattr(path, name, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", err
		}
		return string(buf[:n]), nil
	}
}

// A notMountedError reports a path that no rpmemfs mount holds.
type notMountedError struct{ path string }

func (e *notMountedError) Error() string {
	return fmt.Sprintf("%s: not on an rpmemfs mount", e.path)
}

// A deadMountError reports a mount whose daemon has died.
type deadMountError struct {
	path  string
	mount mountPoint // zero if unknown
}

func (e *deadMountError) Error() string {
	return fmt.Sprintf("%s: the daemon of this mount is dead", e.path)
}

// placeError explains why a path did not tell its number.
func placeError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
		return &notMountedError{path}
	case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED): // dead, or just dying
		dead := &deadMountError{path: path}
		dead.mount, _ = mountOf(path) // without it the advice is less exact
		return dead
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s: %w", path, os.ErrNotExist)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// stat asks about the place.
func (p *place) stat(ctx context.Context, a *app) (*controlpb.File, error) {
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := p.client.Stat(ctx, &controlpb.StatRequest{Ino: p.ino})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.path, err)
	}
	return resp.GetFile(), nil
}

// regular finds a regular file.
func (a *app) regular(ctx context.Context, path string) (*place, error) {
	p, err := a.place(ctx, path)
	if err != nil {
		return nil, err
	}
	f, err := p.stat(ctx, a)
	if err != nil {
		return nil, err
	}
	switch fileType(f.GetMode()) {
	case "file":
		return p, nil
	case "dir":
		return nil, fmt.Errorf("%s: is a directory", path)
	}
	return nil, fmt.Errorf("%s: not a regular file", path)
}
