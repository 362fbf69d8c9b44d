package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/quiesce"
	"github.com/rpmemfs/rpmemfs/volume"
)

// epochOptions say when epochs commit that nobody asks for.
type epochOptions struct {
	interval time.Duration // between epochs; 0: none but those that are asked for
	quiesce  quiesce.Mode  // of programs that are not attached
}

const (
	epochFlag   = "epoch"
	quiesceFlag = "quiesce"
)

func (e *epochOptions) addFlags(f *pflag.FlagSet) {
	f.DurationVar(&e.interval, epochFlag, 0, "time between epochs of files that programs are attached to, such as 64ms; 0: none but those asked for")
	f.Var(&e.quiesce, quiesceFlag, "stop: with --epoch, commit files of programs that are not attached too, and stop these programs for that moment")
}

func (e *epochOptions) complete(cmd *cobra.Command) {
	must(cmd.RegisterFlagCompletionFunc(epochFlag, cobra.NoFileCompletions))
	must(cmd.RegisterFlagCompletionFunc(quiesceFlag, cobra.FixedCompletions([]string{"none", "stop"}, cobra.ShellCompDirectiveNoFileComp)))
}

// check refuses what makes no sense together.
func (e *epochOptions) check(o *options) error {
	switch {
	case e.interval != 0 && e.interval < volume.MinInterval:
		return fmt.Errorf("--epoch %v: at least %v, or 0", e.interval, volume.MinInterval)
	case e.quiesce.Stop && e.interval == 0:
		return errors.New("--quiesce stop needs --epoch, such as --epoch 64ms")
	case e.quiesce.Stop && o.control == "none":
		return errors.New("--quiesce stop needs the control socket: leave --control none out")
	case e.quiesce.Stop && o.readOnly:
		return errors.New("--quiesce stop makes no sense with --read-only")
	}
	return nil
}

// args are the flags that ask for the same.
func (e *epochOptions) args() (args []string) {
	if e.interval != 0 {
		args = append(args, "--"+epochFlag+"="+e.interval.String())
	}
	if e.quiesce.Stop {
		args = append(args, "--"+quiesceFlag+"="+e.quiesce.String())
	}
	return args
}

// restartQuiescer is how long the daemon waits before it starts a helper again that
// ended.
const restartQuiescer = time.Second

// runQuiescer keeps a helper process running until ctx ends: it opens files of the
// mount, and waits for their write-back, which the daemon that serves both must not.
func (d *daemon) runQuiescer(ctx context.Context) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if err := closeAllOnExec(); err != nil {
		return err
	}
	for {
		if err := d.quiescer(ctx, exe); ctx.Err() != nil {
			return nil
		} else {
			d.log.Error("the helper that commits epochs ended; starting it again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartQuiescer):
		}
	}
}

// closeAllOnExec keeps the daemon's descriptors from its children. The one of
// /dev/fuse, which go-fuse opens without this, would keep a mount alive whose daemon
// is dead, and all its programs waiting.
func closeAllOnExec() error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range fds {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// quiescer runs the helper once. Its standard input, which nobody writes to, ends
// with the daemon; what it has to say comes in lines.
func (d *daemon) quiescer(ctx context.Context, exe string) error {
	cmd := exec.Command(exe, quiescerName, "--"+epochFlag, d.o.epochs.interval.String(), "--socket", d.socket, d.o.mountpoint)
	cmd.Dir = "/"
	// The terminal's signals are the daemon's.
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = in.Close() // it ends by itself,
		time.AfterFunc(restartQuiescer, func() {
			_ = cmd.Process.Kill() // or not; the kernel lets go whom it has stopped
		})
	})
	defer stop()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		d.log.Warn("epochs of programs that are not attached", "helper", cmd.Process.Pid, "said", lines.Text())
	}
	_, _ = io.Copy(io.Discard, out) // a line too long for the scanner
	return cmd.Wait()
}
