package memnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// A dirModel is what a directory should be: maps, and the rules of rename(2) and
// friends written the straight way.
type dirModel struct {
	nodes map[namespace.Ino]*dirModelNode
}

type dirModelNode struct {
	mode    uint32
	uid     uint32
	entries map[string]namespace.Ino // of a directory
	parent  namespace.Ino
	names   int
	xattrs  map[string][]byte
}

func newDirModel() *dirModel {
	return &dirModel{nodes: map[namespace.Ino]*dirModelNode{namespace.Root: {
		mode: unix.S_IFDIR | 0o755, entries: map[string]namespace.Ino{}, parent: namespace.Root, names: 1,
	}}}
}

func (m *dirModel) dir(ino namespace.Ino) (*dirModelNode, error) {
	n := m.nodes[ino]
	switch {
	case n == nil:
		return nil, namespace.ErrNotExist
	case n.entries == nil:
		return nil, namespace.ErrNotDir
	}
	return n, nil
}

func (m *dirModel) find(parent namespace.Ino, name string) (namespace.Ino, error) {
	d, err := m.dir(parent)
	if err != nil {
		return 0, err
	}
	if ino, ok := d.entries[name]; ok {
		return ino, nil
	}
	return 0, namespace.ErrNotExist
}

// room says why a name cannot be added.
func (m *dirModel) room(parent namespace.Ino, name string) error {
	d, err := m.dir(parent)
	if err != nil {
		return err
	}
	if d.names == 0 {
		return namespace.ErrNotExist
	}
	if _, ok := d.entries[name]; ok {
		return namespace.ErrExist
	}
	return nil
}

func (m *dirModel) create(parent namespace.Ino, name string, n namespace.Inode, ino namespace.Ino) error {
	if err := m.room(parent, name); err != nil {
		return err
	}
	node := &dirModelNode{mode: n.Mode, uid: n.UID, names: 1, xattrs: map[string][]byte{}}
	if isDir(n.Mode) {
		node.entries, node.parent = map[string]namespace.Ino{}, parent
	}
	m.nodes[ino] = node
	m.nodes[parent].entries[name] = ino
	return nil
}

func (m *dirModel) link(ino, parent namespace.Ino, name string) error {
	n := m.nodes[ino]
	switch {
	case n == nil:
		return namespace.ErrNotExist
	case n.entries != nil:
		return namespace.ErrIsDir
	case n.names == 0:
		return namespace.ErrNotExist
	}
	if err := m.room(parent, name); err != nil {
		return err
	}
	n.names++
	m.nodes[parent].entries[name] = ino
	return nil
}

func (m *dirModel) unlink(parent namespace.Ino, name string, dir bool) error {
	ino, err := m.find(parent, name)
	if err != nil {
		return err
	}
	n := m.nodes[ino]
	switch {
	case dir && n.entries == nil:
		return namespace.ErrNotDir
	case !dir && n.entries != nil:
		return namespace.ErrIsDir
	case len(n.entries) > 0:
		return namespace.ErrNotEmpty
	}
	n.names--
	delete(m.nodes[parent].entries, name)
	return nil
}

// below tells whether directory ino is dir or below it.
func (m *dirModel) below(ino, dir namespace.Ino) bool {
	for ; ino != dir; ino = m.nodes[ino].parent {
		if ino == namespace.Root {
			return false
		}
	}
	return true
}

func (m *dirModel) rename(oldParent namespace.Ino, oldName string, newParent namespace.Ino, newName string, flags namespace.RenameFlags) error {
	if _, err := m.dir(oldParent); err != nil {
		return err
	}
	if d, err := m.dir(newParent); err != nil {
		return err
	} else if d.names == 0 {
		return namespace.ErrNotExist
	}
	from, err := m.find(oldParent, oldName)
	if err != nil {
		return err
	}
	to, err := m.find(newParent, newName)
	exists := err == nil
	switch {
	case flags == namespace.RenameExchange && !exists:
		return namespace.ErrNotExist
	case flags == namespace.RenameNoReplace && exists:
		return namespace.ErrExist
	case exists && to == from:
		return nil
	case m.nodes[from].entries != nil && m.below(newParent, from):
		return namespace.ErrInvalid
	}
	if flags == namespace.RenameExchange {
		if m.nodes[to].entries != nil && m.below(oldParent, to) {
			return namespace.ErrInvalid
		}
		m.nodes[oldParent].entries[oldName] = to
		m.nodes[newParent].entries[newName] = from
		m.nodes[to].parent, m.nodes[from].parent = oldParent, newParent
		return nil
	}
	if exists {
		fromDir, toDir := m.nodes[from].entries != nil, m.nodes[to].entries != nil
		switch {
		case fromDir && !toDir:
			return namespace.ErrNotDir
		case !fromDir && toDir:
			return namespace.ErrIsDir
		case len(m.nodes[to].entries) > 0:
			return namespace.ErrNotEmpty
		}
		m.nodes[to].names--
	}
	delete(m.nodes[oldParent].entries, oldName)
	m.nodes[newParent].entries[newName] = from
	m.nodes[from].parent = newParent
	return nil
}

// reap removes what has no names.
func (m *dirModel) reap() {
	maps.DeleteFunc(m.nodes, func(_ namespace.Ino, n *dirModelNode) bool { return n.names == 0 })
}

// compare reports the first difference between pool and model.
func (m *dirModel) compare(ctx context.Context, p namespace.Directory) error {
	u, err := p.Usage(ctx)
	if err != nil || u.Inodes != uint64(len(m.nodes)) {
		return fmt.Errorf("Usage() = %+v, %v, want %d inodes", u, err, len(m.nodes))
	}
	for ino, want := range m.nodes {
		got, err := p.Inode(ctx, ino)
		if err != nil {
			return fmt.Errorf("Inode(%d): %w", ino, err)
		}
		links := uint32(want.names)
		if want.entries != nil && want.names > 0 {
			links = 2
			for _, child := range want.entries {
				if m.nodes[child].entries != nil {
					links++
				}
			}
			if got.Parent != want.parent {
				return fmt.Errorf("inode %d: parent %d, want %d", ino, got.Parent, want.parent)
			}
		}
		if got.Nlink != links || got.Mode != want.mode || got.UID != want.uid {
			return fmt.Errorf("inode %d = %+v, want mode %#o, %d links, uid %d", ino, got, want.mode, links, want.uid)
		}
		if want.entries != nil {
			if err := compareDir(ctx, p, m, ino, want); err != nil {
				return err
			}
		}
		names, err := p.Xattrs(ctx, ino)
		if err != nil || len(names) != len(want.xattrs) {
			return fmt.Errorf("Xattrs(%d) = %q, %v, want %d", ino, names, err, len(want.xattrs))
		}
		for name, value := range want.xattrs {
			if got, err := p.Xattr(ctx, ino, name); err != nil || !bytes.Equal(got, value) {
				return fmt.Errorf("Xattr(%d, %q) = %q, %v, want %q", ino, name, got, err, value)
			}
		}
	}
	return nil
}

func compareDir(ctx context.Context, p namespace.Directory, m *dirModel, ino namespace.Ino, want *dirModelNode) error {
	entries, err := p.ReadDir(ctx, ino)
	if err != nil || len(entries) != len(want.entries) {
		return fmt.Errorf("ReadDir(%d) = %v, %v, want %v", ino, entries, err, want.entries)
	}
	if !slices.IsSortedFunc(entries, func(a, b namespace.Entry) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) }) {
		return fmt.Errorf("ReadDir(%d) = %v is not sorted", ino, entries)
	}
	for _, e := range entries {
		child, ok := want.entries[e.Name]
		if !ok || e.Ino != child || e.Mode != m.nodes[child].mode&unix.S_IFMT {
			return fmt.Errorf("ReadDir(%d): %+v, want %d", ino, e, child)
		}
		if got, err := p.Lookup(ctx, ino, e.Name); err != nil || got.Ino != child {
			return fmt.Errorf("Lookup(%d, %q) = %d, %v, want %d", ino, e.Name, got.Ino, err, child)
		}
	}
	return nil
}

// A stepper makes the same random change in pool and model.
type stepper struct {
	rng   *rand.Rand
	pool  namespace.Directory
	model *dirModel
}

func (s *stepper) anyIno() namespace.Ino {
	if s.rng.IntN(20) == 0 {
		return namespace.Ino(s.rng.IntN(200)) // perhaps reaped, perhaps never there
	}
	inos := make([]namespace.Ino, 0, len(s.model.nodes))
	for ino := range s.model.nodes {
		inos = append(inos, ino)
	}
	slices.Sort(inos) // the seed decides, not the map
	return inos[s.rng.IntN(len(inos))]
}

func (s *stepper) anyDir() namespace.Ino {
	ino := s.anyIno()
	for range 5 {
		if n := s.model.nodes[ino]; n != nil && n.entries != nil {
			return ino
		}
		ino = s.anyIno()
	}
	return ino
}

func (s *stepper) anyName() string { return string(rune('a' + s.rng.IntN(6))) }

func (s *stepper) anyInode() namespace.Inode {
	n := namespace.Inode{UID: s.rng.Uint32()}
	switch s.rng.IntN(8) {
	case 0, 1, 2:
		n.Mode = unix.S_IFREG | 0o600
	case 3:
		n.Mode, n.Target = unix.S_IFLNK|0o777, "target"
	case 4:
		n.Mode = unix.S_IFIFO | 0o600
	default:
		n.Mode = unix.S_IFDIR | 0o700
	}
	return n
}

// step returns what it did and whether pool and model agree on the outcome.
func (s *stepper) step(ctx context.Context) (string, error) {
	switch op := s.rng.IntN(16); op {
	case 0, 1, 2, 3:
		parent, name, n := s.anyDir(), s.anyName(), s.anyInode()
		made, err := s.pool.Create(ctx, parent, name, n)
		want := s.model.create(parent, name, n, made.Ino)
		return fmt.Sprintf("Create(%d, %q, %#o)", parent, name, n.Mode), agree(err, want)
	case 4:
		ino, parent, name := s.anyIno(), s.anyDir(), s.anyName()
		_, err := s.pool.Link(ctx, ino, parent, name)
		return fmt.Sprintf("Link(%d, %d, %q)", ino, parent, name), agree(err, s.model.link(ino, parent, name))
	case 5, 6:
		parent, name := s.anyDir(), s.anyName()
		_, err := s.pool.Unlink(ctx, parent, name)
		return fmt.Sprintf("Unlink(%d, %q)", parent, name), agree(err, s.model.unlink(parent, name, false))
	case 7:
		parent, name := s.anyDir(), s.anyName()
		err := s.pool.Rmdir(ctx, parent, name)
		return fmt.Sprintf("Rmdir(%d, %q)", parent, name), agree(err, s.model.unlink(parent, name, true))
	case 8, 9, 10, 11:
		oldParent, oldName, newParent, newName := s.anyDir(), s.anyName(), s.anyDir(), s.anyName()
		flags := []namespace.RenameFlags{0, 0, namespace.RenameNoReplace, namespace.RenameExchange}[s.rng.IntN(4)]
		lost, err := s.pool.Rename(ctx, oldParent, oldName, newParent, newName, flags)
		var target namespace.Ino
		if flags != namespace.RenameExchange {
			target, _ = s.model.find(newParent, newName) // none is 0
			if from, _ := s.model.find(oldParent, oldName); from == target {
				target = 0
			}
		}
		want := s.model.rename(oldParent, oldName, newParent, newName, flags)
		what := fmt.Sprintf("Rename(%d, %q, %d, %q, %d)", oldParent, oldName, newParent, newName, flags)
		if err == nil && (lost == nil) != (target == 0) || lost != nil && lost.Ino != target {
			return what, fmt.Errorf("lost %+v, want inode %d", lost, target)
		}
		return what, agree(err, want)
	case 12:
		ino := s.anyIno()
		_, err := s.pool.Reap(ctx, ino)
		var want error
		switch n := s.model.nodes[ino]; {
		case n == nil:
			want = namespace.ErrNotExist
		case n.names > 0:
			want = namespace.ErrInvalid
		default:
			delete(s.model.nodes, ino)
		}
		return fmt.Sprintf("Reap(%d)", ino), agree(err, want)
	case 13:
		ino, uid := s.anyIno(), s.rng.Uint32()
		_, err := s.pool.Update(ctx, ino, func(n *namespace.Inode) { n.UID = uid })
		var want error = namespace.ErrNotExist
		if n := s.model.nodes[ino]; n != nil {
			n.uid, want = uid, nil
		}
		return fmt.Sprintf("Update(%d)", ino), agree(err, want)
	default:
		return s.stepXattr(ctx)
	}
}

func (s *stepper) stepXattr(ctx context.Context) (string, error) {
	ino, name := s.anyIno(), "user."+s.anyName()
	n := s.model.nodes[ino]
	has := n != nil && n.xattrs[name] != nil
	var want error
	if s.rng.IntN(3) == 0 {
		err := s.pool.RemoveXattr(ctx, ino, name)
		switch {
		case n == nil:
			want = namespace.ErrNotExist
		case !has:
			want = namespace.ErrNoXattr
		default:
			delete(n.xattrs, name)
		}
		return fmt.Sprintf("RemoveXattr(%d, %q)", ino, name), agree(err, want)
	}
	value := bytes.Repeat([]byte{byte(s.rng.Uint32())}, s.rng.IntN(100))
	flags := namespace.XattrFlags(s.rng.IntN(3))
	err := s.pool.SetXattr(ctx, ino, name, value, flags)
	switch {
	case n == nil:
		want = namespace.ErrNotExist
	case has && flags == namespace.XattrCreate:
		want = namespace.ErrExist
	case !has && flags == namespace.XattrReplace:
		want = namespace.ErrNoXattr
	default:
		if n.xattrs == nil {
			n.xattrs = map[string][]byte{}
		}
		n.xattrs[name] = value
	}
	return fmt.Sprintf("SetXattr(%d, %q, %d)", ino, name, flags), agree(err, want)
}

func agree(got, want error) error {
	if want == nil && got != nil || !errors.Is(got, want) {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}

// Random changes against the model, with a check after each, and a new writer
// now and then, which reaps the orphans.
func TestDirectoryModel(t *testing.T) {
	steps := 3000
	if testing.Short() {
		steps = 500
	}
	rng := rand.New(rand.NewPCG(*seed, 0))
	dir := newPoolDir(t)
	p := openPool(t, dir)
	s := &stepper{rng: rng, pool: p, model: newDirModel()}
	for i := range steps {
		what, err := s.step(t.Context())
		if err == nil {
			err = s.model.compare(t.Context(), s.pool)
		}
		if err != nil {
			t.Fatalf("step %d: %s: %v; -seed=%d", i, what, err, *seed)
		}
		wantSound(t, p)
		if rng.IntN(100) == 0 {
			p = reopen(t, p, dir)
			s.pool = p
			s.model.reap()
			if err := s.model.compare(t.Context(), s.pool); err != nil {
				t.Fatalf("step %d: reopen: %v; -seed=%d", i, err, *seed)
			}
		}
	}
}
