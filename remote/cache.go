package remote

import (
	"sync"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// maxInodes bounds the inodes that are remembered.
const maxInodes = 8192

// An inodeCache remembers inodes: the lease says that nobody else changes them.
// Opening, looking at and closing a file asks for its inode again and again, and
// each answer would cost a round trip.
//
// A change forgets them all when it begins. What is read while a change is under
// way, or was read before one and comes in late, is not remembered.
type inodeCache struct {
	off bool // remembers nothing: others change inodes; immutable

	mu       sync.Mutex // guards the fields below
	inodes   map[namespace.Ino]namespace.Inode
	changes  uint64 // begun so far, and ended so far
	changing int    // begun, not ended
}

// get returns an inode that is remembered.
func (c *inodeCache) get(ino namespace.Ino) (n namespace.Inode, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok = c.inodes[ino]
	return n, ok
}

// now returns what put needs to know of an inode that is about to be read.
func (c *inodeCache) now() (at uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changes
}

// put remembers an inode that was asked for at that time.
func (c *inodeCache) put(n namespace.Inode, at uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off || c.changing > 0 || c.changes != at {
		return
	}
	if c.inodes == nil {
		c.inodes = make(map[namespace.Ino]namespace.Inode)
	}
	if len(c.inodes) >= maxInodes {
		clear(c.inodes)
	}
	c.inodes[n.Ino] = n
}

// begin is called before a change is sent, end when it is known to be made or not.
func (c *inodeCache) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.inodes)
	c.changes++
	c.changing++
}

func (c *inodeCache) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	c.changing--
}
