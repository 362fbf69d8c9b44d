package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

func newCreate(a *app) *cobra.Command {
	var bytes sizeFlag
	mode := "0644"
	cmd := &cobra.Command{
		Use:   "create FILE",
		Short: "make a file of a given size",
		Long: `Make a file that reads as zeros. Its size takes no space in the pool until pages are
written. A file that exists is left alone.`,
		Example: `  rpmemctl create /mnt/heap --size 1GiB
  rpmemctl create --pool /var/lib/rpmemfs heap --size 64MiB`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			perm, err := strconv.ParseUint(mode, 8, 32)
			if err != nil || perm > 0o777 {
				return usagef("--mode %s: want an octal number up to 777", mode)
			}
			return a.create(cmd.Context(), args[0], int64(bytes), fs.FileMode(perm))
		},
	}
	cmd.Flags().VarP(&bytes, "size", "s", "size of the file, such as 4096, 64M (or 64MiB), 1.5G; 64MB is 64,000,000")
	cmd.Flags().StringVar(&mode, "mode", mode, "permissions, in octal; the umask applies in a mount")
	return cmd
}

func (a *app) create(ctx context.Context, path string, bytes int64, perm fs.FileMode) error {
	dir, name, err := a.parent(ctx, path)
	if err != nil {
		return err
	}
	f, err := dir.tree.create(ctx, dir, name, perm)
	if err != nil {
		return createError(path, err)
	}
	err = f.Truncate(bytes)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = dir.tree.remove(context.WithoutCancel(ctx), dir, name) // the first error tells
		return fmt.Errorf("%s: set the size to %d: %w", path, bytes, err)
	}
	return a.printNew(ctx, path, "created")
}

// printNew shows a file that was just made.
func (a *app) printNew(ctx context.Context, path, how string) error {
	p, err := a.place(ctx, path)
	if err != nil {
		return err
	}
	f, err := p.stat(ctx, a)
	if err != nil {
		return err
	}
	return a.print(describe(path, f, ""), func(w io.Writer) {
		fmt.Fprintf(w, "%s %s, %s\n", how, clean(path), size(f.GetSize()))
	})
}

// A sizeFlag is a number of bytes with a unit.
type sizeFlag int64

func (s *sizeFlag) String() string { return strconv.FormatInt(int64(*s), 10) }
func (s *sizeFlag) Type() string   { return "size" }

// Set reads a size. A single letter counts in powers of two, as for truncate(1).
func (s *sizeFlag) Set(text string) error {
	if n := len(text); n > 1 && strings.ContainsRune("kKmMgGtTpP", rune(text[n-1])) {
		text += "iB"
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > 1<<62 {
		return fmt.Errorf("want a number of bytes, with a unit such as MiB or without")
	}
	*s = sizeFlag(n)
	return nil
}
