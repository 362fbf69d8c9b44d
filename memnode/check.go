package memnode

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// Check reads all of the directory and reports every inconsistency: names
// without inodes and the reverse, link counts, parents, extents that overlap or
// leave the pool, what belongs to nobody, shares and leases that contradict each
// other, damaged values, and pages of meta.db that do not hang together. What is in
// the slots is for region.Image.Check.
//
// It sees the directory at one moment; changes wait until it ends, but not in a
// pool opened for reading. The error says that Check could not go on, not what
// it found. It needs about 100 bytes of memory an inode.
func (p *Pool) Check(ctx context.Context, report func(problem string)) error {
	return p.check(ctx, report, p.readOnly)
}

// CheckBeside is Check for those who must not keep others waiting: changes go on, and
// pages of meta.db are not looked at.
func (p *Pool) CheckBeside(ctx context.Context, report func(problem string)) error {
	return p.check(ctx, report, true)
}

func (p *Pool) check(ctx context.Context, report func(problem string), beside bool) error {
	c := &checker{
		ctx:      ctx,
		beside:   beside && !p.readOnly,
		report:   report,
		slots:    p.slots,
		store:    p.meta,
		inodes:   map[namespace.Ino]*checkedInode{},
		families: map[uint64]map[region.ID]bool{},
		supers:   map[region.ID]region.Slot{},
		shares:   map[namespace.Ino]*shareRecord{},
		leases:   map[namespace.Ino]uint64{},
	}
	fn := func(t txn) error {
		c.txn = t
		if err := c.all(); err != nil {
			return err
		}
		return errUnchanged
	}
	if beside {
		if err := p.view(ctx, fn); !errors.Is(err, errUnchanged) {
			return err
		}
		return nil
	}
	return p.update(ctx, fn)
}

// A checker gathers the inodes, then compares everything else with them. Its
// context ends with the call that made it.
type checker struct {
	txn
	ctx    context.Context
	beside bool // changes go on
	report func(string)
	slots  uint64
	store  metaStore

	inodes   map[namespace.Ino]*checkedInode
	families map[uint64]map[region.ID]bool // as region records say
	supers   map[region.ID]region.Slot
	shares   map[namespace.Ino]*shareRecord // less what was found of them
	leases   map[namespace.Ino]uint64       // their generations
	damaged  bool                           // some value could not be read: do not blame others for it
}

type checkedInode struct {
	mode    uint32
	nlink   uint32
	parent  namespace.Ino
	share   namespace.Ino
	names   uint32
	subdirs uint32
	orphan  bool // in the bucket of orphans
	rooted  bool // the way to the root was walked
}

func (c *checker) say(format string, args ...any) { c.report(fmt.Sprintf(format, args...)) }

func (c *checker) all() error {
	for _, step := range []func() error{
		c.gatherInodes, c.gatherShares, c.checkDirents, c.checkOrphans, c.checkLinks, c.checkXattrs,
		c.checkRegions, c.checkFamilies, c.checkExtents, c.checkCheckpoints, c.checkCounters, c.checkShares,
		c.checkLeases, c.checkNames, c.checkRequests,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if c.beside {
		return nil
	}
	return c.checkPages()
}

// scan calls fn for every good value of a bucket whose key is keySize long, or
// longer if names follow. An error of fn is a problem of that value.
func (c *checker) scan(bucket string, keySize int, named bool, fn func(key, body []byte) error) error {
	b, err := c.bucket(bucket)
	if b == nil {
		return err
	}
	cursor := b.Cursor()
	for k, v := cursor.First(); k != nil; k, v = cursor.Next() {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if len(k) < keySize || (len(k) > keySize) != named {
			c.say("%s: key %x is malformed", bucket, k)
			continue
		}
		body, err := openValue(bucket, k, v)
		if err == nil {
			err = fn(k, body)
		}
		if err != nil {
			c.damaged = true
			c.say("%s: key %x: %v", bucket, k, err)
		}
	}
	return nil
}

func (c *checker) gatherInodes() error {
	err := c.scan(bucketInodes, 8, false, func(key, body []byte) error {
		ino := namespace.Ino(binary.BigEndian.Uint64(key))
		n, err := decodeInode(ino, body)
		if err != nil {
			return err
		}
		c.inodes[ino] = &checkedInode{mode: n.Mode, nlink: n.Nlink, parent: n.Parent, share: n.Share}
		return nil
	})
	if root := c.inodes[namespace.Root]; err == nil && (root == nil || !isDir(root.mode) || root.parent != namespace.Root) {
		c.say("inode 1 is not the root directory")
	}
	return err
}

func (c *checker) checkDirents() error {
	return c.scan(bucketDirents, 8, true, func(key, body []byte) error {
		var d dirent
		if err := d.decode(body); err != nil {
			return err
		}
		parent, name := namespace.Ino(binary.BigEndian.Uint64(key)), string(key[8:])
		if err := checkName(name); err != nil {
			c.say("directory %d: name %q: %v", parent, name, err)
		}
		dir := c.inodes[parent]
		if dir == nil || !isDir(dir.mode) {
			c.say("name %q is in inode %d, which is not a directory", name, parent)
		}
		n := c.inodes[d.ino]
		if n == nil {
			c.say("directory %d: name %q stands for inode %d, which does not exist", parent, name, d.ino)
			return nil
		}
		n.names++
		if n.mode&unix.S_IFMT != d.mode {
			c.say("directory %d: name %q has type %#o, inode %d has %#o", parent, name, d.mode, d.ino, n.mode&unix.S_IFMT)
		}
		if dir != nil && n.share != dir.share && (n.share != d.ino || parent != namespace.Root) {
			c.say("inode %d of share %d is in directory %d of share %d", d.ino, n.share, parent, dir.share)
		}
		if isDir(n.mode) {
			if dir != nil {
				dir.subdirs++
			}
			if n.parent != parent {
				c.say("directory %d is in directory %d, but says %d", d.ino, parent, n.parent)
			}
		}
		return nil
	})
}

func (c *checker) checkOrphans() error {
	return c.scan(bucketOrphans, 8, false, func(key, body []byte) error {
		ino := namespace.Ino(binary.BigEndian.Uint64(key))
		if n := c.inodes[ino]; n != nil {
			n.orphan = true
		} else {
			c.say("orphan %d has no inode", ino)
		}
		return decodeMark(body)
	})
}

// checkLinks compares what inodes say with the names that were found.
func (c *checker) checkLinks() error {
	for ino, n := range c.inodes {
		if n.orphan != (n.nlink == 0) {
			c.say("inode %d has %d links, orphan: %v", ino, n.nlink, n.orphan)
		}
		if !isDir(n.mode) {
			if n.names != n.nlink && !c.damaged {
				c.say("inode %d has %d names, but %d links", ino, n.names, n.nlink)
			}
			continue
		}
		names, links := uint32(1), 2+n.subdirs
		if ino == namespace.Root {
			names = 0
		}
		if n.nlink == 0 {
			names, links = 0, 0
		}
		if !c.damaged && (n.names != names || n.nlink != links) {
			c.say("directory %d has %d names, want %d, and %d links, want %d", ino, n.names, names, n.nlink, links)
		}
		if n.nlink > 0 {
			c.checkRooted(ino)
		}
	}
	return nil
}

// checkRooted walks from a directory up to the root.
func (c *checker) checkRooted(ino namespace.Ino) {
	var way []*checkedInode
	for at := ino; at != namespace.Root; {
		n := c.inodes[at]
		if n == nil || !isDir(n.mode) || n.nlink == 0 {
			if !c.damaged {
				c.say("directory %d: its parent %d is not a directory", ino, at)
			}
			break
		}
		if n.rooted {
			break
		}
		n.rooted = true // also ends a ring
		way = append(way, n)
		at = n.parent
		if slices.Contains(way, c.inodes[at]) {
			c.say("directory %d is below itself", at)
			break
		}
	}
}

// owner checks that something belongs to an inode, and to a regular file if it
// must.
func (c *checker) owner(what string, ino namespace.Ino, regular bool) {
	n := c.inodes[ino]
	switch {
	case n == nil && !c.damaged:
		c.say("%s belongs to inode %d, which does not exist", what, ino)
	case n != nil && regular && !isRegular(n.mode):
		c.say("%s belongs to inode %d, which is not a regular file", what, ino)
	}
}

func (c *checker) checkXattrs() error {
	return c.scan(bucketXattrs, 8, true, func(key, body []byte) error {
		c.owner(fmt.Sprintf("attribute %q", key[8:]), namespace.Ino(binary.BigEndian.Uint64(key)), false)
		_, err := decodeXattr(body)
		return err
	})
}

func (c *checker) checkRegions() error {
	return c.scan(bucketRegions, 8, false, func(key, body []byte) error {
		id := region.ID(binary.BigEndian.Uint64(key))
		c.owner("a region", namespace.Ino(id), true)
		var r regionRecord
		if err := r.decode(body); err != nil {
			return err
		}
		c.supers[id] = r.super
		if r.family != 0 {
			if c.families[r.family] == nil {
				c.families[r.family] = map[region.ID]bool{}
			}
			c.families[r.family][id] = false
		}
		return nil
	})
}

func (c *checker) checkFamilies() error {
	err := c.scan(bucketFamilies, 16, false, func(key, body []byte) error {
		family, id := binary.BigEndian.Uint64(key), region.ID(binary.BigEndian.Uint64(key[8:]))
		if _, ok := c.families[family][id]; ok {
			c.families[family][id] = true
		} else if !c.damaged {
			c.say("region %d is not of family %d, which lists it", id, family)
		}
		return decodeMark(body)
	})
	for family, members := range c.families {
		for id, listed := range members {
			if !listed && !c.damaged {
				c.say("region %d is of family %d, which does not list it", id, family)
			}
		}
	}
	return err
}

func (c *checker) checkExtents() error {
	type extent struct {
		region.Run
		owner region.ID
	}
	var all []extent
	err := c.scan(bucketExtents, 16, false, func(key, body []byte) error {
		x := extent{owner: region.ID(binary.BigEndian.Uint64(key))}
		var err error
		if x.Run, err = decodeExtent(region.Slot(binary.BigEndian.Uint64(key[8:])), body); err != nil {
			return err
		}
		c.owner(fmt.Sprintf("the extent of %d slots from %d", x.N, x.Start), namespace.Ino(x.owner), true)
		if x.End() > region.Slot(c.slots) {
			c.say("region %d: the extent of %d slots from %d leaves the pool of %d", x.owner, x.N, x.Start, c.slots)
		}
		if super := c.supers[x.owner]; super >= x.Start && super < x.End() {
			delete(c.supers, x.owner) // found
			if super+2 > x.End() {
				c.say("region %d: the superblocks in slot %d leave their extent", x.owner, super)
			}
		}
		if n := c.inodes[namespace.Ino(x.owner)]; n != nil && c.shares[n.share] != nil {
			c.shares[n.share].slots -= x.N
		}
		all = append(all, x)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b extent) int { return cmp.Compare(a.Start, b.Start) })
	for i := 1; i < len(all); i++ {
		if a, b := all[i-1], all[i]; a.End() > b.Start {
			c.say("slots %d to %d belong to regions %d and %d", b.Start, min(a.End(), b.End())-1, a.owner, b.owner)
		}
	}
	for id, super := range c.supers {
		if !c.damaged {
			c.say("region %d: the superblock in slot %d is in none of its extents", id, super)
		}
	}
	return nil
}

func (c *checker) checkCheckpoints() error {
	return c.scan(bucketCheckpoints, 8, true, func(key, body []byte) error {
		cp, err := decodeCheckpoint(string(key[8:]), body)
		if err != nil {
			return err
		}
		c.owner(fmt.Sprintf("checkpoint %q", cp.Name), namespace.Ino(binary.BigEndian.Uint64(key)), true)
		if cp.Tree.Root >= region.Slot(c.slots) {
			c.say("checkpoint %q: root in slot %d of %d", cp.Name, cp.Tree.Root, c.slots)
		}
		return nil
	})
}

func (c *checker) checkCounters() error {
	if _, err := c.pool(); err != nil {
		c.say("%v", err)
	}
	state, err := c.state()
	if err != nil {
		c.say("%v", err)
		return nil
	}
	if uint64(len(c.inodes)) != state.inodes && !c.damaged {
		c.say("%d inodes found, %d were counted", len(c.inodes), state.inodes)
	}
	for ino := range c.inodes {
		if ino >= state.nextIno {
			c.say("inode %d exists, but the next number is %d", ino, state.nextIno)
		}
	}
	return nil
}

func (c *checker) checkPages() error {
	if s, ok := c.store.(pagedStore); ok {
		return s.checkPages(c.say)
	}
	return nil
}
