package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach"
	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/fs"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/volume"
)

// regions is the volume as package attach sees it.
type regions struct{ volume *volume.Volume }

func (r regions) Attach(ctx context.Context, ino uint64, uid, gid uint32) (attach.Region, error) {
	a, err := r.volume.Attach(ctx, ino, uid, gid)
	if err != nil {
		return nil, err // not a nil *volume.Attachment in a Region
	}
	return a, nil
}

// members is the server of the attach socket as the volume sees it.
type members struct{ *attach.Server }

func (m members) Checkpoint(ctx context.Context, ino uint64) (epoch.ID, bool, error) {
	id, handled, err := m.Server.Checkpoint(ctx, ino)
	switch {
	case errors.Is(err, attach.ErrLost):
		err = fmt.Errorf("%w: %w", volume.ErrLost, err)
	case errors.Is(err, attach.ErrLate), errors.Is(err, attach.ErrCalledOff):
		err = fmt.Errorf("%w: %w", volume.ErrLate, err)
	}
	return id, handled, err
}

// newAttachServer returns the server of the attach socket.
func (d *daemon) newAttachServer() *attach.Server {
	var paused func(time.Duration)
	if d.metrics != nil {
		paused = d.metrics.pauses()
	}
	return attach.NewServer(attach.Config{
		Regions: regions{d.volume},
		Interval: func(ino uint64) time.Duration {
			return d.volume.Interval(context.Background(), namespace.Ino(ino))
		},
		Errno:  attachErrno,
		Paused: paused,
		Log:    d.log,
	})
}

// attachErrno is what an attached program is told of an error.
func attachErrno(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, attach.ErrLost):
		return unix.EOWNERDEAD
	case errors.Is(err, attach.ErrLate), errors.Is(err, attach.ErrCalledOff):
		return unix.ETIMEDOUT
	}
	return fs.Errno(err)
}

// listenAttach opens the attach socket beside the control socket at path. Any user
// may connect: the server looks at who it is, and at the file.
func listenAttach(control string) (*net.UnixListener, string, error) {
	path := strings.TrimSuffix(control, ".sock") + ".attach"
	if err := checkSocketPath(path); err != nil {
		return nil, "", err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, "", err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, "", err
	}
	return l, path, os.Chmod(path, 0o666)
}

// runAttach serves attached programs until ctx ends.
func (d *daemon) runAttach(ctx context.Context) error { return d.members.Serve(ctx, d.attach) }
