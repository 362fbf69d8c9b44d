package machine

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// A frame for a card that is not known goes to all others; one for a known card to its
// machine alone; and one that has come back under the same address is found again.
func TestHub(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hub")
	h, err := NewHub(path)
	if err != nil {
		t.Fatal(err)
	}
	plug := func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err == nil {
			err = conn.SetDeadline(time.Now().Add(30 * time.Second))
		}
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	send := func(conn net.Conn, from, to int, text string) {
		source, target := cardOf(from), cardOf(to)
		frame := append(append(target[:], source[:]...), text...)
		if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(conn net.Conn, want string) {
		t.Helper()
		frame := make([]byte, 4+12+len(want))
		if _, err := io.ReadFull(conn, frame); err != nil || string(frame[16:]) != want {
			t.Fatalf("got %q, %v, want %q", frame, err, want)
		}
	}
	large := string(bytes.Repeat([]byte("x"), bulk))

	a, c, b := plug(), plug(), plug() // where the last one is taken the others are, too
	send(b, 2, 9, "from b")
	receive(a, "from b")
	receive(c, "from b")
	send(c, 3, 9, "from c")
	receive(a, "from c")
	receive(b, "from c")
	send(a, 1, 2, large)
	receive(b, large)
	if got := h.Bulk(1); got != 1 {
		t.Errorf("bulk frames: got %d, want 1", got)
	}
	send(a, 1, 3, "to c") // c did not get what was for b
	receive(c, "to c")

	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = plug()
	send(b, 2, 1, "from the new b")
	receive(a, "from the new b")
	send(a, 1, 2, "to the new b")
	receive(b, "to the new b")
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	for _, conn := range []net.Conn{a, b, c} {
		_ = conn.Close() // the hub was first
	}
}
