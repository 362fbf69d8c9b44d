package tcp

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"time"
)

const (
	magic   = 0x444d5052 // "RPMD"
	version = 1

	helloSize   = 80
	welcomeSize = 160
	headerSize  = 32

	maxData = 1 << 20 // bytes of data in one message
	maxText = 512     // bytes of an error's text
)

// A kind tells what a message is.
type kind uint16

const (
	kindWrite kind = 1 // offset, length, data; not answered
	kindRead  kind = 2 // offset, length
	kindFlush kind = 3
	kindData  kind = 4 // answers READ: length, data
	kindDone  kind = 5 // answers FLUSH
	kindError kind = 6 // answers READ or FLUSH; sequence 0: the connection ends. length, text
	kindAlive kind = 7 // the memory node works on what it was sent
)

// A code says why something was refused.
type code uint16

const (
	codeOK          code = 0
	codeFenced      code = 1 // final
	codeNoSpace     code = 2 // of writes since the last FLUSH; send them again before the next one
	codePoisoned    code = 3 // the FLUSH failed, or a WRITE before it: final for both
	codeRead        code = 4 // this READ failed
	codeProtocol    code = 5 // a message that breaks the protocol, or is damaged
	codeUnavailable code = 6 // come again
	codeVersion     code = 7 // final
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A header begins every message but HELLO and WELCOME.
//
//	 0  2  kind
//	 2  2  code, in an ERROR
//	 4  4  length in bytes: of the data or text that follows; in a READ, what it asks for
//	 8  8  sequence
//	16  8  offset in bytes
//	24  4  CRC-32C of what follows
//	28  4  CRC-32C of bytes 0-27
type header struct {
	kind     kind
	code     code
	length   uint32
	sequence uint64
	offset   int64
	sum      uint32 // of what follows
}

// follows is the number of bytes that come after the header.
func (h *header) follows() int {
	if h.kind == kindRead {
		return 0
	}
	return int(h.length)
}

// encode puts the header of a message that goes on with data into b.
func (h *header) encode(b, data []byte) {
	h.sum = crc32.Checksum(data, castagnoli)
	h.encodeSum(b)
}

// encodeSum is encode where sum is known.
func (h *header) encodeSum(b []byte) {
	_ = b[headerSize-1]
	binary.LittleEndian.PutUint16(b[0:], uint16(h.kind))
	binary.LittleEndian.PutUint16(b[2:], uint16(h.code))
	binary.LittleEndian.PutUint32(b[4:], h.length)
	binary.LittleEndian.PutUint64(b[8:], h.sequence)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.offset))
	binary.LittleEndian.PutUint32(b[24:], h.sum)
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
}

// decode reads a header. Its length is within bounds; what follows is still to be
// checked, with verify.
func (h *header) decode(b []byte) error {
	_ = b[headerSize-1]
	// First, so that nobody waits for a length that was damaged.
	if binary.LittleEndian.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli) {
		return errCorrupt
	}
	n := header{
		kind:     kind(binary.LittleEndian.Uint16(b[0:])),
		code:     code(binary.LittleEndian.Uint16(b[2:])),
		length:   binary.LittleEndian.Uint32(b[4:]),
		sequence: binary.LittleEndian.Uint64(b[8:]),
		sum:      binary.LittleEndian.Uint32(b[24:]),
	}
	off := binary.LittleEndian.Uint64(b[16:])
	limit := uint32(0)
	switch n.kind {
	case kindWrite, kindRead, kindData:
		limit = maxData
	case kindError:
		limit = maxText
	case kindFlush, kindDone, kindAlive:
	default:
		return fmt.Errorf("%w: message of kind %d", errProtocol, n.kind)
	}
	placed := n.kind == kindWrite || n.kind == kindRead
	switch {
	case n.length > limit || placed && n.length == 0:
		return fmt.Errorf("%w: message of kind %d and %d bytes", errProtocol, n.kind, n.length)
	case !placed && off != 0, off > math.MaxInt64-uint64(n.length):
		return fmt.Errorf("%w: offset %d", errProtocol, off)
	case (n.kind == kindError) != (n.code != codeOK), n.kind == kindAlive && n.sequence != 0:
		return fmt.Errorf("%w: message of kind %d with code %d, sequence %d", errProtocol, n.kind, n.code, n.sequence)
	}
	n.offset = int64(off)
	*h = n
	return nil
}

// verify compares the checksum of what follows.
func (h *header) verify(data []byte) error {
	if h.sum != crc32.Checksum(data, castagnoli) {
		return errCorrupt
	}
	return nil
}

// A hello is the client's first message.
//
//	 0  4  magic
//	 4  2  version
//	 6  2  reserved, zero
//	 8 32  token
//	40  8  stream: chosen at random by the client, the same on all its connections
//	48  8  attempt: larger on each connection of a stream
//	56  8  alive in ns: how often the client wants to hear of work that takes long
//	64 12  reserved, zero
//	76  4  CRC-32C of bytes 0-75
type hello struct {
	token   [32]byte
	stream  uint64
	attempt uint64
	alive   time.Duration
}

// The alive interval that a server agrees to.
const (
	minAlive = 10 * time.Millisecond
	maxAlive = time.Minute
)

func (h *hello) encode() []byte {
	b := make([]byte, helloSize)
	binary.LittleEndian.PutUint32(b[0:], magic)
	binary.LittleEndian.PutUint16(b[4:], version)
	copy(b[8:40], h.token[:])
	binary.LittleEndian.PutUint64(b[40:], h.stream)
	binary.LittleEndian.PutUint64(b[48:], h.attempt)
	binary.LittleEndian.PutUint64(b[56:], uint64(h.alive))
	binary.LittleEndian.PutUint32(b[76:], crc32.Checksum(b[:76], castagnoli))
	return b
}

func (h *hello) decode(b []byte) error {
	if err := decodeGreeting(b, helloSize); err != nil {
		return err
	}
	if b[6]|b[7] != 0 || strings.Trim(string(b[64:76]), "\x00") != "" {
		return fmt.Errorf("%w: reserved bytes", errProtocol)
	}
	alive := time.Duration(binary.LittleEndian.Uint64(b[56:]))
	if alive < minAlive || alive > maxAlive {
		return fmt.Errorf("%w: alive interval", errProtocol)
	}
	h.token = [32]byte(b[8:40])
	h.stream = binary.LittleEndian.Uint64(b[40:])
	h.attempt = binary.LittleEndian.Uint64(b[48:])
	h.alive = alive
	return nil
}

// decodeGreeting checks what HELLO and WELCOME have in common.
func decodeGreeting(b []byte, size int) error {
	if len(b) != size || binary.LittleEndian.Uint32(b) != magic {
		return fmt.Errorf("%w: not the data path of a memory node", errProtocol)
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != version {
		return &refusal{codeVersion, fmt.Sprintf("protocol version %d, want %d", v, version)}
	}
	if binary.LittleEndian.Uint32(b[size-4:]) != crc32.Checksum(b[:size-4], castagnoli) {
		return errCorrupt
	}
	return nil
}

// A welcome answers a hello.
//
//	  0   4  magic
//	  4   2  version
//	  6   2  code; 0: welcome
//	  8   2  flags: 1 the medium is volatile
//	 10  14  reserved, zero
//	 24  16  kind of the medium, text
//	 40 116  why, text, if the code is not 0
//	156   4  CRC-32C of bytes 0-155
type welcome struct {
	code     code
	volatile bool
	kind     string
	text     string
}

func (w *welcome) encode() []byte {
	b := make([]byte, welcomeSize)
	binary.LittleEndian.PutUint32(b[0:], magic)
	binary.LittleEndian.PutUint16(b[4:], version)
	binary.LittleEndian.PutUint16(b[6:], uint16(w.code))
	if w.volatile {
		b[8] = 1
	}
	copy(b[24:40], w.kind)
	copy(b[40:156], w.text)
	binary.LittleEndian.PutUint32(b[156:], crc32.Checksum(b[:156], castagnoli))
	return b
}

func (w *welcome) decode(b []byte) error {
	if err := decodeGreeting(b, welcomeSize); err != nil {
		return err
	}
	if b[8] > 1 || strings.Trim(string(b[9:24]), "\x00") != "" {
		return fmt.Errorf("%w: reserved bytes", errProtocol)
	}
	w.code = code(binary.LittleEndian.Uint16(b[6:]))
	w.volatile = b[8] == 1
	w.kind = strings.TrimRight(string(b[24:40]), "\x00")
	w.text = strings.TrimRight(string(b[40:156]), "\x00")
	return nil
}
