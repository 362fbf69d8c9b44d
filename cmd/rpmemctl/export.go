package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
)

func newExport(a *app) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "export FILE[@CHECKPOINT] OUT",
		Short: "write one epoch of a file to an image file",
		Long: `Write one epoch of a file to OUT, a plain file of the same size with holes where the
file has none of its pages. Without @CHECKPOINT, everything stored so far commits and
that epoch is exported, even if programs go on storing. OUT appears when it is
complete. With - as OUT the image goes to standard output.`,
		Example: `  rpmemctl export /mnt/heap /backup/heap.img
  rpmemctl export /mnt/heap@before-upgrade - | zstd > heap.zst`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.export(cmd.Context(), args[0], args[1], force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace OUT if it exists")
	return cmd
}

type exportJSON struct {
	Path       string `json:"path"`
	Checkpoint string `json:"checkpoint,omitempty"`
	Image      string `json:"image"`
	Size       uint64 `json:"size"`
	DataBytes  uint64 `json:"data_bytes"`
}

func (a *app) export(ctx context.Context, path, out string, force bool) error {
	if out == "-" && a.json {
		return usagef("--json and the image cannot share standard output")
	}
	if out == "-" && isTerminal(a.out) {
		return usagef("standard output is a terminal: redirect it, or name a file")
	}
	p, checkpoint, err := a.source(ctx, path, "")
	if err != nil {
		return err
	}
	img, err := newImage(out, a.out, force)
	if err != nil {
		return err
	}
	defer img.discard()
	result := exportJSON{Path: p.path, Checkpoint: checkpoint, Image: out}
	if err := a.receive(ctx, p, checkpoint, img, &result); err != nil {
		if checkpoint != "" {
			return a.checkpointError(p.path, checkpoint, err)
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	if out == "-" {
		return nil
	}
	if err := img.keep(); err != nil {
		return fmt.Errorf("%s: %w", out, cause(err))
	}
	return a.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "exported %s to %s: %s, %s of it data\n",
			clean(path), clean(out), size(result.Size), size(result.DataBytes))
	})
}

// receive writes an exported epoch into img.
func (a *app) receive(ctx context.Context, p *place, checkpoint string, img *image, result *exportJSON) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream if img fails
	stream, err := p.client.Export(ctx, &controlpb.ExportRequest{Ino: p.ino, Checkpoint: checkpoint})
	if err != nil {
		return err
	}
	bar := a.newProgress("exporting")
	defer bar.done()
	for ended := false; ; {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) && ended {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		switch e := m.GetEvent().(type) {
		case *controlpb.ExportResponse_Header:
			result.Size = e.Header.GetSize()
			bar.total = e.Header.GetDataBytes()
			err = img.start(result.Size)
		case *controlpb.ExportResponse_Data:
			result.DataBytes += uint64(len(e.Data.GetData()))
			err = img.write(e.Data.GetData(), e.Data.GetOffset())
			bar.show(result.DataBytes)
		case *controlpb.ExportResponse_End:
			ended = true
			err = img.end()
		}
		if err != nil {
			return fmt.Errorf("write image: %w", err)
		}
	}
}

// An image is a file that is being written beside its final name, or a stream.
type image struct {
	final  string // empty for a stream
	force  bool
	file   *os.File
	stream io.Writer
	size   uint64
	off    uint64 // written to the stream
}

func newImage(out string, stream io.Writer, force bool) (*image, error) {
	if out == "-" {
		return &image{stream: stream}, nil
	}
	if fi, err := os.Stat(out); err == nil {
		if fi.IsDir() {
			return nil, usagef("%s: is a directory", out)
		}
		if !force {
			return nil, hinted(fmt.Errorf("%s: exists already", out), "Use --force to replace it.")
		}
	}
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".part-*")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", out, cause(err))
	}
	return &image{final: out, force: force, file: f}, nil
}

func (i *image) start(size uint64) error {
	i.size = size
	if size > 1<<62 {
		return fmt.Errorf("size %d", size)
	}
	if i.file == nil {
		return nil
	}
	return i.file.Truncate(int64(size))
}

func (i *image) write(p []byte, off uint64) error {
	if off > i.size || uint64(len(p)) > i.size-off {
		return fmt.Errorf("data at byte %d is outside of %d bytes", off, i.size)
	}
	if i.file != nil {
		_, err := i.file.WriteAt(p, int64(off))
		return err
	}
	if err := i.zeros(off); err != nil {
		return err
	}
	n, err := i.stream.Write(p)
	i.off += uint64(n)
	return err
}

// end completes a stream with the hole at its end.
func (i *image) end() error {
	if i.file != nil {
		return nil
	}
	return i.zeros(i.size)
}

// zeros writes the stream's hole up to an offset.
func (i *image) zeros(to uint64) error {
	if to < i.off {
		return fmt.Errorf("data at byte %d comes after byte %d", to, i.off)
	}
	buf := make([]byte, min(to-i.off, 1<<20))
	for i.off < to {
		n, err := i.stream.Write(buf[:min(to-i.off, uint64(len(buf)))])
		i.off += uint64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// keep makes the file durable under its final name.
func (i *image) keep() error {
	if err := i.file.Chmod(0o644); err != nil {
		return err
	}
	if err := i.file.Sync(); err != nil {
		return err
	}
	if err := renameFile(i.file.Name(), i.final, i.force); err != nil {
		return err
	}
	err := i.file.Close()
	i.file = nil
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(i.final))
}

// discard removes a file that was not kept.
func (i *image) discard() {
	if i.file != nil {
		_ = i.file.Close()
		_ = os.Remove(i.file.Name()) // the first error is on its way
	}
}
