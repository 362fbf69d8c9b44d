// Package wire is the messages of the attach protocol, which a daemon and the
// processes attached to its files (its members) speak over a SOCK_SEQPACKET
// socket. A datagram is one message: a header of 16 bytes, then the fields of its
// type in their order, little-endian and naturally aligned. docs/protocol.md has
// the tables and says when which message is sent.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Limits.
const (
	MaxMessage = 65536 // bytes of a message, with its header
	MaxRequest = 256   // bytes of a message to the daemon, with its header
	MaxPages   = 8000  // pages that one Go names
	MaxName    = 15    // bytes of a thread's name, as in prctl(PR_SET_NAME)
)

const (
	magic      = 0x414d5052 // RPMA
	version    = 1
	headerSize = 16
)

// ErrMalformed reports bytes that are no message of this version, or a message
// that would be none.
var ErrMalformed = errors.New("attach: malformed message")

// A Message is a pointer to one of this package's structs.
type Message interface {
	kind() kind
	fields(c *codec) // encodes or decodes what follows the header
}

// Append appends m's bytes to b. If m has a field out of its bounds, it returns b
// as it was and an error that matches ErrMalformed.
func Append(b []byte, m Message) ([]byte, error) {
	start := len(b)
	c := codec{b: putHeader(b, m.kind()), encoding: true}
	m.fields(&c)
	if c.err != nil {
		return b, fmt.Errorf("encode %v: %w", m.kind(), c.err)
	}
	binary.LittleEndian.PutUint32(c.b[start+8:], uint32(len(c.b)-start))
	return c.b, nil
}

// Decode returns the message that b is, and keeps no reference to b. All errors
// match ErrMalformed. What it accepts Append encodes to the same bytes.
func Decode(b []byte) (Message, error) {
	k, err := decodeHeader(b)
	if err != nil {
		return nil, err
	}
	m := k.message()
	if m == nil {
		return nil, fmt.Errorf("%w: type %d", ErrMalformed, uint16(k))
	}
	c := codec{b: b[headerSize:]}
	m.fields(&c)
	if c.err == nil && len(c.b) > 0 {
		c.fail("%d bytes too long", len(c.b))
	}
	if c.err != nil {
		return nil, fmt.Errorf("decode %v: %w", k, c.err)
	}
	return m, nil
}
