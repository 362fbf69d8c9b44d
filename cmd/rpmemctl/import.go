package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/spf13/cobra"
)

func newImport(a *app) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "import IN FILE",
		Short: "make a file of an image file",
		Long: `Make FILE of a plain image. Holes and zero pages of IN take no space in the pool. FILE
appears when it is complete and committed. With - as IN the image comes from standard
input. With --force an existing FILE is replaced, and its checkpoints go with it.`,
		Example: `  rpmemctl import heap.img /mnt/heap
  zstd -dc heap.zst | rpmemctl import - /mnt/heap`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.importFile(cmd.Context(), args[0], args[1], force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace FILE if it exists")
	return cmd
}

func (a *app) importFile(ctx context.Context, in, path string, force bool) error {
	src, closeSrc, err := a.openInput(in)
	if err != nil {
		return err
	}
	defer closeSrc()
	dir, name, err := a.parent(ctx, path)
	if err != nil {
		return err
	}
	if !force {
		// Not only at the end: an image may be large.
		if _, err := a.place(ctx, path); err == nil {
			return hinted(fmt.Errorf("%s: exists already", path), "Use --force to replace it.")
		}
	}
	temp := fmt.Sprintf(".rpmemfs-import-%08x", rand.Uint32())
	f, err := dir.tree.create(ctx, dir, temp, 0o644)
	if err != nil {
		return createError(path, err)
	}
	err = a.fill(ctx, f, src)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = dir.tree.rename(ctx, dir, temp, name, force)
	}
	if err != nil {
		_ = dir.tree.remove(context.WithoutCancel(ctx), dir, temp) // the first error tells
		return createError(path, err)
	}
	return a.printNew(ctx, path, "imported "+clean(in)+" as")
}

// openInput opens an image, or takes standard input.
func (a *app) openInput(in string) (src io.Reader, closeSrc func(), err error) {
	if in == "-" {
		return a.in, func() {}, nil
	}
	f, err := os.Open(in)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", in, cause(err))
	}
	closeSrc = func() { _ = f.Close() } // nothing was written through it
	fi, err := f.Stat()
	if err != nil {
		closeSrc()
		return nil, nil, fmt.Errorf("%s: %w", in, cause(err))
	}
	if fi.IsDir() {
		closeSrc()
		return nil, nil, fmt.Errorf("%s: is a directory", in)
	}
	if !fi.Mode().IsRegular() {
		return struct{ io.Reader }{f}, closeSrc, nil // a pipe or a device: no holes to find
	}
	return f, closeSrc, nil
}

// fill writes an image into f, and commits it as one epoch.
func (a *app) fill(ctx context.Context, f newFile, src io.Reader) error {
	bar := a.newProgress("importing")
	defer bar.done()
	var size int64
	var err error
	if file, ok := src.(*os.File); ok && regularFile(file) {
		size, err = fillFrom(ctx, f, file, bar)
	} else {
		size, err = fillStream(ctx, f, src, 0, -1, bar)
	}
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

func regularFile(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode().IsRegular()
}

// fillFrom copies the data between the holes of a file.
func fillFrom(ctx context.Context, f newFile, src *os.File, bar *progress) (size int64, err error) {
	fi, err := src.Stat()
	if err != nil {
		return 0, err
	}
	size = fi.Size()
	bar.total = uint64(size)
	for off := int64(0); off < size; {
		start, end, err := nextData(src, off, size)
		if err != nil {
			return 0, fmt.Errorf("seek in the image: %w", err)
		}
		if start < end {
			if _, err := fillStream(ctx, f, io.NewSectionReader(src, start, end-start), start, end-start, bar); err != nil {
				return 0, err
			}
		}
		off = max(end, off+1)
		bar.show(uint64(off))
	}
	return size, nil
}

// fillStream copies src to offset off of f, without its zero pages. n is the
// number of bytes that src has to have, or -1. It returns where src ended.
func fillStream(ctx context.Context, f newFile, src io.Reader, off, n int64, bar *progress) (int64, error) {
	end := off + n
	buf := make([]byte, 1<<20)
	// A hole need not begin at a page; chunks do from here on.
	chunk := buf[:len(buf)-int(off%pageSize)]
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		got, err := io.ReadFull(src, chunk)
		if err := writePages(f, chunk[:got], off); err != nil {
			return 0, err
		}
		off += int64(got)
		bar.show(uint64(off))
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			if n >= 0 && off != end {
				return 0, fmt.Errorf("read the image: it became shorter")
			}
			return off, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read the image: %w", err)
		}
		chunk = buf
	}
}

var zeroPage [pageSize]byte

// writePages writes what is not zero of p, in runs of whole pages.
func writePages(f newFile, p []byte, off int64) error {
	for i := 0; i < len(p); {
		n := pageEnd(off+int64(i), len(p)-i)
		if bytes.Equal(p[i:i+n], zeroPage[:n]) {
			i += n
			continue
		}
		run := n
		for i+run < len(p) {
			n := pageEnd(off+int64(i+run), len(p)-i-run)
			if bytes.Equal(p[i+run:i+run+n], zeroPage[:n]) {
				break
			}
			run += n
		}
		if _, err := f.WriteAt(p[i:i+run], off+int64(i)); err != nil {
			return err
		}
		i += run
	}
	return nil
}

// pageEnd is how many bytes there are from off to the end of its page, at most n.
func pageEnd(off int64, n int) int { return min(n, pageSize-int(off%pageSize)) }
