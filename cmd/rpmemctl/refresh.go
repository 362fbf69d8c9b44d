package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/volume"
)

func newRefresh(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "refresh PATH...",
		Short: "show the newest epochs in a read-only mount",
		Long: `Make files of a mount that is read-only, beside one that writes, show their newest
committed epochs. A directory, such as the mountpoint, stands for all files of the mount
that are in use. When the command returns, reads and mappings of running programs show
the new epoch and nothing of the one before; while it runs they may show either.

Everybody may who can reach the path: it reads the extended attribute
user.rpmemfs.refresh. In other mounts it changes nothing.`,
		Example: `  rpmemctl refresh /mnt/heap
  rpmemctl refresh /mnt
  getfattr --only-values -n user.rpmemfs.refresh /mnt/heap`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.refresh(cmd.Context(), args)
		},
		ValidArgsFunction: completeFiles,
	}
}

type refreshJSON struct {
	Files []refreshedJSON `json:"files"`
}

type refreshedJSON struct {
	Path  string  `json:"path"`
	Epoch *uint64 `json:"epoch,omitempty"`
}

func (a *app) refresh(ctx context.Context, paths []string) error {
	if a.pool != "" {
		return usagef("nobody else changes a pool that is not mounted")
	}
	done := refreshJSON{Files: []refreshedJSON{}}
	for _, path := range paths {
		reqCtx, cancel := a.request(ctx)
		text, err := bounded(reqCtx, func() (string, error) { return getxattr(path, volume.XattrRefresh) })
		cancel()
		if err != nil {
			return placeError(path, err)
		}
		f := refreshedJSON{Path: path}
		if text != "" { // not a directory
			e, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				return fmt.Errorf("%s: attribute %s says %q: not an rpmemfs mount", path, volume.XattrRefresh, text)
			}
			f.Epoch = &e
		}
		done.Files = append(done.Files, f)
	}
	return a.print(done, func(w io.Writer) {
		for _, f := range done.Files {
			if f.Epoch == nil {
				fmt.Fprintf(w, "%s: all files in use show their newest epochs\n", clean(f.Path))
			} else {
				fmt.Fprintf(w, "%s: at epoch %d\n", clean(f.Path), *f.Epoch)
			}
		}
	})
}
