// Package accept takes what comes to a listener of any kind.
package accept

import (
	"context"
	"errors"
	"net"
	"time"
)

// All calls take with what accept returns, one at a time, until ctx ends, which returns
// ctx.Err(), or accept returns net.ErrClosed, which is returned. Other errors pass, such as a
// want of descriptors: failed hears of them, and the next try waits, 5 ms to a second.
//
// Who calls sees to it that accept returns when ctx ends.
func All[T any](ctx context.Context, accept func() (T, error), take func(T), failed func(error)) error {
	for pause := time.Duration(0); ; {
		c, err := accept()
		switch {
		case err == nil:
			pause = 0
			take(c)
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			failed(err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}
