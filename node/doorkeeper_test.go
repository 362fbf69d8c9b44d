package node

import (
	"errors"
	"net"
	"testing"

	"google.golang.org/grpc/credentials/insecure"

	"github.com/rpmemfs/rpmemfs/internal/places"
)

// A connection is a stranger until it says something. Then it needs another place, which
// it keeps until it is closed.
func TestDoorkeeper(t *testing.T) {
	d := doorkeeper{insecure.NewCredentials(), places.New(2, places.DropOldest, nil), places.New(2, places.DropNewest, nil)}
	connect := func() (here net.Conn, there net.Conn) {
		t.Helper()
		raw, there := net.Pipe()
		t.Cleanup(func() { _ = there.Close() })
		here, _, err := d.ServerHandshake(raw)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = here.Close() })
		return here, there
	}
	speak := func(here, there net.Conn) error {
		go func() { _, _ = there.Write([]byte{1}) }()
		_, err := here.Read(make([]byte, 1))
		return err
	}
	want := func(strangers, known int) {
		t.Helper()
		s, _ := d.strangers.Counts()
		k, _ := d.known.Counts()
		if s != strangers || k != known {
			t.Errorf("%d strangers and %d others, want %d and %d", s, k, strangers, known)
		}
	}
	first, firstPeer := connect()
	second, secondPeer := connect()
	third, thirdPeer := connect() // the first is dropped for it
	if err := speak(first, firstPeer); err == nil {
		t.Error("the oldest stranger is still there")
	}
	want(2, 0)
	for _, c := range [][2]net.Conn{{second, secondPeer}, {third, thirdPeer}} {
		if err := speak(c[0], c[1]); err != nil {
			t.Error(err)
		}
	}
	want(0, 2)
	fourth, fourthPeer := connect()
	want(1, 2)
	if err := speak(fourth, fourthPeer); !errors.Is(err, errDropped) {
		t.Errorf("one too many: %v", err)
	}
	want(0, 2)
	_ = second.Close()
	_ = second.Close() // twice makes one place
	want(0, 1)
	fifth, fifthPeer := connect()
	if err := speak(fifth, fifthPeer); err != nil {
		t.Error(err)
	}
	want(0, 2)
	if err := speak(third, thirdPeer); err != nil {
		t.Errorf("one that was there: %v", err)
	}
}
