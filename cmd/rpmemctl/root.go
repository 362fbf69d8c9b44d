package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

const rootLong = `rpmemctl looks after the files of an rpmemfs pool.

A path in a mount names a file; the command then asks the daemon that serves the
mount. Only root and the owner of the mount may. With --pool DIR, paths are paths
in the pool and no daemon may have it mounted.`

const rootExample = `  rpmemctl create /mnt/heap --size 1GiB
  rpmemctl checkpoint /mnt/heap before-upgrade
  rpmemctl restore /mnt/heap before-upgrade
  rpmemctl check --pool /var/lib/rpmemfs`

// newRoot builds the command tree.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "rpmemctl",
		Short:         "look after the files of an rpmemfs pool",
		Long:          rootLong,
		Example:       rootExample,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			a.started = true
			var ctx context.Context
			ctx, a.stop = signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			cmd.SetContext(ctx)
		},
	}
	flags := root.PersistentFlags()
	flags.BoolVar(&a.json, "json", false, "print one JSON object instead of text; see 'rpmemctl help json'")
	flags.StringVar(&a.pool, "pool", "", "work on the unmounted pool in this `directory`; paths are then paths in the pool")
	flags.DurationVar(&a.timeout, "timeout", 5*time.Minute, "how long one request may take; 0 waits without end")
	_ = root.MarkPersistentFlagDirname("pool") // fails only for a flag that does not exist

	root.AddGroup(
		&cobra.Group{ID: "files", Title: "Files:"},
		&cobra.Group{ID: "epochs", Title: "Epochs and checkpoints:"},
		&cobra.Group{ID: "pool", Title: "The pool:"},
		&cobra.Group{ID: "node", Title: "Memory nodes:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("files", newCreate(a), newLs(a), newStat(a), newClone(a), newRm(a), newExport(a), newImport(a), newHeap(a))
	add("epochs", newCheckpoint(a), newCheckpoints(a), newRollback(a), newRestore(a), newRefresh(a), newRun(a))
	add("pool", newCheck(a), newStatus(a))
	add("node", newShare(a), newLease(a), newPki(a))
	root.AddCommand(newDoctor(a), newVersion(a))
	root.AddCommand(helpTopics()...)
	return root
}
