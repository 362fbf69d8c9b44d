package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/quiesce"
	"github.com/rpmemfs/rpmemfs/volume"
)

const preloadName = "librpmemfs_preload.so"

func newRun(a *app) *cobra.Command {
	o := runOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] -- PROGRAM [ARGUMENT...]",
		Short: "run an unmodified program with fast commits",
		Long: `Run a program with librpmemfs_preload.so loaded. What it stores to shared mappings of
files of an rpmemfs mount is captured in its own process: msync, fsync and fdatasync on
such a file mean the same as ever and take a fraction of the time where pages are
scattered. If the program is killed, the open epochs of its files are rolled back.

With --epoch the library also commits all those files every so often; --quiesce stop
stops the program's threads for that moment, by the signal SIGRTMAX-2, so that the epoch
is what memory was at one moment. That is no restart point.

The program must be linked dynamically and call the C library's functions, as programs
in C, C++, Python, Java and Rust do. Static ones, Go's among them, run as ever.`,
		Example: `  rpmemctl run -- python3 train.py
  rpmemctl run --epoch 64ms --quiesce stop -- ./simulate /mnt/state`,
		Args: cobra.MinimumNArgs(1),
		// Signals end this process at any moment, as they end the program that it
		// becomes: one that was caught just before that would be lost.
		PersistentPreRun: func(*cobra.Command, []string) { a.started = true },
		RunE: func(_ *cobra.Command, args []string) error {
			return o.run(args)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // the program's flags are its own
	f.DurationVar(&o.epoch, "epoch", 0, "commit every so often, such as 64ms; 0: when the program does")
	f.Var(&o.quiesce, "quiesce", "what happens to the program's threads at these epochs: none, or stop them")
	f.StringVar(&o.library, "library", "", "the `file` librpmemfs_preload.so (default: where it was installed or built)")
	_ = cmd.RegisterFlagCompletionFunc("epoch", cobra.NoFileCompletions) // the flags exist
	_ = cmd.RegisterFlagCompletionFunc("quiesce", cobra.FixedCompletions([]string{"none", "stop"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

type runOptions struct {
	epoch   time.Duration
	quiesce quiesce.Mode
	library string
}

// run becomes the program.
func (o *runOptions) run(args []string) error {
	switch {
	case o.epoch != 0 && o.epoch < volume.MinInterval:
		return usagef("--epoch %v: at least %v, or 0", o.epoch, volume.MinInterval)
	case o.quiesce.Stop && o.epoch == 0:
		return usagef("--quiesce stop needs --epoch, such as --epoch 64ms")
	}
	library, err := o.findLibrary()
	if err != nil {
		return err
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return &codeError{exitNotFound, err}
	}
	if static(path) {
		return hinted(fmt.Errorf("%s is linked statically: it loads no libraries", path),
			"Run it as it is: msync and fsync commit all the same. For epochs at an interval, mount with --epoch and --quiesce stop.")
	}
	env := append(os.Environ(), "LD_PRELOAD="+preload(library))
	if o.epoch != 0 {
		env = append(env, "RPMEMFS_EPOCH_NS="+strconv.FormatInt(int64(o.epoch), 10))
	}
	if o.quiesce.Stop {
		env = append(env, "RPMEMFS_QUIESCE=stop")
	}
	return fmt.Errorf("%s: %w", path, unix.Exec(path, args, env))
}

// exitNotFound is what shells say of a command that is not there.
const exitNotFound = 127

// preload puts the library before what is loaded anyway.
func preload(library string) string {
	if others := os.Getenv("LD_PRELOAD"); others != "" {
		return library + ":" + others
	}
	return library
}

// findLibrary looks where make install and make build put the library.
func (o *runOptions) findLibrary() (string, error) {
	if o.library != "" {
		path, err := filepath.Abs(o.library)
		if err == nil {
			_, err = os.Stat(path)
		}
		return path, err
	}
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	dir := filepath.Dir(exe)
	for _, place := range []string{filepath.Join(dir, "librpmemfs"), filepath.Join(dir, "../lib"), "/usr/local/lib", "/usr/lib"} {
		path := filepath.Join(place, preloadName)
		if _, err := os.Stat(path); err == nil {
			// The loader takes spaces and colons for separators.
			if strings.ContainsAny(path, " :") {
				return "", fmt.Errorf("%s: the loader does not take a path with a space or a colon", path)
			}
			return path, nil
		}
	}
	return "", hinted(fmt.Errorf("%s is not installed", preloadName), "Build and install it: make c && sudo make install; or give --library.")
}

// static reports whether a program is one that the dynamic loader never sees. Of a
// script nothing is known.
func static(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false // running it will tell
	}
	defer f.Close()
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := io.ReadFull(f, magic); err != nil || !bytes.Equal(magic, []byte(elf.ELFMAG)) {
		return false
	}
	program, err := elf.NewFile(f)
	if err != nil {
		return false
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}
