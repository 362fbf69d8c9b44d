package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
)

type commitAllJSON struct {
	Path  string `json:"path"`
	Files uint64 `json:"files"`
}

// commitAll commits every file of the pool that holds path.
//
// Stores that the kernel has not sent to the daemon can only be in files that
// programs have open; fsync of each sends and commits them. syncfs(2) would not
// do: on FUSE it does not wait until what it sends has arrived.
func (a *app) commitAll(ctx context.Context, path string) error {
	p, err := a.place(ctx, path)
	if err != nil {
		return err
	}
	result := commitAllJSON{Path: path}
	var errs []error
	for again := listings; again > 0; again-- {
		open, err := a.openFiles(ctx, p)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		moved := false
		for _, f := range open {
			committed, err := a.commitOpen(ctx, p, f)
			switch {
			case errors.Is(err, os.ErrNotExist):
				moved = true
			case err != nil:
				errs = append(errs, fmt.Errorf("%s: %w", f.GetPath(), err))
			case committed:
				result.Files++
			}
		}
		if !moved {
			break
		}
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := p.client.CommitAll(ctx, &controlpb.CommitAllRequest{})
	if err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", path, err))
	}
	result.Files += resp.GetFiles()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return a.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s committed\n", clean(path), plural(result.Files, "file"))
	})
}

// listings bounds how often files are listed anew because one was renamed, or
// removed, before it could be opened.
const listings = 3

// openFiles lists the files that programs have open.
func (a *app) openFiles(ctx context.Context, p *place) ([]*controlpb.OpenFilesResponse, error) {
	stream, err := p.client.OpenFiles(ctx, &controlpb.OpenFilesRequest{})
	if err != nil {
		return nil, err
	}
	var list []*controlpb.OpenFilesResponse
	for {
		f, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		list = append(list, f)
	}
}

// commitOpen commits a file that is open, and reports whether there was anything
// to commit.
func (a *app) commitOpen(ctx context.Context, p *place, f *controlpb.OpenFilesResponse) (bool, error) {
	ctx, cancel := a.request(ctx)
	defer cancel()
	if err := p.tree.flushAt(ctx, p, string(f.GetPath())); err != nil {
		return false, cause(err)
	}
	resp, err := p.client.Commit(ctx, &controlpb.CommitRequest{Ino: f.GetIno()})
	if err != nil {
		return false, err
	}
	return resp.GetEpoch() != f.GetEpoch(), nil
}
