//go:build linux && cgo && rdma

package verbs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a waiter waits for, as bits.
const (
	onEvent      = 1 << iota // of the connection manager
	onCompletion             // of a queue
)

// An fdWaiter waits for descriptors of rdma-core by Go's poller, so that no thread sleeps in C.
// They are in an epoll instance, whose descriptor is what the poller sees: one wait is for
// both, and needs no goroutine.
type fdWaiter struct {
	file *os.File // the epoll instance
	raw  syscall.RawConn
}

func newFDWaiter() (*fdWaiter, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // else NewFile does not poll it
		_ = unix.Close(fd) // nothing was written
		return nil, fmt.Errorf("epoll: %w", err)
	}
	file := os.NewFile(uintptr(fd), "rdma")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close() // nothing was written
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &fdWaiter{file: file, raw: raw}, nil
}

// add makes fd one of those that are waited for. It stays the caller's.
func (w *fdWaiter) add(fd, bit int32) error {
	ctlErr := error(nil)
	err := w.raw.Control(func(epoll uintptr) {
		ctlErr = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: bit})
	})
	return errors.Join(err, ctlErr)
}

// wait returns the bits of what is ready; what already is comes at once. The error matches
// ctx's when it is done, or net.ErrClosed after close. One goroutine may be in it.
func (w *fdWaiter) wait(ctx context.Context) (ready int32, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if ctx.Done() != nil {
		fired := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = w.file.SetReadDeadline(time.Unix(1, 0)) // fails once it is closed
			close(fired)
		})
		defer func() {
			if !stop() {
				<-fired
				_ = w.file.SetReadDeadline(time.Time{}) // the same
			}
		}()
	}
	var pollErr error
	err = w.raw.Read(func(epoll uintptr) bool {
		ready, pollErr = readyNow(int(epoll))
		return ready != 0 || pollErr != nil
	})
	switch {
	case pollErr != nil:
		return 0, fmt.Errorf("epoll: %w", pollErr)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, ctx.Err()
	case err != nil:
		return 0, fmt.Errorf("%w: %w", net.ErrClosed, err)
	}
	return ready, nil
}

// readyNow looks which descriptors are ready.
func readyNow(epoll int) (ready int32, err error) {
	var evs [2]unix.EpollEvent
	for {
		n, err := unix.EpollWait(epoll, evs[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		for i := range max(n, 0) {
			ready |= evs[i].Fd
		}
		return ready, err
	}
}

// close ends a wait under way.
func (w *fdWaiter) close() { _ = w.file.Close() } // nothing was written
