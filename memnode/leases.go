package memnode

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// A Lease is the right of one session to write one share. The pool remembers it until
// EndLease, also when it is opened again by a memory node: how long it lasts then is
// the memory node's to decide.
type Lease struct {
	Share      namespace.Ino // namespace.Root: the whole pool
	Generation uint64        // by which regions tell its records from those of others; set by GrantLease
	Session    [16]byte
	TokenHash  [32]byte // SHA-256 of the token that the session shows
	Holder     string   // for people, at most maxHolder bytes
	Timeout    time.Duration
	Granted    int64 // ns since 1970; set by GrantLease
}

// maxHolder is the longest name of a holder in bytes.
const maxHolder = 255

// GrantLease frees inodes of the share that have no names: whoever had them open is
// gone. Then it records the lease durably and raises the pool's generation to make one
// for it, which it returns with the lease.
//
// ErrLeased, with the holder's name, if anyone has a lease of the share or of the
// whole pool, or if the whole pool is wanted and anyone has any. The caller's own
// counts too. namespace.ErrNotExist if there is no such share.
func (p *Pool) GrantLease(ctx context.Context, l Lease) (Lease, error) {
	if err := p.grantLease(ctx, &l); err != nil {
		return Lease{}, fmt.Errorf("grant lease of share %d: %w", l.Share, err)
	}
	return l, nil
}

func (p *Pool) grantLease(ctx context.Context, l *Lease) error {
	if len(l.Holder) > maxHolder || l.Timeout <= 0 {
		return namespace.ErrInvalid
	}
	// The session before may have died before its last flush. What the next one finds
	// of it must last: it uses the slots that it replaced.
	if err := p.Flush(); err != nil {
		return err
	}
	// All that can fail comes before the record: nobody would end the lease.
	if err := p.reapOrphans(ctx, l.Share); err != nil {
		return err
	}
	return p.update(ctx, func(t txn) error {
		if l.Share != namespace.Root {
			if _, err := t.shareRecord(l.Share); err != nil {
				return err
			}
		}
		if err := t.checkUnleased(l.Share); err != nil {
			return err
		}
		state, err := t.state()
		if err != nil {
			return err
		}
		state.generation++
		l.Generation, l.Granted = state.generation, p.now().UnixNano()
		if err := t.putState(state); err != nil {
			return err
		}
		if err := t.forgetRequests(l.Share); err != nil {
			return err
		}
		return t.put(bucketLeases, key1(uint64(l.Share)), l.encode())
	})
}

// EndLease forgets the lease that a session has of a share, and what it asked for,
// durably, or does nothing if it has none. The session's Fence must have ended.
func (p *Pool) EndLease(ctx context.Context, share namespace.Ino, session [16]byte) error {
	held := func(t txn) error {
		l, err := t.lease(share)
		if err == nil && (l == nil || l.Session != session) {
			err = errUnchanged
		}
		return err
	}
	err := p.view(ctx, held)
	if err == nil {
		// First: a memory node that is killed after the end does not know what to settle.
		err = p.settle(ctx, share)
	}
	if err == nil {
		err = p.update(ctx, func(t txn) error {
			if err := held(t); err != nil {
				return err
			}
			if err := t.forgetRequests(share); err != nil {
				return err
			}
			return t.delete(bucketLeases, key1(uint64(share)))
		})
	}
	if err != nil && !errors.Is(err, errUnchanged) {
		return fmt.Errorf("end lease of share %d: %w", share, err)
	}
	return nil
}

// Leases returns all leases, sorted by share.
func (p *Pool) Leases(ctx context.Context) (leases []Lease, err error) {
	err = p.view(ctx, func(t txn) error {
		leases, err = t.leases()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	return leases, nil
}

// checkUnleased refuses a lease of share if another one is in its way.
func (t txn) checkUnleased(share namespace.Ino) error {
	leases, err := t.leases()
	if err != nil {
		return err
	}
	for i, l := range leases {
		if l.Share == share || l.Share == namespace.Root || share == namespace.Root {
			return leases[i].refusal()
		}
	}
	return nil
}

// refusal is the error of someone whom the lease is in the way of.
func (l *Lease) refusal() error {
	return fmt.Errorf("%w: share %d, by %q", ErrLeased, l.Share, l.Holder)
}

// lease returns nil if nobody has one.
func (t txn) lease(share namespace.Ino) (*Lease, error) {
	key := key1(uint64(share))
	body, err := t.get(bucketLeases, key)
	if err != nil || body == nil {
		return nil, err
	}
	l, err := decodeLease(share, body)
	if err != nil {
		return nil, corruptValue(bucketLeases, key, err.Error())
	}
	return &l, nil
}

func (t txn) leases() (leases []Lease, err error) {
	err = t.each(bucketLeases, nil, func(key, body []byte) error {
		if len(key) != 8 {
			return corruptValue(bucketLeases, key, "bad key")
		}
		l, err := decodeLease(namespace.Ino(binary.BigEndian.Uint64(key)), body)
		if err != nil {
			return corruptValue(bucketLeases, key, err.Error())
		}
		leases = append(leases, l)
		return nil
	})
	return leases, err
}

// encode lays a lease out; its share is in the key:
//
//	Offset Size Field
//	     0    1 version     1
//	     1    1 reserved    zero
//	     2    2 holder_len  at most 255
//	     4    4 reserved    zero
//	     8    8 generation
//	    16   16 session
//	    32   32 token       SHA-256 of the session's token
//	    64    8 timeout     ns
//	    72    8 granted     ns since 1970
//	    80    - holder
func (l *Lease) encode() []byte {
	b := newBody(leaseSize + len(l.Holder))
	le := binary.LittleEndian
	le.PutUint16(b[2:], uint16(len(l.Holder)))
	le.PutUint64(b[8:], l.Generation)
	copy(b[16:], l.Session[:])
	copy(b[32:], l.TokenHash[:])
	le.PutUint64(b[64:], uint64(l.Timeout))
	le.PutUint64(b[72:], uint64(l.Granted))
	copy(b[leaseSize:], l.Holder)
	return b
}

const leaseSize = 80

// decodeLease decodes the lease of a share.
func decodeLease(share namespace.Ino, b []byte) (Lease, error) {
	if len(b) < leaseSize {
		return Lease{}, fmt.Errorf("value of %d bytes, want at least %d", len(b), leaseSize)
	}
	le := binary.LittleEndian
	if err := checkBody(b, leaseSize+int(le.Uint16(b[2:])), 1, 2, 4, 8); err != nil {
		return Lease{}, err
	}
	l := Lease{
		Share:      share,
		Generation: le.Uint64(b[8:]),
		Session:    [16]byte(b[16:32]),
		TokenHash:  [32]byte(b[32:64]),
		Holder:     string(b[leaseSize:]),
		Timeout:    time.Duration(le.Uint64(b[64:])),
		Granted:    int64(le.Uint64(b[72:])),
	}
	if share == 0 || l.Timeout <= 0 || len(l.Holder) > maxHolder || l.Generation == 0 {
		return Lease{}, fmt.Errorf("lease of share %d for %v with generation %d, holder of %d bytes", share, l.Timeout, l.Generation, len(l.Holder))
	}
	return l, nil
}
