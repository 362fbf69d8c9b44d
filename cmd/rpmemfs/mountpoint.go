package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/fs"
)

// prepareMountpoint checks the mountpoint, takes a dead mount of this file system
// away from it, and returns its path without symbolic links.
func prepareMountpoint(path string, log *slog.Logger) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	// Of a mount whose daemon was killed even lstat fails, so only what is above
	// is resolved at first.
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", fmt.Errorf("mountpoint %s: %w", path, err)
	}
	resolved := filepath.Join(parent, filepath.Base(path))
	if topMount(resolved) == "fuse.rpmemfs" {
		if !dead(resolved) {
			return "", fmt.Errorf("mountpoint %s: rpmemfs is mounted there already; unmount it first with `umount %s`", path, resolved)
		}
		log.Warn("taking away the mount of a daemon that is dead", "mountpoint", resolved)
		if err := detachDead(resolved); err != nil {
			return "", fmt.Errorf("mountpoint %s: a dead mount is in the way (umount -l %s): %w", path, resolved, err)
		}
	}
	var st unix.Stat_t
	err = unix.Stat(resolved, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", fmt.Errorf("mountpoint %s does not exist: make it with `mkdir -p %s`", path, path)
	case errors.Is(err, unix.ENOTCONN):
		return "", fmt.Errorf("mountpoint %s: a dead FUSE mount of another file system is in the way; remove it with `umount -l %s`", path, path)
	case err != nil:
		return "", fmt.Errorf("mountpoint %s: %w", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return "", fmt.Errorf("mountpoint %s is not a directory", path)
	}
	return filepath.EvalSymlinks(resolved)
}

// answerWithin is how long a live daemon may take to answer.
const answerWithin = 10 * time.Second

// dead reports whether the daemon of the mount at path is gone. Only statfs(2)
// tells for sure: attributes may come from the kernel's cache.
func dead(path string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(path, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	case <-time.After(answerWithin):
		return false // it hangs, which is not the same
	}
}

// topMount returns the type of the mount at a path, empty if there is none. It
// reads the table of mounts and never the mount.
func topMount(path string) (kind string) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		_, after, ok := strings.Cut(line, " - ")
		if ok && len(fields) > 4 && fs.Unescape(fields[4]) == path {
			kind, _, _ = strings.Cut(after, " ")
		}
	}
	return kind
}

// detachDead takes a dead mount out of the tree; programs that still hold it get
// ENOTCONN as before.
func detachDead(path string) error {
	if os.Geteuid() == 0 {
		return unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	out, err := exec.Command("fusermount3", "-u", "-z", "-q", "--", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
