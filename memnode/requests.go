package memnode

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// A session numbers its changes, and asks again with the same number for one whose
// answer it never got. So that none is made twice, whatever was killed meanwhile, the
// transaction of a change also records its number, and what the call returned. It finds
// the record of the first time where there is one, changes nothing, and returns the same.
//
// A call that failed, or found nothing to change, leaves no record: it is made anew, and
// is as good as one that came late.
//
// A number has its place in Remembered places of the share, where it replaces the one
// that is Remembered smaller. So they are bounded without being counted, a place that
// holds a larger number tells that an answer is lost, and a client that has fewer than
// Remembered calls without an answer finds all that it asks for.

// Remembered is how many requests of a session are recorded.
const Remembered = 1024

// Answers may be long: those of Grant, where free slots are scattered. Of one share so
// many bytes are kept of records that are longer than longRecord.
const (
	longRecord  = 8 << 10
	maxLongSize = 4 << 20
)

// A Request is a change as the session that asked for it knows it.
type Request struct {
	ID         uint64   // used once in a session; from 1, in about ascending order
	Generation uint64   // of the session's lease
	Digest     [16]byte // of what is asked for
}

type requestKey struct{}

// WithRequest makes the next change by a View a request: it is made once, also if it is
// asked for again after the pool was closed or killed, and opened with KeepOrphans. A
// context is for one change. ErrRequest if that cannot be told.
func WithRequest(ctx context.Context, r Request) context.Context {
	return context.WithValue(ctx, requestKey{}, r)
}

// requestOf returns the request that a change is, or the zero one.
func requestOf(ctx context.Context) Request {
	r, _ := ctx.Value(requestKey{}).(Request)
	return r
}

// key is the request's place among those of a share.
func (r *Request) key(share namespace.Ino) []byte { return key2(uint64(share), r.ID%Remembered) }

// A result is where a change puts what it returns; nil: it does not return that. An inode
// without a number is none.
type result struct {
	inode *namespace.Inode
	heir  *namespace.Ino
	grant *region.Grant
}

// repeated tells whether a request was done before, and puts what it returned into out.
func (t txn) repeated(r Request, out result) (bool, error) {
	if r.ID == 0 {
		return false, nil
	}
	key := r.key(t.share)
	body, err := t.get(bucketRequests, key)
	if err != nil || body == nil {
		return false, err
	}
	rec, err := decodeRequest(body)
	if err != nil {
		return false, corruptValue(bucketRequests, key, err.Error())
	}
	switch {
	case rec.Generation != r.Generation || rec.ID < r.ID:
		return false, nil
	case rec.ID > r.ID || rec.kind == answerForgotten:
		return false, fmt.Errorf("%w: request %d comes too late to tell what came of it", ErrRequest, r.ID)
	case rec.Digest != r.Digest:
		return false, fmt.Errorf("%w: request %d was another one", ErrRequest, r.ID)
	}
	if !rec.fill(t, out) {
		return false, corruptValue(bucketRequests, key, fmt.Sprintf("an answer of kind %d", rec.kind))
	}
	return true, nil
}

// fill puts the answer into out, if it is of a kind that belongs there.
func (rec *requestRecord) fill(t txn, out result) bool {
	switch {
	case rec.kind == answerInode && out.inode != nil:
		*out.inode = t.shown(rec.inode)
	case rec.kind == answerHeir && out.heir != nil:
		*out.heir = rec.heir
	case rec.kind == answerGrant && out.grant != nil:
		*out.grant = rec.grant
	default:
		return rec.kind == answerNone && out.heir == nil && out.grant == nil
	}
	return true
}

// remember records a request with what it returns, in its own transaction.
func (t txn) remember(r Request, out result) error {
	if r.ID == 0 {
		return nil
	}
	rec := requestRecord{Request: r}
	switch {
	case out.inode != nil && out.inode.Ino != 0:
		rec.kind, rec.inode = answerInode, t.stored(*out.inode)
	case out.heir != nil:
		rec.kind, rec.heir = answerHeir, *out.heir
	case out.grant != nil:
		rec.kind, rec.grant = answerGrant, *out.grant
	}
	body := rec.encode()
	if len(body) > longRecord {
		if len(body) > maxLongSize {
			body = rec.forgotten()
		} else if err := t.forgetLong(maxLongSize - len(body)); err != nil {
			return err
		}
	}
	return t.put(bucketRequests, r.key(t.share), body)
}

// forgetLong forgets the oldest long answers of the share, until all have at most size
// bytes.
func (t txn) forgetLong(size int) error {
	var long []requestRecord
	total := 0
	err := t.each(bucketRequests, key1(uint64(t.share)), func(key, body []byte) error {
		if len(body) <= longRecord {
			return nil
		}
		rec, err := decodeRequest(body)
		if err != nil {
			return corruptValue(bucketRequests, key, err.Error())
		}
		rec.size = len(body)
		long = append(long, rec)
		total += len(body)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(long, func(a, b requestRecord) int { return cmp.Compare(a.ID, b.ID) })
	for _, rec := range long {
		if total <= size {
			break
		}
		total -= rec.size
		if err := t.put(bucketRequests, rec.key(t.share), rec.forgotten()); err != nil {
			return err
		}
	}
	return nil
}

// forgetRequests forgets what the session that has, or had, a share asked for.
func (t txn) forgetRequests(share namespace.Ino) error {
	return t.deleteAll(bucketRequests, key1(uint64(share)))
}
