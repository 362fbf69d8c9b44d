package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
)

func newRollback(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rollback FILE",
		Short: "throw away what was stored since the last commit",
		Long: `Throw the open epoch of a file away, under running programs: their mappings then show the
last committed epoch. What a program stores while the command runs may be lost or
kept, so stop it first where that matters.`,
		Example: `  rpmemctl rollback /mnt/heap`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rollback(cmd.Context(), args[0])
		},
		ValidArgsFunction: completeFiles,
	}
}

type rollbackJSON struct {
	Path  string `json:"path"`
	Pages uint64 `json:"pages"`
	Epoch uint64 `json:"epoch"`
}

func (a *app) rollback(ctx context.Context, path string) error {
	p, err := a.regular(ctx, path)
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := p.client.Rollback(ctx, &controlpb.RollbackRequest{Ino: p.ino})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return a.print(rollbackJSON{path, resp.GetPages(), resp.GetEpoch()}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: back at epoch %d; %s thrown away\n", clean(path), resp.GetEpoch(), plural(resp.GetPages(), "page"))
	})
}
