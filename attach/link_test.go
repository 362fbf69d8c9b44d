package attach

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// linkPair returns a link and the member's end of it.
func linkPair(t *testing.T) (*link, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		conns[i] = c.(*net.UnixConn)
	}
	l, err := newLink(conns[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close(); conns[1].Close() })
	return l, conns[1]
}

// A member that does not read makes nobody wait, up to a limit, and loses nothing.
func TestLink(t *testing.T) {
	l, conn := linkPair(t)
	if l.unread() {
		t.Error("unread before anything was sent")
	}
	sent := uint64(0)
	for ; sent < 100_000; sent++ {
		if err := l.send(&wire.Ready{N: sent}); err != nil {
			if !errors.Is(err, errSlow) {
				t.Fatal(err)
			}
			break
		}
	}
	if sent < maxQueued || sent == 100_000 {
		t.Fatalf("%d messages were taken", sent)
	}
	if !l.unread() {
		t.Error("all is read, with a full queue")
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, wire.MaxMessage)
	for want := range sent {
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := wire.Decode(b[:n]); err != nil || m.(*wire.Ready).N != want {
			t.Fatalf("got %+v, %v; want %d", m, err, want)
		}
	}
	eventually(t, "all is read", func() bool { return !l.unread() })
	if err := l.send(&wire.Go{Pages: make([]uint64, wire.MaxPages+1)}); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("a message that is none: got %v", err)
	}
}

// The end of either side ends a flush.
func TestLinkCloses(t *testing.T) {
	for _, theirs := range []bool{true, false} {
		l, conn := linkPair(t)
		for l.send(&wire.Kick{}) == nil {
		}
		if theirs {
			conn.Close()
			l.wg.Wait()
		}
		l.close()
		if err := l.send(&wire.Kick{}); err != nil && !errors.Is(err, errSlow) {
			t.Errorf("got %v", err)
		}
	}
}
