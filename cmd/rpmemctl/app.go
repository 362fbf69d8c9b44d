package main

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// An app is what every command needs: where output goes, the flags that all
// share, and the pool once it is open.
type app struct {
	in          io.Reader
	out, errOut io.Writer
	now         func() time.Time
	location    *time.Location // of times in tables

	json    bool
	pool    string        // directory of an unmounted pool; empty for mounted files
	timeout time.Duration // of one request; 0 waits without end
	started bool          // the arguments were accepted
	look    bool          // the command changes nothing: a pool is opened for reading

	sessions []*session         // open; close ends them
	stop     context.CancelFunc // leaves signals alone again; nil: they were
}

func newApp(in io.Reader, out, errOut io.Writer) *app {
	return &app{in: in, out: out, errOut: errOut, now: time.Now, location: time.Local}
}

// close ends every session.
func (a *app) close() error {
	var errs []error
	for _, s := range a.sessions {
		errs = append(errs, s.close())
	}
	a.sessions = nil
	if a.stop != nil {
		a.stop()
	}
	return errors.Join(errs...)
}

// request bounds one request to the daemon. Streams are not bounded: they end
// when the connection does.
func (a *app) request(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, a.timeout)
}

// bounded runs fn, which waits for the kernel, and gives up on it when ctx ends:
// a daemon that hangs must not take its tools along. fn then goes on until the
// process ends.
func bounded[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := fn()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

// isTerminal reports whether w is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
