package model

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// A domain is a protection domain.
type domain struct {
	host *Host // immutable

	// Guarded by Fabric.mu:
	users  int // MRs and queues
	closed bool
}

// NewDomain makes a protection domain.
func (h *Host) NewDomain() (verbs.Domain, error) {
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	if h.dead {
		return nil, errDead
	}
	return &domain{host: h}, nil
}

// Close fails if something of the domain is still there.
func (d *domain) Close() error {
	d.host.fabric.mu.Lock()
	defer d.host.fabric.mu.Unlock()
	if d.users > 0 && !d.host.dead {
		return fmt.Errorf("model: close a domain of %d MRs and queues", d.users)
	}
	d.closed = true
	return nil
}

// An mr is registered memory.
type mr struct {
	domain *domain // immutable, as all but closed
	mem    []byte
	access verbs.Access
	key    uint32
	medium Medium // nil: ordinary memory
	off    int64  // of mem in medium

	closed bool // guarded by Fabric.mu
}

// Register makes memory reachable.
func (d *domain) Register(mem []byte, access verbs.Access) (verbs.MR, error) {
	h, f := d.host, d.host.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case h.dead:
		return nil, errDead
	case d.closed:
		return nil, errors.New("model: register in a domain that is closed")
	case len(mem) == 0:
		return nil, errors.New("model: register no memory")
	}
	m := &mr{domain: d, mem: mem, access: access}
	for _, medium := range h.opts.Media {
		if off, ok := inside(mem, medium.Bytes()); ok {
			m.medium, m.off = medium, off
		}
	}
	if access&verbs.RemoteFlush != 0 && (!h.opts.Flush || m.medium == nil) {
		return nil, fmt.Errorf("model: register for FLUSH: %w", errors.ErrUnsupported)
	}
	if access != 0 {
		if h.lockable > 0 && h.locked+len(mem) > h.lockable {
			return nil, fmt.Errorf("model: register %d bytes: %w", len(mem), syscall.ENOMEM)
		}
		h.locked += len(mem)
	}
	m.key = f.newKey()
	d.users++
	h.mrs[m.key] = m
	return m, nil
}

// newKey is a number that no MR has. mu is held.
func (f *Fabric) newKey() uint32 {
	if n := len(f.oldKeys); n > 0 && f.hostile(2) {
		key := f.oldKeys[n-1]
		f.oldKeys = f.oldKeys[:n-1]
		return key
	}
	f.lastKey++
	return f.lastKey
}

// Keys of the two kinds are told apart: one in place of the other is refused.
func (m *mr) LKey() uint32    { return m.key << 1 }
func (m *mr) RKey() uint32    { return m.key<<1 | 1 }
func (m *mr) Address() uint64 { return uint64(uintptr(unsafe.Pointer(&m.mem[0]))) }

func (m *mr) Close() error {
	m.domain.host.fabric.mu.Lock()
	defer m.domain.host.fabric.mu.Unlock()
	if m.closed && !m.domain.host.dead {
		return errors.New("model: MR closed twice")
	}
	m.close()
	return nil
}

// close ends the MR. mu is held, so nothing lands now.
func (m *mr) close() {
	if m.closed {
		return
	}
	m.closed = true
	m.domain.users--
	h := m.domain.host
	if m.access != 0 {
		h.locked -= len(m.mem)
	}
	delete(h.mrs, m.key)
	h.fabric.oldKeys = append(h.fabric.oldKeys, m.key)
}

// store and load reach the memory at byte at. mu is held.
func (m *mr) store(p []byte, at int) error {
	if m.medium != nil {
		return m.medium.Store(p, m.off+int64(at))
	}
	copy(m.mem[at:], p)
	return nil
}

func (m *mr) load(p []byte, at int) error {
	if m.medium != nil {
		return m.medium.ReadAt(p, m.off+int64(at))
	}
	copy(p, m.mem[at:])
	return nil
}

// local is the MR that p, the local memory of a work request, is in, and where.
func (q *queue) local(p []byte, lkey uint32) (m *mr, at int, err error) {
	m = q.host.mrs[lkey>>1]
	if lkey&1 != 0 || m == nil || m.domain != q.domain {
		return nil, 0, fmt.Errorf("%w: local memory: no MR of the domain has lkey %#x", verbs.ErrBroken, lkey)
	}
	off, ok := inside(p, m.mem)
	if !ok {
		return nil, 0, fmt.Errorf("%w: local memory is not in its MR", verbs.ErrBroken)
	}
	return m, int(off), nil
}

// reach is the MR of q's host that its peer named, and where in it address is.
func (q *queue) reach(rkey uint32, address uint64, n int, access verbs.Access) (m *mr, at int, err error) {
	m = q.host.mrs[rkey>>1]
	switch {
	case rkey&1 == 0 || m == nil:
		err = fmt.Errorf("no MR has rkey %#x", rkey)
	case m.domain != q.domain:
		err = errors.New("the MR is of another domain")
	case m.access&access == 0:
		err = errors.New("the MR does not allow it")
	case address-m.Address() > uint64(len(m.mem)) || // it may be before: then that is a large number
		uint64(n) > uint64(len(m.mem))-(address-m.Address()):
		err = fmt.Errorf("%d bytes at %#x are not in the MR", n, address)
	default:
		return m, int(address - m.Address()), nil
	}
	return nil, 0, fmt.Errorf("%w: remote access: %w", verbs.ErrRemote, err)
}

// inside tells where in mem p is.
func inside(p, mem []byte) (off int64, ok bool) {
	if len(p) == 0 {
		return 0, true
	}
	if len(mem) == 0 {
		return 0, false
	}
	at, start := uintptr(unsafe.Pointer(&p[0])), uintptr(unsafe.Pointer(&mem[0]))
	if at < start || at-start > uintptr(len(mem)) || uintptr(len(p)) > uintptr(len(mem))-(at-start) {
		return 0, false
	}
	return int64(at - start), true
}
