package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/region"
)

const pageSize = region.PageSize

func newStat(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "stat FILE",
		Short: "show the state of one file",
		Long:  `Show a file's size, last committed epoch, open epoch, checkpoints and who has it open.`,
		Example: `  rpmemctl stat /mnt/heap
  rpmemctl stat /mnt/heap --json | jq .epoch`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.look = true
			return a.stat(cmd.Context(), args[0])
		},
	}
}

func (a *app) stat(ctx context.Context, path string) error {
	p, err := a.place(ctx, path)
	if err != nil {
		return err
	}
	f, err := p.stat(ctx, a)
	if err != nil {
		return err
	}
	j := describe(path, f, "")
	return a.print(j, func(w io.Writer) {
		head := []string{
			"file", clean(path),
			"inode", fmt.Sprint(j.Ino),
			"mode", fmt.Sprintf("%s, user %d, group %d, %s", j.Mode, j.UID, j.GID, plural(uint64(j.Nlink), "name")),
		}
		if j.Size == nil {
			fields(w, append(head, "changed", a.time(f.GetMtime()))...)
			return
		}
		open := "nothing stored since the last commit"
		if *j.DirtyPages > 0 || *j.SizeChanged {
			open = fmt.Sprintf("%s (%d through mappings, %d by write)", plural(*j.DirtyPages, "page"), *j.DirtyMappedPages, *j.DirtyWrittenPages)
		}
		fields(w, append(head,
			"size", exactSize(*j.Size),
			"stored", fmt.Sprintf("%s in %s; %s granted", size(*j.Pages*pageSize), plural(*j.Pages, "page"), size(*j.GrantedBytes)),
			"epoch", fmt.Sprintf("%d committed", *j.Epoch),
			"open epoch", open,
			"changed", a.time(f.GetMtime()),
			"checkpoints", fmt.Sprint(*j.Checkpoints),
			"handles", fmt.Sprintf("%d open, %s attached", *j.Handles, plural(uint64(*j.Attached), "program")),
			"on close", onCloseText(j.OnClose),
			"poisoned", j.Poisoned,
		)...)
	})
}

func onCloseText(s string) string {
	switch s {
	case "rollback":
		return "uncommitted stores through mappings roll back"
	case "commit":
		return "uncommitted stores through mappings commit"
	}
	return s
}
