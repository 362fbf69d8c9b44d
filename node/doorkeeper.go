package node

import (
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rpmemfs/rpmemfs/internal/places"
)

// Bounds of the connections of the API, so that descriptors are left for the data path
// and the pool.
const (
	maxConnections = 1024 // that have said something
	maxStrangers   = 256  // others
)

// errDropped ends a connection to make room for others.
var errDropped = errors.New("node: too many connections")

// A doorkeeper shakes hands with those who connect to the API, and sees to it that those
// who have nothing to say, or have no certificate, keep nobody out: the oldest of them
// goes when they are too many. Of those who do, the newest goes of whoever has most, by
// the names in their certificates.
type doorkeeper struct {
	credentials.TransportCredentials // TLS, or none
	strangers, known                 *places.Table
}

// newDoorkeeper returns one for s.
func newDoorkeeper(s *Server) doorkeeper {
	d := doorkeeper{
		TransportCredentials: insecure.NewCredentials(),
		strangers:            places.New(maxStrangers, places.DropOldest, s.warnFull("api, no certificate yet")),
		known:                places.New(maxConnections, places.DropNewest, s.warnFull("api")),
	}
	if s.cfg.TLS != nil {
		d.TransportCredentials = credentials.NewTLS(s.cfg.TLS)
	}
	return d
}

// warnFull logs that connections are dropped.
func (s *Server) warnFull(of string) func(owner string, dropped uint64) {
	return func(owner string, dropped uint64) {
		s.log.Warn("too many connections; some were dropped", "of", of, "most from", owner, "dropped so far", dropped)
	}
}

// ServerHandshake implements credentials.TransportCredentials. gRPC bounds its time, and
// that until it has heard the client's preface.
func (d doorkeeper) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	owner := places.Source(raw.RemoteAddr())
	g := &guest{known: d.known, raw: raw, place: d.strangers.Enter(owner, places.Closer(raw))}
	conn, info, err := d.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		g.leave()
		return nil, nil, err
	}
	g.Conn, g.owner = conn, owner
	if t, ok := info.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
		g.owner = t.State.PeerCertificates[0].Subject.CommonName
	}
	return g, info, nil
}

// A guest is a connection that has a place: that of a stranger, until it says
// something.
type guest struct {
	net.Conn
	raw   net.Conn
	owner string
	known *places.Table

	heard bool // of the reader, which is one goroutine

	mu    sync.Mutex    // guards the next
	place *places.Place // nil: none, and none to come
}

func (g *guest) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if n > 0 && !g.heard {
		g.heard = true
		if !g.admit() {
			_ = g.Close()
			return 0, errDropped
		}
	}
	return n, err
}

// admit makes it one that is known.
func (g *guest) admit() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.place == nil || !g.place.Leave() {
		return false
	}
	g.place = g.known.Enter(g.owner, places.Closer(g.raw))
	return g.place != nil
}

func (g *guest) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.place != nil {
		g.place.Leave()
		g.place = nil
	}
}

func (g *guest) Close() error {
	g.leave()
	return g.Conn.Close()
}
