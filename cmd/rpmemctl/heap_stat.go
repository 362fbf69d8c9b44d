package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/heap"
)

func newHeapStat(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "stat FILE[@CHECKPOINT]",
		Short: "show what a heap's bytes are used for",
		Long: `Show what the bytes of a heap are used for: blocks in use, free blocks in the caches of
threads, free blocks of spans, free units, and each class of sizes; and how many pages
of the file the open epoch has. Of a file that programs are changing the numbers are
not of one moment.`,
		Example: `  rpmemctl heap stat /mnt/heap
  rpmemctl heap stat /mnt/heap --json | jq .fragmentation`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.look = looks(args[0])
			return a.heapStat(cmd.Context(), args[0])
		},
	}
}

type heapStatJSON struct {
	Path          string          `json:"path"`
	Checkpoint    string          `json:"checkpoint,omitempty"`
	Size          uint64          `json:"size"`
	Base          uint64          `json:"base"`
	Guards        bool            `json:"guards"`
	Root          uint64          `json:"root"`
	Top           uint64          `json:"top"`
	LiveBlocks    uint64          `json:"live_blocks"`
	LiveBytes     uint64          `json:"live_bytes"`
	Caches        int             `json:"caches"`
	CachedBytes   uint64          `json:"cached_bytes"`
	IdleBytes     uint64          `json:"idle_bytes"`
	FreeBytes     uint64          `json:"free_bytes"`
	UnusedBytes   uint64          `json:"unused_bytes"`
	MetadataBytes uint64          `json:"metadata_bytes"`
	LongestFree   uint64          `json:"longest_free"`
	Fragmentation float64         `json:"fragmentation"`
	Classes       []heapClassJSON `json:"classes"`
	Large         heapSpansJSON   `json:"large"`
	Huge          heapSpansJSON   `json:"huge"`
	Epoch         *uint64         `json:"epoch,omitempty"`
	DirtyPages    *uint64         `json:"dirty_pages,omitempty"`
	Handles       *uint32         `json:"handles,omitempty"`
	Found         int             `json:"found"`
}

type heapClassJSON struct {
	BlockSize uint64 `json:"block_size"`
	Spans     uint64 `json:"spans"`
	Live      uint64 `json:"live"`
	Cached    uint64 `json:"cached"`
	Free      uint64 `json:"free"`
}

type heapSpansJSON struct {
	Blocks uint64 `json:"blocks"`
	Bytes  uint64 `json:"bytes"`
}

func (a *app) heapStat(ctx context.Context, path string) error {
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
	j := describeHeap(img, report)
	return a.print(j, func(w io.Writer) { printHeapStat(w, path, &j) })
}

func describeHeap(img *heapImage, report *heap.Report) heapStatJSON {
	s := &report.Stats
	j := heapStatJSON{
		Path: img.path, Checkpoint: img.checkpoint, Size: s.Size, Base: s.Base, Guards: s.Guards, Root: uint64(s.Root), Top: s.Top,
		LiveBlocks: s.LiveBlocks, LiveBytes: s.LiveBytes, Caches: s.Caches, CachedBytes: s.CachedBytes, IdleBytes: s.IdleBytes,
		FreeBytes: s.FreeBytes, UnusedBytes: s.UnusedBytes, MetadataBytes: s.MetadataBytes, LongestFree: s.LongestFree,
		Fragmentation: s.Fragmentation(), Classes: []heapClassJSON{}, Found: report.Found,
		Large: heapSpansJSON(s.Large), Huge: heapSpansJSON(s.Huge),
	}
	for _, c := range s.Classes {
		if c.Spans > 0 {
			j.Classes = append(j.Classes, heapClassJSON{c.Size, c.Spans, c.Live, c.Cached, c.Free})
		}
	}
	if f := img.file; f != nil && img.checkpoint == "" {
		dirty := f.GetDirtyMappedPages() + f.GetDirtyWrittenPages()
		j.Epoch, j.DirtyPages, j.Handles = &f.Epoch, &dirty, &f.Handles
	}
	return j
}

func printHeapStat(w io.Writer, path string, j *heapStatJSON) {
	root, open, problems := "none", "", ""
	if j.Root != 0 {
		root = fmt.Sprintf("block at %#x", j.Root)
	}
	if j.DirtyPages != nil {
		open = fmt.Sprintf("%s, after epoch %d; %s open", plural(*j.DirtyPages, "page"), *j.Epoch, plural(uint64(*j.Handles), "handle"))
	}
	if j.Found > 0 {
		problems = number(uint64(j.Found)) + "; 'rpmemctl heap check' names them"
	}
	guards := ""
	if j.Guards {
		guards = ", with guards"
	}
	fields(w,
		"file", clean(path),
		"heap", fmt.Sprintf("%s, at address %#x%s", exactSize(j.Size), j.Base, guards),
		"root", root,
		"in use", fmt.Sprintf("%s in %s", size(j.LiveBytes), plural(j.LiveBlocks, "block")),
		"in caches", fmt.Sprintf("%s in %s", size(j.CachedBytes), plural(uint64(j.Caches), "cache")),
		"idle", fmt.Sprintf("%s of spans", size(j.IdleBytes)),
		"free", fmt.Sprintf("%s in chunks, at most %s in a row; %s unused", size(j.FreeBytes), size(j.LongestFree), size(j.UnusedBytes)),
		"metadata", size(j.MetadataBytes),
		"fragmentation", fmt.Sprintf("%.1f %% of what blocks were given is not in use", 100*j.Fragmentation),
		"open epoch", open,
		"problems", problems,
	)
	if len(j.Classes) == 0 && j.Large.Blocks+j.Huge.Blocks == 0 {
		return
	}
	fmt.Fprintln(w)
	table(w, func(w io.Writer) {
		fmt.Fprintln(w, "BLOCK\tSPANS\tIN USE\tCACHED\tFREE\tBYTES IN USE")
		for _, c := range j.Classes {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", number(c.BlockSize), number(c.Spans), number(c.Live), number(c.Cached),
				number(c.Free), size(c.Live*c.BlockSize))
		}
		for _, l := range []struct {
			name string
			heapSpansJSON
		}{{"large", j.Large}, {"huge", j.Huge}} {
			if l.Blocks > 0 {
				fmt.Fprintf(w, "%s\t%s\t%s\t\t\t%s\n", l.name, number(l.Blocks), number(l.Blocks), size(l.Bytes))
			}
		}
	})
}
