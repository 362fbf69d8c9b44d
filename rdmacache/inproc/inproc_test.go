package inproc_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/inproc"
)

// memory is a Handler that records its calls and fails when it is told to.
type memory struct {
	bytes [64]byte
	calls []string
	err   error
}

func (m *memory) ReadAt(p []byte, off int64) error {
	m.calls = append(m.calls, "read")
	copy(p, m.bytes[off:])
	return m.err
}

func (m *memory) WriteAt(p []byte, off int64) error {
	m.calls = append(m.calls, "write")
	copy(m.bytes[off:], p)
	return m.err
}

func (m *memory) Flush() error {
	m.calls = append(m.calls, "flush")
	return m.err
}

func (m *memory) Medium() rdmacache.Medium { return rdmacache.Medium{Kind: "test", Volatile: true} }

func TestConnPassesCallsOn(t *testing.T) {
	m := &memory{}
	c := inproc.Dial(m)
	ctx := t.Context()
	got := make([]byte, 5)
	if err := errors.Join(c.Write(ctx, []byte("hello"), 7), c.Flush(ctx), c.Read(ctx, got, 7)); err != nil {
		t.Fatal(err)
	}
	if string(got) != "hello" || string(m.bytes[7:12]) != "hello" {
		t.Errorf("read %q, stored %q, want hello", got, m.bytes[7:12])
	}
	if want := []string{"write", "flush", "read"}; !slices.Equal(m.calls, want) {
		t.Errorf("calls = %v, want %v", m.calls, want)
	}
	if got := c.Medium(); got != m.Medium() {
		t.Errorf("Medium() = %v, want %v", got, m.Medium())
	}
	m.err = io.ErrClosedPipe
	for what, err := range calls(ctx, c) {
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s = %v, want the handler's error", what, err)
		}
	}
}

// A call that is refused never reaches the memory node.
func TestConnRefuses(t *testing.T) {
	m := &memory{}
	c := inproc.Dial(m)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for what, err := range calls(cancelled, c) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a cancelled context = %v, want context.Canceled", what, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range calls(t.Context(), c) {
		if !errors.Is(err, inproc.ErrClosed) {
			t.Errorf("%s of a closed connection = %v, want ErrClosed", what, err)
		}
	}
	if err := c.Close(); !errors.Is(err, inproc.ErrClosed) {
		t.Errorf("second Close = %v, want ErrClosed", err)
	}
	if len(m.calls) != 0 {
		t.Errorf("refused calls reached the handler: %v", m.calls)
	}
}

func calls(ctx context.Context, c rdmacache.Conn) map[string]error {
	p := make([]byte, 8)
	return map[string]error{"read": c.Read(ctx, p, 0), "write": c.Write(ctx, p, 0), "flush": c.Flush(ctx)}
}
