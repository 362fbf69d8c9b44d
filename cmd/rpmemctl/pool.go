package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/control"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache/inproc"
	"github.com/rpmemfs/rpmemfs/volume"
)

// placeInPool finds a path in the pool that --pool names, opening it first.
func (a *app) placeInPool(ctx context.Context, name string) (*place, error) {
	if len(a.sessions) == 0 {
		s, err := a.openPool()
		if err != nil {
			return nil, err
		}
		a.sessions = append(a.sessions, s)
	}
	s := a.sessions[0]
	ino := namespace.Root
	for part := range strings.SplitSeq(path.Clean("/"+name), "/") {
		if part == "" {
			continue
		}
		next, err := s.tree.(*poolTree).lookup(ctx, ino, part)
		if err != nil {
			return nil, fmt.Errorf("%s in pool %s: %w", name, a.pool, err)
		}
		ino = next
	}
	return &place{s, name, uint64(ino)}, nil
}

// openPool opens the pool of --pool in this process and serves it to itself.
func (a *app) openPool() (*session, error) {
	dir, err := filepath.Abs(a.pool)
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{Level: slog.LevelWarn}))
	pool, err := memnode.Open(dir, memnode.Options{ReadOnly: a.look, Log: log})
	if err != nil {
		return nil, openError(dir, err)
	}
	conn := inproc.Dial(pool)
	vol := volume.New(volume.Config{Pool: pool, Conn: conn, ReadOnly: a.look, Log: log})
	listener, dial, err := control.Pipe()
	if err != nil {
		return nil, errors.Join(err, conn.Close(), pool.Close())
	}
	client, err := control.NewClient(dial)
	if err != nil {
		return nil, errors.Join(err, listener.Close(), conn.Close(), pool.Close())
	}
	server := control.NewServer(vol, control.Info{
		Version: programVersion(), Pool: dir, Pid: os.Getpid(),
		OwnerUID: uint32(os.Getuid()), Started: time.Now(),
	}, log)

	ctx, cancel := context.WithCancel(context.Background())
	served, maintained := make(chan error, 1), make(chan error, 1)
	go func() { served <- server.Run(ctx, listener) }()
	go func() { maintained <- vol.Run(ctx) }()
	closeAll := func() error {
		// The reverse of the way here; what is committed stays whatever fails.
		err := client.Close()
		cancel()
		err = errors.Join(err, <-served, <-maintained)
		closeCtx, done := context.WithTimeout(context.Background(), closeTimeout)
		defer done()
		return errors.Join(err, vol.Close(closeCtx), conn.Close(), pool.Close())
	}
	return &session{client: client, tree: &poolTree{vol}, close: closeAll}, nil
}

// closeTimeout bounds the last commits of a pool that this process opened.
const closeTimeout = time.Minute

// openError explains why a pool did not open.
func openError(dir string, err error) error {
	switch {
	case errors.Is(err, memnode.ErrLocked):
		if m, ok := mountOfPool(dir); ok {
			return hinted(fmt.Errorf("%w, mounted on %s", err, m.path),
				"Name the file by its path in the mount, without --pool; or unmount first: umount %s", shellQuote(m.path))
		}
		return hinted(err, "Wait for that process, or end it.")
	case errors.Is(err, memnode.ErrNotPool):
		return hinted(err, "'rpmemfs mount --pool DIR MOUNTPOINT' makes a pool on first use.")
	}
	return err
}

// mountOfPool finds where a pool is mounted.
func mountOfPool(dir string) (mountPoint, bool) {
	list, err := mounts()
	if err != nil {
		return mountPoint{}, false
	}
	want, err := os.Stat(dir)
	if err != nil {
		return mountPoint{}, false
	}
	for _, m := range list {
		if m.source == dir {
			return m, true
		}
		if fi, err := os.Stat(m.source); err == nil && os.SameFile(fi, want) {
			return m, true
		}
	}
	return mountPoint{}, false
}

// fileMode is the mode of a regular file.
func fileMode(perm os.FileMode) uint32 { return unix.S_IFREG | uint32(perm.Perm()) }
