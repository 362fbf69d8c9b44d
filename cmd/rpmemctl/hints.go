package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/control"
	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

// A hintError carries advice beside its error.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// hinted attaches advice to an error.
func hinted(err error, format string, args ...any) error {
	return &hintError{err, fmt.Sprintf(format, args...)}
}

// hintOf says what to do about an error; empty if nothing is known.
func hintOf(err error) string {
	var hint *hintError
	var dead *deadMountError
	var notMounted *notMountedError
	switch {
	case errors.As(err, &hint):
		return hint.hint
	case errors.As(err, &dead):
		return deadHint(dead.mount)
	case errors.As(err, &notMounted):
		return "Name a path inside a mount ('rpmemctl status' lists them), or give --pool DIR for a pool that is not mounted."
	case errors.Is(err, epoch.ErrPoisoned):
		return "A commit failed half-way, so the file takes no more. Look at the daemon's log for the cause, then unmount and mount again:\n" +
			"the file comes back as of its last committed epoch."
	case errors.Is(err, region.ErrCorrupt):
		return "The pool's medium returned damaged bytes. 'rpmemctl check' lists all damage; checkpoints of the file may still be whole."
	case errors.Is(err, region.ErrNoSpace), errors.Is(err, unix.ENOSPC):
		return "The pool is full. Remove files or checkpoints ('rpmemctl checkpoints rm'), then try again; nothing committed is lost."
	case errors.Is(err, region.ErrVersion):
		return "The pool was written by another version of rpmemfs: use that one."
	case errors.Is(err, unix.EIO):
		return "The mount has lost its lease ('rpmemctl status' tells), or the file is damaged, or takes no more commits since one failed\n" +
			"('rpmemctl check' and the daemon's log tell)."
	case errors.Is(err, volume.ErrReadOnly), errors.Is(err, unix.EROFS):
		return "Mount the pool again without the read-only option."
	case errors.Is(err, control.ErrPermission), errors.Is(err, os.ErrPermission):
		return "Run it as root or as the owner of the mount."
	case errors.Is(err, control.ErrUnavailable):
		return "If the daemon is gone, take its mount away and mount the pool again: umount -l MOUNTPOINT; rpmemfs mount --pool DIR MOUNTPOINT."
	case errors.Is(err, context.DeadlineExceeded):
		return "The daemon took too long. It may still finish; --timeout sets how long to wait."
	}
	return ""
}

func deadHint(m mountPoint) string {
	point, pool := "MOUNTPOINT", "DIR"
	if m.path != "" {
		point = shellQuote(m.path)
	}
	if strings.HasPrefix(m.source, "/") {
		pool = shellQuote(m.source)
	}
	return fmt.Sprintf("Committed epochs are safe in the pool. Mount it again:\n  umount -l %s; rpmemfs mount --pool %s %s", point, pool, point)
}

// shellQuote makes one word of s for a shell.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:,@%") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// packageNames are what sentinels begin with, which tells people nothing. The end of
// a path is none.
var packageNames = regexp.MustCompile(`(^|: )(?:(?:namespace|volume|memnode|region|rdmacache|epoch|control|media|pki|node|remote): )+`)

// plain is the text of an error for people.
func plain(err error) string { return packageNames.ReplaceAllString(err.Error(), "$1") }
