package region

import (
	"encoding/binary"

	"github.com/rpmemfs/rpmemfs/epoch"
)

const (
	recordMagic   = "RPMRECRD"
	recordVersion = 1
	recordHeader  = 96
	recordEntry   = 24
	recordAlign   = 64 // a record starts on a cache line

	// maxInFlight bounds the epochs in flight, and so how many recovery has to try.
	maxInFlight = 16

	kindEpoch = 1 // commits an epoch
	kindMark  = 2 // says only that its epoch is durable
)

// A PageChange is a page of an epoch: the slot that holds it and the CRC-32C of
// its bytes. Slot 0 makes the page a hole.
type PageChange struct {
	Page uint64
	Slot Slot
	CRC  uint32
}

// A record commits one epoch. It certifies itself: recovery takes it only if the
// checksum holds, its epoch is the next one, its generation is not older than
// its predecessor's, and, unless a later record says that its epoch was durable,
// every page it names matches its own checksum.
//
//	Offset Size Field
//	     0    8 magic       "RPMRECRD"
//	     8    4 version     1
//	    12    4 kind        1 epoch, 2 mark
//	    16    8 region      region ID
//	    24    8 generation  of the writer
//	    32    8 epoch       that this record commits; of a mark: the last one
//	    40    8 durable     last epoch known durable when this was written; at most 16 before epoch
//	    48    8 size        of the file, in bytes
//	    56    8 cut         pages from this number on were dropped first; 2^64-1: none
//	    64    8 mtime       of the file, ns since 1970
//	    72    4 series      of the pages below
//	    76    4 count       of entries
//	    80   12 reserved    zero
//	    92    4 checksum    CRC-32C of bytes 0-91 and of all entries
//	    96   24 each entry: page (8), slot (8), CRC-32C of the page (4), zero (4)
//
// Records are padded with zeros to a multiple of 64 bytes.
type record struct {
	kind       uint32
	id         ID
	generation uint64
	epoch      epoch.ID
	durable    epoch.ID
	size       uint64
	cut        uint64
	mtime      int64
	series     uint32
	pages      []PageChange
}

// recordBytes is the length in the log of a record with count entries.
func recordBytes(count int) int {
	return (recordHeader + count*recordEntry + recordAlign - 1) &^ (recordAlign - 1)
}

func (r *record) encode() []byte {
	b := make([]byte, recordBytes(len(r.pages)))
	le := binary.LittleEndian
	copy(b, recordMagic)
	le.PutUint32(b[8:], recordVersion)
	le.PutUint32(b[12:], r.kind)
	le.PutUint64(b[16:], uint64(r.id))
	le.PutUint64(b[24:], r.generation)
	le.PutUint64(b[32:], uint64(r.epoch))
	le.PutUint64(b[40:], uint64(r.durable))
	le.PutUint64(b[48:], r.size)
	le.PutUint64(b[56:], r.cut)
	le.PutUint64(b[64:], uint64(r.mtime))
	le.PutUint32(b[72:], r.series)
	le.PutUint32(b[76:], uint32(len(r.pages)))
	e := b[recordHeader:]
	for _, p := range r.pages {
		le.PutUint64(e, p.Page)
		le.PutUint64(e[8:], uint64(p.Slot))
		le.PutUint32(e[16:], p.CRC)
		e = e[recordEntry:]
	}
	le.PutUint32(b[92:], recordChecksum(b, len(r.pages)))
	return b
}

func recordChecksum(b []byte, count int) uint32 {
	crc := Checksum(b[:92])
	return crc32Update(crc, b[recordHeader:recordHeader+count*recordEntry])
}

// decode sets r from the start of b, which is at off in the pool, and returns
// the record's length in the log. What is not a record of this version is a
// CorruptError; the caller decides if that is the end of the log or damage.
func (r *record) decode(b []byte, off int64) (int, error) {
	bad := func(what string) (int, error) {
		return 0, &CorruptError{Off: off, Page: NoPage, What: "record " + what}
	}
	if len(b) < recordHeader || string(b[:8]) != recordMagic {
		return bad("magic")
	}
	le := binary.LittleEndian
	if le.Uint32(b[8:]) != recordVersion {
		return bad("version") // torn: the superblock's version speaks for the log
	}
	count := le.Uint32(b[76:])
	if uint64(count) > uint64(len(b)-recordHeader)/recordEntry {
		return bad("count")
	}
	n := int(count)
	if le.Uint32(b[92:]) != recordChecksum(b, n) {
		return bad("checksum")
	}
	d := record{
		kind:       le.Uint32(b[12:]),
		id:         ID(le.Uint64(b[16:])),
		generation: le.Uint64(b[24:]),
		epoch:      epoch.ID(le.Uint64(b[32:])),
		durable:    epoch.ID(le.Uint64(b[40:])),
		size:       le.Uint64(b[48:]),
		cut:        le.Uint64(b[56:]),
		mtime:      int64(le.Uint64(b[64:])),
		series:     le.Uint32(b[72:]),
	}
	switch {
	case d.kind != kindEpoch && d.kind != kindMark:
		return bad("kind")
	case d.size > MaxSize:
		return bad("size")
	case le.Uint64(b[80:]) != 0 || le.Uint32(b[88:]) != 0:
		return bad("reserved bytes")
	case d.kind == kindMark && (n != 0 || d.durable != d.epoch):
		return bad("mark")
	case d.kind == kindEpoch && (d.durable >= d.epoch || d.epoch-d.durable > maxInFlight):
		return bad("durable epoch")
	}
	d.pages = make([]PageChange, n)
	for i := range d.pages {
		e := b[recordHeader+i*recordEntry:]
		p := PageChange{Page: le.Uint64(e), Slot: Slot(le.Uint64(e[8:])), CRC: le.Uint32(e[16:])}
		if p.Page >= maxPages || p.Slot >= MaxSlot || le.Uint32(e[20:]) != 0 {
			return bad("entry")
		}
		d.pages[i] = p
	}
	total := recordBytes(n)
	for _, c := range b[recordHeader+n*recordEntry : min(total, len(b))] {
		if c != 0 {
			return bad("padding")
		}
	}
	if total > len(b) {
		return bad("length")
	}
	*r = d
	return total, nil
}
