package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

func newCheck(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE|MOUNTPOINT]",
		Short: "read everything and name all damage",
		Long: `Read every page, table and checkpoint of a file, or with a mount point or --pool alone of
the whole pool, verify all checksums, and name every inconsistency. Works under
running programs; their commits of a file wait while it is read. Nothing is repaired.

Exit codes: 0 sound, 1 damaged, 2 could not check.`,
		Example: `  rpmemctl check /mnt/heap
  rpmemctl check /mnt
  rpmemctl check --pool /var/lib/rpmemfs`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.look = true
			err := a.check(cmd.Context(), a.pathOrHere(args))
			var coded *codeError
			if err == nil || errors.As(err, &coded) {
				return err
			}
			return &codeError{checkCode(err), err}
		},
	}
}

// checkCode tells damage that kept the pool from being opened from other
// failures.
func checkCode(err error) int {
	if errors.Is(err, region.ErrCorrupt) || errors.Is(err, memnode.ErrTruncated) || errors.Is(err, memnode.ErrForeign) {
		return exitFailed
	}
	return exitUsage
}

type checkJSON struct {
	OK          bool          `json:"ok"`
	Files       uint64        `json:"files"`
	Pages       uint64        `json:"pages"`
	Checkpoints uint64        `json:"checkpoints"`
	Found       uint64        `json:"found"`
	Problems    []problemJSON `json:"problems"`
}

type problemJSON struct {
	Ino  uint64 `json:"ino"`
	Path string `json:"path,omitempty"`
	Text string `json:"text"`
}

func (a *app) check(ctx context.Context, path string) error {
	p, err := a.place(ctx, path)
	if errors.Is(err, unix.EIO) {
		p, err = a.damagedPlace(ctx, path, err)
	}
	if err != nil {
		return err
	}
	f, err := p.stat(ctx, a)
	if errors.Is(err, region.ErrCorrupt) {
		f, err = &controlpb.File{Mode: unix.S_IFREG}, nil // so damaged that it does not open: check says how
	}
	if err != nil {
		return err
	}
	req := &controlpb.CheckRequest{Ino: p.ino}
	switch t := fileType(f.GetMode()); {
	case p.ino == uint64(namespace.Root):
		req.Ino = 0
	case t == "dir":
		return usagef("%s: is a directory; name a file, or the mount point for everything", path)
	case t != "file":
		return usagef("%s: not a regular file", path)
	}
	report, err := a.receiveCheck(ctx, p, req)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	label := path
	if req.Ino == 0 && a.pool != "" {
		label = a.pool
	}
	err = a.print(report, func(w io.Writer) { printReport(w, label, report) })
	if err == nil && !report.OK {
		return &codeError{exitFailed, nil}
	}
	return err
}

// damagedPlace finds a file of a mount that is too damaged for its path to work:
// the daemon knows its number by its name. lookupErr is why the path did not work.
func (a *app) damagedPlace(ctx context.Context, path string, lookupErr error) (*place, error) {
	dir, name, err := a.parent(ctx, path)
	if err != nil {
		return nil, lookupErr
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := dir.client.List(ctx, &controlpb.ListRequest{Ino: dir.ino})
	if err != nil {
		return nil, lookupErr
	}
	for {
		e, err := stream.Recv()
		if err != nil {
			return nil, lookupErr
		}
		if string(e.GetName()) == name {
			return &place{dir.session, path, e.GetFile().GetIno()}, nil
		}
	}
}

// receiveCheck collects what a check finds.
func (a *app) receiveCheck(ctx context.Context, p *place, req *controlpb.CheckRequest) (*checkJSON, error) {
	stream, err := p.client.Check(ctx, req)
	if err != nil {
		return nil, err
	}
	bar := a.newProgress("checking")
	defer bar.done()
	report := &checkJSON{Problems: []problemJSON{}}
	for ended := false; ; {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) && ended {
			return report, nil
		}
		if errors.Is(err, io.EOF) {
			return nil, io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		switch e := m.GetEvent().(type) {
		case *controlpb.CheckResponse_Progress:
			bar.show(e.Progress.GetDone() * pageSize)
		case *controlpb.CheckResponse_Problem:
			report.Problems = append(report.Problems, problemJSON{
				Ino: e.Problem.GetIno(), Path: string(e.Problem.GetPath()), Text: e.Problem.GetText(),
			})
		case *controlpb.CheckResponse_Summary:
			s := e.Summary
			report.Files, report.Pages, report.Checkpoints = s.GetFiles(), s.GetPages(), s.GetCheckpoints()
			report.Found = max(s.GetProblems(), uint64(len(report.Problems)))
			report.OK = report.Found == 0
			ended = true
		}
	}
}

func printReport(w io.Writer, path string, r *checkJSON) {
	for _, p := range r.Problems {
		if p.Path != "" {
			fmt.Fprintf(w, "%s: ", clean(p.Path))
		}
		fmt.Fprintln(w, p.Text)
	}
	if more := r.Found - uint64(len(r.Problems)); more > 0 {
		fmt.Fprintf(w, "... and %s more\n", number(more))
	}
	verdict := "sound"
	if !r.OK {
		verdict = "DAMAGED, " + plural(r.Found, "problem")
	}
	fmt.Fprintf(w, "%s: %s (%s, %s, %s read)\n", clean(path), verdict,
		plural(r.Files, "file"), plural(r.Checkpoints, "checkpoint"), size(r.Pages*pageSize))
}
