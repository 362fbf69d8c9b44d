package verbs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
)

const (
	magic   = 0x564d5052 // "RPMV"
	version = 1

	helloSize   = MaxHello
	welcomeSize = 36
	rejectSize  = MaxReject
	headerSize  = 24

	messageSize = 4 << 10 // of the longest message, with its header
	maxText     = 512     // bytes of an error's text
	maxRanges   = (messageSize - headerSize) / 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A hello is what the client gives along when it connects.
//
//	 0  4  magic
//	 4  2  version
//	 6  2  flags: 1 the client's device has FLUSH, 2 the client wants a stream
//	 8 32  token, good for one connection
//	40  8  stream: chosen at random by the client, the same on all connections of a queue
//	48  4  attempt: larger on each connection of a stream
//	52  4  CRC-32C of bytes 0-51
type hello struct {
	flushes bool
	wants   bool // a stream
	token   [32]byte
	stream  uint64
	attempt uint32
}

func (h *hello) encode() []byte {
	b := make([]byte, helloSize)
	putGreeting(b)
	flags := uint16(0)
	if h.flushes {
		flags |= 1
	}
	if h.wants {
		flags |= 2
	}
	binary.LittleEndian.PutUint16(b[6:], flags)
	copy(b[8:40], h.token[:])
	binary.LittleEndian.PutUint64(b[40:], h.stream)
	binary.LittleEndian.PutUint32(b[48:], h.attempt)
	seal(b)
	return b
}

func (h *hello) decode(b []byte) error {
	b, err := greeting(b, helloSize)
	if err != nil {
		return err
	}
	flags := binary.LittleEndian.Uint16(b[6:])
	if flags > 3 {
		return fmt.Errorf("%w: flags %#x", errProtocol, flags)
	}
	*h = hello{
		flushes: flags&1 != 0, wants: flags&2 != 0, token: [32]byte(b[8:40]),
		stream: binary.LittleEndian.Uint64(b[40:]), attempt: binary.LittleEndian.Uint32(b[48:]),
	}
	return nil
}

// A welcome is what the memory node gives along when it accepts.
//
//	 0  4  magic
//	 4  2  version
//	 6  1  method: 1 flush, 2 read, 3 cpu, 4 message
//	 7  1  flags: 1 the medium is volatile, 2 the session reads only
//	 8  2  messages that the client may have sent and not seen answered, 1 to 256;
//	       of a stream: frames that it may send before it hears of more
//	10  6  reserved, zero
//	16 16  kind of the medium, text
//	32  4  CRC-32C of bytes 0-31
type welcome struct {
	method   Method
	volatile bool
	readOnly bool
	credits  int
	kind     string
}

const maxCredits = 256

func (w *welcome) encode() []byte {
	b := make([]byte, welcomeSize)
	putGreeting(b)
	b[6] = byte(w.method)
	if w.volatile {
		b[7] |= 1
	}
	if w.readOnly {
		b[7] |= 2
	}
	binary.LittleEndian.PutUint16(b[8:], uint16(w.credits))
	copy(b[16:32], w.kind)
	seal(b)
	return b
}

func (w *welcome) decode(b []byte) error {
	b, err := greeting(b, welcomeSize)
	if err != nil {
		return err
	}
	n := welcome{
		method: Method(b[6]), volatile: b[7]&1 != 0, readOnly: b[7]&2 != 0,
		credits: int(binary.LittleEndian.Uint16(b[8:])), kind: text(b[16:32]),
	}
	switch {
	case n.method < ByFlush || n.method > ByMessage:
		return fmt.Errorf("%w: method %d", errProtocol, n.method)
	case b[7] > 3 || !zero(b[10:16]):
		return fmt.Errorf("%w: reserved bytes", errProtocol)
	case n.credits < 1 || n.credits > maxCredits:
		return fmt.Errorf("%w: %d credits", errProtocol, n.credits)
	}
	*w = n
	return nil
}

// A reject is what the memory node gives along when it does not accept.
//
//	  0   4  magic
//	  4   2  version
//	  6   2  code
//	  8 136  why, text
//	144   4  CRC-32C of bytes 0-143
func (r *refusal) encodeReject() []byte {
	b := make([]byte, rejectSize)
	putGreeting(b)
	binary.LittleEndian.PutUint16(b[6:], uint16(r.code))
	copy(b[8:144], r.text)
	seal(b)
	return b
}

func (r *refusal) decodeReject(b []byte) error {
	b, err := greeting(b, rejectSize)
	if err != nil {
		return err
	}
	c := code(binary.LittleEndian.Uint16(b[6:]))
	if c == codeOK {
		return fmt.Errorf("%w: rejected without a reason", errProtocol)
	}
	*r = refusal{c, text(b[8:144])}
	return nil
}

func putGreeting(b []byte) {
	binary.LittleEndian.PutUint32(b, magic)
	binary.LittleEndian.PutUint16(b[4:], version)
}

// seal puts the checksum of what is before it into the last four bytes of b.
func seal(b []byte) {
	n := len(b) - 4
	binary.LittleEndian.PutUint32(b[n:], crc32.Checksum(b[:n], castagnoli))
}

// greeting checks what all have in common that is given along, and cuts it to size: a
// connection manager may hand over zeros behind it.
func greeting(b []byte, size int) ([]byte, error) {
	if len(b) < size || binary.LittleEndian.Uint32(b) != magic || !zero(b[size:]) {
		return nil, fmt.Errorf("%w: not the data path of a memory node", errProtocol)
	}
	b = b[:size]
	if v := binary.LittleEndian.Uint16(b[4:]); v != version {
		return nil, &refusal{codeVersion, fmt.Sprintf("protocol version %d, want %d", v, version)}
	}
	if binary.LittleEndian.Uint32(b[size-4:]) != crc32.Checksum(b[:size-4], castagnoli) {
		return nil, errCorrupt
	}
	return b, nil
}

func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// A kind tells what a message is.
type kind uint16

const (
	kindMap     kind = 1 // asks where an offset is: MAPPED or ERROR
	kindMapped  kind = 2
	kindPersist kind = 3 // asks the processor to make ranges persistent: DONE or ERROR
	kindDone    kind = 4
	kindError   kind = 5
)

// A message is what a SEND carries. Each begins with a header:
//
//	 0  2  kind
//	 2  2  code, in an ERROR
//	 4  4  length in bytes of what follows the header
//	 8  8  id: chosen by the client; an answer has that of its request
//	16  4  reserved, zero
//	20  4  CRC-32C of bytes 0-19 and what follows the header
//
// What follows:
//
//	MAP      0 8 offset in bytes of the pool
//	MAPPED   0 8 start, 8 8 end: bytes of the pool; 16 8 address of start, 24 4 rkey,
//	         28 4 reserved, zero
//	PERSIST  for each range, 1 to 254: 0 8 offset, 8 8 length in bytes
//	DONE     nothing
//	ERROR    text, at most 512 bytes
type message struct {
	kind kind
	code code
	id   uint64

	off    int64   // MAP
	extent extent  // MAPPED
	ranges []place // PERSIST
	text   string  // ERROR
}

// A place is n bytes of the pool, from off.
type place struct{ off, n int64 }

func (p place) end() int64 { return p.off + p.n }

// encode puts m into b, which has room for messageSize, and returns its length.
func (m *message) encode(b []byte) int {
	b = b[:messageSize]
	p := b[headerSize:]
	n := 0
	switch m.kind {
	case kindMap:
		n = 8
		binary.LittleEndian.PutUint64(p, uint64(m.off))
	case kindMapped:
		n = 32
		binary.LittleEndian.PutUint64(p[0:], uint64(m.extent.start))
		binary.LittleEndian.PutUint64(p[8:], uint64(m.extent.end))
		binary.LittleEndian.PutUint64(p[16:], m.extent.address)
		binary.LittleEndian.PutUint32(p[24:], m.extent.rkey)
		binary.LittleEndian.PutUint32(p[28:], 0)
	case kindPersist:
		n = 16 * len(m.ranges)
		for i, r := range m.ranges {
			binary.LittleEndian.PutUint64(p[16*i:], uint64(r.off))
			binary.LittleEndian.PutUint64(p[16*i+8:], uint64(r.n))
		}
	case kindError:
		n = copy(p[:maxText], m.text)
	}
	binary.LittleEndian.PutUint16(b[0:], uint16(m.kind))
	binary.LittleEndian.PutUint16(b[2:], uint16(m.code))
	binary.LittleEndian.PutUint32(b[4:], uint32(n))
	binary.LittleEndian.PutUint64(b[8:], m.id)
	binary.LittleEndian.PutUint32(b[16:], 0)
	putMessageSum(b[:headerSize+n])
	return headerSize + n
}

func putMessageSum(b []byte) { binary.LittleEndian.PutUint32(b[20:], messageSum(b)) }

// messageSum is the checksum of a message, but of the bytes that it is in.
func messageSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:20], castagnoli), castagnoli, b[headerSize:])
}

// decode reads a message. Its places are within what an int64 can say.
func (m *message) decode(b []byte) error {
	if len(b) < headerSize || len(b) > messageSize {
		return fmt.Errorf("%w: message of %d bytes", errProtocol, len(b))
	}
	if binary.LittleEndian.Uint32(b[20:]) != messageSum(b) {
		return errCorrupt
	}
	p := b[headerSize:]
	n := message{
		kind: kind(binary.LittleEndian.Uint16(b[0:])), code: code(binary.LittleEndian.Uint16(b[2:])),
		id: binary.LittleEndian.Uint64(b[8:]),
	}
	if binary.LittleEndian.Uint32(b[4:]) != uint32(len(p)) || binary.LittleEndian.Uint32(b[16:]) != 0 ||
		(n.kind == kindError) != (n.code != codeOK) {
		return fmt.Errorf("%w: header of a message", errProtocol)
	}
	if err := n.decodeBody(p); err != nil {
		return err
	}
	*m = n
	return nil
}

func (m *message) decodeBody(p []byte) error {
	good := false
	switch m.kind {
	case kindMap:
		if len(p) == 8 {
			m.off = int64(binary.LittleEndian.Uint64(p))
			good = m.off >= 0
		}
	case kindMapped:
		if len(p) == 32 {
			m.extent = extent{
				start: int64(binary.LittleEndian.Uint64(p[0:])), end: int64(binary.LittleEndian.Uint64(p[8:])),
				address: binary.LittleEndian.Uint64(p[16:]), rkey: binary.LittleEndian.Uint32(p[24:]),
			}
			good = zero(p[28:]) && m.extent.start >= 0 && m.extent.start < m.extent.end &&
				m.extent.address <= math.MaxUint64-uint64(m.extent.end-m.extent.start)
		}
	case kindPersist:
		good = len(p) > 0 && len(p)%16 == 0
		for ; good && len(p) > 0; p = p[16:] {
			r := place{int64(binary.LittleEndian.Uint64(p)), int64(binary.LittleEndian.Uint64(p[8:]))}
			good = r.off >= 0 && r.n > 0 && r.off <= math.MaxInt64-r.n
			m.ranges = append(m.ranges, r)
		}
	case kindDone:
		good = len(p) == 0
	case kindError:
		m.text = string(p)
		good = len(p) <= maxText
	}
	if !good {
		return fmt.Errorf("%w: message of kind %d and %d bytes", errProtocol, m.kind, len(p))
	}
	return nil
}
