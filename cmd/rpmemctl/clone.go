package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/namespace"
)

func newClone(a *app) *cobra.Command {
	checkpoint := ""
	cmd := &cobra.Command{
		Use:   "clone FILE NEW",
		Short: "copy a file without copying its pages",
		Long: `Make a new file with the content of another, in the same pool. The two share their pages
until one of them is written, so a clone takes no time and no space. Without
--checkpoint, everything stored in FILE so far commits first.`,
		Example: `  rpmemctl clone /mnt/heap /mnt/heap-for-tests
  rpmemctl clone /mnt/heap@before-upgrade /mnt/old-heap`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.clone(cmd.Context(), args[0], checkpoint, args[1])
		},
	}
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", "`name` or epoch of a checkpoint of FILE to start from")
	_ = cmd.RegisterFlagCompletionFunc("checkpoint", a.completeCheckpoints) // fails only for an unknown flag
	return cmd
}

func (a *app) clone(ctx context.Context, path, checkpoint, newPath string) error {
	src, checkpoint, err := a.source(ctx, path, checkpoint)
	if err != nil {
		return err
	}
	dir, name, err := a.parent(ctx, newPath)
	if err != nil {
		return err
	}
	if dir.session != src.session {
		return hinted(fmt.Errorf("%s: in another mount than %s", newPath, src.path),
			"Clones share pages, so both have to be in one pool. Copy between pools with export and import.")
	}
	ctx2, cancel := a.request(ctx)
	defer cancel()
	_, err = src.client.Clone(ctx2, &controlpb.CloneRequest{
		Ino: src.ino, Checkpoint: checkpoint, Parent: dir.ino, Name: []byte(name),
	})
	switch {
	case errors.Is(err, namespace.ErrExist):
		return fmt.Errorf("%s: exists already", newPath)
	case errors.Is(err, namespace.ErrNotExist) && checkpoint != "":
		return a.checkpointError(src.path, checkpoint, err)
	case err != nil:
		return fmt.Errorf("%s: %w", newPath, err)
	}
	return a.printNew(ctx, newPath, "cloned "+clean(path)+" to")
}
