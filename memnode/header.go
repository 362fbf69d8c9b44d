package memnode

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/rpmemfs/rpmemfs/region"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	headerMagic   = "RPMPOOL\x00"
	headerVersion = 1
	headerSize    = 64
)

// A uuid tells one pool from another.
type uuid [16]byte

func (u uuid) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// A header begins slot 0 of the data. The rest of the slot is zero.
//
//	Offset Size Field
//	     0    8 magic     "RPMPOOL\0"
//	     8    4 version   1
//	    12    4 reserved  zero
//	    16   16 pool      UUID of the pool, as in meta.db
//	    32    8 slots     of 4096 bytes in the pool, slot 0 included
//	    40    8 created   ns since 1970
//	    48   12 reserved  zero
//	    60    4 checksum  CRC-32C of bytes 0-59
type header struct {
	pool    uuid
	slots   uint64
	created int64
}

func (h *header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, headerMagic)
	binary.LittleEndian.PutUint32(b[8:], headerVersion)
	copy(b[16:], h.pool[:])
	binary.LittleEndian.PutUint64(b[32:], h.slots)
	binary.LittleEndian.PutUint64(b[40:], uint64(h.created))
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

func (h *header) decode(b []byte) error {
	bad := func(what string) error { return &CorruptError{File: "data", Name: "pool header", What: what} }
	if len(b) < headerSize || string(b[:8]) != headerMagic {
		return bad("bad magic: not the data of a pool, or overwritten")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != headerVersion {
		return versionError("data", uint64(v), headerVersion)
	}
	if got, want := crc32.Checksum(b[:60], castagnoli), binary.LittleEndian.Uint32(b[60:]); got != want {
		return bad("checksum does not match")
	}
	if !zero(b[12:16]) || !zero(b[48:60]) {
		return bad("reserved bytes are not zero")
	}
	slots := binary.LittleEndian.Uint64(b[32:])
	if !validSlots(slots) {
		return bad(fmt.Sprintf("%d slots", slots))
	}
	*h = header{pool: uuid(b[16:32]), slots: slots, created: int64(binary.LittleEndian.Uint64(b[40:]))}
	return nil
}

// minSlots is the smallest pool: a header and a few small regions.
const minSlots = 64

func validSlots(n uint64) bool { return n >= minSlots && n <= uint64(region.MaxSlot) }

func versionError(file string, found, known uint64) error {
	return fmt.Errorf("%s has version %d, this program knows version %d: %w: use the program that made the pool", file, found, known, ErrVersion)
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
