package loopback

import (
	"net"
	"testing"
)

// Connections to a host come from another, so that they take none of its ports.
func TestHost(t *testing.T) {
	host := Host()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if from, _, err := net.SplitHostPort(c.LocalAddr().String()); err != nil || from == host {
		t.Errorf("a connection to %s comes from %s, %v", host, from, err)
	}
}
