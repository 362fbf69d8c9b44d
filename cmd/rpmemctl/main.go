// Command rpmemctl looks after the files of an rpmemfs pool: commit, checkpoints,
// rollback, restore, clone, export, import, check.
//
// It works on a path in a mount, through the daemon's socket, or with --pool on
// the directory of a pool that no daemon has mounted. Both go through the same
// service, package control.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// version is set by the linker.
var version = ""

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // the command failed, or check found damage
	exitUsage  = 2 // wrong usage, or check could not check
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program: it runs one command and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := newApp(in, out, errOut)
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	if closeErr := a.close(); err == nil {
		err = closeErr
	}
	if err == nil {
		return exitOK
	}
	var coded *codeError
	isCoded := errors.As(err, &coded)
	if !isCoded || coded.err != nil {
		fmt.Fprintf(errOut, "rpmemctl: %s\n", plain(err))
		if h := hintOf(err); h != "" {
			fmt.Fprintf(errOut, "%s\n", h)
		}
	}
	switch {
	case isCoded:
		return coded.code
	case !a.started:
		// The arguments were refused before any command began.
		fmt.Fprintf(errOut, "See '%s --help'.\n", strings.TrimSpace(cmd.CommandPath()))
		return exitUsage
	}
	return exitFailed
}

// A codeError chooses the exit code. Without an error everything was said.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

// usagef is an error of how the command was called.
func usagef(format string, args ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, args...)}
}
