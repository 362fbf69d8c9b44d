package node

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// A digest is of what a request asks for: a number stands for one request only.
type digest [16]byte

// digestOf returns the digest of a request.
func digestOf(method string, req proto.Message) (digest, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(append([]byte(method), 0), req)
	if err != nil {
		return digest{}, err
	}
	sum := sha256.Sum256(b)
	return digest(sum[:16]), nil
}

// The pool keeps as many as answers does, and clients rely on.
var _ [nodepb.Remembered]struct{} = [memnode.Remembered]struct{}{}

// maxAnswerBytes bounds the answers that are kept for one session.
const maxAnswerBytes = 4 << 20

// answers keeps what a session's requests were answered, so that one whose answer
// was lost can be repeated without being done twice. The zero value is empty, as after a
// restart: then the pool knows what was done, and nothing else is under way or answered.
type answers struct {
	mu        sync.Mutex // guards the fields below
	byID      map[uint64]*answer
	order     []uint64 // the keys of byID, oldest first
	bytes     int
	forgotten uint64 // no request up to here is known to be new
}

// An answer is that to one request. What follows done is written before done is
// closed.
type answer struct {
	digest digest
	done   chan struct{}
	reply  proto.Message
	err    error
	size   int // 0 until done
}

// do answers request id: with what fn returns, or, for a repetition, with what fn
// returned the first time, for which it waits. An id of 0 is never remembered.
func (a *answers) do(ctx context.Context, id uint64, d digest, fn func() (proto.Message, error)) (proto.Message, error) {
	if id == 0 {
		return fn()
	}
	first, repeated, err := a.find(id, d)
	if err != nil {
		return nil, err
	}
	if repeated {
		select {
		case <-first.done:
			return first.reply, first.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	first.reply, first.err = fn()
	a.mu.Lock()
	defer a.mu.Unlock()
	first.size = 1
	if first.err == nil {
		first.size += proto.Size(first.reply)
	}
	a.bytes += first.size
	close(first.done)
	a.trim()
	return first.reply, first.err
}

// find returns the answer to request id, which is the caller's to give unless it
// is repeated.
func (a *answers) find(id uint64, d digest) (_ *answer, repeated bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.byID[id]; old != nil {
		if old.digest != d {
			return nil, false, fmt.Errorf("%w: request %d was another one", errInvalid, id)
		}
		return old, true, nil
	}
	if id <= a.forgotten {
		return nil, false, fmt.Errorf("%w: request %d comes too late to tell whether it was done", errInvalid, id)
	}
	if len(a.order) >= 2*nodepb.Remembered {
		return nil, false, fmt.Errorf("%w: %d requests under way", errBusy, len(a.order))
	}
	if a.byID == nil {
		a.byID = make(map[uint64]*answer)
	}
	made := &answer{digest: d, done: make(chan struct{})}
	a.byID[id] = made
	a.order = append(a.order, id)
	return made, false, nil
}

// trim forgets the oldest answers that are too many. mu is held.
func (a *answers) trim() {
	if len(a.byID) <= nodepb.Remembered && a.bytes <= maxAnswerBytes {
		return
	}
	a.order = slices.DeleteFunc(a.order, func(id uint64) bool {
		old := a.byID[id]
		if old.size == 0 || len(a.byID) <= nodepb.Remembered && a.bytes <= maxAnswerBytes {
			return false
		}
		delete(a.byID, id)
		a.bytes -= old.size
		a.forgotten = max(a.forgotten, id)
		return true
	})
}
