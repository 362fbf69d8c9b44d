package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
)

// completeTimeout bounds what a press of the Tab key may wait for.
const completeTimeout = time.Second

// completeDirs offers directories.
func completeDirs(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// completeFiles offers one path.
func completeFiles(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// completeFileThen offers a path, and then what rest offers.
func completeFileThen(rest cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			return nil, cobra.ShellCompDirectiveDefault
		case rest == nil:
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return rest(cmd, args, toComplete)
	}
}

// completeCheckpoints offers the checkpoints of the first argument. It asks a
// daemon only: opening a pool is no thing to do for a completion.
func (a *app) completeCheckpoints(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 || a.pool != "" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	p, err := a.place(ctx, args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	resp, err := p.client.Checkpoints(ctx, &controlpb.CheckpointsRequest{Ino: p.ino})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, cp := range resp.GetCheckpoints() {
		names = append(names, cobra.CompletionWithDesc(cp.GetName(), "epoch "+number(cp.GetEpoch())+", "+a.time(cp.GetTime())))
	}
	return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}
