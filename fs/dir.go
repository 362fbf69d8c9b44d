package fs

import (
	"context"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// An openDir is an open directory: its entries as they were when reading started.
// An entry's offset is its index plus one, so offsets stay good until the
// directory is rewound, which reads it afresh.
type openDir struct {
	ino namespace.Ino

	mu      sync.Mutex // guards the fields below
	entries []namespace.Entry
	loaded  bool
}

func (r *rawFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, err := r.vol.Inode(context.Background(), ino(&in.InHeader))
	if err != nil {
		return r.status("opendir", ino(&in.InHeader), err)
	}
	if n.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fuse.ENOTDIR
	}
	out.Fh = r.addHandle(&openDir{ino: ino(&in.InHeader)})
	return fuse.OK
}

func (r *rawFS) ReleaseDir(in *fuse.ReleaseIn) {
	removeHandle[*openDir](r, in.Fh)
}

// FsyncDir has nothing to do: changes of names are durable when they return.
func (r *rawFS) FsyncDir(_ <-chan struct{}, _ *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (r *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	entries, status := r.entriesFrom(in)
	for i, e := range entries {
		if !out.AddDirEntry(direntry(e, in.Offset+uint64(i))) {
			break
		}
	}
	return status
}

func (r *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	entries, status := r.entriesFrom(in)
	for i, e := range entries {
		entry := out.AddDirLookupEntry(direntry(e, in.Offset+uint64(i)))
		if entry == nil {
			break
		}
		if e.Name == "." || e.Name == ".." {
			continue
		}
		// A file that is gone by now, or damaged, is listed without attributes:
		// who asks for them gets the error.
		if a, err := r.vol.Getattr(context.Background(), e.Ino); err == nil {
			r.entry(a, entry)
		}
	}
	return status
}

func direntry(e namespace.Entry, off uint64) fuse.DirEntry {
	return fuse.DirEntry{Name: e.Name, Ino: uint64(e.Ino), Mode: e.Mode, Off: off + 1}
}

// entriesFrom returns the entries from the offset on.
func (r *rawFS) entriesFrom(in *fuse.ReadIn) ([]namespace.Entry, fuse.Status) {
	d, ok := handle[*openDir](r, in.Fh)
	if !ok {
		return nil, fuse.Status(unix.EBADF)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.loaded || in.Offset == 0 {
		if err := r.loadDir(d); err != nil {
			return nil, r.status("readdir", d.ino, err)
		}
	}
	return d.entries[min(in.Offset, uint64(len(d.entries))):], fuse.OK
}

func (r *rawFS) loadDir(d *openDir) error {
	ctx := context.Background()
	n, err := r.vol.Inode(ctx, d.ino)
	if err != nil {
		return err
	}
	entries, err := r.vol.ReadDir(ctx, d.ino)
	if err != nil {
		return err
	}
	parent := n.Parent
	if parent == 0 {
		parent = d.ino
	}
	d.entries = append([]namespace.Entry{
		{Name: ".", Ino: d.ino, Mode: unix.S_IFDIR},
		{Name: "..", Ino: parent, Mode: unix.S_IFDIR},
	}, entries...)
	d.loaded = true
	return nil
}
