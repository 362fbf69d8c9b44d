// Package places bounds connections so that nobody who makes many of them keeps others
// out: a table that is full drops one of whoever has most.
package places

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// tellEvery is how often a table tells that it is full, at most.
const tellEvery = 10 * time.Second

// A Policy says which connection is dropped of whoever has most.
type Policy int

const (
	// DropOldest is for peers that have yet to say who they are: an honest one has
	// done so long before its turn comes.
	DropOldest Policy = iota
	// DropNewest is for peers that are known: what has lasted goes on.
	DropNewest
)

// A Table has a number of places for connections. It is safe for concurrent use.
type Table struct {
	limit  int // immutable, as the next two
	policy Policy
	full   func(owner string, dropped uint64)

	mu      sync.Mutex // guards the fields below, and those of every Place
	owners  map[string][]*Place
	n       int
	seq     uint64
	dropped uint64
	told    time.Time
}

// A Place is that of one connection.
type Place struct {
	table *Table
	owner string
	seq   uint64
	drop  func()
	left  bool // it is not in the table any more
}

// New returns a table of limit places. full is told, every 10 s at most, of a connection
// that was dropped, whose it was, and how many were so far; nil: nobody is.
func New(limit int, policy Policy, full func(owner string, dropped uint64)) *Table {
	return &Table{limit: limit, policy: policy, full: full, owners: make(map[string][]*Place)}
}

// Enter takes a place for a connection of owner. If there is none it makes one: drop is
// called, without locks, for a connection of the owner who has most; it must not wait for
// the peer. Enter returns nil if that is the connection that comes; its drop is not
// called.
func (t *Table) Enter(owner string, drop func()) *Place {
	t.mu.Lock()
	t.seq++
	p := &Place{table: t, owner: owner, seq: t.seq, drop: drop}
	t.owners[owner] = append(t.owners[owner], p)
	t.n++
	var victim *Place
	tell := false
	if t.n > t.limit {
		victim = t.victim()
		t.remove(victim)
		t.dropped++
		if tell = t.full != nil && time.Since(t.told) > tellEvery; tell {
			t.told = time.Now()
		}
	}
	dropped := t.dropped
	t.mu.Unlock()
	if tell {
		t.full(victim.owner, dropped)
	}
	switch victim {
	case nil:
	case p:
		return nil
	default:
		victim.drop()
	}
	return p
}

// victim returns the connection that goes. mu is held.
func (t *Table) victim() *Place {
	var victim *Place
	most := 0
	for _, held := range t.owners {
		candidate := held[0]
		if t.policy == DropNewest {
			candidate = held[len(held)-1]
		}
		older := victim != nil && candidate.seq < victim.seq
		if len(held) > most || len(held) == most && older == (t.policy == DropOldest) {
			victim, most = candidate, len(held)
		}
	}
	return victim
}

// remove takes p out. mu is held.
func (t *Table) remove(p *Place) {
	held := t.owners[p.owner]
	for i, other := range held {
		if other == p {
			held = append(held[:i:i], held[i+1:]...)
			break
		}
	}
	t.owners[p.owner] = held
	if len(held) == 0 {
		delete(t.owners, p.owner)
	}
	t.n--
	p.left = true
}

// Leave gives the place back. It returns false if the connection was dropped before. A
// second call does nothing, and returns false.
func (p *Place) Leave() bool {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if p.left {
		return false
	}
	p.table.remove(p)
	return true
}

// Counts returns how many places are taken, and how many connections were dropped so
// far.
func (t *Table) Counts() (taken int, dropped uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n, t.dropped
}

// Source is the owner of a connection of which only its address is known: the address
// without its port, and of IPv6 the 64 bits that one host can have all of.
func Source(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return ""
	}
	ip, _ := netip.AddrFromSlice(tcp.IP)
	ip = ip.Unmap()
	if ip.Is6() {
		if net, err := ip.Prefix(64); err == nil {
			return net.String()
		}
	}
	return ip.String()
}

// Closer returns what closes a connection without a word to its peer, which may not
// listen.
func Closer(c net.Conn) func() {
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS
		c = outer.NetConn()
	}
	return func() { _ = c.Close() }
}
