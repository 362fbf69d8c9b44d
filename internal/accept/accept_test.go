package accept

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// Errors that pass are tried again after longer and longer pauses, until something comes.
func TestAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, calls, taken, failed := time.Now(), 0, 0, 0
		accept := func() (int, error) {
			switch calls++; {
			case calls == 1 || calls == 22:
				return calls, nil
			case calls < 25:
				return 0, errors.New("no descriptors")
			}
			return 0, net.ErrClosed
		}
		err := All(t.Context(), accept, func(int) { taken++ }, func(error) { failed++ })
		if !errors.Is(err, net.ErrClosed) || taken != 2 || failed != 22 {
			t.Errorf("All = %v, %d taken, %d errors", err, taken, failed)
		}
		// 5, 10 ... 640 ms, 12 times 1 s; then 5 and 10 ms.
		if took, want := time.Since(begun), 13290*time.Millisecond; took != want {
			t.Errorf("it took %v, want %v", took, want)
		}
	})
}

// It ends with its context, also in a pause.
func TestAllEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Millisecond)
		defer cancel()
		begun := time.Now()
		err := All(ctx, func() (int, error) { return 0, errors.New("no") }, func(int) {}, func(error) {})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 3*time.Millisecond {
			t.Errorf("All = %v after %v", err, time.Since(begun))
		}
	})
}
