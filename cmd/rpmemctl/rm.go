package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm FILE...",
		Short: "remove files with their checkpoints",
		Long: `Remove files, or empty directories. The checkpoints of a file go with its last name; clones
stay. A program that has the file open keeps it until it closes it.`,
		Example: `  rpmemctl rm /mnt/heap
  rpmemctl rm --pool /var/lib/rpmemfs heap`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rm(cmd.Context(), args)
		},
	}
}

func (a *app) rm(ctx context.Context, paths []string) error {
	removed := removedJSON{Removed: []string{}}
	var errs []error
	for _, path := range paths {
		dir, name, err := a.parent(ctx, path)
		if err == nil {
			if err = dir.tree.remove(ctx, dir, name); err != nil {
				err = fmt.Errorf("%s: %w", path, cause(err))
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		removed.Removed = append(removed.Removed, path)
	}
	err := a.print(removed, func(w io.Writer) {
		for _, path := range removed.Removed {
			fmt.Fprintf(w, "removed %s\n", clean(path))
		}
	})
	return errors.Join(append(errs, err)...)
}
