package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/heap"
	"github.com/rpmemfs/rpmemfs/namespace"
)

func newHeap(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "heap",
		Short: "look into a heap in a file",
		Long: `Look into a heap that a program made in a file with librpmemfs or with the Go package
heap. Nothing is changed.

FILE is a file of a mount, read as it is now, open epoch included; FILE@CHECKPOINT
that epoch; with --pool a file of the pool; or any other file, such as an exported
image. Of a checkpoint and with --pool, the file's data is first copied to TMPDIR.`,
		Example: `  rpmemctl heap check /mnt/heap
  rpmemctl heap stat /mnt/heap@monday`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usagef("name what to do: check or stat") },
	}
	cmd.AddCommand(newHeapCheck(a), newHeapStat(a))
	return cmd
}

// A heapImage is the content of a file that holds a heap.
type heapImage struct {
	data       *os.File
	path       string
	checkpoint string          // empty: as it is now
	file       *controlpb.File // what the daemon says; nil of a plain file
}

// inUse reports whether programs may be changing what is read.
func (i *heapImage) inUse() bool {
	return i.checkpoint == "" && i.file.GetHandles() > 0
}

func (i *heapImage) close() error { return i.data.Close() }

// heapImage opens what the user calls path.
func (a *app) heapImage(ctx context.Context, path string) (*heapImage, error) {
	p, checkpoint, err := a.heapPlace(ctx, path)
	var notMounted *notMountedError
	if errors.As(err, &notMounted) {
		return a.openHeap(ctx, path, nil)
	}
	if err != nil {
		return nil, err
	}
	if a.pool == "" && checkpoint == "" {
		f, err := p.stat(ctx, a)
		if err != nil {
			return nil, err
		}
		return a.openHeap(ctx, path, f)
	}
	return a.exportHeap(ctx, p, checkpoint)
}

// heapPlace finds FILE, or FILE@CHECKPOINT unless a file of that whole name exists.
func (a *app) heapPlace(ctx context.Context, path string) (*place, string, error) {
	p, err := a.regular(ctx, path)
	missing := errors.Is(err, os.ErrNotExist) || errors.Is(err, namespace.ErrNotExist)
	if at := strings.LastIndexByte(path, '@'); missing && at > 0 && at+1 < len(path) {
		if file, fileErr := a.regular(ctx, path[:at]); fileErr == nil {
			return file, path[at+1:], nil
		}
	}
	return p, "", err
}

// openHeap opens a file by its path.
func (a *app) openHeap(ctx context.Context, path string, file *controlpb.File) (*heapImage, error) {
	data, err := bounded(ctx, func() (*os.File, error) { return openRegular(path) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, cause(err))
	}
	return &heapImage{data: data, path: path, file: file}, nil
}

// openRegular opens a regular file for reading. It does not wait for the other end
// of a pipe.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// looks reports whether a pool that has path can be opened for reading only: an
// epoch that was kept is exported through a clone.
func looks(path string) bool { return !strings.Contains(path, "@") }

// exportHeap copies an epoch of a file into a temporary one without a name.
func (a *app) exportHeap(ctx context.Context, p *place, checkpoint string) (*heapImage, error) {
	data, err := os.CreateTemp("", "rpmemctl-heap-*")
	if err != nil {
		return nil, err
	}
	i := &heapImage{data: data, path: p.path, checkpoint: checkpoint}
	if err = os.Remove(data.Name()); err == nil {
		i.file, err = p.stat(ctx, a)
	}
	if err == nil {
		err = a.receive(ctx, p, checkpoint, &image{file: data}, &exportJSON{})
		if err != nil && checkpoint != "" {
			err = a.checkpointError(p.path, checkpoint, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, i.close())
	}
	return i, nil
}

// checkHeap walks the heap.
func (a *app) checkHeap(ctx context.Context, i *heapImage) (*heap.Report, error) {
	report, err := bounded(ctx, func() (*heap.Report, error) {
		size, err := i.data.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, err
		}
		r := &progressReader{r: i.data, bar: a.newProgress("reading")}
		defer r.bar.done()
		return heap.Check(r, uint64(size))
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", i.path, heapError(err))
	}
	return report, nil
}

// heapError says what to do where there is no heap to look into.
func heapError(err error) error {
	switch {
	case errors.Is(err, heap.ErrNoHeap):
		return hinted(errors.New("no heap in this file"), "Programs make one with rpmemfs_heap_open, or heap.Create in Go.")
	case errors.Is(err, heap.ErrVersion):
		return hinted(err, "The heap was made by another version of rpmemfs: use that one.")
	}
	return err
}

// A progressReader shows how much was read through it.
type progressReader struct {
	r    io.ReaderAt
	bar  *progress
	read uint64
}

func (p *progressReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.r.ReadAt(b, off)
	p.read += uint64(n)
	p.bar.show(p.read)
	return n, err
}
