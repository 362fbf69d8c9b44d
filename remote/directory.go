package remote

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// Limits of what a memory node can make us keep.
const (
	maxEntries  = 1 << 24 // of a directory
	maxProblems = 1 << 16 // that Check found

	// maxLooks is how often Update looks again at an inode that other calls change.
	maxLooks = 1000
)

// Lookup implements namespace.Directory.
func (p *Pool) Lookup(ctx context.Context, parent namespace.Ino, name string) (namespace.Inode, error) {
	at := p.inodes.now()
	resp, err := ask(ctx, p, p.node.Lookup, &nodepb.LookupRequest{Parent: uint64(parent), Name: []byte(name)})
	if err != nil {
		return namespace.Inode{}, err
	}
	n, err := inodeOf(resp)
	if err == nil {
		p.inodes.put(n, at)
	}
	return n, err
}

// inodeOf returns the inode of an answer.
func inodeOf(resp *nodepb.InodeResponse) (namespace.Inode, error) {
	if resp.GetInode().GetIno() == 0 {
		return namespace.Inode{}, fmt.Errorf("%w: an inode without a number", ErrProtocol)
	}
	return resp.GetInode().Namespace(), nil
}

// Inode implements namespace.Directory.
func (p *Pool) Inode(ctx context.Context, ino namespace.Ino) (namespace.Inode, error) {
	if err := ctx.Err(); err != nil {
		return namespace.Inode{}, err
	}
	if err := p.check(); err != nil {
		return namespace.Inode{}, err
	}
	if n, ok := p.inodes.get(ino); ok {
		return n, nil
	}
	at := p.inodes.now()
	n, err := p.stored(ctx, ino)
	if err == nil {
		p.inodes.put(n, at)
	}
	return n, err
}

// stored returns the inode as the memory node has it.
func (p *Pool) stored(ctx context.Context, ino namespace.Ino) (namespace.Inode, error) {
	resp, err := ask(ctx, p, p.node.Inode, &nodepb.InodeRequest{Ino: uint64(ino)})
	if err != nil {
		return namespace.Inode{}, err
	}
	n := resp.GetInode().Namespace()
	if n.Ino != ino {
		return namespace.Inode{}, fmt.Errorf("%w: inode %d for %d", ErrProtocol, n.Ino, ino)
	}
	return n, nil
}

// changeNames is change for what may touch any inode.
func changeNames[Req, Resp any](ctx context.Context, p *Pool, call method[Req, Resp], number func(id uint64) *Req) (*Resp, error) {
	p.inodes.begin()
	defer p.inodes.end()
	return change(ctx, p, call, number)
}

// Create implements namespace.Directory.
func (p *Pool) Create(ctx context.Context, parent namespace.Ino, name string, n namespace.Inode) (namespace.Inode, error) {
	resp, err := changeNames(ctx, p, p.node.Create, func(id uint64) *nodepb.CreateRequest {
		return &nodepb.CreateRequest{RequestId: id, Parent: uint64(parent), Name: []byte(name), Inode: nodepb.NewInode(n)}
	})
	if err != nil {
		return namespace.Inode{}, err
	}
	return inodeOf(resp)
}

// Link implements namespace.Directory.
func (p *Pool) Link(ctx context.Context, ino, parent namespace.Ino, name string) (namespace.Inode, error) {
	resp, err := changeNames(ctx, p, p.node.Link, func(id uint64) *nodepb.LinkRequest {
		return &nodepb.LinkRequest{RequestId: id, Ino: uint64(ino), Parent: uint64(parent), Name: []byte(name)}
	})
	if err != nil {
		return namespace.Inode{}, err
	}
	return inodeOf(resp)
}

// Unlink implements namespace.Directory.
func (p *Pool) Unlink(ctx context.Context, parent namespace.Ino, name string) (namespace.Inode, error) {
	resp, err := changeNames(ctx, p, p.node.Unlink, func(id uint64) *nodepb.UnlinkRequest {
		return &nodepb.UnlinkRequest{RequestId: id, Parent: uint64(parent), Name: []byte(name)}
	})
	if err != nil {
		return namespace.Inode{}, err
	}
	return inodeOf(resp)
}

// Rmdir implements namespace.Directory.
func (p *Pool) Rmdir(ctx context.Context, parent namespace.Ino, name string) error {
	_, err := changeNames(ctx, p, p.node.Rmdir, func(id uint64) *nodepb.RmdirRequest {
		return &nodepb.RmdirRequest{RequestId: id, Parent: uint64(parent), Name: []byte(name)}
	})
	return err
}

// Rename implements namespace.Directory.
func (p *Pool) Rename(ctx context.Context, oldParent namespace.Ino, oldName string, newParent namespace.Ino, newName string, flags namespace.RenameFlags) (*namespace.Inode, error) {
	resp, err := changeNames(ctx, p, p.node.Rename, func(id uint64) *nodepb.RenameRequest {
		return &nodepb.RenameRequest{
			RequestId: id,
			OldParent: uint64(oldParent),
			OldName:   []byte(oldName),
			NewParent: uint64(newParent),
			NewName:   []byte(newName),
			Flags:     uint32(flags),
		}
	})
	if err != nil || resp.GetLost() == nil {
		return nil, err
	}
	n := resp.GetLost().Namespace()
	return &n, nil
}

// ReadDir implements namespace.Directory.
func (p *Pool) ReadDir(ctx context.Context, ino namespace.Ino) (entries []namespace.Entry, err error) {
	err = p.repeat(ctx, func(ctx context.Context) error {
		entries = nil
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := p.node.ReadDir(ctx, &nodepb.ReadDirRequest{Ino: uint64(ino)}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		return receive(stream, func(m *nodepb.ReadDirResponse) error {
			if len(entries)+len(m.GetEntries()) > maxEntries {
				return fmt.Errorf("%w: directory %d has more than %d entries", ErrProtocol, ino, maxEntries)
			}
			for _, e := range m.GetEntries() {
				entries = append(entries, namespace.Entry{Name: string(e.GetName()), Ino: namespace.Ino(e.GetIno()), Mode: e.GetMode()})
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// receive gives each message of a stream to take until its end.
func receive[M any](stream grpc.ServerStreamingClient[M], take func(*M) error) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := take(m); err != nil {
			return err
		}
	}
}

// Update implements namespace.Directory. change may be called several times, each
// time with the inode as it is.
func (p *Pool) Update(ctx context.Context, ino namespace.Ino, change func(*namespace.Inode)) (namespace.Inode, error) {
	old, err := p.Inode(ctx, ino)
	if err != nil {
		return namespace.Inode{}, err
	}
	for range maxLooks {
		changed := old
		change(&changed)
		if changed == old {
			return old, nil
		}
		n, err := p.replace(ctx, old, changed)
		if !errors.Is(err, errChanged) {
			return n, err
		}
		if old, err = p.stored(ctx, ino); err != nil {
			return namespace.Inode{}, err
		}
	}
	return namespace.Inode{}, fmt.Errorf("%w: inode %d changed %d times while it was updated", ErrProtocol, ino, maxLooks)
}

// replace makes old, if it is as stored, changed.
func (p *Pool) replace(ctx context.Context, old, changed namespace.Inode) (namespace.Inode, error) {
	resp, err := changeNames(ctx, p, p.node.SetInode, func(id uint64) *nodepb.SetInodeRequest {
		return &nodepb.SetInodeRequest{RequestId: id, Old: nodepb.NewInode(old), New: nodepb.NewInode(changed)}
	})
	if err != nil {
		return namespace.Inode{}, err
	}
	return inodeOf(resp)
}

// Reap implements namespace.Directory.
func (p *Pool) Reap(ctx context.Context, ino namespace.Ino) (heir namespace.Ino, err error) {
	if err := p.dataPath().settle(ctx); err != nil {
		return 0, err
	}
	resp, err := changeNames(ctx, p, p.node.Reap, func(id uint64) *nodepb.ReapRequest {
		return &nodepb.ReapRequest{RequestId: id, Ino: uint64(ino)}
	})
	return namespace.Ino(resp.GetHeir()), err
}

// Xattr implements namespace.Directory.
func (p *Pool) Xattr(ctx context.Context, ino namespace.Ino, name string) ([]byte, error) {
	resp, err := ask(ctx, p, p.node.Xattr, &nodepb.XattrRequest{Ino: uint64(ino), Name: []byte(name)})
	return resp.GetValue(), err
}

// Xattrs implements namespace.Directory.
func (p *Pool) Xattrs(ctx context.Context, ino namespace.Ino) ([]string, error) {
	resp, err := ask(ctx, p, p.node.Xattrs, &nodepb.XattrsRequest{Ino: uint64(ino)})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range resp.GetNames() {
		names = append(names, string(name))
	}
	return names, nil
}

// SetXattr implements namespace.Directory.
func (p *Pool) SetXattr(ctx context.Context, ino namespace.Ino, name string, value []byte, flags namespace.XattrFlags) error {
	_, err := changeNames(ctx, p, p.node.SetXattr, func(id uint64) *nodepb.SetXattrRequest {
		return &nodepb.SetXattrRequest{RequestId: id, Ino: uint64(ino), Name: []byte(name), Value: value, Flags: uint32(flags)}
	})
	return err
}

// RemoveXattr implements namespace.Directory.
func (p *Pool) RemoveXattr(ctx context.Context, ino namespace.Ino, name string) error {
	_, err := changeNames(ctx, p, p.node.RemoveXattr, func(id uint64) *nodepb.RemoveXattrRequest {
		return &nodepb.RemoveXattrRequest{RequestId: id, Ino: uint64(ino), Name: []byte(name)}
	})
	return err
}

// Usage implements namespace.Directory.
func (p *Pool) Usage(ctx context.Context) (namespace.Usage, error) {
	resp, err := ask(ctx, p, p.node.Usage, &nodepb.UsageRequest{})
	return namespace.Usage{Slots: resp.GetSlots(), FreeSlots: resp.GetFreeSlots(), Inodes: resp.GetInodes()}, err
}
