package node

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// Connections over the limit are closed at once, and each that ends makes room for
// one.
func TestConnectionLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limit(inner, 2)
	accepted := make(chan net.Conn, 8)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dial()
	dial()
	first := <-accepted
	<-accepted
	third := dial()
	_ = third.SetReadDeadline(time.Now().Add(30 * time.Second)) // a TCP socket has deadlines
	if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many: got %v", err)
	}
	_ = first.Close()
	_ = first.Close() // twice makes one place
	dial()
	select {
	case <-accepted:
	case <-time.After(30 * time.Second):
		t.Fatal("no place was free")
	}
	fifth := dial()
	_ = fifth.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := fifth.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a second close made another place")
	}
	_ = l.Close()
	for range accepted {
		t.Error("another was accepted")
	}
}
