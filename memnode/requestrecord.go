package memnode

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// What a requestRecord says of the answer.
const (
	answerNone  = iota // there was nothing to say
	answerInode        // an inode
	answerHeir         // of Reap
	answerGrant        // of Grant
	answerLong         // it is in the bucket answers, or forgotten
)

// A requestRecord says that a request was done, and what it returned.
//
//	Offset Size Field
//	     0    1 version     1
//	     1    1 kind        of the answer
//	     2    6 reserved    zero
//	     8    8 request
//	    16    8 generation  of the lease
//	    24   16 digest      of what was asked for
//	    40    - answer      by its kind:
//
// An inode: its number (8), and the body of its value in the bucket inodes. An heir: its
// number (8), 0: none. A grant: the first superblock (8), and of each run start (8) and
// number of slots (8). Else nothing.
type requestRecord struct {
	Request
	kind  byte
	inode namespace.Inode // numbers as in the pool
	heir  namespace.Ino
	grant region.Grant
}

const requestSize = 40

func (rec *requestRecord) encode() []byte {
	b := newBody(requestSize)
	le := binary.LittleEndian
	b[1] = rec.kind
	le.PutUint64(b[8:], rec.ID)
	le.PutUint64(b[16:], rec.Generation)
	copy(b[24:], rec.Digest[:])
	switch rec.kind {
	case answerInode:
		b = le.AppendUint64(b, uint64(rec.inode.Ino))
		b = append(b, encodeInode(&rec.inode)...)
	case answerHeir:
		b = le.AppendUint64(b, uint64(rec.heir))
	case answerGrant:
		b = le.AppendUint64(b, uint64(rec.grant.Super))
		for _, r := range rec.grant.Runs {
			b = le.AppendUint64(b, uint64(r.Start))
			b = le.AppendUint64(b, r.N)
		}
	}
	return b
}

func decodeRequest(b []byte) (requestRecord, error) {
	if len(b) < requestSize {
		return requestRecord{}, fmt.Errorf("value of %d bytes, want at least %d", len(b), requestSize)
	}
	le := binary.LittleEndian
	rec := requestRecord{
		Request: Request{ID: le.Uint64(b[8:]), Generation: le.Uint64(b[16:]), Digest: [16]byte(b[24:40])},
		kind:    b[1],
	}
	if !zero(b[2:8]) {
		return requestRecord{}, errors.New("reserved bytes are not zero")
	}
	if rec.ID == 0 || rec.Generation == 0 {
		return requestRecord{}, fmt.Errorf("request %d of generation %d", rec.ID, rec.Generation)
	}
	if err := rec.decodeAnswer(b[requestSize:]); err != nil {
		return requestRecord{}, fmt.Errorf("answer of kind %d: %w", rec.kind, err)
	}
	return rec, nil
}

func (rec *requestRecord) decodeAnswer(b []byte) (err error) {
	bad := fmt.Errorf("%d bytes", len(b))
	if rec.kind == answerNone || rec.kind == answerLong {
		if len(b) != 0 {
			return bad
		}
		return nil
	}
	if len(b) < 8 {
		return bad
	}
	number, b := binary.LittleEndian.Uint64(b), b[8:]
	switch rec.kind {
	case answerInode:
		if number == 0 || len(b) == 0 || b[0] != valueVersion && b[0] != shareInodeVersion {
			return fmt.Errorf("inode %d with %w", number, bad)
		}
		rec.inode, err = decodeInode(namespace.Ino(number), b)
		return err
	case answerHeir:
		if len(b) != 0 {
			return bad
		}
		rec.heir = namespace.Ino(number)
		return nil
	case answerGrant:
		rec.grant.Super = region.Slot(number)
		rec.grant.Runs, err = decodeRuns(b)
		if err == nil && (number == 0 || number >= uint64(region.MaxSlot)) {
			err = fmt.Errorf("superblock in slot %d", number)
		}
		return err
	}
	return errors.New("unknown")
}

// decodeRuns decodes runs of slots, at least one.
func decodeRuns(b []byte) (runs []region.Run, err error) {
	if len(b) == 0 || len(b)%16 != 0 {
		return nil, fmt.Errorf("runs of %d bytes", len(b))
	}
	le := binary.LittleEndian
	for ; len(b) > 0; b = b[16:] {
		r := region.Run{Start: region.Slot(le.Uint64(b)), N: le.Uint64(b[8:])}
		if !validRun(r) {
			return nil, fmt.Errorf("%d slots from %d", r.N, r.Start)
		}
		runs = append(runs, r)
	}
	return runs, nil
}
