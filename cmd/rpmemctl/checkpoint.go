package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/internal/quiesce"
)

func newCheckpoint(a *app) *cobra.Command {
	all, mode := false, quiesce.Mode{}
	cmd := &cobra.Command{
		Use:   "checkpoint FILE [NAME]",
		Short: "commit a file, and keep the epoch under a name",
		Long: `Commit everything stored in a file so far as one epoch, as msync does. With NAME the
epoch is kept under it until 'checkpoints rm'; slots that later epochs replace then
stay in use. With --all, commit every file of a mount, which syncfs and sync cannot.

Programs are not stopped: what one stores meanwhile is in the epoch or not. Let the
program call msync at a good moment where that matters, or stop it for a moment:
--quiesce stop stops every process that maps the file for writing, with all threads,
until the epoch is durable. The epoch then is what memory was at one moment. That is
no restart point: a program may have been in the middle of a change. It takes root, or
the same user where kernel.yama.ptrace_scope is 0.`,
		Example: `  rpmemctl checkpoint /mnt/heap
  rpmemctl checkpoint /mnt/heap before-upgrade
  rpmemctl checkpoint --quiesce stop /mnt/heap nightly
  rpmemctl checkpoint --all /mnt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return cobra.MaximumNArgs(1)(cmd, args)
			}
			return cobra.RangeArgs(1, 2)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case mode.Stop && (all || a.pool != ""):
				return usagef("--quiesce stop is for one file of a mount")
			case all:
				return a.commitAll(cmd.Context(), a.pathOrHere(args))
			case len(args) == 2 && args[1] == "":
				return usagef("the name of a checkpoint cannot be empty")
			case mode.Stop:
				return a.checkpointStopped(cmd.Context(), args)
			case len(args) == 2:
				return a.checkpoint(cmd.Context(), args[0], args[1])
			}
			return a.commit(cmd.Context(), args[0])
		},
		ValidArgsFunction: completeFileThen(nil),
	}
	cmd.Flags().Var(&mode, "quiesce", "what happens to programs that map the file meanwhile: none, or stop them")
	_ = cmd.RegisterFlagCompletionFunc("quiesce", cobra.FixedCompletions([]string{"none", "stop"}, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	cmd.Flags().BoolVar(&all, "all", false, "commit every file of the mount that holds the argument")
	return cmd
}

type checkpointJSON struct {
	Path  string `json:"path"`
	Epoch uint64 `json:"epoch"`
	Name  string `json:"name,omitempty"`
}

// flushed finds a regular file and commits what programs stored in it.
func (a *app) flushed(ctx context.Context, path string) (*place, error) {
	p, err := a.regular(ctx, path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	if err := p.tree.flush(ctx, p); err != nil {
		return nil, fmt.Errorf("%s: commit: %w", path, cause(err))
	}
	return p, nil
}

func (a *app) commit(ctx context.Context, path string) error {
	p, err := a.flushed(ctx, path)
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := p.client.Commit(ctx, &controlpb.CommitRequest{Ino: p.ino})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return a.print(checkpointJSON{Path: path, Epoch: resp.GetEpoch()}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: epoch %d is committed\n", clean(path), resp.GetEpoch())
	})
}

func (a *app) checkpoint(ctx context.Context, path, name string) error {
	p, err := a.flushed(ctx, path)
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := p.client.SaveCheckpoint(ctx, &controlpb.SaveCheckpointRequest{Ino: p.ino, Name: name})
	if err != nil {
		return a.checkpointError(path, name, err)
	}
	cp := resp.GetCheckpoint()
	return a.print(checkpointJSON{path, cp.GetEpoch(), cp.GetName()}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: epoch %d is committed and kept as %s\n", clean(path), cp.GetEpoch(), clean(cp.GetName()))
	})
}
