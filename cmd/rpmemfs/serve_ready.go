package main

import (
	"net"
	"os"
	"sync"
)

// firstAccept tells when a server begins to accept: then it is ready.
type firstAccept struct {
	net.Listener
	once sync.Once
	do   func()
}

func (l *firstAccept) Accept() (net.Conn, error) {
	l.once.Do(l.do)
	return l.Listener.Accept()
}

// notifySystemd tells the service manager of a change of state, sd_notify(3), if it
// wants to know.
func notifySystemd(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	// A name that begins with @ is one in the abstract namespace, for package net too.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close() // a datagram is sent or not
	_, err = conn.Write([]byte(state))
	return err
}
