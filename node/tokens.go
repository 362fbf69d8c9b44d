package node

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// Limits of tokens for single data connections.
const (
	tokenLife   = 30 * time.Second
	maxTokensOf = 16 // one session's, not used yet; the oldest goes for the next
)

// tokens are the rights to single connections of the RDMA data path, each given to a
// session over the control API and good once. RDMA is not encrypted: who sees a token
// pass can do nothing with it.
//
// mu is never held across a call.
type tokens struct {
	mu    sync.Mutex // guards the fields below
	given map[tokenHash]*ticket
}

// A ticket is a token that was given out.
type ticket struct {
	session  *session
	readOnly bool
	until    time.Time
}

func newTokens() *tokens { return &tokens{given: make(map[tokenHash]*ticket)} }

// give makes a token for a session.
func (k *tokens) give(s *session, readOnly bool) token {
	var t token
	_, _ = rand.Read(t[:]) // never fails
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	var oldest tokenHash
	count := 0
	for hash, old := range k.given {
		switch {
		case now.After(old.until) || old.session.life.Err() != nil:
			delete(k.given, hash)
		case old.session == s:
			if count++; count == 1 || old.until.Before(k.given[oldest].until) {
				oldest = hash
			}
		}
	}
	if count >= maxTokensOf {
		delete(k.given, oldest)
	}
	k.given[t.hash()] = &ticket{s, readOnly, now.Add(tokenLife)}
	return t
}

// take uses a token up. It is found by the hash of what the caller sent, so the time that
// takes tells nothing about the others.
func (k *tokens) take(t token) (*ticket, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	hash := t.hash()
	found := k.given[hash]
	delete(k.given, hash)
	if found == nil || time.Now().After(found.until) {
		return nil, fmt.Errorf("%w: a token that is unknown, used or late", errPermission)
	}
	return found, nil
}

// DataToken implements nodepb.NodeServer.
func (s *Server) DataToken(ctx context.Context, _ *nodepb.DataTokenRequest) (*nodepb.DataTokenResponse, error) {
	session, t, err := s.sessionOf(ctx)
	if err != nil {
		return nil, err
	}
	given := s.tokens.give(session, t.readOnly())
	return &nodepb.DataTokenResponse{Token: given[:]}, nil
}

// rdmaSessions is the sessions as the RDMA data path knows them.
type rdmaSessions struct {
	dataSessions
	tokens *tokens
}

var _ verbs.Sessions = rdmaSessions{}

// Take returns the live session of a token for one connection.
func (d rdmaSessions) Take(t [32]byte) (verbs.Session, error) {
	found, err := d.tokens.take(t)
	if err != nil {
		return nil, err
	}
	d.manager.mu.Lock()
	defer d.manager.mu.Unlock()
	if err := d.manager.usable(found.session); err != nil {
		return nil, err
	}
	return dataSession{found.session.fence, found.session, found.readOnly, d.work}, nil
}
