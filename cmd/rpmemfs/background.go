package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// readyEnv tells a daemon that its parent waits for a line on descriptor 3.
const readyEnv = "RPMEMFS_BACKGROUND"

// startBackground starts this command again without --background, detached, and
// returns when the mount is ready, or with the reason why it is not.
func startBackground() error {
	args := slices.Clone(os.Args[1:])
	args = slices.DeleteFunc(args, func(a string) bool { return a == "--background" || strings.HasPrefix(a, "--background=") })
	return startBackgroundArgs(args)
}

func startBackgroundArgs(args []string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(exe, args...)
	cmd.Args[0] = "rpmemfs"
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.ExtraFiles = []*os.File{w}
	// A session of its own: the terminal's signals are not for the daemon.
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	// Standard descriptors stay nil, /dev/null: who waits for the end of this
	// command's output must not wait for the daemon.
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	answer, err := bufio.NewReader(r).ReadString('\n')
	if err == nil {
		if line, ok := strings.CutPrefix(answer, "ready "); ok {
			fmt.Print(line)
			return cmd.Process.Release()
		}
		_ = cmd.Wait() // it told why
		return errors.New(strings.TrimSpace(strings.TrimPrefix(answer, "error ")))
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("the daemon ended before the mount was ready: %w", err)
	}
	return errors.New("the daemon ended before the mount was ready")
}

// parent is the pipe to a parent that waits, if there is one.
var parent = sync.OnceValue(func() io.WriteCloser {
	if os.Getenv(readyEnv) != "3" {
		return nil
	}
	unix.CloseOnExec(3)
	return os.NewFile(3, "ready pipe")
})

// tellParent answers a parent that waits; a nil error means ready, with a line
// for its user. Only the first answer counts.
func tellParent(err error, ready ...string) {
	w := parent()
	if w == nil {
		return
	}
	text := "ready " + strings.Join(ready, " ")
	if err != nil {
		text = "error " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	_, _ = io.WriteString(w, text+"\n") // the parent may be gone
	_ = w.Close()
}

// newLog returns the daemon's log and what closes it.
func (o *options) newLog() (*slog.Logger, func(), error) {
	var w io.WriteCloser = nopCloser{os.Stderr}
	stamp := true
	switch {
	case o.logFile != "":
		f, err := os.OpenFile(o.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("log file: %w", err)
		}
		w = f
	case parent() != nil:
		if s, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_NOTICE, "rpmemfs"); err == nil {
			w, stamp = s, false
		}
	}
	ho := &slog.HandlerOptions{Level: o.logLevel}
	if !stamp {
		ho.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	var h slog.Handler = slog.NewTextHandler(w, ho)
	if o.logJSON {
		h = slog.NewJSONHandler(w, ho)
	}
	return slog.New(h), func() { _ = w.Close() }, nil // nothing to do about it at the end
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
