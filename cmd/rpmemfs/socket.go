package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits sun_path with its terminating zero.
const maxSocketPath = 107

// listenControl opens the control socket and returns its path; both are nil and
// empty for "none".
func (o *options) listenControl() (net.Listener, string, error) {
	path := o.control
	switch path {
	case "none":
		return nil, "", nil
	case "":
		dir, err := socketDir()
		if err != nil {
			return nil, "", err
		}
		removeStaleSockets(dir)
		path = filepath.Join(dir, strconv.Itoa(os.Getpid())+".sock")
		// A former process of this number left it.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, "", fmt.Errorf("control socket: %w", err)
		}
	default:
		var err error
		if path, err = filepath.Abs(path); err != nil {
			return nil, "", err
		}
		removeDeadSocket(path)
	}
	if err := checkSocketPath(path); err != nil {
		return nil, "", err
	}
	// Nobody else may connect, between the bind and the chmod either.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, "", fmt.Errorf("control socket: %w", err)
	}
	return l, path, nil
}

func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("socket %s: the path is longer than %d bytes; give a shorter one with --control", path, maxSocketPath)
	}
	return nil
}

// socketDir makes and checks the directory of default sockets.
func socketDir() (string, error) {
	uid := os.Geteuid()
	dir := fmt.Sprintf("/tmp/rpmemfs-%d", uid)
	switch run := os.Getenv("XDG_RUNTIME_DIR"); {
	case uid == 0:
		dir = "/run/rpmemfs"
	case run != "" && filepath.IsAbs(run):
		dir = filepath.Join(run, "rpmemfs")
	}
	// Others may not list it, but reach the sockets of attached programs.
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("directory of control sockets: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", fmt.Errorf("directory of control sockets: %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != uid || st.Mode&0o022 != 0 {
		return "", fmt.Errorf("directory of control sockets: %s is not a directory that only its owner, user %d, can write; remove it or use --control", dir, uid)
	}
	if st.Mode&0o011 != 0o011 {
		if err := os.Chmod(dir, 0o711); err != nil {
			return "", fmt.Errorf("directory of control sockets: %w", err)
		}
	}
	return dir, nil
}

// removeStaleSockets removes what killed daemons left.
func removeStaleSockets(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".sock")
		if !ok {
			name, ok = strings.CutSuffix(e.Name(), ".attach")
		}
		if pid, err := strconv.Atoi(name); ok && err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			_ = os.Remove(filepath.Join(dir, e.Name())) // it is only in the way of people
		}
	}
}

// removeDeadSocket removes a socket that nobody listens on.
func removeDeadSocket(path string) {
	if fi, err := os.Lstat(path); err != nil || fi.Mode()&os.ModeSocket == 0 {
		return
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close() // somebody does; listening will say so
		return
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		_ = os.Remove(path) // listening will say so
	}
}
