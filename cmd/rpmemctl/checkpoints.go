package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/namespace"
)

func newCheckpoints(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "checkpoints FILE",
		Short: "list the checkpoints of a file",
		Long:  `List the epochs of a file that are kept under a name, oldest first.`,
		Example: `  rpmemctl checkpoints /mnt/heap
  rpmemctl checkpoints rm /mnt/heap before-upgrade`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.look = true
			return a.checkpoints(cmd.Context(), args[0])
		},
		ValidArgsFunction: completeFiles,
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "rm FILE NAME...",
		Short: "drop checkpoints of a file",
		Long: `Drop checkpoints of a file, by name. The file does not change; slots that only they
needed become free in the background.`,
		Example:           `  rpmemctl checkpoints rm /mnt/heap before-upgrade`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: completeFileThen(a.completeCheckpoints),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.dropCheckpoints(cmd.Context(), args[0], args[1:])
		},
	})
	return cmd
}

type checkpointsJSON struct {
	Path        string               `json:"path"`
	Checkpoints []keptCheckpointJSON `json:"checkpoints"`
}

type keptCheckpointJSON struct {
	Name  string `json:"name"`
	Epoch uint64 `json:"epoch"`
	Time  string `json:"time"`
	Size  uint64 `json:"size"`
	Mtime string `json:"mtime"`
}

func (a *app) checkpoints(ctx context.Context, path string) error {
	p, err := a.regular(ctx, path)
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := p.client.Checkpoints(ctx, &controlpb.CheckpointsRequest{Ino: p.ino})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	list := checkpointsJSON{Path: path, Checkpoints: []keptCheckpointJSON{}}
	for _, cp := range resp.GetCheckpoints() {
		list.Checkpoints = append(list.Checkpoints, keptCheckpointJSON{
			Name: cp.GetName(), Epoch: cp.GetEpoch(), Time: jsonTime(cp.GetTime()),
			Size: cp.GetSize(), Mtime: jsonTime(cp.GetMtime()),
		})
	}
	return a.print(list, func(w io.Writer) {
		if len(list.Checkpoints) == 0 {
			fmt.Fprintf(w, "%s has no checkpoints\n", clean(path))
			return
		}
		table(w, func(w io.Writer) {
			fmt.Fprintln(w, "EPOCH\tMADE\tSIZE\tNAME")
			for _, cp := range resp.GetCheckpoints() {
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", cp.GetEpoch(), a.time(cp.GetTime()), size(cp.GetSize()), clean(cp.GetName()))
			}
		})
	})
}

type removedJSON struct {
	Removed []string `json:"removed"`
}

func (a *app) dropCheckpoints(ctx context.Context, path string, names []string) error {
	p, err := a.regular(ctx, path)
	if err != nil {
		return err
	}
	removed := removedJSON{Removed: []string{}}
	for _, name := range names {
		if err = a.dropCheckpoint(ctx, p, name); err != nil {
			break
		}
		removed.Removed = append(removed.Removed, name)
	}
	printErr := a.print(removed, func(w io.Writer) {
		for _, name := range removed.Removed {
			fmt.Fprintf(w, "%s: dropped checkpoint %s\n", clean(path), clean(name))
		}
	})
	if err != nil {
		return err
	}
	return printErr
}

func (a *app) dropCheckpoint(ctx context.Context, p *place, name string) error {
	ctx, cancel := a.request(ctx)
	defer cancel()
	_, err := p.client.DropCheckpoint(ctx, &controlpb.DropCheckpointRequest{Ino: p.ino, Name: name})
	return a.checkpointError(p.path, name, err)
}

// checkpointError words what went wrong with a named checkpoint.
func (a *app) checkpointError(path, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, namespace.ErrExist):
		return hinted(fmt.Errorf("%s: it has a checkpoint %q already", path, name),
			"Choose another name, or drop the old one: %s", a.commandLine("checkpoints rm", path, name))
	case errors.Is(err, namespace.ErrNotExist):
		return hinted(fmt.Errorf("%s: it has no checkpoint %q", path, name),
			"List them: %s", a.commandLine("checkpoints", path))
	}
	return fmt.Errorf("%s: %w", path, err)
}

// commandLine is a command that the user may type next.
func (a *app) commandLine(command string, args ...string) string {
	line := "rpmemctl " + command
	if a.pool != "" {
		line += " --pool " + shellQuote(a.pool)
	}
	for _, arg := range args {
		line += " " + shellQuote(arg)
	}
	return line
}
