package main

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// source finds the file that is copied from: FILE, or FILE@CHECKPOINT unless a
// file of that whole name exists. Without a checkpoint, what programs stored in
// the file so far is committed.
func (a *app) source(ctx context.Context, path, checkpoint string) (*place, string, error) {
	p, err := a.regular(ctx, path)
	missing := errors.Is(err, os.ErrNotExist) || errors.Is(err, namespace.ErrNotExist)
	if at := strings.LastIndexByte(path, '@'); missing && at > 0 && at+1 < len(path) && checkpoint == "" {
		file, fileErr := a.regular(ctx, path[:at])
		if fileErr == nil {
			return file, path[at+1:], nil
		}
	}
	if err != nil {
		return nil, "", err
	}
	if checkpoint == "" {
		if p, err = a.flushed(ctx, path); err != nil {
			return nil, "", err
		}
	}
	return p, checkpoint, nil
}
