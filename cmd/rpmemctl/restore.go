package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/volume"
)

func newRestore(a *app) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "restore FILE NAME|EPOCH",
		Short: "go back to a checkpoint",
		Long: `Make a checkpoint the newest epoch of a file. This takes no time and copies nothing. What
the file held before is kept as the checkpoint before-restore-EPOCH, so that a restore
can be undone; what was stored since the last commit is thrown away.

A file that programs map or have open is refused. With --force it is restored under
them: their mappings show the restored content afterwards.`,
		Example: `  rpmemctl restore /mnt/heap before-upgrade
  rpmemctl restore --pool /var/lib/rpmemfs heap 17`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.restore(cmd.Context(), args[0], args[1], force)
		},
		ValidArgsFunction: completeFileThen(a.completeCheckpoints),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also while programs have the file open")
	return cmd
}

type restoreJSON struct {
	Path       string `json:"path"`
	Checkpoint string `json:"checkpoint"`
	Epoch      uint64 `json:"epoch"`
	SavedAs    string `json:"saved_as,omitempty"`
}

func (a *app) restore(ctx context.Context, path, name string, force bool) error {
	p, err := a.regular(ctx, path)
	if err != nil {
		return err
	}
	before, err := p.stat(ctx, a)
	if err != nil {
		return err
	}
	reqCtx, cancel := a.request(ctx)
	defer cancel()
	resp, err := p.client.Restore(reqCtx, &controlpb.RestoreRequest{Ino: p.ino, Name: name, Force: force})
	switch {
	case errors.Is(err, volume.ErrBusy):
		return busyError(path)
	case err != nil:
		return a.checkpointError(path, name, err)
	}
	result := restoreJSON{Path: path, Checkpoint: name, Epoch: resp.GetEpoch()}
	result.SavedAs = a.savedAs(ctx, p, before.GetEpoch())
	return a.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "%s: restored %s as epoch %d\n", clean(path), clean(name), result.Epoch)
		if result.SavedAs != "" {
			fmt.Fprintf(w, "What it held before is kept as %s.\n", result.SavedAs)
		}
	})
}

// savedAs looks for the checkpoint of what the file held before a restore.
func (a *app) savedAs(ctx context.Context, p *place, epoch uint64) string {
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := p.client.Checkpoints(ctx, &controlpb.CheckpointsRequest{Ino: p.ino})
	if err != nil {
		return "" // the restore itself went well
	}
	for _, cp := range resp.GetCheckpoints() {
		if cp.GetEpoch() >= epoch && strings.HasPrefix(cp.GetName(), "before-restore-") {
			return cp.GetName()
		}
	}
	return ""
}

func busyError(path string) error {
	err := fmt.Errorf("%s: programs have it open", path)
	who := holders(path)
	if len(who) == 0 {
		return hinted(err, "Stop them and try again, or restore under them with --force.")
	}
	return hinted(err, "%s.\nStop them and try again, or restore under them with --force.", strings.Join(who, "; "))
}
