package verbs

// For tests that speak the protocol themselves.

// EncodeHello is a HELLO.
func EncodeHello(token [32]byte, stream uint64, attempt uint32) []byte {
	return (&hello{flushes: true, token: token, stream: stream, attempt: attempt}).encode()
}

// EncodeWelcome is a WELCOME of a medium of kind dax.
func EncodeWelcome(m Method) []byte { return (&welcome{method: m, credits: 8, kind: "dax"}).encode() }

// EncodeMap is a MAP.
func EncodeMap(id uint64, off int64) []byte { return encoded(message{kind: kindMap, id: id, off: off}) }

// EncodePersist is a PERSIST of one range.
func EncodePersist(id uint64, off, n int64) []byte {
	return encoded(message{kind: kindPersist, id: id, ranges: []place{{off, n}}})
}

// EncodeMapped is a MAPPED.
func EncodeMapped(id uint64, start, end int64, address uint64, rkey uint32) []byte {
	return encoded(message{kind: kindMapped, id: id, extent: extent{start, end, address, rkey}})
}

// EncodeDone is a DONE.
func EncodeDone(id uint64) []byte { return encoded(message{kind: kindDone, id: id}) }

// EncodeError is an ERROR.
func EncodeError(id uint64, c uint16) []byte {
	return encoded(message{kind: kindError, code: code(c), id: id, text: "no"})
}

func encoded(m message) []byte {
	b := make([]byte, messageSize)
	return b[:m.encode(b)]
}

// Decoded is what a message says, for tests.
type Decoded struct {
	Kind, Code uint16
	ID         uint64
	Start, End int64
	Address    uint64
	RKey       uint32
}

// Decode reads a message.
func Decode(b []byte) (Decoded, error) {
	var m message
	err := m.decode(b)
	return Decoded{uint16(m.kind), uint16(m.code), m.id, m.extent.start, m.extent.end, m.extent.address, m.extent.rkey}, err
}
