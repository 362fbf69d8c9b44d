package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// retryUnmount is how often a mount that is in use is tried again. The kernel
// tells nobody when the last user is gone.
const retryUnmount = 250 * time.Millisecond

// catchSignals is called before there is a mount: a signal that comes while it is
// being made must not leave it behind.
func (d *daemon) catchSignals() (stop func()) {
	d.signals = make(chan os.Signal, 3)
	// A terminal that goes away unmounts too.
	signal.Notify(d.signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	return func() { signal.Stop(d.signals) }
}

// untilSignal is for what may take long before there is a mount to be unmounted. done
// ends it, and returns an error if a signal came.
func (d *daemon) untilSignal(ctx context.Context) (_ context.Context, done func() error) {
	ctx, cancel := context.WithCancel(ctx)
	signalled := make(chan error, 1)
	go func() {
		defer close(signalled)
		select {
		case s := <-d.signals:
			signalled <- fmt.Errorf("not mounted: %v", s)
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() error {
		cancel()
		return <-signalled
	}
}

// handleSignals unmounts at the first SIGTERM or SIGINT, waiting for programs to
// end, detaches at the second, and ends the process as a crash does at the third.
// It returns when ctx ends, which the end of the mount brings about.
func (d *daemon) handleSignals(ctx context.Context) error {
	var retry <-chan time.Time
	var named []string
	for asked := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case s := <-d.signals:
			asked++
			d.log.Info("signal", "signal", s.String())
			switch asked {
			case 1:
				t := time.NewTicker(retryUnmount)
				defer t.Stop()
				retry = t.C
			case 2:
				retry = nil
				d.log.Warn("detaching; the daemon goes on until the last program has ended, a third signal ends it at once")
				if err := d.server.Detach(); err != nil {
					d.log.Error("detach", "err", err)
				}
				continue
			default:
				d.log.Error("ending at once, as a crash does: open epochs are lost, committed ones are not")
				os.Exit(exitError)
			}
		case <-retry:
		}
		err := d.server.Unmount()
		switch {
		case err == nil, errors.Is(err, unix.EINVAL): // gone; EINVAL: by somebody else
			retry = nil
		case errors.Is(err, unix.EBUSY):
			if now := holders(d.o.mountpoint); !slices.Equal(now, named) {
				named = now
				d.log.Warn("the mount is in use; waiting for these to end", "processes", now)
			}
		default:
			d.log.Error("unmount", "err", err)
		}
	}
}
