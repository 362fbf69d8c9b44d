// Package tcp is the transport between compute and memory node over TCP, or any
// other stream (TLS): Dial is the compute node's end, Serve the memory node's.
// docs/protocol.md has the bytes.
//
// Writes are not answered one by one. A Write is queued and sent with what comes
// after it; the answer of the next FLUSH covers it. So n writes and a Flush, a
// commit, are one round trip. What no FLUSH covers yet is kept in a window; when
// the connection breaks the client dials again and sends the window again, in
// order, then the reads and the flush that wait. Writing a byte range twice in the
// same order leaves the same bytes, so it does not matter what had arrived.
//
// The server applies the requests of one connection in their order. A client has
// one connection at a time: before a new one is welcomed, the old one is cut and
// done, so that nothing it had received lands after what was sent again. Every
// message carries a CRC-32C; one that is damaged cuts the connection, which mends
// it.
//
// Where bytes are sent as they are (not TLS) connections bypass the runtime's poller,
// and who waits for an answer receives it himself.
package tcp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/places"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

var (
	// ErrClosed reports the use of a Conn after Close.
	ErrClosed = errors.New("tcp: connection closed")
	// ErrLost reports a memory node that could not be reached for longer than
	// Config.Patience. It is final: Flushes that returned nil before hold, all
	// else is unknown.
	ErrLost = errors.New("tcp: connection to the memory node lost")
	// ErrPoisoned reports that a write or a flush failed on the memory node's
	// medium. It is final for writes and flushes; reads go on.
	ErrPoisoned = errors.New("tcp: the memory node's medium failed")
	// errUnavailable reports a memory node that does not serve the session now.
	errUnavailable = errors.New("tcp: memory node not ready")
	// errProtocol reports bytes that break the protocol.
	errProtocol = errors.New("tcp: protocol broken")
	// errCorrupt reports a message whose checksum differs.
	errCorrupt = errors.New("tcp: message damaged on its way")
	// errStalled reports a peer that lets requests wait without a sign of life.
	errStalled = errors.New("tcp: no answer")
)

// A Config says how to reach a memory node.
type Config struct {
	// Connect makes a connection, within ctx. Dial takes it over.
	Connect func(ctx context.Context) (net.Conn, error)
	Token   [32]byte // names the session
	// Patience is how long a broken connection, or one without a sign of life, is
	// tried again before everything fails with ErrLost: the lease. 0 means 10 s.
	Patience time.Duration
	// Window bounds the bytes of writes that no flush covers yet, which are kept
	// to be sent again. Write waits where it is full. 0 means 8 MiB, and 32 MiB
	// where a flush waits for a device.
	Window int64
	Log    *slog.Logger // nil discards
}

// A Session is what a token opens: a part of a pool.
type Session interface {
	rdmacache.Handler
	// Done is closed when the session is over. Its connections are cut then.
	Done() <-chan struct{}
}

// Sessions knows the sessions of a memory node.
type Sessions interface {
	// Session returns the session of a token. An error that matches
	// rdmacache.ErrFenced is final for the client, any other one means that it
	// may try again. It compares in constant time.
	Session(token [32]byte) (Session, error)
}

// A ServerConfig says how to serve. Its zero value is ready for use.
type ServerConfig struct {
	Connections int // how many at once; 0 means 1024
	// Strangers has the connections that have not shown a token yet: see Strangers.
	// Nil means one of Serve's own.
	Strangers *places.Table
	Log       *slog.Logger // nil discards
}

// slow says that reads and flushes of a medium may wait for a device.
func slow(m rdmacache.Medium) bool { return m.Kind == "file" }
