package node

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// maxKeptAnswer is the longest answer in bytes that is kept. The pool has a longer one.
const maxKeptAnswer = 4 << 10

// answers keeps what a session's requests were answered, so that one whose answer was
// lost can be repeated without being done twice. The zero value is empty, as after a
// restart: then the pool knows what was done, and nothing is under way any more.
//
// A number has its place, as in the pool (memnode.Remembered), where it follows smaller
// ones whose answers have arrived. What fails is known here only: a request that is late
// on a connection that broke is not done after its repetition was told that it failed.
type answers struct {
	mu     sync.Mutex // guards places
	places map[uint64]*answer
}

// An answer is that to one request. What follows done is written before done is
// closed.
type answer struct {
	id     uint64
	digest digest
	done   chan struct{}
	long   bool // not kept
	reply  proto.Message
	err    error
}

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

// do answers request id: with what fn returns, or, for a repetition, with what fn
// returned the first time, for which it waits. An id of 0 is never remembered. fn finds
// in the pool what it did before.
func (a *answers) do(ctx context.Context, id uint64, d digest, fn func() (proto.Message, error)) (proto.Message, error) {
	if id == 0 {
		return fn()
	}
	for {
		at, mine, err := a.find(id, d)
		if err != nil {
			return nil, err
		}
		if mine {
			reply, err := fn()
			if at.long = proto.Size(reply) > maxKeptAnswer; !at.long {
				at.reply = reply
			}
			at.err = err
			close(at.done)
			return reply, err
		}
		select {
		case <-at.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		switch {
		case at.id != id: // the one before: nobody waits for its answer any more
		case at.long:
			return fn()
		default:
			return at.reply, at.err
		}
	}
}

// find returns the answer to request id, or the one that is under way in its place; mine,
// if it is the caller's to give.
func (a *answers) find(id uint64, d digest) (_ *answer, mine bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	place := id % nodepb.Remembered
	if old := a.places[place]; old != nil {
		switch {
		case old.id > id:
			return nil, false, fmt.Errorf("%w: request %d comes too late to tell whether it was done", errInvalid, id)
		case old.id == id && old.digest != d:
			return nil, false, fmt.Errorf("%w: request %d was another one", errInvalid, id)
		case old.id == id || !old.over():
			return old, false, nil
		}
	}
	if a.places == nil {
		a.places = make(map[uint64]*answer)
	}
	made := &answer{id: id, digest: d, done: make(chan struct{})}
	a.places[place] = made
	return made, true, nil
}

// over tells whether the request is under way no longer.
func (a *answer) over() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}
