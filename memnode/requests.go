package memnode

import (
	"bytes"
	"context"
	"fmt"

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

// Answers may be long: those of Grant, where free slots are scattered. A record that would
// be longer than longRecord has its answer in a bucket of its own: next to others it would
// be written again with each of them. Of one share so many bytes of those are kept.
const (
	longRecord  = 2 << 10
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

// longKey is where a long answer to the request is, after those to older ones of the share.
func (r *Request) longKey(share namespace.Ino) []byte { return key2(uint64(share), r.ID) }

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
	bucket, key := bucketRequests, r.key(t.share)
	rec, err := t.request(bucket, key)
	switch {
	case err != nil:
		return false, err
	case rec.Generation != r.Generation || rec.ID < r.ID: // or there is none
		return false, nil
	case rec.ID > r.ID:
		return false, fmt.Errorf("%w: request %d comes too late to tell what came of it", ErrRequest, r.ID)
	case rec.Digest != r.Digest:
		return false, fmt.Errorf("%w: request %d was another one", ErrRequest, r.ID)
	case rec.kind == answerLong:
		bucket, key = bucketAnswers, r.longKey(t.share)
		if rec, err = t.request(bucket, key); err != nil {
			return false, err
		}
		if rec.ID == 0 {
			return false, fmt.Errorf("%w: the answer to request %d was too long to be kept", ErrRequest, r.ID)
		}
	}
	if rec.Request != r || !rec.fill(t, out) {
		return false, corruptValue(bucket, key, fmt.Sprintf("request %d with an answer of kind %d", rec.ID, rec.kind))
	}
	return true, nil
}

// request returns the zero record if there is none.
func (t txn) request(bucket string, key []byte) (requestRecord, error) {
	body, err := t.get(bucket, key)
	if err != nil || body == nil {
		return requestRecord{}, err
	}
	rec, err := decodeRequest(body)
	if err != nil {
		return requestRecord{}, corruptValue(bucket, key, err.Error())
	}
	return rec, nil
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
	key := r.key(t.share)
	old, err := t.request(bucketRequests, key)
	if err != nil {
		return err
	}
	if old.kind == answerLong {
		if err := t.delete(bucketAnswers, old.longKey(t.share)); err != nil {
			return err
		}
	}
	body := rec.encode()
	if len(body) > longRecord {
		if err := t.keepLong(r, body); err != nil {
			return err
		}
		body = (&requestRecord{Request: r, kind: answerLong}).encode()
	}
	return t.put(bucketRequests, key, body)
}

// keepLong keeps a long answer, and forgets the oldest ones of the share that are too much
// then.
func (t txn) keepLong(r Request, body []byte) error {
	if len(body) > maxLongSize {
		return nil
	}
	b, err := t.bucket(bucketAnswers)
	if err != nil {
		return err
	}
	var oldest [][]byte
	prefix, total := key1(uint64(t.share)), len(body)
	c := b.Cursor()
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		oldest, total = append(oldest, bytes.Clone(k)), total+len(v)
	}
	for ; total > maxLongSize && len(oldest) > 0; oldest = oldest[1:] {
		total -= len(b.Get(oldest[0]))
		if err := t.delete(bucketAnswers, oldest[0]); err != nil {
			return err
		}
	}
	return t.put(bucketAnswers, r.longKey(t.share), body)
}

// forgetRequests forgets what the session that has, or had, a share asked for.
func (t txn) forgetRequests(share namespace.Ino) error {
	if err := t.deleteAll(bucketRequests, key1(uint64(share))); err != nil {
		return err
	}
	return t.deleteAll(bucketAnswers, key1(uint64(share)))
}
