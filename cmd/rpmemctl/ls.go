package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
)

func newLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls [DIR]",
		Short: "list a directory with epochs and dirty pages",
		Long: `List the files of a directory: size, how much of it exists, last committed epoch, pages of
the open epoch, checkpoints, and how many programs have it open. Without an argument,
the current directory, or with --pool the top of the pool.`,
		Example: `  rpmemctl ls /mnt
  rpmemctl ls --pool /var/lib/rpmemfs --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.look = true
			return a.ls(cmd.Context(), a.pathOrHere(args))
		},
		ValidArgsFunction: completeDirs,
	}
}

// pathOrHere is the argument, or else where the user is.
func (a *app) pathOrHere(args []string) string {
	switch {
	case len(args) > 0:
		return args[0]
	case a.pool != "":
		return "/"
	}
	return "."
}

type listJSON struct {
	Path  string     `json:"path"`
	Files []fileJSON `json:"files"`
}

func (a *app) ls(ctx context.Context, dir string) error {
	p, err := a.place(ctx, dir)
	if err != nil {
		return err
	}
	stream, err := p.client.List(ctx, &controlpb.ListRequest{Ino: p.ino})
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	list := listJSON{Path: dir, Files: []fileJSON{}}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		name := string(e.GetName())
		f := describe(path.Join(dir, name), e.GetFile(), e.GetError())
		f.Name = name
		list.Files = append(list.Files, f)
	}
	return a.print(list, func(w io.Writer) {
		if len(list.Files) == 0 {
			return
		}
		table(w, func(w io.Writer) {
			fmt.Fprintln(w, "MODE\tSIZE\tSTORED\tEPOCH\tDIRTY\tCHECKPOINTS\tOPEN\tNAME")
			for _, f := range list.Files {
				a.listRow(w, f)
			}
		})
	})
}

func (a *app) listRow(w io.Writer, f fileJSON) {
	name := clean(f.Name)
	switch {
	case f.Error != "":
		fmt.Fprintf(w, "%s\t?\t?\t?\t?\t?\t?\t%s: %s\n", f.Mode, name, f.Error)
		return
	case f.Size == nil:
		if f.Type == "dir" {
			name += "/"
		}
		fmt.Fprintf(w, "%s\t\t\t\t\t\t\t%s\n", f.Mode, name)
		return
	case f.Poisoned != "":
		name += " (poisoned)"
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", f.Mode, size(*f.Size), size(*f.Pages*pageSize),
		*f.Epoch, *f.DirtyPages, *f.Checkpoints, *f.Handles, name)
}
