package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newHeapCheck(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE[@CHECKPOINT]",
		Short: "walk a heap and name every inconsistency",
		Long: `Walk a whole heap and name every inconsistency, by its byte in the file and the field
of docs/format.md. Every list, count, bitmap and cache is compared with every other, and
in a heap with guards every block in use is looked at.

A file that programs have open may be in the middle of a change: what is found then
may be no damage. A checkpoint tells.

Exit codes: 0 sound, 1 damaged, 2 could not check.`,
		Example: `  rpmemctl heap check /mnt/heap
  rpmemctl heap check /mnt/heap@monday
  rpmemctl heap check heap.img
  rpmemctl heap check --pool /var/lib/rpmemfs heap`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.look = looks(args[0])
			err := a.heapCheck(cmd.Context(), args[0])
			var coded *codeError
			if err == nil || errors.As(err, &coded) {
				return err
			}
			return &codeError{exitUsage, err}
		},
	}
}

type heapCheckJSON struct {
	Path       string            `json:"path"`
	Checkpoint string            `json:"checkpoint,omitempty"`
	OK         bool              `json:"ok"`
	InUse      bool              `json:"in_use"`
	Size       uint64            `json:"size"`
	LiveBlocks uint64            `json:"live_blocks"`
	LiveBytes  uint64            `json:"live_bytes"`
	Found      int               `json:"found"`
	Problems   []heapProblemJSON `json:"problems"`
}

type heapProblemJSON struct {
	Offset uint64 `json:"offset"`
	Text   string `json:"text"`
}

func (a *app) heapCheck(ctx context.Context, path string) error {
	img, err := a.heapImage(ctx, path)
	if err != nil {
		return err
	}
	report, err := a.checkHeap(ctx, img)
	if closeErr := img.close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	j := heapCheckJSON{
		Path: img.path, Checkpoint: img.checkpoint, OK: report.Found == 0, InUse: img.inUse(), Size: report.Stats.Size,
		LiveBlocks: report.Stats.LiveBlocks, LiveBytes: report.Stats.LiveBytes,
		Found: report.Found, Problems: []heapProblemJSON{},
	}
	for _, p := range report.Problems {
		j.Problems = append(j.Problems, heapProblemJSON{p.Off, p.What})
	}
	if err := a.print(j, func(w io.Writer) { printHeapCheck(w, path, &j) }); err != nil {
		return err
	}
	switch {
	case j.OK:
		return nil
	case j.InUse:
		return &codeError{exitUsage, hinted(
			fmt.Errorf("%s: programs have it open, and may be in the middle of a change", path),
			"Check one epoch: rpmemctl checkpoint %s NAME; rpmemctl heap check %s@NAME", shellQuote(path), shellQuote(path))}
	}
	return &codeError{exitFailed, nil}
}

func printHeapCheck(w io.Writer, path string, j *heapCheckJSON) {
	for _, p := range j.Problems {
		fmt.Fprintf(w, "byte %#x: %s\n", p.Offset, p.Text)
	}
	if more := j.Found - len(j.Problems); more > 0 {
		fmt.Fprintf(w, "... and %s more\n", number(uint64(more)))
	}
	verdict := "sound"
	switch {
	case !j.OK && j.InUse:
		verdict = "not sound at this moment, " + plural(uint64(j.Found), "problem")
	case !j.OK:
		verdict = "DAMAGED, " + plural(uint64(j.Found), "problem")
	}
	fmt.Fprintf(w, "%s: %s (%s in use, %s of %s)\n", clean(path), verdict,
		plural(j.LiveBlocks, "block"), size(j.LiveBytes), size(j.Size))
}
